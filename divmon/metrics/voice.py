"""Does a rewrite keep the writer's voice? The writer's own text against the model's, attribute by attribute.

Two things happen when a model rewrites: every text moves in the same direction (a *shift*), and texts of different
writers become more alike (the *spread*, SD over writers, shrinks). Polish and distortion come together, so what readers
accept belongs beside these numbers: preference is no evidence that a voice was kept.

The attributes are plain counts (`divmon.metrics.attributes`), or functions of the user's: a `Panel`. Ratings by a model
or by people may also go in through `scorers=`, which see all texts at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from divmon.metrics.attributes import Panel
from divmon.uncertainty import LEVEL, MIN_PROMPTS

FLOOR = 0.05  # a spread ratio below it counts as this, so that one attribute that vanishes does not decide the mean
MIN_WRITERS = 3
_CHUNK = 4_000_000  # floats held at once while resampling

Scorer = Callable[[Sequence[str]], np.ndarray]
SHIPPED = Panel()


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


def compare(writer: np.ndarray, model: np.ndarray, within: np.ndarray | float = 0.0) -> np.ndarray:
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


def geometric(ratios: np.ndarray) -> np.ndarray:
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
    panel: Panel = SHIPPED,
    authors: Sequence[str] | None = None,
    acceptance: Mapping[str, float] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> Voice:
    """Shift and spread of every attribute between writers' texts and the model's rewrites of them, with intervals.

    The bootstrap resamples writers, keeping each with the rewrite of their text; there are no intervals of fewer than
    five writers. Where `authors` has several texts of one writer, their means count, on both sides. Where a text has
    several rewrites, the spread is that expected when one of them is drawn: it does not depend on how many there are.

    What moves it besides the model: the writers (a set of similar ones has little spread to lose), and measurement
    error, which widens both spreads and so pulls their ratio to 1.

    Args:
        writer_texts: N texts.
        model_texts: N rewrites, in the same order.
        scorers: More attributes, such as reward models: a name to a function of texts that returns float[N].
        panel: Which attributes are counted.
        authors: Who wrote each text; None: each another.
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
    if authors is not None and len(authors) != len(writer_texts):
        raise ValueError(f"each text has one author; there are {len(writer_texts)} and {len(authors)}")
    writer, model = (_scored(texts, panel, scorers or {}) for texts in (writer_texts, model_texts))
    within = np.zeros_like(model)
    if authors is not None:
        writer, model, within = _by_author(writer, model, list(zip(authors, writer_texts, strict=True)))
    names = (*panel.names, *(scorers or {}))
    mean_w, mean_m, shift_sd, ratio, n = compare(writer, model, within)
    drawn = _resampled(writer, model, within, n_boot=n_boot if len(writer) >= MIN_PROMPTS else 0, seed=seed)
    whole = _interval(geometric(drawn[3]))
    drawn = np.where(n >= MIN_PROMPTS, drawn, math.nan)
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
    return Voice(records, float(geometric(ratio)), whole, acceptance)


def _resampled(writer: np.ndarray, model: np.ndarray, within: np.ndarray, *, n_boot: int, seed: int) -> np.ndarray:
    """float[5, n_boot, A]: what `compare` gives on resampled writers."""
    rng = np.random.default_rng(seed)
    size = len(writer)
    step = max(1, _CHUNK // max(1, 3 * writer.size))
    draws = [np.zeros((5, 0, writer.shape[1]))]
    for i in range(0, n_boot if size else 0, step):
        index = rng.integers(0, size, (min(step, n_boot - i), size))
        draws.append(compare(writer[index], model[index], within[index]))
    return np.concatenate(draws, axis=1)


def _by_author(
    writer: np.ndarray, model: np.ndarray, pairs: Sequence[tuple[str, str]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over each author's texts, and how much the model's would vary if one rewrite of each text were drawn.

    Texts without a value on both sides do not count; NaN without any. Rewrites of one text are averaged first, so their
    variance around that average is what averaging took from the model's side and not from the writer's.

    Args:
        writer: float[N, A].
        model: float[N, A].
        pairs: Author and text of each row.
    """
    used = np.isfinite(writer) & np.isfinite(model)
    writer, model = (np.where(used, side, 0.0) for side in (writer, model))
    at: dict[tuple[str, str], int] = {}
    text = np.array([at.setdefault(pair, len(at)) for pair in pairs], dtype=np.intp)
    rewrites = _summed(used.astype(float), text)
    share = np.divide(1.0, rewrites, out=np.zeros_like(rewrites), where=rewrites > 0)
    means = [_summed(side, text) * share for side in (writer, model)]
    varied = _summed(np.where(used, model - means[1][text], 0.0) ** 2, text) * share
    by: dict[str, int] = {}
    author = np.array([by.setdefault(name, len(by)) for name, _ in at], dtype=np.intp)
    n = _summed((rewrites > 0).astype(float), author)
    sums = [_summed(side, author) for side in (*means, varied)]
    blank = [np.full_like(n, math.nan), np.full_like(n, math.nan), np.zeros_like(n)]
    tops = (n, n, n * n)
    found = [np.divide(x, d, out=o, where=n > 0) for x, d, o in zip(sums, tops, blank, strict=True)]
    return found[0], found[1], found[2]


def _summed(rows: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Rows of one index added up: float[N, A] to float[max + 1, A]."""
    total = np.zeros((int(index.max(initial=-1)) + 1, rows.shape[1]))
    np.add.at(total, index, rows)
    return total


def _scored(texts: Sequence[str], panel: Panel, scorers: Mapping[str, Scorer]) -> np.ndarray:
    columns = [panel.score(texts)]
    for name, scorer in scorers.items():
        found = np.asarray(scorer(list(texts)), dtype=float)
        if found.shape != (len(texts),):
            raise ValueError(f"the scorer {name!r} returned shape {found.shape} for {len(texts)} texts")
        columns.append(found[:, None])
    return np.concatenate(columns, axis=1)
