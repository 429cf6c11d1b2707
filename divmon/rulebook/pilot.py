"""A pilot: one batch at step 0, measured whole and with each completion left out in turn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from divmon.alarms.simulation import Pilot, noise_factors
from divmon.errors import ConfigError, HistoryError
from divmon.history import History
from divmon.metrics import METRICS, Metric
from divmon.metrics.base import MetricContext, PerPrompt, Result, evaluate
from divmon.metrics.quality import judge
from divmon.records import OVERALL, SampleBatch
from divmon.samplers.file import read_completions

_ORDERS = 4  # random orders of the completions in which disjoint parts are compared


def read_pilot(path: str | Path) -> tuple[SampleBatch, float]:
    """The completions at `path` and the seconds it took to draw one of them (NaN when nobody knows).

    Args:
        path: A recorded run, whose first completions are taken, or a JSON Lines file of completions.

    Raises:
        HistoryError: The run has no completions.
        ProbeError: The file holds none.
    """
    path = Path(path)
    if not path.is_dir():
        return read_completions(path), math.nan
    history = History.read(path)
    first = next((e for e in history.evaluations if e.measurements), None)
    if first is None:
        raise HistoryError(f"{history.path} has no evaluation yet.")
    batch = history.batch(first.step)
    seconds = first.health.get("sample_seconds", math.nan)
    return batch, seconds / max(1, sum(map(len, batch.texts)))


def pilots(batch: SampleBatch, metrics: Iterable[str]) -> list[Pilot]:
    """Each metric in each domain (and over all of several), with what every completion contributes.

    Leaving out the i-th completion of every prompt at once costs K + 1 measurements in all. The difference it makes to
    a prompt is due to that prompt's own completion; to a statistic of all prompts together, to one of each.

    Raises:
        ConfigError: A prompt has fewer than three completions.
    """
    k = batch.k
    if k < 3:
        raise ConfigError(f"A pilot needs at least 3 completions a prompt to see their noise, not {k}.")
    batch = _columns(batch, range(k))
    whole = _context(batch, None)
    left_out = [_context(_columns(batch, [j for j in range(k) if j != i]), whole) for i in range(k)]
    parts = [[_context(_columns(batch, part), whole) for part in order] for order in _parts(k)]
    domains = [*batch.domains, OVERALL] if len(batch.domains) > 1 else list(batch.domains)
    found = []
    for name in dict.fromkeys(metrics):
        if name in METRICS:
            results = [_measured(METRICS[name], context) for context in (whole, *left_out)]
            smaller = [[_measured(METRICS[name], context) for context in order] for order in parts]
            found += [_pilot(name, domain, results, smaller, batch.rows(domain)) for domain in domains]
    return found


def _parts(k: int) -> list[list[list[int]]]:
    """Some random orders of the completions, each as its two halves and then as its pairs."""
    rng, found = np.random.default_rng(0), []
    for _ in range(_ORDERS):
        order = list(map(int, rng.permutation(k)))
        found.append([order[: k // 2], order[k // 2 : k // 2 * 2], *(order[2 * i : 2 * i + 2] for i in range(k // 2))])
    return found


def _pilot(
    name: str, domain: str, results: Sequence[Result], smaller: Sequence[Sequence[Result]], rows: np.ndarray
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
    if len(full) and METRICS[name].min_k <= 2:
        parts = np.stack([[_values(result, rows)[kept] for result in order] for order in smaller])
        factors = noise_factors(full, centred, parts[:, 2:], parts[:, :2])
    return Pilot(name, domain, full, centred, prompts if len(full) else 0, pooled, METRICS[name].bounds, factors)


def _values(result: Result, rows: np.ndarray) -> np.ndarray:
    if isinstance(result, PerPrompt):
        return np.asarray(result.values[rows], dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.array([float(result.combine(result.parts[rows]))])


def _measured(metric: Metric, context: MetricContext) -> Result:
    with np.errstate(divide="ignore", invalid="ignore"):
        return evaluate(metric, context)


def _context(batch: SampleBatch, baseline: MetricContext | None) -> MetricContext:
    quality, _ = judge(batch, None)
    return MetricContext(batch, quality=quality, baseline=baseline)


def _columns(batch: SampleBatch, kept: Iterable[int]) -> SampleBatch:
    """The batch with only these completions of every prompt."""
    columns = list(kept)
    rows = {
        name: tuple(tuple(row[j] for j in columns) for row in value)
        for name in ("texts", "token_ids", "finished", "logprobs", "entropies", "rewards")
        if (value := getattr(batch, name)) is not None
    }
    return replace(batch, **rows)  # type: ignore[arg-type]
