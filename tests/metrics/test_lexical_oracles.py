"""Lexical metrics against NLTK, brute force and each other."""

import zlib
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.errors import ConfigError
from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.lexical import ead_metric
from divmon.metrics.text import WordRow, ngrams, word_rows, words
from divmon.records import Probe, SampleBatch

WORD = st.sampled_from(["a", "b", "c", "the", "end.", "End.", "森"])
TEXT = st.lists(WORD, max_size=12).map(" ".join)
ROW = st.lists(TEXT, min_size=2, max_size=7)
NAMES = ["distinct_1", "distinct_2", "distinct_3", "distinct_4", "self_bleu", "unique_fraction", "opening_dominance"]


def batch(*rows):
    return SampleBatch(0, tuple(Probe(str(i), "?") for i in range(len(rows))), tuple(map(tuple, rows)))


def value(name, row):
    return float(evaluate(METRICS[name], MetricContext(batch(row))).values[0])


def nltk_self_bleu(row):
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    smooth = bleu.SmoothingFunction().method1
    tokens = [words(text) for text in row]
    scores = [
        bleu.sentence_bleu(tokens[:i] + tokens[i + 1 :], hypothesis, smoothing_function=smooth)
        for i, hypothesis in enumerate(tokens)
    ]
    return float(np.mean(scores))


@settings(max_examples=300, deadline=None)
@given(ROW)
def test_self_bleu_equals_nltk(row):
    assert value("self_bleu", row) == pytest.approx(nltk_self_bleu(row), abs=1e-9)


@pytest.mark.parametrize(
    "row",
    [
        ["", ""],
        ["", "a"],
        ["a", "a"],
        ["a b", "b a", ""],
        ["a b c", "a b c d"],
        ["a a a a a", "a a", "a a a a a a a a"],
        ["the cat sat on the mat", "the cat sat on the mat", "a dog"],
        ["a b c d e", "a b c d e f g", "a b c"],  # a tie between the lengths 3 and 7
        ["x"] * 20,
        ["雨が降る", "雨が 降る", "雪"],
        ["\ud800 a", "\ud800 a"],
    ],
)
def test_self_bleu_equals_nltk_on_small_and_odd_sets(row):
    assert value("self_bleu", row) == pytest.approx(nltk_self_bleu(row), abs=1e-9)


def test_self_bleu_equals_nltk_on_long_texts():
    rng = np.random.default_rng(3)
    row = [" ".join(map(str, rng.zipf(1.4, size=rng.integers(1, 200)) % 300)) for _ in range(12)]
    assert value("self_bleu", row) == pytest.approx(nltk_self_bleu(row), abs=1e-9)


@settings(deadline=None)
@given(ROW, st.integers(1, 4))
def test_distinct_equals_brute_force(row, n):
    grams = [tuple(w[i : i + n]) for w in map(words, row) for i in range(len(w) - n + 1)]
    result = evaluate(METRICS[f"distinct_{n}"], MetricContext(batch(row)))
    if grams:
        assert result.values[0] == len(set(grams)) / len(grams)
    else:
        assert np.isnan(result.values[0])
        assert result.reasons == (f"no completion has {n} words",)


def brute_ead(row, vocabulary):
    """The formula in whole numbers and fractions."""
    scores = []
    for n in range(1, 6):
        grams = [tuple(w[i : i + n]) for w in map(words, row) for i in range(len(w) - n + 1)]
        if not grams:
            return float("nan")
        expected = vocabulary * (1 - Fraction(vocabulary - 1, vocabulary) ** len(grams))
        scores.append(len(set(grams)) / expected)
    return float(sum(scores) / 5)


@settings(deadline=None)
@given(ROW, st.sampled_from([2, 7, 300, 50_257, 10**9]))
def test_ead_equals_exact_fractions(row, vocabulary):
    found = float(evaluate(ead_metric(vocabulary), MetricContext(batch(row))).values[0])
    assert found == pytest.approx(brute_ead(row, vocabulary), rel=1e-12, nan_ok=True)


