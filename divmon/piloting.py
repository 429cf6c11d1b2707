"""A pilot: one batch at step 0, measured whole and with each completion left out in turn."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from divmon.alarms.simulation import Pilot, noise_factors
from divmon.errors import ConfigError
from divmon.metrics.base import Metric, MetricContext, PerPrompt, Result, evaluate
from divmon.records import OVERALL, SampleBatch

_ORDERS = 4  # random orders of the completions in which disjoint parts are compared


def pilots(whole: MetricContext, metrics: Iterable[Metric]) -> list[Pilot]:
    """Each metric in each domain (and over all of several), with what every completion contributes.

    Leaving out the i-th completion of every prompt at once costs K + 1 measurements in all. The difference it makes to
    a prompt is due to that prompt's own completion; to a statistic of all prompts together, to one of each.

    Args:
        whole: The batch and what it is looked at through; completions beyond the smallest K of a prompt are left out.
        metrics: What to measure.

    Raises:
        ConfigError: A prompt has fewer than three completions.
    """
    batch = whole.batch
    k = batch.k
    if k < 3:
        raise ConfigError(f"A pilot needs at least 3 completions a prompt to see their noise, not {k}.")
    full = _context(whole, range(k))
    left_out = [_context(whole, [j for j in range(k) if j != i]) for i in range(k)]
    parts = [[_context(whole, part) for part in order] for order in _parts(k)]
    domains = [*batch.domains, OVERALL] if len(batch.domains) > 1 else list(batch.domains)
    found = []
    for metric in {metric.name: metric for metric in metrics}.values():
        results = [_measured(metric, context) for context in (full, *left_out)]
        smaller = [[_measured(metric, context) for context in order] for order in parts]
        found += [_pilot(metric, domain, results, smaller, batch.rows(domain)) for domain in domains]
    return found


def seconds(whole: MetricContext, metrics: Iterable[Metric]) -> float:
    """About how long `pilots` would take: each metric is measured once, with nothing remembered."""
    k, start = whole.batch.k, time.perf_counter()
    context = _context(whole, range(k))
    for metric in metrics:
        _measured(metric, context)
    return (time.perf_counter() - start) * (k + 2 * _ORDERS)  # K times K - 1 completions, and each order's twice


def _parts(k: int) -> list[list[list[int]]]:
    """Some random orders of the completions, each as its two halves and then as its pairs."""
    rng, found = np.random.default_rng(0), []
    for _ in range(_ORDERS):
        order = list(map(int, rng.permutation(k)))
        found.append([order[: k // 2], order[k // 2 : k // 2 * 2], *(order[2 * i : 2 * i + 2] for i in range(k // 2))])
    return found


def _pilot(
    metric: Metric, domain: str, results: Sequence[Result], smaller: Sequence[Sequence[Result]], rows: np.ndarray
) -> Pilot:
    values = np.stack([_values(result, rows) for result in results])
    kept = np.isfinite(values).all(axis=0)
    full, less = values[0, kept], values[1:, kept].T
    k = less.shape[1]
    pseudo = k * full[:, None] - (k - 1) * less
    pooled = not isinstance(results[0], PerPrompt)
    prompts = len(rows) if pooled else int(kept.sum())
    centred = pseudo - pseudo.mean(axis=1, keepdims=True)
    factors = (1.0, 1.0)
    if len(full) and metric.min_k <= 2:
        parts = np.stack([[_values(result, rows)[kept] for result in order] for order in smaller])
        factors = noise_factors(full, centred, parts[:, 2:], parts[:, :2])
    return Pilot(metric.name, domain, full, centred, prompts if len(full) else 0, pooled, metric.bounds, factors)


def _values(result: Result, rows: np.ndarray) -> np.ndarray:
    if isinstance(result, PerPrompt):
        return np.asarray(result.values[rows], dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.array([float(result.combine(result.parts[rows]))])


def _measured(metric: Metric, context: MetricContext) -> Result:
    with np.errstate(divide="ignore", invalid="ignore"):
        return evaluate(metric, context)


def _context(whole: MetricContext, kept: Iterable[int]) -> MetricContext:
    """The same with only these completions of every prompt, compared with the whole."""
    columns = list(kept)
    quality = None if whole.quality is None else [row[columns] for row in whole.quality]
    return MetricContext(
        _columns(whole.batch, columns),
        quality=quality,
        correct_at=whole.correct_at,
        encoder=whole.encoder,
        encoder_name=whole.encoder_name,
        classifier=whole.classifier,
        baseline=whole.reference,
        judges=whole.judges,
    )


def _columns(batch: SampleBatch, columns: Sequence[int]) -> SampleBatch:
    """The batch with only these completions of every prompt."""
    rows = {
        name: tuple(tuple(row[j] for j in columns) for row in value)
        for name in ("texts", "token_ids", "finished", "logprobs", "entropies", "rewards")
        if (value := getattr(batch, name)) is not None
    }
    return replace(batch, **rows)  # type: ignore[arg-type]
