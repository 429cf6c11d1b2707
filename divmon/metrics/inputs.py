"""Does the output still depend on the input? Diversity across prompts, and what a completion tells about its prompt.

A policy may keep its diversity within every prompt and yet say the same things to all of them (template collapse);
token entropy does not see that. Distance *across* prompts does, from completions alone. Scoring each completion of a
small block of prompts under every prompt of the block does it better: how often is the right prompt the likeliest
(`retrieval_accuracy`), and how many nats does a completion tell about its prompt (`mutual_information_bound`).
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from scipy.sparse import csr_array, vstack

from divmon.metrics.base import Metric, MetricContext, Pooled, Result
from divmon.metrics.semantic import Idf, embeddings, frozen_idf
from divmon.metrics.text import CHARS, MAX_ROW, char_ngrams
from divmon.records import SampleBatch

_ONE_PROMPT = "fewer than two prompts have completions"


def retrieval_accuracy(logprobs: np.ndarray, owner: np.ndarray) -> float:
    """Share of completions that are likelier under their own prompt than under every other one of the block.

    Between 0 and 1; 1/N is chance. A tie for first place among m prompts counts 1/m. What moves it besides input
    dependence: N (more prompts are harder to tell apart) and how alike the prompts of the block are.

    Args:
        logprobs: float[N, M], log p(completion j | prompt i), summed over tokens.
        owner: int[M], the prompt that completion j was drawn for.

    Returns:
        A float; NaN without a completion whose scores are all known (columns with NaN are left out).

    >>> retrieval_accuracy(np.log([[0.9, 0.2], [0.1, 0.8]]), np.array([0, 1]))
    1.0

    Source: nearest-neighbour retrieval; a proxy of input dependence as in RAGEN-2 (2026), arXiv:2604.06268.
    """
    scores, own = _scores(logprobs, owner)
    if not own.size:
        return math.nan
    best = scores == scores.max(axis=0)
    return float(np.mean(best[own, np.arange(len(own))] / best.sum(axis=0)))


def mutual_information_bound(logprobs: np.ndarray, owner: np.ndarray) -> float:
    """InfoNCE estimate, in nats, of the mutual information between prompt and completion: a lower bound.

    The mean over completions of log p(y | own x) / mean over the N prompts of p(y | x). 0 when completions do not
    depend on prompts, and never above log N: a block of 16 prompts cannot show more than 2.8 nats, whatever the truth.
    The bound holds in expectation when prompts are drawn alike and each has as many completions as any other; on one
    block the estimate may be negative.

    What moves it besides input dependence: N, and length (long completions reach the ceiling easily).

    Args:
        logprobs: float[N, M], log p(completion j | prompt i), summed over tokens; -inf is allowed.
        owner: int[M], the prompt that completion j was drawn for.

    Returns:
        A float; NaN without a completion whose scores are all known (columns with NaN are left out).

    >>> round(mutual_information_bound(np.log([[0.9, 1e-9], [1e-9, 0.9]]), np.array([0, 1])), 3)
    0.693

    Source: van den Oord et al. (2018), arXiv:1807.03748; Poole et al. (2019), arXiv:1905.06922.
    """
    scores, own = _scores(logprobs, owner)
    if not own.size:
        return math.nan
    top = scores.max(axis=0)
    with np.errstate(divide="ignore"):
        total = top + np.log(np.exp(scores - top).sum(axis=0))
    return float(np.mean(scores[own, np.arange(len(own))] - total) + math.log(len(scores)))


def _scores(logprobs: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns that can be used: all scores known, one of them finite."""
    scores, own = np.asarray(logprobs, dtype=float), np.asarray(owner, dtype=np.intp)
    if scores.ndim != 2 or own.shape != scores.shape[1:]:
        raise ValueError(f"logprobs are prompts x completions, and each completion has an owner; got {scores.shape}")
    if own.size and (own.min() < 0 or own.max() >= len(scores)):
        raise ValueError("an owner is no row of logprobs")
    kept = ~np.isnan(scores).any(axis=0) & ~np.isposinf(scores).any(axis=0) & np.isfinite(scores).any(axis=0)
    return scores[:, kept], own[kept]


def across(parts: np.ndarray) -> np.ndarray:
    """1 - mean dot product over pairs of prompts, from `parts` as the metrics below make them; float[...].

    `parts` is float[..., P, 2 + D]: a number naming the prompt (negative where it has no completions), one naming the
    space the vectors live in, and the mean of the unit vectors of its completions. A resample may hold a prompt twice;
    such pairs are left out. Prompts count alike whatever their K. NaN where no two prompts differ, and where vectors of
    different spaces are mixed.

    >>> float(across(np.array([[0, 7, 1.0, 0.0], [1, 7, 0.0, 1.0], [1, 7, 0.0, 1.0]])))
    1.0

    Source: the squared length of a sum is the sum of all dot products.
    """
    index, space = parts[..., 0], parts[..., 1]
    used = index >= 0
    vectors = np.where(used[..., None], parts[..., 2:], 0.0)
    same = (index[..., :, None] == index[..., None, :]) & used[..., None, :]
    alike = np.where(used, same.sum(axis=-1), 0)  # how often the prompt of this row is in the resample
    pairs = used.sum(axis=-1) ** 2 - alike.sum(axis=-1)
    total = vectors.sum(axis=-2)
    cosines = (total**2).sum(axis=-1) - (alike * (vectors**2).sum(axis=-1)).sum(axis=-1)
    low, high = (np.where(used, space, fill).T for fill in (math.inf, -math.inf))
    one_space = low.min(axis=0, initial=math.inf).T >= high.max(axis=0, initial=-math.inf).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((pairs > 0) & one_space, 1.0 - cosines / np.where(pairs > 0, pairs, 1), math.nan)


