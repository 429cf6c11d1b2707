"""Lexical diversity within a prompt: distinct n-grams, self-BLEU, unique completions, repeated openings."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from divmon.metrics.base import Metric, MetricContext, Result, per_prompt
from divmon.metrics.text import WORDS, WordRow, ngrams, word_rows
from divmon.records import SampleBatch

OPENING_WORDS = 4
_BLEU_ORDERS = 4
_EPSILON = 0.1  # what NLTK's smoothing method 1 puts in the place of no match


def distinct_n(batch: SampleBatch, context: MetricContext, *, n: int) -> Result:
    """Distinct n-grams over all n-grams, pooled over a prompt's K completions; between 0 and 1, higher is more diverse.

    What moves it besides diversity: K and length, strongly (going from 12 completions to 3 raises distinct-1 by about
    a half), so compare at equal K and length only. Orders differ in what they see: 1 is vocabulary, 4 is phrasing.

    Returns:
        float[P]; NaN where no completion has n words.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("to be", "to do"),))
    >>> distinct_n(batch, MetricContext(batch), n=1).values.tolist()
    [0.75]

    Source: Li et al. (2016), arXiv:1510.03055.
    """
    rows = word_rows(context)

    def value(i: int) -> float:
        grams = np.sort(ngrams(rows[i], n)[0])
        if not grams.size:
            return math.nan
        return float(1 + np.count_nonzero(grams[1:] != grams[:-1])) / grams.size

    return per_prompt(batch, value, reason=f"no completion has {n} words")


def _clipped(row: WordRow, n: int) -> np.ndarray:
    """float[K]: n-grams of each completion that another has too, each counted at most as often as there.

    The largest count over the *other* completions is the largest or second largest count over all, so two numbers an
    n-gram suffice and no pair of completions is ever compared.
    """
    grams, owners = ngrams(row, n)
    k = len(row.lengths)
    if not grams.size:
        return np.zeros(k)
    kinds = np.unique(grams, return_inverse=True)[1]
    pairs, counts = np.unique(kinds * k + owners, return_counts=True)
    order = np.lexsort((counts, pairs // k))
    kind, owner, count = pairs[order] // k, pairs[order] % k, counts[order]
    last = np.flatnonzero(np.diff(kind, append=-1))
    alone = np.diff(last, prepend=-1) == 1
    rival = count[last][kind]  # kinds run from 0 without gaps
    rival[last] = np.where(alone, 0, count[last - 1])
    return np.bincount(owner, np.minimum(count, rival), minlength=k)


def _closest_lengths(lengths: np.ndarray) -> np.ndarray:
    """int64[K]: the length nearest to each completion's own among the others, the shorter one on a tie."""
    order = np.argsort(lengths, kind="stable")
    gaps = np.diff(lengths[order]).astype(float)
    below, above = np.append(math.inf, gaps), np.append(gaps, math.inf)
    at = np.arange(len(lengths))
    closest = np.empty_like(lengths)
    closest[order] = lengths[order][np.where(below <= above, at - 1, np.minimum(at + 1, len(at) - 1))]
    return closest


def _self_bleu(row: WordRow) -> float:
    k = len(row.lengths)
    if k < 2:
        return math.nan
    matches = np.stack([_clipped(row, n) for n in range(1, _BLEU_ORDERS + 1)])
    possible = np.stack([np.maximum(1, row.lengths - n + 1) for n in range(1, _BLEU_ORDERS + 1)])
    precision = np.where(matches > 0, matches, _EPSILON) / possible
    closest = _closest_lengths(row.lengths)
    ratio = closest / np.maximum(1, row.lengths)
    brevity = np.where(row.lengths > closest, 1.0, np.exp(1.0 - ratio))
    scores = brevity * np.exp(np.log(precision).mean(axis=0))
    return float(np.where(matches[0] > 0, scores, 0.0).mean())


