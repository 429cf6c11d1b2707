"""How far two groups are apart, and how sure that is: over seeds, or over prompts where each has one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from divmon.comparing.results import Estimate
from divmon.matching import between
from divmon.records import Measurement
from divmon.uncertainty import LEVEL, MIN_PROMPTS, paired_interval

Interval = tuple[float, float]
_NONE: Interval = (math.nan, math.nan)


@dataclass(frozen=True)
class Reading:
    """A metric at a point of a run: a mixture of two evaluations.

    Attributes:
        before: The measurement before the point; None when the metric was not measured there.
        after: The one after it; the same at an evaluation.
        weight: Of `after`.
        run: The run's name, for reasons.
        step: Of the point.
    """

    before: Measurement | None
    after: Measurement | None
    weight: float
    run: str
    step: float

    @property
    def _used(self) -> tuple[Measurement | None, ...]:
        return (self.before,) if self.weight == 0 else (self.before, self.after)

    @property
    def value(self) -> float:
        """The number; NaN when an evaluation it needs has none."""
        if any(m is None for m in self._used):
            return math.nan
        return float(sum(w * m.value for w, m in self._weighed()))

    def _weighed(self) -> list[tuple[float, Measurement]]:
        pairs = zip((1 - self.weight, self.weight), self._used, strict=False)
        return [(weight, m) for weight, m in pairs if m is not None]

    @property
    def reason(self) -> str | None:
        """Why the value is missing."""
        for m in self._used:
            if m is None:
                return f"not measured near step {self.step:.0f} in {self.run}"
            if math.isnan(m.value):
                return f"{m.reason or 'no reason was recorded'} (step {m.step} in {self.run})"
        return None

    def prompts(self) -> np.ndarray | None:
        """float[P, 2], the values by prompt before and after; None where the number is not their mean."""
        if any(m is None or not m.values for m in self._used):
            return None
        columns = [np.array(m.values, dtype=float) for _, m in self._weighed()]
        columns = columns if len(columns) == 2 else columns * 2
        if columns[0].shape != columns[1].shape or np.isnan(columns).all(axis=1).any():
            return None
        table = np.stack(columns, axis=1)
        return table if abs(self.mixed(table) - self.value) < 1e-6 * max(1.0, abs(self.value)) else None

    def mixed(self, table: np.ndarray) -> np.ndarray:
        """float[..., P, 2] -> float[...]: the number from the values by prompt."""
        known = ~np.isnan(table)
        means = np.where(known, table, 0.0).sum(axis=-2) / known.sum(axis=-2)
        return np.asarray(between(means[..., 0], means[..., 1], self.weight))


def estimate(group: str, readings: Sequence[Reading], reference: Sequence[Reading] | None) -> Estimate:
    """One group's number and, when `reference` is given, how far it is from that.

    With as many runs on both sides (two or more), the interval is a t interval over pairs in their order; with two or
    more but not as many, Welch's t; with one on each side, a percentile bootstrap over prompts, the same prompts drawn
    on both sides, which says nothing about seeds. In all of them the point of comparison is taken as known.
    """
    values = tuple(reading.value for reading in readings)
    lost = next((reading.reason for reading in readings if reading.reason), None)
    mean = math.nan if lost else float(np.mean(values))
    if reference is None:
        return Estimate(group, mean, values, reason=lost)
    lost = lost or next((reading.reason for reading in reference if reading.reason), None)
    if lost:
        return Estimate(group, mean, values, reason=lost)
    others = tuple(reading.value for reading in reference)
    base = float(np.mean(others))
    ends, how, n, why = _interval(readings, reference, values, others)
    ratio = mean / base if base > 0 else math.nan
    return Estimate(group, mean, values, ratio, mean - base, *ends, interval=how, n=n, reason=why)


def _interval(
    readings: Sequence[Reading], reference: Sequence[Reading], values: Sequence[float], others: Sequence[float]
) -> tuple[Interval, str, tuple[int, ...], str | None]:
    if len(values) == len(others) > 1:
        return paired_t(np.subtract(values, others)), "paired t", (len(values),), None
    if min(len(values), len(others)) > 1:
        return welch_t(np.array(values), np.array(others)), "Welch t", (len(others), len(values)), None
    if len(values) != len(others):
        return _NONE, "", (), "no interval: one run on one side says nothing about seeds"
    return over_prompts(readings[0], reference[0])


def paired_t(differences: np.ndarray) -> Interval:
    """95 % t interval of the mean of paired differences, float[N] with N of 2 or more.

    >>> [round(end, 3) for end in paired_t(np.array([1.0, 2.0, 3.0]))]
    [-0.484, 4.484]
    """
    n = len(differences)
    half = _t(n - 1) * float(differences.std(ddof=1)) / math.sqrt(n)
    return float(differences.mean()) - half, float(differences.mean()) + half


def welch_t(values: np.ndarray, others: np.ndarray) -> Interval:
    """95 % t interval of the difference of two means, variances and numbers of runs unlike (Welch 1947)."""
    parts = [float(x.var(ddof=1)) / len(x) for x in (values, others)]
    difference, variance = float(values.mean() - others.mean()), sum(parts)
    if variance == 0:
        return difference, difference
    freedom = variance**2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, (values, others), strict=True))
    half = _t(freedom) * math.sqrt(variance)
    return difference - half, difference + half


def _t(freedom: float) -> float:
    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def over_prompts(reading: Reading, reference: Reading) -> tuple[Interval, str, tuple[int, ...], str | None]:
    """The interval of one run against one other, from what each prompt contributed."""
    now, before = reading.prompts(), reference.prompts()
    if now is None or before is None or now.shape != before.shape:
        return _NONE, "", (), "no interval: one run a side, and the number is no mean of values by prompt"
    if len(now) < MIN_PROMPTS:
        return _NONE, "", (), f"no interval: one run a side, and {len(now)} prompts are too few"
    ends = paired_interval(before, now, lambda b, c: reading.mixed(c) - reference.mixed(b))
    if math.isnan(ends[0]):
        return _NONE, "", (), "no interval: too few prompts have a value"
    return ends, "bootstrap over prompts", (len(now),), None
