"""Runs simulated on the noise of a pilot, as they will be watched: with one baseline, one bank, and waits.

The noise of a prompt's value is taken from the pilot itself: each completion's *influence* is what leaving it out
changes (jackknife pseudo-values, centred). Drawing K influences again, with replacement, and averaging them gives a
value's noise at K completions; drawing 4 K gives that of a confirmation. Skewed and rare events keep their shape in
this way. How large the noise is at K and at 4 K is corrected by `noise_factors`: for means over pairs of completions,
which most metrics are, the jackknife is too large, and the noise falls faster than with the root of K.

Every evaluation is compared with the *same* noisy baseline, and every confirmation with the *same* bank. Only the
p-value of a confirmation is a saddlepoint approximation of the exact one. Prompts are taken as fixed, completions as
random: that is what a run repeats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from divmon.alarms.rules import Rule
from divmon.alarms.spending import level, next_wait

POWER = 0.8
BANK = 4  # completions a prompt of a confirmation, as a multiple of K
STARTS = 0.3  # the share of the run after which the simulated change begins
_APART = 4.0  # standard errors by which a value on two completions differs where it is not a mean over pairs
_LIBRARY = 512  # noise values kept for each prompt


@dataclass(frozen=True)
class Pilot:
    """One series measured once, with what each completion contributes.

    Attributes:
        metric: Name in the metrics table.
        domain: A probe domain, or "all".
        values: float[P], a value a prompt (one number, P = 1, for a statistic of all prompts together).
        influence: float[P, K], what each completion adds to its prompt's value; every row has mean 0.
        prompts: How many there are.
        pooled: Whether it is a statistic of all prompts together.
        bounds: Smallest and largest possible value; a simulated change stops there.
        factors: What the noise of the influences is multiplied by at K and at a confirmation (see `noise_factors`).
    """

    metric: str
    domain: str
    values: np.ndarray
    influence: np.ndarray
    prompts: int = 0
    pooled: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)
    factors: tuple[float, float] = (1.0, 1.0)

    @property
    def noise(self) -> np.ndarray:
        """float[P], the standard deviation of each prompt's value at K completions."""
        k = self.influence.shape[1]
        return np.asarray(self.factors[0] * np.sqrt((self.influence**2).mean(axis=1) / max(1, k - 1)))

    def draws(self, completions: int, rng: np.random.Generator) -> np.ndarray:
        """float[P, 512], noise of each prompt's value at `completions`."""
        p, k = self.influence.shape
        scale = math.sqrt(k / max(1, k - 1)) * self.factors[completions > k]
        rows = np.arange(p)[:, None, None]
        return np.asarray(scale * self.influence[rows, rng.integers(0, k, (p, _LIBRARY, completions))].mean(axis=2))


def noise_factors(
    values: np.ndarray, influence: np.ndarray, pairs: np.ndarray, halves: np.ndarray
) -> tuple[float, float]:
    """How much larger the noise at K and at 4 K is than the jackknife says.

    The variance of a mean over pairs of m completions is ``4 (m - 2) / (m (m - 1)) a + 2 / (m (m - 1)) b`` (Hoeffding
    1948): `b` is that of one pair, `a` what a completion has in common with all others. Values on two completions and
    on K // 2, from parts of the pilot that share no completion, give both. A mean over completions is the case
    ``b = 2 a``. Of a statistic whose value depends on the number of completions (the share of distinct n-grams) nothing
    better than the jackknife is known.

    Args:
        values: float[P], on all K completions.
        influence: float[P, K], see `Pilot`.
        pairs: float[R, K // 2, P], values on disjoint pairs of completions, in R random orders.
        halves: float[R, 2, P], values on disjoint halves.

    >>> rng = np.random.default_rng(0)
    >>> each = rng.normal(size=(4, 8, 2000))
    >>> pairs, halves = each.reshape(4, 4, 2, -1).mean(axis=2), each.reshape(4, 2, 4, -1).mean(axis=2)
    >>> influence = each[0].T - each[0].T.mean(axis=1, keepdims=True)
    >>> [round(factor, 1) for factor in noise_factors(each[0].mean(axis=0) + 5, influence, pairs + 5, halves + 5)]
    [1.0, 1.0]
    """
    k = influence.shape[1]
    m = k // 2
    jackknife = float((influence**2).mean() / (k - 1))
    if m < 2 or len(values) < 3 or not jackknife > 0:
        return 1.0, 1.0
    apart = np.nanmean(pairs, axis=(0, 1)) - values  # a mean over pairs has the same expectation on any number
    if abs(apart.mean()) > _APART * apart.std(ddof=1) / math.sqrt(len(apart)) + 1e-9 * abs(values).mean():
        return 1.0, 1.0
    b = float(np.nanmean(pairs.var(axis=1, ddof=1)))
    half = float(np.nanmean(halves.var(axis=1, ddof=1)))
    a = min(b / 2, max(0.0, (half * m * (m - 1) - 2 * b) / (4 * (m - 2)))) if m > 2 else b / 2

    def factor(n: int) -> float:
        variance = (4 * (n - 2) * a + 2 * b) / (n * (n - 1))
        return math.sqrt(variance / (jackknife * k / n))

    return factor(k), factor(BANK * k)


