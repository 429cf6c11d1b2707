"""The set-level diversity reward: a completion earns more, the fewer of its group are like it.

With G completions of a prompt and f of them in a completion's cluster (itself included), its reward is multiplied by
``max((G - f) / (G - 1), floor)``: 1 alone in its cluster, the floor when all G share one.

Source: DARLING, arXiv:2509.02534 (2025), whose floor is 0.1. There, a classifier says what is alike, and wrong
completions count too; here, structure or wording says it, and by default only correct completions count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

from divmon.metrics.answers import extract_answer
from divmon.metrics.structure import classify
from divmon.metrics.text import char_ngrams

Labeller = Callable[[str], Sequence[str]]


def factors(clusters: np.ndarray, counted: np.ndarray, *, floor: float = 0.1, size: int | None = None) -> np.ndarray:
    """What the reward of each completion of some groups is multiplied by.

    Args:
        clusters: int[..., G], the cluster of each completion of a group.
        counted: bool[..., G], completions that count; the factor of others is 1.
        floor: Of a completion like all others.
        size: G in the formula, when it is not the last axis's length.

    Returns:
        float[..., G] between `floor` and 1.

    >>> factors(np.array([0, 0, 0, 1]), np.array([True, True, False, True])).round(3).tolist()
    [0.667, 0.667, 1.0, 1.0]
    """
    g = clusters.shape[-1] if size is None else size
    same = (clusters[..., :, None] == clusters[..., None, :]) & counted[..., None, :]
    alike = same.sum(axis=-1)
    return np.where(counted, np.maximum((g - alike) / max(1, g - 1), floor), 1.0)


def shaped(rewards: np.ndarray, factor: np.ndarray, *, weight: float) -> np.ndarray:
    """`rewards` multiplied by `factor`, the part `weight` of the way; those that are not above 0 stay as they are.

    A negative reward times a factor below 1 would rise, so that being like the others would pay.

    >>> shaped(np.array([1.0, -1.0]), np.array([0.5, 0.5]), weight=0.5).tolist()
    [0.75, -1.0]
    """
    return np.where(rewards > 0, rewards * (1 - weight * (1 - factor)), rewards)


def clusters(
    texts: Sequence[str], by: str, *, classifier: Labeller | None = None, similarity: float = 0.5
) -> np.ndarray:
    """int[G]: which completions of one group are alike, in the sense of `by` (see `DiversityRewardSettings`).

    What moves it besides diversity: with "formats", what the classifier calls a format; with "answer", nothing but the
    answer, which is one and the same for correct completions; with "tfidf", chains (a is like b, b like c, so all three
    are one cluster).

    >>> clusters(["it is 4", "so: 5", "It is  4"], "answer").tolist()
    [0, 1, 0]
    >>> clusters(["one two three", "one two three four", "seven"], "tfidf").tolist()
    [0, 0, 1]
    """
    if by == "tfidf":
        return components(texts, similarity=similarity)
    keys: list[object]
    if by == "formats":
        label = classifier or classify
        keys = [next(iter(label(text)), "") for text in texts]
    elif by == "answer":
        keys = [extract_answer(text) for text in texts]
        keys = [("", i) if key is None else key for i, key in enumerate(keys)]  # no answer is like no other
    else:
        keys = [" ".join(text.split()) for text in texts]
    at: dict[object, int] = {}
    return np.array([at.setdefault(key, len(at)) for key in keys], dtype=np.intp)


def components(texts: Sequence[str], *, similarity: float) -> np.ndarray:
    """int[G]: connected components of completions whose TF-IDF cosine (character 3-5-grams) is `similarity` or more.

    The document frequencies are those of the group itself. Texts too short for an n-gram are alike when equal.
    """
    row = char_ngrams(tuple(texts))
    g = len(texts)
    if not row.grams.size:
        return np.zeros(g, dtype=np.intp)
    idf = np.log((1 + g) / (1 + row.documents)) + 1
    weights = row.counts * np.repeat(idf, row.documents)
    columns = np.repeat(np.arange(len(row.grams)), row.documents)
    norms = np.sqrt(np.bincount(row.owners, weights * weights, minlength=g))
    matrix = sparse.csr_matrix((weights / norms[row.owners], (row.owners, columns)), shape=(g, len(row.grams)))
    close = (matrix @ matrix.T).toarray() >= similarity - 1e-9
    return np.asarray(sparse.csgraph.connected_components(close, directed=False)[1], dtype=np.intp)
