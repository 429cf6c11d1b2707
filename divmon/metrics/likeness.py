"""How alike a prompt's completions are, from all their cosines: Vendi scores, nearest neighbours, repetition."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from divmon.errors import ConfigError
from divmon.metrics.base import Metric, MetricContext, Need, PerPrompt, Pooled
from divmon.metrics.overlap import blocks
from divmon.metrics.semantic import MAX_KERNEL, Idf, embeddings, frozen_idf, surface_kernel, surface_kernels
from divmon.metrics.spectrum import hill
from divmon.metrics.text import CHARS
from divmon.metrics.vendi import (
    CHUNK,
    LARGEST,
    checked_order,
    cosines,
    gram,
    inverse_mean,
    likeness_parts,
    spectrum,
    squared_likeness,
    vendi_1_log_jackknife,
    vendi_from_kernel,
)
from divmon.records import SampleBatch

MAX_JACKKNIFE = 256  # completions of one prompt up to which each is left out in turn: about a second
REPEATS_AT = 0.8  # mean cosine above which a prompt counts as repeating itself
_BAD = "an embedding is not finite or has length zero"


def _stacked(rows: Sequence[np.ndarray], score: Callable[[np.ndarray], np.ndarray], *, width: int = 1) -> np.ndarray:
    """float[P, width]: `score` on stacks of arrays of one shape; NaN for prompts of fewer than two completions."""
    values = np.full((len(rows), width), math.nan)
    for shape in dict.fromkeys(row.shape for row in rows if len(row) >= 2):
        where = [i for i, row in enumerate(rows) if row.shape == shape]
        step = max(1, CHUNK // (shape[0] * max(shape)))
        for i in range(0, len(where), step):
            part = where[i : i + step]
            found = score(np.stack([rows[j] for j in part])).reshape(len(part), -1)
            values[part, : found.shape[1]] = found
            values[part, found.shape[1] :] = np.where(np.isnan(found).any(axis=1, keepdims=True), math.nan, 0.0)
    return values


def _spectra(context: MetricContext) -> np.ndarray:
    """float[P, M]: eigenvalues of the embeddings' cosines over K, padded with zeros; made once a batch."""
    rows = embeddings(context)
    width = max((min(row.shape) for row in rows), default=0)

    def shares(stack: np.ndarray) -> np.ndarray:
        return spectrum(gram(stack), stack.shape[-2])

    return context.cached("vendi-spectra", lambda: _stacked(rows, shares, width=width))


def _result(context: MetricContext, values: np.ndarray, reason: str) -> PerPrompt:
    unknown = np.isnan(values)
    n = np.where(unknown, 0, [len(row) for row in context.batch.texts]).astype(int)
    details = {"encoder": context.encoder_name} if reason == _BAD else {}
    return PerPrompt(values, n, tuple(reason if bad else None for bad in unknown), details)


def vendi_score(batch: SampleBatch, context: MetricContext, *, q: float) -> PerPrompt:
    """Vendi score of order `q` of a prompt's completions in the space of an encoder; 1 to K, higher is more diverse.

    What moves it besides diversity: K (see `vendi`), and the encoder: most keep cosines of any two texts well above 0,
    so the score stays far below K. It is another reading of the cosines behind `semantic_distance`, not a second
    witness.

    Returns:
        float[P].

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("up", "down", "up", "down"),))
    >>> axes = lambda texts: np.array([[t == "up", t != "up"] for t in texts], dtype=float)
    >>> vendi_score(batch, MetricContext(batch, encoder=axes), q=1).values.round(9).tolist()
    [2.0]

    Source: as `vendi`.
    """
    return _result(context, hill(_spectra(context), q=checked_order(q)), _BAD)


