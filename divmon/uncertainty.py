"""Bootstrap intervals over prompts. Prompts are the unit: completions of one prompt are not independent draws."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

LEVEL = 0.95
RESAMPLES = 1000
MIN_PROMPTS = 5  # below this an interval over prompts says nothing
_Z = 1.959963984540054  # the normal quantile of LEVEL
_CHUNK = 4_000_000  # floats held at once while resampling pooled statistics


@functools.lru_cache(maxsize=32)
def _indices(p: int) -> np.ndarray:
    """int[RESAMPLES, p], the same for every call: intervals must not flicker between equal evaluations."""
    return np.random.default_rng(20_26).integers(0, p, size=(RESAMPLES, p))


def _percentiles(draws: np.ndarray) -> tuple[float, float]:
    draws = draws[np.isfinite(draws)]
    if draws.size < RESAMPLES // 2:
        return math.nan, math.nan
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values` (float[P], NaN skipped).

    Returns:
        (low, high), NaN for fewer than five prompts.

    >>> mean_interval(np.full(8, 0.5))
    (0.5, 0.5)
    """
    kept = values[~np.isnan(values)]
    if kept.size < MIN_PROMPTS:
        return math.nan, math.nan
    return _percentiles(kept[_indices(kept.size)].mean(axis=1))


def pooled_interval(parts: np.ndarray, combine: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a pooled statistic (`parts` float[P, D], see `metrics.base.Pooled`)."""
    p = len(parts)
    if p < MIN_PROMPTS:
        return math.nan, math.nan
    rows = max(1, _CHUNK // max(1, parts.size))
    index = _indices(p)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = [np.asarray(combine(parts[index[i : i + rows]])) for i in range(0, RESAMPLES, rows)]
    return _percentiles(np.concatenate(draws))


def normal_interval(mean: float, variance: float, n: int) -> tuple[float, float]:
    """95 % interval of a mean of `n` values by the normal approximation, for so many values that none is kept.

    >>> [round(end, 3) for end in normal_interval(0.5, 0.04, 400)]
    [0.48, 0.52]
    """
    if n < MIN_PROMPTS:
        return math.nan, math.nan
    half = _Z * math.sqrt(variance / n)
    return mean - half, mean + half


def pooled_change(
    now: np.ndarray,
    before: np.ndarray,
    combine: tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]],
    *,
    paired: bool,
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the change of a pooled statistic.

    Args:
        now: float[P, D] parts, and `before`: float[Q, E]; rows belong to each other when `paired` (then P = Q).
        before: See `now`.
        combine: The statistic of each side.
        paired: Draw the same prompts on both sides; independent draws otherwise.
    """
    if min(len(now), len(before)) < MIN_PROMPTS:
        return math.nan, math.nan
    here = _indices(len(now))
    there = here if paired else _indices(len(before))[::-1]
    rows = max(1, _CHUNK // max(1, now.size, before.size))
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = [
            np.asarray(combine[0](now[here[i : i + rows]])) - np.asarray(combine[1](before[there[i : i + rows]]))
            for i in range(0, RESAMPLES, rows)
        ]
    return _percentiles(np.concatenate(draws))


def paired_interval(
    baseline: np.ndarray, current: np.ndarray, change: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a change, prompts resampled together on both sides.

    Args:
        baseline: float[P] or float[P, D].
        current: The same prompts now.
        change: Two arrays resampled to [..., P] or [..., P, D] -> float[...].

    >>> paired_interval(np.arange(8.0), np.arange(8.0) - 2, lambda b, c: b.mean(axis=-1) - c.mean(axis=-1))
    (2.0, 2.0)
    """
    p = len(baseline)
    if p < MIN_PROMPTS:
        return math.nan, math.nan
    rows = max(1, _CHUNK // max(1, 2 * baseline.size))
    index = _indices(p)
    chunks = (index[i : i + rows] for i in range(0, RESAMPLES, rows))
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = [np.asarray(change(baseline[chunk], current[chunk])) for chunk in chunks]
    return _percentiles(np.concatenate(draws))
