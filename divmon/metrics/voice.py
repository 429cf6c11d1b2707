"""Does a rewrite keep the writer's voice? The writer's own text against the model's, attribute by attribute.

Two things happen when a model rewrites: every text moves in the same direction (a *shift*), and texts of different
writers become more alike (the *spread*, SD over writers, shrinks). Polish and distortion come together, so what readers
accept belongs beside these numbers: preference is no evidence that a voice was kept.

The attributes are plain counts (`divmon.metrics.attributes`). Ratings by a model or by people go in through `scorers=`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from divmon.metrics.attributes import ATTRIBUTES, WINDOW, attributes
from divmon.metrics.base import Metric, MetricContext, Pooled, Result, missing
from divmon.records import SampleBatch
from divmon.uncertainty import LEVEL

FLOOR = 0.05  # a spread ratio below it counts as this, so that one attribute that vanishes does not decide the mean
MIN_WRITERS = 3
_CHUNK = 4_000_000  # floats held at once while resampling

Scorer = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Attribute:
    """One attribute, the model's texts against the writers' own.

    Attributes:
        name: The attribute's name.
        writer: Mean over writers.
        model: Mean over the model's texts.
        shift: model - writer, in the attribute's own unit.
        shift_interval: Its 95 % bootstrap interval over writers.
        shift_sd: The shift in standard deviations of the writers.
        spread: SD of the model's texts over SD of the writers'; under 1 means that voices became more alike.
        spread_interval: Its 95 % bootstrap interval over writers.
        n: Pairs with a value on both sides.
    """

    name: str
    writer: float
    model: float
    shift: float
    shift_interval: tuple[float, float]
    shift_sd: float
    spread: float
    spread_interval: tuple[float, float]
    n: int


@dataclass(frozen=True)
class Voice:
    """All attributes, and their mean spread.

    Attributes:
        attributes: One record each.
        spread: Geometric mean of the spread ratios.
        spread_interval: Its 95 % bootstrap interval over writers.
        acceptance: As given: what readers or writers preferred.
    """

    attributes: tuple[Attribute, ...]
    spread: float
    spread_interval: tuple[float, float]
    acceptance: Mapping[str, float] | None = None


def preference_shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Counts of preferences as shares that sum to 1; NaN when there are none.

    >>> preference_shares({"ai": 3, "own": 1})
    {'ai': 0.75, 'own': 0.25}

    Source: Röttger et al. (2026), arXiv:2604.22503.
    """
    total = sum(counts.values())
    return {name: count / total if total else math.nan for name, count in counts.items()}


