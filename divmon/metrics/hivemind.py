"""Do different models say the same? Own completions against banked ones of other models, on the same prompts.

Everything here is measured with the embeddings it is given, and thresholds belong to an encoder: the 0.8 of the study
holds for OpenAI's text-embedding-3-small and for no other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from divmon.metrics.base import Encoder

NEAREST = 50
OWN = "own"  # the name of the policy's own completions among the models
_DIGITS = 9  # cosines that differ by less are equal
_SOURCE_BLOCK = 2048  # completions whose similarities to all others are held at once


@dataclass(frozen=True)
class Hivemind:
    """Own completions among those of other models.

    Attributes:
        inter: Model to float[P], mean cosine between own completions and that model's; NaN where one side has none.
        intra: float[P], mean cosine over the pairs of own completions.
        sources: float[P], distinct models among the nearest neighbours of a completion, over all models' completions.
        nearest: How many neighbours that is.
        repetition: Share of prompts whose `intra` exceeds the threshold; NaN without a threshold.
    """

    inter: Mapping[str, np.ndarray]
    intra: np.ndarray
    sources: np.ndarray
    nearest: int
    repetition: float


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length one; zero rows stay zero, and rows that are not finite stay so."""
    rows = np.asarray(vectors, dtype=float)
    if rows.ndim != 2:
        raise ValueError(f"embeddings of a prompt are completions x width, not of shape {rows.shape}")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return rows / np.where(norms == 0, 1.0, norms)


def inter_similarity(vectors_a: Sequence[np.ndarray], vectors_b: Sequence[np.ndarray]) -> np.ndarray:
    """Mean cosine over all pairs of one completion of A and one of B, for each prompt; float[P], -1 to 1.

    In closed form: the product of the two mean unit vectors. Higher means that the models agree more. What moves it
    besides agreement: the encoder, and how narrow the prompt is.

    Args:
        vectors_a: float[P][K, D].
        vectors_b: float[P][K', D] for the same prompts; K' may differ.

    Returns:
        float[P]; NaN where a side has no completions or an embedding is not finite.

    >>> inter_similarity([np.eye(2)], [np.array([[2.0, 0.0]])]).tolist()
    [0.5]

    Source: Jiang et al. (2025), arXiv:2510.22954 (inter-model similarity).
    """
    means = [
        (_unit(a).mean(axis=0), _unit(b).mean(axis=0)) if len(a) and len(b) else (np.full(1, math.nan),) * 2
        for a, b in zip(vectors_a, vectors_b, strict=True)
    ]
    return _bounded([float((a * b).sum()) for a, b in means])


