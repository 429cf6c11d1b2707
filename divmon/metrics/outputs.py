"""Tails over outputs, from samples: how many different answers, how many still unseen, which rare ones are left.

Every completion is put into one class (`output_class`), and the statistics count classes within a prompt. Estimators
that allow for few draws are those of `divmon.metrics.richness`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from divmon.metrics.answers import answer_key, extract_answer, marked_answer
from divmon.metrics.base import Metric, MetricContext, PerPrompt, Pooled, Result
from divmon.metrics.richness import chao_jost_entropy, good_turing_coverage, none_of
from divmon.metrics.spectrum import collision_unbiased
from divmon.metrics.structure import classify
from divmon.records import SampleBatch

SHORT = 80  # characters up to which a text without a marked answer is a class of its own
CLASSES = f"classes:answer-else-text{SHORT}-else-format"
_HALF = 2  # fewest draws in half of the baseline that tell rare classes from common ones
_TWICE = 8  # from so many draws in the half on, a class seen twice is rare as well


def output_class(text: str, *, gold: bool = False) -> str:
    """The class of a completion: its answer; else, if it is short, what it says; else its format.

    An answer is what the completion marks as one (boxed, ``####``, "answer is"), compared as a number where it is one.
    For a prompt with a gold answer (`gold`) the last number counts as well, and a completion without any is "none".
    Short means at most 80 characters, compared without case and punctuation; the format is the built-in one.

    What moves it besides the answer: truncation (the last number of a cut text is no answer) and long open-ended texts,
    whose classes are no finer than formats: use distances there.

    >>> [output_class(text) for text in ("So \\\\boxed{1,200}", "Paris!", "- a\\n- b" * 40)]
    ['answer:1200', 'text:paris', 'format:bullets']
    >>> output_class("They paid $6 and then $7", gold=True), output_class("I give up", gold=True)
    ('answer:7', 'none')

    Source: this project; a class for what has no answer after "The Invisible Leash" (2025), arXiv:2507.14843.
    """
    answer = extract_answer(text) if gold else marked_answer(text)
    if answer:
        return f"answer:{answer_key(answer)}"
    if gold:
        return "none"
    short = text.strip()
    return f"text:{answer_key(short)}" if len(short) <= SHORT else f"format:{classify(text)[0]}"


@dataclass(frozen=True)
class ClassCounts:
    """Completions by class: float[P, C] each, where a column means another class in every row.

    Attributes:
        now: Of this batch.
        before: Of the same prompts at the baseline; rows of zeros for prompts that were not there.
    """

    now: np.ndarray
    before: np.ndarray


def _classes(context: MetricContext) -> list[list[str]]:
    def compute() -> list[list[str]]:
        batch = context.batch
        return [
            [output_class(text, gold=probe.gold is not None) for text in row]
            for probe, row in zip(batch.probes, batch.texts, strict=True)
        ]

    return context.cached("output_classes", compute)


def class_counts(context: MetricContext) -> ClassCounts:
    """Counts of output classes by prompt, now and at the baseline, made once a batch.

    >>> from divmon.records import Probe
    >>> context = MetricContext(SampleBatch(0, (Probe("a", "?"),), (("yes", "Yes.", "no"),)))
    >>> class_counts(context).now.tolist()
    [[2.0, 1.0]]

    Source: this project.
    """

    def compute() -> ClassCounts:
        there = _classes(context.reference)
        pairs = [
            (row, there[i] if i >= 0 else []) for row, i in zip(_classes(context), context.baseline_rows, strict=True)
        ]
        columns = [{name: j for j, name in enumerate(dict.fromkeys((*now, *before)))} for now, before in pairs]
        shape = (len(pairs), max(map(len, columns), default=0))
        counts = ClassCounts(np.zeros(shape), np.zeros(shape))
        for p, (column, (now, before)) in enumerate(zip(columns, pairs, strict=True)):
            np.add.at(counts.now[p], [column[name] for name in now], 1.0)
            np.add.at(counts.before[p], [column[name] for name in before], 1.0)
        return counts

    return context.cached("class_counts", compute)


def _by_prompt(batch: SampleBatch, values: np.ndarray, draws: np.ndarray) -> PerPrompt:
    lost = np.isnan(values)
    reasons = tuple("no completions" if missing else None for missing in lost)
    return PerPrompt(values, np.where(lost, 0, draws.sum(axis=-1)).astype(int), reasons)


def answer_entropy(batch: SampleBatch, context: MetricContext) -> Result:
    """Shannon entropy of a prompt's answers in nats (Chao-Jost, which allows for unseen ones), 0 or more. float[P].

    Higher is more diverse. On problems with one right answer its fall is what learning looks like, so read it beside
    `pass_at_1`. It may fall while token entropy rises (published: 1.30 to .66 against .44 to .52).

    What moves it besides diversity: very few draws (see `chao_jost_entropy`), and what counts as one answer
    (`output_class`).

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("yes", "Yes.", "no", "no"),))
    >>> answer_entropy(batch, MetricContext(batch)).values.round(3).tolist()
    [0.833]

    Source: Chao, Wang and Jost (2013); answer entropy after "The Invisible Leash" (2025), arXiv:2507.14843.
    """
    counts = class_counts(context).now
    return _by_prompt(batch, chao_jost_entropy(counts), counts)


def unseen_mass(batch: SampleBatch, context: MetricContext) -> Result:
    """Good-Turing share of the policy's probability on answers that were not seen: answers seen once over K; 0 to 1.

    Higher is more diverse: how much of the tail lies beyond the sample. float[P].

    What moves it besides diversity: K (more draws leave less unseen), and what counts as one answer.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("yes", "Yes.", "no", "maybe"),))
    >>> unseen_mass(batch, MetricContext(batch)).values.tolist()
    [0.5]

    Source: Good (1953), Biometrika 40.
    """
    counts = class_counts(context).now
    return _by_prompt(batch, 1.0 - good_turing_coverage(counts), counts)


def effective_answers(batch: SampleBatch, context: MetricContext) -> Pooled:
    """Effective number of different answers to a prompt (Hill number of order 2); 1 or more, higher is more diverse.

    One over the unbiased probability that two completions of a prompt give the same answer, averaged over prompts and
    inverted once, so it does not grow with K. Where no two completions of any prompt agree it is the largest number
    that so many pairs can show: the number of prompts times the pairs of one.

    What moves it besides diversity: prompts with a single answer, which dominate the mean, and what counts as one
    answer. Over few prompts it is noisy.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("yes", "Yes.", "no", "no"),))
    >>> result = effective_answers(batch, MetricContext(batch))
    >>> float(result.combine(result.parts))
    3.0

    Source: Hill (1973), Ecology 54(2), by Simpson's (1949) unbiased estimator.
    """
    counts = class_counts(context).now
    same, draws = collision_unbiased(counts), counts.sum(axis=-1)
    known = ~np.isnan(same)
    pairs = np.where(known, draws * (draws - 1) / 2, 0.0)
    parts = np.stack([np.where(known, same, 0.0), known.astype(float), pairs], axis=-1)

    def combine(columns: np.ndarray) -> np.ndarray:
        total, prompts, _ = np.moveaxis(columns.sum(axis=-2), -1, 0)
        most = prompts * columns[..., 2].max(axis=-1, initial=0.0)
        value = np.divide(prompts, total, out=np.array(most, dtype=float), where=total > 0)
        return np.where(prompts > 0, np.maximum(value, 1.0), math.nan)

    return Pooled(parts, combine, reason="no prompt has two completions")


def rare_retention(now: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rare classes of the baseline seen now, and how many an unchanged policy would show; float[P] each.

    Both are about halves of the baseline's draws, h of them (fewer where there are fewer now), and exact means over
    every way of picking them. Observed: classes rare in the half (seen once; once or twice from 8 draws on) and met in
    h of the draws now. Expected: classes rare in one half and met in h of the *other* draws of the baseline. For
    independent draws of one policy the two have the same mean whatever its distribution, so their ratio is 1 but for
    noise; the plain share of rare classes seen again is not, as most rare classes are missed by any second sample.

    What moves it besides narrowing: draws that are not independent of the baseline's (equal noise) raise the observed.

    Args:
        now: float[P, C] counts.
        before: float[P, C] counts of the same classes at the baseline.

    Returns:
        Observed and expected, NaN where the baseline has fewer than four draws or there are fewer than two now.

    >>> observed, expected = rare_retention(np.array([[4.0, 0.0]]), np.array([[2.0, 2.0]]))
    >>> observed.round(3).tolist(), expected.round(3).tolist()
    ([0.667], [1.333])

    Source: this project; a U-statistic on the idea of Good (1953), Biometrika 40.
    """
    n, m = before.sum(axis=-1), now.sum(axis=-1)
    h = np.minimum(n // 2, m)
    known = h >= _HALF
    size, total, draws = (np.where(known, x, math.nan)[..., None] for x in (h, n, m))
    observed, expected = np.zeros(before.shape), np.zeros(before.shape)
    met = 1.0 - none_of(draws - now, draws, size)
    for times in (1, 2):
        rare = _picked(before, total, size, times)
        rare = rare if times == 1 else np.where(size >= _TWICE, rare, np.where(np.isnan(size), math.nan, 0.0))
        left = np.maximum(before - times, 0.0)
        again = 1.0 - none_of(np.maximum(total - size - left, 0.0), total - size, size)
        observed, expected = observed + rare * met, expected + rare * again
    return observed.sum(axis=-1), expected.sum(axis=-1)


def _picked(count: np.ndarray, total: np.ndarray, size: np.ndarray, times: int) -> np.ndarray:
    """Probability that `size` of `total` draws hold a class of `count` draws exactly `times` (1 or 2) times."""
    chance = size * count / total
    if times == 2:
        chance = chance * (size - 1) * (count - 1) / (2 * (total - 1))
    return np.asarray(np.maximum(chance, 0.0) * none_of(total - count, total - times, size - times))


def rare_retained(batch: SampleBatch, context: MetricContext) -> Pooled:
    """Rare answers of the baseline still given, over what an unchanged policy would show: 1 unchanged, 0 all gone.

    The sum over prompts of `rare_retention`'s observed numbers over the sum of its expected ones; 0 or more, 1 at the
    baseline. `parts` has three columns: observed, expected, prompts with enough draws.

    What moves it besides narrowing: few recurring answers (then it is missing, or noisy); K, which is part of what rare
    means; and noise shared with the baseline: a policy that has hardly moved repeats its completions when sampled with
    the same noise, and then the number starts above 1.

    >>> from divmon.records import Probe
    >>> base, now = (SampleBatch(0, (Probe("a", "?"),), (row,)) for row in (("a", "a", "b", "b"), ("a",) * 4))
    >>> result = rare_retained(now, MetricContext(now, baseline=MetricContext(base)))
    >>> round(float(result.combine(result.parts)), 6)
    0.5

    Source: this project.
    """
    counts = class_counts(context)
    observed, expected = rare_retention(counts.now, counts.before)
    if context.reference is context or batch.texts == context.reference.batch.texts:
        observed = expected  # the very draws of the baseline are no evidence about a second sample
    parts = np.stack([np.nan_to_num(observed), np.nan_to_num(expected), (~np.isnan(expected)).astype(float)], axis=-1)

    def combine(columns: np.ndarray) -> np.ndarray:
        sums = columns.sum(axis=-2)
        seen, due = sums[..., 0], sums[..., 1]
        return np.asarray(np.divide(seen, due, out=np.full(np.shape(due), math.nan), where=due > 0))

    def details(columns: np.ndarray) -> Mapping[str, Any]:
        return dict(zip(("seen_again", "expected", "prompts"), columns.sum(axis=0).tolist(), strict=True))

    reason = "no rare answer of the baseline recurs in its own other half, or fewer than four completions a prompt"
    return Pooled(parts, combine, details, reason, additive=True)


def _metric(fn: Callable[..., Result], summary: str, **rest: Any) -> Metric:
    fixed: dict[str, Any] = {"family": "coverage", "direction": "higher", "standard": False, "signature": CLASSES}
    return Metric(name=fn.__name__, fn=fn, summary=summary, **{**fixed, **rest})


ANSWER_ENTROPY = _metric(
    answer_entropy,
    "How varied a prompt's answers are, unseen ones allowed for; falling means narrowing, to the right answer or not.",
    bounds=(0.0, math.inf),
    unit="nats",
    source="Chao, Wang and Jost 2013, Methods Ecol. Evol. 4(11)",
)
EFFECTIVE_ANSWERS = _metric(
    effective_answers,
    "How many different answers a prompt really gets, rare ones counting little; falling means narrowing.",
    scope="pooled",
    bounds=(1.0, math.inf),
    unit="answers",
    source="Hill 1973, Ecology 54(2)",
)
UNSEEN_MASS = _metric(
    unseen_mass,
    "Estimated chance that the next completion gives an answer not seen among the K; falling means a thinner tail.",
    source="Good 1953, Biometrika 40",
)
RARE_RETAINED = _metric(
    rare_retained,
    "Rare answers of the baseline that are still given, as a multiple of what an unchanged policy would show: 1 "
    "unchanged, 0 all gone.",
    direction="neutral",
    scope="pooled",
    bounds=(0.0, math.inf),
    source="divmon",
    signature=f"{CLASSES}|rare:half,1-2",
    compares=True,
)