def _moments(x: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance over the writers, float[..., A]."""
    n = used.sum(axis=-2)
    mean = np.where(used, x, 0.0).sum(axis=-2) / np.maximum(n, 1)
    squares = (np.where(used, x - mean[..., None, :], 0.0) ** 2).sum(axis=-2)
    return np.where(n > 0, mean, math.nan), np.where(n > 1, squares / np.maximum(n - 1, 1), math.nan)


def _compare(writer: np.ndarray, model: np.ndarray, within: np.ndarray | float = 0.0) -> np.ndarray:
    """float[5, ..., A]: writer's mean, model's mean, shift in SDs, spread ratio, pairs; from float[..., N, A] twice.

    `within` is the variance of a prompt's completions around their mean, `model`. With it the model's variance over
    writers is the expectation over drawing one completion for each, which needs no draw and does not depend on K.
    """
    used = np.isfinite(writer) & np.isfinite(model)
    (mean_w, var_w), (mean_m, var_m) = _moments(writer, used), _moments(model, used)
    n = used.sum(axis=-2)
    spread_w = np.sqrt(np.where(n >= MIN_WRITERS, var_w, math.nan))
    spread_w = np.where(spread_w > 1e-9 * np.maximum(1.0, np.abs(mean_w)), spread_w, math.nan)
    inside = np.where(used, within, 0.0).sum(axis=-2) / np.maximum(n, 1)
    spread_m = np.sqrt(var_m + inside)
    return np.stack((mean_w, mean_m, (mean_m - mean_w) / spread_w, spread_m / spread_w, n.astype(float)))


def _geometric(ratios: np.ndarray) -> np.ndarray:
    """Geometric mean over the attributes that have a ratio, none below `FLOOR`; NaN without any."""
    known = np.isfinite(ratios)
    logs = np.log(np.where(known, np.maximum(ratios, FLOOR), 1.0)).sum(axis=-1)
    n = known.sum(axis=-1)
    return np.asarray(np.where(n > 0, np.exp(logs / np.maximum(n, 1)), math.nan))


def _interval(draws: np.ndarray) -> tuple[float, float]:
    known = draws[np.isfinite(draws)]
    if not draws.size or known.size < draws.size / 2:
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def voice(
    writer_texts: Sequence[str],
    model_texts: Sequence[str],
    *,
    scorers: Mapping[str, Scorer] | None = None,
    acceptance: Mapping[str, float] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> Voice:
    """Shift and spread of every attribute between writers' texts and the model's rewrites of them, with intervals.

    The bootstrap resamples writers, keeping each with the rewrite of their text.

    What moves it besides the model: the writers (a set of similar ones has little spread to lose), and measurement
    error, which widens both spreads and so pulls their ratio to 1.

    Args:
        writer_texts: N texts, one a writer.
        model_texts: N rewrites, in the same order.
        scorers: More attributes, such as reward models: a name to a function of texts that returns float[N].
        acceptance: What to show beside it, for example `preference_shares`.
        n_boot: Resamples; 0 for no intervals.
        seed: Of the resamples.

    >>> own = ["Short one.", "This is a somewhat longer text, by me.", "And then another long text follows here, so!"]
    >>> result = voice(own, own, n_boot=0)
    >>> result.spread, result.attributes[0].name, result.attributes[0].shift
    (1.0, 'sentence_length', 0.0)

    Source: Röttger et al. (2026), arXiv:2604.22503 (spread ratio, 1,000 resamples).

    Raises:
        ValueError: The texts are not paired, or a scorer returns another shape.
    """
    if len(writer_texts) != len(model_texts):
        raise ValueError(f"each writer has one rewrite; there are {len(writer_texts)} and {len(model_texts)}")
    writer, model = (_scored(texts, scorers or {}) for texts in (writer_texts, model_texts))
    names = (*ATTRIBUTES, *(scorers or {}))
    mean_w, mean_m, shift_sd, ratio, n = _compare(writer, model)
    rng = np.random.default_rng(seed)
    size = len(writer)
    step = max(1, _CHUNK // max(1, 2 * writer.size))
    draws = [np.zeros((5, 0, len(names)))]
    for i in range(0, n_boot if size else 0, step):
        index = rng.integers(0, size, (min(step, n_boot - i), size))
        draws.append(_compare(writer[index], model[index]))
    drawn = np.concatenate(draws, axis=1)
    shifts = drawn[1] - drawn[0]
    records = tuple(
        Attribute(
            name=name,
            writer=float(mean_w[a]),
            model=float(mean_m[a]),
            shift=float(mean_m[a] - mean_w[a]),
            shift_interval=_interval(shifts[:, a]),
            shift_sd=float(shift_sd[a]),
            spread=float(ratio[a]),
            spread_interval=_interval(drawn[3][:, a]),
            n=int(n[a]),
        )
        for a, name in enumerate(names)
    )
    return Voice(records, float(_geometric(ratio)), _interval(_geometric(drawn[3])), acceptance)


def _scored(texts: Sequence[str], scorers: Mapping[str, Scorer]) -> np.ndarray:
    columns = [attributes(texts)]
    for name, scorer in scorers.items():
        found = np.asarray(scorer(list(texts)), dtype=float)
        if found.shape != (len(texts),):
            raise ValueError(f"the scorer {name!r} returned shape {found.shape} for {len(texts)} texts")
        columns.append(found[:, None])
    return np.concatenate(columns, axis=1)


def _parts(batch: SampleBatch) -> np.ndarray:
    """float[P, 3 x 11]: the reference's attributes, the mean of the completions', and their variance around it."""
    a = len(ATTRIBUTES)
    parts = np.full((len(batch.probes), 3, a), math.nan)
    for row, probe, texts in zip(parts, batch.probes, batch.texts, strict=True):
        if not probe.reference or not texts:
            continue
        row[0] = attributes([probe.reference])[0]
        found = attributes(texts)
        known = np.isfinite(found)
        n = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, found, 0.0).sum(axis=0) / n
        row[1] = np.where(known.any(axis=0), mean, math.nan)
        row[2] = (np.where(known, found - mean, 0.0) ** 2).sum(axis=0) / n
    return parts.reshape(len(parts), 3 * a)


def _columns(parts: np.ndarray) -> np.ndarray:
    a = len(ATTRIBUTES)
    writer, model, within = (parts[..., i * a : (i + 1) * a] for i in range(3))
    return _compare(writer, model, within)


def _details(parts: np.ndarray) -> Mapping[str, Any]:
    compared = _columns(parts)
    rows = {"shift_sd": compared[2], "spread": compared[3]}
    return {
        key: {name: float(x) for name, x in zip(ATTRIBUTES, row, strict=True) if math.isfinite(x)}
        for key, row in rows.items()
    }


def _pooled(batch: SampleBatch, context: MetricContext, combine: Callable[[np.ndarray], np.ndarray]) -> Result:
    if not any(probe.reference for probe in batch.probes):
        return missing(batch, "no probe has a reference: the writer's own text")
    parts = context.cached("voice", lambda: _parts(batch))
    reason = f"fewer than {MIN_WRITERS} prompts with a reference and a completion, or references that are all alike"
    return Pooled(parts, combine, _details, reason)


def voice_spread(batch: SampleBatch, context: MetricContext) -> Result:
    """SD over writers of the rewrites' attributes over that of the writers' own texts; geometric mean. Pooled.

    For rewrite probes, whose `reference` is the writer's own text. 1: voices differ as much as before; under 1: they
    became more alike; higher is more diverse. Ratios below 0.05 count as that. The SD of the rewrites is that expected
    when one completion is drawn for each writer.

    What moves it besides homogenisation: noise between completions of one prompt, which is spread too, and references
    that are no one's own text (then it says how varied completions are beside the references, no more).

    Returns:
        Pooled; NaN for fewer than three writers. ``details`` has each attribute's ratio and shift.

    >>> from divmon.records import Probe
    >>> own = ["Short one.", "This is a somewhat longer text, by me.", "And then another long text follows here, so!"]
    >>> batch = SampleBatch(0, tuple(Probe(t, "?", reference=t) for t in own), tuple((t,) for t in own))
    >>> result = voice_spread(batch, MetricContext(batch))
    >>> round(float(result.combine(result.parts)), 9)
    1.0

    Source: spread ratio of Röttger et al. (2026), arXiv:2604.22503, on plain attributes in the place of ratings.
    """
    return _pooled(batch, context, lambda parts: _geometric(_columns(parts)[3]))


def voice_shift(batch: SampleBatch, context: MetricContext) -> Result:
    """How far rewrites move the writers' attributes on average: mean absolute shift in SDs of the writers. Pooled.

    0: no attribute moved; 1: each moved by a standard deviation of the writers. Neutral: correcting is a shift too.

    What moves it besides the model: what was asked for (the probes), and chance, with few writers.

    Returns:
        Pooled; NaN for fewer than three writers. ``details`` has each attribute's shift with its sign.

    >>> from divmon.records import Probe
    >>> own = ["Short one.", "This is a somewhat longer text, by me.", "And then another long text follows here, so!"]
    >>> batch = SampleBatch(0, tuple(Probe(t, "?", reference=t) for t in own), tuple((t,) for t in own))
    >>> result = voice_shift(batch, MetricContext(batch))
    >>> float(result.combine(result.parts))
    0.0

    Source: after Röttger et al. (2026), arXiv:2604.22503 (distortion as a mean shift).
    """

    def combine(parts: np.ndarray) -> np.ndarray:
        shift = np.abs(_columns(parts)[2])
        known = np.isfinite(shift)
        n = known.sum(axis=-1)
        return np.asarray(np.where(n > 0, np.where(known, shift, 0.0).sum(axis=-1) / np.maximum(n, 1), math.nan))

    return _pooled(batch, context, combine)


_SIGNATURE = f"attributes:{len(ATTRIBUTES)}|window:{WINDOW}|floor:{FLOOR:g}"

VOICE_SPREAD = Metric(
    name="voice_spread",
    fn=voice_spread,
    summary="How much rewrites by the model differ between writers, as a multiple of how much the writers' own texts "
    "do: 1 voices kept, under 1 voices more alike.",
    family="voice",
    direction="higher",
    bounds=(0.0, math.inf),
    scope="pooled",
    min_k=1,
    source="after Röttger et al. 2026, arXiv:2604.22503",
    signature=_SIGNATURE,
    standard=True,
)

VOICE_SHIFT = Metric(
    name="voice_shift",
    fn=voice_shift,
    summary="How far rewrites move the attributes of the writers' texts on average, in standard deviations of the "
    "writers.",
    family="voice",
    direction="neutral",
    bounds=(0.0, math.inf),
    unit="SD",
    scope="pooled",
    min_k=1,
    source="after Röttger et al. 2026, arXiv:2604.22503",
    signature=_SIGNATURE,
    standard=False,
)
