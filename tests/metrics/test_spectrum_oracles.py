"""Hill numbers against scikit-bio, and the unbiasedness that curves rely on."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from divmon.metrics.spectrum import collision_unbiased, hill

ORDERS = [0, 0.25, 0.5, 0.999, 1, 1.001, 2, 3.7, 10, 200, math.inf]
COUNTS = st.lists(st.integers(0, 500), min_size=1, max_size=40).filter(any)


@pytest.mark.parametrize("q", ORDERS)
@pytest.mark.parametrize(
    "counts", [[1], [0, 0, 7], [1, 1, 1, 1], [10, 3, 1, 0, 1], [997, 1, 1, 1], list(range(1, 60)), [10**9, 1]]
)
def test_hill_equals_scikit_bio(counts, q):
    alpha = pytest.importorskip("skbio.diversity.alpha")
    with np.errstate(all="ignore"):
        expected = float(alpha.hill(np.array(counts), order=q))
    if not math.isfinite(expected) or expected == 0:
        pytest.skip("scikit-bio underflows at this order")
    assert float(hill(np.array(counts), q=q)) == pytest.approx(expected, rel=1e-9)


@given(COUNTS, st.sampled_from(ORDERS))
def test_hill_lies_between_one_and_the_number_of_classes(counts, q):
    value = float(hill(np.array(counts), q=q))
    assert 1 - 1e-9 <= value <= sum(c > 0 for c in counts) * (1 + 1e-9)


@given(COUNTS)
def test_hill_falls_with_the_order(counts):
    values = [float(hill(np.array(counts), q=q)) for q in ORDERS]
    assert all(a >= b * (1 - 1e-9) for a, b in itertools.pairwise(values))


@given(COUNTS, st.integers(1, 5), st.sampled_from(ORDERS))
@example([0, 1, 1, 1, 1, 1, 1, 1], 5, 200)
def test_hill_of_copies_of_a_community_is_that_many_times_as_large(counts, copies, q):
    one, many = hill(np.array(counts), q=q), hill(np.array(counts * copies), q=q)
    assert float(many) == pytest.approx(copies * float(one), rel=1e-6)


def test_leading_axes_are_kept():
    counts = np.random.default_rng(0).integers(0, 9, size=(4, 3, 5))
    for q in ORDERS:
        expected = [[float(hill(row, q=q)) for row in block] for block in counts]
        np.testing.assert_allclose(hill(counts, q=q), expected, rtol=1e-12, equal_nan=True)
    assert collision_unbiased(counts).shape == (4, 3)


def test_large_orders_do_not_underflow():
    assert float(hill(np.full(1000, 1.0), q=5000)) == pytest.approx(1000)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("q", ORDERS)
def test_nothing_counted_is_missing_not_zero(q):
    assert np.isnan(hill(np.array([[0, 0], [math.nan, 1]]), q=q)).all()
    assert np.isnan(hill(np.zeros((2, 0)), q=q)).all()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="order"):
        hill(np.array([1, 2]), q=-1)
    with pytest.raises(ValueError, match="order"):
        hill(np.array([1, 2]), q=math.nan)
    with pytest.raises(ValueError, match="negative"):
        hill(np.array([1, -2]), q=2)
    with pytest.raises(ValueError, match="axis"):
        collision_unbiased(np.array(3))


def test_collision_equals_scikit_bio():
    alpha = pytest.importorskip("skbio.diversity.alpha")
    for counts in ([2, 2], [5, 3, 1], [1, 1, 1], [9, 0, 4]):
        # Its finite-sample Simpson index is one minus the same probability.
        assert float(collision_unbiased(np.array(counts))) == pytest.approx(1 - alpha.simpson(counts, finite=True))


def test_collision_is_unbiased_at_eight_draws():
    shares = np.array([0.5, 0.3, 0.1, 0.1])
    draws = np.random.default_rng(7).multinomial(8, shares, size=40_000)
    assert collision_unbiased(draws).mean() == pytest.approx(float((shares**2).sum()), abs=0.003)
    assert np.isnan(collision_unbiased(np.array([[0, 0], [1, 0]]))).all()
