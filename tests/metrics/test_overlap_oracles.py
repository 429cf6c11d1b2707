"""Overlap between completions against rouge_score, brute force over pairs, and what the numbers are there for."""

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.errors import ConfigError
from divmon.metrics import METRICS, MetricContext, evaluate, overlap
from divmon.metrics.overlap import blocks, collision_metric, jaccard_metric, rouge_l
from divmon.metrics.text import word_row, words
from divmon.records import Probe, SampleBatch

NOVELTYBENCH = Path(__file__).parents[2].parent / "shared" / "oracles" / "noveltybench"
WORD = st.sampled_from(["a", "b", "c", "the", "end.", "End.", "森"])
TEXT = st.lists(WORD, max_size=12).map(" ".join)
ROW = st.lists(TEXT, min_size=2, max_size=7)
ODD = [
    ["", ""],
    ["", "a", ""],
    ["a a a", "a"],
    ["x"] * 9,
    ["雨が降る", "雨が 降る", "雪"],
    ["\ud800 a", "\ud800 a", "\udfff"],
]


def batch(*rows):
    return SampleBatch(0, tuple(Probe(str(i), "?") for i in range(len(rows))), tuple(map(tuple, rows)))


def value(metric, row):
    chosen = METRICS[metric] if isinstance(metric, str) else metric
    return float(evaluate(chosen, MetricContext(batch(row))).values[0])


def grams(text, n):
    found = words(text)
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def over_pairs(row, function):
    return float(np.mean([function(a, b) for a, b in itertools.combinations(row, 2)]))


def jaccard(a, b):
    return len(a & b) / len(a | b) if a | b else 1.0


def brute_jaccard(row, n):
    return 1 - over_pairs([set(grams(text, n)) for text in row], jaccard)


def brute_collision(row, n):
    """The chance itself: every n-gram of the one against every n-gram of the other."""
    long = [found for text in row if (found := grams(text, n))]
    if len(long) < 2:
        return math.nan
    return over_pairs(long, lambda a, b: np.mean([x == y for x in a for y in b]))


def brute_repetition(row):
    sets = [set(grams(text, 4)) for text in row]
    long = [i for i, found in enumerate(sets) if found]
    if len(long) < 2:
        return math.nan
    others = [Counter(g for j, s in enumerate(sets) if j != i for g in s) for i in range(len(sets))]
    return float(np.mean([math.log(1 + sum(others[i][g] for g in sets[i])) for i in long]))


def brute_lcs(a, b):
    best = [0] * (len(b) + 1)
    for x in a:
        row = [0]
        for j, y in enumerate(b):
            row.append(best[j] + 1 if x == y else max(best[j + 1], row[j]))
        best = row
    return best[-1]


def brute_rouge(row):
    def f1(a, b):
        return 2 * brute_lcs(a, b) / (len(a) + len(b)) if a or b else 1.0

    return over_pairs([words(text) for text in row], f1)


