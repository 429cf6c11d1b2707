"""Exact tests by swapping baseline and current completions, prompt by prompt.

If training has changed nothing, which of a prompt's two sets of completions is the baseline's is a coin toss, whatever
their distribution: no variance is estimated, nothing is assumed normal, prompts may differ as they like. The p-value
is the share of all such relabellings in which the change is at least as large as the one seen.

The change that is tolerated goes into the test of a mean: for ``drop`` the differences are ``(1 - tolerate) * baseline
- current``. The test counts the sets of prompts whose differences sum to 0 or less; a margin makes every difference
smaller, so with values of 0 or more it can only add to these sets. The p-value therefore holds under "nothing has
changed" with any margin; at the margin itself it holds for many prompts. A statistic of all prompts together has no
margin inside the test: there the estimate must exceed the margin too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from divmon.alarms.rules import Rule
from divmon.records import Outcome
from divmon.uncertainty import paired_interval

MIN_PAIRS = 12  # fewer prompts say nothing about a domain, whatever the p-value
EXACT_UP_TO = 32  # informative prompts of which every relabelling is counted (two halves of 2^16 sums)
DRAWS = 20  # random relabellings, as a multiple of 1 / alpha
_SLACK = 1e-11  # sums that are equal but for rounding are ties, and a tie counts against the alarm
_CHUNK = 2_000_000  # floats held at once
Combine = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class SwapTest:
    """The outcome of one test by swapping.

    Attributes:
        p: One-sided (two-sided where said) p-value; NaN when unknown.
        estimate: The change in the direction tested, a share of the baseline where the margin is one.
        low: Lower end of its 95 % bootstrap interval over prompts; NaN when there is none.
        high: Upper end.
        n: Prompts with a value on both sides.
        informative: Prompts whose swap changes anything.
        exact: Whether every relabelling was counted; else `draws` random ones.
        draws: Relabellings looked at.
        reason: Why p is unknown; None when it is not.
        moved: float[n], how much each prompt speaks for the change (for choosing examples).
        kept: int[n], which of the prompts they are.
    """

    p: float = math.nan
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    informative: int = 0
    exact: bool = True
    draws: int = 0
    reason: str | None = None
    moved: tuple[float, ...] = ()
    kept: tuple[int, ...] = ()

    def outcome(self, alpha: float, *, beyond: bool = True) -> Outcome:
        """What it says at level `alpha`; not `beyond` (the margin) is never a confirmation."""
        if self.reason is not None or math.isnan(self.p):
            return "unknown"
        return "confirmed" if self.p <= alpha and beyond else "refuted"


def smallest_p(n: int, sides: int = 1) -> float:
    """The smallest p-value that `n` informative prompts can give: one relabelling in 2^n.

    >>> smallest_p(8), smallest_p(8, sides=2)
    (0.00390625, 0.0078125)
    """
    return min(1.0, sides * 2.0**-n)


def sign_flip(differences: np.ndarray, *, alpha: float, seed: int) -> SwapTest:
    """Sign-flip test of "the differences are not positive" against "they are, on the whole".

    A zero stays zero under both signs, so dropping zeros halves the relabellings and those that count alike: the
    p-value is the same without them. Ties count as at least as large.

    Args:
        differences: float[n], NaN not allowed.
        alpha: The level it will be held against; decides how many random relabellings are enough, and whether so few
            prompts can reach it at all.
        seed: Of the random relabellings.

    >>> result = sign_flip(np.array([0.3, 0.1, 0.0, 0.2, 0.4, 0.2]), alpha=0.05, seed=0)
    >>> result.p == 2**-5, result.informative, result.exact
    (True, 5, True)
    >>> sign_flip(np.array([0.3, 0.1]), alpha=0.05, seed=0).reason
    'too few informative prompts: with 2 the smallest possible p is 0.25, above 0.05'
    """
    d = np.asarray(differences, dtype=float)
    d = d[d != 0]
    found = SwapTest(n=len(differences), informative=len(d))
    if (short := too_few(len(d), alpha)) is not None:
        return replace(found, reason=short)
    slack = _SLACK * float(np.abs(d).sum())
    if len(d) <= EXACT_UP_TO:
        return replace(found, p=_enumerated(d, slack), draws=2 ** len(d))
    p, draws = _drawn(lambda flips: -(flips @ d), -slack, len(d), alpha, seed)
    return replace(found, p=p, draws=draws, exact=False)


def too_few(n: int, alpha: float, sides: int = 1) -> str | None:
    """Why `n` informative prompts cannot reach `alpha`; None when they can."""
    if (least := smallest_p(n, sides)) <= alpha:
        return None
    return f"too few informative prompts: with {n} the smallest possible p is {least:.3g}, above {alpha:.3g}"


def _enumerated(d: np.ndarray, slack: float) -> float:
    """Share of the 2^n subsets of `d` that sum to 0 or less: flipping such a subset leaves the sum as large as it is.

    Met in the middle: the sums over each half, one half sorted.
    """
    halves = []
    for half in (d[::2], d[1::2]):
        sums = np.zeros(1)
        for x in half:
            sums = np.concatenate((sums, sums + x))
        halves.append(sums)
    first, second = halves[0], np.sort(halves[1])
    return float(np.searchsorted(second, slack - first, side="right").sum() / 2.0 ** len(d))


def _drawn(statistic: Combine, observed: float, n: int, alpha: float, seed: int, floats: int = 0) -> tuple[float, int]:
    """(p, draws) of at most `DRAWS` / alpha random relabellings, bool[draws, n] -> float[draws].

    It stops at the draw at which the p-value of all of them would be above alpha whatever came after, so that the
    decision is that of drawing all, and (1 + hits) / (1 + draws) is never below Besag and Clifford's (1991) p.
    """
    rng = np.random.default_rng(seed)
    limit = math.ceil(DRAWS / alpha)
    enough = math.floor(alpha * (limit + 1))  # hits at which (1 + hits) / (1 + limit) exceeds alpha
    step, hits, draws = max(1, min(limit, _CHUNK // max(n, floats))), 0, 0
    while draws < limit:
        size = min(step, limit - draws)
        bits = np.frombuffer(rng.bytes(size * -(-n // 8)), dtype=np.uint8).reshape(size, -1)
        swaps = np.unpackbits(bits, axis=1, count=n)
        with np.errstate(invalid="ignore", divide="ignore"):
            hit = ~(statistic(swaps) < observed)  # a relabelling without a value counts against the alarm
        seen = hits + np.cumsum(hit)
        if seen[-1] >= enough:
            draws += int(np.argmax(seen >= enough)) + 1
            return (1 + enough) / (1 + draws), draws
        hits, draws = int(seen[-1]), draws + size
    return (1 + hits) / (1 + draws), draws


def swap_pooled(
    baseline: np.ndarray, current: np.ndarray, combine: Combine, *, sign: int, alpha: float, seed: int
) -> SwapTest:
    """Swap test of a statistic of all prompts together, recomputed for every relabelling.

    Args:
        baseline: float[n, D], what each prompt contributes (`Pooled.parts`).
        current: float[n, D], in the same columns.
        combine: float[..., n, D] -> float[...].
        sign: 1 when the statistic is said to have fallen, -1 when risen, 0 for either (twice the smaller p-value).
        alpha: The level it will be held against.
        seed: Of the random relabellings.

    >>> before, now = np.tile([4.0, 4.0], (12, 1)), np.tile([8.0, 0.0], (12, 1))
    >>> share = lambda parts: parts.sum(axis=-2)[..., 0] / parts.sum(axis=(-1, -2))
    >>> swap_pooled(before, now, share, sign=-1, alpha=0.01, seed=0).p == 2**-12
    True
    """
    sides, n = (2 if sign == 0 else 1), len(baseline)
    differs = np.flatnonzero((baseline != current).any(axis=1))
    found = SwapTest(n=n, informative=len(differs))
    with np.errstate(invalid="ignore", divide="ignore"):
        change = float(combine(baseline)) - float(combine(current))
    if not math.isfinite(change):
        return replace(found, reason="the statistic has no value on these completions")
    if (short := too_few(len(differs), alpha, sides)) is not None:
        return replace(found, reason=short)

    def changes(swaps: np.ndarray) -> np.ndarray:
        swapped = np.zeros((len(swaps), n), dtype=bool)
        swapped[:, differs] = swaps.astype(bool)
        now = np.where(swapped[..., None], baseline, current)
        before = np.where(swapped[..., None], current, baseline)
        return np.asarray(np.asarray(combine(before)) - np.asarray(combine(now)))

    p, draws, exact = min(
        _pooled_p(
            lambda swaps, way=way: way * changes(swaps),  # type: ignore[misc]
            way * change - _SLACK * max(1.0, abs(change)),
            (len(differs), baseline.size),
            alpha / sides,
            seed + side,
        )
        for side, way in enumerate((1, -1) if sign == 0 else (sign,))
    )
    single = _singles(changes, differs, n, change)
    return replace(found, p=min(1.0, sides * p), draws=draws, exact=exact, moved=tuple((sign or 1) * single))


def _pooled_p(
    statistic: Combine, bar: float, sizes: tuple[int, int], alpha: float, seed: int
) -> tuple[float, int, bool]:
    """(p, draws, exact): every relabelling where that is no more work than drawing, else random ones.

    `sizes`: informative prompts, and the floats that one relabelling moves.
    """
    n, floats = sizes
    if n > 20 or 2**n > max(4096, DRAWS / alpha):
        return (*_drawn(statistic, bar, n, alpha, seed, floats), False)
    hits, step = 0, max(1, _CHUNK // floats)
    for start in range(0, 2**n, step):
        index = np.arange(start, min(start + step, 2**n))
        with np.errstate(invalid="ignore", divide="ignore"):
            hits += int((~(statistic((index[:, None] >> np.arange(n)) & 1) < bar)).sum())
    return hits / 2**n, 2**n, True


def _singles(changes: Combine, differs: np.ndarray, n: int, change: float) -> np.ndarray:
    """How much of the change goes when one prompt is swapped: float[n]."""
    moved = np.zeros(n)
    with np.errstate(invalid="ignore", divide="ignore"):
        moved[differs] = np.nan_to_num(change - changes(np.eye(len(differs), dtype=np.uint8)))
    return moved


def _pairs(baseline: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Rows with a value on both sides, and why they are too few."""
    sides = [np.isnan(side.reshape(len(side), -1)).any(axis=1) for side in (baseline, current)]
    kept = np.flatnonzero(~(sides[0] | sides[1]))
    if len(kept) < MIN_PAIRS or 2 * len(kept) < len(baseline):
        least = max(MIN_PAIRS, -(-len(baseline) // 2))
        return (
            kept,
            f"only {len(kept)} of {len(baseline)} prompts have a value on both sides; at least {least} are needed",
        )
    return kept, None


def confirm_mean(rule: Rule, baseline: np.ndarray, current: np.ndarray, *, alpha: float, seed: int) -> SwapTest:
    """Whether the mean over prompts has really changed by more than `rule` tolerates.

    Args:
        rule: drop, rise or outside with `by`.
        baseline: float[P], a value a prompt from the confirmation bank; NaN where missing.
        current: float[P], of the same prompts from fresh completions.
        alpha: The level of this confirmation.
        seed: Of random relabellings.

    >>> rule = Rule("fall", metric="vendi", rule="drop", by="20%", evidence="confirm")
    >>> before = np.linspace(3, 4, 16)
    >>> found = confirm_mean(rule, before, 0.5 * before, alpha=0.01, seed=0)
    >>> round(found.estimate, 3), found.p == 2**-16, found.outcome(0.01)
    (0.5, True, 'confirmed')
    """
    kept, short = _pairs(np.asarray(baseline, float), np.asarray(current, float))
    b, c = np.asarray(baseline, float)[kept], np.asarray(current, float)[kept]
    found = SwapTest(n=len(kept), kept=tuple(map(int, kept)), reason=short)
    margin, relative = rule.margin
    if short is None and relative and (min(b.min(), c.min()) < 0 or b.mean() <= 0):
        reason = (
            "a share of the baseline says nothing where values can be 0 or less; use an absolute `by` and `tolerate`"
        )
        return replace(found, reason=reason)
    if short is not None:
        return found
    size = margin * b if relative else margin
    ways = {"drop": (1,), "rise": (-1,)}.get(rule.rule, (1, -1))
    tests = [
        (way, sign_flip(way * (b - c) - size, alpha=alpha / len(ways), seed=seed + i)) for i, way in enumerate(ways)
    ]
    sign, test = min(tests, key=lambda t: math.inf if math.isnan(t[1].p) else t[1].p)
    test = replace(test, p=min(1.0, len(ways) * test.p))

    def change(before: np.ndarray, now: np.ndarray) -> np.ndarray:
        moved = sign * (before.mean(axis=-1) - now.mean(axis=-1))
        return np.asarray(moved / before.mean(axis=-1) if relative else moved)

    low, high = paired_interval(b, c, change)
    moved = tuple(map(float, sign * (b - c)))
    estimate = float(change(b, c))
    return replace(test, n=len(kept), kept=found.kept, estimate=estimate, low=low, high=high, moved=moved)


def confirm_pooled(
    rule: Rule, baseline: np.ndarray, current: np.ndarray, combine: Combine, *, alpha: float, seed: int
) -> SwapTest:
    """Whether a statistic of all prompts together has really changed. Its estimate must exceed the margin as well.

    Args:
        rule: drop, rise or outside with `by`.
        baseline: float[P, D], parts from the confirmation bank.
        current: float[P, D], parts from fresh completions of the same prompts, in the same columns.
        combine: float[..., P, D] -> float[...].
        alpha: The level of this confirmation.
        seed: Of random relabellings.
    """
    kept, short = _pairs(baseline, current)
    b, c = baseline[kept], current[kept]
    found = SwapTest(n=len(kept), kept=tuple(map(int, kept)), reason=short)
    if short is not None:
        return found
    _, relative = rule.margin
    with np.errstate(invalid="ignore", divide="ignore"):
        before = float(combine(b))
    if relative and before <= 0:
        reason = f"a share of the baseline needs one above 0, and it is {before:.4g}; use an absolute `by`"
        return replace(found, reason=reason)
    sign = {"drop": 1, "rise": -1}.get(rule.rule, 0)
    test = swap_pooled(b, c, combine, sign=sign, alpha=alpha, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        way = sign or (1 if before >= float(combine(c)) else -1)

    def change(b: np.ndarray, c: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            was = np.asarray(combine(b))
            moved = way * (was - np.asarray(combine(c)))
            return np.asarray(moved / was) if relative else moved

    low, high = paired_interval(b, c, change)
    moved = test.moved if sign else tuple(way * m for m in test.moved)
    return replace(test, kept=found.kept, estimate=float(change(b, c)), low=low, high=high, moved=moved)


def beyond_margin(rule: Rule, test: SwapTest) -> bool:
    """Whether the estimate of a statistic of all prompts is beyond what `rule` tolerates."""
    return test.estimate > rule.margin[0]
