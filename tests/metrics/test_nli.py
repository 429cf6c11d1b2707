"""Diversity by entailment: its definition spelled out, how pairs are asked, and what is missing."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.base import Judges
from divmon.metrics.nli import POSITIONS, sentences
from divmon.records import Probe, SampleBatch

NAMES = pytest.mark.parametrize("name", ["nli_diversity", "nli_diversity_whole"])


def batch(rows):
    return SampleBatch(0, tuple(Probe(str(i), "?") for i in range(len(rows))), tuple(map(tuple, rows)))


def toy(pairs):
    """Probabilities that depend on both texts and on their order."""
    raw = np.array([[1 + len(a), 2 + abs(len(a) - 2 * len(b)), 3 + len({*a} ^ {*b})] for a, b in pairs], dtype=float)
    return raw / raw.sum(axis=1, keepdims=True)


def values(name, rows, judge=toy):
    return evaluate(METRICS[name], MetricContext(batch(rows), judges=Judges(nli=judge, nli_name="toy")))


def score(a, b):
    ((entail, _, contradict),) = toy([(a, b)])
    return entail - contradict


@given(st.text(alphabet="ab.!? \n\t", max_size=30))
def test_sentences_are_cut_as_the_study_cuts_them(text):
    expected = [part.strip() for part in re.split(r"[.!?]+\s+|\n+", text) if part.strip()]
    assert sentences(text) == (expected or ([text.strip()] if text.strip() else []))


def test_sentences_of_hostile_text_take_no_time():
    assert sentences("." * 200_000 + "x") == ["." * 200_000 + "x"]
    assert len(sentences(". " * 100_000)) == 1
    assert sentences(" " * 200_000) == []


def test_up_to_three_common_sentences_are_all_compared():
    row = ["One. Two two. Three!", "Uno. Due", "Een. Twee twee twee. Drie. Vier."]
    split = [["One", "Two two", "Three!"], ["Uno", "Due"], ["Een", "Twee twee twee", "Drie", "Vier."]]
    scores = [
        score(x, y)
        for a, b in itertools.combinations(split, 2)
        for s, t in zip(a, b, strict=False)
        for x, y in ((s, t), (t, s))
    ]
    assert len(scores) == 14
    assert values("nli_diversity", [row]).values == pytest.approx([1 - np.mean(scores)], abs=1e-12)


def test_whole_texts_by_brute_force():
    row = ["One. Two.", "three", "", "four four. five"]
    full = [text for text in row if text]
    expected = 1 - np.mean([score(a, b) for a, b in itertools.permutations(full, 2)])
    assert values("nli_diversity_whole", [row]).values == pytest.approx([expected], abs=1e-12)


def test_long_texts_are_compared_at_three_places_that_hang_on_the_texts_alone():
    rng = np.random.default_rng(0)
    row = [". ".join(f"w{rng.integers(1000)} s{place}" for place in range(20)) + " end" for _ in range(6)]
    asked = []

    def judge(pairs):
        asked.append(list(pairs))
        return toy(pairs)

    found = values("nli_diversity", [row], judge).values[0]
    assert len(asked[0]) == 2 * POSITIONS * 15
    places = [int(re.search(r"s(\d+)", a)[1]) for a, b in asked[0]]
    assert all(f"s{place}" in b for place, (_, b) in zip(places, asked[0], strict=True)), "sentence k with sentence k"
    assert len(set(places)) > 12, "all places get their turn"
    for other in (row[::-1], [row[i] for i in (3, 1, 5, 0, 2, 4)]):
        assert values("nli_diversity", [["x. y", "z"], other]).values[1] == pytest.approx(found, abs=1e-12)


@NAMES
def test_all_pairs_are_asked_once_in_one_call_both_ways(name):
    asked = []

    def judge(pairs):
        asked.append(list(pairs))
        return toy(pairs)

    values(name, [["a", "b", "a"], ["b", "a"], ["c"], []], judge)
    assert [sorted(pairs) for pairs in asked] == [[("a", "a"), ("a", "b"), ("b", "a")]]


@NAMES
@pytest.mark.parametrize(("winner", "expected"), [(0, 0), (1, 1), (2, 2)])
def test_the_scale(name, winner, expected):
    rows = [["It rains. It pours.", "It is dry. It is warm."]] * 2
    assert values(name, rows, lambda pairs: np.tile(np.eye(3)[winner], (len(pairs), 1))).values.tolist() == [
        expected,
        expected,
    ]


@NAMES
def test_texts_without_words_are_missing(name):
    result = values(name, [["", " \n"], ["", "words"], ["words", "", "words"]])
    assert np.isnan(result.values).tolist() == [True, True, False]
    assert "no two completions with words" in result.reasons[0]


@NAMES
def test_a_judge_that_cannot_say_is_missing_for_its_prompt_alone(name):
    def judge(pairs):
        found = toy(pairs)
        found[[i for i, (a, _) in enumerate(pairs) if a == "bad"]] = math.nan
        return found

    assert np.isnan(values(name, [["bad", "x"], ["y", "x"]], judge).values).tolist() == [True, False]
    with pytest.raises(ValueError, match="the model of entailment returned shape"):
        values(name, [["a", "b"]], lambda pairs: np.zeros((len(pairs), 2)))


@NAMES
def test_no_random_stream_moves(name):
    import random

    before = random.getstate(), np.random.get_state()[1].tolist()
    values(name, [[". ".join("abcdefgh"), ". ".join("hgfedcba")]])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
