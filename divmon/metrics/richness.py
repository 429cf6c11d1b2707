"""What a sample does not show: coverage, unseen classes, rarefaction, and Shannon entropy corrected for both.

Pure functions of counts, vectorised over leading axes. Counts must be whole numbers of draws. How far each estimator is
from the truth at 8, 16 and 32 draws is printed in BIAS.md beside this file.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import digamma, gammaln

from divmon.metrics.spectrum import checked_counts

_STEP = 0.25
_T = np.exp(np.arange(-60.0, 4.5, _STEP))  # where `_rest` looks at its integrand: evenly in log t
_WEIGHTS = _STEP * _T * np.exp(-_T)


def _frequencies(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts, draws, classes seen once and classes seen twice; the last three float[...], NaN where a count is."""
    numbers = checked_counts(counts, whole=True)
    total = numbers.sum(axis=-1)
    once, twice = ((numbers == times).sum(axis=-1).astype(float) for times in (1, 2))
    return numbers, total, once, twice


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, NaN where the bottom is not above 0."""
    top, bottom = np.broadcast_arrays(top, bottom)
    return np.asarray(np.divide(top, bottom, out=np.full(bottom.shape, math.nan), where=bottom > 0))


def _second_chance(total: np.ndarray, once: np.ndarray, twice: np.ndarray) -> np.ndarray:
    """Chao and Jost's A, float[...] in (0, 1]: the mean share, relative to one draw, of classes seen once."""
    some = _ratio(2 * twice, (total - 1) * once + 2 * twice)
    none = _ratio(np.full_like(total, 2.0), (total - 1) * (once - 1) + 2)
    return np.where(once == 0, 1.0, np.where(twice > 0, some, none))


def good_turing_coverage(counts: np.ndarray, *, improved: bool = False) -> np.ndarray:
    """Estimated share of the policy's probability that lies on classes already seen; between 0 and 1.

    One minus the share of draws whose class was seen once (f1 / n). It says whether a number of classes means
    anything: below about a half, most of what there is was not seen. `improved` uses classes seen twice as well.

    What moves it besides diversity: the number of draws, rightly: more draws cover more.

    Args:
        counts: float[..., C], whole numbers of draws in C classes.
        improved: The estimator of Chao and Jost, of smaller error where many classes were seen once.

    Returns:
        float[...], NaN without draws (with `improved`, for fewer than two).

    >>> good_turing_coverage(np.array([[3, 1, 0], [1, 1, 2]])).tolist()
    [0.75, 0.5]

    Source: Good (1953), Biometrika 40; Chao and Jost (2012), Ecology 93(12), for `improved`.
    """
    _, total, once, twice = _frequencies(counts)
    missing = _ratio(once, total)
    if improved:
        missing = np.where(total >= 2, missing * (1 - _second_chance(total, once, twice)), math.nan)
    return np.asarray(1.0 - missing)


def chao1(counts: np.ndarray) -> np.ndarray:
    """Estimated number of classes, seen and unseen (bias-corrected Chao1): at least the number seen.

    Show it only beside `good_turing_coverage`. At low coverage it is nearly useless: at 8 draws of 20 equal classes it
    is 17 on average with a standard deviation of 10, and when all classes were seen once it grows with n squared.

    What moves it besides diversity: the number of draws, as long as coverage is low. It is a lower bound in spirit: of
    classes too rare to be met twice it knows nothing.

    Args:
        counts: float[..., C], whole numbers of draws in C classes.

    Returns:
        float[...], NaN where nothing was counted.

    >>> chao1(np.array([[4, 1, 1, 2], [3, 3, 0, 0]])).tolist()
    [4.5, 2.0]

    Source: Chao (1984), Scand. J. Statist. 11; bias-corrected form of Chao (2005).
    """
    numbers, total, once, twice = _frequencies(counts)
    value = (numbers > 0).sum(axis=-1) + once * (once - 1) / (2 * (twice + 1))
    return np.asarray(np.where(total > 0, value, math.nan))


def rarefy(counts: np.ndarray, *, n: int) -> np.ndarray:
    """Number of classes expected among `n` of the draws, between 1 and n: makes samples of unequal size comparable.

    Exact, over all subsets of n draws, and unbiased for the number of classes that n draws of the policy show.

    What moves it besides diversity: nothing on average, but `n` is part of its meaning.

    Args:
        counts: float[..., C], whole numbers of draws in C classes.
        n: Size of the subset, 1 or more.

    Returns:
        float[...], NaN where there are fewer than n draws.

    >>> rarefy(np.array([[2, 2], [1, 0]]), n=2).round(3).tolist()
    [1.667, nan]

    Source: Hurlbert (1971), Ecology 52(4).
    """
    if not (isinstance(n, (int, np.integer)) and n >= 1):
        raise ValueError(f"rarefaction goes down to a whole number of draws, 1 or more, not {n!r}")
    numbers, total, _, _ = _frequencies(counts)
    enough = (total >= n)[..., None]
    others = np.where(enough, total[..., None] - numbers, math.nan)
    return np.asarray(np.where(enough[..., 0], (1 - none_of(others, total[..., None], n)).sum(axis=-1), math.nan))


