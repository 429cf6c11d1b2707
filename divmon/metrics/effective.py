"""Diversity that is of use: distinct meanings among valid completions, and what a majority vote gains."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np

from divmon.metrics.answers import answer_key, extract_answer
from divmon.metrics.base import Metric, MetricContext, PerPrompt, Result
from divmon.metrics.clusters import components
from divmon.records import SampleBatch

_NO_VERDICT = "the judge of equivalence gave no number for a pair of valid completions"
_UNJUDGED = f"no completion of this prompt was judged, or {_NO_VERDICT}"
_ALONE = f"fewer than two completions of this prompt were judged, or {_NO_VERDICT}"
_SOURCE = "after Shypula et al. 2025, arXiv:2504.12522"


def _classes_of_valid(context: MetricContext) -> list[np.ndarray | None]:
    """int[K] a prompt: the class of each valid completion, -1 for the others; None where a pair could not be judged.

    Classes are the connected components of the judge's "same" over different texts, so order plays no part. The judge
    is called once, on every pair of different valid texts of one prompt, the lesser text first.
    """
    judge, correct = context.judges.equivalence, context.correct
    if judge is None or correct is None:
        raise ValueError("distinct meanings among valid completions need quality and a judge of equivalence")
    valid = [
        sorted({text for text, good in zip(row, right, strict=True) if good})
        for row, right in zip(context.batch.texts, correct, strict=True)
    ]
    pairs = [pair for texts in valid for pair in itertools.combinations(texts, 2)]
    verdicts = np.asarray(judge(pairs), dtype=float).reshape(-1) if pairs else np.zeros(0)
    if len(verdicts) != len(pairs):
        raise ValueError(f"the judge of equivalence returned {len(verdicts)} numbers for {len(pairs)} pairs")
    classes: list[np.ndarray | None] = []
    start = 0
    for texts, row, right in zip(valid, context.batch.texts, correct, strict=True):
        likeness = np.eye(len(texts))
        upper = np.triu_indices(len(texts), 1)
        likeness[upper] = verdicts[start : start + len(upper[0])]
        start += len(upper[0])
        if np.isnan(likeness).any():
            classes.append(None)
            continue
        label = components(likeness, threshold=0.5) if texts else np.zeros(0, dtype=int)
        at = dict(zip(texts, label.tolist(), strict=True))
        classes.append(np.array([at[t] if good else -1 for t, good in zip(row, right, strict=True)], dtype=int))
    return classes


def _over_classes(context: MetricContext, *, pairs: bool) -> PerPrompt:
    """Distinct classes over completions judged; or pairs of two valid, different ones over pairs."""
    classes = context.cached("valid_classes", lambda: _classes_of_valid(context))
    known = [~np.isnan(row) for row in context.quality or ()]
    n = np.array([int(row.sum()) for row in known], dtype=int)
    values = np.full(len(classes), math.nan)
    for i, (labels, mask, judged) in enumerate(zip(classes, known, n, strict=True)):
        if labels is None:
            continue
        counts = np.bincount(labels[mask & (labels >= 0)]).astype(float)
        if pairs and judged >= 2:
            values[i] = (counts.sum() ** 2 - (counts**2).sum()) / (judged * (judged - 1))
        elif not pairs and judged:
            values[i] = np.count_nonzero(counts) / judged
    reason = _ALONE if pairs else _UNJUDGED
    reasons = tuple(reason if math.isnan(value) else None for value in values)
    valid = sum(int(row.sum()) for row in context.correct or ())
    details = {"validity": valid / int(n.sum())} if n.any() else {}
    return PerPrompt(values, np.where(np.isnan(values), 0, n), reasons, details)


def effective_semantic_diversity(batch: SampleBatch, context: MetricContext) -> Result:
    """Distinct meanings among a prompt's valid completions, over the number sampled; 0 to 1, higher is more diverse.

    Valid is correct (quality at least `correct_at`); a meaning is a class of completions that the judge of equivalence
    finds the same, directly or through others. Completions of unknown quality are not part of the budget. 0 where
    nothing is valid: unlike most metrics here it also measures skill.

    What moves it besides diversity: validity (reported in ``details["validity"]`` over the whole batch), and K: more
    draws find fewer new meanings each, so compare at equal K only.

    Returns:
        float[P]; NaN where no completion was judged, or a pair of valid ones could not be compared.

    >>> from divmon.metrics.base import Judges
    >>> from divmon.records import Probe
    >>> first = Judges(equivalence=lambda pairs: np.array([a[0] == b[0] for a, b in pairs]))
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("a1", "a2", "b1", "c1"),))
    >>> context = MetricContext(batch, quality=[[1, 1, 1, 0]], judges=first)
    >>> effective_semantic_diversity(batch, context).values.tolist()
    [0.5]

    Source: after Shypula et al. (2025), arXiv:2504.12522 (Div_fixed); the formula is unverified against the paper.
    """
    return _over_classes(context, pairs=False)


def effective_pair_diversity(batch: SampleBatch, context: MetricContext) -> Result:
    """Share of a prompt's pairs in which both completions are valid and differ in meaning; 0 to 1, higher more diverse.

    A mean over pairs: it does not drift with K, unlike `effective_semantic_diversity`, of which it is the pair form.

    What moves it besides diversity: validity, by its square.

    Returns:
        float[P]; NaN where fewer than two completions were judged, or a pair of valid ones could not be compared.

    >>> from divmon.metrics.base import Judges
    >>> from divmon.records import Probe
    >>> first = Judges(equivalence=lambda pairs: np.array([a[0] == b[0] for a, b in pairs]))
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("a1", "a2", "b1", "c1"),))
    >>> context = MetricContext(batch, quality=[[1, 1, 1, 0]], judges=first)
    >>> effective_pair_diversity(batch, context).values.round(3).tolist()
    [0.333]

    Source: after Shypula et al. (2025), arXiv:2504.12522 (Div_pair); the formula is unverified against the paper.
    """
    return _over_classes(context, pairs=True)


def _ballot(text: str) -> str | None:
    """The answer a completion votes for; answers that are the same are equal."""
    answer = extract_answer(text)
    return None if answer is None else answer_key(answer)


def majority_gain(batch: SampleBatch, context: MetricContext) -> Result:
    """Whether the most frequent answer is right (1 or 0), minus the share of completions that are right; -1 to 1.

    Over prompts: the accuracy of a majority vote minus `pass_at_1`. Near 0 when all draws agree: a policy that has
    collapsed gains nothing from voting. An answer is right when at least half of the judged completions that give it
    are; a tie for first place counts as wrong; completions without an answer do not vote.

    What moves it besides diversity: skill (voting amplifies what is right more often than not, and can lose where it is
    not), and K.

    Returns:
        float[P]; NaN where no judged completion gives an answer. Neutral.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("It is 7.", "It is 7.0", "It is 8.", "It is 9."),))
    >>> majority_gain(batch, MetricContext(batch, quality=[[1, 1, 0, 0]])).values.tolist()
    [0.5]

    Source: Wang et al. (2023), arXiv:2203.11171; ties as in Karouzos et al. (2026), arXiv:2604.16027.
    """
    if context.quality is None or context.correct is None:
        raise ValueError("majority_gain needs quality")
    values = np.full(len(batch.texts), math.nan)
    n = np.zeros(len(batch.texts), dtype=int)
    for i, (texts, quality, correct) in enumerate(zip(batch.texts, context.quality, context.correct, strict=True)):
        judged = np.flatnonzero(~np.isnan(quality))
        votes = {int(k): _ballot(texts[k]) for k in judged}
        ranked = Counter(vote for vote in votes.values() if vote is not None).most_common(2)
        if not ranked:
            continue
        tied = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
        right = np.mean([correct[k] for k, vote in votes.items() if vote == ranked[0][0]]) >= 0.5
        values[i] = float(right and not tied) - float(correct[judged].mean())
        n[i] = len(judged)
    reasons = tuple("no judged completion gives an answer" if math.isnan(value) else None for value in values)
    return PerPrompt(values, n, reasons)


EFFECTIVE_SEMANTIC_DIVERSITY = Metric(
    name="effective_semantic_diversity",
    fn=effective_semantic_diversity,
    summary="Distinct meanings among a prompt's valid completions, over the number sampled.",
    family="quality",
    direction="higher",
    needs=frozenset({"quality", "equivalence"}),
    min_k=2,
    source=_SOURCE,
    signature="classes:components",
    standard=False,
)

EFFECTIVE_PAIR_DIVERSITY = Metric(
    name="effective_pair_diversity",
    fn=effective_pair_diversity,
    summary="Share of a prompt's pairs of completions that are both valid and differ in meaning.",
    family="quality",
    direction="higher",
    needs=frozenset({"quality", "equivalence"}),
    min_k=2,
    source=_SOURCE,
    signature="classes:components",
    standard=False,
)

MAJORITY_GAIN = Metric(
    name="majority_gain",
    fn=majority_gain,
    summary="What a majority vote over the answers gains over a single draw; near 0 when all draws agree.",
    family="quality",
    direction="neutral",
    bounds=(-1.0, 1.0),
    needs=frozenset({"quality"}),
    min_k=2,
    source="Wang et al. 2023, arXiv:2203.11171",
    signature="ties:wrong",
    standard=False,
)
