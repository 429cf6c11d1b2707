"""The schedule of a live run: rank 0 reads the clock and decides, every rank follows, and what was decided is kept.

::

    RUN/schedule.jsonl    one line a decision to score or sample: its reason, the clock, what things cost
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from divmon.health import Health
from divmon.plain import to_json
from divmon.samplers.ranks import Ranks
from divmon.schedule import JOURNAL, Clock, Decision, Forecast, Pace, Progress, decide, forecast, in_words
from divmon.scores import Outcome

EARLY = 5  # steps after which it is said what the schedule comes to


@dataclass
class Pacer:
    """Says at every step whether to score and whether to sample.

    Only rank 0 knows the time, so only rank 0 decides. It also says at which step it will decide again; no rank asks
    before.

    Attributes:
        pace: What the user asked for.
        ranks: This process among the others.
        health: Its clock, and what divmon has spent.
        path: Folder of the run, on rank 0.
        progress: What has been done, on rank 0.
        decision: The newest one, on every rank.
        baseline: Process seconds that the baseline took.
        blind: There is nothing to score, on any rank: samplings come as if nobody looked between them.
    """

    pace: Pace
    ranks: Ranks
    health: Health
    path: Path | None = None
    progress: Progress = field(default_factory=Progress)
    decision: Decision = field(default_factory=lambda: Decision(0))
    baseline: float = 0.0
    blind: bool = False
    _from: Clock = field(default_factory=Clock)  # readings when counting began, less what an interrupted run had
    _began: int = 0
    _said: bool = False

    def begin(self, step: int) -> None:
        """Count from now on: the baseline is measured, or the run resumes."""
        self.decision, self._began = Decision(step, look=step + 1), step
        self._from = Clock(self.health.clock(), self.health.spent)

    @property
    def clock(self) -> Clock:
        """Seconds since the baseline."""
        return Clock(self.health.clock() - self._from.total, self.health.spent - self._from.spent)

    def wakes(self, step: int) -> bool:
        """Whether `step` is one at which to decide. An accelerator then finishes the work of training first, so that
        it is not counted as divmon's.
        """
        if step < self.decision.look:
            return False
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return True

    def scoring(self, step: int) -> bool:
        """Whether to score at `step`. Every rank asks."""
        if step < self.decision.look:
            return False
        self._decide(step)
        return bool(self.decision.score)

    def scored(self, step: int, found: Outcome, *, cost: float) -> None:
        """A score has been taken; it may show that a sampling is due. Every rank says so."""
        self.progress = self.progress.after_score(
            step, cost=cost, drift=found.drift, alarmed=found.alarmed, stale=found.stale, crossed=found.crossed
        )
        if self.decision.look <= step:
            self._decide(step)

    def sampling(self, step: int) -> bool:
        """Whether to sample at `step`, asked after `scoring`."""
        return self.decision.step == step and bool(self.decision.sample)

    def sampled(self, step: int, *, cost: float) -> None:
        """The policy has been sampled."""
        self.progress = self.progress.after_sample(step, cost=cost)

    def spare(self, step: int) -> bool:
        """Whether a sampling that nobody scheduled (an evaluation of the trainer's, the end) can be paid."""
        if self.pace.budget is None:
            return True
        clock, progress = self.clock, self.progress
        after = clock.spent + progress.sample_cost
        return self.ranks.broadcast(bool(after <= self.pace.budget * (clock.total + progress.sample_cost)))

    def foretold(self, step: int) -> Forecast:
        """What the pace comes to by what things have cost so far. Rank 0 knows."""
        clock, done = self.clock, self.progress
        steps = max(1, step - self._began)
        other = max(0.0, clock.spent - done.scores - done.samplings) / steps
        train = (clock.total - clock.spent) / steps
        return forecast(
            self.pace, step_cost=train, score_cost=done.score_cost, sample_cost=done.sample_cost, other=other
        )

    def told(self, step: int) -> str:
        """What the pace comes to, in words, once the first steps have shown what a step takes; else "". Once a run."""
        if self._said or step - self._began < EARLY or not self.ranks.main:
            return ""
        self._said = True
        clock = self.clock
        each = (clock.total - clock.spent) / (step - self._began)
        score, sample = self.progress.score_cost, self.progress.sample_cost
        costs = f"a step takes {each:.3g} s, a score {score:.3g} s, a sampling {sample:.3g} s"
        return f"{in_words(self.pace, self.foretold(step))}. Measured: {costs}"

    def state(self) -> dict[str, Any]:
        """For a checkpoint, in plain JSON types."""
        return {"progress": self.progress.to_json(), "clock": asdict(self.clock), "baseline": self.baseline}

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """Go on at `step` from what `state` gave."""
        self.begin(step)
        self._write({"step": step, "resumed": True})
        if not state:
            return
        self.progress, self.baseline = Progress.restore(state["progress"]), float(state.get("baseline", 0.0))
        had = Clock(**state["clock"])
        self._from = Clock(self._from.total - had.total, self._from.spent - had.spent)
        self._began = 0

    @property
    def row(self) -> dict[str, float]:
        """For `divmon/health`: the share of process time that counts against a budget."""
        if not self.decision.look:
            return {"budget_used": 0.0}  # the baseline is being measured, which does not count
        clock = self.clock
        return {"budget_used": clock.spent / clock.total if clock.total > 0 else 0.0}

    def close(self) -> None:
        """Keep the last reading of the clock."""
        self.decision = replace(self.decision, score="", sample="", cross=False, over=False)
        self._note()

    def _decide(self, step: int) -> None:
        waited = self.decision.waits
        self.decision = self.ranks.broadcast(decide(self.pace, self.progress, step, self.clock, blind=self.blind))
        if self.decision.score or self.decision.sample or self.decision.waits != waited:
            self._note()

    def _note(self) -> None:
        row = {**asdict(self.decision), **{k: round(v, 6) for k, v in asdict(self.clock).items()}}
        row |= {"drift": self.progress.drift, "costs": [self.progress.score_cost, self.progress.sample_cost]}
        row |= {"scores_spent": self.progress.scores, "samplings_spent": self.progress.samplings}
        row["baseline"] = round(self.baseline, 6)
        self._write(row)

    def _write(self, row: Mapping[str, Any]) -> None:
        if self.path is None or not self.ranks.main:
            return
        with self.health.shield("disk", JOURNAL), (self.path / JOURNAL).open("a", encoding="ascii") as file:
            file.write(json.dumps(to_json(row), allow_nan=False, separators=(",", ":")) + "\n")
