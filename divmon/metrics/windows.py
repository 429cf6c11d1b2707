"""Any metric of texts on a fixed window: the first or the last words of each completion.

Length changes most measures of diversity, and it does so through position: what completions of one prompt share stands
at their beginning, and longer ones add what they do not share. A window of a fixed number of words takes that out, and
the opening and the closing are two curves that often tell different stories.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from divmon.errors import ConfigError
from divmon.metrics.base import Metric, MetricContext, Need, PerPrompt, Result, evaluate
from divmon.metrics.overlap import BIGRAM_COLLISION
from divmon.metrics.semantic import TFIDF_DISTANCE
from divmon.metrics.text import word_spans
from divmon.records import SampleBatch

Where = Literal["opening", "closing"]
WINDOW = 16  # words of the windows in the table: a sentence, and half of short answers are that long

_OF_WHOLE: frozenset[Need] = frozenset({"token_ids", "entropies", "logprobs", "finished"})


def window(text: str, words: int, *, where: Where) -> str | None:
    """The first or last `words` words of `text`, punctuation and spaces as they are; None where it has fewer.

    >>> window("One, two;  three!", 2, where="opening"), window("One, two;  three!", 2, where="closing")
    ('One, two;', 'two;  three!')
    >>> window("One", 2, where="opening") is None
    True

    Source: a convention of divmon.
    """
    spans = word_spans(text)
    part = list(itertools.islice(spans, words)) if where == "opening" else deque(spans, maxlen=words)
    if len(part) < words:
        return None
    return text[part[0][0] : part[-1][1]]


def _pick(rows: Sequence[Sequence[float]] | Sequence[np.ndarray], kept: Sequence[list[int]]) -> list[np.ndarray]:
    return [np.asarray(row, dtype=float)[at] for row, at in zip(rows, kept, strict=True)]


def window_context(context: MetricContext, words: int, *, where: Where) -> MetricContext:
    """The context of the same batch with each completion cut to its window and shorter ones left out; made once.

    Quality, the encoder and the judges are passed on; the baseline is the baseline's batch, cut in the same way.
    Token ids and what was measured on tokens are not: they belong to whole completions.

    Source: a convention of divmon.
    """

    def build() -> MetricContext:
        batch = context.batch
        cut = [[window(text, words, where=where) for text in row] for row in batch.texts]
        kept = [[j for j, text in enumerate(row) if text is not None] for row in cut]
        rewards = batch.rewards
        windows = replace(
            batch,
            texts=tuple(tuple(text for text in row if text is not None) for row in cut),
            rewards=None if rewards is None else tuple(tuple(row.tolist()) for row in _pick(rewards, kept)),
            token_ids=None,
            finished=None,
            logprobs=None,
            entropies=None,
        )
        reference = context.reference
        return MetricContext(
            windows,
            quality=None if context.quality is None else _pick(context.quality, kept),
            correct_at=context.correct_at,
            encoder=context.encoder,
            encoder_name=context.encoder_name,
            classifier=context.classifier,
            baseline=None if reference is context else window_context(reference, words, where=where),
            judges=context.judges,
        )

    return context.cached(("window", words, where), build)


def _explained(result: PerPrompt, context: MetricContext, least: int, words: int) -> PerPrompt:
    """`result` with the reason that windows give: too few completions are long enough."""
    short = [len(row) < least for row in context.batch.texts]
    why = f"fewer than {least} completions have {words} words"
    values = np.where(short, math.nan, result.values)
    reasons = tuple(why if few else reason for few, reason in zip(short, result.reasons, strict=True))
    return PerPrompt(values, np.where(short, 0, result.n), reasons, result.details)


def _check(metric: Metric, words: int, where: str) -> None:
    whole = sorted(metric.needs & _OF_WHOLE)
    if whole:
        raise ConfigError(
            f"{metric.name} needs {', '.join(whole)}, which belong to whole completions, not to a window."
        )
    if not isinstance(words, int) or words < 1:
        raise ConfigError(f"words={words!r}: pass a whole number of at least 1.")
    if where not in ("opening", "closing"):
        raise ConfigError(f"where={where!r}: pass 'opening' or 'closing'.")


def windowed(metric: Metric, *, words: int = 50, where: Where = "opening", name: str = "") -> Metric:
    """`metric`, measured on the first ("opening") or last ("closing") `words` words of each completion.

    Completions of fewer words are left out; where fewer than two are left (or than the metric needs), the value is
    missing. Everything a metric takes from the baseline, such as idf, comes from the baseline's same windows. Words
    are counted as `divmon.metrics.text.words` does, and texts are cut where they stand, punctuation kept.

    What moves it besides diversity: which completions are long enough, if that changes; no longer their length. The
    prompt decides how free an opening is, so read the change from the baseline.

    Args:
        metric: One that looks at texts (and quality, an encoder or a judge), not at tokens.
        words: Width of the window.
        where: Which end.
        name: Of the new metric; ``opening_<name>_<words>`` by default.

    Returns:
        A metric of the same direction, bounds and scope.

    Raises:
        ConfigError: The metric needs what belongs to whole completions, or the window makes no sense.

    >>> from divmon.metrics.semantic import TFIDF_DISTANCE
    >>> from divmon.records import Probe
    >>> opening = windowed(TFIDF_DISTANCE, words=2)
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("I think yes", "I think no", "Never"),))
    >>> opening.name, evaluate(opening, MetricContext(batch)).values.tolist()
    ('opening_tfidf_distance_2', [0.0])

    Source: a convention of divmon.
    """
    _check(metric, words, where)
    least = max(2, metric.min_k)

    def fn(batch: SampleBatch, context: MetricContext) -> Result:
        cut = window_context(context, words, where=where)
        result = evaluate(metric, cut)
        return _explained(result, cut, least, words) if isinstance(result, PerPrompt) else result

    end = "first" if where == "opening" else "last"
    return replace(
        metric,
        name=name or f"{where}_{metric.name}_{words}",
        fn=fn,
        summary=f"On the {end} {words} words of each completion: {metric.summary[:1].lower()}{metric.summary[1:]}",
        min_k=least if metric.scope == "per_prompt" else metric.min_k,
        signature=f"{metric.signature}|window:{where}:{words}",
        standard=False,
    )


OPENING_DISTANCE = windowed(TFIDF_DISTANCE, words=WINDOW, where="opening", name="opening_distance")
CLOSING_DISTANCE = windowed(TFIDF_DISTANCE, words=WINDOW, where="closing", name="closing_distance")
OPENING_COLLISION = windowed(BIGRAM_COLLISION, words=WINDOW, where="opening", name="opening_collision")
