"""Metrics as particular studies compute them, where that differs from divmon's own; to compare with their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from divmon.metrics.base import Metric, MetricContext, PairJudge, PerPrompt, Pooled, Result, evaluate, per_prompt
from divmon.metrics.classes import greedy_partition, utility
from divmon.metrics.hivemind import intra_similarity
from divmon.metrics.human import DIMENSIONS, dimensions
from divmon.metrics.semantic import embeddings
from divmon.records import SampleBatch

Words = Callable[[str], list[str]]
VOCABULARY = 50_257
ORDERS = range(1, 6)
_INF = math.inf


def karouzos_words(text: str) -> list[str]:
    """Full stops and newlines are deleted (so a newline joins two words), the rest is split at white space.

    >>> karouzos_words("One.\\nTwo three")
    ['OneTwo', 'three']

    Source: Karouzos et al. (2026), arXiv:2604.16027, the published code.
    """
    return text.replace(".", "").replace("\n", "").split()


def kirk_words(text: str) -> list[str]:
    """Full stops and newlines are deleted, the rest is split at single spaces; a tab stands inside a word.

    >>> kirk_words("One.  Two\\tthree")
    ['One', 'Two\\tthree']

    Source: Kirk et al. (2024), arXiv:2310.06452, the published code.
    """
    return [word for word in text.replace(".", "").replace("\n", "").split(" ") if word]


def expected_distinct(texts: Sequence[str], *, words: Words, clip: bool) -> float:
    """EAD of `texts` together: mean over n = 1..5 of U / (V (1 - ((V - 1) / V)^T)), V = 50,257.

    An order without any n-gram counts 0. With `clip`, each order is cut at 1.

    >>> round(expected_distinct(["a a a a a", "a a a a a"], words=karouzos_words, clip=True), 4)
    0.2283

    Source: Liu et al. (2022), arXiv:2202.13587, as Kirk et al. and Karouzos et al. compute it.
    """
    split = [words(text) for text in texts]
    total = 0.0
    for n in ORDERS:
        grams = [tuple(row[i : i + n]) for row in split for i in range(len(row) - n + 1)]
        if grams:
            expected = -VOCABULARY * math.expm1(len(grams) * math.log1p(-1.0 / VOCABULARY))
            value = len(set(grams)) / expected
            total += min(value, 1.0) if clip else value
    return total / len(ORDERS)


def ead_of(words: Words, *, clip: bool, source: str) -> Metric:
    """`expected_distinct` of each prompt's completions."""

    def fn(batch: SampleBatch, context: MetricContext) -> Result:
        return per_prompt(batch, lambda i: expected_distinct(batch.texts[i], words=words, clip=clip))

    return Metric(
        name="ead",
        fn=fn,
        summary="Expectation-adjusted distinct n-grams, n = 1 to 5.",
        family="lexical",
        direction="higher",
        bounds=(0.0, 1.0 if clip else _INF),
        source=source,
        signature=f"n:1-5|V:{VOCABULARY}|tok:{words.__name__}" + ("|clipped" if clip else ""),
    )


def ead_across(words: Words, *, source: str) -> Metric:
    """`expected_distinct` of the first completions of all prompts together. Pooled, without an interval.

    Prompts drawn twice would repeat their n-grams, so a bootstrap says nothing about it.
    """

    def fn(batch: SampleBatch, context: MetricContext) -> Result:
        def combine(parts: np.ndarray) -> np.ndarray:
            flat = parts[..., 0].reshape(-1, parts.shape[-2]).astype(int)
            values = [
                expected_distinct([batch.texts[i][0] for i in row if batch.texts[i]], words=words, clip=False)
                if len(set(row)) == len(row)
                else math.nan
                for row in flat.tolist()
            ]
            return np.array(values).reshape(parts.shape[:-2])

        return Pooled(np.arange(len(batch.texts), dtype=float)[:, None], combine)

    return Metric(
        name="ead_across",
        fn=fn,
        summary="Expectation-adjusted distinct n-grams of one completion a prompt.",
        family="inputs",
        direction="higher",
        bounds=(0.0, _INF),
        scope="pooled",
        min_k=1,
        source=source,
        signature=f"n:1-5|V:{VOCABULARY}|tok:{words.__name__}|first completions",
    )


