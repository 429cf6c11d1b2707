"""Rarefied distinct-n against exact combinatorics, simulation and what it must not depend on."""

from collections import Counter
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.errors import ConfigError
from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.rarefied import expected_distinct, rarefied_metric
from divmon.metrics.richness import rarefy
from divmon.metrics.text import words
from divmon.records import Probe, SampleBatch

BOTH = ("rarefied_distinct_1", "distinct_1")


def value(metric, row):
    batch = SampleBatch(0, (Probe("a", "?"),), (tuple(row),))
    return float(evaluate(metric, MetricContext(batch)).values[0])


def exact(counts, m):
    """Hurlbert's formula in whole numbers."""
    total = sum(counts)
    return float(sum(1 - Fraction(comb(total - c, m), comb(total, m)) for c in counts))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 60))
def test_it_equals_the_exact_formula(counts, m):
    found = expected_distinct(np.array(counts), m=m)
    if sum(counts) < m:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(exact(counts, m), rel=1e-12)


def test_it_keeps_its_digits_at_a_million_items():
    counts = np.concatenate([np.ones(600_000, int), np.full(1000, 400), [200_000]])
    some = {1: 600_000, 400: 1000, 200_000: 1}
    total = sum(c * f for c, f in some.items())
    expected = float(sum(f * (1 - Fraction(comb(total - c, 50), comb(total, 50))) for c, f in some.items()))
    assert expected_distinct(counts, m=50) == pytest.approx(expected, rel=1e-9)


def test_it_agrees_with_rarefaction_of_classes():
    counts = np.random.default_rng(0).integers(1, 30, size=300)
    assert expected_distinct(counts, m=100) == pytest.approx(float(rarefy(counts, n=100)), rel=1e-9)


def test_it_agrees_with_scikit_bio():
    diversity = pytest.importorskip("skbio.stats").subsample_counts
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 9, size=60)
    drawn = [np.count_nonzero(diversity(counts, 40, seed=rng)) for _ in range(4000)]
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - expected_distinct(counts, m=40)) < 4 * error


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=12).map(" ".join), min_size=2, max_size=6))
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_metric_counts_the_n_grams_of_all_completions_together(n, row):
    found = [tuple(w[i : i + n]) for w in map(words, row) for i in range(len(w) - n + 1)]
    result = value(rarefied_metric(n, m=10), row)
    if len(found) < 10:
        assert np.isnan(result)
    else:
        assert result == pytest.approx(exact(list(Counter(found).values()), 10) / 10, rel=1e-12)


def test_too_few_n_grams_are_missing():
    batch = SampleBatch(0, (Probe("a", "?"),), (("a b", "c d"),))
    assert evaluate(METRICS["rarefied_distinct_2"], MetricContext(batch)).reasons == ("fewer than 50 2-grams of words",)


def test_drawing_all_gives_distinct_n_and_two_draws_the_chance_of_a_repeat():
    row = ["a b c a", "a b d d d"]
    assert value(rarefied_metric(1, m=9), row) == pytest.approx(value(METRICS["distinct_1"], row), rel=1e-12)
    counts = np.array([3, 2, 1, 3])  # a, b, c, d
    repeat = np.sum(counts * (counts - 1)) / (9 * 8)
    assert value(rarefied_metric(1, m=2), row) == pytest.approx(1 - repeat / 2, rel=1e-12)


def test_more_of_the_same_language_does_not_change_it_and_changes_distinct_n():
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, 400)
    texts = [" ".join(map(str, rng.choice(399, 60, p=shares / shares.sum()))) for _ in range(64)]
    few = [[value(METRICS[name], texts[i : i + 8]) for i in range(0, 64, 8)] for name in BOTH]
    many = [value(METRICS[name], texts) for name in BOTH]
    assert np.mean(few[0]) == pytest.approx(many[0], rel=0.01)
    assert np.mean(few[1]) > 2 * many[1]


@pytest.mark.parametrize(("n", "m"), [(0, 10), (1, 1), (1.0, 10), (1, "5")])
def test_numbers_that_cannot_work_are_refused(n, m):
    with pytest.raises(ConfigError, match="whole numbers"):
        rarefied_metric(n, m=m)
