"""Classes of outputs: what is one class, and estimators that an unchanged policy leaves where they should be."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.outputs import class_counts, output_class, rare_retention
from divmon.metrics.richness import chao_jost_entropy
from divmon.metrics.spectrum import hill
from divmon.records import Probe, SampleBatch

ZIPF = np.arange(1, 13) ** -1.2
SHARES = ZIPF / ZIPF.sum()


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("so \\boxed{7}", False, "answer:7"),
        ("so \\boxed{7.0}", True, "answer:7"),
        ("The answer is $1,200.", False, "answer:1200"),
        ("#### 0.5", True, "answer:1/2"),
        ("The answer is the Nile", False, "answer:the nile"),
        ("\\boxed{x^2 + 1}", False, "answer:x^2+1"),
        ("He had 3 and then 4", True, "answer:4"),
        ("He had 3 and then 4", False, "text:he had 3 and then 4"),
        (" Paris! ", False, "text:paris"),
        ("no idea", True, "none"),
        ("", True, "none"),
        ("", False, "text:"),
        ("\ud800", False, "text:\ud800"),
        ("word " * 40, False, "format:single_paragraph"),
        ("- item number\n" * 40, False, "format:bullets"),
    ],
)
def test_classes_by_hand(text, gold, expected):
    assert output_class(text, gold=gold) == expected


def context_of(rows, baseline=None):
    probes = tuple(Probe(f"p{i}", "?") for i in range(len(rows)))
    return MetricContext(SampleBatch(0, probes, tuple(map(tuple, rows))), baseline=baseline)


def measured(name, context):
    result = evaluate(METRICS[name], context)
    with np.errstate(all="ignore"):
        return float(result.combine(result.parts)) if hasattr(result, "combine") else float(np.nanmean(result.values))


def drawn(rng, p, k, shares=SHARES):
    return [[f"answer {c}" for c in row] for row in rng.choice(len(shares), size=(p, k), p=shares)]


def test_counts_line_up_with_the_baseline():
    base = context_of([["a", "b", "b"], ["c"]])
    counts = class_counts(context_of([["b", "x"], ["c", "C."], ["new"]], base))
    assert counts.now.tolist() == [[1, 1, 0], [2, 0, 0], [1, 0, 0]]
    assert counts.before.tolist() == [[2, 0, 1], [1, 0, 0], [0, 0, 0]]


def test_answer_entropy_and_unseen_mass_are_the_estimators_on_counts():
    context = context_of([["a", "a", "b", "c"], ["a"] * 4, ["a", "b", "c", "d"], ["a"]])
    result = evaluate(METRICS["answer_entropy"], context)
    counts = np.array([[2, 1, 1, 0], [4, 0, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_allclose(result.values[:3], chao_jost_entropy(counts), rtol=1e-12)
    assert result.n.tolist() == [4, 4, 4, 0]
    assert result.reasons[3] == "needs at least 2 completions a prompt"
    assert evaluate(METRICS["unseen_mass"], context).values[:3].tolist() == [0.5, 0.0, 1.0]


def test_effective_answers_does_not_depend_on_k_and_is_right():
    rng = np.random.default_rng(0)
    true = float(hill(SHARES, q=2))
    for k in (2, 4, 16):
        assert measured("effective_answers", context_of(drawn(rng, 5000, k))) == pytest.approx(true, rel=0.06)


def test_effective_answers_where_nothing_agrees_is_the_most_that_can_be_shown():
    different = [[f"{i} {j}" for j in range(4)] for i in range(3)]
    assert measured("effective_answers", context_of(different)) == 3 * 6
    different[0][0] = different[0][1]
    assert measured("effective_answers", context_of(different)) == pytest.approx(3 * 6)
    assert measured("effective_answers", context_of([["x"] * 4])) == 1.0
    assert math.isnan(measured("effective_answers", context_of([["x"], []])))


def rare_by_enumeration(now, before):
    """The definition: every half, every other half, every subset of the draws now."""
    base = [c for c, n in enumerate(before) for _ in range(n)]
    draws = [c for c, n in enumerate(now) for _ in range(n)]
    h = min(len(base) // 2, len(draws))
    most = 2 if h >= 8 else 1
    observed, expected = [], []
    subsets = [set(subset) for subset in itertools.combinations(draws, h)]
    for first in itertools.combinations(range(len(base)), h):
        half = [base[i] for i in first]
        rare = {c for c in half if half.count(c) <= most}
        rest = [base[i] for i in range(len(base)) if i not in first]
        expected += [len(rare & set(other)) for other in itertools.combinations(rest, h)]
        observed += [len(rare & subset) for subset in subsets]
    return np.mean(observed), np.mean(expected)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 3), min_size=4, max_size=4).filter(lambda x: 2 <= sum(x) <= 6),
    st.lists(st.integers(0, 4), min_size=4, max_size=4).filter(lambda x: 4 <= sum(x) <= 7),
)
def test_rare_retention_equals_enumeration(now, before):
    observed, expected = rare_retention(np.array([now], dtype=float), np.array([before], dtype=float))
    assert (float(observed[0]), float(expected[0])) == pytest.approx(rare_by_enumeration(now, before), abs=1e-9)


def test_rare_retention_counts_classes_seen_twice_in_large_halves():
    """By simulation: h = 8, so a class seen once or twice is rare."""
    now, before = np.array([3, 0, 6, 1, 0]), np.array([5, 4, 4, 2, 1])
    rng = np.random.default_rng(0)
    base, draws = np.repeat(np.arange(5), before), np.repeat(np.arange(5), now)
    found = np.zeros((20_000, 2))
    for row in found:
        order = rng.permutation(base)
        seen = np.bincount(order[:8], minlength=5)
        rare = (seen == 1) | (seen == 2)
        met = np.bincount(rng.choice(draws, 8, replace=False), minlength=5) > 0
        row[:] = (rare & met).sum(), (rare & (np.bincount(order[8:], minlength=5) > 0)).sum()
    exact = [float(x[0]) for x in rare_retention(now[None].astype(float), before[None].astype(float))]
    assert exact == pytest.approx(found.mean(axis=0), abs=4 * 1.2 / math.sqrt(20_000))


@pytest.mark.parametrize("k", [4, 8, 16])
@pytest.mark.parametrize(
    "shares", [SHARES, np.full(20, 0.05), np.r_[0.7, np.full(30, 0.01)]], ids=["zipf", "20", "70%"]
)
def test_an_unchanged_policy_keeps_its_rare_answers(k, shares):
    rng = np.random.default_rng(k)
    now, before = rng.multinomial(k, shares, size=(2, 40_000)).astype(float)
    observed, expected = rare_retention(now, before)
    difference = observed - expected
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(len(difference))
    assert observed.mean() / expected.mean() == pytest.approx(1, abs=0.05)
    # the plain share of rare classes seen again is far from 1
    rare = (before == 1) | (before == 2)
    assert (rare & (now > 0)).sum() / rare.sum() < 0.85


def test_unequal_numbers_of_draws_are_rarefied():
    rng = np.random.default_rng(0)
    now, before = rng.multinomial(5, SHARES, size=100_000), rng.multinomial(12, SHARES, size=100_000)
    observed, expected = rare_retention(now.astype(float), before.astype(float))
    assert observed.mean() / expected.mean() == pytest.approx(1, abs=0.03)


def test_rare_retained_of_an_unchanged_and_of_a_narrowed_policy():
    rng = np.random.default_rng(1)
    base = context_of(drawn(rng, 1500, 8))
    assert measured("rare_retained", base) == 1.0
    assert measured("rare_retained", context_of(base.batch.texts, base)) == 1.0
    assert measured("rare_retained", context_of(drawn(rng, 1500, 8), base)) == pytest.approx(1, abs=0.08)
    narrow = SHARES**3 / (SHARES**3).sum()
    assert measured("rare_retained", context_of(drawn(rng, 1500, 8, narrow), base)) < 0.75
    gone = context_of([["other"] * 8] * 1500, base)
    assert measured("rare_retained", gone) == 0.0
    assert math.isnan(measured("rare_retained", context_of([["a", "b", "c"]])))
    result = evaluate(METRICS["rare_retained"], context_of(drawn(rng, 1500, 8), base))
    assert result.details(result.parts)["prompts"] == 1500