def _across(batch: SampleBatch, context: MetricContext) -> Result:
    rows = embeddings(context)
    width = max((row.shape[1] for row in rows), default=1)
    first = np.array([row[0] if len(row) else np.zeros(width) for row in rows]).reshape(len(rows), width)
    there = np.array([[float(len(row) > 0)] for row in rows]).reshape(len(rows), 1)
    squares = (first * first).sum(axis=1, keepdims=True)

    def combine(parts: np.ndarray) -> np.ndarray:
        sums = parts.sum(axis=-2)
        total, n, alone = sums[..., :-2], sums[..., -2], sums[..., -1]
        pairs = n * (n - 1)
        cosine = np.divide((total**2).sum(axis=-1) - alone, pairs, out=np.full(n.shape, math.nan), where=pairs > 0)
        return np.asarray(1.0 - cosine)

    return Pooled(np.hstack((first, there, squares)), combine, reason="fewer than two prompts", additive=True)


SEMANTIC_ACROSS = Metric(
    name="semantic_across",
    fn=_across,
    summary="1 - mean cosine of sentence embeddings over pairs of prompts' first completions.",
    family="inputs",
    direction="higher",
    bounds=(0.0, 2.0),
    scope="pooled",
    needs=frozenset({"encoder"}),
    min_k=1,
    source="Kirk et al. 2024, arXiv:2310.06452",
    signature="first completions",
)


def _winning(batch: SampleBatch, context: MetricContext) -> Result:
    judge = context.judges.nli
    if judge is None:
        raise ValueError("no model of entailment: pass nli=")
    sides = [[(f"{a}.", f"{b}.") for a, b in combinations(row, 2)] for row in batch.texts]
    pairs = [pair for row in sides for a, b in row for pair in ((a, b), (b, a))]
    found = np.asarray(judge(pairs), dtype=float).reshape(-1, 3) if pairs else np.zeros((0, 3))
    top = found.max(axis=1, initial=0.0) * np.array([-1.0, 0.0, 1.0])[found.argmax(axis=1)] if len(found) else []
    sums = np.asarray(top).reshape(-1, 2).sum(axis=1)
    ends = np.cumsum([len(row) for row in sides])
    parts = np.split(sums, ends[:-1]) if len(ends) else []
    return per_prompt(batch, lambda i: float(parts[i].mean()) if len(parts[i]) else math.nan)


KIRK_NLI = Metric(
    name="nli",
    fn=_winning,
    summary="Contradiction (+1) or entailment (-1) of pairs by the winning label's probability, both ways summed.",
    family="semantic",
    direction="higher",
    bounds=(-2.0, 2.0),
    needs=frozenset({"nli"}),
    source="Kirk et al. 2024, arXiv:2310.06452",
    signature="winning label|both ways summed|whole completions",
)


def on_correct(metric: Metric) -> Metric:
    """`metric` on the correct completions of each prompt that has enough of them, as `NAME_correct`."""

    def fn(batch: SampleBatch, context: MetricContext) -> Result:
        correct = context.correct or []
        texts = tuple(
            tuple(text for text, good in zip(row, goods, strict=True) if good)
            for row, goods in zip(batch.texts, correct, strict=True)
        )
        kept = replace(batch, texts=texts, rewards=None, token_ids=None, finished=None, logprobs=None, entropies=None)
        inner = MetricContext(kept, encoder=context.encoder, encoder_name=context.encoder_name, judges=context.judges)
        result = evaluate(metric, inner)
        if not isinstance(result, PerPrompt):
            return result
        few = [len(row) < metric.min_k for row in texts]
        why = f"fewer than {metric.min_k} correct completions"
        reasons = tuple(why if short else r for short, r in zip(few, result.reasons, strict=True))
        return PerPrompt(result.values, result.n, reasons, result.details)

    return replace(
        metric,
        name=f"{metric.name}_correct",
        fn=fn,
        summary=f"Among correct completions: {metric.summary}",
        needs=metric.needs | {"quality"},
    )