@dataclass(frozen=True)
class Simulated:
    """Runs as they were watched: float[runs], the evaluation (from 1) at which each fired, inf for never."""

    fired: np.ndarray
    confirmations: np.ndarray

    def found(self, start: int) -> float:
        """The share of runs that fired from evaluation `start` on."""
        return float(((self.fired >= start) & np.isfinite(self.fired)).mean())


class Runs:
    """Runs with the same noise and any size of change."""

    def __init__(
        self,
        rule: Rule,
        pilot: Pilot,
        share: float,
        sizes: tuple[int, int, int],
        rng: np.random.Generator,
        *,
        confirm_k: int | None = None,
    ) -> None:
        self.rule, self.pilot, self.share = rule, pilot, share
        self.evaluations, self.runs, self.cap = sizes
        k, p = pilot.influence.shape[1], len(pilot.values)
        library = pilot.draws(k, rng)

        def pick(*shape: int) -> np.ndarray:
            return library[np.arange(p), rng.integers(0, _LIBRARY, (*shape, p))]

        self.base = float(pilot.values.mean()) + pick(self.runs).mean(axis=1)
        self.screen = np.stack([pick(self.runs).mean(axis=1) for _ in range(self.evaluations)], axis=1)
        if rule.confirms and not pilot.pooled:
            library = pilot.draws(confirm_k or BANK * k, rng)
            self.bank = pilot.values + pick(self.runs)
            self.fresh = pick(self.runs, self.cap)

    def watch(self, change: float, *, start: int) -> Simulated:
        """Runs in which the mean changes by `change` (a share, negative for a fall) from evaluation `start` on."""
        size = np.where(np.arange(1, self.evaluations + 1) >= start, 1 + change, 1.0)
        mean, (least, most) = float(self.pilot.values.mean()), self.pilot.bounds
        values = np.clip(mean * size, min(least, mean), max(most, mean)) + self.screen
        hits = held(_breached(self.rule, values, self.base[:, None]), self.rule.hold)
        if not self.rule.confirms or self.pilot.pooled:
            return Simulated(_first(hits), np.zeros(self.runs))
        return self._confirm(hits, size)

    def _confirm(self, hits: np.ndarray, size: np.ndarray) -> Simulated:
        fired, count = np.full(self.runs, math.inf), np.zeros(self.runs, dtype=int)
        allowed, waited = np.zeros(self.runs, dtype=int), 0
        margin, relative = self.rule.margin
        way = {"drop": 1.0, "rise": -1.0}.get(self.rule.rule, 0.0)
        for attempt in range(1, self.cap + 1):
            open_hits = hits & (np.arange(self.evaluations) >= allowed[:, None]) & np.isinf(fired)[:, None]
            rows = np.flatnonzero(open_hits.any(axis=1))
            if not len(rows):
                break
            at = open_hits[rows].argmax(axis=1)
            now = self.pilot.values * size[at][:, None] + self.fresh[rows, attempt - 1]
            gap, benign = self.bank[rows] - now, margin * (self.bank[rows] if relative else 1.0)
            ways = (way,) if way else (1.0, -1.0)
            p = np.min([len(ways) * approximate_p(w * gap - benign) for w in ways], axis=0)
            sure = p <= level(self.share, attempt)
            fired[rows[sure]] = at[sure] + 1
            count[rows] += 1
            waited = next_wait(waited)
            allowed[rows] = at + waited
        return Simulated(fired, count)

    def smallest(self) -> tuple[float, float]:
        """The smallest change found in `POWER` of the runs, and the median delay at that size."""
        start = max(1, math.ceil(STARTS * self.evaluations))
        way = 1.0 if self.rule.rule in ("rise", "above") else -1.0
        low, high = 0.0, 1.0 if way < 0 else 3.0
        if self.watch(way * high, start=start).found(start) < POWER:
            return math.nan, math.nan
        while high - low > 0.0025:
            middle = (low + high) / 2
            enough = self.watch(way * middle, start=start).found(start) >= POWER
            low, high = (low, middle) if enough else (middle, high)
        found = self.watch(way * high, start=start)
        seen = found.fired[(found.fired >= start) & np.isfinite(found.fired)]
        return high, float(np.median(seen)) - start


