"""The tests by swapping: against every relabelling counted by hand, and against what they promise."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from divmon.alarms import Rule
from divmon.alarms.evidence import (
    EXACT_UP_TO,
    MIN_PAIRS,
    beyond_margin,
    confirm_mean,
    confirm_pooled,
    sign_flip,
    smallest_p,
    swap_pooled,
)


def rule(kind="drop", by="20%", **more):
    return Rule("r", metric="m", rule=kind, by=by, evidence="confirm", **more)


def counted(d):
    """p by the definition: every assignment of signs."""
    d = np.asarray(d, float)
    signs = np.array(list(itertools.product((1, -1), repeat=len(d))))
    return float(np.mean(signs @ d >= d.sum()))


sixteenths = st.integers(-32, 32).map(lambda x: x / 16)  # sums of these are exact, so a tie is a tie
values = st.lists(sixteenths, min_size=1, max_size=11)


@given(values)
@settings(deadline=None, max_examples=100)
def test_enumeration_is_every_relabelling(d):
    found = sign_flip(np.array(d), alpha=1.0, seed=0)
    assert found.exact
    assert found.p == pytest.approx(counted(d), abs=1e-12)  # zeros in it change nothing
    assert found.informative == sum(x != 0 for x in d)


@given(st.lists(st.floats(0.01, 2), min_size=4, max_size=9), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_dropping_zeros_changes_nothing(d, zeros):
    assert sign_flip(np.array(d + [0.0] * zeros), alpha=1.0, seed=0).p == sign_flip(np.array(d), alpha=1.0, seed=0).p


def test_equal_steps_are_ties_whatever_rounding_does():
    d = np.array([0.1, 0.2, -0.3] * 4)  # sums that are 0 but for rounding
    assert sign_flip(d, alpha=1.0, seed=0).p == counted([1, 2, -3] * 4)


@pytest.mark.parametrize("n", [9, 12])
def test_against_scipy(n):
    rng = np.random.default_rng(n)
    b, c = rng.normal(1, 0.4, n), rng.normal(0.9, 0.4, n)
    theirs = permutation_test(
        (b, c), lambda x, y: np.mean(x - y), permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert sign_flip(b - c, alpha=1.0, seed=0).p == pytest.approx(theirs.pvalue, abs=1e-9)


def test_random_flips_agree_with_the_exact_p():
    rng = np.random.default_rng(5)
    for shift in (0.0, 0.25, 0.45):
        d = rng.normal(shift, 1, EXACT_UP_TO)
        exact = sign_flip(d, alpha=0.001, seed=0).p
        more = np.concatenate((d, [1e-9] * 8))  # one prompt too many to count
        drawn = sign_flip(more, alpha=0.001, seed=1)
        assert not drawn.exact
        if exact < 0.001:
            continue
        hits = round(drawn.p * (1 + drawn.draws)) - 1
        assert binomtest(hits, drawn.draws, exact).pvalue > 1e-4


def test_early_stopping_never_changes_the_decision():
    rng = np.random.default_rng(2)
    for seed in range(60):
        d = rng.normal(0.3, 1, 40)
        found = sign_flip(d, alpha=0.02, seed=seed)
        limit = math.ceil(20 / 0.02)
        assert found.draws <= limit
        assert (found.p <= 0.02) == (found.draws == limit and found.p <= 0.02)
        if found.draws < limit:
            hits = round(found.p * (1 + found.draws)) - 1
            assert (1 + hits) / (1 + limit) > 0.02  # drawing all could not have confirmed
    again = sign_flip(d, alpha=0.02, seed=59)
    assert again == found


def test_too_few_prompts_are_unknown():
    assert sign_flip(np.ones(4), alpha=0.05, seed=0).reason == (
        "too few informative prompts: with 4 the smallest possible p is 0.0625, above 0.05"
    )
    assert sign_flip(np.ones(5), alpha=0.05, seed=0).p == 2**-5 == smallest_p(5)
    assert sign_flip(np.zeros(64), alpha=0.05, seed=0).reason.startswith("too few informative prompts: with 0")


NOISES = {
    "gaussian": lambda rng, n: rng.normal(0, 0.1, n),
    "skewed": lambda rng, n: 0.1 * (rng.exponential(1, n) - 1),
    "rare": lambda rng, n: 0.5 * (rng.random(n) < 0.15),
    "t2": lambda rng, n: 0.1 * rng.standard_t(2, n),
}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("p", [16, 24, 48])
def test_the_level_is_held_and_used(noise, p):
    """At tolerate 0 nothing has changed: confirmed at most as often as alpha says, and not never."""
    rng, runs, alpha = np.random.default_rng(p), 1500, 0.05
    wanted = rule(by=0.2, tolerate=0.0)
    level = rng.uniform(1, 2, p)
    hits = sum(
        confirm_mean(
            wanted, level + NOISES[noise](rng, p), level + NOISES[noise](rng, p), alpha=alpha, seed=run
        ).outcome(alpha)
        == "confirmed"
        for run in range(runs)
    )
    assert binomtest(hits, runs, alpha, alternative="greater").pvalue > 0.001
    assert hits / runs > 0.01


@pytest.mark.parametrize("kind", ["drop", "rise", "outside"])
def test_at_the_margin_and_beyond_it(kind):
    rng, p, alpha = np.random.default_rng(3), 24, 0.03
    wanted = rule(kind, by="20%", tolerate="10%")
    way = -1 if kind == "drop" else 1
    level = rng.uniform(1, 2, p)

    def share(change, runs=400):
        found = [
            confirm_mean(
                wanted,
                level + rng.normal(0, 0.1, p),
                level * (1 + way * change) + rng.normal(0, 0.1, p),
                alpha=alpha,
                seed=i,
            ).outcome(alpha)
            for i in range(runs)
        ]
        return found.count("confirmed"), runs

    hits, runs = share(0.1)
    assert binomtest(hits, runs, alpha, alternative="greater").pvalue > 0.001
    assert share(0.05)[0] == 0
    assert share(0.2)[0] > 0.95 * runs


def test_a_margin_only_raises_p():
    rng = np.random.default_rng(1)
    for _ in range(50):
        b, c = rng.uniform(0, 2, 14), rng.uniform(0, 1.6, 14)
        none, some = (confirm_mean(rule(tolerate=t), b, c, alpha=0.5, seed=0).p for t in ("0%", "10%"))
        assert some >= none


def test_missing_values_drop_the_pair_and_too_few_are_unknown():
    b, c = np.full(30, 1.0), np.full(30, 0.4)
    b[:3], c[2:9] = math.nan, math.nan
    found = confirm_mean(rule(), b, c, alpha=0.01, seed=0)
    assert (found.n, found.informative, found.p, found.kept[0]) == (21, 21, 2**-21, 9)
    assert found.estimate == pytest.approx(0.6)
    c[2:16] = math.nan
    assert confirm_mean(rule(), b, c, alpha=0.01, seed=0).reason == (
        "only 14 of 30 prompts have a value on both sides; at least 15 are needed"
    )
    few = confirm_mean(rule(), b[16:27], c[16:27], alpha=0.01, seed=0)
    assert few.reason == f"only 11 of 11 prompts have a value on both sides; at least {MIN_PAIRS} are needed"
    assert few.outcome(1.0) == "unknown"


def test_a_share_of_what_may_be_negative_is_refused():
    b = np.linspace(-0.1, 1, 20)
    assert "use an absolute `by`" in confirm_mean(rule(), b, b / 2, alpha=0.05, seed=0).reason
    assert confirm_mean(rule(by=0.2), b, b - 0.5, alpha=0.05, seed=0).p == 2**-20
    assert confirm_mean(rule(), np.abs(b), np.abs(b) / 2, alpha=0.05, seed=0).reason is None


def test_two_sides_cost_twice():
    rng = np.random.default_rng(0)
    b = rng.uniform(1, 2, 20)
    c = b * 0.8 + rng.normal(0, 0.1, 20)
    one = confirm_mean(rule("drop", tolerate="0%"), b, c, alpha=0.1, seed=0)
    two = confirm_mean(rule("outside", tolerate="0%"), b, c, alpha=0.1, seed=0)
    up = confirm_mean(rule("outside", tolerate="0%"), c, b, alpha=0.1, seed=0)
    assert two.p == pytest.approx(2 * one.p)
    assert two.estimate == pytest.approx(one.estimate)
    assert up.estimate == pytest.approx(b.mean() / c.mean() - 1)
    assert up.p == pytest.approx(two.p)


def top(parts):
    sums = np.asarray(parts).sum(axis=-2)
    return sums.max(axis=-1) / sums.sum(axis=-1)


def brute_pooled(b, c, combine, sign):
    observed, hits = sign * (combine(b) - combine(c)), 0
    for swaps in itertools.product((False, True), repeat=len(b)):
        s = np.array(swaps)[:, None]
        hits += sign * (combine(np.where(s, c, b)) - combine(np.where(s, b, c))) >= observed - 1e-12
    return hits / 2 ** len(b)


@given(st.integers(0, 10**6), st.sampled_from([1, -1]))
@settings(deadline=None, max_examples=25)
def test_pooled_enumeration_is_every_relabelling(seed, sign):
    rng = np.random.default_rng(seed)
    b, c = rng.multinomial(4, [0.4, 0.3, 0.3], 9).astype(float), rng.multinomial(4, [0.7, 0.2, 0.1], 9).astype(float)
    found = swap_pooled(b, c, top, sign=sign, alpha=0.9, seed=0)
    assert found.exact
    assert found.p == pytest.approx(brute_pooled(b, c, top, sign), abs=1e-12)


def test_pooled_random_swaps_agree_with_the_exact_p():
    rng = np.random.default_rng(8)
    b, c = rng.multinomial(4, [0.4, 0.3, 0.3], 12).astype(float), rng.multinomial(4, [0.5, 0.3, 0.2], 12).astype(float)
    exact = swap_pooled(b, c, top, sign=-1, alpha=0.2, seed=0).p
    same = rng.multinomial(4, [0.4, 0.3, 0.3], 40).astype(float)
    found = swap_pooled(np.concatenate((b, same)), np.concatenate((c, same)), top, sign=-1, alpha=0.2, seed=0)
    assert found.informative <= 12
    assert found.n == 52
    assert 0 < exact < 1


def test_pooled_level_is_held_and_the_margin_counts():
    rng, runs, alpha = np.random.default_rng(4), 400, 0.05
    wanted = Rule("r", metric="m", rule="rise", by=0.1, tolerate=0.0, evidence="confirm")
    hits = 0
    for run in range(runs):
        mix = rng.dirichlet([2, 2, 2], 24)
        b, c = (np.array([rng.multinomial(8, m) for m in mix], float) for _ in range(2))
        found = confirm_pooled(wanted, b, c, top, alpha=alpha, seed=run)
        hits += found.outcome(alpha, beyond=beyond_margin(wanted, found)) == "confirmed"
    assert binomtest(hits, runs, alpha, alternative="greater").pvalue > 0.001
    assert hits / runs > 0.01
    b, c = np.tile([4.0, 4.0], (20, 1)), np.tile([5.0, 3.0], (20, 1))
    found = confirm_pooled(rule("rise", by=0.3), b, c, top, alpha=0.01, seed=0)
    assert found.p <= 0.01
    assert found.estimate == pytest.approx(0.125)
    assert found.outcome(0.01, beyond=beyond_margin(rule("rise", by=0.3), found)) == "refuted"
    assert found.outcome(0.01, beyond=beyond_margin(rule("rise", by=0.2), found)) == "confirmed"


def test_a_relabelling_without_a_value_counts_against_the_alarm():
    def fragile(parts):
        sums = np.asarray(parts).sum(axis=-2)
        return np.where(sums[..., 1] > 0, sums[..., 0], math.nan)

    b, c = np.tile([2.0, 0.0], (12, 1)), np.tile([1.0, 0.0], (12, 1))
    b[0, 1], c[1, 1] = 1, 1  # a swap of one of the two leaves a side without a value
    found = swap_pooled(b, c, fragile, sign=1, alpha=0.5, seed=0)
    assert found.p == pytest.approx(0.5 + 2**-12, abs=1e-9)
    none = swap_pooled(b, np.zeros((12, 2)), fragile, sign=1, alpha=0.5, seed=0)
    assert none.reason == "the statistic has no value on these completions"
