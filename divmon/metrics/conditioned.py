"""Diversity among good completions, and how much of a loss of diversity is only the loss of errors.

A policy that learns stops making many different mistakes, so distance over *all* completions falls although nothing
worth keeping was lost. Distance over the *correct* ones does not see that. Both are compared on the same prompts, those
with at least two correct completions now and at the baseline, because the set of such prompts grows with skill and
would move the numbers by itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from divmon.metrics.base import Metric, MetricContext, PerPrompt, Pooled, Result
from divmon.metrics.semantic import MAX_KERNEL, surface_kernels, tfidf_distance
from divmon.records import SampleBatch

MIN_FALL = 0.05  # of the baseline's distance: below it the shares of the fall are ratios of noise
_OURS = "divmon, after Karouzos et al. 2026, arXiv:2604.16027"

_FEW = "fewer than two correct completions"


def correct_distance(batch: SampleBatch, context: MetricContext) -> Result:
    """`tfidf_distance` among a prompt's *correct* completions; 0 to 1, higher is more diverse.

    What moves it besides diversity: skill, through the prompts it is measured on (hard prompts join as they begin to be
    solved; `narrowing_share` holds the prompts fixed), and all that moves `tfidf_distance`. It does not drift with the
    number of correct completions.

    Returns:
        float[P]; NaN where fewer than two are correct. n counts the correct ones.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("a fox", "A  fox", "hens!"),))
    >>> correct_distance(batch, MetricContext(batch, quality=[[1, 1, 0]])).values.round(9).tolist()
    [0.0]

    Source: quality-filtered diversity of Karouzos et al. (2026), arXiv:2604.16027, with `tfidf_distance`.
    """
    return context.cached("correct_distance", lambda: _correct_distance(context))


def _correct_distance(context: MetricContext) -> PerPrompt:
    if context.correct is None:
        raise ValueError("correct_distance needs quality")
    batch, correct = context.batch, context.correct
    n = np.array([int(row.sum()) for row in correct], dtype=int)
    if max(map(len, batch.texts), default=0) > MAX_KERNEL:  # a kernel of all pairs would not fit
        good = tuple(tuple(itertools.compress(*row)) for row in zip(batch.texts, correct, strict=True))
        part = SampleBatch(batch.step, batch.probes, good)
        result = tfidf_distance(part, MetricContext(part, baseline=context.reference))
        values = result.values if isinstance(result, PerPrompt) else np.full(len(n), math.nan)
    else:
        kernels = surface_kernels(context)
        values = np.array([_distance(kernel, row) for kernel, row in zip(kernels, correct, strict=True)], dtype=float)
    lost = np.isnan(values)
    return PerPrompt(values, np.where(lost, 0, n), tuple(_FEW if x else None for x in lost))


def _distance(kernel: np.ndarray, chosen: np.ndarray) -> float:
    """1 - mean over the pairs of `chosen`, of a kernel with ones on its diagonal."""
    k = int(chosen.sum())
    if k < 2 or not kernel.size:
        return math.nan
    return float(np.clip(1.0 - (kernel[np.ix_(chosen, chosen)].sum() - k) / (k * (k - 1)), 0.0, 1.0))


def decompose(
    d_all_base: Any, d_correct_base: Any, d_all_now: Any, d_correct_now: Any, *, min_fall: float = MIN_FALL
) -> tuple[np.ndarray, np.ndarray]:
    """What share of a fall of diversity is found among correct completions too, and what share is not.

    The narrowing share is the fall among correct completions over the fall among all, and the benign share is one minus
    that. Either may lie outside 0 to 1: above 1, correct completions narrowed more than all did; below 0, they spread.

    What moves it besides narrowing: the sets of prompts, when the four numbers are not taken over the same ones, and
    rounding, when the fall is small.

    Args:
        d_all_base, d_correct_base: Distance over all and over correct completions at the baseline.
        d_all_now, d_correct_now: The same now.
        min_fall: The shares are NaN where D_all fell by less than this part of itself.

    Returns:
        (narrowing share, benign share), each of the shape of the arguments.

    >>> narrowing, benign = decompose(0.411, 0.123, 0.117, 0.110)
    >>> round(float(narrowing), 3), round(float(benign), 3)
    (0.044, 0.956)

    Source: the reading of Karouzos et al. (2026), arXiv:2604.16027, which prints no equation.
    """
    base, good, now, good_now = (
        np.asarray(x, dtype=float) for x in (d_all_base, d_correct_base, d_all_now, d_correct_now)
    )
    fall = base - now
    fell = (fall > 0) & (fall >= min_fall * base)
    with np.errstate(invalid="ignore", divide="ignore"):
        narrowing = np.where(fell, (good - good_now) / np.where(fell, fall, 1.0), math.nan)
    return narrowing, 1.0 - narrowing


def _parts(context: MetricContext) -> np.ndarray:
    """float[P, 5]: whether the prompt is common, D_all and D_correct at the baseline, D_all and D_correct now."""
    sides = []
    for side in (context.reference, context):
        everything = tfidf_distance(side.batch, side)
        good = correct_distance(side.batch, side) if side.correct is not None else None
        if not isinstance(everything, PerPrompt) or not isinstance(good, PerPrompt):
            return np.zeros((len(context.batch.probes), 5))
        sides.append(np.stack((everything.values, good.values), axis=1))
    rows = context.baseline_rows
    before = np.full((len(rows), 2), math.nan)
    before[rows >= 0] = sides[0][rows[rows >= 0]]
    both = np.concatenate((before, sides[1]), axis=1)
    common = ~np.isnan(both).any(axis=1)
    return np.column_stack((common.astype(float), np.where(common[:, None], both, 0.0)))


def _means(parts: np.ndarray) -> np.ndarray:
    """float[..., 4]: the four distances over the common prompts."""
    total = parts.sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(total[..., :1] > 0, total[..., 1:] / total[..., :1], math.nan))


def _details(parts: np.ndarray) -> Mapping[str, Any]:
    means = _means(parts)
    names = ("all_baseline", "correct_baseline", "all_now", "correct_now")
    known = {name: float(x) for name, x in zip(names, means, strict=True) if not math.isnan(x)}
    return {**known, "common_prompts": int(parts[:, 0].sum())}


def _share(context: MetricContext, which: int) -> Pooled:
    parts = context.cached("quality_parts", lambda: _parts(context))
    reason = f"distance over all completions has not fallen by {MIN_FALL:.0%} of the baseline's"
    if not parts[:, 0].any():
        reason = "no prompt has two correct completions both now and at the baseline"

    def combine(columns: np.ndarray) -> np.ndarray:
        means = _means(columns)
        return decompose(*(means[..., i] for i in range(4)))[which]

    return Pooled(parts, combine, _details, reason, additive=True)


def narrowing_share(batch: SampleBatch, context: MetricContext) -> Result:
    """Share of the fall of `tfidf_distance` since the baseline that correct completions show too. Pooled, neutral.

    Near 1: good completions narrowed as much as all did. Near 0: only errors went. Above 1 or below 0 are possible (see
    `decompose`). Distances are means over the common prompts: at least two correct completions now and at the baseline.

    What moves it besides narrowing: chance, where the fall is small or common prompts are few; look at the interval.

    Returns:
        Pooled; NaN where there are no common prompts or the distance has not fallen by 5 % of itself.

    >>> from divmon.records import Probe
    >>> def context(texts, baseline=None):
    ...     batch = SampleBatch(0, (Probe("a", "?"),), (texts,))
    ...     return MetricContext(batch, quality=[[1, 1, 0]], baseline=baseline)
    >>> now = context(("a fox", "a fox", "a fox"), context(("a fox", "a fox", "hens!")))
    >>> result = narrowing_share(now.batch, now)
    >>> float(result.combine(result.parts))
    0.0

    Source: the reading of Karouzos et al. (2026), arXiv:2604.16027, which prints no equation.
    """
    return _share(context, 0)


def benign_share(batch: SampleBatch, context: MetricContext) -> Result:
    """Share of the fall of `tfidf_distance` since the baseline that is the loss of errors: 1 - `narrowing_share`.

    What moves it besides benign convergence: as `narrowing_share`. Pooled, neutral.

    >>> from divmon.records import Probe
    >>> def context(texts, baseline=None):
    ...     batch = SampleBatch(0, (Probe("a", "?"),), (texts,))
    ...     return MetricContext(batch, quality=[[1, 1, 0]], baseline=baseline)
    >>> now = context(("a fox", "a fox", "a fox"), context(("a fox", "a fox", "hens!")))
    >>> result = benign_share(now.batch, now)
    >>> float(result.combine(result.parts))
    1.0

    Source: the reading of Karouzos et al. (2026), arXiv:2604.16027, which prints no equation.
    """
    return _share(context, 1)


def _metric(fn: Callable[..., Result], summary: str, **rest: Any) -> Metric:
    fixed: dict[str, Any] = {
        "family": "quality",
        "direction": "neutral",
        "scope": "pooled",
        "bounds": (-math.inf, math.inf),
        "needs": frozenset({"quality"}),
        "min_k": 2,
        "source": _OURS,
        "signature": f"d:tfidf_distance|min_fall:{MIN_FALL:g}",
        "standard": False,
    }
    return Metric(name=fn.__name__, fn=fn, summary=summary, **fixed | rest)


CORRECT_DISTANCE = _metric(
    correct_distance,
    "Surface distance (`tfidf_distance`) among a prompt's correct completions only.",
    direction="higher",
    scope="per_prompt",
    bounds=(0.0, 1.0),
    source="Karouzos et al. 2026, arXiv:2604.16027 (quality-filtered), with tfidf_distance",
    signature="d:tfidf_distance|idf:baseline",
    standard=True,
)
NARROWING_SHARE = _metric(
    narrowing_share,
    "How much of the fall of surface distance since the baseline is found among correct completions too: near 1 good "
    "outputs narrow, near 0 only errors went.",
    standard=True,
    compares=True,
)
BENIGN_SHARE = _metric(
    benign_share,
    "How much of the fall of surface distance since the baseline is only the loss of errors: 1 - narrowing_share.",
    compares=True,
)