def intra_similarity(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Mean cosine over the pairs of one model's completions, for each prompt; float[P], NaN for fewer than two.

    One minus `semantic_distance`. What moves it besides repetition: the encoder, and how narrow the prompt is.

    >>> intra_similarity([np.eye(2), np.ones((3, 2))]).round(9).tolist()
    [0.0, 1.0]

    Source: Jiang et al. (2025), arXiv:2510.22954 (intra-model repetition).
    """
    found = []
    for vectors_p in vectors:
        k = len(vectors_p)
        if k < 2:
            found.append(math.nan)
            continue
        unit = _unit(vectors_p)
        found.append(float((unit.sum(axis=0) ** 2).sum() - (unit**2).sum()) / (k * (k - 1)))
    return _bounded(found)


def _bounded(values: list[float]) -> np.ndarray:
    found = np.array(values, dtype=float)
    return np.asarray(np.clip(np.where(np.isfinite(found), found, math.nan), -1.0, 1.0))


def intra_repetition_share(similarity: np.ndarray, threshold: float) -> float:
    """Share of prompts whose mean similarity exceeds `threshold`; 0 to 1, higher is more repetition.

    The unit is the prompt's pool, not the pair. What moves it: the threshold, which holds for one encoder only.

    Args:
        similarity: float[P], as `intra_similarity` gives it; NaN are left out.
        threshold: No default on purpose.

    Returns:
        A float; NaN where every prompt is.

    >>> intra_repetition_share(np.array([0.9, 0.7, np.nan]), 0.8)
    0.5

    Source: Jiang et al. (2025), arXiv:2510.22954: 79 % above 0.8 with text-embedding-3-small.
    """
    known = np.asarray(similarity, dtype=float)
    known = known[~np.isnan(known)]
    return float((known > threshold).mean()) if known.size else math.nan


def source_models(vectors: Mapping[str, Sequence[np.ndarray]], *, nearest: int = NEAREST) -> np.ndarray:
    """Distinct models among the `nearest` neighbours of a completion, averaged over the prompt's pool; float[P].

    Neighbours are by cosine within the prompt's pool over all models; a completion is not its own neighbour, as in the
    released code. Between 1 (each model keeps to itself) and the number of models. Where the pool is no larger than
    `nearest`, all others are neighbours. Where several are equally near, as copies of one text are, the number is the
    one expected when they are taken at random: whose copies come first must not matter.

    What moves it besides agreement: `nearest` against the completions a model has (beyond K - 1 there must be others),
    and the number of models. Compare at equal sizes only.

    Args:
        vectors: Model to float[P][K, D], the same prompts for each.
        nearest: Neighbours of each completion.

    Returns:
        float[P]; NaN where the pool has fewer than two completions or an embedding is not finite.

    >>> pool = {"a": [np.array([[1.0, 0.0], [0.9, 0.1]])], "b": [np.array([[0.0, 1.0], [0.1, 0.9]])]}
    >>> source_models(pool, nearest=1).tolist(), source_models(pool, nearest=3).tolist()
    ([1.0], [2.0])

    Source: Jiang et al. (2025), arXiv:2510.22954 (about 8 of 25 models at 50 neighbours).
    """
    if nearest < 1:
        raise ValueError(f"a completion has at least one neighbour, not {nearest}")
    pools = zip(*vectors.values(), strict=True)
    return np.array([_sources([_unit(rows) for rows in pool if len(rows)], nearest) for pool in pools], dtype=float)


def _sources(pool: list[np.ndarray], nearest: int) -> float:
    total = sum(map(len, pool))
    if total < 2:
        return math.nan
    unit = np.concatenate(pool)
    if not np.isfinite(unit).all():
        return math.nan
    member = np.repeat(np.eye(len(pool)), [len(rows) for rows in pool], axis=0)
    found = 0.0
    for i in range(0, total, _SOURCE_BLOCK):
        near = unit[i : i + _SOURCE_BLOCK] @ unit.T
        rows = np.arange(len(near))
        near[rows, i + rows] = -math.inf
        found += float(distinct_models(near, member, min(nearest, total - 1)).sum())
    return found / total


def distinct_models(near: np.ndarray, member: np.ndarray, n: int) -> np.ndarray:
    """Distinct models among the `n` nearest of each row, float[B]: expected, where equally near ones must be drawn.

    What moves it besides agreement: `n`, and the number of models.

    Args:
        near: float[B, N], cosines; -inf for a completion itself. They count as equal where they differ by under 1e-9.
        member: float[N, M], 1 where a completion is a model's.
        n: At most N - 1.

    >>> copies = np.full((1, 4), 1.0)
    >>> distinct_models(copies, np.repeat(np.eye(2), 2, axis=0), 2).round(3).tolist()
    [1.667]

    Source: a convention of divmon for ties, which Jiang et al. (2025), arXiv:2510.22954, leave open.
    """
    rounded = np.round(near, _DIGITS)
    last = -np.partition(-rounded, n - 1, axis=1)[:, n - 1 : n]
    nearer, tied = (rounded > last).astype(float) @ member, (rounded == last).astype(float) @ member
    left = n - nearer.sum(axis=1, keepdims=True)  # drawn among the tied ones
    every = tied.sum(axis=1, keepdims=True)
    others = every - tied
    with np.errstate(invalid="ignore"):
        logs = _log_choose(others, left) - _log_choose(every, left)
    missed = np.where(others >= left, np.exp(np.where(others >= left, logs, 0.0)), 0.0)
    return np.asarray(np.where(nearer > 0, 1.0, 1.0 - missed).sum(axis=1))


def _log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Log of the binomial coefficient; NaN where k exceeds n."""
    return np.asarray(np.where(n >= k, gammaln(n + 1) - gammaln(k + 1) - gammaln(np.maximum(n - k, 0) + 1), math.nan))


def hivemind(
    own_texts: Sequence[Sequence[str]],
    banked: Mapping[str, Sequence[Sequence[str]]],
    encoder: Encoder,
    *,
    nearest: int = NEAREST,
    threshold: float | None = None,
) -> Hivemind:
    """Own completions among banked ones of other models, from texts.

    What moves it besides agreement: the encoder, decoding, and the prompts; hold all three fixed.

    Args:
        own_texts: P x K completions of the policy.
        banked: Other models' names to P x K' completions of the same prompts, in the same order.
        encoder: Texts to float[N, D]; called once, on the different texts.
        nearest: For `source_models`.
        threshold: For `intra_repetition_share`; it belongs to the encoder.

    >>> axes = lambda texts: np.array([[t == "up", t != "up"] for t in texts], dtype=float)
    >>> result = hivemind([["up", "up"]], {"other": [["up", "down"]]}, axes, nearest=1, threshold=0.8)
    >>> result.inter["other"].tolist(), result.intra.tolist(), result.repetition
    ([0.5], [1.0], 1.0)

    Source: Jiang et al. (2025), arXiv:2510.22954.

    Raises:
        ValueError: A banked model has another number of prompts, is called "own", or the encoder returns another shape.
    """
    if OWN in banked:
        raise ValueError(f"{OWN!r} names the policy's own completions; call the banked model something else")
    pools = {OWN: own_texts, **banked}
    wrong = [name for name, rows in pools.items() if len(rows) != len(own_texts)]
    if wrong:
        raise ValueError(f"there are {len(own_texts)} prompts, but {wrong[0]!r} has {len(pools[wrong[0]])}")
    at: dict[str, int] = {}
    index = {name: [[at.setdefault(text, len(at)) for text in row] for row in rows] for name, rows in pools.items()}
    found = np.asarray(encoder(list(at)), dtype=float) if at else np.zeros((0, 1))
    if found.ndim != 2 or len(found) != len(at):
        raise ValueError(f"the encoder returned shape {found.shape} for {len(at)} texts; it must be (texts, width)")
    vectors = {name: [found[np.array(row, dtype=np.intp)] for row in rows] for name, rows in index.items()}
    intra = intra_similarity(vectors[OWN])
    return Hivemind(
        inter={name: inter_similarity(vectors[OWN], vectors[name]) for name in banked},
        intra=intra,
        sources=source_models(vectors, nearest=nearest),
        nearest=nearest,
        repetition=math.nan if threshold is None else intra_repetition_share(intra, threshold),
    )