def vendi_2(batch: SampleBatch, context: MetricContext) -> Pooled:
    """Vendi score of order 2 of a prompt's completions in the space of an encoder, unbiased at any K. Pooled.

    Between 1 and 10,000, higher is more diverse; see `vendi_2_unbiased`. What moves it besides diversity: the encoder,
    as for `vendi_score`, and the prompts that repeat themselves most.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("up", "down", "up"),))
    >>> axes = lambda texts: np.array([[t == "up", t != "up"] for t in texts], dtype=float)
    >>> result = vendi_2(batch, MetricContext(batch, encoder=axes))
    >>> round(float(result.combine(result.parts)), 9)
    3.0

    Source: as `vendi_2_unbiased`.
    """

    def likeness(stack: np.ndarray) -> np.ndarray:
        k = stack.shape[-2]
        return np.asarray((np.square(gram(stack)).sum(axis=(-1, -2)) - k) / (k * (k - 1)))

    values = np.clip(_stacked(embeddings(context), likeness)[:, 0], 0.0, 1.0)
    return Pooled(
        likeness_parts(values),
        inverse_mean,
        reason=f"no prompt has two completions to compare, or {_BAD}",
        additive=True,
    )


def vendi_1_jackknife(batch: SampleBatch, context: MetricContext) -> PerPrompt:
    """Vendi score of order 1 in the space of an encoder, with its bias from K reduced; see `vendi_1_log_jackknife`.

    1 or more, higher is more diverse, may exceed K. What moves it besides diversity: the encoder, and K a little. K
    eigendecompositions a prompt: prompts of more than `MAX_JACKKNIFE` completions are missing, and need it least.

    Returns:
        float[P].

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("up", "up", "up"),))
    >>> vendi_1_jackknife(batch, MetricContext(batch, encoder=lambda texts: np.ones((len(texts), 2)))).values.tolist()
    [1.0]

    Source: as `vendi_1_log_jackknife`.
    """
    rows = [row if len(row) <= MAX_JACKKNIFE else row[:0] for row in embeddings(context)]
    result = _result(context, _stacked(rows, lambda stack: vendi_1_log_jackknife(cosines(stack)))[:, 0], _BAD)
    if all(len(row) <= MAX_JACKKNIFE for row in batch.texts):
        return result
    many = f"more than {MAX_JACKKNIFE} completions"
    reasons = (many if len(row) > MAX_JACKKNIFE else why for row, why in zip(batch.texts, result.reasons, strict=True))
    return PerPrompt(result.values, result.n, tuple(reasons), result.details)


def surface_vendi_1(batch: SampleBatch, context: MetricContext) -> PerPrompt:
    """Vendi score of order 1 on the surface: cosines of TF-IDF of character 3-5-grams; 1 to K, higher is more diverse.

    What moves it besides diversity: K and length, and the reference whose idf is frozen, as for `tfidf_distance`.

    Returns:
        float[P].

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("a fox", "A  fox", "hens!", "hens!"),))
    >>> surface_vendi_1(batch, MetricContext(batch)).values.round(9).tolist()
    [2.0]

    Source: as `vendi`; the kernel as `tfidf_distance`.
    """
    scores = _stacked(surface_kernels(context), lambda stack: vendi_from_kernel(stack, q=1))
    return _result(context, scores[:, 0], f"needs 2 to {MAX_KERNEL} completions a prompt")


def _in_blocks(texts: tuple[str, ...], idf: Idf) -> float:
    """Mean squared cosine over the pairs within blocks: linear in K, and as unbiased as over all pairs."""
    parts = blocks(texts, most=MAX_KERNEL)
    values = [float(squared_likeness(surface_kernel(tuple(texts[j] for j in part), idf))) for part in parts]
    return float(np.average(values, weights=[len(part) * (len(part) - 1) for part in parts]))


