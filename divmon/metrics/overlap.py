"""How much a prompt's completions share with each other: means over pairs of completions.

A mean over pairs does not drift with the number of completions, unlike `distinct_n` or `self_bleu`. Two of these need
the value of every pair; where a prompt has more than `ALL_PAIRS` completions they look at a fixed part of the pairs
instead: the texts are sorted, shuffled by a generator with a fixed seed and cut into blocks of about `BLOCK`, and only
pairs within a block count. Work is then linear in the completions, and every completion is in about as many pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist
from scipy.sparse import csr_matrix

from divmon.errors import ConfigError
from divmon.metrics.base import Metric, MetricContext, PerPrompt, Result, per_prompt
from divmon.metrics.grams import GramRow, gram_rows
from divmon.metrics.text import WORDS, WordRow, word_row, word_rows
from divmon.records import SampleBatch

ALL_PAIRS = 2000  # completions up to which every pair is looked at
BLOCK = 100  # completions beyond that whose pairs are looked at together
REPEATED = 4  # words of the n-grams that `self_repetition` counts
_PAIRS = f"pairs:all<={ALL_PAIRS},else blocks of {BLOCK}"
_STRIP = 256  # rows of a product of sparse matrices held at once
_SURROGATES = (0xD800, 0x800)  # where code points that are no characters begin, and how many there are
_CHARACTERS = 0x110000 - _SURROGATES[1]


def blocks(texts: Sequence[str], *, most: int | None = None) -> list[np.ndarray]:
    """Which completions are compared with each other: one block of all, or many beyond `most` (`ALL_PAIRS`).

    The blocks depend on the texts alone, not on their order; equal texts are as likely as others to meet.

    >>> [block.tolist() for block in blocks(["b", "a"])], len(blocks(["a"] * 2001))
    ([[0, 1]], 21)

    Source: an incomplete U-statistic, Blom (1976), Biometrika 63(3).
    """
    k = len(texts)
    if k <= (ALL_PAIRS if most is None else most):
        return [np.arange(k)]
    order = np.array(sorted(range(k), key=texts.__getitem__))
    return np.array_split(order[np.random.default_rng(0).permutation(k)], math.ceil(k / BLOCK))


def mean_jaccard(sets: GramRow, parts: Sequence[np.ndarray]) -> float:
    """Mean over pairs of completions of |A ∩ B| / |A ∪ B|, each completion the set of its n-grams; two empty ones: 1.

    Args:
        sets: Which n-grams each completion has; how often does not matter.
        parts: The blocks of completions whose pairs count.

    Returns:
        A number between 0 and 1; NaN without a pair.

    Source: Jaccard (1912), New Phytologist 11(2).
    """
    sizes = np.bincount(sets.owners, minlength=sets.k)
    shared = sets.shared()
    ones = np.ones(len(shared.owners), dtype=np.int32)
    grams = csr_matrix((ones, shared.owners, shared.bounds), shape=(shared.size, sets.k))
    members = grams.T.tocsr()
    total = pairs = 0.0
    for part in parts:
        rows = members if len(parts) == 1 else members[part]
        columns = grams if len(parts) == 1 else rows.T.tocsr()
        total += sum(_ratios(rows, columns, sizes[part], at) for at in range(0, len(part), _STRIP))
        empty = np.count_nonzero(sizes[part] == 0)
        total += empty * (empty - 1) / 2
        pairs += len(part) * (len(part) - 1) / 2
    return min(1.0, float(total / pairs)) if pairs else math.nan


def _ratios(rows: csr_matrix, columns: csr_matrix, sizes: np.ndarray, at: int) -> float:
    """Sum of the Jaccard indices of completions `at`, `at` + 1, ... with those after them."""
    product = rows[at : at + _STRIP] @ columns
    one = np.repeat(np.arange(at, at + product.shape[0]), np.diff(product.indptr))
    after = product.indices > one
    both = product.data[after]
    return float(np.sum(both / (sizes[one[after]] + sizes[product.indices[after]] - both)))


def jaccard_distance(batch: SampleBatch, context: MetricContext, *, n: int) -> Result:
    """1 - mean over pairs of a prompt's completions of the Jaccard index of their sets of word n-grams.

    Between 0 (all have the same n-grams) and 1 (no two share one); higher is more diverse. Two completions without an
    n-gram count as equal.

    What moves it besides diversity: length, and where in a text one looks (openings are more alike than what follows);
    unequal lengths alone keep the index below 1. It hardly moves with K (under 6 % from 12 completions to 3).

    Returns:
        float[P].

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("to be", "to do", "to be"),))
    >>> jaccard_distance(batch, MetricContext(batch), n=1).values.round(3).tolist()
    [0.444]

    Source: Jaccard (1912), New Phytologist 11(2).
    """
    rows = gram_rows(context, n)
    return per_prompt(batch, lambda i: 1.0 - mean_jaccard(rows[i], blocks(batch.texts[i])))


def _collision(row: GramRow) -> float:
    totals = row.totals
    k = np.count_nonzero(totals)
    if k < 2:
        return math.nan
    shares = row.counts / totals[row.owners]
    same = np.sum(row.summed(shares) ** 2 - row.summed(shares * shares))
    return float(np.clip(same / (k * (k - 1)), 0.0, 1.0))


def _of_enough(batch: SampleBatch, values: Callable[[int], float], rows: Sequence[GramRow], n: int) -> PerPrompt:
    """A result to which only completions with at least one n-gram contribute."""
    result = per_prompt(batch, values, reason=f"fewer than 2 completions have {n} words")
    used = np.array([np.count_nonzero(row.totals) for row in rows], dtype=int)
    return PerPrompt(result.values, np.where(np.isnan(result.values), 0, used), result.reasons)


def collision(batch: SampleBatch, context: MetricContext, *, n: int) -> Result:
    """Probability that a random n-gram of one completion equals a random one of another; lower is more diverse.

    The mean over pairs of completions, between 0 (no two share an n-gram) and 1. Completions of fewer than n words are
    left out.

    What moves it besides diversity: common phrases of the language, whatever the answers, so read its change; the
    length at which texts stop repeating themselves (in equal completions of T different n-grams it is 1/T), and
    position, since openings are more alike. It does not drift with K.

    Returns:
        float[P], from the sums of every n-gram's shares, in time linear in the words.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("so it is", "so it was"),))
    >>> collision(batch, MetricContext(batch), n=2).values.tolist()
    [0.25]

    Source: Simpson (1949), Nature 163, across completions; Morisita (1959) has the same numerator.
    """
    rows = gram_rows(context, n)
    return _of_enough(batch, lambda i: _collision(rows[i]), rows, n)


def _repetition(row: GramRow) -> float:
    has = np.bincount(row.owners, minlength=row.k) > 0
    if np.count_nonzero(has) < 2:
        return math.nan
    elsewhere = np.bincount(row.owners, row.spread(row.documents - 1), minlength=row.k)
    return float(np.log1p(elsewhere[has]).mean())


def self_repetition(batch: SampleBatch, context: MetricContext) -> Result:
    """Mean over a prompt's completions of log(1 + sum of N(g)); lower is more diverse.

    The sum is over the different 4-grams g of the completion, and N(g) is the number of the *other* completions that
    have g. 0 (no 4-gram is in two completions) upward, in nats. Completions of fewer than 4 words are left out.

    What moves it besides diversity: K and length, both through the logarithm of a sum (with twice as many completions
    a repeated phrase is found twice as often), so compare at equal K and length only.

    Returns:
        float[P].

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("it was a dark night", "it was a dark day", "a b c d"),))
    >>> self_repetition(batch, MetricContext(batch)).values.round(4).tolist()
    [0.4621]

    Source: Salkar et al. (2022), AACL; Shaib et al. (2024), arXiv:2403.00553.
    """
    rows = gram_rows(context, REPEATED)
    return _of_enough(batch, lambda i: _repetition(rows[i]), rows, REPEATED)


def _sequences(row: WordRow) -> list[str] | list[list[int]]:
    """Each completion with a character for every word; lists of ids where words are more than characters."""
    ends = np.cumsum(row.lengths)
    cuts = list(zip((ends - row.lengths).tolist(), ends.tolist(), strict=True))
    if row.size > _CHARACTERS:
        return [row.ids[a:b].tolist() for a, b in cuts]
    first, many = _SURROGATES
    codes = np.where(row.ids >= first, row.ids + many, row.ids).astype("<u4")
    return [codes[a:b].tobytes().decode("utf-32-le") for a, b in cuts]


def _mean_f1(row: WordRow, parts: Sequence[np.ndarray]) -> float:
    sequences = _sequences(row)
    total = pairs = 0.0
    for part in parts:
        chosen = [sequences[i] for i in part]
        lengths = row.lengths[part]
        common = cdist(chosen, chosen, scorer=LCSseq.similarity, dtype=np.int32)
        both = lengths[:, None] + lengths
        scores = np.where(both > 0, 2.0 * common / np.maximum(both, 1), 1.0)
        total += float(np.sum(scores) - np.trace(scores)) / 2
        pairs += len(part) * (len(part) - 1) / 2
    return float(np.clip(total / pairs, 0.0, 1.0)) if pairs else math.nan


def rouge_l(
    batch: SampleBatch, context: MetricContext, *, split: Callable[[str], Sequence[str]] | None = None
) -> Result:
    """Homogenisation: mean ROUGE-L F1 over pairs of a prompt's completions; lower is more diverse.

    Twice the longest common subsequence of words over the sum of the two lengths: between 0 and 1. Two empty
    completions count as equal (1); an empty one and another have 0.

    What moves it besides diversity: length (any two long texts share some function words in order) and the
    tokenisation. Exact, and it hardly moves with K. Among similarities that see words only, one of the closest to
    human judgement; a paraphrase still counts as different.

    Args:
        batch: The completions.
        context: Of the batch.
        split: Cuts a text into words; divmon's `words` by default.

    Returns:
        float[P].

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("the cat sat", "the dog sat down"),))
    >>> rouge_l(batch, MetricContext(batch)).values.round(4).tolist()
    [0.5714]

    Source: Lin (2004), ROUGE; as homogenisation, Padmakumar and He (2024), arXiv:2309.05196.
    """
    rows = word_rows(context) if split is None else [word_row(texts, split) for texts in batch.texts]
    return per_prompt(batch, lambda i: _mean_f1(rows[i], blocks(batch.texts[i])))


def _order(n: int) -> int:
    if not isinstance(n, int) or n < 1:
        raise ConfigError(f"n={n!r}: pass the words of an n-gram, a whole number of at least 1.")
    return n


def jaccard_metric(n: int) -> Metric:
    """`jaccard_distance` of word n-grams of this order, as a metric."""

    def fn(batch: SampleBatch, context: MetricContext) -> Result:
        return jaccard_distance(batch, context, n=n)

    return Metric(
        name=f"jaccard_distance_{_order(n)}",
        fn=fn,
        summary=f"1 - mean Jaccard index of the sets of word {n}-grams over a prompt's pairs of completions.",
        family="lexical",
        direction="higher",
        source="Jaccard 1912, New Phytologist 11(2)",
        signature=f"n:{n}|{_PAIRS}|{WORDS}",
        standard=False,
    )


def collision_metric(n: int) -> Metric:
    """`collision` of word n-grams of this order, as a metric: ``bigram_collision`` for 2, else ``collision_<n>``."""

    def fn(batch: SampleBatch, context: MetricContext) -> Result:
        return collision(batch, context, n=n)

    return Metric(
        name="bigram_collision" if _order(n) == 2 else f"collision_{n}",
        fn=fn,
        summary=f"Chance that random word {n}-grams of two of a prompt's completions are equal.",
        family="lexical",
        direction="lower",
        source="Simpson 1949, Nature 163, across completions",
        signature=f"n:{n}|{WORDS}",
        standard=False,
    )


JACCARD = (jaccard_metric(1), jaccard_metric(2))
BIGRAM_COLLISION = collision_metric(2)

SELF_REPETITION = Metric(
    name="self_repetition",
    fn=self_repetition,
    summary="Mean log(1 + how often a completion's 4-grams of words are found in the prompt's other completions).",
    family="lexical",
    direction="lower",
    bounds=(0.0, math.inf),
    unit="nats",
    source="Salkar et al. 2022; Shaib et al. 2024, arXiv:2403.00553",
    signature=f"n:{REPEATED}|{WORDS}",
    standard=False,
)

ROUGE_L = Metric(
    name="rouge_l",
    fn=rouge_l,
    summary="Mean ROUGE-L F1 over a prompt's pairs of completions.",
    family="lexical",
    direction="lower",
    source="Lin 2004; Padmakumar & He 2024, arXiv:2309.05196",
    signature=f"beta:1|{_PAIRS}|{WORDS}",
    standard=False,
)
