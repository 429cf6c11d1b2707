"""What stays within reach: pass@k, the support kept, lost and won against the baseline, and coverage of hard prompts.

A prompt is *solved* when at least one of its K judged completions is correct. Between two draws of one unchanged policy
some prompts are lost and others won by chance; `support_net` is the number that chance leaves at 0 on average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from divmon.metrics.base import Direction, Metric, MetricContext, PerPrompt, Pooled, Result, missing
from divmon.metrics.tails import hard_prompts
from divmon.records import SampleBatch

_LEASH = "The Invisible Leash 2025, arXiv:2507.14843"
_JUDGED = frozenset({"quality"})


def pass_at_k(n: ArrayLike, c: ArrayLike, *, k: int) -> np.ndarray:
    """Unbiased probability, 0 to 1, that at least one of `k` completions is correct: 1 - C(n - c, k) / C(n, k).

    As a product of k ratios, so that no binomial coefficient overflows.

    What moves it besides diversity: skill. At k = 1 it is skill; the larger k, the more variety counts.

    Args:
        n: Completions, int[...].
        c: Correct ones among them, int[...].
        k: The budget, 1 or more.

    Returns:
        float[...], NaN where n < k.

    >>> pass_at_k([4, 4, 2], [1, 4, 1], k=3).tolist()
    [0.75, 1.0, nan]

    Source: Chen et al. (2021), arXiv:2107.03374.
    """
    if k < 1:
        raise ValueError(f"the budget of pass@k is 1 or more, not {k}")
    total, right = np.broadcast_arrays(np.asarray(n, dtype=float), np.asarray(c, dtype=float))
    if ((right < 0) | (right > total)).any():
        raise ValueError("correct completions lie between none and all of them")
    enough = total >= k
    fail = np.ones(total.shape)
    for i in range(k):
        left = np.maximum(total - right - i, 0.0)
        fail *= np.divide(left, total - i, out=np.zeros(total.shape), where=enough)
    return np.where(enough, 1.0 - fail, math.nan)


class Support(NamedTuple):
    """Rates of support kept and won, each float[...], NaN where undefined.

    Attributes:
        retained: SRR, of the prompts solved before those still solved.
        new: NDR, of the prompts solved now those not solved before.
        score: SDS, the harmonic mean of the two.
        net: NSCR, prompts won minus prompts lost, over all that were ever solved; -1 to 1.
    """

    retained: np.ndarray
    new: np.ndarray
    score: np.ndarray
    net: np.ndarray


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(bottom), math.nan), where=bottom > 0))


def support_rates(preserved: ArrayLike, expanded: ArrayLike, shrunk: ArrayLike) -> Support:
    """The four rates from numbers of prompts: solved both times, only now, only before; int[...] each.

    What moves them besides narrowing: K (the larger, the more of the support is seen) and chance.

    >>> [round(float(rate), 2) for rate in support_rates(761, 83, 104)]
    [0.88, 0.1, 0.18, -0.02]

    Source: "The Invisible Leash" (2025), arXiv:2507.14843.
    """
    p, e, s = np.broadcast_arrays(*(np.asarray(x, dtype=float) for x in (preserved, expanded, shrunk)))
    retained, new = _ratio(p, p + s), _ratio(e, p + e)
    score = _ratio(2 * retained * new, retained + new)
    return Support(retained, new, score, _ratio(e - s, p + e + s))


def _judged(context: MetricContext) -> tuple[np.ndarray, np.ndarray]:
    """Judged completions and correct ones among them, int[P] each."""
    quality, correct = context.quality, context.correct
    if quality is None or correct is None:
        raise ValueError("coverage metrics need quality")
    known = [~np.isnan(row) for row in quality]
    n = np.array([int(mask.sum()) for mask in known], dtype=int)
    return n, np.array([int(row[mask].sum()) for row, mask in zip(correct, known, strict=True)], dtype=int)


def _before(context: MetricContext) -> tuple[np.ndarray, np.ndarray]:
    """`_judged` of the baseline, by this batch's prompts; zeros where a prompt was not there."""
    rows = context.baseline_rows
    if context.reference.quality is None or not len(context.reference.batch.probes):
        return np.zeros(len(rows), dtype=int), np.zeros(len(rows), dtype=int)
    n, c = _judged(context.reference)
    return np.where(rows >= 0, n[rows], 0), np.where(rows >= 0, c[rows], 0)


