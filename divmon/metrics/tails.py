"""Tail narrowing over difficulty: does the policy still solve hard problems, or only more of the easy ones?

Shares are of *solved completions* by level of difficulty, against the same prompts at the baseline. Entropy of that
distribution is no measure of it: in the published figure (arXiv:2411.00750) the hardest level loses 74 % of its share
while the entropy goes from 1.530 to 1.516 nats, because what the hard end loses the easy end gains.

Levels are the probes' `difficulty` where any has one (prompts without one are then left out). Otherwise they are made
once, from the baseline's pass rate, in five bins of equal width: level 1 is a pass rate above 80 %, level 5 one of at
most 20 %. Such bins regress to the mean: a prompt that was unlucky at the baseline counts as hard and then does better
without any change of the policy, so the tail seems to grow by itself; bins hide narrowing rather than invent it. Given
difficulties do not have that fault. One scale of levels serves all domains; where none of a domain's prompts is in the
hardest 40 % of levels there is no tail to watch, and its share is missing instead of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from divmon.metrics.base import Direction, Metric, MetricContext, Pooled, Result, missing
from divmon.records import SampleBatch

BINS = 5
TAIL = 0.4  # the hardest 40 % of levels, rounded up: two of five
_HALF = 0.5  # added to every count before a divergence is taken, so that an emptied level gives a large, finite number
_SOURCE = "after Ding et al. 2024, arXiv:2411.00750"


def total_variation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Total variation distance of two share vectors, 0 (equal) to 1 (disjoint); float[..., C] twice -> float[...].

    What moves it besides a change: few draws (two samples of one distribution are never quite equal).

    >>> float(total_variation(np.array([0.5, 0.5]), np.array([0.5, 0.5])))
    0.0

    Source: textbook.
    """
    return np.asarray(0.5 * np.abs(np.asarray(a) - np.asarray(b)).sum(axis=-1))


def kl_nats(reference: np.ndarray, now: np.ndarray) -> np.ndarray:
    """KL divergence of `now` from `reference` in nats, 0 or more; infinite where `now` has lost a class entirely.

    What moves it besides a change: rare classes of the reference dominate it. float[..., C] twice -> float[...].

    >>> float(kl_nats(np.array([0.5, 0.5]), np.array([1.0, 0.0])))
    inf

    Source: Kullback and Leibler (1951).
    """
    p, q = np.broadcast_arrays(np.asarray(reference, dtype=float), np.asarray(now, dtype=float))
    lost = (p > 0) & (q == 0)
    ratio = np.divide(p, q, out=np.ones(p.shape), where=(p > 0) & (q > 0))
    terms = np.where(np.isnan(p + q), math.nan, p * np.log(ratio))
    return np.asarray(np.where(lost, math.inf, terms).sum(axis=-1))


