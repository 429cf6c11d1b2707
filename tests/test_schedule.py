"""The schedule: a budget is kept whatever things cost, the cadence follows from what was recorded, nothing is early."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.schedule import Clock, Pace, Progress, decide, forecast, spacing

COSTS = st.floats(0.001, 20.0)


def run(pace, *, step_costs, score_costs, sample_costs, drifts=(0.0,), alarms=(), other=0.0, cut=None):
    """A whole run: (step, "score" or "sample", why, beyond the budget) in order, and the clock at its end.

    With `cut`, the progress goes through JSON at that step, as through a checkpoint.
    """
    progress, look, total, spent, done = (
        Progress(score_cost=score_costs[0], sample_cost=sample_costs[0]),
        1,
        0.0,
        0.0,
        [],
    )
    for step in range(1, pace.steps + 1):
        total += step_costs[step % len(step_costs)] + other
        spent += other
        if step < look:
            continue
        if step == cut:
            progress = Progress.restore(json.loads(json.dumps(progress.to_json())))
        choice = decide(pace, progress, step, Clock(total, spent))
        if choice.score:
            cost = score_costs[step % len(score_costs)]
            total, spent = total + cost, spent + cost
            done.append((step, "score", choice.score, choice.over))
            drift = drifts[step % len(drifts)]
            progress = progress.after_score(step, cost=cost, drift=drift, alarmed=step in alarms)
            choice = decide(pace, progress, step, Clock(total, spent))
        assert not choice.score
        if choice.sample:
            cost = sample_costs[step % len(sample_costs)]
            total, spent = total + cost, spent + cost
            done.append((step, "sample", choice.sample, choice.over))
            progress = progress.after_sample(step, cost=cost)
        assert choice.look > step
        look = choice.look
    return done, Clock(total, spent)


def kinds(done, kind):
    return [row for row in done if row[1] == kind]


@settings(deadline=None, max_examples=80)
@given(
    steps=st.integers(10, 600),
    budget=st.floats(0.005, 0.2),
    step_costs=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=7),
    score_costs=st.lists(COSTS, min_size=1, max_size=5),
    sample_costs=st.lists(COSTS, min_size=1, max_size=5),
    other=st.floats(0, 0.01),
)
def test_a_budget_is_kept_but_for_the_scores_of_every_tenth(
    steps, budget, step_costs, score_costs, sample_costs, other
):
    pace = Pace(steps=steps, budget=budget)
    costs = {"step_costs": step_costs, "score_costs": score_costs, "sample_costs": sample_costs, "other": other}
    done, clock = run(pace, **costs)
    forced = len([row for row in done if row[2] == "tenth"]) * max(score_costs)
    wrong = max(score_costs) + max(sample_costs)  # one of each may have cost more than was foreseen
    assert clock.spent <= budget * clock.total + forced + wrong + other * steps
    scored = [step for step, *_ in kinds(done, "score")]
    for tenth in range(10):
        assert any(tenth * steps / 10 < step <= (tenth + 1) * steps / 10 for step in scored), tenth


@settings(deadline=None, max_examples=60)
@given(
    steps=st.integers(50, 600),
    budget=st.floats(0.005, 0.2),
    score=st.floats(0.001, 2.0),
    sample=st.floats(0.001, 30.0),
    drifts=st.lists(st.floats(0, 0.3), min_size=1, max_size=11),
)
def test_with_steady_costs_the_run_ends_within_its_budget(steps, budget, score, sample, drifts):
    pace = Pace(steps=steps, budget=budget)
    costs = {"step_costs": [1.0], "score_costs": [score], "sample_costs": [sample]}
    done, clock = run(pace, **costs, drifts=drifts, alarms=range(0, steps, 7))
    least = len([row for row in done if row[2] == "tenth"]) * score
    assert clock.spent <= max(budget * clock.total, least) + 1e-6
    if forecast(pace, step_cost=1.0, score_cost=score, sample_cost=sample).holds:
        assert clock.spent <= budget * clock.total + 1e-6


@settings(deadline=None, max_examples=60)
@given(
    steps=st.integers(1, 300),
    every=st.integers(1, 50),
    gap=st.integers(1, 100),
    drifts=st.lists(st.floats(0, 0.1), min_size=1, max_size=11),
)
def test_without_a_budget_nothing_is_early_and_nothing_late(steps, every, gap, drifts):
    pace = Pace(steps=steps, score_every=every, gap=gap)
    costs = {"step_costs": [1.0], "score_costs": [1.0], "sample_costs": [50.0]}
    done, _ = run(pace, **costs, drifts=drifts)
    assert [step for step, *_ in kinds(done, "score")] == list(range(every, steps + 1, every))
    at, last, seen = 0.0, 0, 0.0
    samples = {step: why for step, _, why, _ in kinds(done, "sample")}
    for step in range(1, steps + 1):
        if step % every == 0:
            seen = drifts[step % len(drifts)]
        due = abs(seen - at) >= pace.moved and (step % every == 0 or step - last >= gap)
        due = due or step - last >= gap or step == steps
        if step in samples:
            assert due
            at, last = seen, step
        assert step - last <= gap
        assert not (step % every == 0 and abs(seen - at) >= pace.moved)


@given(cut=st.integers(1, 200), drifts=st.lists(st.floats(0, 0.1), min_size=1, max_size=11))
@settings(deadline=None, max_examples=40)
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(cut, drifts):
    pace = Pace(steps=200, budget=0.05)
    costs = {"step_costs": [1.0, 2.0], "score_costs": [0.3, 0.4], "sample_costs": [3.0, 2.0], "alarms": (40,)}
    assert run(pace, **costs, drifts=drifts) == run(pace, **costs, drifts=drifts, cut=cut)


def test_what_asks_for_a_sampling_is_said():
    pace, clock = Pace(steps=100, score_every=10, gap=30, moved=0.02), Clock()
    cases = {
        "moved": Progress(drift=0.03, at_sampling=0.005),
        "alarm": Progress(alarmed=True, drift=0.5),
        "gap": Progress(sampled=-23),
        "": Progress(drift=0.03, at_sampling=0.011),
    }
    for why, progress in cases.items():
        assert decide(pace, progress, 7, clock).sample == why
    back = Progress(drift=0.001, at_sampling=0.03)  # a policy that has come back has moved too
    assert decide(pace, back, 7, clock).sample == "moved"


def test_a_sampling_that_cannot_be_paid_waits_and_says_so():
    pace, costly = Pace(steps=1000, budget=0.02), Progress(score_cost=0.01, sample_cost=5.0, scored=100, drift=1.0)
    assert decide(pace, costly, 100, Clock(100.0, 0.0)).sample == "moved"  # paid by what the rest of the run brings in
    poor = decide(pace, costly, 100, Clock(100.0, 18.0))
    assert (poor.sample, poor.waits) == ("", "moved")
    assert decide(pace, Progress(sample_cost=1.0, scored=199), 200, Clock(200.0, 3.5)).waits == "gap"
    assert decide(pace, Progress(sample_cost=1.0, scored=199), 200, Clock(200.0, 2.5)).sample == "gap"


def test_a_score_in_every_tenth_goes_before_the_budget():
    pace = Pace(steps=100, budget=0.01)
    choice = decide(pace, Progress(score_cost=5.0), 10, Clock(10.0, 0.0))
    assert (choice.score, choice.over) == ("tenth", True)
    told = forecast(pace, step_cost=1.0, score_cost=5.0, sample_cost=20.0)
    assert not told.holds
    assert told.least == pytest.approx(50 / 150)
    assert told.samplings == 0


def test_a_forecast_is_what_happens():
    pace = Pace(steps=500, budget=0.02)
    for score, sample in [(0.05, 1.0), (0.2, 4.0), (0.9, 4.0)]:
        told = forecast(pace, step_cost=1.0, score_cost=score, sample_cost=sample)
        costs = {"step_costs": [1.0], "score_costs": [score], "sample_costs": [sample]}
        done, clock = run(pace, **costs, drifts=[0.0, 1.0])
        assert len(kinds(done, "score")) == pytest.approx(told.scores, abs=2)
        assert len(kinds(done, "sample")) == pytest.approx(told.samplings, abs=2)
        assert clock.spent / clock.total == pytest.approx(told.overhead, abs=0.004)


def test_unknown_costs_do_not_stop_anything():
    pace = Pace(steps=100, budget=0.5)
    assert spacing(pace, Progress(), 50, Clock(50.0)) == pace.tenth
    assert decide(pace, Progress(), 10, Clock(10.0)).score == "tenth"
    plan = forecast(pace, step_cost=1.0, score_cost=1.0, sample_cost=math.nan)
    assert plan.samplings == 0


@pytest.mark.parametrize("other", [0.012, 0.03])
def test_what_every_step_costs_goes_before_scores(other):
    """Scores have half of the budget, but not where measuring rollouts has taken it: then they come by tenths only."""
    pace = Pace(steps=500, budget=0.02)
    costs = {"step_costs": [1.0], "score_costs": [0.05], "sample_costs": [2.0]}
    done, clock = run(pace, **costs, drifts=[0.0, 1.0], other=other)
    forced = len([row for row in done if row[2] == "tenth"]) * 0.05
    assert clock.spent <= max(0.02 * clock.total, other * 500 + forced) + 1e-6


def test_where_nothing_can_be_scored_only_the_gap_asks():
    pace, clock = Pace(steps=100, budget=0.5, gap=30), Clock(50.0, 1.0)
    lost = Progress(scored=10, sampled=10, drift=1.0, at_sampling=1.0, score_cost=1e-6, sample_cost=1.0)
    assert decide(pace, lost, 25, clock).score == "tenth"
    assert decide(pace, lost, 25, clock, blind=True).score == ""
    assert decide(pace, lost, 40, clock, blind=True).sample == "gap"
    assert decide(Pace(steps=100, score_every=5), lost, 25, clock, blind=True).score == ""
