"""Metrics of what is there with what the control added, against that with what a mode added."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from divmon.metrics.base import Metric, MetricContext, PerPrompt, Pooled, Result, evaluate
from divmon.monitor import Lenses
from divmon.records import SampleBatch
from divmon.resampling.base import Refinement
from divmon.uncertainty import paired_interval, pooled_change
from divmon.widening.arms import Drawn, Pools
from divmon.widening.results import Gain


def gains(metrics: Sequence[Metric], pools: Pools, arms: Mapping[str, Drawn], lenses: Lenses) -> tuple[Gain, ...]:
    """Each metric for each mode; n-gram weights are those of the completions as they were, for all."""
    before = _context(pools, None, lenses)
    contexts = {name: _context(pools, drawn, lenses, baseline=before) for name, drawn in arms.items()}
    results = {name: [evaluate(metric, context) for metric in metrics] for name, context in contexts.items()}
    first = [evaluate(metric, before) for metric in metrics]
    return tuple(
        _gain(mode, metric, first[i], results["plain"][i], results[mode][i])
        for mode in arms
        if mode != "plain"
        for i, metric in enumerate(metrics)
    )


def _context(pools: Pools, drawn: Drawn | None, lenses: Lenses, baseline: MetricContext | None = None) -> MetricContext:
    added: dict[str, list[Refinement]] = {probe.id: [] for probe in pools.probes}
    for one in drawn.accepted if drawn is not None else ():
        added[one.probe.id].append(one)
    texts = [pools.texts(probe) + tuple(str(one.text) for one in added[probe.id]) for probe in pools.probes]
    scores = [
        np.array([*(a.quality for a in pools.attempts[probe.id]), *(one.quality for one in added[probe.id])])
        for probe in pools.probes
    ]
    batch = SampleBatch(0, pools.probes, tuple(texts), source="file", fingerprint=pools.fingerprint)
    known = any(np.isfinite(row).any() for row in scores) and (drawn is None or lenses.quality is not None)
    return lenses.context(batch, quality=scores if known else None, baseline=baseline)


def _gain(mode: str, metric: Metric, before: Result, plain: Result, after: Result) -> Gain:
    """The change from `plain` to `after`, over the prompts that have a value on both sides."""
    if isinstance(before, Pooled) and isinstance(plain, Pooled) and isinstance(after, Pooled):
        numbers = [float(one.combine(one.parts)) if len(one.parts) else math.nan for one in (before, plain, after)]
        low, high = pooled_change(after.parts, plain.parts, (after.combine, plain.combine), paired=True)
        n, reasons = len(after.parts), [after.reason]
    else:
        values = [_values(one, len(_values(after, 0))) for one in (before, plain, after)]
        both = np.isfinite(values[1]) & np.isfinite(values[2])
        n = int(both.sum())
        numbers = [float(np.mean(one[both])) if n else math.nan for one in values]
        low, high = paired_interval(
            values[1][both], values[2][both], lambda b, c: np.asarray(c.mean(axis=-1) - b.mean(axis=-1))
        )
        reasons = [why for one in (plain, after) if isinstance(one, PerPrompt) for why in one.reasons if why]
    start, here, there = numbers
    return Gain(
        mode=mode, metric=metric.name, before=start, plain=here, after=there, gain=there - here, low=low, high=high,
        n=n, reason=reasons[0] if reasons and math.isnan(there - here) else None,
    )  # fmt: skip


def _values(result: Result, n: int) -> np.ndarray:
    """float[P]; of a pooled metric beside one that is missing, n times nothing."""
    return result.values if isinstance(result, PerPrompt) else np.full(n, math.nan)