def first_member_classes(texts: Sequence[str], judge: PairJudge) -> list[int]:
    """Classes by comparison with the first member of each, in order; all pairs are judged in one call.

    >>> first_member_classes(["a", "b", "a"], lambda pairs: np.array([float(a == b) for a, b in pairs]))
    [0, 1, 0]

    Source: Zhang et al. (2025), NoveltyBench, arXiv:2504.05228.
    """
    pairs = list(combinations(texts, 2))
    same = dict(zip(pairs, np.asarray(judge(pairs), dtype=float).tolist() if pairs else [], strict=True))
    if any(math.isnan(value) for value in same.values()):
        raise ValueError("the judge of equivalence gave no number for a pair")
    return greedy_partition(texts, lambda first, other: same[first, other] >= 0.5)


def _partitions(context: MetricContext) -> list[list[int]]:
    judge = context.judges.equivalence
    if judge is None:
        raise ValueError("nothing judges whether two texts say the same: pass equivalence=")
    return context.cached(
        "first-member-classes", lambda: [first_member_classes(row, judge) for row in context.batch.texts]
    )


def _distinct(batch: SampleBatch, context: MetricContext) -> Result:
    found = _partitions(context)
    return per_prompt(batch, lambda i: float(len(set(found[i]))) if found[i] else math.nan)


def _utility(batch: SampleBatch, context: MetricContext) -> Result:
    found, quality = _partitions(context), context.quality or []
    return per_prompt(batch, lambda i: utility(found[i], quality[i].tolist()), reason="a quality is unknown")


_ZHANG: dict[str, Any] = {"family": "semantic", "min_k": 1, "source": "Zhang et al. 2025, arXiv:2504.05228"}
NOVELTYBENCH = (
    Metric(
        name="distinct_k",
        fn=_distinct,
        summary="Classes of equivalent completions.",
        direction="higher",
        bounds=(1.0, _INF),
        unit="classes",
        needs=frozenset({"equivalence"}),
        signature="classes:first member",
        **_ZHANG,
    ),
    Metric(
        name="utility_k",
        fn=_utility,
        summary="Worth of the completions to a reader who goes on with probability 0.8 and counts nothing twice.",
        direction="neutral",
        bounds=(-_INF, _INF),
        needs=frozenset({"equivalence", "quality"}),
        signature="classes:first member|patience:0.8|in order",
        **_ZHANG,
    ),
)


def _similarity(batch: SampleBatch, context: MetricContext) -> Result:
    found = intra_similarity(embeddings(context))
    return per_prompt(batch, lambda i: float(found[i]), reason="an embedding is not finite")


INTRA_SIMILARITY = Metric(
    name="intra_similarity",
    fn=_similarity,
    summary="Mean pairwise cosine of a prompt's completions.",
    family="hivemind",
    direction="lower",
    bounds=(-1.0, 1.0),
    needs=frozenset({"encoder"}),
    source="Jiang et al. 2025, arXiv:2510.22954",
    signature="norm:l2",
)


def _dimension(column: int) -> Metric:
    def fn(batch: SampleBatch, context: MetricContext) -> Result:
        rows = context.cached("jarvis", lambda: [dimensions(list(row)) for row in batch.texts])

        def value(i: int) -> float:
            known = rows[i][:, column][~np.isnan(rows[i][:, column])]
            return float(known.mean()) if known.size else math.nan

        return per_prompt(batch, value, reason="no completion is long enough")

    return Metric(
        name=DIMENSIONS[column],
        fn=fn,
        summary=f"Lexical diversity of single texts: {DIMENSIONS[column]}.",
        family="human",
        direction="neutral",
        bounds=(0.0, _INF),
        min_k=1,
        source="after Jarvis 2013, Language Learning 63(s1)",
        signature="mean over a prompt's texts",
    )


JARVIS = tuple(_dimension(column) for column in range(len(DIMENSIONS)))