def surface_vendi_2(batch: SampleBatch, context: MetricContext) -> Pooled:
    """Vendi score of order 2 on the surface, unbiased at any K: how many unrelated wordings completions are worth.

    Between 1 and 10,000, higher is more diverse. Pooled. What moves it besides diversity: length, a little, and the
    reference, as for `tfidf_distance`; the prompts that repeat themselves weigh most. Beyond 1,000 completions
    a prompt, pairs are compared within blocks of about 100.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("a fox", "A  fox", "hens!"),))
    >>> result = surface_vendi_2(batch, MetricContext(batch))
    >>> round(float(result.combine(result.parts)), 9)
    3.0

    Source: as `vendi_2_unbiased`; the kernel as `tfidf_distance`.
    """
    values = _stacked(surface_kernels(context), squared_likeness)[:, 0]
    for i, texts in enumerate(batch.texts):
        if len(texts) > MAX_KERNEL:
            values[i] = _in_blocks(texts, frozen_idf(context))
    return Pooled(
        likeness_parts(values), inverse_mean, reason="no prompt has two completions to compare", additive=True
    )


def nearest_similarity(batch: SampleBatch, context: MetricContext) -> PerPrompt:
    """Mean over a prompt's completions of the cosine to the nearest other one, in the space of an encoder.

    Between -1 and 1; higher is less diverse. What moves it besides diversity: K (among more completions the nearest is
    nearer, so compare at equal K), and the encoder.

    Returns:
        float[P].

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("up", "down", "up"),))
    >>> axes = lambda texts: np.array([[t == "up", t != "up"] for t in texts], dtype=float)
    >>> nearest_similarity(batch, MetricContext(batch, encoder=axes)).values.round(9).tolist()
    [0.666666667]

    Source: Clark and Evans (1954), Ecology 35(4), on cosines.
    """

    def nearest(stack: np.ndarray) -> np.ndarray:
        found = cosines(stack)
        diagonal = np.arange(found.shape[-1])
        found[..., diagonal, diagonal] -= math.inf
        return np.asarray(np.clip(found.max(axis=-1).mean(axis=-1), -1.0, 1.0))

    return _result(context, _stacked(embeddings(context), nearest)[:, 0], _BAD)


def intra_repetition(batch: SampleBatch, context: MetricContext, *, threshold: float = REPEATS_AT) -> PerPrompt:
    """Whether a prompt's completions repeat each other: 1 if their mean pairwise cosine is above `threshold`, else 0.

    Its mean over prompts is the share of prompts a model answers in much the same way each time, so higher is less
    diverse.

    What moves it besides diversity: the encoder. A threshold belongs to one encoder: 0.8 was named for
    text-embedding-3-small, and another encoder's cosines may all lie above it or all below. What happens far from the
    threshold does not show; `semantic_distance` has the whole curve.

    Returns:
        float[P], 0, 1 or NaN.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"), Probe("b", "?")), (("up", "up"), ("up", "down")))
    >>> axes = lambda texts: np.array([[t == "up", t != "up"] for t in texts], dtype=float)
    >>> intra_repetition(batch, MetricContext(batch, encoder=axes)).values.tolist()
    [1.0, 0.0]

    Source: Jiang et al. (2025), "Artificial Hivemind", arXiv:2510.22954.
    """

    def repeats(stack: np.ndarray) -> np.ndarray:
        k = stack.shape[-2]
        squares = np.square(stack).sum(axis=-1)  # 1, but for rounding and for vectors without direction
        cosine = (np.square(stack.sum(axis=-2)).sum(axis=-1) - squares.sum(axis=-1)) / (k * (k - 1))
        known = (np.isfinite(squares) & (squares > 0)).all(axis=-1)
        return np.where(known, cosine > threshold, math.nan)

    return _result(context, _stacked(embeddings(context), repeats)[:, 0], _BAD)


