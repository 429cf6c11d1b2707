"""What is kept of prompts that have been measured: little, whatever their number, and enough for value and interval.

Per-prompt values are kept up to `KEPT` of them, and then their interval is the percentile bootstrap of every other part
of divmon; beyond, their number, mean and sum of squares remain, and the interval is the normal one. Parts of pooled
statistics that depend on their sum are added up in `KEPT` rows, the i-th prompt in row i modulo `KEPT`: the value is
exact, and the bootstrap draws rows, that is, bundles of prompts, which are random because prompts come in hash order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from divmon.metrics.base import Pooled
from divmon.uncertainty import mean_interval, normal_interval, pooled_change, pooled_interval

KEPT = 512


class Estimate(NamedTuple):
    """A number, its interval and the prompts behind it."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    interval: str = ""


class Values:
    """The mean of values that arrive in blocks, NaN left out.

    >>> values = Values()
    >>> values.add(np.array([1.0, np.nan])); values.add(np.array([3.0]))
    >>> values.estimate().value, values.estimate().n
    (2.0, 2)
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = 0.0
        self._squares = 0.0  # of deviations from the mean
        self._kept: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        """A block (float[N])."""
        known = values[~np.isnan(values)]
        if not known.size:
            return
        if self.n + known.size <= KEPT:
            self._kept.append(known)
        else:
            self._kept.clear()
        n, mean = self.n + known.size, float(known.mean())
        apart = mean - self.mean
        self._squares += float(np.sum((known - mean) ** 2)) + apart * apart * self.n * known.size / n
        self.mean += apart * known.size / n
        self.n = n

    @property
    def variance(self) -> float:
        """Of the values, unbiased."""
        return self._squares / (self.n - 1) if self.n > 1 else math.nan

    @property
    def sd(self) -> float:
        """Standard deviation of the values as a population."""
        return math.sqrt(self._squares / self.n) if self.n else math.nan

    def estimate(self) -> Estimate:
        """Mean and 95 % interval."""
        if not self.n:
            return Estimate(math.nan)
        if self.n <= KEPT:
            kept = np.concatenate(self._kept)
            low, high = mean_interval(kept)
            return Estimate(float(kept.mean()), low, high, self.n, "bootstrap" if math.isfinite(low) else "")
        low, high = normal_interval(self.mean, self.variance, self.n)
        return Estimate(self.mean, low, high, self.n, "normal")


class Parts:
    """Parts of a pooled statistic, added up in at most `KEPT` rows; columns may come to be added on the right."""

    def __init__(self) -> None:
        self.n = 0
        self._rows = np.zeros((KEPT, 0))
        self._combine: Callable[[np.ndarray], np.ndarray] | None = None
        self._details: Callable[[np.ndarray], Mapping[str, Any]] | None = None
        self.reason = ""

    def add(self, result: Pooled, rows: np.ndarray) -> None:
        """The prompts `rows` of a block's result."""
        parts = np.asarray(result.parts[rows], dtype=float)
        if parts.shape[1] > self._rows.shape[1]:
            self._rows = np.pad(self._rows, ((0, 0), (0, parts.shape[1] - self._rows.shape[1])))
        if parts.shape[1] >= self._rows.shape[1]:
            self._combine, self._details = result.combine, result.details
        at = (self.n + np.arange(len(parts))) % KEPT
        np.add.at(self._rows[:, : parts.shape[1]], at, parts)
        self.n += len(parts)
        self.reason = result.reason

    @property
    def rows(self) -> np.ndarray:
        """float[min(n, KEPT), D]."""
        return self._rows[: min(self.n, KEPT)]

    def combine(self, parts: np.ndarray) -> np.ndarray:
        """The statistic."""
        if self._combine is None:
            return np.full(parts.shape[:-2], math.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self._combine(parts))

    def estimate(self) -> Estimate:
        """Value and 95 % interval."""
        value = float(self.combine(self.rows)) if self.n else math.nan
        if math.isnan(value):
            return Estimate(math.nan, n=self.n)
        low, high = pooled_interval(self.rows, self.combine)
        return Estimate(value, low, high, self.n, "bootstrap" if math.isfinite(low) else "")

    def details(self) -> Mapping[str, Any]:
        """What stands behind the number."""
        return self._details(self.rows) if self._details is not None and self.n else {}


def change_of(now: Values | Parts, before: Values | Parts, *, paired: bool) -> Estimate:
    """`now` minus `before`. Paired means are those of `Values` filled with differences, so this is not for them."""
    if isinstance(now, Parts) and isinstance(before, Parts):
        value = float(now.combine(now.rows) - before.combine(before.rows)) if now.n and before.n else math.nan
        if math.isnan(value):
            return Estimate(math.nan, n=min(now.n, before.n))
        low, high = pooled_change(now.rows, before.rows, (now.combine, before.combine), paired=paired)
        return Estimate(value, low, high, min(now.n, before.n), "bootstrap" if math.isfinite(low) else "")
    if not (isinstance(now, Values) and isinstance(before, Values)) or not (now.n and before.n):
        return Estimate(math.nan)
    value = now.estimate().value - before.estimate().value
    n = min(now.n, before.n)
    low, high = normal_interval(value, n * (now.variance / now.n + before.variance / before.n), n)
    return Estimate(value, low, high, n, "normal" if math.isfinite(low) else "")
