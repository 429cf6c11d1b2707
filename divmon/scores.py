"""The series of scores: what the policy says about the baseline's own completions, apart from the probes.

::

    RUN/bank.npz    the baseline's completions, token by token
    RUN/scores/     a history of its own: KL, retained mass, its tail half, ..., and the alarms on them
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from divmon.alarms import Alarms, RuleSet, dump_rules
from divmon.bank import NAME, Bank, Block
from divmon.health import Health
from divmon.history import Evaluation, History
from divmon.metrics.base import MetricContext
from divmon.metrics.scores import bank_context, measure_scores, stale
from divmon.mitigations import decide
from divmon.monitor import Lenses
from divmon.probes import ProbeSet
from divmon.records import Action, Measurement, Observation, SampleBatch
from divmon.samplers.ranks import Ranks, merge
from divmon.samplers.score import Scorer
from divmon.sinks import Sink

FOLDER = "scores"
DISAGREE = 0.1  # nats a token between sampling and scoring the same weights, from which scores cannot be believed
CURVES = ("retained_mass", "retained_tail", "kl_per_token")  # what trackers get; the rest is on disk
DRIFT = "kl_per_token"
FAILED = "scoring failed; see divmon/health/scorer_failures"


@dataclass(frozen=True)
class Outcome:
    """What a score brought, on every rank.

    Attributes:
        actions: What alarms ask for.
        values: ``domain/metric`` to value.
        drift: KL per token over every domain; NaN where it failed.
        alarmed: Whether an alarm has become pending or has fired.
        stale: Whether the bank no longer stands for the policy.
        crossed: Whether completions were also scored under one another's prompts.
    """

    actions: tuple[Action, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    drift: float = math.nan
    alarmed: bool = False
    stale: bool = False
    crossed: bool = False


@dataclass
class ScoreWatch:
    """Banks the baseline and scores it.

    Attributes:
        scorer: Asks the live policy.
        lenses: Name the classifier of formats.
        prompt_ids: The tokens that completions of probes are drawn from.
        identity: Of the model and tokenizer.
        rules: Those on scores.
        probes: The prompts.
        sinks: Receive observations.
        ranks: This process among the others.
        health: Counts failures, sums up time.
        path: Folder of the run, on rank 0.
        bank: The baseline's completions, on every rank; None where there are none, and nothing is scored.
        history: On rank 0.
    """

    scorer: Scorer
    lenses: Lenses
    prompt_ids: Callable[[ProbeSet], tuple[tuple[int, ...], ...]]
    identity: Mapping[str, str]
    rules: RuleSet
    probes: ProbeSet
    sinks: Sequence[Sink]
    ranks: Ranks
    health: Health
    path: Path | None = None
    bank: Bank | None = None
    history: History | None = None
    _alarms: Alarms = field(init=False)
    _last: tuple[Measurement, ...] = ()
    _base: MetricContext | None = None
    _back: int | None = None  # the step that training has gone back to since the newest score

    def __post_init__(self) -> None:
        self._alarms = Alarms(self.rules)

    @property
    def states(self) -> Mapping[str, str]:
        """The state of every alarm on scores, keyed ``name/domain``. Rank 0 knows."""
        return self._alarms.states

    def fill(self, batch: SampleBatch | None, step: int) -> Outcome:
        """Bank the completions of the baseline, score them, and record what they say at the baseline itself.

        Scoring the baseline gives the log-probabilities to compare with: sampling's own may differ by rounding. Where
        the two differ by more, scores would mean nothing, and none are taken. Every rank calls it.
        """
        bank = None
        if batch is not None and batch.logprobs is not None:
            with self.health.shield("scorer", "bank"):
                bank = Bank(batch, self.prompt_ids(self.probes), self.identity)
        if not all(self.ranks.gather(bank is not None)) or bank is None:
            return Outcome()
        self.bank = bank
        scored = self._scored(step)
        if scored is None:
            self.bank = None
            return Outcome()
        apart = bank.disagreement(scored)
        self.bank = bank.anchor(scored)
        why = self.bank.refusal
        if not apart <= DISAGREE:
            why = f"scoring and sampling the same weights differ by {apart:.2g} nats a token"
        if why is not None:
            self.bank = None
            self.health.failed("scorer", "bank", f"{why}; no scores are taken")
            return Outcome()
        if self.ranks.main and self.path is not None:
            with self.health.shield("disk", NAME):
                self.bank.write(self.path / NAME)
        return self._finish(step, scored, {"score_seconds": 0.0}, block=self._crossed())

    def resume(self, fingerprint: str) -> None:
        """Read the bank of the run that goes on. Without it, nothing is scored. Every rank calls it."""
        bank = None
        if self.ranks.main and self.path is not None:
            with self.health.shield("scorer", "bank"):
                bank = Bank.read(
                    self.path / NAME, probes=self.probes.probes, fingerprint=fingerprint, identity=self.identity
                )
        self.bank = self.ranks.broadcast(bank)

    def record(self, run: Path, *, step: int) -> None:
        """Keep the series in ``RUN/scores``, continuing it where the run resumes at `step`. Only rank 0 does."""
        self.path, path = run, run / FOLDER
        if step > 0 and (path / "run.json").exists():
            with self.health.shield("disk", f"{path} (resume)"):
                history = History.read(path)
                history.rewind(step)
                for evaluation in history.evaluations:
                    self._alarms.fold(evaluation)
                    self._last = evaluation.measurements or self._last
                self.history = history
        if self.history is None:
            info: dict[str, Any] = {"source": "score", "rules": dump_rules(self.rules), "alarms": self.rules.shared}
            with self.health.shield("disk", str(path)):
                self.history = History.create(path, probes=self.probes.probes, info=info)

    def take_back(self, step: int) -> None:
        """Training has gone back to the weights of `step`: alarms are judged afresh from the next score on."""
        self._back = step
        self._alarms.take_back()

    def evaluate(self, step: int, *, cross: bool = False, health: Mapping[str, float] | None = None) -> Outcome:
        """Score the bank under the live policy. Every rank calls it.

        Args:
            step: Of the policy.
            cross: Score some completions under one another's prompts too, for input dependence.
            health: More timings to record with it.
        """
        if self.bank is None:
            return Outcome()
        start = self.health.clock()
        scored = self._scored(step)
        block = self._crossed() if cross else None
        row = {"score_seconds": self.health.clock() - start, **(health or {})}
        return self._finish(step, scored, row, block=block)

    def close(self) -> None:
        """Write what is left and close the sinks."""
        if self.history is not None:
            with self.health.shield("disk", "close (scores)"):
                self.history.flush()
        for sink in self.sinks if self.ranks.main else ():
            with self.health.shield("sink", f"{sink.name} (scores)"):
                sink.close()

    def _scored(self, step: int) -> SampleBatch | None:
        """The bank as the live policy sees it, from every rank's share; None when a rank failed."""
        if self.bank is None:
            return None
        ranks, mine = self.ranks, None
        share = self.bank if ranks.together else self.bank.share(ranks.index, ranks.count)
        if share is not None:
            with self.health.shield("scorer"):
                mine = self.scorer(share, step=step)
        shares = self.ranks.gather((share is not None, mine))
        if any(given and part is None for given, part in shares):
            return None
        return merge([part for _, part in shares if part is not None], self.probes)

    def _crossed(self) -> Block | None:
        """Some completions under one another's prompts, from every rank's rows; None when a rank failed."""
        if self.bank is None or self.bank.crossing() is None:
            return None
        mine = None
        with self.health.shield("scorer", "cross"):
            mine = self.scorer.cross(self.bank, index=self.ranks.index, count=self.ranks.count)
        parts = self.ranks.gather(mine)
        known = [part for part in parts if part is not None]
        return Block.merge(known) if len(known) == len(parts) else None

    def _finish(
        self, step: int, scored: SampleBatch | None, row: Mapping[str, float], *, block: Block | None = None
    ) -> Outcome:
        """Measure, record and show on rank 0; tell every rank what came of it."""
        observation = Observation(step, ())
        if self.ranks.main:
            with self.health.shield("monitor", "scores"):
                observation = self._observe(step, scored, row, block)
        found = replace(self.ranks.broadcast(self._outcome(observation)), crossed=block is not None)
        if self.ranks.main:
            for sink in self.sinks:
                with self.health.shield("sink", f"{sink.name} (scores)"):
                    sink.emit(observation)
        return found

    def _observe(
        self, step: int, scored: SampleBatch | None, row: Mapping[str, float], block: Block | None
    ) -> Observation:
        measurements: tuple[Measurement, ...] = ()
        if scored is not None and self.bank is not None:
            with self.health.shield("metric", "scores"):
                measurements = self._measure(self.bank, scored, block)
        measurements = measurements or _blank(self._last, step)
        events = tuple(self._alarms.observe(step, measurements))
        failed = partial(self.health.failed, "mitigation")
        context = {"measurements": measurements, "history": self.history}
        actions = decide(events, functions=self._alarms.functions, context=context, on_error=failed)
        self._last = measurements
        if self.history is not None:
            with self.health.shield("disk", str(self.history.path)):
                health = {**row, **self.health.row()}
                self.history.append(Evaluation(step, measurements, events, health, restored=self._back))
                self._back = None
                self.history.slim()  # there may be one a step
        return Observation(step, measurements, events, actions, dict(self._alarms.states), row)

    def _measure(self, bank: Bank, scored: SampleBatch, block: Block | None) -> tuple[Measurement, ...]:
        if self._base is None:
            self._base = bank_context(bank, classifier=self.lenses.classifier)
        name = self.lenses.classifier_name
        return measure_scores(bank, scored, baseline=self._base, classifier_name=name, block=block)

    def _outcome(self, observation: Observation) -> Outcome:
        values = {m.key: m.value for m in observation.measurements}
        moved = [m for m in observation.measurements if m.metric == DRIFT]
        known = [m for m in moved if math.isfinite(m.value)]
        # over all domains: the mean weighted by prompts, where no overall number is among them
        total = sum(m.n for m in known)
        drift = next((m.value for m in known if m.domain == "all"), math.nan)
        if math.isnan(drift) and total:
            drift = sum(m.value * m.n for m in known) / total
        alarmed = any(event.state in ("pending", "firing") for event in observation.events)
        return Outcome(observation.actions, values, drift, alarmed, stale(observation.measurements) is not None)


def clock_of(device: str) -> Callable[[], float]:
    """What a budget is counted in: process time on a CPU, wall time elsewhere (there, the process mostly waits)."""
    return time.process_time if device == "cpu" else time.perf_counter


def _blank(last: Sequence[Measurement], step: int) -> tuple[Measurement, ...]:
    """The series of `last` without a number."""
    return tuple(
        replace(m, step=step, value=math.nan, low=math.nan, high=math.nan, n=0, values=(), details={}, reason=FAILED)
        for m in last
    )
