"""Estimators over classes against scikit-bio, exact combinatorics, other forms of the same sum, and simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.metrics.richness import chao1, chao_jost_entropy, good_turing_coverage, grassberger_entropy, rarefy
from divmon.metrics.spectrum import berger_parker, evenness, hill, shannon

COUNTS = st.lists(st.integers(0, 60), min_size=1, max_size=25).filter(any)
LISTS = [[1], [0, 0, 7], [1, 1, 1, 1], [10, 3, 1, 0, 1], [97, 1, 1, 1], list(range(1, 40)), [2, 2, 2], [5, 5, 1, 2]]
ESTIMATORS = (
    chao1,
    chao_jost_entropy,
    good_turing_coverage,
    grassberger_entropy,
    shannon,
    berger_parker,
    evenness,
    lambda counts: evenness(counts, kind="hill"),
    lambda counts: good_turing_coverage(counts, improved=True),
    lambda counts: rarefy(counts, n=2),
)


@pytest.mark.parametrize("counts", LISTS)
def test_against_scikit_bio(counts):
    alpha = pytest.importorskip("skbio.diversity.alpha")
    row = np.array(counts)
    assert float(chao1(row)) == pytest.approx(alpha.chao1(row, bias_corrected=True), rel=1e-9)
    assert float(good_turing_coverage(row)) == pytest.approx(alpha.goods_coverage(row), rel=1e-9, abs=1e-12)
    assert float(berger_parker(row)) == pytest.approx(alpha.berger_parker_d(row), rel=1e-9)
    assert float(shannon(row)) == pytest.approx(alpha.shannon(row, base=math.e), rel=1e-9, abs=1e-12)
    ratio = alpha.hill(row, order=2) / alpha.hill(row, order=1)
    assert float(evenness(row, kind="hill")) == pytest.approx(ratio, rel=1e-9)
    if np.count_nonzero(row) > 1:
        assert float(evenness(row)) == pytest.approx(alpha.pielou_e(row), rel=1e-9)
    else:
        assert np.isnan(evenness(row))


@pytest.mark.parametrize("counts", [[1], [3, 1], [2, 2, 1], [1, 1, 1, 1], [4, 0, 2]])
def test_rarefaction_equals_the_mean_over_every_subset(counts):
    draws = [c for c, n in enumerate(counts) for _ in range(n)]
    for n in range(1, len(draws) + 1):
        subsets = [len(set(subset)) for subset in itertools.combinations(draws, n)]
        assert float(rarefy(np.array(counts), n=n)) == pytest.approx(np.mean(subsets), rel=1e-9)


@settings(deadline=None)
@given(st.lists(st.integers(0, 800), min_size=1, max_size=12).filter(any), st.data())
def test_rarefaction_equals_exact_binomials(counts, data):
    total = sum(counts)
    n = data.draw(st.integers(1, total))
    exact = sum(1 - Fraction(math.comb(total - c, n), math.comb(total, n)) for c in counts)
    assert float(rarefy(np.array(counts), n=n)) == pytest.approx(float(exact), rel=1e-9)


def test_rarefaction_to_all_draws_and_to_one():
    counts = np.array([[5, 2, 1, 0], [8, 0, 0, 0]])
    np.testing.assert_allclose(rarefy(counts, n=8), [3, 1], rtol=1e-12)
    np.testing.assert_allclose(rarefy(counts, n=1), [1, 1], rtol=1e-12)
    assert np.isnan(rarefy(counts, n=9)).all()
    with pytest.raises(ValueError, match="whole number"):
        rarefy(counts, n=0)


def chao_jost_as_published(counts):
    """The formula of the paper in fractions, with sums where the code has digamma and hypergeometric functions."""
    n, seen = sum(counts), [c for c in counts if c]
    once, twice = counts.count(1), counts.count(2)
    first = sum(Fraction(c, n) * sum(Fraction(1, k) for k in range(c, n)) for c in seen)
    if twice:
        a = Fraction(2 * twice, (n - 1) * once + 2 * twice)
    else:
        a = Fraction(2, (n - 1) * (once - 1) + 2) if once else Fraction(1)
    if not once or a == 1:
        return float(first)
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(200):
        series = sum(((1 - a) ** r / r for r in range(1, n)), Fraction(0))
        rest = -mpmath.log(mpmath.mpf(a.numerator) / a.denominator)
        rest -= mpmath.mpf(series.numerator) / series.denominator
        power = (1 - a) ** (1 - n)
        return float(first) + float(Fraction(once, n) * power * Fraction(str(mpmath.nstr(rest, 150))))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=20).filter(any))
def test_chao_jost_equals_the_published_formula(counts):
    assert float(chao_jost_entropy(np.array(counts))) == pytest.approx(
        chao_jost_as_published(counts), rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize(
    "counts", [[1] * 171, [1] * 400, [1] * 200 + [2], [1] * 100 + [2] * 100, [500, 1], [900, 1, 2]]
)
def test_chao_jost_of_many_draws_equals_the_published_formula(counts):
    assert float(chao_jost_entropy(np.array(counts))) == pytest.approx(chao_jost_as_published(counts), rel=1e-9)


def test_chao_jost_without_classes_seen_once_is_the_first_sum_alone():
    assert float(chao_jost_entropy(np.array([4, 4]))) == pytest.approx(1 / 4 + 1 / 5 + 1 / 6 + 1 / 7, rel=1e-12)


@given(COUNTS)
def test_grassberger_equals_the_recurrence(counts):
    """G(1) = -gamma - log 2, G(2) = 2 - gamma - log 2, G(2n+1) = G(2n), G(2n+2) = G(2n) + 2 / (2n+1)."""
    g = [math.nan, -np.euler_gamma - math.log(2), 2 - np.euler_gamma - math.log(2)]
    for k in range(3, max(counts) + 1):
        g.append(g[k - 1] if k % 2 else g[k - 2] + 2 / (k - 1))
    n = sum(counts)
    expected = math.log(n) - sum(c * g[c] for c in counts if c) / n
    assert float(grassberger_entropy(np.array(counts))) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_improved_coverage_by_hand_and_by_simulation():
    """f1 = 2, f2 = 1, n = 7: 1 - 2/7 * (6*2) / (6*2 + 2*1); without f2: 1 - 2/6 * (5*1) / (5*1 + 2)."""
    assert float(good_turing_coverage(np.array([3, 2, 1, 1]), improved=True)) == pytest.approx(1 - 2 / 7 * 12 / 14)
    assert float(good_turing_coverage(np.array([4, 1, 1]), improved=True)) == pytest.approx(1 - 2 / 6 * 5 / 7)
    shares = np.arange(1, 31) ** -1.0
    shares /= shares.sum()
    draws = np.random.default_rng(0).multinomial(20, shares, size=20_000)
    true = ((draws > 0) * shares).sum(axis=1)
    errors = [good_turing_coverage(draws, improved=flag) - true for flag in (False, True)]
    assert abs(errors[1].mean()) < abs(errors[0].mean()) < 0.02
    # Good and Turing: 1 - f1/n is right on average for a sample of n - 1
    before = ((np.random.default_rng(1).multinomial(19, shares, size=20_000) > 0) * shares).sum(axis=1)
    assert good_turing_coverage(draws).mean() == pytest.approx(before.mean(), abs=0.006)


@given(COUNTS)
def test_bounds_and_order_of_the_estimates(counts):
    row = np.array(counts)
    seen = np.count_nonzero(row)
    assert float(chao1(row)) >= seen
    assert 0 <= float(good_turing_coverage(row)) <= 1
    assert float(chao_jost_entropy(row)) >= 0
    assert 1 / seen - 1e-12 <= float(berger_parker(row)) <= 1
    assert 0 < float(evenness(row, kind="hill")) <= 1
    assert float(shannon(row)) == pytest.approx(math.log(float(hill(row, q=1))))


@pytest.mark.parametrize("estimate", ESTIMATORS)
@pytest.mark.filterwarnings("error")
def test_shapes_order_and_missing(estimate):
    counts = np.random.default_rng(0).integers(0, 9, size=(4, 3, 5))
    counts[..., 0] += 2
    together = estimate(counts)
    assert together.shape == (4, 3)
    np.testing.assert_allclose(together, [[float(estimate(row)) for row in block] for block in counts], rtol=1e-12)
    np.testing.assert_allclose(estimate(counts[..., ::-1]), together, rtol=1e-12)
    padded = np.concatenate([counts, np.zeros_like(counts)], axis=-1)
    np.testing.assert_allclose(estimate(padded), together, rtol=1e-12)
    assert np.isnan(estimate(np.array([[0.0, 0.0], [math.nan, 1.0]]))).all()
    assert np.isnan(estimate(np.zeros((2, 0)))).all()
    with pytest.raises(ValueError, match="negative"):
        estimate(np.array([1, -1]))


@pytest.mark.parametrize("estimate", [chao1, chao_jost_entropy, good_turing_coverage, grassberger_entropy])
def test_estimates_from_draws_refuse_shares(estimate):
    with pytest.raises(ValueError, match="whole numbers"):
        estimate(np.array([0.5, 0.5]))


def test_an_unknown_kind_of_evenness_is_refused():
    with pytest.raises(ValueError, match="pielou"):
        evenness(np.array([1, 2]), kind="simpson")