def test_ead_corrects_nothing_at_the_size_of_a_prompt():
    """With V = 50,257, the K = 10 to K = 3 ratio of EAD is that of plain distinct-n within 2 %."""
    rng = np.random.default_rng(1)
    row = [" ".join(map(str, rng.zipf(1.3, size=60) % 500)) for _ in range(10)]

    def mean_distinct(texts):
        counts = [[tuple(w[i : i + n]) for w in map(words, texts) for i in range(len(w) - n + 1)] for n in range(1, 6)]
        return np.mean([len(set(grams)) / len(grams) for grams in counts])

    ead = value("ead", row[:3]) / value("ead", row)
    assert ead == pytest.approx(mean_distinct(row[:3]) / mean_distinct(row), rel=0.02)
    assert ead > 1.05


def test_ead_may_exceed_one_and_is_not_clipped():
    row = [" ".join(map(str, range(2000)))]
    assert float(ead_metric(100).fn(batch(row), MetricContext(batch(row))).values[0]) > 10


@pytest.mark.parametrize("vocabulary", [0, 1, -5, 2.5, "50257"])
def test_ead_refuses_a_vocabulary_that_cannot_be(vocabulary):
    with pytest.raises(ConfigError, match="vocabulary"):
        ead_metric(vocabulary)


def test_ngrams_never_cross_completions():
    assert value("distinct_2", ["a b", "a b"]) == 0.5
    assert np.isnan(value("distinct_2", ["a", "b"]))


def test_ngram_ids_stay_exact_when_the_vocabulary_is_huge():
    rng = np.random.default_rng(0)
    ids = np.concatenate([rng.permutation(70_000), rng.permutation(70_000)[:30_000]])
    ids[-5:] = ids[:5]
    row = WordRow(ids, np.array([70_000, 30_000]), 70_000)
    for n in (2, 3, 4):
        grams, owners = ngrams(row, n)
        found = [tuple(ids[i : i + n]) for s, e in ((0, 70_000), (70_000, 100_000)) for i in range(s, e - n + 1)]
        assert len(np.unique(grams)) == len(set(found))
        assert np.bincount(owners).tolist() == [70_001 - n, 30_001 - n]
        assert grams[-(5 - n + 1)] == grams[0]


def test_word_ids_are_exact_and_cached():
    context = MetricContext(batch(["a b a", "b c"]))
    row = word_rows(context)[0]
    assert row.ids.tolist() == [0, 1, 0, 1, 2]
    assert (row.lengths.tolist(), row.size) == ([3, 2], 3)
    assert word_rows(context)[0] is row


def test_tokenisation_is_what_its_name_says():
    assert words("  Don't\u2003stop.\nNow ") == ["Don't", "stop.", "Now"]
    assert words("漢字 and カナ") == ["漢", "字", "and", "カ", "ナ"]
    assert words("") == []


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (["Sure, here is a cat", "Sure, here is a dog", "No", "Well"], 0.5),
        (["a b c d e", "a b c d", "a b c"], 2 / 3),
        (["", "", "a"], 2 / 3),
        (["a", "b", "c"], 1 / 3),
    ],
)
def test_opening_dominance(row, expected):
    assert value("opening_dominance", row) == pytest.approx(expected)


def test_unique_fraction_ignores_surrounding_space_only():
    assert value("unique_fraction", ["a", " a\n", "A", "a a"]) == 0.75


def test_compression_ratio_is_zlib_of_the_sorted_completions():
    row = ["b" * 40, "a" * 40, "\ud800é"]
    raw = "\n".join(sorted(row)).encode("utf-8", "surrogatepass")
    assert value("compression_ratio", row) == len(raw) / len(zlib.compress(raw, 9))


@settings(deadline=None)
@given(ROW, st.randoms())
@pytest.mark.parametrize("name", [*NAMES, "compression_ratio"])
def test_order_of_completions_does_not_matter(name, row, random):
    shuffled = list(row)
    random.shuffle(shuffled)
    assert value(name, shuffled) == pytest.approx(value(name, row), abs=1e-12, nan_ok=True)


@settings(deadline=None)
@given(ROW)
@pytest.mark.parametrize("name", NAMES)
def test_bounds_and_saying_everything_twice_never_looks_more_diverse(name, row):
    once, twice = value(name, row), value(name, row * 2)
    if np.isnan(once):
        assert np.isnan(twice)
        return
    assert 0 <= once <= 1 + 1e-12
    sign = 1 if METRICS[name].direction == "higher" else -1
    assert sign * twice <= sign * once + 1e-12


def test_one_changed_word_moves_one_count():
    row = ["the cat sat", "the dog sat"]
    counts = Counter(" ".join(row).split())
    assert value("distinct_1", row) == len(counts) / 6
