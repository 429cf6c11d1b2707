"""Lexical diversity within a prompt: distinct n-grams, self-BLEU, unique completions, repeated openings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from divmon.errors import ConfigError
from divmon.metrics.base import Metric, MetricContext, Result, per_prompt
from divmon.metrics.grams import GramRow, gram_rows
from divmon.metrics.text import WORDS, word_rows
from divmon.records import SampleBatch

OPENING_WORDS = 4
_BLEU_ORDERS = 4
_EAD_ORDERS = 5
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
    rows = gram_rows(context, n)

    def value(i: int) -> float:
        total = float(rows[i].counts.sum())
        return rows[i].size / total if total else math.nan

    return per_prompt(batch, value, reason=f"no completion has {n} words")


def _clipped(row: GramRow) -> np.ndarray:
    """float[K]: n-grams of each completion that another has too, each counted at most as often as there.

    The largest count over the *other* completions is the largest or second largest count over all, so two numbers an
    n-gram suffice and no pair of completions is ever compared.
    """
    row = row.shared()
    top = row.largest(row.counts)
    first = row.counts == row.spread(top)
    tied = row.summed(first) > 1
    rival = np.where(tied, top, row.largest(np.where(first, 0, row.counts)))
    return np.bincount(row.owners, np.where(first, row.spread(rival), row.counts), minlength=row.k)


def _closest_lengths(lengths: np.ndarray) -> np.ndarray:
    """int64[K]: the length nearest to each completion's own among the others, the shorter one on a tie."""
    order = np.argsort(lengths, kind="stable")
    gaps = np.diff(lengths[order]).astype(float)
    below, above = np.append(math.inf, gaps), np.append(gaps, math.inf)
    at = np.arange(len(lengths))
    closest = np.empty_like(lengths)
    closest[order] = lengths[order][np.where(below <= above, at - 1, np.minimum(at + 1, len(at) - 1))]
    return closest


def _self_bleu(lengths: np.ndarray, orders: Sequence[GramRow]) -> float:
    if len(lengths) < 2:
        return math.nan
    matches = np.stack([_clipped(row) for row in orders])
    possible = np.maximum(1, lengths - np.arange(len(orders))[:, None])
    precision = np.where(matches > 0, matches, _EPSILON) / possible
    closest = _closest_lengths(lengths)
    brevity = np.where(lengths > closest, 1.0, np.exp(1.0 - closest / np.maximum(1, lengths)))
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
    orders = [gram_rows(context, n) for n in range(1, _BLEU_ORDERS + 1)]
    return per_prompt(batch, lambda i: _self_bleu(rows[i].lengths, [order[i] for order in orders]))


def ead(batch: SampleBatch, context: MetricContext, *, vocabulary: int) -> Result:
    """Expectation-adjusted distinct n-grams: mean over n = 1..5 of U / (V (1 - ((V - 1) / V)^T)).

    Higher is more diverse. U are the distinct and T all n-grams of a prompt's completions taken together; the
    denominator is the number of distinct ones to expect of T draws out of V equally likely ones. 0 upward; it may
    exceed 1 and is not clipped.

    What moves it besides diversity: K and length, as much as they move `distinct_n`. The adjustment is meant to take
    them out, but T is thousands and V tens of thousands here, so the denominator is T within a few per cent and nothing
    is corrected. It is here for comparison with the literature; prefer `jaccard_distance_n` and `rarefied_distinct_n`.
    `vocabulary` is by convention a language model's, though the n-grams are of words as divmon splits them.

    Returns:
        float[P]; NaN where no completion has five words.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("a a a a a", "a a a a a"),))
    >>> ead(batch, MetricContext(batch), vocabulary=50_257).values.round(4).tolist()
    [0.2283]

    Source: Liu et al. (2022), arXiv:2202.13587; n = 1..5 and V = 50,257 after Kirk et al. (2024), arXiv:2310.06452.
    """
    orders = [gram_rows(context, n) for n in range(1, _EAD_ORDERS + 1)]

    def adjusted(row: GramRow) -> float:
        total = float(row.counts.sum())
        expected = -vocabulary * math.expm1(total * math.log1p(-1.0 / vocabulary))
        return row.size / expected if total else math.nan

    def value(i: int) -> float:
        return math.fsum(adjusted(order[i]) for order in orders) / _EAD_ORDERS

    return per_prompt(batch, value, reason=f"no completion has {_EAD_ORDERS} words")


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


def ead_metric(vocabulary: int = 50_257) -> Metric:
    """Expectation-adjusted distinct n-grams for a vocabulary of this size; see `ead`.

    >>> ead_metric(32_000).signature
    'n:1-5|V:32000|tok:split+cjk|case:kept'

    Source: see `ead`.

    Raises:
        ConfigError: `vocabulary` is not a whole number of at least 2.
    """
    if not isinstance(vocabulary, int) or vocabulary < 2:
        raise ConfigError(f"vocabulary={vocabulary!r}: pass a whole number of at least 2, a tokenizer's size.")

    def fn(batch: SampleBatch, context: MetricContext) -> Result:
        return ead(batch, context, vocabulary=vocabulary)

    return Metric(
        name="ead",
        fn=fn,
        summary="Distinct n-grams over those to expect of as many random ones, mean over n = 1 to 5.",
        family="lexical",
        direction="higher",
        bounds=(0.0, math.inf),
        source="Liu et al. 2022, arXiv:2202.13587; Kirk et al. 2024, arXiv:2310.06452",
        signature=f"n:1-{_EAD_ORDERS}|V:{vocabulary}|{WORDS}",
        standard=False,
    )


EAD = ead_metric()

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
