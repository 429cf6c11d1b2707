"""Tail narrowing: the published difficulty panel, hand counts, and what must hold for any batch."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from divmon.metrics.base import MetricContext, Pooled, evaluate
from divmon.metrics.tails import (
    TAIL_KL,
    TAIL_RATIO,
    TAIL_SHARE,
    TAIL_SHIFT,
    kl_nats,
    tail_ratio,
    tail_share,
    total_variation,
)
from divmon.plain import to_json
from divmon.records import Probe, SampleBatch

ORACLES = Path(__file__).parents[2].parent / "shared" / "oracles"
ALL = (TAIL_SHARE, TAIL_RATIO, TAIL_SHIFT, TAIL_KL)

# Difficulty panel of arXiv:2411.00750, read off a figure: shares of MATH levels 1 to 5.
REFERENCE = np.array([0.075, 0.179, 0.212, 0.224, 0.307])
SELF_GENERATED = np.array([0.228, 0.321, 0.231, 0.139, 0.079])


def test_published_difficulty_panel():
    assert float(tail_ratio(REFERENCE, SELF_GENERATED)) == pytest.approx(0.26, abs=0.005)
    assert float(total_variation(REFERENCE, SELF_GENERATED)) == pytest.approx(0.314, abs=0.002)
    assert float(kl_nats(REFERENCE, SELF_GENERATED)) == pytest.approx(0.319, abs=0.002)
    assert float(tail_share(REFERENCE)) == pytest.approx(0.531, abs=0.0005)
    assert float(tail_share(SELF_GENERATED)) == pytest.approx(0.218, abs=0.0005)


def test_entropy_of_the_levels_is_blind_to_it():
    assert entropy(REFERENCE) == pytest.approx(1.530, abs=0.002)
    assert entropy(SELF_GENERATED) == pytest.approx(1.516, abs=0.002)


def test_the_restated_table_is_the_stored_one():
    path = ORACLES / "tables" / "tail_narrowing_difficulty.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    table = json.loads(path.read_text(encoding="utf-8"))
    assert table["reference"] == REFERENCE.tolist()
    assert table["self_generated"] == SELF_GENERATED.tolist()


def test_the_same_panel_as_counts_of_solved_completions():
    """One prompt a level, 1,000 completions each; solved ones in the published proportions."""

    def panel(shares):
        return [[1.0] * round(1000 * share) + [0.0] * (1000 - round(1000 * share)) for share in shares]

    base = context_of(panel(REFERENCE), difficulty=[1, 2, 3, 4, 5])
    now = context_of(panel(SELF_GENERATED), difficulty=[1, 2, 3, 4, 5], baseline=base)
    found = [measure(metric, now) for metric in ALL]
    assert found == pytest.approx([0.218, 0.26, 0.314, 0.319], abs=0.005)
    assert [measure(metric, base) for metric in ALL] == pytest.approx([0.531, 1.0, 0.0, 0.0], abs=0.002)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.lists(st.floats(0.01, 1), min_size=6, max_size=6))
def test_divergences_against_scipy(a, b):
    p, q = np.array(a) / sum(a), np.array(b[: len(a)]) / sum(b[: len(a)])
    assert float(kl_nats(p, q)) == pytest.approx(entropy(p, q), abs=1e-12)
    assert float(total_variation(p, q)) == pytest.approx(np.abs(p - q).sum() / 2)
    assert float(total_variation(p, p)) == float(kl_nats(p, p)) == 0.0
    assert float(tail_ratio(p, p)) == 1.0


def test_edges_of_the_pure_functions():
    assert float(kl_nats(np.array([0.5, 0.5]), np.array([1.0, 0.0]))) == math.inf
    assert float(kl_nats(np.array([1.0, 0.0]), np.array([0.5, 0.5]))) == pytest.approx(math.log(2))
    assert math.isnan(float(tail_ratio(np.array([1.0, 0.0]), np.array([0.5, 0.5]))))
    stacked = np.stack([REFERENCE, SELF_GENERATED])
    assert kl_nats(REFERENCE, stacked).shape == total_variation(REFERENCE, stacked).shape == (2,)
    assert tail_ratio(REFERENCE, stacked).shape == tail_share(stacked).shape == (2,)


@pytest.mark.parametrize(("levels", "tail"), [(2, 1), (3, 2), (4, 2), (5, 2), (6, 3), (10, 4)])
def test_the_tail_is_the_hardest_forty_per_cent_of_levels_rounded_up(levels, tail):
    assert float(tail_share(np.full(levels, 1 / levels))) == pytest.approx(tail / levels)


def context_of(quality, *, difficulty=None, baseline=None, ids=None):
    difficulty = difficulty or [None] * len(quality)
    ids = ids or [f"p{i}" for i in range(len(quality))]
    probes = tuple(Probe(name, "?", difficulty=level) for name, level in zip(ids, difficulty, strict=True))
    batch = SampleBatch(0, probes, tuple(("x",) * len(row) for row in quality))
    return MetricContext(batch, quality=quality, baseline=baseline)


def measure(metric, context, rows=slice(None)):
    result = evaluate(metric, context)
    assert isinstance(result, Pooled)
    return float(result.combine(result.parts[rows]))


def details(metric, context):
    result = evaluate(metric, context)
    return result.details(result.parts)


def rates(*solved, of=10):
    return [[1.0] * s + [0.0] * (of - s) for s in solved]


def test_bins_come_from_the_baseline_pass_rate_and_stay():
    base = context_of(rates(10, 9, 8, 7, 5, 3, 2, 1, 0))
    now = context_of(rates(0, 0, 0, 0, 0, 0, 10, 10, 10), baseline=base)
    found = details(TAIL_SHARE, now)
    assert found["levels_from"] == "baseline pass rate"
    assert found["tail_levels"] == ["4", "5"]
    # 10 and 9 of 10 are above 80 % (level 1); 8 and 7 level 2; 5 level 3; 3 level 4; 2, 1 and 0 at most 20 % (level 5).
    shares = {"1": 19 / 45, "2": 15 / 45, "3": 5 / 45, "4": 3 / 45, "5": 3 / 45}
    assert details(TAIL_SHARE, base)["shares"] == pytest.approx(shares)
    assert found["baseline_shares"] == pytest.approx(shares)
    assert found["shares"] == pytest.approx({"1": 0, "2": 0, "3": 0, "4": 0, "5": 1})
    assert (found["solved"], found["baseline_solved"]) == (30, 45)
    assert measure(TAIL_RATIO, now) == pytest.approx(15)


def test_completions_that_nobody_judged_do_not_make_a_prompt_hard():
    base = context_of([[1, math.nan, math.nan, math.nan], [0, 0, 0, 1], [math.nan] * 4])
    assert details(TAIL_SHARE, base)["shares"] == pytest.approx({"1": 0.5, "2": 0, "3": 0, "4": 0.5, "5": 0})


def test_no_hard_prompt_at_the_baseline_is_missing_and_not_a_dead_tail():
    base = context_of(rates(10, 9, 8, 7, 5))
    for context in (base, context_of(rates(10, 9, 8, 7, 5), baseline=base)):
        assert math.isnan(measure(TAIL_SHARE, context))
        assert evaluate(TAIL_SHARE, context).reason == "no prompt was hard at the baseline; give probes a difficulty"
        assert details(TAIL_SHARE, context)["tail_prompts"] == 0
    unsolved = context_of(rates(10, 0))
    assert measure(TAIL_SHARE, unsolved) == 0.0  # there is a hard prompt, and it is never solved
    assert details(TAIL_SHARE, unsolved)["tail_prompts"] == 1
    assert math.isnan(measure(TAIL_SHARE, unsolved, [0]))  # a domain without one
    assert evaluate(TAIL_SHARE, unsolved).reason.startswith("nothing was solved, or no prompt was hard at the baseline")
    given = context_of(rates(10, 10, 10), difficulty=[1, 2, 3])
    assert math.isnan(measure(TAIL_SHARE, given, [0]))
    assert evaluate(TAIL_SHARE, given).reason == "nothing was solved, or no prompt is of the hardest levels"


def test_given_difficulty_wins_and_prompts_without_one_are_left_out():
    context = context_of(rates(10, 5, 10), difficulty=[1, 3, None])
    found = details(TAIL_SHARE, context)
    assert (found["levels_from"], found["tail_levels"]) == ("difficulty", ["3"])
    assert found["shares"] == pytest.approx({"1": 2 / 3, "3": 1 / 3})
    assert json.loads(json.dumps(to_json(found))) == found


def test_a_level_that_empties_gives_a_large_finite_divergence():
    base = context_of(rates(10, 10), difficulty=[1, 2])
    now = context_of(rates(10, 0), difficulty=[1, 2], baseline=base)
    assert measure(TAIL_RATIO, now) == 0.0
    assert measure(TAIL_SHARE, now) == 0.0
    assert measure(TAIL_SHIFT, now) == 0.5
    by_hand = entropy([0.5, 0.5], [10.5 / 11, 0.5 / 11])
    assert measure(TAIL_KL, now) == pytest.approx(by_hand)
    assert 0.5 < by_hand < math.inf


def test_missing_says_why():
    nothing = context_of(rates(0, 0), difficulty=[1, 2])
    for metric in ALL:
        assert math.isnan(measure(metric, nothing))
        assert "nothing was solved" in evaluate(metric, nothing).reason
    one = evaluate(TAIL_SHARE, context_of(rates(5, 5), difficulty=[2, 2]))
    assert one.reasons[0] == "only one level of difficulty"
    blind = MetricContext(SampleBatch(0, (Probe("p0", "?"),), (("x",),)))
    assert "quality=" in evaluate(TAIL_SHARE, blind).reasons[0]
    late = evaluate(TAIL_SHARE, context_of(rates(5), baseline=blind))
    assert "no quality at the baseline" in late.reasons[0]
    easy = context_of(rates(10, 0), difficulty=[1, 2])
    assert math.isnan(measure(TAIL_RATIO, easy))


def test_prompts_are_matched_to_the_baseline_by_id():
    base = context_of(rates(10, 2), difficulty=[1, 2])
    now = context_of(rates(2, 10), difficulty=[2, 1], ids=["p1", "p0"], baseline=base)
    assert [measure(metric, now) for metric in ALL] == pytest.approx([2 / 12, 1, 0, 0])
    new = context_of(rates(5, 5), difficulty=[1, 2], ids=["p0", "new"], baseline=base)
    assert details(TAIL_SHARE, new)["baseline_solved"] == 10


batches = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=8).filter(
    lambda rows: len({level for level, _, _ in rows}) > 1
)


def both(rows, keep=None):
    names = [f"p{i}" for i in range(len(rows))]
    keep = range(len(rows)) if keep is None else keep
    level, ids = [rows[i][0] for i in keep], [names[i] for i in keep]
    base = context_of(rates(*(rows[i][1] for i in keep), of=6), difficulty=level, ids=ids)
    return context_of(rates(*(rows[i][2] for i in keep), of=6), difficulty=level, ids=ids, baseline=base)


def same(a, b):
    assert (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b)


@settings(max_examples=40, deadline=None)
@given(batches, st.randoms())
def test_order_does_not_matter(rows, random):
    order = random.sample(range(len(rows)), len(rows))
    for metric in ALL:
        same(measure(metric, both(rows)), measure(metric, both(rows, order)))


@settings(max_examples=40, deadline=None)
@given(batches, st.data())
def test_a_subset_of_prompts_is_the_subset_batch(rows, data):
    every = {level: i for i, (level, _, _) in enumerate(rows)}.values()  # one prompt a level stays: same levels
    keep = sorted(set(every) | data.draw(st.sets(st.integers(0, len(rows) - 1))))
    for metric in ALL:
        same(measure(metric, both(rows), keep), measure(metric, both(rows, keep)))


@settings(max_examples=40, deadline=None)
@given(batches)
def test_bounds_and_leading_axes(rows):
    index = np.random.default_rng(0).integers(0, len(rows), size=(3, 4, len(rows)))
    for metric in ALL:
        result = evaluate(metric, both(rows))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            values = result.combine(result.parts[index])
        assert values.shape == (3, 4)
        known = values[~np.isnan(values)]
        assert np.isfinite(known).all()
        assert ((known >= metric.bounds[0] - 1e-12) & (known <= metric.bounds[1] + 1e-12)).all()
        same(float(values[1, 2]), float(result.combine(result.parts[index[1, 2]])))


def test_swapping_now_and_baseline_columns_turns_the_comparison_round():
    base = context_of(rates(6, 3), difficulty=[1, 2])
    now = context_of(rates(6, 1), difficulty=[1, 2], baseline=base)
    result = evaluate(TAIL_RATIO, now)
    turned = result.parts.reshape(2, -1, 2)[..., ::-1].reshape(result.parts.shape)
    assert float(result.combine(turned)) == pytest.approx(1 / float(result.combine(result.parts)))
    assert measure(TAIL_SHIFT, now) == pytest.approx(float(evaluate(TAIL_SHIFT, now).combine(turned)))


def test_real_solutions_bin_by_the_baseline_model():
    """The smaller model is the baseline, the larger one with a verifier is what came later."""
    path = ORACLES / "gsm8k" / "example_model_solutions.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    small, large = (
        [[float(row[f"{size}_{how}"]["is_correct"]) for how in ("finetuning", "verification")] for row in rows]
        for size in ("6b", "175b")
    )
    base = context_of(small)
    now = context_of(large, baseline=base)
    assert measure(TAIL_SHARE, base) < measure(TAIL_SHARE, now) < 1  # a better model reaches the tail
    assert 0 < measure(TAIL_SHIFT, now) < 1
    assert math.isnan(measure(TAIL_RATIO, now))  # with two draws a prompt, level 5 is what was never solved