@settings(max_examples=200, deadline=None)
@given(ROW)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_jaccard_equals_brute_force(n, row):
    assert value(jaccard_metric(n), row) == pytest.approx(brute_jaccard(row, n), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(ROW)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_collision_equals_brute_force(n, row):
    assert value(collision_metric(n), row) == pytest.approx(brute_collision(row, n), abs=1e-12, nan_ok=True)


@settings(max_examples=200, deadline=None)
@given(ROW)
def test_self_repetition_equals_brute_force(row):
    assert value("self_repetition", row) == pytest.approx(brute_repetition(row), abs=1e-12, nan_ok=True)


@settings(max_examples=200, deadline=None)
@given(ROW)
def test_rouge_l_equals_brute_force(row):
    assert value("rouge_l", row) == pytest.approx(brute_rouge(row), abs=1e-12)


@pytest.mark.parametrize("row", ODD)
def test_odd_sets(row):
    assert value("jaccard_distance_1", row) == pytest.approx(brute_jaccard(row, 1), abs=1e-12)
    assert value("jaccard_distance_2", row) == pytest.approx(brute_jaccard(row, 2), abs=1e-12)
    assert value("bigram_collision", row) == pytest.approx(brute_collision(row, 2), abs=1e-12, nan_ok=True)
    assert value("self_repetition", row) == pytest.approx(brute_repetition(row), abs=1e-12, nan_ok=True)
    assert value("rouge_l", row) == pytest.approx(brute_rouge(row), abs=1e-12)


def test_long_texts_equal_brute_force():
    rng = np.random.default_rng(3)
    row = [" ".join(map(str, rng.zipf(1.4, size=rng.integers(1, 200)) % 300)) for _ in range(12)]
    assert value("jaccard_distance_2", row) == pytest.approx(brute_jaccard(row, 2), abs=1e-12)
    assert value("bigram_collision", row) == pytest.approx(brute_collision(row, 2), abs=1e-12)
    assert value("self_repetition", row) == pytest.approx(brute_repetition(row), abs=1e-12)
    assert value("rouge_l", row) == pytest.approx(brute_rouge(row), abs=1e-12)


def test_rouge_l_equals_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    tokenize = pytest.importorskip("rouge_score.tokenize").tokenize
    rng = np.random.default_rng(5)
    vocabulary = ["The", "cat's", "runs,", "and", "42", "Blue!", "森", "naïve", "a-b", "dog", "(x)", "then"]
    row = [" ".join(rng.choice(vocabulary, size=rng.integers(1, 60))) for _ in range(14)] + ["Dogs run.", "dogs  RUN"]
    expected = over_pairs(row, lambda a, b: scorer.score(a, b)["rougeL"].fmeasure)
    found = rouge_l(batch(row), MetricContext(batch(row)), split=lambda text: tokenize(text, None)).values[0]
    assert found == pytest.approx(expected, abs=1e-9)
    assert value("rouge_l", row) != pytest.approx(expected, abs=1e-3)  # divmon's words keep case and punctuation


def test_rouge_l_of_more_words_than_there_are_characters(monkeypatch):
    rng = np.random.default_rng(0)
    ids = rng.permutation(70_000).reshape(5, 14_000)
    ids[1, :700], ids[4, -700:] = ids[0, :700], ids[3, -700:]
    row = word_row([" ".join(map(str, line)) for line in ids])
    assert row.size > 0xD800 + 0x800  # ids on both sides of the surrogates
    assert overlap._mean_f1(row, [np.arange(5)]) == pytest.approx(2 * 0.05 / 10, abs=1e-12)
    monkeypatch.setattr(overlap, "_CHARACTERS", 10)
    assert overlap._mean_f1(row, [np.arange(5)]) == pytest.approx(2 * 0.05 / 10, abs=1e-12)


def test_large_sets_are_cut_into_blocks_that_the_order_does_not_change():
    texts = [f"text {i % 900}" for i in range(2500)]
    shuffled = [texts[i] for i in np.random.default_rng(1).permutation(2500)]
    one, two = blocks(texts), blocks(shuffled)
    assert sorted(np.concatenate(one).tolist()) == list(range(2500))
    assert {len(block) for block in one} == {100}
    assert [[texts[i] for i in block] for block in one] == [[shuffled[i] for i in block] for block in two]
    assert len(blocks(texts[:2000])) == 1


@pytest.mark.parametrize("name", ["jaccard_distance_1", "jaccard_distance_2", "rouge_l"])
def test_blocks_of_a_large_set_estimate_the_mean_over_all_pairs(name, monkeypatch):
    rng = np.random.default_rng(7)
    topics = rng.integers(0, 40, size=(6, 12))
    row = [" ".join(map(str, rng.permutation(topics[i % 6])[: rng.integers(4, 12)])) for i in range(1500)]
    exact = value(name, row)
    monkeypatch.setattr(overlap, "ALL_PAIRS", 1000)
    estimate = value(name, row)
    assert estimate != exact
    assert estimate == pytest.approx(exact, abs=0.005)


def test_duplicates_meet_as_often_as_other_pairs_in_blocks():
    texts = [str(i // 50) for i in range(3000)]  # of 3000, 49 others are equal
    same = np.mean(
        [np.mean([texts[a] == texts[b] for a, b in itertools.combinations(part, 2)]) for part in blocks(texts)]
    )
    assert same == pytest.approx(49 / 2999, rel=0.1)


def test_reasons_and_numbers_of_completions():
    result = evaluate(METRICS["bigram_collision"], MetricContext(batch(["a b", "c", "a b"], ["a", "b c"])))
    assert result.values[0] == 1.0
    assert result.n.tolist() == [2, 0]
    assert result.reasons == (None, "fewer than 2 completions have 2 words")
    assert evaluate(METRICS["self_repetition"], MetricContext(batch(["a b c", "a b c"]))).reasons == (
        "fewer than 2 completions have 4 words",
    )


@pytest.mark.parametrize("n", [0, -1, 1.5, "2"])
def test_an_order_that_cannot_work_is_refused(n):
    for factory in (jaccard_metric, collision_metric):
        with pytest.raises(ConfigError, match="whole number"):
            factory(n)


STEADY = ("jaccard_distance_1", "jaccard_distance_2", "bigram_collision", "rouge_l", "tfidf_distance")
DRIFTING = ("distinct_1", "ead", "self_bleu")


def test_means_over_pairs_do_not_move_with_k_and_set_statistics_do():
    """Ten completions a prompt, and three of them drawn at random eight times, on the prompts measured at both."""
    file = NOVELTYBENCH / "gemini-1.5-pro_curated_scores.jsonl"
    if not file.exists():
        pytest.skip(f"{file.name} is not here")
    texts = [json.loads(line)["generations"] for line in file.read_text("utf-8").splitlines()]
    ten = MetricContext(batch(*texts))
    rng = np.random.default_rng(0)
    draws = [[[row[j] for j in rng.choice(10, 3, replace=False)] for row in texts] for _ in range(8)]
    threes = [MetricContext(batch(*rows), baseline=ten) for rows in draws]
    change = {}
    for name in (*STEADY, *DRIFTING):
        before = evaluate(METRICS[name], ten).values
        drawn = np.array([evaluate(METRICS[name], context).values for context in threes])
        known = ~np.isnan(drawn).all(axis=0)
        after = np.nanmean(drawn[:, known], axis=0)
        change[name] = float(after.mean() / before[known].mean() - 1)
        print(f"{name:<20} K=10 {before[known].mean():.4f}  K=3 {after.mean():.4f}  {change[name]:+.1%}")
    steady = max(abs(change[name]) for name in STEADY)
    assert steady <= 0.06
    assert min(abs(change[name]) for name in DRIFTING) >= 3 * steady