def _first(hits: np.ndarray) -> np.ndarray:
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, math.inf)


def held(hits: np.ndarray, n: int) -> np.ndarray:
    """bool[runs, T]: where the `n` latest evaluations were all hits.

    >>> held(np.array([[True, True, False, True]]), 2)
    array([[False,  True, False, False]])
    """
    found = hits.copy()
    for shift in range(1, n):
        found[:, shift:] &= hits[:, :-shift]
        found[:, :shift] = False
    return found


def _breached(rule: Rule, values: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """`rules.breached` for arrays."""
    if rule.level is not None:
        return values < rule.level if rule.rule == "below" else values > rule.level
    if rule.low is not None and rule.high is not None:
        return (values < rule.low) | (values > rule.high)
    by, relative = rule.allowed or (math.inf, False)
    limit = by * (baseline if relative else 1.0)
    change = {"drop": baseline - values, "rise": values - baseline}.get(rule.rule, np.abs(values - baseline))
    return np.asarray(change > limit)


def approximate_p(differences: np.ndarray) -> np.ndarray:
    """Saddlepoint approximation (Lugannani and Rice 1980) of the sign-flip test's p-value, for many tests at once.

    Args:
        differences: float[N, P], a test a row.

    Returns:
        float[N]; 1 where the differences sum to 0 or less.

    >>> from divmon.alarms.evidence import sign_flip
    >>> d = np.random.default_rng(0).normal(0.4, 1, (1, 24))
    >>> exact = sign_flip(d[0], alpha=0.05, seed=0).p
    >>> bool(abs(approximate_p(d)[0] / exact - 1) < 0.05)
    True
    """
    scale = np.abs(differences).sum(axis=1, keepdims=True)
    d = differences / np.where(scale > 0, scale, 1.0)
    total, least = d.sum(axis=1), 2.0 ** -(d != 0).sum(axis=1)
    outermost = total >= 1 - 1e-9  # no relabelling reaches further
    smallest = np.where(d != 0, np.abs(d), math.inf).min(axis=1)  # half the distance of two sums, on a lattice
    total = total - np.where(np.isfinite(smallest), smallest, 0.0)
    t = np.zeros(len(d))
    for _ in range(30):  # Newton's steps towards the tilt whose mean is the sum observed; concave, so from below
        tanh = np.tanh(d * t[:, None])
        slope = (d**2 * (1 - tanh**2)).sum(axis=1)
        t = t + np.maximum(0.0, total - (d * tanh).sum(axis=1)) / np.maximum(slope, 1e-12)
        t = np.minimum(t, 1e6)
    a = np.abs(d * t[:, None])
    cumulant = (a + np.log1p(np.exp(-2 * a)) - math.log(2)).sum(axis=1)
    spread = (d**2 / np.cosh(np.minimum(a, 300)) ** 2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        w = np.sqrt(np.maximum(0.0, 2 * (t * total - cumulant)))
        p = ndtr(-(w + np.log(t * np.sqrt(spread) / w) / w))
    p = np.where(total <= 0, 1.0, np.where(np.isfinite(p), p, 0.5))
    return np.asarray(np.where(outermost, least, np.maximum(p, least)))
