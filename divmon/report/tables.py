"""The numbers of a report: how every series changed, what was missing, and what watching cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from divmon.health import PARTS
from divmon.history import Evaluation, History
from divmon.metrics import METRICS
from divmon.records import OVERALL, Measurement
from divmon.report.text import short
from divmon.uncertainty import mean_interval


@dataclass(frozen=True)
class Change:
    """One series from its first value to its last.

    Attributes:
        first: The first measurement with a value: what alarms call the baseline.
        last: The last one with a value.
        low: Lower end of the 95 % interval of the change, prompt by prompt; NaN without values by prompt.
        high: Upper end.
    """

    first: Measurement
    last: Measurement
    low: float = math.nan
    high: float = math.nan

    @property
    def metric(self) -> str:
        """The metric."""
        return self.first.metric

    @property
    def domain(self) -> str:
        """The domain."""
        return self.first.domain

    @property
    def delta(self) -> float:
        """Last minus first."""
        return self.last.value - self.first.value

    @property
    def relative(self) -> float:
        """The change as a share of the first value; NaN where that is not above 0."""
        return self.delta / self.first.value if self.first.value > 0 else math.nan

    @property
    def paired(self) -> bool:
        """Whether the change has an interval of its own."""
        return not math.isnan(self.low)

    @property
    def clear(self) -> bool | None:
        """Whether the change is beyond the noise over prompts; None when nothing tells.

        With values by prompt, the interval of the change excludes 0; without, the two intervals do not overlap.
        """
        if self.first.step == self.last.step:
            return None
        if self.paired:
            return bool(self.low > 0 or self.high < 0)
        ends = (self.first.low, self.first.high, self.last.low, self.last.high)
        if any(map(math.isnan, ends)):
            return None
        return bool(self.last.high < self.first.low or self.last.low > self.first.high)

    @property
    def narrower(self) -> bool:
        """Whether the change points to less diversity."""
        direction = METRICS[self.metric].direction if self.metric in METRICS else "neutral"
        return (direction == "higher" and self.delta < 0) or (direction == "lower" and self.delta > 0)


def between(first: Measurement, last: Measurement) -> Change:
    """The change from `first` to `last`, with its paired bootstrap interval where both have the same prompts."""
    before, after = np.array(first.values, dtype=float), np.array(last.values, dtype=float)
    if before.size and before.shape == after.shape and bool((np.isnan(before) == np.isnan(after)).all()):
        return Change(first, last, *mean_interval(after - before))
    return Change(first, last)


def by_key(history: History) -> dict[str, list[Measurement]]:
    """Every series, oldest first, keyed ``domain/metric``."""
    found: dict[str, list[Measurement]] = {}
    for evaluation in history.evaluations:
        for m in evaluation.measurements:
            found.setdefault(m.key, []).append(m)
    return found


def changes(history: History) -> dict[str, Change]:
    """The change of every series that has a value, keyed ``domain/metric``."""
    known = {key: [m for m in row if not math.isnan(m.value)] for key, row in by_key(history).items()}
    return {key: between(row[0], row[-1]) for key, row in known.items() if row}


def domains(histories: Iterable[History]) -> list[str]:
    """Every domain in the order first measured, the overall one last."""
    found = dict.fromkeys(m.domain for h in histories for e in h.evaluations for m in e.measurements)
    return [d for d in found if d != OVERALL] + [d for d in found if d == OVERALL]


@dataclass(frozen=True)
class Gap:
    """Values that are missing, and why."""

    metrics: tuple[str, ...]
    domain: str
    steps: str
    reason: str


def gaps(history: History) -> list[Gap]:
    """What could not be measured, the metrics with one reason and the same steps together."""
    found: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for row in by_key(history).values():
        reasons: dict[str, list[int]] = {}
        for m in row:
            if math.isnan(m.value):
                reasons.setdefault(m.reason or "no reason was recorded", []).append(m.step)
        for reason, steps in reasons.items():
            found.setdefault((row[0].domain, reason, tuple(steps)), []).append(row[0].metric)
    total = len(history.evaluations)
    return [Gap(tuple(names), domain, _steps(steps, total), why) for (domain, why, steps), names in found.items()]


def _steps(steps: Sequence[int], total: int) -> str:
    if len(steps) == total:
        return "every evaluation"
    listed = ", ".join(map(str, steps[:8])) + (", …" if len(steps) > 8 else "")
    return f"step{'s' if len(steps) > 1 else ''} {listed}"


@dataclass(frozen=True)
class Cost:
    """What watching took.

    Attributes:
        sampling: Seconds of sampling in total; NaN when not recorded.
        measuring: Seconds of measuring in total; NaN when not recorded.
        evaluations: How many there were.
        failures: Failures of divmon itself by part, those that happened.
    """

    sampling: float
    measuring: float
    evaluations: int
    failures: Mapping[str, int]


def cost(history: History) -> Cost:
    """Seconds and failures over the whole run."""
    rows = [e.health for e in history.evaluations]

    def total(name: str) -> float:
        seconds = [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]
        return sum(seconds) if seconds else math.nan

    failures = {str(part): _count(history.evaluations, f"{part}_failures") for part in PARTS}
    kept = {part: n for part, n in failures.items() if n}
    return Cost(total("sample_seconds"), total("measure_seconds"), len(rows), kept)


def _count(evaluations: Iterable[Evaluation], name: str) -> int:
    """How far a counter went that starts again from 0 when a run is resumed."""
    before, total = 0.0, 0.0
    for evaluation in evaluations:
        now = float(evaluation.health.get(name, before))
        if math.isfinite(now):
            total += now - before if now >= before else now
            before = now
    return int(total)


def differing(a: str, b: str) -> str:
    """Which parts of two signatures differ, for people.

    >>> differing("k:8|T:1", "k:4|T:1")
    'k:8 against k:4'
    """
    left, right = a.split("|"), b.split("|")
    only = [
        "|".join(p for p in mine if p not in theirs) or "nothing" for mine, theirs in ((left, right), (right, left))
    ]
    return f"{short(only[0], 120)} against {short(only[1], 120)}"
