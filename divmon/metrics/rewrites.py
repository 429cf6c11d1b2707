"""Voice as metrics of a run: rewrite probes, whose `reference` is the writer's own text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from divmon.metrics.attributes import Panel
from divmon.metrics.base import Metric, MetricContext, Pooled, Result, missing
from divmon.metrics.voice import FLOOR, MIN_WRITERS, SHIPPED, compare, geometric
from divmon.records import SampleBatch


def _parts(batch: SampleBatch, panel: Panel) -> np.ndarray:
    """float[P, 3 x A]: the reference's attributes, the mean of the completions', and their variance around it."""
    a = len(panel.names)
    parts = np.full((len(batch.probes), 3, a), math.nan)
    for row, probe, texts in zip(parts, batch.probes, batch.texts, strict=True):
        if not probe.reference or not texts:
            continue
        row[0] = panel.score([probe.reference])[0]
        found = panel.score(texts)
        known = np.isfinite(found)
        n = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, found, 0.0).sum(axis=0) / n
        row[1] = np.where(known.any(axis=0), mean, math.nan)
        row[2] = (np.where(known, found - mean, 0.0) ** 2).sum(axis=0) / n
    return parts.reshape(len(parts), 3 * a)


def _columns(parts: np.ndarray) -> np.ndarray:
    a = parts.shape[-1] // 3
    writer, model, within = (parts[..., i * a : (i + 1) * a] for i in range(3))
    return compare(writer, model, within)


def _details(parts: np.ndarray, names: Sequence[str]) -> Mapping[str, Any]:
    compared = _columns(parts)
    rows = {"shift_sd": compared[2], "spread": compared[3]}
    return {
        key: {name: float(x) for name, x in zip(names, row, strict=True) if math.isfinite(x)}
        for key, row in rows.items()
    }


def _pooled(
    batch: SampleBatch, context: MetricContext, combine: Callable[[np.ndarray], np.ndarray], panel: Panel
) -> Result:
    if not any(probe.reference for probe in batch.probes):
        return missing(batch, "no probe has a reference: the writer's own text")
    parts = context.cached(("voice", panel.names), lambda: _parts(batch, panel))
    reason = f"fewer than {MIN_WRITERS} prompts with a reference and a completion, or references that are all alike"
    return Pooled(parts, combine, lambda columns: _details(columns, panel.names), reason)


def voice_spread(batch: SampleBatch, context: MetricContext, *, panel: Panel = SHIPPED) -> Result:
    """SD over writers of the rewrites' attributes over that of the writers' own texts; geometric mean. Pooled.

    For rewrite probes, whose `reference` is the writer's own text. 1: voices differ as much as before; under 1: they
    became more alike; higher is more diverse. Ratios below 0.05 count as that. The SD of the rewrites is that expected
    when one completion is drawn for each writer.

    What moves it besides homogenisation: noise between completions of one prompt, which is spread too, and references
    that are no one's own text (then it says how varied completions are beside the references, no more).

    Returns:
        Pooled; NaN for fewer than three writers. ``details`` has each attribute's ratio and shift.

    >>> from divmon.records import Probe
    >>> own = ["Short one.", "This is a somewhat longer text, by me.", "And then another long text follows here, so!"]
    >>> batch = SampleBatch(0, tuple(Probe(t, "?", reference=t) for t in own), tuple((t,) for t in own))
    >>> result = voice_spread(batch, MetricContext(batch))
    >>> round(float(result.combine(result.parts)), 9)
    1.0

    Source: spread ratio of Röttger et al. (2026), arXiv:2604.22503, on plain attributes in the place of ratings.
    """
    return _pooled(batch, context, lambda parts: geometric(_columns(parts)[3]), panel)


def voice_shift(batch: SampleBatch, context: MetricContext, *, panel: Panel = SHIPPED) -> Result:
    """How far rewrites move the writers' attributes on average: mean absolute shift in SDs of the writers. Pooled.

    0: no attribute moved; 1: each moved by a standard deviation of the writers. Neutral: correcting is a shift too.

    What moves it besides the model: what was asked for (the probes), and chance, with few writers.

    Returns:
        Pooled; NaN for fewer than three writers. ``details`` has each attribute's shift with its sign.

    >>> from divmon.records import Probe
    >>> own = ["Short one.", "This is a somewhat longer text, by me.", "And then another long text follows here, so!"]
    >>> batch = SampleBatch(0, tuple(Probe(t, "?", reference=t) for t in own), tuple((t,) for t in own))
    >>> result = voice_shift(batch, MetricContext(batch))
    >>> float(result.combine(result.parts))
    0.0

    Source: after Röttger et al. (2026), arXiv:2604.22503 (distortion as a mean shift).
    """

    def combine(parts: np.ndarray) -> np.ndarray:
        shift = np.abs(_columns(parts)[2])
        known = np.isfinite(shift)
        n = known.sum(axis=-1)
        return np.asarray(np.where(n > 0, np.where(known, shift, 0.0).sum(axis=-1) / np.maximum(n, 1), math.nan))

    return _pooled(batch, context, combine, panel)


_SIGNATURE = f"{SHIPPED.signature}|floor:{FLOOR:g}"

VOICE_SPREAD = Metric(
    name="voice_spread",
    fn=voice_spread,
    summary="How much rewrites by the model differ between writers, as a multiple of how much the writers' own texts "
    "do: 1 voices kept, under 1 voices more alike.",
    family="voice",
    direction="higher",
    bounds=(0.0, math.inf),
    scope="pooled",
    min_k=1,
    source="after Röttger et al. 2026, arXiv:2604.22503",
    signature=_SIGNATURE,
    standard=True,
)

VOICE_SHIFT = Metric(
    name="voice_shift",
    fn=voice_shift,
    summary="How far rewrites move the attributes of the writers' texts on average, in standard deviations of the "
    "writers.",
    family="voice",
    direction="neutral",
    bounds=(0.0, math.inf),
    unit="SD",
    scope="pooled",
    min_k=1,
    source="after Röttger et al. 2026, arXiv:2604.22503",
    signature=_SIGNATURE,
    standard=False,
)


def _one(panel: Panel, name: str, kind: str) -> Metric:
    """The curve of one attribute: its spread ratio, or its shift in standard deviations of the writers."""
    column = panel.names.index(name)
    row, metric = (3, VOICE_SPREAD) if kind == "spread" else (2, VOICE_SHIFT)

    def fn(batch: SampleBatch, context: MetricContext) -> Result:
        found = _pooled(batch, context, lambda parts: np.asarray(_columns(parts)[row][..., column]), panel)
        return replace(found, details=None) if isinstance(found, Pooled) else found

    what = "SD of the rewrites over SD of the writers' own texts" if row == 3 else "shift, with its sign"
    return replace(
        metric,
        name=f"voice_{kind}_{name}",
        fn=fn,
        summary=f"The attribute {name} of rewrites: {what}.",
        direction="neutral",
        bounds=(0.0 if row == 3 else -math.inf, math.inf),
        signature=f"{panel.signature}|floor:{FLOOR:g}",
        standard=False,
    )


def voice_metrics(panel: Panel) -> tuple[Metric, ...]:
    """`voice_spread` and `voice_shift` over the attributes of `panel`, and two curves for each of the user's own.

    >>> [metric.name for metric in voice_metrics(Panel((), {"length": len}))]
    ['voice_spread', 'voice_shift', 'voice_spread_length', 'voice_shift_length']

    Source: after Röttger et al. (2026), arXiv:2604.22503.
    """
    signature = f"{panel.signature}|floor:{FLOOR:g}"
    both = (
        replace(VOICE_SPREAD, fn=partial(voice_spread, panel=panel), signature=signature),
        replace(VOICE_SHIFT, fn=partial(voice_shift, panel=panel), signature=signature),
    )
    return (*both, *(_one(panel, name, kind) for name in panel.own for kind in ("spread", "shift")))
