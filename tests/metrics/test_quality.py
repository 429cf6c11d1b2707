"""Answers against gold ones, on tables by hand and on real solutions with published labels; judges; success metrics."""

from __future__ import annotations

import json
import math
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.errors import ConfigError
from divmon.metrics.answers import parse_number
from divmon.metrics.base import MetricContext, evaluate
from divmon.metrics.quality import COVERAGE, MEAN_QUALITY, PASS_AT_1, extract_answer, gold_match, judge
from divmon.records import Probe, SampleBatch

ORACLES = Path(__file__).parents[2].parent / "shared" / "oracles"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{7}, not \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{7} #### 8", "7"),
        ("cut \\boxed{7", "7"),
        ("The answer is 3.\n#### 1,200", "1,200"),
        ("The answer is 3.\nThe answer is 4 apples.", "4 apples"),
        ("**Answer:** Paris.", "Paris"),
        ("working 3\nA: 18", "18"),
        ("It takes 3 hours, or $180.", "180"),
        ("The answer is not 4, so 5", "5"),
        ("no digits at all", None),
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", Fraction(18)),
        ("1,200.50", Fraction(2401, 2)),
        ("$1,200.00", Fraction(1200)),
        ("-$5", Fraction(-5)),
        ("$-5", Fraction(-5)),
        ("−5", Fraction(-5)),
        ("50%", Fraction(50)),
        ("50\\%", Fraction(50)),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("2 1/2", Fraction(5, 2)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("-\\dfrac{3}{4}", Fraction(-3, 4)),
        ("\\frac{-3}{4}", Fraction(-3, 4)),
        ("2\\frac{1}{2}", Fraction(5, 2)),
        ("-\\frac{-3}{4}", Fraction(3, 4)),
        ("$\\frac{1}{2}$", Fraction(1, 2)),
        ("18 \\text{ dollars}", Fraction(18)),
        ("90^\\circ", Fraction(90)),
        ("x = 5", Fraction(5)),
        ("5 square metres", Fraction(5)),
        ("1e3", Fraction(1000)),
        ("1/0", None),
        ("(1, 2)", None),
        ("3x + 2", None),
        ("2\\sqrt{3}", None),
        ("5\\pi", None),
        ("x^2", None),
        ("Apollo 11", None),
        ("1984 was written by Orwell", None),
        ("1" * 5000, None),
        ("", None),
    ],
)
def test_parse_number(text, number):
    assert parse_number(text) == number


@settings(max_examples=40, deadline=None)
@given(st.fractions(max_denominator=10**6).filter(lambda x: abs(x) < 10**12))
def test_fractions_come_back_exactly(number):
    assert parse_number(f"{number.numerator}/{number.denominator}") == number
    assert parse_number(f"{number.numerator:,}") == number.numerator


RIGHT = [
    ("She makes 9 * 2 = $18 a day.", "18"),
    ("She makes 9 * 2 = $18 a day.", "16 - 3 - 4 = 9\n9 * 2 = 18\n#### 18"),
    ("The answer is $18.00.", "18"),
    ("The answer is 3 + 4 = 7", "7"),
    ("#### 1200", "1,200"),
    ("so it is \\boxed{0.50}", "1/2"),
    ("\\boxed{-7}", "−7"),
    ("The range is 5-10", "10"),
    ("A total of 16 - 3 - 4", "4"),
    ("The answer is\n\n12", "12"),
    ("The capital is Paris.", "Paris"),
    ("PARIS", "Paris"),
    ("The answer is New-York!", "new york"),
    ("\\boxed{\\text{Paris}}", "Paris"),
    ("(B) Rome", "B"),
    ("The answer is (B).", "B"),
    ("The answer is B: Rome", "(B)"),
    ("I think so.\nB", "B"),
    ("No, because it rains.", "no"),
    ("Yes it does", "Yes"),
    ("\\boxed{x^2 + 1}", "x^2+1"),
    ("It was Apollo 11.", "Apollo 11"),
    ("$f(x) = x^2$", "x^2"),
]
WRONG = [
    ("She makes 9 * 2 = $18 a day, then 19.", "18"),
    ("The answer is 17. Not 18", "18"),
    ("\\boxed{(18, 2)}", "18"),
    ("\\boxed{5\\pi}", "5"),
    ("\\boxed{0.33}", "1/3"),
    ("", "18"),
    ("none", "18"),
    ("The answer is Rome, not Oslo; once I thought of Paris elsewhere.", "Paris, France"),
    ("Parisian", "Paris"),
    ("A good way is to rest.", "A"),
    ("The answer is a dog.", "A"),
    ("There is no doubt: yes", "no"),
    ("\\boxed{x^2 - 1}", "x^2+1"),
    ("anything", "..."),
]