def none_of(others: np.ndarray, total: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """Probability that `n` of `total` draws, picked without replacement, are all among `others` of them; float[...].

    C(others, n) / C(total, n), 0 where there are fewer than n others and 1 at n = 0; NaN where an argument is.

    >>> float(none_of(np.array(2.0), np.array(4.0), 2).round(6))
    0.166667

    Source: the hypergeometric distribution.
    """
    room = np.maximum(others - n, 0.0)
    logs = gammaln(others + 1) - gammaln(room + 1) - gammaln(total + 1) + gammaln(np.maximum(total - n, 0.0) + 1)
    return np.asarray(np.where(others < n, 0.0, np.exp(np.minimum(logs, 0.0))))


def _rest(n: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Sum over j >= 0 of (1 - a)^j / (n + j), float[...]; 0 < a < 1.

    The paper's tail is (1-A)^(1-n) times what is left of the series of -log A after n-1 terms: of nearly equal numbers
    a difference. This is the same as an integral of e^(-t) / (1 - (1-a) e^(-t/n)), of positive numbers, which
    the trapezoidal rule over log t gives to full precision; as a hypergeometric function it overflows from n = 171 on.
    """
    below = -np.expm1(np.log1p(-a)[..., None] - _T / n[..., None])
    return np.asarray((_WEIGHTS / below).sum(axis=-1) / n)


def chao_jost_entropy(counts: np.ndarray) -> np.ndarray:
    """Shannon entropy in nats, 0 or more, with the entropy of unseen classes estimated (Chao, Wang and Jost).

    What moves it besides diversity: very few draws; from n of about twice the number of classes on it is nearly
    unbiased, below that it is noisy, and rare classes beyond reach stay out of it (BIAS.md).

    Args:
        counts: float[..., C], whole numbers of draws in C classes.

    Returns:
        float[...] in nats, NaN without draws (one draw gives 0: it holds no evidence of variety).

    >>> chao_jost_entropy(np.array([[8, 8], [16, 0]])).round(3).tolist()
    [0.725, 0.0]

    Source: Chao, Wang and Jost (2013), Methods in Ecology and Evolution 4(11).
    """
    numbers, total, once, twice = _frequencies(counts)
    size = total[..., None]
    harmonic = digamma(np.where(size > 0, size, math.nan)) - digamma(np.maximum(numbers, 1))
    seen = np.where(numbers > 0, numbers * harmonic, 0.0).sum(axis=-1) / np.where(total > 0, total, math.nan)
    again = _second_chance(total, once, twice)
    more = (once > 0) & (again < 1)
    n, a = np.where(more, total, 1.0), np.where(more, again, 0.5)
    unseen = np.where(more, once * (1 - a) / n * _rest(n, a), 0.0)
    return np.asarray(np.where(total > 0, np.maximum(seen + unseen, 0.0), math.nan))


def grassberger_entropy(counts: np.ndarray) -> np.ndarray:
    """Shannon entropy in nats by Grassberger's estimator of 2003; less noisy than `chao_jost_entropy`, more biased.

    ``log n - sum n_i G(n_i) / n`` with ``G(n) = digamma(n) + (-1)^n (digamma((n+1)/2) - digamma(n/2)) / 2``. For a
    policy that always says the same it is not quite 0: within 0.05 at an even number of draws, 0.15 at seven of them.

    What moves it besides diversity: few draws of many classes (BIAS.md).

    Args:
        counts: float[..., C], whole numbers of draws in C classes.

    Returns:
        float[...] in nats, NaN without draws.

    >>> grassberger_entropy(np.array([[8, 8], [1, 1]])).round(3).tolist()
    [0.691, 1.964]

    Source: Grassberger (2003), arXiv:physics/0307138 (not the form of 1988).
    """
    numbers, total, _, _ = _frequencies(counts)
    some = np.maximum(numbers, 1)
    sign = np.where(some % 2 == 0, 0.5, -0.5)
    terms = np.where(numbers > 0, numbers * (digamma(some) + sign * (digamma((some + 1) / 2) - digamma(some / 2))), 0.0)
    mean = _ratio(np.where(np.isnan(numbers), math.nan, terms).sum(axis=-1), total)
    return np.asarray(np.log(np.where(total > 0, total, math.nan)) - mean)
