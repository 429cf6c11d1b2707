"""One run being watched: probes, sampler, monitor and sinks, and what happens at an evaluation."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from divmon.confirming import DrawFailed
from divmon.health import Health
from divmon.levers.rollback import Rollback
from divmon.mitigations import LeverBook
from divmon.monitor import Monitor
from divmon.pacing import Pacer
from divmon.probes import ProbeSet
from divmon.reasoning import answers
from divmon.records import Action, Decoding, LeverEvent, Observation, Probe, SampleBatch
from divmon.rollouts import RolloutWatch
from divmon.samplers.base import Sampler
from divmon.samplers.ranks import Ranks, merge
from divmon.scores import ScoreWatch
from divmon.sinks import Sink

log = logging.getLogger("divmon")
CUT = "cut_while_reasoning"  # completions left out for it


@dataclass(frozen=True)
class Wanted:
    """What rank 0 asks every rank to draw: `k` completions for each of `probes`, with the noise `key` names."""

    probes: ProbeSet
    k: int
    key: int


@dataclass
class Session:
    """Everything needed to evaluate the policy at a step.

    Attributes:
        probes: The prompts.
        sampler: Draws completions for them.
        monitor: Measures and watches.
        sinks: Receive observations.
        health: Counts failures, sums up time.
        every: Steps between evaluations.
        decoding: How they are drawn.
        ranks: This process among the others.
        rewards: Adds rewards to a batch; None when the user did not ask for them.
        rollouts: Measures what the trainer generates itself; None where it generates nothing.
        scores: Scores the baseline's completions; None where the user did not ask for it.
        pacer: Says when to score and when to sample, where there are scores; without it, `every` does.
        book: Where the levers that rules ask for stand, on every rank; None when no rule asks for one.
        rollback: Keeps healthy policies and goes back to them; None when no rule asks for that.
        act: What levers do at an evaluation, once the book is moved on; every rank calls it.
        last_step: The newest step evaluated, here or before a resume.
        latest: ``domain/metric`` to value at that step, on every rank; NaN where it could not be measured.
        scored: The same of the newest scores.
    """

    probes: ProbeSet
    sampler: Sampler
    monitor: Monitor
    sinks: Sequence[Sink]
    health: Health
    every: int
    decoding: Decoding
    ranks: Ranks = field(default_factory=Ranks)
    rewards: Callable[[SampleBatch], SampleBatch] | None = None
    rollouts: RolloutWatch | None = None
    scores: ScoreWatch | None = None
    pacer: Pacer | None = None
    book: LeverBook | None = None
    rollback: Rollback | None = None
    act: Callable[[Observation], Sequence[LeverEvent]] | None = None
    last_step: int = -1
    latest: Mapping[str, float] = field(default_factory=dict)
    scored: Mapping[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    untold: tuple[LeverEvent, ...] = ()  # recorded, and not shown yet
    opened: Collection[str] = ()  # probes whose prompts end inside a reasoning block

    def due(self, step: int) -> bool:
        """Whether `step` is an evaluation step that has not been evaluated. With scores, ask after `score`."""
        if self.pacer is not None:
            return step > self.last_step and self.pacer.sampling(step)
        return step > self.last_step and step % self.every == 0

    def wakes(self, step: int) -> bool:
        """Whether anything may be due at `step`; between such steps nothing is looked at, not even the clock."""
        if self.pacer is None:
            return self.due(step)
        return self.pacer.wakes(step)

    def score(self, step: int) -> tuple[Action, ...]:
        """Score, if that is due at `step`. Every rank asks at every step."""
        if self.scores is None or self.pacer is None or not self.pacer.scoring(step):
            self._tell(step)
            return ()
        start = self.health.clock()
        found = self.scores.evaluate(step, cross=self.pacer.decision.cross, health=self.pacer.row)
        self.scored = {**self.scored, **found.values}
        self.pacer.scored(step, found, cost=self.health.clock() - start)
        return found.actions

    def _tell(self, step: int) -> None:
        """Say, once, what the schedule comes to."""
        if self.pacer is not None and (text := self.pacer.told(step)) and any(s.name == "console" for s in self.sinks):
            print(f"divmon  {text}", flush=True)

    def spare(self, step: int) -> bool:
        """Whether the policy of `step`, which nothing has asked for, may be sampled. Every rank asks."""
        return step > self.last_step and (self.pacer is None or self.pacer.spare(step))

    def begin(self, step: int) -> None:
        """The baseline is measured: time counts from now on."""
        if self.pacer is not None:
            self.pacer.baseline = self.health.spent
            self.pacer.begin(step)

    def evaluate(self, step: int) -> tuple[Action, ...]:
        """Sample, measure, record and show. Whatever fails is skipped; what was asked of the trainer is returned."""
        first, self.last_step = self.last_step < 0, step
        observation = Observation(step, ())
        with self.health.timed():
            start, busy = time.perf_counter(), self.health.clock()
            batch = self._collect(self.ranks.gather(self._sample(step)), self.probes)
            timings = {"sample_seconds": time.perf_counter() - start}
            if self.ranks.main:
                with self.health.shield("monitor"):
                    observation = self._observe(step, batch, timings)
            else:
                self._serve(step)
            busy = self.health.clock() - busy
        values = {**dict.fromkeys(self.latest, math.nan), **{m.key: m.value for m in observation.measurements}}
        # before the sinks: no rank waits for a tracker
        actions, self.latest, states = self.ranks.broadcast((observation.actions, values, observation.states))
        self._act(replace(observation, states=states), actions)
        levels = dict(self.book.levels) if self.book is not None else {}
        if self.rollback is not None:
            levels["rollback"] = self.rollback.book.level(step)
        changes, self.untold = self.untold, ()
        self._emit(replace(observation, mitigations=levels, changes=changes))
        self._pace(step, batch if first else None, first=first, cost=busy)
        return actions

    def _act(self, observation: Observation, actions: tuple[Action, ...]) -> None:
        """Move the levers on, and keep or take back the policy. Every rank is here, with the same arguments."""
        step, states = observation.step, observation.states
        if self.book is not None:
            self.note(*self.book.advance(step, actions=actions, states=states, values=self.latest))
            if self.act is not None:
                with self.health.timed():
                    self.note(*self.act(observation))
        if self.rollback is not None:
            with self.health.timed(), self.health.shield("mitigation", "rollback"):
                self.note(*self.rollback.after(step, actions=actions, states=states, values=self.latest))
            self.take_back()

    def take_back(self) -> None:
        """Let the alarms know when the policy was taken back."""
        if self.rollback is not None and self.rollback.book.restored is not None and self.ranks.main:
            self.monitor.take_back(self.rollback.book.restored)
            if self.scores is not None:
                self.scores.take_back(self.rollback.book.restored)

    def _pace(self, step: int, batch: SampleBatch | None, *, first: bool, cost: float) -> None:
        """Tell the schedule of this evaluation; bank and score the completions of the first."""
        if self.pacer is None or self.scores is None:
            return
        confirming = self.monitor.confirming  # its bank is drawn once
        self.pacer.sampled(step, cost=max(0.0, cost - confirming.seconds) if first and confirming else cost)
        if first:
            with self.health.timed():
                start = self.health.clock()
                found = self.scores.fill(batch, step)
            self.scored, self.pacer.blind = found.values, self.scores.bank is None
            self.pacer.scored(step, found, cost=self.health.clock() - start)

    def note(self, *changes: LeverEvent) -> None:
        """Record what levers did; sinks are told with the evaluation that is under way, or the next one."""
        self.untold += changes
        history = self.monitor.history
        for change in changes if self.ranks.main else ():
            with self.health.shield("disk", "levers"):
                if history is not None:
                    history.note(change)

    def _observe(self, step: int, batch: SampleBatch | None, timings: Mapping[str, float]) -> Observation:
        """Rank 0 measures; while it does, it may ask every rank for fresh completions. In the end it lets them go."""
        try:
            if batch is None:
                return self.monitor.missed(step, health=timings)
            return self.monitor.observe(self._answers(batch), health=timings, draw=partial(self._draw, step))
        finally:
            if self.monitor.rules.confirms:
                self.ranks.broadcast(None)

    def _draw(self, step: int, probes: Sequence[Probe], *, k: int, key: int) -> SampleBatch:
        """Fresh completions, drawn by every rank. Only rank 0 calls it.

        Raises:
            DrawFailed: A rank failed, which is counted.
        """
        wanted = Wanted(ProbeSet(tuple(probes)), k, key)
        batch = self._collect(self.ranks.gather(self._sample(step, self.ranks.broadcast(wanted))), wanted.probes)
        if batch is None:
            raise DrawFailed("the sampler failed; see divmon/health/sampler_failures")
        return self._answers(batch)

    def _answers(self, batch: SampleBatch) -> SampleBatch:
        """The completions as they are measured: without their reasoning, unless that is kept."""
        if self.decoding.reasoning == "keep":
            return batch
        found, cut = answers(batch, inside=self.opened, decode=getattr(self.sampler, "decode", None))
        if cut:
            if CUT not in self.health.counts:
                log.warning(
                    "divmon: %d of %d completions of step %d were cut while reasoning and are left out: raise "
                    "max_new_tokens. Counted in divmon/health/%s, not reported again.",
                    cut, sum(map(len, batch.texts)), batch.step, CUT,
                )  # fmt: skip
            self.health.counts[CUT] = self.health.counts.get(CUT, 0.0) + cut
        return found

    def _serve(self, step: int) -> None:
        """Draw for rank 0 until it asks for no more."""
        nothing: Wanted | None = None
        while self.monitor.rules.confirms and (wanted := self.ranks.broadcast(nothing)) is not None:
            self.ranks.gather(self._sample(step, wanted))

    def _sample(self, step: int, wanted: Wanted | None = None) -> SampleBatch | str:
        """This rank's share of the evaluation's batch, or of what is `wanted`; or what went wrong."""
        batch: SampleBatch | str = "has no probes"
        share = self.ranks.share(self.probes if wanted is None else wanted.probes)
        if share is not None:
            batch = "failed"
            with self.health.shield("sampler"):
                sampler = self.sampler if wanted is None else self.sampler.fresh(k=wanted.k, key=wanted.key)
                batch = sampler(share, step=step)
        if isinstance(batch, SampleBatch) and self.rewards is not None:
            with self.health.shield("quality", "rewards"):
                batch = self.rewards(batch)
        return batch

    def _collect(self, shares: Sequence[SampleBatch | str], probes: ProbeSet) -> SampleBatch | None:
        """One batch from every rank's share; None when a rank failed, which rank 0 counts."""
        for rank, share in enumerate(shares):
            if share == "failed":
                if rank != self.ranks.index:
                    self.health.failed("sampler", f"rank {rank}", "it failed on that rank, whose log says why")
                return None
        return merge([share for share in shares if isinstance(share, SampleBatch)], probes)

    def _emit(self, observation: Observation) -> None:
        if not self.ranks.main:
            return
        with self.health.timed():
            for sink in self.sinks:
                row = {**observation.health, **self.health.row(), "overhead": self.overhead}
                row |= self.pacer.row if self.pacer is not None else {}
                with self.health.shield("sink", sink.name):
                    sink.emit(replace(observation, health=row))

    @property
    def overhead(self) -> float:
        """Share of the time since the start that divmon took."""
        return self.health.seconds / max(1e-9, time.perf_counter() - self.started)

    def close(self) -> None:
        """Write what is left and close the sinks."""
        for watch in (self.rollouts, self.scores, self.pacer):
            if watch is not None:
                watch.close()
        if self.monitor.history is not None:
            with self.health.shield("disk", "close"):
                self.monitor.history.flush()
        for sink in self.sinks if self.ranks.main else ():
            with self.health.shield("sink", sink.name):
                sink.close()