def pass_at(batch: SampleBatch, context: MetricContext, *, k: int) -> PerPrompt:
    """pass@k of each prompt from all of its judged completions, 0 to 1; over prompts a mean. float[P].

    Higher means that more stays within reach of k attempts. What moves it besides diversity: skill. Compare it with
    `pass_at_1`: a fall while that rises is narrowing. Unlike `coverage` it does not grow with K.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("1", "2", "3"),))
    >>> pass_at(batch, MetricContext(batch, quality=[[1, 0, 0]]), k=2).values.round(3).tolist()
    [0.667]

    Source: Chen et al. (2021), arXiv:2107.03374.
    """
    n, c = _judged(context)
    values = pass_at_k(n, c, k=k)
    short = np.isnan(values)
    why = f"fewer than {k} judged completions of this prompt"
    return PerPrompt(values, np.where(short, 0, n), tuple(why if s else None for s in short))


def _support(context: MetricContext) -> np.ndarray:
    """float[P, 4]: 1 for a prompt solved both times, only now, only before, never; all 0 where a side is not judged."""
    (n, c), (n_before, c_before) = _judged(context), _before(context)
    now, before = c > 0, c_before > 0
    table = np.stack([now & before, now & ~before, ~now & before, ~now & ~before], axis=-1)
    return np.where((n > 0) & (n_before > 0), table.T, False).T.astype(float)


def _support_details(parts: np.ndarray) -> Mapping[str, Any]:
    counts = parts.sum(axis=0).astype(int).tolist()
    return dict(zip(("preserved", "expanded", "shrunk", "out_of_reach"), counts, strict=True))


def _rate(context: MetricContext, name: str, reason: str) -> Pooled:
    parts = context.cached("support", lambda: _support(context))

    def combine(columns: np.ndarray) -> np.ndarray:
        sums = columns.sum(axis=-2)
        return np.asarray(getattr(support_rates(sums[..., 0], sums[..., 1], sums[..., 2]), name))

    return Pooled(parts, combine, _support_details, reason, additive=True)


def support_retained(batch: SampleBatch, context: MetricContext) -> Pooled:
    """Of the prompts solved at the baseline, the share still solved now, each at K draws (SRR); 0 to 1. Pooled.

    `parts` has four columns: prompts solved both times, only now, only at the baseline, never.

    What moves it besides narrowing: chance. At the baseline it is 1, and an unchanged policy drawn afresh loses the
    prompts it had solved by luck; `support_net` is free of that. It grows with K.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"), Probe("b", "?")), (("1",), ("2",)))
    >>> base = MetricContext(batch, quality=[[1], [1]])
    >>> result = support_retained(batch, MetricContext(batch, quality=[[1], [0]], baseline=base))
    >>> float(result.combine(result.parts)), result.details(result.parts)["shrunk"]
    (0.5, 1)

    Source: "The Invisible Leash" (2025), arXiv:2507.14843.
    """
    return _rate(context, "retained", "nothing was solved at the baseline")


def support_new(batch: SampleBatch, context: MetricContext) -> Pooled:
    """Of the prompts solved now, the share that the baseline did not solve (NDR); 0 to 1, 0 at the baseline. Pooled.

    Neutral: it also rises when prompts solved before are lost. What moves it besides discovery: chance, skill, K.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"), Probe("b", "?")), (("1",), ("2",)))
    >>> base = MetricContext(batch, quality=[[1], [0]])
    >>> result = support_new(batch, MetricContext(batch, quality=[[1], [1]], baseline=base))
    >>> float(result.combine(result.parts))
    0.5

    Source: "The Invisible Leash" (2025), arXiv:2507.14843.
    """
    return _rate(context, "new", "nothing is solved now")


def support_score(batch: SampleBatch, context: MetricContext) -> Pooled:
    """Harmonic mean of `support_retained` and `support_new` (SDS); 0 to 1, 0 at the baseline, neutral. Pooled.

    High only when support is kept *and* won. What moves it besides: chance, which wins and loses prompts.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"), Probe("b", "?")), (("1",), ("2",)))
    >>> base = MetricContext(batch, quality=[[1], [0]])
    >>> result = support_score(batch, MetricContext(batch, quality=[[1], [1]], baseline=base))
    >>> round(float(result.combine(result.parts)), 3)
    0.667

    Source: "The Invisible Leash" (2025), arXiv:2507.14843.
    """
    return _rate(context, "score", "nothing was solved at the baseline, or nothing is solved now")


def support_net(batch: SampleBatch, context: MetricContext) -> Pooled:
    """Prompts won minus prompts lost, over all solved at either time (NSCR); -1 to 1, 0 at the baseline. Pooled.

    Below 0 the policy has lost more problems than it has won, whatever its `pass_at_1` says. Chance alone gives 0 on
    average. What moves it besides narrowing: skill, K.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"), Probe("b", "?")), (("1",), ("2",)))
    >>> base = MetricContext(batch, quality=[[1], [1]])
    >>> result = support_net(batch, MetricContext(batch, quality=[[1], [0]], baseline=base))
    >>> float(result.combine(result.parts))
    -0.5

    Source: "The Invisible Leash" (2025), arXiv:2507.14843.
    """
    return _rate(context, "net", "nothing was solved, now or at the baseline")


