"""Format dominance: how completions share themselves out over formats, and whether the winning format deserves it.

A completion's format is the first of its labels (see `divmon.metrics.structure`). Completions that a user's classifier
failed on (label "error") are in no format; they are counted under "unclassified".

`parts` of every metric here is float[P, F * C]: C numbers for each of F labels, label by label. The label "error" comes
first, then the baseline's labels by name, then labels unseen there, so that the baseline's own parts line up with later
ones when padded with zeros on the right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from divmon.metrics.base import Metric, MetricContext, Pooled, Result
from divmon.metrics.discovery import frozen
from divmon.metrics.spectrum import collision_unbiased
from divmon.metrics.structure import ERROR
from divmon.metrics.tails import total_variation
from divmon.records import SampleBatch

MIN_JUDGED = 3  # judged completions a format needs before its mean quality counts
Channel = Literal["primary", "baseline", "labelled", "judged", "quality", "correct"]
_ECHO = "after Zhao et al. 2025, arXiv:2504.07912"
_NOTHING = "no completion could be classified"


def label_rows(context: MetricContext) -> list[list[tuple[str, ...]]]:
    """Labels of every completion, P x K; a classifier that gives none gives "error"."""
    rule = frozen(context)

    def label(text: str) -> tuple[str, ...]:
        found = rule(text)
        return (found,) if isinstance(found, str) else tuple(found) or (ERROR,)

    return context.cached("format_labels", lambda: [[label(text) for text in row] for row in context.batch.texts])


def label_names(context: MetricContext) -> tuple[str, ...]:
    """The labels that columns stand for, in the order the module promises."""

    def compute() -> tuple[str, ...]:
        seen, known = (
            {label for row in label_rows(c) for labels in row for label in labels} - {ERROR}
            for c in (context, context.reference)
        )
        return (ERROR, *sorted(known), *sorted(seen - known))

    return context.cached("format_names", compute)


def fix_names(context: MetricContext, known: Sequence[str] = ()) -> tuple[str, ...]:
    """Let columns stand for the labels `known`, then for those of this batch that are new: for a part of a stream.

    Returns:
        All of them, to be passed on to the next part. "error" comes first.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("- a\\n- b", "plain"),))
    >>> fix_names(MetricContext(batch), ("error", "table"))
    ('error', 'table', 'bullets', 'one_line')

    Source: a convention of divmon.
    """
    new = {label for c in (context, context.reference) for row in label_rows(c) for labels in row for label in labels}
    names = (*(known or (ERROR,)), *sorted(new - {ERROR, *known}))
    for c in (context, context.reference):
        c.cached("format_names", lambda: names)
    return names


def _counts(context: MetricContext) -> dict[Channel, np.ndarray]:
    """float[P, F] for each channel; "quality" is the sum of qualities by format."""
    column = {name: j for j, name in enumerate(label_names(context))}
    shape = (len(context.batch.probes), len(column))
    counts: dict[Channel, np.ndarray] = {}
    for channel in ("primary", "baseline", "labelled", "judged", "quality", "correct"):
        counts[channel] = np.zeros(shape)
    before = label_rows(context.reference)
    for p, (row, there) in enumerate(zip(label_rows(context), context.baseline_rows, strict=True)):
        primary = np.array([column[labels[0]] for labels in row], dtype=np.intp)
        np.add.at(counts["primary"][p], primary, 1)
        np.add.at(counts["labelled"][p], [column[label] for labels in row for label in set(labels)], 1)
        if there >= 0:
            np.add.at(counts["baseline"][p], [column[labels[0]] for labels in before[there]], 1)
        if context.quality is not None and context.correct is not None:
            known = ~np.isnan(context.quality[p])
            np.add.at(counts["judged"][p], primary[known], 1)
            np.add.at(counts["quality"][p], primary[known], context.quality[p][known])
            np.add.at(counts["correct"][p], primary[context.correct[p]], 1)
    return counts


def _split(parts: np.ndarray, channels: Sequence[Channel]) -> dict[Channel, np.ndarray]:
    """Sums over prompts, float[..., F] for each channel, "error" left out."""
    sums = parts.sum(axis=-2).reshape((*parts.shape[:-2], -1, len(channels)))
    return {channel: sums[..., 1:, i] for i, channel in enumerate(channels)}


def _shares(counts: np.ndarray) -> np.ndarray:
    total = np.broadcast_to(counts.sum(axis=-1, keepdims=True), counts.shape)
    return np.asarray(np.divide(counts, total, out=np.full(counts.shape, math.nan), where=total > 0))


def _means(sums: Mapping[Channel, np.ndarray], least: int) -> np.ndarray:
    """Mean quality by format, float[..., F]; NaN for formats with fewer than `least` judged completions."""
    judged, total = sums["judged"], sums["quality"]
    return np.asarray(np.divide(total, judged, out=np.full(judged.shape, math.nan), where=judged >= least))


def _table(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """Positive shares by label, largest first."""
    pairs = [(name, float(value)) for name, value in zip(names, values, strict=True) if value > 0]
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def _describe(names: Sequence[str], parts: np.ndarray, channels: Sequence[Channel]) -> Mapping[str, Any]:
    sums, labels = _split(parts, channels), names[1:]
    shares = _table(labels, _shares(sums[channels[0]]))
    errors = int(parts.reshape((len(parts), -1, len(channels)))[:, 0, 0].sum())
    found: dict[str, Any] = {"shares": shares, "dominant": next(iter(shares), None), "unclassified": errors}
    if "baseline" in sums:
        found["baseline_shares"] = _table(labels, _shares(sums["baseline"]))
    if "labelled" in sums:
        n = max(1.0, float(sums["primary"].sum()))
        found["label_shares"] = _table(labels, sums["labelled"] / n)
    if "judged" in sums and sums["judged"].any():
        means = dict(zip(labels, _means(sums, 1).tolist(), strict=True))
        found["quality"] = {name: means[name] for name in shares if not math.isnan(means[name])}
        found["judged"] = {name: int(n) for name, n in zip(labels, sums["judged"], strict=True) if n}
    return found


def _pooled(
    context: MetricContext,
    channels: tuple[Channel, ...],
    combine: Callable[[dict[Channel, np.ndarray]], np.ndarray],
    reason: str,
) -> Pooled:
    """`combine` of sums over prompts by channel. The first channel is the one whose shares are shown."""
    counts = context.cached("format_counts", lambda: _counts(context))
    names = label_names(context)
    stacked = np.stack([counts[channel] for channel in channels], axis=-1)
    parts = stacked.reshape(len(stacked), stacked.shape[1] * stacked.shape[2])  # -1 would not do without prompts
    error = getattr(context.classifier, "first_error", None)
    return Pooled(
        parts,
        lambda columns: combine(_split(columns, channels)),
        lambda columns: _describe(names, columns, channels),
        f"{reason}; the classifier failed first with {error}" if error else reason,
        additive=True,
    )


def _hill2(counts: np.ndarray) -> np.ndarray:
    same = collision_unbiased(counts)
    return np.asarray(np.divide(1.0, same, out=np.full(np.shape(same), math.nan), where=same > 0))


def _top(shares: np.ndarray) -> np.ndarray:
    return shares.max(axis=-1) if shares.shape[-1] else np.full(shares.shape[:-1], math.nan)


def format_dominance(batch: SampleBatch, context: MetricContext) -> Pooled:
    """Share of the commonest format among all completions; between 1/F and 1, lower is more diverse. Pooled.

    What moves it besides diversity: prompts that call for one format, a classifier too coarse to tell formats apart,
    and the length cap, which files cut completions elsewhere.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("- a\\n- b", "- c\\n- d", "- e\\n- f", "plain"),))
    >>> result = format_dominance(batch, MetricContext(batch))
    >>> float(result.combine(result.parts)), result.details(result.parts)["dominant"]
    (0.75, 'bullets')

    Source: after Zhao et al. (2025), "Echo Chamber", arXiv:2504.07912 (Berger-Parker dominance of output formats).
    """
    channels: tuple[Channel, ...] = ("primary", "labelled", "judged", "quality")
    used = channels if context.quality is not None else channels[:2]
    return _pooled(context, used, lambda sums: _top(_shares(sums["primary"])), _NOTHING)


def effective_formats(batch: SampleBatch, context: MetricContext) -> Pooled:
    """Effective number of formats over all completions (Hill number of order 2), 1 or more, higher is more diverse.

    It is one over the unbiased probability that two completions share a format, so it does not grow with K; with few
    completions it may exceed the number of formats, and it is missing when no two share one.

    What moves it besides diversity: as `format_dominance`, prompts and classifier.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("- a\\n- b", "- c\\n- d", "plain", "words"),))
    >>> result = effective_formats(batch, MetricContext(batch))
    >>> round(float(result.combine(result.parts)), 6)
    3.0

    Source: Hill (1973), Ecology 54(2), by Simpson's (1949) unbiased estimator.
    """
    return _pooled(context, ("primary",), lambda sums: _hill2(sums["primary"]), "no two completions share a format")


def effective_correct_formats(batch: SampleBatch, context: MetricContext) -> Pooled:
    """`effective_formats` over correct completions only: how many ways of being right are left. 1 or more. Pooled.

    What moves it besides diversity: which prompts are solved at all; a policy that solves more prompts is sampled on
    other ones.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("- a\\n- b", "- c\\n- d", "plain", "words"),))
    >>> result = effective_correct_formats(batch, MetricContext(batch, quality=[[1, 1, 0, 0]]))
    >>> float(result.combine(result.parts))
    1.0

    Source: as `effective_formats`; conditioning on quality after Shypula et al. (2025), arXiv:2504.12522.
    """
    reason = "no two correct completions share a format"
    return _pooled(context, ("correct",), lambda sums: _hill2(sums["correct"]), reason)


def format_shift(batch: SampleBatch, context: MetricContext) -> Pooled:
    """Total variation distance of format shares from the baseline's on the same prompts; 0 to 1, 0 at the baseline.

    `parts` has two columns a label: even ones count completions now, odd ones at the baseline. Neutral: a shift may
    add formats or lose them.

    What moves it besides a change: chance: for n completions of F formats about the square root of F / (3 n).

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("- a\\n- b", "plain"),))
    >>> result = format_shift(batch, MetricContext(batch))
    >>> float(result.combine(result.parts))
    0.0

    Source: after Zhao et al. (2025), "Echo Chamber", arXiv:2504.07912.
    """

    def shift(sums: dict[Channel, np.ndarray]) -> np.ndarray:
        now, before = sums["primary"], sums["baseline"]
        both = (now.sum(axis=-1) > 0) & (before.sum(axis=-1) > 0)
        return np.where(both, total_variation(_shares(now), _shares(before)), math.nan)

    return _pooled(context, ("primary", "baseline"), shift, "no classified completions, now or at the baseline")


def _gap(sums: dict[Channel, np.ndarray]) -> np.ndarray:
    means = np.nan_to_num(_means(sums, MIN_JUDGED), nan=-math.inf)
    used = sums["primary"]
    if not used.shape[-1]:
        return np.full(used.shape[:-1], math.nan)
    common = (used == used.max(axis=-1, keepdims=True)) & (used > 0)
    best, dominant = means.max(axis=-1), np.where(common, means, -math.inf).max(axis=-1)
    known = np.isfinite(dominant)
    return np.asarray(np.subtract(best, dominant, out=np.full(best.shape, math.nan), where=known))


def winner_gap(batch: SampleBatch, context: MetricContext) -> Pooled:
    """Mean quality of the best format minus that of the dominant one: 0 when the winner is the best, else more.

    Neutral, pooled, in the judge's unit.

    Formats with fewer than three judged completions do not count; a tie for dominance goes to the better format.

    What moves it besides a wrong winner: prompts (a format used on easy ones looks good), and chance (the best of
    several noisy means is too high, so the gap of equal formats is above 0).

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("- a\\n- b",) * 4 + ("plain",) * 3,))
    >>> result = winner_gap(batch, MetricContext(batch, quality=[[0, 0, 0, 1, 1, 1, 1]]))
    >>> float(result.combine(result.parts))
    0.75

    Source: after Zhao et al. (2025), "Echo Chamber", arXiv:2504.07912: the winner is not always the most accurate.
    """
    reason = f"the dominant format has fewer than {MIN_JUDGED} judged completions"
    return _pooled(context, ("primary", "judged", "quality"), _gap, reason)


def _metric(fn: Callable[..., Result], summary: str, **rest: Any) -> Metric:
    fixed: dict[str, Any] = {"family": "formats", "scope": "pooled", "min_k": 1, "source": _ECHO}
    return Metric(name=fn.__name__, fn=fn, summary=summary, **{**fixed, **rest})


_JUDGED = frozenset({"quality"})
_MANY = {"direction": "higher", "bounds": (1.0, math.inf), "unit": "formats", "source": "Hill 1973, Ecology 54(2)"}
FORMAT_DOMINANCE = _metric(
    format_dominance,
    "Share of completions in the commonest format (bullets, code, prose, ...); rising means narrowing.",
    direction="lower",
)
EFFECTIVE_FORMATS = _metric(
    effective_formats,
    "How many formats are really in use, rare ones counting little; falling means narrowing (an unbiased estimate: "
    "where counts are small it may exceed the number of formats seen).",
    **_MANY,
)
FORMAT_SHIFT = _metric(
    format_shift,
    "How far the mix of formats has moved from the baseline's: 0 not at all, 1 to other formats altogether; rising "
    "means change, towards fewer formats or more.",
    direction="neutral",
    compares=True,
)
WINNER_GAP = _metric(
    winner_gap,
    "How much better the best format scores than the commonest one; above 0, narrowing to the commonest is not "
    "narrowing to the best.",
    direction="neutral",
    bounds=(0.0, math.inf),
    needs=_JUDGED,
    signature=f"min_judged:{MIN_JUDGED}",
)
EFFECTIVE_CORRECT_FORMATS = _metric(
    effective_correct_formats,
    "How many formats are really in use among correct completions, that is, ways of being right; falling means "
    "narrowing.",
    needs=_JUDGED,
    **_MANY,
)
