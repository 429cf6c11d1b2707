"""Hill numbers, evenness, dominance and collision probability: how a vector of counts is shared out over classes.

Pure functions of counts, vectorised over leading axes, for any metric that sorts completions into classes
(formats, answers, clusters). Nothing here corrects for sample size except `collision_unbiased`; for what does, see
`divmon.metrics.richness`.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

_NEAR = 0.5  # orders this close to 1 take a form that loses no digits there


def checked_counts(counts: np.ndarray, *, whole: bool = False) -> np.ndarray:
    """`counts` as float[..., C], refused where they cannot be counts. NaN passes: it makes results missing.

    Raises:
        ValueError: No axis, a negative count or, where `whole` is asked for, one that is not a whole number.

    >>> checked_counts([2, 1]).tolist()
    [2.0, 1.0]
    """
    numbers = np.asarray(counts, dtype=float)
    if numbers.ndim == 0:
        raise ValueError("counts must have at least one axis: one number a class")
    if (numbers < 0).any():
        raise ValueError("counts must not be negative")
    if whole and (numbers % 1 > 0).any():
        raise ValueError("counts must be whole numbers: this is an estimate from draws, not from shares")
    return numbers


def hill(counts: np.ndarray, *, q: float) -> np.ndarray:
    """Hill number of order `q`: the effective number of classes, between 1 and the number of classes seen.

    q = 0 counts classes, q = 1 is the exponential of Shannon entropy, q = 2 is the inverse Simpson index, and
    q = inf is one over the largest share. Higher orders listen less to rare classes.

    What moves it besides diversity: the number of draws. Counts of n completions never show more than n classes, so
    low orders are biased down at small n; compare at equal n, or average `collision_unbiased` and invert once.

    Args:
        counts: float[..., C], counts or shares of C classes; classes with zero are ignored.
        q: Order, 0 or more, infinity allowed.

    Returns:
        float[...], NaN where every count is zero or one is NaN.

    >>> hill(np.array([[5, 5, 0], [10, 0, 0]]), q=1).round(3).tolist()
    [2.0, 1.0]

    Source: Hill (1973), Ecology 54(2); Jost (2006), Oikos 113(2).
    """
    if not q >= 0:
        raise ValueError(f"the order of a Hill number is 0 or more, not {q}")
    numbers = checked_counts(counts)
    total = numbers.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(total > 0, numbers / total, math.nan)
    if shares.shape[-1] == 0:
        return np.full(shares.shape[:-1], math.nan)
    return np.asarray(np.clip(np.exp(_log_hill(shares, q)), 1.0, (shares > 0).sum(axis=-1)))


def _log_hill(shares: np.ndarray, q: float) -> np.ndarray:
    """Renyi entropy in nats, float[...], of float[..., C] shares; each branch keeps its digits at its orders."""
    seen = shares > 0
    logs = np.log(shares, where=seen, out=np.zeros_like(shares))
    top = shares.max(axis=-1)  # NaN when any share is
    if math.isinf(q):
        entropy = -np.log(top)
    elif q == 1:
        entropy = -(shares * logs).sum(axis=-1)
    elif abs(q - 1) < _NEAR:
        entropy = np.log1p((shares * np.expm1((q - 1) * logs)).sum(axis=-1)) / (1 - q)
    else:
        below = np.minimum(0.0, q * (logs - np.log(top)[..., None]))  # of classes that were not seen: anything finite
        relative = np.where(seen, np.exp(below), 0.0).sum(axis=-1)
        relative = np.where(np.isnan(top), 1.0, relative)
        entropy = (q * np.log(top) + np.log(relative)) / (1 - q)
    return np.where(np.isnan(top), math.nan, entropy)


def collision_unbiased(counts: np.ndarray) -> np.ndarray:
    """Unbiased probability, between 0 and 1, that two different draws are of one class: sum n_i(n_i-1) / (n(n-1)).

    What moves it besides diversity: nothing on average, at any n of two or more, which is why curves prefer it. Average
    it over prompts and invert once for a Hill number of order 2; the inverse of one prompt's value may not exist.

    Args:
        counts: float[..., C], whole numbers of draws in C classes.

    Returns:
        float[...], NaN for fewer than two draws.

    >>> collision_unbiased(np.array([[2, 2], [4, 0], [1, 0]])).round(3).tolist()
    [0.333, 1.0, nan]

    Source: Simpson (1949), Nature 163.
    """
    numbers = checked_counts(counts)
    total = numbers.sum(axis=-1)
    pairs = total * (total - 1.0)
    same = (numbers * (numbers - 1.0)).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(total >= 2, same / pairs, math.nan))


def shannon(counts: np.ndarray) -> np.ndarray:
    """Plug-in Shannon entropy in nats, from 0 to the logarithm of the number of classes seen.

    What moves it besides diversity: the number of draws; it is too low, by about (C - 1) / 2n at n draws of C classes
    and by more when n is no larger than C (`chao_jost_entropy` and `grassberger_entropy` correct for that).

    Args:
        counts: float[..., C], counts or shares of C classes.

    Returns:
        float[...] in nats, NaN where nothing was counted.

    >>> shannon(np.array([[2, 2], [4, 0]])).round(3).tolist()
    [0.693, 0.0]

    Source: Shannon (1948).
    """
    return np.asarray(np.log(hill(counts, q=1)))


def berger_parker(counts: np.ndarray) -> np.ndarray:
    """Share of the commonest class: between 1/C and 1, lower is more diverse.

    What moves it besides diversity: few draws, which make it too high (the commonest of few is common by luck).

    Args:
        counts: float[..., C], counts or shares of C classes.

    Returns:
        float[...], NaN where nothing was counted.

    >>> berger_parker(np.array([[3, 1], [0, 0]])).tolist()
    [0.75, nan]

    Source: Berger and Parker (1970), Science 168.
    """
    return np.asarray(1.0 / hill(counts, q=math.inf))


def evenness(counts: np.ndarray, *, kind: Literal["pielou", "hill"] = "pielou") -> np.ndarray:
    """How evenly the classes that were seen share the draws; at most 1, and 1 where all are equally common.

    "pielou" is Shannon entropy over its largest value, log C, from 0; "hill" is the ratio of the Hill numbers of
    orders 2 and 1, above 0. Pielou's says nothing of one class alone (NaN); the ratio is 1 there.

    What moves it besides evenness: the number of draws, by the classes it leaves unseen. Two classes of equal share
    are as even as twenty: it must be read beside a number of classes.

    Args:
        counts: float[..., C], counts or shares of C classes; classes with zero are ignored.
        kind: Which of the two.

    Returns:
        float[...], NaN where nothing was counted.

    >>> evenness(np.array([[2, 2, 0], [9, 1, 0]])).round(3).tolist()
    [1.0, 0.469]

    Source: Pielou (1966), J. Theor. Biol. 13; Hill (1973), Ecology 54(2).
    """
    if kind == "hill":
        return np.asarray(np.minimum(1.0, hill(counts, q=2) / hill(counts, q=1)))
    if kind != "pielou":
        raise ValueError(f"evenness is 'pielou' or 'hill', not {kind!r}")
    entropy, seen = shannon(counts), hill(counts, q=0)
    even = np.divide(entropy, np.log(seen), out=np.full(np.shape(seen), math.nan), where=seen > 1)
    return np.asarray(np.clip(even, 0.0, 1.0))
