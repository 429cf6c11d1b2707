"""How far a policy's texts are from human ones, in the six dimensions of `divmon.metrics.human`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from divmon.metrics.base import Metric, MetricContext, Pooled, Result, missing
from divmon.metrics.human import DIMENSIONS, TOKENS, Vectors, Words, bare_words, dimensions
from divmon.records import SampleBatch
from divmon.uncertainty import LEVEL, MIN_PROMPTS

MAX_LENGTH, MIN_LENGTH = 100, 10
MIN_TEXTS = 3
_D = len(DIMENSIONS)
_CHUNK = 4_000_000  # floats held at once while resampling
_NO_REFERENCE = "no probe has a reference: a text by a person"
_SHORT = f"the references are too short: nine in ten should have {MIN_LENGTH} words"


@dataclass(frozen=True)
class HumanGap:
    """A policy's texts against human ones, at matched length; six numbers in the order of `DIMENSIONS`, and one.

    Attributes:
        gaps: Mean of the policy minus mean of the humans, in standard deviations of the human texts.
        low: Lower ends of their bootstrap intervals.
        high: Upper ends.
        distance: Mahalanobis distance of the two means under the shrunk covariance of the human texts.
        distance_low: Lower end of its interval.
        distance_high: Upper end.
        length: Words of each text that were looked at.
        n: Texts used, of the policy and of humans.
        left_out: Texts too short, or with an undefined dimension, of the policy and of humans.
        reason: Why there are no numbers, when there are none.
    """

    gaps: np.ndarray
    low: np.ndarray
    high: np.ndarray
    distance: float
    distance_low: float
    distance_high: float
    length: int
    n: tuple[int, int]
    left_out: tuple[int, int]
    reason: str | None = None


def shrunk_covariance(x: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Covariance of the rows of `x`, shrunk towards a multiple of the identity by the rule of Ledoit and Wolf.

    What moves it besides covariance: the scales of the columns (standardise them first).

    Args:
        x: float[..., N, D].
        weights: bool[..., N], rows that count; all when None.

    Returns:
        float[..., D, D].

    >>> shrunk_covariance(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).tolist()
    [[0.5, 0.0], [0.0, 0.5]]

    Source: Ledoit and Wolf (2004), Journal of Multivariate Analysis 88(2).
    """
    used = np.ones(x.shape[:-1], dtype=bool) if weights is None else weights
    n = np.maximum(used.sum(axis=-1), 1)[..., None, None]
    centred = np.where(used[..., None], x - _mean(x, used)[..., None, :], 0.0)
    d = x.shape[-1]
    sample = np.swapaxes(centred, -1, -2) @ centred / n
    scale = np.trace(sample, axis1=-2, axis2=-1)[..., None, None] / d
    eye = np.eye(d)
    away = ((sample - scale * eye) ** 2).sum(axis=(-2, -1), keepdims=True)
    quartic = ((centred**2).sum(axis=-1) ** 2).sum(axis=-1)[..., None, None]
    noise = (quartic / n - (sample**2).sum(axis=(-2, -1), keepdims=True)) / n
    shrink = np.clip(np.divide(noise, away, out=np.zeros_like(away), where=away > 0), 0.0, 1.0)
    return np.asarray((1 - shrink) * sample + shrink * scale * eye)


def _mean(x: np.ndarray, used: np.ndarray) -> np.ndarray:
    n = used.sum(axis=-1)[..., None]
    total = np.where(used[..., None], x, 0.0).sum(axis=-2)
    return np.asarray(np.divide(total, n, out=np.full(total.shape, math.nan), where=n > 0))