@pytest.mark.parametrize(("text", "gold"), RIGHT)
def test_right_answers(text, gold):
    assert gold_match(text, gold)


@pytest.mark.parametrize(("text", "gold"), WRONG)
def test_wrong_answers(text, gold):
    assert not gold_match(text, gold)


@settings(max_examples=40, deadline=None)
@given(st.text(), st.text())
def test_no_text_raises(text, gold):
    assert gold_match(text, gold) in (True, False)


def test_hostile_text_costs_linear_time():
    atoms = [
        "1",
        "1,",
        "1 ",
        "1/",
        "-",
        "\\boxed{",
        "{",
        "}",
        "####",
        "answer is ",
        "a",
        ".1",
        "\\frac{1}{",
        "$",
        "\n",
        "A:",
    ]
    slowest = 0.0
    for text in [((a + b) * 100_000)[:100_000] for a in atoms for b in atoms[::3]]:
        for gold in ("12", "Paris", "x^2"):
            start = time.perf_counter()
            gold_match(text, gold)
            slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 1.0


def test_agreement_with_published_labels():
    path = ORACLES / "gsm8k" / "example_model_solutions.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    agree = total = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for entry in (value for value in row.values() if isinstance(value, dict)):
            agree += gold_match(entry["solution"], row["ground_truth"]) == entry["is_correct"]
            total += 1
    assert total == 5276
    assert agree / total > 0.99


def batch_of(texts, *, golds=None, rewards=None):
    golds = golds or [None] * len(texts)
    probes = tuple(Probe(f"p{i}", "?", gold=gold) for i, gold in enumerate(golds))
    rewards = None if rewards is None else tuple(map(tuple, rewards))
    return SampleBatch(0, probes, tuple(map(tuple, texts)), rewards=rewards)


def test_the_function_comes_first_then_rewards_then_gold():
    batch = batch_of([["7", "8"], ["7", "8"]], golds=["7", None], rewards=[[0.5, math.nan], [2.0, math.inf]])
    quality, failures = judge(batch, lambda probe, completion: completion == "8")
    assert [row.tolist() for row in quality] == [[0.0, 1.0], [0.0, 1.0]]
    assert failures == []
    quality, _ = judge(batch)
    np.testing.assert_array_equal(quality, [[0.5, math.nan], [2.0, math.nan]])
    quality, _ = judge(batch_of([["7", "8"], ["7", "8"]], golds=["7", None], rewards=[[math.nan] * 2] * 2))
    np.testing.assert_array_equal(quality, [[1.0, 0.0], [math.nan, math.nan]])
    assert judge(batch_of([["7"]])) == (None, [])


def test_failures_of_the_function_are_counted_and_missing():
    answers = {"a": 1, "b": None, "c": math.nan, "d": math.inf, "e": "word", "f": np.float32(0.5), "g": True}
    quality, failures = judge(batch_of([[*answers, "h"]]), lambda probe, text: answers[text])
    np.testing.assert_array_equal(quality[0], [1, math.nan, math.nan, math.nan, math.nan, 0.5, 1, math.nan])
    assert [type(error) for error in failures] == [ValueError, ValueError, KeyError]  # d, e and h


def test_a_function_that_cannot_be_called_fails_at_once():
    with pytest.raises(ConfigError, match="function of a probe"):
        judge(batch_of([["a"]]), "accuracy")


def test_success_by_hand():
    batch = batch_of([["a"] * 4, ["a"] * 4, ["a"] * 4, ["a"] * 4])
    quality = [[1, 1, 0, 0], [0, 0, 0, 0], [1, math.nan, math.nan, 0.25], [math.nan] * 4]
    context = MetricContext(batch, quality=quality)
    for metric, values in (
        (PASS_AT_1, [0.5, 0, 0.5, math.nan]),
        (COVERAGE, [1, 0, 1, math.nan]),
        (MEAN_QUALITY, [0.5, 0, 0.625, math.nan]),
    ):
        result = evaluate(metric, context)
        np.testing.assert_array_equal(result.values, values)
        np.testing.assert_array_equal(result.n, [4, 4, 2, 0])
        assert [reason is None for reason in result.reasons] == [True, True, True, False]


def test_without_quality_the_reason_says_what_to_pass():
    batch = batch_of([["a", "b"]])
    result = evaluate(PASS_AT_1, MetricContext(batch))
    assert "quality=" in result.reasons[0]
