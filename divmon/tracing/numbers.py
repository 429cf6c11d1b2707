"""From completions of every checkpoint to numbers, percentages and their intervals.

Every metric is measured with the base as its baseline. Numbers of a metric in a domain rest on the same prompts for all
checkpoints, those for which each checkpoint that has any value has one. Intervals are percentile bootstraps over
prompts, the same prompts drawn for all checkpoints, each domain by itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from divmon.metrics.base import Metric, PerPrompt, Pooled, Result
from divmon.records import Measurement, SampleBatch
from divmon.tracing.attribution import interval
from divmon.uncertainty import MIN_PROMPTS, RESAMPLES

_CHUNK = 4_000_000  # floats held at once


@functools.lru_cache(maxsize=64)
def drawn_rows(n: int, stream: int) -> np.ndarray:
    """int[RESAMPLES, n]: the same at every call, and other ones for each domain (`stream`)."""
    rows: np.ndarray = np.random.default_rng([20_26, stream, n]).integers(0, n, size=(RESAMPLES, n))
    return rows


@functools.lru_cache(maxsize=64)
def _counts(n: int, stream: int) -> np.ndarray:
    """float[RESAMPLES, n]: how often each prompt is drawn."""
    counts: np.ndarray = np.stack([np.bincount(row, minlength=n) for row in drawn_rows(n, stream)]).astype(float)
    return counts


def mean_draws(values: np.ndarray, stream: int) -> np.ndarray:
    """Means of `values` (float[C, n]) over resampled prompts: float[R, C]."""
    return np.asarray(_counts(values.shape[1], stream) @ values.T / values.shape[1])


def pooled_draws(result: Pooled, rows: np.ndarray, stream: int) -> np.ndarray:
    """A pooled statistic over resampled prompts `rows`: float[R]."""
    parts, index = result.parts[rows], drawn_rows(len(rows), stream)
    step = max(1, _CHUNK // max(1, parts.size))
    with np.errstate(invalid="ignore", divide="ignore"):
        if result.additive:  # all it sees is the sum
            sums = _counts(len(rows), stream) @ parts
            return np.asarray(result.combine(sums[:, None, :]), dtype=float)
        chunks = [np.asarray(result.combine(parts[index[i : i + step]])) for i in range(0, RESAMPLES, step)]
    return np.concatenate(chunks)


@dataclass(frozen=True)
class Numbers:
    """One metric in one domain, for the checkpoints that were measured.

    Attributes:
        values: float[C].
        draws: float[R, C]; None with fewer than five prompts.
        rows: Indices of the prompts they rest on.
        prompts: float[C, n], values by prompt; None for pooled metrics.
        reasons: Why a value is missing, for each checkpoint.
    """

    values: np.ndarray
    draws: np.ndarray | None
    rows: np.ndarray
    prompts: np.ndarray | None
    reasons: tuple[str | None, ...]


def numbers(results: Sequence[Result], rows: np.ndarray, stream: int) -> Numbers:
    """A metric's numbers over the prompts `rows` of a domain.

    Args:
        results: What the metric gave for each checkpoint.
        rows: Prompts of the domain.
        stream: Which of the independent streams of resampled prompts.
    """
    if any(isinstance(result, Pooled) for result in results):
        return _pooled(results, rows, stream)
    found = [result for result in results if isinstance(result, PerPrompt)]
    table = np.stack([result.values[rows] for result in found])
    some = ~np.isnan(table).all(axis=1)
    common = ~np.isnan(table[some]).any(axis=0) if some.any() else np.zeros(len(rows), dtype=bool)
    kept = table[:, common]
    if not common.any():
        lost = "no prompt has a value at every checkpoint"
        reasons: list[str | None] = [
            lost if there else _reason(result, rows) for there, result in zip(some, found, strict=True)
        ]
        return Numbers(np.full(len(results), math.nan), None, rows[common], kept, tuple(reasons))
    reasons = [None if there else _reason(result, rows) for there, result in zip(some, found, strict=True)]
    draws = mean_draws(kept, stream) if common.sum() >= MIN_PROMPTS else None
    return Numbers(kept.mean(axis=1), draws, rows[common], kept, tuple(reasons))


def _reason(result: PerPrompt, rows: np.ndarray) -> str:
    return next((reason for i in rows if (reason := result.reasons[i])), "undefined on these completions")


def _pooled(results: Sequence[Result], rows: np.ndarray, stream: int) -> Numbers:
    values: list[float] = []
    draws: list[np.ndarray] = []
    reasons: list[str | None] = []
    for result in results:
        if isinstance(result, PerPrompt):  # it could not be measured here
            values.append(math.nan)
            draws.append(np.full(RESAMPLES, math.nan))
            reasons.append(_reason(result, rows))
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            values.append(float(result.combine(result.parts[rows])))
        reasons.append(result.reason if math.isnan(values[-1]) else None)
        draws.append(pooled_draws(result, rows, stream) if len(rows) >= MIN_PROMPTS else np.full(RESAMPLES, math.nan))
    drawn = np.stack(draws, axis=1) if len(rows) >= MIN_PROMPTS else None
    return Numbers(np.array(values), drawn, rows, None, tuple(reasons))


def measurements(
    metric: Metric, found: Mapping[str, Numbers], batches: Sequence[SampleBatch], signed: str
) -> list[list[Measurement]]:
    """A metric's numbers as records: a list for each checkpoint, with an entry for each domain.

    Args:
        metric: What was measured.
        found: By domain.
        batches: Completions of each checkpoint.
        signed: The part of the signature that says through what it was measured.
    """
    aggregator = "agg:mean" if metric.scope == "per_prompt" else "agg:pooled"
    rows: list[list[Measurement]] = []
    for i, batch in enumerate(batches):
        signature = "|".join(filter(None, (metric.signature, signed, aggregator, batch.signature)))
        rows.append([_measurement(metric.name, domain, one, i, signature) for domain, one in found.items()])
    return rows


def _measurement(metric: str, domain: str, found: Numbers, i: int, signature: str) -> Measurement:
    value = float(found.values[i])
    low, high = interval(None if found.draws is None else found.draws[:, i])
    reason = found.reasons[i] if math.isnan(value) else None
    n = 0 if math.isnan(value) else len(found.rows)
    return Measurement(i, domain, metric, value, low, high, n, signature, reason=reason)
