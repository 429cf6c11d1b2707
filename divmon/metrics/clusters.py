"""Clusters of meaning: which completions lie close together in the space of an encoder, whatever order they came in."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from scipy.sparse.csgraph import connected_components

from divmon.errors import ConfigError
from divmon.metrics.base import Metric, MetricContext, Pooled
from divmon.metrics.semantic import embeddings
from divmon.metrics.spectrum import collision_unbiased
from divmon.metrics.vendi import cosines
from divmon.records import SampleBatch

ALIKE_AT = 0.85  # where MiniLM agrees best with people on 100 pairs that NoveltyBench had labelled (70 % of them)
_ROUNDING = 1e-9  # the cosine of a text with itself is 1 only up to rounding


def canonical(labels: np.ndarray) -> np.ndarray:
    """`labels` renamed to 0, 1, 2, ... in the order in which they first appear; int64[K].

    >>> canonical(np.array([7, 3, 7, 9])).tolist()
    [0, 1, 0, 2]
    """
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[inverse.reshape(-1)])


def _checked(similarity: np.ndarray) -> np.ndarray:
    numbers = np.asarray(similarity, dtype=float)
    if numbers.ndim != 2 or numbers.shape[0] != numbers.shape[1] or not np.isfinite(numbers).all():
        raise ValueError(f"similarities must be finite, of shape (K, K), not {numbers.shape}")
    return np.asarray(np.maximum(numbers, numbers.T))


def components(similarity: np.ndarray, *, threshold: float) -> np.ndarray:
    """Clusters joined by chains: two items are together if steps of similarity at least `threshold` lead across.

    What moves it besides likeness: chains. One item between two groups makes them one, more often at large K.

    Args:
        similarity: float[K, K]; of the two directions the larger counts.
        threshold: The smallest similarity that joins.

    Returns:
        int64[K], labels in the order of first appearance; the partition does not depend on the order of items.

    >>> components(np.array([[1, 0.9, 0.1], [0.9, 1, 0.9], [0.1, 0.9, 1]]), threshold=0.8).tolist()
    [0, 0, 0]

    Source: single linkage, cut at a height.
    """
    joined = _checked(similarity) >= threshold - _ROUNDING
    return canonical(connected_components(joined, directed=False)[1])


def average_linkage(similarity: np.ndarray, *, threshold: float) -> np.ndarray:
    """Clusters that are alike on average: the closest two are joined while their mean similarity reaches `threshold`.

    What moves it besides likeness: nothing like the chains of `components`. Clusters that tie for the closest are all
    joined at once, where textbooks leave the choice to the order of items; without ties it is their clustering.

    Args:
        similarity: float[K, K]; of the two directions the larger counts.
        threshold: The smallest mean similarity that joins two clusters.

    Returns:
        int64[K], labels in the order of first appearance; the partition does not depend on the order of items.

    >>> average_linkage(np.array([[1, 0.95, 0.1], [0.95, 1, 0.9], [0.1, 0.9, 1]]), threshold=0.8).tolist()
    [0, 0, 1]

    Source: Sokal and Michener (1958), UPGMA; ties after Fernandez and Gomez (2008), Journal of Classification 25.
    """
    sums = _checked(similarity)
    sizes, labels = np.ones(len(sums)), np.arange(len(sums))
    while len(sizes) > 1:
        means = sums / (sizes[:, None] * sizes[None, :])
        np.fill_diagonal(means, -math.inf)
        best = means.max(axis=1) - _ROUNDING
        # Pairs that are each other's closest may join in one round: no later join would have come between them.
        mutual = (means >= best[:, None]) & (means >= best[None, :]) & (means >= threshold - _ROUNDING)
        if not mutual.any():
            break
        joined = connected_components(mutual, directed=False)[1]
        order = np.argsort(joined, kind="stable")
        starts = np.searchsorted(joined[order], np.arange(joined.max() + 1))
        rows = np.add.reduceat(sums[np.ix_(order, order)], starts, axis=0)
        sums, sizes = np.add.reduceat(rows, starts, axis=1), np.add.reduceat(sizes[order], starts)
        labels = joined[labels]
    return canonical(labels)


def _effective(parts: np.ndarray) -> np.ndarray:
    """float[..., P, 3] (a coincidence, whether it is known, pairs) to the effective number."""
    sums = np.asarray(parts, dtype=float).sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1.0 / np.maximum(sums[..., 0] / sums[..., 1], 1.0 / (sums[..., 2] + 1.0)))


def semantic_clusters(batch: SampleBatch, context: MetricContext, *, threshold: float = ALIKE_AT) -> Pooled:
    """Effective number of clusters of meaning among a prompt's completions, 1 or more, higher is more diverse. Pooled.

    One over the mean over prompts of the unbiased probability that two completions of a prompt share a cluster (Hill
    number of order 2), so it does not grow with K. Clusters are those of `average_linkage` on cosines. Where no two
    completions share one it is the number of pairs compared plus one, the most such a sample can tell.

    What moves it besides diversity: the threshold, which belongs to one encoder. 0.85 was chosen for MiniLM; under an
    encoder whose cosines are all higher, everything is one cluster. A policy that moves within a cluster does not move
    it.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("up", "down", "up"),))
    >>> axes = lambda texts: np.array([[t == "up", t != "up"] for t in texts], dtype=float)
    >>> result = semantic_clusters(batch, MetricContext(batch, encoder=axes))
    >>> round(float(result.combine(result.parts)), 9)
    3.0

    Source: Hill (1973), Ecology 54(2), by Simpson's (1949) unbiased estimator.
    """
    parts = np.zeros((len(batch.probes), 3))
    for i, row in enumerate(embeddings(context)):
        similarity, k = cosines(row), len(row)
        if k < 2 or not np.isfinite(similarity).all():
            continue
        labels = average_linkage(similarity, threshold=threshold)
        parts[i] = collision_unbiased(np.bincount(labels)), 1.0, k * (k - 1) / 2
    reason = "no prompt has two completions to compare, or an embedding is not finite or has length zero"
    return Pooled(parts, _effective, reason=reason, additive=True)


def semantic_clusters_at(threshold: float) -> Metric:
    """`semantic_clusters` at another threshold, for another encoder; the threshold is part of its signature.

    What moves it besides diversity: as `semantic_clusters`.

    >>> semantic_clusters_at(0.7).signature
    'threshold:0.7|linkage:average'

    Source: as `semantic_clusters`.

    Raises:
        ConfigError: A threshold that is no cosine.
    """
    if not -1 <= threshold <= 1:
        raise ConfigError(f"A threshold of cosines lies between -1 and 1, not {threshold!r}.")
    return Metric(
        name="semantic_clusters",
        fn=partial(semantic_clusters, threshold=threshold),
        summary="How many different meanings a prompt's completions really use: clusters of sentence embeddings.",
        family="semantic",
        direction="higher",
        bounds=(1.0, math.inf),
        unit="clusters",
        scope="pooled",
        needs=frozenset({"encoder"}),
        min_k=1,
        source="Hill 1973, Ecology 54(2); Simpson 1949, Nature 163",
        signature=f"threshold:{threshold:g}|linkage:average",
        standard=False,
    )


SEMANTIC_CLUSTERS = semantic_clusters_at(ALIKE_AT)
