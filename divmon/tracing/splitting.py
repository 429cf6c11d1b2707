"""Of a stage's loss: what good completions lost too, and what was only errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from divmon.metrics.base import Metric, MetricContext, PerPrompt, evaluate
from divmon.metrics.conditioned import MIN_FALL, decompose
from divmon.records import OVERALL, SampleBatch
from divmon.tracing.attribution import interval
from divmon.tracing.numbers import drawn_rows
from divmon.tracing.results import Split
from divmon.uncertainty import MIN_PROMPTS

DISTANCES = ("semantic_distance", "tfidf_distance")  # the first one that was measured is split


@dataclass(frozen=True)
class Distances:
    """Distance of one checkpoint's completions, by prompt: among all and among correct ones, float[P] each."""

    everything: np.ndarray
    correct: np.ndarray


def distances(metric: Metric, context: MetricContext, *, reference: MetricContext) -> Distances | None:
    """Both distances; None where nothing judges completions.

    Args:
        metric: A distance between two completions of a prompt.
        context: The checkpoint's.
        reference: The base's: what was frozen on it is used for both.
    """
    if context.correct is None:
        return None
    batch = context.batch
    good = tuple(tuple(itertools.compress(row, mask)) for row, mask in zip(batch.texts, context.correct, strict=True))
    part = SampleBatch(batch.step, batch.probes, good)
    among = MetricContext(part, encoder=context.encoder, encoder_name=context.encoder_name, baseline=reference)
    found = [evaluate(metric, context), evaluate(metric, among)]
    values = [result.values for result in found if isinstance(result, PerPrompt)]
    return Distances(values[0], values[1]) if len(values) == 2 else None


def split(
    metric: str,
    sides: tuple[tuple[str, Distances], tuple[str, Distances]],
    domains: Sequence[tuple[str, np.ndarray]],
) -> list[Split]:
    """The split of what `metric` lost from one checkpoint to another, in each domain and over all prompts.

    Args:
        metric: Name of the distance.
        sides: The checkpoint before and the one now, by name.
        domains: Names with indices of their prompts.
    """
    (before, then), (name, now) = sides
    table = np.stack((then.everything, then.correct, now.everything, now.correct))
    known = ~np.isnan(table).any(axis=0)
    several = [(OVERALL, np.concatenate([rows for _, rows in domains]))] if len(domains) > 1 else []
    found = []
    for domain, _ in (*domains, *several):
        streams = [i for i, (one, _) in enumerate(domains) if domain in (one, OVERALL)]
        parts = [table[:, r[known[r]]] for i, (_, r) in enumerate(domains) if i in streams]
        found.append(_split(metric, (before, name), domain, parts, streams))
    return found


def _split(
    metric: str, names: tuple[str, str], domain: str, parts: Sequence[np.ndarray], streams: Sequence[int]
) -> Split:
    values = np.concatenate(parts, axis=1)
    n = values.shape[1]
    blank = (math.nan,) * 4
    if n == 0:
        why = "no prompt has two correct completions on both sides"
        return Split(names[1], names[0], domain, metric, *blank, 0, blank, why)
    means = values.mean(axis=1)
    narrowing, benign = (float(share) for share in decompose(*means))
    low, high = math.nan, math.nan
    if not math.isnan(narrowing) and n >= MIN_PROMPTS:
        index = [drawn_rows(part.shape[1], stream) for part, stream in zip(parts, streams, strict=True)]
        sums = sum(part[:, rows].sum(axis=2) for part, rows in zip(parts, index, strict=True))
        low, high = interval(decompose(*(np.asarray(sums) / n))[0])
    reason = f"it has not fallen by {MIN_FALL:.0%}" if math.isnan(narrowing) else None
    told = tuple(float(mean) for mean in means)
    return Split(names[1], names[0], domain, metric, narrowing, benign, low, high, n, told, reason)  # type: ignore[arg-type]