def tail_ratio(reference: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Share of the last, hardest level now over that in the reference: 1 unchanged, 0 vanished, NaN if it had none.

    What moves it besides narrowing: a hardest level with few solved completions. float[..., L] twice -> float[...].

    >>> float(tail_ratio(np.array([0.6, 0.4]), np.array([0.9, 0.1])))
    0.25

    Source: after Ding et al. (2024), arXiv:2411.00750, difficulty panel.
    """
    before, after = np.asarray(reference, dtype=float)[..., -1], np.asarray(now, dtype=float)[..., -1]
    before, after = np.broadcast_arrays(before, after)
    return np.asarray(np.divide(after, before, out=np.full(before.shape, math.nan), where=before > 0))


def tail_share(shares: np.ndarray) -> np.ndarray:
    """Share of the hardest 40 % of levels (their number rounded up: two of five); 0 to 1. float[..., L] -> float[...].

    What moves it besides narrowing: learning the easy problems, which is wanted; look at the counts too.

    >>> float(tail_share(np.array([0.25, 0.25, 0.25, 0.125, 0.125])))
    0.25

    Source: after Ding et al. (2024), arXiv:2411.00750.
    """
    return np.asarray(np.asarray(shares)[..., -_tail_size(np.shape(shares)[-1]) :].sum(axis=-1))


def _tail_size(levels: int) -> int:
    return math.ceil(TAIL * levels)


def _shares(counts: np.ndarray) -> np.ndarray:
    total = np.broadcast_to(counts.sum(axis=-1, keepdims=True), counts.shape)
    return np.asarray(np.divide(counts, total, out=np.full(counts.shape, math.nan), where=total > 0))


def _given(context: MetricContext) -> dict[str, int]:
    return {probe.id: probe.difficulty for probe in context.batch.probes if probe.difficulty is not None}


def _baseline_bins(context: MetricContext) -> dict[str, int]:
    """Level by probe id from the pass rate; in whole numbers, so that no rounding moves a prompt."""
    if context.quality is None or context.correct is None:
        return {}
    levels = {}
    for probe, quality, correct in zip(context.batch.probes, context.quality, context.correct, strict=True):
        judged = int((~np.isnan(quality)).sum())
        if judged:
            levels[probe.id] = 1 + min(BINS - 1, BINS * (judged - int(correct.sum())) // judged)
    return levels


def _levels(context: MetricContext) -> tuple[dict[str, int], tuple[int, ...], str]:
    """Level by probe id, all levels from easy to hard, and what made them."""
    given = {**_given(context.reference), **_given(context)}
    if given:
        return given, tuple(sorted(set(given.values()))), "difficulty"
    made = context.reference.cached("tail_levels", lambda: _baseline_bins(context.reference))
    return made, tuple(range(1, BINS + 1)) if made else (), "baseline pass rate"


def fix_levels(context: MetricContext, given: tuple[int, ...]) -> None:
    """Let the levels of this batch, a part of a stream, be those of the whole stream: the difficulties `given` there.

    Without any, they are made from the pass rates of the baseline, which need nothing but a prompt's own.
    """
    levels = given or (tuple(range(1, BINS + 1)) if context.reference.quality is not None else ())
    level = {**_given(context.reference), **_given(context)} if given else _baseline_bins(context.reference)
    context.cached("levels", lambda: (level, levels, "difficulty" if given else "baseline pass rate"))


def hard_prompts(context: MetricContext) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Which prompts are of the hardest 40 % of levels, bool[P]; those levels by name; and why there may be none.

    Missing levels (fewer than two) leave no prompt hard and no level named.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, tuple(Probe(str(d), "?", difficulty=d) for d in (1, 3)), (("x",), ("y",)))
    >>> hard_prompts(MetricContext(batch))[:2]
    (array([False,  True]), ('3',))

    Source: as `solved_tail_share`.
    """
    level, levels, made_of = context.cached("levels", lambda: _levels(context))
    if len(levels) < 2:
        return np.zeros(len(context.batch.probes), dtype=bool), (), _few(levels)
    tail = levels[-_tail_size(len(levels)) :]
    why = "no prompt is of the hardest levels"
    if made_of != "difficulty":
        why = "no prompt was hard at the baseline; give probes a difficulty"
    hard = np.array([level.get(probe.id) in tail for probe in context.batch.probes], dtype=bool)
    return hard, tuple(map(str, tail)), why


def _few(levels: tuple[int, ...]) -> str:
    return "only one level of difficulty" if levels else "no difficulty, and no quality at the baseline to bin by"


def _parts(context: MetricContext, level: Mapping[str, int], levels: tuple[int, ...]) -> np.ndarray:
    """float[P, 2L], solved completions by level: even columns now, odd ones at the baseline (0 where it is unknown)."""
    counts = np.zeros((len(context.batch.probes), len(levels), 2))
    before = context.reference.correct
    column = {value: i for i, value in enumerate(levels)}
    for p, (probe, row) in enumerate(zip(context.batch.probes, context.baseline_rows, strict=True)):
        if probe.id not in level:
            continue
        j = column[level[probe.id]]
        counts[p, j, 0] = context.correct[p].sum() if context.correct is not None else 0
        counts[p, j, 1] = before[row].sum() if before is not None and row >= 0 else 0
    return counts.reshape(len(counts), -1)


def _totals(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solved completions by level over the prompts, float[..., L]: now and at the baseline."""
    sums = parts.sum(axis=-2)
    return sums[..., 0::2], sums[..., 1::2]


def _details(levels: tuple[int, ...], made_of: str) -> Callable[[np.ndarray], Mapping[str, Any]]:
    def details(parts: np.ndarray) -> Mapping[str, Any]:
        now, before = _totals(parts)
        names = [str(level) for level in levels]
        return {
            "shares": dict(zip(names, _shares(now).tolist(), strict=True)),
            "baseline_shares": dict(zip(names, _shares(before).tolist(), strict=True)),
            "solved": int(now.sum()),
            "baseline_solved": int(before.sum()),
            "tail_levels": names[-_tail_size(len(names)) :],
            "levels_from": made_of,
        }

    return details


def _pooled(context: MetricContext, combine: Callable[[np.ndarray, np.ndarray], np.ndarray], reason: str) -> Result:
    """`combine` of solved counts by level, now and at the baseline."""
    level, levels, made_of = context.cached("levels", lambda: _levels(context))
    if len(levels) < 2:
        return missing(context.batch, _few(levels))
    parts = context.cached("tail_parts", lambda: _parts(context, level, levels))
    return Pooled(parts, lambda columns: combine(*_totals(columns)), _details(levels, made_of), reason, additive=True)


def solved_tail_share(batch: SampleBatch, context: MetricContext) -> Result:
    """Share of solved completions that belong to the hardest 40 % of levels (two of five); 0 to 1. Pooled.

    Higher means that the tail is still there; missing where no prompt is of those levels. `parts` has two columns a
    level: even ones count solved completions now, odd ones at the baseline; and a last one, 1 for prompts of the tail.

    What moves it besides narrowing: learning the easy problems, which is wanted; bins made from the baseline's pass
    rate (see the module).

    >>> from divmon.records import Probe
    >>> probes = tuple(Probe(str(d), "?", difficulty=d) for d in (1, 2))
    >>> batch = SampleBatch(0, probes, (("x", "y"), ("x", "y")))
    >>> result = solved_tail_share(batch, MetricContext(batch, quality=[[1, 1], [0, 1]]))
    >>> round(float(result.combine(result.parts)), 3)
    0.333

    Source: after Ding et al. (2024), arXiv:2411.00750.
    """
    pooled = _pooled(context, lambda now, before: tail_share(_shares(now)), "nothing was solved")
    if not isinstance(pooled, Pooled):
        return pooled
    _, levels, made_of = context.cached("levels", lambda: _levels(context))
    hard, _, why = hard_prompts(context)

    def combine(columns: np.ndarray) -> np.ndarray:
        return np.where(columns[..., -1].any(axis=-1), pooled.combine(columns[..., :-1]), math.nan)

    def details(columns: np.ndarray) -> Mapping[str, Any]:
        return {**_details(levels, made_of)(columns[:, :-1]), "tail_prompts": int(columns[:, -1].sum())}

    reason = why if not hard.any() else f"{pooled.reason}, or {why}"
    return Pooled(np.column_stack((pooled.parts, hard)), combine, details, reason, additive=True)


def solved_tail_ratio(batch: SampleBatch, context: MetricContext) -> Result:
    """Hardest level's share of solved completions over the baseline's: 1 unchanged, 0 vanished; 0 or more. Pooled.

    What moves it besides narrowing: as `solved_tail_share`; and it is noisy when the hardest level has few solved.

    >>> from divmon.records import Probe
    >>> probes = tuple(Probe(str(d), "?", difficulty=d) for d in (1, 2))
    >>> batch = SampleBatch(0, probes, (("x", "y"), ("x", "y")))
    >>> base = MetricContext(batch, quality=[[1, 1], [1, 1]])
    >>> result = solved_tail_ratio(batch, MetricContext(batch, quality=[[1, 1], [0, 0]], baseline=base))
    >>> float(result.combine(result.parts))
    0.0

    Source: after Ding et al. (2024), arXiv:2411.00750.
    """
    why = "nothing was solved now, or nothing of the hardest level at the baseline"
    return _pooled(context, lambda now, before: tail_ratio(_shares(before), _shares(now)), why)


def solved_tail_shift(batch: SampleBatch, context: MetricContext) -> Result:
    """Total variation of the solved shares by level from the baseline's; 0 to 1, 0 at the baseline, neutral. Pooled.

    What moves it besides narrowing: a change in either direction, and chance when few completions are solved.

    >>> from divmon.records import Probe
    >>> probes = tuple(Probe(str(d), "?", difficulty=d) for d in (1, 2))
    >>> batch = SampleBatch(0, probes, (("x", "y"), ("x", "y")))
    >>> result = solved_tail_shift(batch, MetricContext(batch, quality=[[1, 1], [1, 1]]))
    >>> float(result.combine(result.parts))
    0.0

    Source: textbook, on the distribution of Ding et al. (2024), arXiv:2411.00750.
    """
    why = "nothing was solved, now or at the baseline"
    return _pooled(context, lambda now, before: total_variation(_shares(before), _shares(now)), why)


def solved_tail_kl(batch: SampleBatch, context: MetricContext) -> Result:
    """KL(baseline || now) of the solved shares by level in nats; 0 or more, 0 at the baseline, neutral. Pooled.

    Half a completion is added to every level that has any on either side, on both sides, so that a level that empties
    gives a large, finite number instead of an infinite one that no interval can hold.

    What moves it besides narrowing: as `solved_tail_shift`, and the smoothing where counts are small.

    >>> from divmon.records import Probe
    >>> probes = tuple(Probe(str(d), "?", difficulty=d) for d in (1, 2))
    >>> batch = SampleBatch(0, probes, (("x", "y"), ("x", "y")))
    >>> base = MetricContext(batch, quality=[[1, 1], [1, 1]])
    >>> result = solved_tail_kl(batch, MetricContext(batch, quality=[[1, 1], [0, 0]], baseline=base))
    >>> round(float(result.combine(result.parts)), 3)
    0.294

    Source: Kullback and Leibler (1951), on the distribution of Ding et al. (2024), arXiv:2411.00750.
    """

    def combine(now: np.ndarray, before: np.ndarray) -> np.ndarray:
        used = (now > 0) | (before > 0)
        both = (now.sum(axis=-1) > 0) & (before.sum(axis=-1) > 0)
        p, q = (_shares(np.where(used, counts + _HALF, 0.0)) for counts in (before, now))
        return np.where(both, kl_nats(p, q), math.nan)

    return _pooled(context, combine, "nothing was solved, now or at the baseline")


def _metric(fn: Callable[..., Result], summary: str, direction: Direction, **rest: Any) -> Metric:
    fixed: dict[str, Any] = {
        "family": "tails",
        "scope": "pooled",
        "needs": frozenset({"quality"}),
        "min_k": 1,
        "source": _SOURCE,
    }
    fixed["signature"] = f"bins:{BINS}|tail:{TAIL:g}"
    return Metric(name=fn.__name__.removeprefix("solved_"), fn=fn, summary=summary, direction=direction, **fixed | rest)


_OPEN = {"bounds": (0.0, math.inf)}
TAIL_SHARE = _metric(
    solved_tail_share,
    "Of the completions that solve their prompt, the share on hard prompts (the hardest 40 % of difficulty levels); "
    "falling means narrowing.",
    "higher",
)
TAIL_RATIO = _metric(
    solved_tail_ratio,
    "The hardest level's share of solved completions, as a multiple of the baseline's: 1 unchanged, 0 gone; falling "
    "means narrowing.",
    "higher",
    **_OPEN,
    compares=True,
)
TAIL_SHIFT = _metric(
    solved_tail_shift,
    "How far the mix of difficulties among solved completions has moved from the baseline's: 0 not at all, 1 to other "
    "levels altogether; rising means change, towards easy prompts or hard ones.",
    "neutral",
    compares=True,
)
TAIL_KL = _metric(
    solved_tail_kl,
    "`tail_shift` on another scale (KL divergence), which weighs most the levels that are hardly solved any more; "
    "rising means change, towards easy prompts or hard ones.",
    "neutral",
    unit="nats",
    **_OPEN,
    compares=True,
)
