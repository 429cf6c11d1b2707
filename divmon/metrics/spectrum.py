"""Hill numbers and collision probability: how many equally common classes a vector of counts is worth.

Pure functions of counts, vectorised over leading axes, for any metric that sorts completions into classes
(formats, answers, clusters). Nothing here corrects for sample size except `collision_unbiased`.
"""

from __future__ import annotations

import math

import numpy as np

_NEAR = 0.5  # orders this close to 1 take a form that loses no digits there


def _checked(counts: np.ndarray) -> np.ndarray:
    numbers = np.asarray(counts, dtype=float)
    if numbers.ndim == 0:
        raise ValueError("counts must have at least one axis: one number a class")
    if (numbers < 0).any():
        raise ValueError("counts must not be negative")
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
    numbers = _checked(counts)
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
        relative = np.where(seen, np.exp(q * (logs - np.log(top)[..., None])), 0.0).sum(axis=-1)
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
    numbers = _checked(counts)
    total = numbers.sum(axis=-1)
    pairs = total * (total - 1.0)
    same = (numbers * (numbers - 1.0)).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(total >= 2, same / pairs, math.nan))