def _compare(
    policy: np.ndarray, human: np.ndarray, policy_used: np.ndarray, human_used: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Standardised gaps float[..., 6] and Mahalanobis distance float[...], of the rows that are used.

    A dimension without spread among the humans has no gap, and no part in the distance.
    """
    centre, n = _mean(human, human_used), human_used.sum(axis=-1)[..., None]
    centred = np.where(human_used[..., None], human - centre[..., None, :], 0.0)
    spread = np.sqrt((centred**2).sum(axis=-2) / np.maximum(n - 1, 1))
    enough = (n >= MIN_TEXTS) & (policy_used.sum(axis=-1)[..., None] >= 1)
    live = enough & (spread > 1e-9 * np.maximum(1.0, np.abs(centre)))
    scale = np.where(live, spread, 1.0)
    difference = np.where(live, (_mean(policy, policy_used) - centre) / scale, 0.0)
    covariance = shrunk_covariance(np.where(live[..., None, :], centred / scale[..., None, :], 0.0), human_used)
    # dimensions without spread get a unit of their own, so that the matrix can be inverted; their difference is 0
    covariance = covariance + np.eye(_D) * np.where(live, 1e-12, 1.0)[..., None, :]
    solved = np.linalg.solve(covariance, difference[..., None])[..., 0]
    squared = np.maximum((difference * solved).sum(axis=-1), 0.0)
    return np.where(live, difference, math.nan), np.where(live.any(axis=-1), np.sqrt(squared), math.nan)


def common_length(counts: Sequence[int] | np.ndarray) -> int:
    """The window of words that at least nine in ten texts fill, at most `MAX_LENGTH`; 0 for no texts.

    >>> common_length([300, 40, 50, 60]), common_length([500] * 10)
    (40, 100)

    Source: a convention of divmon.
    """
    ordered = np.sort(np.asarray(counts, dtype=int))
    return min(MAX_LENGTH, int(ordered[len(ordered) // 10])) if ordered.size else 0


def _interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over the first axis; NaN where most draws are."""
    known = np.isfinite(draws).mean(axis=0) >= 0.5
    filled = np.where(known, draws, 0.0)
    low, high = np.nanquantile(filled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return np.where(known, low, math.nan), np.where(known, high, math.nan)


def human_gap(
    policy_texts: Sequence[str],
    human_texts: Sequence[str],
    *,
    length: int | None = None,
    words: Words = bare_words,
    vectors: Vectors | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> HumanGap:
    """Gap between a policy's texts and human ones in the six dimensions, at matched length, with 95 % intervals.

    Texts are cut to a common window; those that do not fill it, or have an undefined dimension (no word twice), are
    left out and counted. Volume is of the whole text. Both sets of texts are resampled; with fewer than five texts on
    a side there are no intervals.

    What moves it besides the policy: topics and genre (compare texts written to the same prompts), and, for the
    distance, the number of texts: two samples of one population are never at distance 0.

    Args:
        policy_texts: N texts of the policy.
        human_texts: M texts by people.
        length: The window in words; None takes `common_length` of the human texts.
        words: How a text becomes words.
        vectors: See `divmon.metrics.human.disparity`.
        n_boot: Resamples.
        seed: Of the resamples.

    >>> people = ["the cat saw the dog and ran", "a man and a dog ran", "one bird sang and one sat up"]
    >>> result = human_gap(people[:2], people, n_boot=0)
    >>> result.length, result.n, result.reason
    (6, (2, 3), None)

    Source: after Jarvis (2013), Language Learning 63(s1); Kendro et al. (2025), arXiv:2508.00086.
    """
    if length is None:
        length = common_length([len(words(text)) for text in human_texts])
    policy, human = (
        dimensions(texts, length=length, words=words, vectors=vectors) for texts in (policy_texts, human_texts)
    )
    policy, human = (x[np.isfinite(x).all(axis=1)] for x in (policy, human))
    n = (len(policy), len(human))
    left_out = (len(policy_texts) - n[0], len(human_texts) - n[1])
    if n[0] < 1 or n[1] < MIN_TEXTS:
        none = np.full(_D, math.nan)
        reason = f"needs one text of the policy and {MIN_TEXTS} by people of at least {length} words; there are {n}"
        return HumanGap(none, none, none, *(math.nan,) * 3, length, n, left_out, reason)
    gaps, distance = _compare(policy, human, *(np.ones(size, dtype=bool) for size in n))
    n_boot = n_boot if min(n) >= MIN_PROMPTS else 0
    rng = np.random.default_rng(seed)
    draws = np.full((n_boot, _D + 1), math.nan)
    step = max(1, _CHUNK // (_D * sum(n)))
    for i in range(0, n_boot, step):
        b = min(step, n_boot - i)
        rows = [x[rng.integers(0, len(x), (b, len(x)))] for x in (policy, human)]
        some = _compare(*rows, *(np.ones(x.shape[:2], dtype=bool) for x in rows))
        draws[i : i + b] = np.column_stack(some)
    low, high = _interval(draws) if n_boot else (np.full(_D + 1, math.nan),) * 2
    ends = float(low[-1]), float(high[-1])
    return HumanGap(gaps, low[:-1], high[:-1], float(distance), *ends, length, n, left_out)


def human_gap_metric(batch: SampleBatch, context: MetricContext) -> Result:
    """Mahalanobis distance of completions from the probes' references in six lexical dimensions; 0 or more. Pooled.

    In standard deviations of the human texts, neutral: further from people is neither more nor less diverse;
    ``details`` has the gap in each dimension, with its sign. The window is set by the references alone (see
    `common_length`), so it is the same all through a run. Each prompt with a completion that fills it counts once.

    What moves it besides the policy: few references make it large (see `human_gap`), and skill at the probes' genre.

    Returns:
        Pooled; NaN for fewer than three prompts whose reference can be used.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("x", "y"),))
    >>> human_gap_metric(batch, MetricContext(batch)).reasons
    ('no probe has a reference: a text by a person',)

    Source: after Jarvis (2013), Language Learning 63(s1); Kendro et al. (2025), arXiv:2508.00086.
    """
    found = probe_parts(batch, context)
    if isinstance(found, str):
        return missing(batch, found)
    parts, length = found

    def details(columns: np.ndarray) -> Mapping[str, Any]:
        gaps = zip(DIMENSIONS, compare_parts(columns)[0], strict=True)
        named = {name: float(x) for name, x in gaps if math.isfinite(x)}
        return {"gaps": named, "length": length, "left_out": int(columns[:, -1].sum())}

    reason = f"fewer than {MIN_TEXTS} references, or no completion, of {length} words in which a word comes twice"
    return Pooled(parts, lambda columns: compare_parts(columns)[1], details, reason)


def probe_parts(batch: SampleBatch, context: MetricContext) -> tuple[np.ndarray, int] | str:
    """float[P, 15] and the window: dimensions of each prompt's completions and reference; or why there are none.

    The columns: 1 where a completion counts, its six (means over completions), 1 where the reference counts, its six,
    completions left out.
    """
    return context.cached("human-gap", lambda: _probe_parts(batch))


def _probe_parts(batch: SampleBatch) -> tuple[np.ndarray, int] | str:
    references = [probe.reference or "" for probe in batch.probes]
    if not any(references):
        return _NO_REFERENCE
    length = common_length([len(bare_words(text)) for text in references if text])
    if length < MIN_LENGTH:
        return _SHORT
    human = dimensions(references, length=length)
    parts = np.zeros((len(references), 2 * _D + 3))
    for i, (row, text) in enumerate(zip(batch.texts, references, strict=True)):
        found = dimensions(row if text else (), length=length)
        kept = np.isfinite(found).all(axis=1)
        parts[i, -1] = len(found) - kept.sum()
        if kept.any() and text:
            parts[i, : _D + 1] = 1.0, *found[kept].mean(axis=0)
        if text and np.isfinite(human[i]).all():
            parts[i, _D + 1 : -1] = 1.0, *human[i]
    return parts, length


def compare_parts(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardised gaps float[..., 6] and distance float[...], of the columns of `probe_parts`."""
    policy, people = columns[..., : _D + 1], columns[..., _D + 1 : -1]
    return _compare(policy[..., 1:], people[..., 1:], policy[..., 0] > 0, people[..., 0] > 0)


HUMAN_GAP = Metric(
    name="human_gap",
    fn=human_gap_metric,
    summary="How far completions are from the probes' human references in six dimensions of lexical diversity, in "
    "standard deviations of the references (Mahalanobis distance).",
    family="human",
    direction="neutral",
    bounds=(0.0, math.inf),
    scope="pooled",
    min_k=1,
    source="after Jarvis 2013 and Kendro et al. 2025, arXiv:2508.00086",
    signature=f"{TOKENS}|mtld:0.72|disparity:char:3-5|cov:ledoit-wolf",
    standard=False,
)
