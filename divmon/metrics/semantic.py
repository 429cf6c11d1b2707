"""Distance between a prompt's completions: of their surface (character n-grams) and of their meaning (an encoder).

Both are one minus the mean cosine over all pairs. A mean over pairs does not drift with K, and the sum of the vectors
gives it without looking at any pair: the squared length of the sum is the number of completions plus twice the sum of
the pairs' cosines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from divmon.metrics.base import Metric, MetricContext, PerPrompt, Result, per_prompt
from divmon.metrics.text import CHARS, MAX_ROW, CharRow, char_ngrams
from divmon.records import SampleBatch

_PART = 1024  # completions whose n-grams are held at once while fitting
MAX_KERNEL = 1000  # completions of one prompt up to which all pairs are kept
_PENDING = 4_000_000  # n-grams held before they are merged
_SMALL_K = 32  # up to here all pairs cost less than finding the n-grams, so they are kept for whoever asks
_BLOCK = 1 << 16  # n-grams held dense at once


@dataclass(frozen=True, slots=True)
class Idf:
    """Inverse document frequencies, fitted once on the baseline's completions and frozen.

    Attributes:
        grams: uint64[V], n-gram ids seen at the baseline, ascending.
        weights: float[V], log((1 + N) / (1 + df)) + 1.
        unseen: The weight of every other n-gram, log(1 + N) + 1 (the same formula at df = 0).
    """

    grams: np.ndarray
    weights: np.ndarray
    unseen: float

    def of(self, grams: np.ndarray) -> np.ndarray:
        """float[U]: the weights of `grams` (uint64[U], ascending)."""
        if not self.grams.size:
            return np.full(len(grams), self.unseen)
        at = np.minimum(np.searchsorted(self.grams, grams), self.grams.size - 1)
        return np.where(self.grams[at] == grams, self.weights[at], self.unseen)


def _merged(grams: list[np.ndarray], counts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    ids, numbers = np.concatenate(grams), np.concatenate(counts)
    order = np.argsort(ids)
    ids, numbers = ids[order], numbers[order]
    first = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1])))
    return ids[first], np.add.reduceat(numbers, first)


def _parts(batch: SampleBatch) -> Iterable[CharRow]:
    texts = [text for row in batch.texts for text in row]
    return (char_ngrams(texts[i : i + _PART]) for i in range(0, len(texts), _PART))


def fit_idf(batch: SampleBatch) -> Idf:
    """Smoothed inverse document frequencies of character 3-5-grams; every completion of `batch` is a document.

    What moves it: the probes and the policy the batch comes from, which is why it is fitted on the baseline alone.

    >>> from divmon.records import Probe
    >>> idf = fit_idf(SampleBatch(0, (Probe("a", "?"),), (("abc", "abd"),)))
    >>> idf.weights.round(3).tolist(), round(idf.unseen, 3)
    ([1.405, 1.405], 2.099)

    Source: scikit-learn's TfidfTransformer with ``smooth_idf=True``.
    """
    grams: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    for part in _parts(batch):
        grams.append(part.grams)
        counts.append(part.documents)
        if sum(map(len, grams)) > _PENDING:
            ids, numbers = _merged(grams, counts)
            grams, counts = [ids], [numbers]
    n = sum(len(row) for row in batch.texts)
    if not grams:
        return Idf(np.zeros(0, np.uint64), np.zeros(0), math.log(1 + n) + 1)
    ids, numbers = _merged(grams, counts)
    return Idf(ids, np.log((1 + n) / (1 + numbers)) + 1, math.log(1 + n) + 1)


def _mean_cosine(total: np.ndarray, squares: float, k: int) -> float:
    """Mean cosine over pairs, from the sum of k vectors and the sum of their squared lengths (k, but for rounding)."""
    return (float(np.sum(total * total)) - squares) / (k * (k - 1))  # not `@`: it would wake BLAS threads


@dataclass(frozen=True, slots=True)
class Surface:
    """One prompt's completions as TF-IDF of character n-grams.

    Attributes:
        distance: 1 - mean cosine over pairs; NaN for fewer than 2 or more than `MAX_ROW` completions.
        kernel: float[K, K], cosines of all pairs, ones on the diagonal; None until asked for where K is large.
    """

    distance: float
    kernel: np.ndarray | None


def _unit(texts: tuple[str, ...], idf: Idf) -> tuple[CharRow, np.ndarray]:
    """The n-grams of `texts`, and float[E]: the entries of their vectors, scaled to length one."""
    row = char_ngrams(texts)
    weights = row.counts * np.repeat(idf.of(row.grams), row.documents)
    norms = np.sqrt(np.bincount(row.owners, weights * weights, minlength=len(texts)))
    return row, weights / norms[row.owners]


def _kernel(row: CharRow, unit: np.ndarray, k: int) -> np.ndarray:
    kernel = np.zeros((k, k))
    if k > _SMALL_K:
        vectors = sparse.csc_array((unit, row.owners, np.append(row.starts, len(unit))), shape=(k, len(row.grams)))
        kernel += (vectors @ vectors.T).toarray()
    else:
        grams = np.repeat(np.arange(len(row.grams)), row.documents)
        for i in range(0, len(row.grams), _BLOCK):
            first, last = np.searchsorted(grams, (i, i + _BLOCK))
            dense = np.zeros((k, min(_BLOCK, len(row.grams) - i)))
            dense[row.owners[first:last], grams[first:last] - i] = unit[first:last]
            kernel += dense @ dense.T
    np.fill_diagonal(kernel, 1.0)
    return np.clip(kernel, 0.0, 1.0)


def _surface(texts: tuple[str, ...], idf: Idf) -> Surface:
    k = len(texts)
    if not 2 <= k <= MAX_ROW:
        return Surface(math.nan, None)
    row, unit = _unit(texts, idf)
    cosine = _mean_cosine(np.add.reduceat(unit, row.starts), float(np.sum(unit * unit)), k)
    distance = float(np.clip(1.0 - cosine, 0.0, 1.0))
    return Surface(distance, _kernel(row, unit, k) if k <= _SMALL_K else None)


def frozen_idf(context: MetricContext) -> Idf:
    """The inverse document frequencies of the baseline, fitted once."""
    reference = context.reference
    fit = reference.cached("char-idf-fit", lambda: lambda: fit_idf(reference.batch))
    return reference.cached("char-idf", fit)


def fix_idf(context: MetricContext, fit: Callable[[], Idf]) -> None:
    """Let this batch, a part of a stream, be weighted by what `fit` gives (called only when a metric asks)."""
    context.reference.cached("char-idf-fit", lambda: fit)


def _surfaces(context: MetricContext) -> list[Surface]:
    """One `Surface` a prompt, made once a batch."""
    idf = frozen_idf(context)
    return context.cached("surface", lambda: [_surface(row, idf) for row in context.batch.texts])


def surface_kernel(texts: tuple[str, ...], idf: Idf) -> np.ndarray:
    """float[K, K]: cosines of all pairs of `texts`, as `surface_kernels` has them for a batch."""
    return _kernel(*_unit(texts, idf), len(texts))


def surface_kernels(context: MetricContext) -> list[np.ndarray]:
    """Cosines of all pairs of a prompt's completions as TF-IDF of character 3-5-grams, made once a batch.

    What moves it besides the texts: the idf, which is the baseline's and frozen, as in `tfidf_distance`.

    Returns:
        P arrays float[K, K], symmetric, between 0 and 1, ones on the diagonal; float[0, 0] for fewer than 2 or more
        than `MAX_KERNEL` completions.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("a fox", "A  fox", "hens!"),))
    >>> surface_kernels(MetricContext(batch))[0].round(9).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    Source: as `tfidf_distance`.
    """
    idf = frozen_idf(context)

    def kernel(texts: tuple[str, ...], surface: Surface) -> np.ndarray:
        if surface.kernel is not None:
            return surface.kernel
        return surface_kernel(texts, idf) if 2 <= len(texts) <= MAX_KERNEL else np.zeros((0, 0))

    pairs = zip(context.batch.texts, _surfaces(context), strict=True)
    return context.cached("surface-kernels", lambda: [kernel(texts, surface) for texts, surface in pairs])


def tfidf_distance(batch: SampleBatch, context: MetricContext) -> Result:
    """Surface distance: 1 - mean cosine over a prompt's pairs of completions, as TF-IDF of character 3-5-grams.

    Between 0 (all the same) and 1 (no n-gram in common); higher is more diverse. Case and runs of white space are
    ignored. Two texts without an n-gram (under three characters) have cosine 1 if they are equal, as two empty ones
    are, else 0; their cosine with longer texts is 0.

    What moves it besides diversity: length, a little (longer texts share more), and the reference: idf is fitted on
    the baseline's completions and frozen, so that later numbers are comparable. It sees wording, not meaning: a
    paraphrase counts as different. It does not drift with K.

    Returns:
        float[P].

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("a fox", "A  fox", "hens!"),))
    >>> tfidf_distance(batch, MetricContext(batch)).values.round(3).tolist()
    [0.667]

    Source: Salton and Buckley (1988); equals scikit-learn's TfidfVectorizer(analyzer="char", ngram_range=(3, 5)).
    """
    rows = _surfaces(context)
    return per_prompt(batch, lambda i: rows[i].distance, reason=f"needs 2 to {MAX_ROW} completions")


def embeddings(context: MetricContext) -> list[np.ndarray]:
    """The encoder's vectors, scaled to length one, float[K, D] for each prompt; made once a batch.

    The encoder is called once, on the different texts. A vector of length zero stays zero; one that is not finite
    stays so and makes its prompt's value missing.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("xx", "y"),))
    >>> embeddings(MetricContext(batch, encoder=lambda texts: np.array([[len(t), 0.0] for t in texts])))[0].tolist()
    [[1.0, 0.0], [1.0, 0.0]]

    Source: a convention of divmon.
    """
    return context.cached("embeddings", lambda: _embed(context))


def _embed(context: MetricContext) -> list[np.ndarray]:
    if context.encoder is None:
        raise ValueError("no encoder: pass encoder=")
    at: dict[str, int] = {}
    index = [[at.setdefault(text, len(at)) for text in row] for row in context.batch.texts]
    vectors = np.asarray(context.encoder(list(at)), dtype=float) if at else np.zeros((0, 1))
    if vectors.ndim != 2 or len(vectors) != len(at):
        raise ValueError(f"the encoder returned shape {vectors.shape} for {len(at)} texts; it must be (texts, width)")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        unit = np.where(norms > 0, vectors / np.where(norms > 0, norms, 1.0), vectors)
    return [unit[np.array(row, dtype=np.intp)] for row in index]


def semantic_distance(batch: SampleBatch, context: MetricContext) -> Result:
    """1 - mean cosine over a prompt's pairs of completions, in the space of a sentence encoder; higher is more diverse.

    Between 0 and 2 (in practice under 1). What moves it besides diversity: decoding (11 % by itself in one study), the
    encoder, which is therefore named in the signature, and where it stops reading (MiniLM: 256 tokens). It does not
    drift with K.

    Returns:
        float[P]; NaN where an embedding is not finite. ``details["encoder"]`` names the encoder.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("up", "down"),))
    >>> axes = lambda texts: np.array([[t == "up", t != "up"] for t in texts], dtype=float)
    >>> semantic_distance(batch, MetricContext(batch, encoder=axes)).values.tolist()
    [1.0]

    Source: Kirk et al. (2024), arXiv:2310.06452 (per-input SBERT diversity).
    """
    rows = embeddings(context)

    def value(i: int) -> float:
        row, k = rows[i], len(rows[i])
        if k < 2:
            return math.nan
        cosine = _mean_cosine(row.sum(axis=0), float(np.sum(row * row)), k)
        return float(np.clip(1.0 - cosine, 0.0, 2.0))  # NaN stays NaN

    result = per_prompt(batch, value, reason="an embedding is not finite")
    return PerPrompt(result.values, result.n, result.reasons, {"encoder": context.encoder_name})


TFIDF_DISTANCE = Metric(
    name="tfidf_distance",
    fn=tfidf_distance,
    summary="Surface distance: 1 - mean cosine of character n-gram TF-IDF over a prompt's pairs of completions.",
    family="semantic",
    direction="higher",
    source="Salton & Buckley 1988; scikit-learn TfidfVectorizer",
    signature=f"{CHARS}|idf:baseline|norm:l2",
)

SEMANTIC_DISTANCE = Metric(
    name="semantic_distance",
    fn=semantic_distance,
    summary="1 - mean cosine of sentence embeddings over a prompt's pairs of completions.",
    family="semantic",
    direction="higher",
    bounds=(0.0, 2.0),
    needs=frozenset({"encoder"}),
    source="Kirk et al. 2024, arXiv:2310.06452",
    signature="norm:l2",
)