def self_bleu(batch: SampleBatch, context: MetricContext) -> Result:
    """Mean over a prompt's completions of BLEU-4 against the others; between 0 and 1, lower is more diverse.

    What moves it besides diversity: K (each further completion is one more reference; -55 % from 12 to 3) and length,
    and very short completions, which live off the smoothing. It sees exact phrases only, so paraphrase looks diverse.

    Returns:
        float[P]. Equal to NLTK's ``sentence_bleu`` with smoothing method 1, in time linear in the words.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("a b c d", "a b c d"),))
    >>> self_bleu(batch, MetricContext(batch)).values.round(9).tolist()
    [1.0]

    Source: Zhu et al. (2018), arXiv:1802.01886; smoothing of Chen and Cherry (2014), method 1.
    """
    rows = word_rows(context)
    return per_prompt(batch, lambda i: _self_bleu(rows[i]))


def unique_fraction(batch: SampleBatch, context: MetricContext) -> Result:
    """Different completions over K, surrounding white space ignored; between 1/K and 1, higher is more diverse.

    What moves it besides diversity: length. Long completions are all different until the very last stage of a
    collapse, so 1.0 says little about them; for short answers it says much. It falls with K.

    Returns:
        float[P].

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("yes", "yes ", "no", "no"),))
    >>> unique_fraction(batch, MetricContext(batch)).values.tolist()
    [0.5]

    Source: share of exact duplicates, as in Lee et al. (2022), arXiv:2107.06499, within one prompt.
    """

    def value(i: int) -> float:
        row = batch.texts[i]
        return len({text.strip() for text in row}) / len(row) if row else math.nan

    return per_prompt(batch, value)


def opening_dominance(batch: SampleBatch, context: MetricContext) -> Result:
    """Share of a prompt's completions that begin with its most common first four words; lower is more diverse.

    Between 1/K and 1. A completion of fewer than four words opens with all it has.

    What moves it besides diversity: the prompt (some questions have one natural opening, and a model may repeat the
    question), so read its change from the baseline, not its level.

    Returns:
        float[P].

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("Once upon a time in", "Once upon a time at", "It was", "So"),))
    >>> opening_dominance(batch, MetricContext(batch)).values.tolist()
    [0.5]

    Source: a definition of divmon, after the templated openings in Shaib et al. (2024), arXiv:2407.00211.
    """
    rows = word_rows(context)

    def value(i: int) -> float:
        row, k = rows[i], len(rows[i].lengths)
        begin = np.cumsum(row.lengths) - row.lengths
        stop = begin + np.minimum(row.lengths, OPENING_WORDS)
        openings = Counter(tuple(row.ids[a:b].tolist()) for a, b in zip(begin, stop, strict=True))
        return max(openings.values()) / k if k else math.nan

    return per_prompt(batch, value)


def _distinct(n: int) -> Metric:
    def fn(batch: SampleBatch, context: MetricContext) -> Result:
        return distinct_n(batch, context, n=n)

    return Metric(
        name=f"distinct_{n}",
        fn=fn,
        summary=f"Distinct {n}-grams of words over all of them, pooled over a prompt's completions.",
        family="lexical",
        direction="higher",
        source="Li et al. 2016, arXiv:1510.03055",
        signature=f"n:{n}|{WORDS}",
    )


DISTINCT = tuple(_distinct(n) for n in (1, 2, 3, 4))

SELF_BLEU = Metric(
    name="self_bleu",
    fn=self_bleu,
    summary="Mean BLEU-4 of each completion against the prompt's others.",
    family="lexical",
    direction="lower",
    source="Zhu et al. 2018, arXiv:1802.01886",
    signature=f"bleu:4|smooth:method1|{WORDS}",
)

UNIQUE_FRACTION = Metric(
    name="unique_fraction",
    fn=unique_fraction,
    summary="Share of a prompt's completions that are different texts.",
    family="lexical",
    direction="higher",
    source="after Lee et al. 2022, arXiv:2107.06499",
    signature="text:stripped",
)

OPENING_DOMINANCE = Metric(
    name="opening_dominance",
    fn=opening_dominance,
    summary="Share of a prompt's completions that begin with its most common first four words.",
    family="lexical",
    direction="lower",
    source="divmon",
    signature=f"w:{OPENING_WORDS}|{WORDS}",
)
