"""DivPO pairs against the definition, and against what goes wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from divmon.errors import ConfigError
from divmon.mitigations import divpo_pairs
from divmon.mitigations.pairs import surface_distances
from divmon.records import Probe, SampleBatch

TEXTS = ("red fox runs", "red fox sleeps", "a blue whale", "red fox eats", "green", "red fox dreams")
REWARDS = (1.0, 1.0, 1.0, 0.0, 0.0, math.nan)


def batch(*rows: tuple[tuple[str, ...], tuple[float, ...]], **more: Any) -> SampleBatch:
    probes = tuple(Probe(f"p{i}", f"question {i}") for i in range(len(rows)))
    return SampleBatch(0, probes, tuple(texts for texts, _ in rows), rewards=tuple(r for _, r in rows), **more)


def test_distances_are_those_of_scikit_learn() -> None:
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(3, 5)).fit_transform(TEXTS)
    cosines = (vectors @ vectors.T).toarray()
    expected = 1 - (cosines.sum(axis=1) - 1) / (len(TEXTS) - 1)
    np.testing.assert_allclose(surface_distances(TEXTS), expected, atol=1e-9)


def test_the_most_diverse_good_one_against_the_least_diverse_bad_one() -> None:
    distances = surface_distances(TEXTS)
    [row] = divpo_pairs(batch((TEXTS, REWARDS)))
    assert row["prompt"] == "question 0"
    assert row["chosen"] == TEXTS[max((0, 1, 2), key=lambda j: distances[j])] == "a blue whale"
    assert row["rejected"] == TEXTS[min((3, 4), key=lambda j: distances[j])] == "red fox eats"
    assert row["chosen_diversity"] == pytest.approx(distances[2])
    assert (row["chosen_quality"], row["rejected_quality"]) == (1.0, 0.0)


@pytest.mark.parametrize("rewards", [(1.0,) * 6, (0.0,) * 6, (math.nan,) * 5 + (1.0,)])
def test_a_prompt_with_one_side_only_gives_no_pair(rewards: tuple[float, ...]) -> None:
    assert divpo_pairs(batch((TEXTS, rewards))) == []


def test_equal_texts_odd_texts_and_single_ones_give_no_pair() -> None:
    assert divpo_pairs(batch((("same", "same"), (1.0, 0.0)), (("one",), (1.0,)))) == []
    hostile = ("", "\ud800", "x" * 100_000, "森")
    assert len(divpo_pairs(batch((hostile, (1.0, 0.0, 1.0, 0.0))))) == 1


def test_a_share_of_the_best_and_the_worst() -> None:
    rewards = (3.0, 9.0, 8.0, 1.0, 2.0, 5.0)
    [row] = divpo_pairs(batch((TEXTS, rewards)), share=1 / 3)
    distances = surface_distances(TEXTS)
    assert row["chosen"] == TEXTS[max((1, 2), key=lambda j: distances[j])]
    assert row["rejected"] == TEXTS[min((3, 4), key=lambda j: distances[j])]
    assert divpo_pairs(batch((TEXTS, (1.0,) * 6)), share=0.5) == []  # nothing tells good from bad


def test_other_senses_of_diverse() -> None:
    texts = ("- a\n- b\n- c", "words here", "more words", "- d\n- e\n- f", "bad words", "other bad words")
    rewards = (1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    [row] = divpo_pairs(batch((texts, rewards)), by="formats")
    assert (row["chosen"], row["rejected"]) == ("- a\n- b\n- c", "more words")
    [row] = divpo_pairs(batch((texts, rewards)), by="formats", formats=lambda text: "bad" if "bad" in text else "good")
    assert row["rejected"] == "more words"
    [row] = divpo_pairs(batch((("so it is", "so it was", "so odd", "odd so"), (1.0, 1.0, 0.0, 0.0))), by="words")
    assert row["chosen"] == "so it was" or row["chosen"] == "so it is"
    logprobs = (tuple(np.array([-x, -x]) for x in (1.0, 3.0, 0.5, 0.2, 9.0, 9.0)),)
    [row] = divpo_pairs(batch((texts, rewards), logprobs=logprobs), by="logprobs")
    assert (row["chosen"], row["rejected"]) == (texts[1], texts[3])


def test_chats_give_messages() -> None:
    probe = Probe("p", ({"role": "user", "content": "hi"},), gold="4")
    [row] = divpo_pairs(SampleBatch(0, (probe,), (("it is 4", "it is 5"),)))
    assert row["prompt"] == [{"role": "user", "content": "hi"}]
    assert row["chosen"] == [{"role": "assistant", "content": "it is 4"}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "tf-idf"}, "Did you mean 'tfidf'"),
        ({"by": "logprobs"}, "without log-probabilities"),
        ({"share": 0.7}, "share must be above 0 and at most 0.5"),
        ({"good": 0.2, "bad": 0.3}, "a completion would be both"),
        ({"quality": lambda probe, text: 1 / 0}, "failed on every completion"),
    ],
)
def test_what_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        divpo_pairs(batch((TEXTS, REWARDS)), **settings)


def test_without_a_judge() -> None:
    with pytest.raises(ConfigError, match="Nothing judges"):
        divpo_pairs(SampleBatch(0, (Probe("p", "hi"),), (("a", "b"),)))
