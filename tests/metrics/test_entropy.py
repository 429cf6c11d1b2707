"""Token entropy, length and truncation: exact values, what is missing, and the trap."""

import math

import numpy as np
import pytest

from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.records import Probe, SampleBatch


def batch(texts, **known):
    probes = tuple(Probe(str(i), "?") for i in range(len(texts)))
    return SampleBatch(0, probes, tuple(map(tuple, texts)), **known)


def run(name, b):
    return evaluate(METRICS[name], MetricContext(b))


def test_token_entropy_is_a_mean_of_means_in_nats():
    uniform = np.full(3, math.log(50))
    b = batch([["a", "b"]], entropies=((uniform, np.array([0.0])),))
    assert run("token_entropy", b).values[0] == pytest.approx(math.log(50) / 2)


def test_token_entropy_skips_completions_without_tokens_and_says_when_none_is_left():
    empty, one = np.array([]), np.array([0.5])
    result = run(
        "token_entropy",
        batch([["", "a"], ["", ""], ["x", "y"]], entropies=((empty, one), (empty, empty), (one, one * np.nan))),
    )
    assert result.values[0] == 0.5
    assert np.isnan(result.values[1:]).all()
    assert result.n.tolist() == [1, 0, 0]
    assert result.reasons == (None, "no completion has a token", "a token's entropy is not a number")


def test_token_entropy_can_rise_while_answers_collapse():
    before = batch([["a", "b", "c"]], entropies=((np.full(4, 0.44),) * 3,))
    after = batch([["a", "a", "a"]], entropies=((np.full(4, 0.52),) * 3,))
    assert run("token_entropy", after).values[0] > run("token_entropy", before).values[0]
    assert run("unique_fraction", after).values[0] < run("unique_fraction", before).values[0]
    assert METRICS["token_entropy"].direction == "neutral"


def test_length_is_in_tokens_when_they_are_known_else_in_words():
    texts = [["one two three", "four"], ["", ""]]
    by_words = run("length", batch(texts))
    assert by_words.values.tolist() == [2.0, 0.0]
    assert by_words.details["unit"] == "words"
    by_tokens = run("length", batch(texts, token_ids=(((1, 2, 3, 4, 0), (5, 0)), ((0,), (0,)))))
    assert by_tokens.values.tolist() == [3.5, 1.0]
    assert by_tokens.details["unit"] == "tokens"


def test_truncated_fraction_counts_what_did_not_finish():
    b = batch([["a", "b", "c", "d"], ["a", "b"]], finished=((True, True, False, True), (False, False)))
    assert run("truncated_fraction", b).values.tolist() == [0.25, 1.0]


def test_absent_needs_are_named():
    assert "entropies" in run("token_entropy", batch([["a"]])).reasons[0]
    assert "end-of-sequence" in run("truncated_fraction", batch([["a"]])).reasons[0]