def intra_repetition_at(threshold: float) -> Metric:
    """`intra_repetition` at another threshold, for another encoder; the threshold is part of its signature.

    What moves it besides diversity: as `intra_repetition`.

    >>> intra_repetition_at(0.9).signature
    'threshold:0.9'

    Source: as `intra_repetition`.

    Raises:
        ConfigError: A threshold that is no cosine.
    """
    if not -1 <= threshold <= 1:
        raise ConfigError(f"A threshold of cosines lies between -1 and 1, not {threshold!r}.")
    return Metric(
        name="intra_repetition",
        fn=partial(intra_repetition, threshold=threshold),
        summary="Share of prompts answered in much the same way each time (mean cosine above a threshold).",
        family="semantic",
        direction="lower",
        needs=frozenset({"encoder"}),
        source="Jiang et al. 2025, arXiv:2510.22954",
        signature=f"threshold:{threshold:g}",
        standard=False,
    )


_ENCODER: frozenset[Need] = frozenset({"encoder"})
_VENDI: dict[str, Any] = {
    "family": "spectrum",
    "direction": "higher",
    "bounds": (1.0, math.inf),
    "unit": "completions",
    "source": "Friedman & Dieng 2023, arXiv:2210.02410; Pasarkar & Dieng 2024, arXiv:2310.12952",
}
_UNBIASED: dict[str, Any] = {**_VENDI, "bounds": (1.0, LARGEST), "scope": "pooled", "min_k": 1}
_PLAIN = {
    "vendi_0_5": (0.5, "How many entirely different completions a prompt's are worth in meaning, rare ones counting."),
    "vendi_1": (1.0, "How many entirely different completions a prompt's are worth in meaning (Vendi score)."),
    "vendi_inf": (math.inf, "One over the weight of the meaning that a prompt's completions share most."),
}
VENDI = tuple(
    Metric(name, partial(vendi_score, q=q), summary, needs=_ENCODER, signature=f"q:{q:g}", standard=q == 1, **_VENDI)
    for name, (q, summary) in _PLAIN.items()
)
VENDI_2 = Metric(
    name="vendi_2",
    fn=vendi_2,
    summary="How many entirely different completions a prompt's are worth in meaning, whatever K is (Vendi, order 2).",
    needs=_ENCODER,
    signature="q:2|unbiased",
    **_UNBIASED,
)
VENDI_1_JACKKNIFE = Metric(
    name="vendi_1_jackknife",
    fn=vendi_1_jackknife,
    summary="The Vendi score with most of its dependence on K taken away.",
    needs=_ENCODER,
    signature="q:1|log-jackknife",
    standard=False,
    **_VENDI,
)
SURFACE_VENDI_1 = Metric(
    name="surface_vendi_1",
    fn=surface_vendi_1,
    summary="How many entirely different wordings a prompt's completions are worth (Vendi score of n-grams).",
    signature=f"q:1|{CHARS}|idf:baseline|norm:l2",
    standard=False,
    **_VENDI,
)
SURFACE_VENDI_2 = Metric(
    name="surface_vendi_2",
    fn=surface_vendi_2,
    summary="How many entirely different wordings a prompt's completions are worth, whatever K is (Vendi, order 2).",
    signature=f"q:2|unbiased|pairs:all<={MAX_KERNEL}|{CHARS}|idf:baseline|norm:l2",
    standard=False,
    **_UNBIASED,
)
NEAREST_SIMILARITY = Metric(
    name="nearest_similarity",
    fn=nearest_similarity,
    summary="Mean cosine of a completion to the one most like it of the same prompt.",
    family="semantic",
    direction="lower",
    bounds=(-1.0, 1.0),
    needs=_ENCODER,
    source="Clark & Evans 1954, Ecology 35(4)",
    signature="norm:l2",
    standard=False,
)
INTRA_REPETITION = intra_repetition_at(REPEATS_AT)
LIKENESS = (
    *VENDI,
    VENDI_2,
    VENDI_1_JACKKNIFE,
    SURFACE_VENDI_1,
    SURFACE_VENDI_2,
    NEAREST_SIMILARITY,
    INTRA_REPETITION,
)