def _mean_unit(texts: tuple[str, ...], idf: Idf) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the unit TF-IDF vectors of `texts`: n-gram ids, uint64[U] ascending, and float[U]."""
    row = char_ngrams(texts)
    weights = row.counts * np.repeat(idf.of(row.grams), row.documents)
    norms = np.sqrt(np.bincount(row.owners, weights * weights, minlength=len(texts)))
    return row.grams, np.add.reduceat(weights / norms[row.owners], row.starts) / len(texts)


def _gram(rows: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """float[P, P]: dot products of sparse vectors."""
    kinds = np.sort(np.concatenate([grams for grams, _ in rows]))
    kinds = kinds[np.concatenate(([True], kinds[1:] != kinds[:-1]))]
    width = len(kinds)
    vectors = [
        csr_array((values, (np.zeros(len(grams), dtype=np.intp), np.searchsorted(kinds, grams))), shape=(1, width))
        for grams, values in rows
    ]
    stacked = vstack(vectors, format="csr")
    return np.asarray((stacked @ stacked.T).toarray())


def _coordinates(gram: np.ndarray) -> np.ndarray:
    """float[P, P]: vectors with exactly these dot products (up to rounding)."""
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def _located(p: int, kept: np.ndarray, vectors: np.ndarray, space: float) -> np.ndarray:
    """`parts` of `across` for P prompts, of which `kept` have vectors."""
    parts = np.zeros((p, 2 + (vectors.shape[1] if vectors.ndim == 2 else 0)))
    parts[:, 0], parts[:, 1] = -1.0, space
    parts[kept, 0] = kept
    if kept.size:
        parts[kept, 2:] = vectors
    return parts


def across_distance(batch: SampleBatch, context: MetricContext) -> Result:
    """1 - mean cosine over pairs of completions of *different* prompts, as TF-IDF of character 3-5-grams. Pooled.

    Between 0 and 1; higher means that prompts get different texts. It falls when outputs turn into templates that
    ignore the prompt, which distances within prompts need not show. The same space as `tfidf_distance`; every prompt
    counts alike.

    What moves it besides input dependence: how alike the probes are (a set on one subject scores lower), and shared
    formats. A fall within prompts to each one's own mode does not move it.

    Returns:
        Pooled. Its parts live in a space of this batch only: prompts can be resampled, but not swapped with those of
        another batch (that gives NaN).

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"), Probe("b", "?")), (("a fox", "a fox"), ("a fox", "hens!")))
    >>> result = across_distance(batch, MetricContext(batch))
    >>> round(float(result.combine(result.parts)), 3)
    0.5

    Source: across-input diversity, Kirk et al. (2024), arXiv:2310.06452, on TF-IDF vectors.
    """
    idf = frozen_idf(context)
    kept = np.array([i for i, row in enumerate(batch.texts) if 1 <= len(row) <= MAX_ROW], dtype=np.intp)
    vectors = _coordinates(_gram([_mean_unit(batch.texts[i], idf) for i in kept])) if kept.size else np.zeros((0, 0))
    parts = _located(len(batch.texts), kept, vectors, float(zlib.crc32(vectors.tobytes())))
    return Pooled(parts, lambda rows: np.clip(across(rows), 0.0, 1.0), reason=_ONE_PROMPT)


def semantic_across_distance(batch: SampleBatch, context: MetricContext) -> Result:
    """1 - mean cosine over pairs of completions of different prompts, in the space of a sentence encoder. Pooled.

    Between 0 and 2; higher means that prompts get answers of different meaning. What moves it besides input dependence:
    how alike the probes are, and the encoder, which is named in the signature.

    Returns:
        Pooled. Prompts whose embeddings are not all finite are left out.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"), Probe("b", "?")), (("up",), ("down",)))
    >>> axes = lambda texts: np.array([[t == "up", t != "up"] for t in texts], dtype=float)
    >>> result = semantic_across_distance(batch, MetricContext(batch, encoder=axes))
    >>> float(result.combine(result.parts))
    1.0

    Source: across-input diversity, Kirk et al. (2024), arXiv:2310.06452.
    """
    rows = embeddings(context)
    kept = np.array([i for i, row in enumerate(rows) if len(row) and np.isfinite(row).all()], dtype=np.intp)
    vectors = np.array([rows[i].mean(axis=0) for i in kept])
    parts = _located(len(rows), kept, vectors, 0.0)
    return Pooled(parts, lambda columns: np.clip(across(columns), 0.0, 2.0), reason=_ONE_PROMPT)


ACROSS_DISTANCE = Metric(
    name="across_distance",
    fn=across_distance,
    summary="Surface distance between completions of different prompts; falls when outputs turn into templates.",
    family="inputs",
    direction="higher",
    scope="pooled",
    min_k=1,
    source="Kirk et al. 2024, arXiv:2310.06452, on TF-IDF",
    signature=f"{CHARS}|idf:baseline|norm:l2",
    standard=False,
)

SEMANTIC_ACROSS_DISTANCE = Metric(
    name="semantic_across_distance",
    fn=semantic_across_distance,
    summary="1 - mean cosine of sentence embeddings between completions of different prompts.",
    family="inputs",
    direction="higher",
    bounds=(0.0, 2.0),
    scope="pooled",
    needs=frozenset({"encoder"}),
    min_k=1,
    source="Kirk et al. 2024, arXiv:2310.06452",
    signature="norm:l2",
    standard=False,
)
