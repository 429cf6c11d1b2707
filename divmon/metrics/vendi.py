"""Vendi scores: how many entirely different completions a set is worth, when likeness has degrees.

The Hill number of the eigenvalues of the kernel of cosines over K; the orders q mean what they mean for Hill numbers.
Pure functions of vectors and kernels, vectorised over leading axes; the metrics are in `divmon.metrics.likeness`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from divmon.metrics.spectrum import hill

LARGEST = (
    10_000.0  # what the unbiased order 2 gives for completions with nothing in common (root mean square cosine .01)
)
CHUNK = 1 << 22  # numbers in the matrices decomposed at once


def cosines(vectors: np.ndarray) -> np.ndarray:
    """float[..., K, K] from float[..., K, D], ones on the diagonal; NaN where a vector has no direction.

    >>> cosines(np.array([[3.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    numbers = np.asarray(vectors, dtype=float)
    found = np.matmul(numbers, numbers.swapaxes(-1, -2))  # scaled afterwards: K x K numbers, not K x D
    norms = np.sqrt(np.diagonal(found, axis1=-2, axis2=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        norms = np.where(np.isfinite(norms) & (norms > 0), norms, math.nan)
        found = found / (norms[..., :, None] * norms[..., None, :])
    diagonal = np.arange(found.shape[-1])
    found[..., diagonal, diagonal] = np.where(np.isnan(norms), math.nan, 1.0)
    return np.asarray(found)


def gram(vectors: np.ndarray) -> np.ndarray:
    """The cosines of float[..., K, D], or, if K is above D, the D x D matrix with the same non-zero eigenvalues.

    >>> gram(np.ones((3, 2))).round(9).tolist()
    [[1.5, 1.5], [1.5, 1.5]]
    """
    numbers = np.asarray(vectors, dtype=float)
    k, d = numbers.shape[-2:]
    if k <= d:
        return cosines(numbers)
    norms = np.linalg.norm(numbers, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.where(np.isfinite(norms) & (norms > 0), numbers / norms, math.nan)
    return np.asarray(np.matmul(unit.swapaxes(-1, -2), unit))


def spectrum(gram: np.ndarray, k: int) -> np.ndarray:
    """Eigenvalues over `k`, float[..., M]; rounding noise is made zero, NaN where a matrix is not finite."""
    known = np.isfinite(gram).all(axis=(-1, -2))
    found = np.linalg.eigvalsh(np.where(known[..., None, None], gram, np.eye(gram.shape[-1])))
    if (found < -1e-6 * k).any():
        raise ValueError("the kernel is not positive semi-definite")
    found = np.where(found > 8 * k * np.finfo(float).eps, found, 0.0)  # orders below 1 would count the noise
    return np.where(known[..., None], found / k, math.nan)


def checked_order(q: float) -> float:
    """`q`, if a Vendi score of that order exists."""
    if not q > 0:
        raise ValueError(f"the order of a Vendi score is above 0, not {q}")
    return q


def _of_gram(gram: np.ndarray, k: int, q: float) -> np.ndarray:
    if q == 2:
        return np.asarray(np.clip(k * k / np.square(gram).sum(axis=(-1, -2)), 1.0, k))
    return hill(spectrum(gram, k), q=q)


def vendi(vectors: np.ndarray, *, q: float = 1.0) -> np.ndarray:
    """Vendi score of order `q` of sets of K vectors: between 1 (all alike) and K (all at right angles).

    q = 1 is the exponential of the entropy of the eigenvalues of the cosines over K, q = 2 needs no eigenvalues,
    q = inf is one over the largest.

    What moves it besides diversity: K. The score of n draws is below that of the population, at q = 1 by half or more
    when n is 8; compare at equal K, or see `vendi_2_unbiased` and `vendi_1_jackknife`.

    Args:
        vectors: float[..., K, D]; scaled to length one here. With more vectors than dimensions, the D x D matrix is
            decomposed instead.
        q: Order, above 0, infinity allowed.

    Returns:
        float[...], NaN where a vector has length zero or is not finite, or K is 0.

    >>> vendi(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 1.0]]), q=1).round(9).item()
    2.0

    Source: Friedman and Dieng (2023), arXiv:2210.02410; orders: Pasarkar and Dieng (2024), arXiv:2310.12952.
    """
    numbers = np.asarray(vectors, dtype=float)
    k, d = numbers.shape[-2:]
    if k == 0 or d == 0:
        return np.full(numbers.shape[:-2], math.nan)
    return _of_gram(gram(numbers), k, checked_order(q))


def vendi_from_kernel(kernel: np.ndarray, *, q: float = 1.0) -> np.ndarray:
    """Vendi score of order `q` from similarities; see `vendi`.

    Args:
        kernel: float[..., K, K], symmetric and positive semi-definite with ones on the diagonal.
        q: Order, above 0, infinity allowed.

    Returns:
        float[...], NaN where the kernel is not finite or K is 0.

    >>> vendi_from_kernel(np.eye(5), q=float("inf")).round(9).item()
    5.0

    Source: as `vendi`.

    Raises:
        ValueError: A diagonal that is not 1, a negative eigenvalue, or an order that is not above 0.
    """
    numbers = np.asarray(kernel, dtype=float)
    k = numbers.shape[-1]
    if numbers.ndim < 2 or numbers.shape[-2] != k:
        raise ValueError(f"a kernel has shape (..., K, K), not {numbers.shape}")
    if (np.abs(np.diagonal(numbers, axis1=-2, axis2=-1) - 1) > 1e-6).any():
        raise ValueError("the kernel must have ones on its diagonal")
    if k == 0:
        return np.full(numbers.shape[:-2], math.nan)
    return _of_gram(numbers, k, checked_order(q))


def squared_likeness(kernel: np.ndarray) -> np.ndarray:
    """Mean of the squared similarities of different pairs, between 0 and 1: what a coincidence is to classes.

    Sum over i != j of k_ij^2, over K (K - 1). What moves it besides diversity: nothing on average, at any K of two or
    more: it is an unbiased estimate of one over the population's Vendi score of order 2.

    Args:
        kernel: float[..., K, K] with ones on the diagonal.

    Returns:
        float[...], NaN for K under 2.

    >>> squared_likeness(np.array([[1.0, 0.5], [0.5, 1.0]])).item()
    0.25

    Source: as `collision_unbiased` in `divmon.metrics.spectrum`, for similarities.
    """
    numbers = np.asarray(kernel, dtype=float)
    k = numbers.shape[-1]
    if k < 2:
        return np.full(numbers.shape[:-2], math.nan)
    off = np.square(numbers).sum(axis=(-1, -2)) - np.square(np.diagonal(numbers, axis1=-2, axis2=-1)).sum(axis=-1)
    return np.asarray(np.clip(off / (k * (k - 1)), 0.0, 1.0))


def inverse_mean(parts: np.ndarray) -> np.ndarray:
    """float[..., P, 2] (a likeness, whether it is known) to one over the mean of the known ones."""
    sums = np.asarray(parts, dtype=float).sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1.0 / np.maximum(sums[..., 0] / sums[..., 1], 1.0 / LARGEST))


def likeness_parts(likeness: np.ndarray) -> np.ndarray:
    """float[P], NaN where unknown, to what `inverse_mean` takes."""
    known = ~np.isnan(likeness)
    return np.stack((np.where(known, likeness, 0.0), known), axis=-1)


def vendi_2_unbiased(kernels: Sequence[np.ndarray]) -> float:
    """Vendi score of order 2 without bias from K: one over the mean over prompts of `squared_likeness`.

    Averaged first and inverted once, because the inverse of one prompt's mean is far too large when that mean happens
    to be small. Between 1 and 10,000.

    What moves it besides diversity: prompts that repeat themselves weigh most (a harmonic mean of the prompts' scores).

    >>> vendi_2_unbiased([np.array([[1.0, 0.5], [0.5, 1.0]]), np.ones((2, 2))])
    1.6

    Source: Pasarkar and Dieng (2024), arXiv:2310.12952; the estimate is divmon's, after Simpson (1949).
    """
    return float(inverse_mean(likeness_parts(np.array([float(squared_likeness(kernel)) for kernel in kernels]))))


def vendi_1_log_jackknife(kernel: np.ndarray) -> np.ndarray:
    """Vendi score of order 1 with its bias from K reduced, 1 or more: the jackknife of the entropy, exponentiated.

    K H - (K - 1) times the mean of H without one completion. It takes half or more of the bias away, not all of it,
    and may exceed K. It costs K eigendecompositions.

    What moves it besides diversity: K, a little; chance, more than the plain score.

    Args:
        kernel: float[..., K, K], positive semi-definite with ones on the diagonal.

    Returns:
        float[...], NaN where the kernel is not finite or K is under 2.

    >>> vendi_1_log_jackknife(np.ones((4, 4))).round(9).item()
    1.0

    Source: Quenouille (1956), Biometrika 43, applied to the entropy of Friedman and Dieng (2023), arXiv:2210.02410.
    """
    numbers = np.asarray(kernel, dtype=float)
    k, lead = numbers.shape[-1], numbers.shape[:-2]
    if k < 2 or 0 in lead:
        return np.full(lead, math.nan)
    sets = numbers.reshape(-1, k, k)
    others = np.array([[j for j in range(k) if j != i] for i in range(k)])
    which, left = np.divmod(np.arange(len(sets) * k), k)
    step = max(1, CHUNK // (k * k))
    without = []
    for i in range(0, len(which), step):
        kept = others[left[i : i + step]]
        subsets = sets[which[i : i + step, None, None], kept[:, :, None], kept[:, None, :]]
        without.append(np.log(hill(spectrum(subsets, k - 1), q=1)))
    entropy = np.log(hill(spectrum(sets, k), q=1))
    corrected = k * entropy - (k - 1) * np.concatenate(without).reshape(-1, k).mean(axis=1)
    return np.asarray(np.exp(np.maximum(corrected, 0.0)).reshape(lead))