def _histogram(n: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float[P, M + 1]: a 1 under each prompt's number of correct completions; no 1 where none was judged."""
    table = np.zeros((len(n), int(c.max(initial=0)) + 1))
    rows = np.flatnonzero(n > 0)
    table[rows, c[rows]] = 1.0
    return table


def hard_coverage(batch: SampleBatch, context: MetricContext) -> Result:
    """Share of the prompts of the hardest 40 % of levels with at least one correct completion; 0 to 1. Pooled.

    Levels are the probes' difficulty, else bins of the baseline's pass rate, as in `tail_share`. `parts` has four
    columns for hard prompts (judged and solved, now and at the baseline), then one for each number of correct
    completions, over all prompts.

    What moves it besides diversity: skill and K, as `coverage`; and bins made from the baseline's pass rate, whose
    prompts were unlucky there and do better later without any change of the policy.

    >>> from divmon.records import Probe
    >>> probes = tuple(Probe(str(d), "?", difficulty=d) for d in (1, 2))
    >>> batch = SampleBatch(0, probes, (("x", "y"), ("x", "y")))
    >>> result = hard_coverage(batch, MetricContext(batch, quality=[[1, 1], [0, 1]]))
    >>> float(result.combine(result.parts)), result.details(result.parts)["correct_counts"]
    (1.0, {'0': 0, '1': 1, '2': 1})

    Source: pass@K of Chen et al. (2021), arXiv:2107.03374, on the levels of Ding et al. (2024), arXiv:2411.00750.
    """
    hard, names, why = hard_prompts(context)
    if not names:
        return missing(batch, why)
    (n, c), (n_before, c_before) = _judged(context), _before(context)
    columns = [hard & (n > 0), hard & (c > 0), hard & (n_before > 0), hard & (c_before > 0)]
    parts = np.column_stack([*(column.astype(float) for column in columns), _histogram(n, c)])

    def details(parts: np.ndarray) -> Mapping[str, Any]:
        sums = parts.sum(axis=0)
        before = _ratio(sums[3], sums[2])
        return {
            "hard_prompts": int(sums[0]),
            "hard_levels": list(names),
            "baseline": float(before) if not np.isnan(before) else None,
            "correct_counts": {str(i): int(count) for i, count in enumerate(sums[4:])},
        }

    def combine(parts: np.ndarray) -> np.ndarray:
        sums = parts.sum(axis=-2)
        return _ratio(sums[..., 1], sums[..., 0])

    reason = "no completion of a hard prompt was judged" if hard.any() else why
    return Pooled(parts, combine, details, reason, additive=True)


def _metric(fn: Callable[..., Result], summary: str, direction: Direction, **rest: Any) -> Metric:
    fixed: dict[str, Any] = {"scope": "pooled", "needs": _JUDGED, "min_k": 1, "source": _LEASH, "standard": False}
    name = fn.__name__
    return Metric(name=name, fn=fn, summary=summary, family="coverage", direction=direction, **fixed | rest)


def _pass_at(k: int) -> Metric:
    def fn(batch: SampleBatch, context: MetricContext) -> Result:
        return pass_at(batch, context, k=k)

    fn.__name__ = f"pass_at_{k}"
    chen = "Chen et al. 2021, arXiv:2107.03374"
    summary = f"Chance that at least one of {k} completions is correct (unbiased); falling below what skill explains "
    return _metric(
        fn, f"{summary}means narrowing.", "higher", scope="per_prompt", min_k=k, source=chen, signature=f"k:{k}"
    )


PASS_AT = (_pass_at(4),)
SUPPORT_RETAINED = _metric(
    support_retained,
    "Of the prompts solved at the baseline, the share still solved; falling means a loss of reach (some by chance).",
    "higher",
    compares=True,
)
SUPPORT_NEW = _metric(
    support_new,
    "Of the prompts solved now, the share that the baseline did not solve (some by chance).",
    "neutral",
    compares=True,
)
SUPPORT_SCORE = _metric(
    support_score,
    "Harmonic mean of `support_retained` and `support_new`: high only when reach is kept and won.",
    "neutral",
    compares=True,
)
SUPPORT_NET = _metric(
    support_net,
    "Prompts won minus prompts lost since the baseline, over all solved at either time; below 0 means a loss of reach.",
    "higher",
    bounds=(-1.0, 1.0),
    compares=True,
)
HARD_COVERAGE = _metric(
    hard_coverage,
    "Share of hard prompts (the hardest 40 % of difficulty levels) with at least one correct completion; falling means "
    "that hard problems go out of reach.",
    "higher",
    source="Chen et al. 2021, arXiv:2107.03374",
    standard=True,
)
