"""Bootstrap intervals over prompts: they cover what they promise, never flicker, and say nothing of the unknown."""

import math

import numpy as np
import pytest

from divmon.uncertainty import MIN_PROMPTS, RESAMPLES, mean_interval, pooled_interval


def mean_of(parts):
    return parts[..., 0].mean(axis=-1)


def ratio_of(parts):
    return parts[..., 0].sum(axis=-1) / parts[..., 1].sum(axis=-1)


SKEWED = {
    "exponential": (lambda rng, n: rng.exponential(1.0, n), 1.0),
    "rare successes": (lambda rng, n: rng.binomial(8, 0.15, n) / 8, 0.15),
    "near the ceiling": (lambda rng, n: rng.beta(6, 1, n), 6 / 7),
    "heavy tail": (lambda rng, n: rng.gamma(0.5, 2.0, n), 1.0),
}


@pytest.mark.parametrize("name", SKEWED)
def test_the_interval_of_a_mean_covers_it(name):
    draw, truth = SKEWED[name]
    rng = np.random.default_rng(11)
    intervals = np.array([mean_interval(draw(rng, 32)) for _ in range(600)])
    covered = np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1]))
    assert 0.90 <= covered <= 0.98
    below, above = np.mean(intervals[:, 1] < truth), np.mean(intervals[:, 0] > truth)
    assert max(below, above) < 0.09


def test_the_interval_of_a_pooled_ratio_covers_it():
    rng, truth, covered = np.random.default_rng(3), 0.3, []
    for _ in range(300):
        n = rng.integers(1, 9, 32)
        low, high = pooled_interval(np.stack([rng.binomial(n, truth), n], axis=1).astype(float), ratio_of)
        covered.append(low <= truth <= high)
    assert 0.90 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize("p", [MIN_PROMPTS, 7, 32, 200])
def test_a_pooled_mean_has_the_interval_of_the_mean(p):
    values = np.random.default_rng(p).exponential(1.0, p)
    assert pooled_interval(values[:, None], mean_of) == pytest.approx(mean_interval(values), rel=1e-12)


def test_it_narrows_with_the_root_of_the_prompts():
    rng = np.random.default_rng(0)
    few, many = (np.ptp(mean_interval(rng.normal(size=n))) for n in (50, 5000))
    assert few / many == pytest.approx(10, rel=0.3)


def test_it_is_the_same_every_time():
    values = np.random.default_rng(0).normal(size=40)
    first = mean_interval(values)
    mean_interval(np.arange(9.0))
    np.random.default_rng().normal(size=3)
    np.random.seed(5)
    state = np.random.get_state()[1].tolist()
    assert mean_interval(values.copy()) == first
    assert np.random.get_state()[1].tolist() == state


def test_equal_values_have_a_width_of_zero():
    assert mean_interval(np.full(8, 0.1)) == pytest.approx((0.1, 0.1), abs=1e-15)
    assert pooled_interval(np.full((8, 1), 2.0), mean_of) == (2.0, 2.0)


@pytest.mark.parametrize("n", range(MIN_PROMPTS))
def test_below_five_prompts_there_is_none(n):
    for interval in (mean_interval(np.arange(float(n))), pooled_interval(np.ones((n, 1)), mean_of)):
        assert all(map(math.isnan, interval))


def test_missing_values_are_skipped():
    values = np.random.default_rng(0).normal(size=12)
    gappy = np.insert(values, [0, 3, 12], math.nan)
    assert mean_interval(gappy) == mean_interval(values)
    assert all(map(math.isnan, mean_interval(np.array([1.0, 2, 3, 4, math.nan, math.nan]))))
    assert all(map(math.isnan, mean_interval(np.full(9, math.nan))))


def test_infinite_values_have_no_interval():
    with np.errstate(all="ignore"):
        assert all(map(math.isnan, mean_interval(np.array([1.0, 2, 3, 4, math.inf, -math.inf]))))


def test_resamples_without_a_value_are_left_out():
    parts = np.array([[1.0, 1.0]] * 3 + [[0.0, 0.0]] * 3)  # a resample of the last three alone is 0 / 0
    assert pooled_interval(parts, ratio_of) == (1.0, 1.0)


def test_an_interval_needs_half_of_the_resamples():
    parts = np.zeros((20, 2))
    parts[0] = 1.0  # in 64 % of the resamples
    assert pooled_interval(parts, ratio_of) == (1.0, 1.0)
    parts = np.zeros((5, 2))
    assert all(map(math.isnan, pooled_interval(parts, ratio_of)))

    def seldom(parts):
        return np.where(parts[..., 0].sum(axis=-1) > 2, 1.0, math.nan)

    parts = np.zeros((20, 1))
    parts[0] = 1.0
    assert all(map(math.isnan, pooled_interval(parts, seldom)))


def test_wide_parts_are_resampled_piece_by_piece(monkeypatch):
    parts = np.random.default_rng(0).random((10, 4))
    whole, sizes = pooled_interval(parts, mean_of), []

    def watched(draws):
        sizes.append(len(draws))
        return mean_of(draws)

    monkeypatch.setattr("divmon.uncertainty._CHUNK", 4000)
    assert pooled_interval(parts, watched) == whole
    assert sizes == [100] * 10
    assert sum(sizes) == RESAMPLES
