import math
import re
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.alarms import Alarms, Rule
from divmon.alarms.lifecycle import Cell, advance
from divmon.alarms.sentences import brief
from divmon.errors import ConfigError, SignatureMismatch
from divmon.plain import event_from_json, measurement_from_json, to_json
from divmon.records import Measurement

RULES = (
    Rule("fall", metric="a", rule="drop", by="30%"),
    Rule("hard-fall", metric="a", rule="drop", by="50%", severity="critical", evidence="screen", clear_for=2),
    Rule("low", metric="a", domain="all", rule="below", level=1.0, for_=3, clear_for=1, severity="info"),
    Rule("band", metric="b", rule="outside", by=0.5, for_=1),
    Rule("high", metric="b", domain="x", rule="above", level=1.0, severity="critical", for_=2),
)
GONE = Rule("gone", metric="a", rule="absent")
SERIES = tuple((domain, metric) for domain in ("x", "y", "all") for metric in ("a", "b"))

numbers = st.sampled_from([math.nan, 0.0, 0.4, 0.6, 1.0, 1.2, 2.0]) | st.floats(-3, 3)
evaluations = st.lists(st.tuples(*[numbers] * len(SERIES)), max_size=25)


def rows(step, values, signature="s"):
    return [Measurement(step, d, m, v, signature=signature) for (d, m), v in zip(SERIES, values, strict=True)]


def plain(events):
    return [to_json(event) for event in events]


def run(alarms, evaluations, start=0):
    return [plain(alarms.observe(step, rows(step, values))) for step, values in enumerate(evaluations, start)]


def one(rule, *values):
    """Events of one series in domain x."""
    alarms = Alarms([rule])
    return alarms, [e for i, v in enumerate(values) for e in alarms.observe(i, [Measurement(i, "x", rule.metric, v)])]


@given(evaluations, evaluations)
@settings(deadline=None)
def test_replay_of_a_prefix_and_then_the_rest_is_the_whole(prefix, suffix):
    whole = Alarms((*RULES, GONE))
    events = run(whole, prefix + suffix)
    resumed = Alarms((*RULES, GONE))
    run(resumed, prefix)
    assert run(resumed, suffix, len(prefix)) == events[len(prefix) :]
    assert resumed.states == whole.states
    assert repr(resumed.cells) == repr(whole.cells)


@given(evaluations)
@settings(deadline=None)
def test_what_was_recorded_replays_bit_for_bit(evaluations):
    live, replayed = Alarms((*RULES, GONE)), Alarms((*RULES, GONE))
    for step, values in enumerate(evaluations):
        recorded = [measurement_from_json(to_json(m)) for m in rows(step, values)]
        events = plain(live.observe(step, rows(step, values)))
        assert plain(replayed.observe(step, recorded)) == events
        assert plain(event_from_json(event) for event in events) == events


@given(evaluations, st.lists(st.integers(0, 25), max_size=8))
@settings(deadline=None)
def test_missing_evaluations_change_nothing(evaluations, gaps):
    """Neither states nor events, whether the values are NaN or the measurements are not there at all."""
    full, gappy = Alarms(RULES), Alarms(RULES)
    gappy.observe(-1, rows(-1, [math.nan] * len(SERIES)))
    for i, values in enumerate(evaluations):
        step = 10 * i
        assert plain(gappy.observe(step, rows(step, values))) == plain(full.observe(step, rows(step, values)))
        for gap in range(gaps.count(i)):
            missing = rows(step + 1 + gap, [math.nan] * len(SERIES)) if gap % 2 else []
            before = {key: replace(cell, step=0, reason=None) for key, cell in gappy.cells.items()}
            assert gappy.observe(step + 1 + gap, missing) == []
            after = {key: replace(cell, step=0, reason=None) for key, cell in gappy.cells.items()}
            assert repr(before) == repr(after)
        assert gappy.states == full.states


@given(evaluations)
@settings(deadline=None)
def test_states_and_events_agree(evaluations):
    alarms, told = Alarms((*RULES, GONE)), {}
    for step, values in enumerate(evaluations):
        for event in alarms.observe(step, rows(step, values)):
            key = f"{event.alarm}/{event.domain}"
            state = "inactive" if event.state == "resolved" else event.state
            assert alarms.states[key] == state
            assert told.get(key) != event.state
            assert bool(event.actions) == (event.state == "firing")
            assert event.message.endswith(".")
            told[key] = event.state
        for rule in RULES:
            for domain in ("x", "y"):
                key = f"{rule.name}/{domain}"
                if rule.severity == "critical" and alarms.states.get(key) == "firing":
                    assert told[key] == "firing"


def test_a_life():
    rule = Rule("fall", metric="a", rule="drop", by="30%", then=("warn", "save"))
    alarms, events = one(rule, 3.15, 1.0, 3.0, 1.9, 1.79, 3.0, 3.0, 3.0)
    assert [(e.step, e.state) for e in events] == [
        (1, "pending"),
        (2, "inactive"),
        (3, "pending"),
        (4, "firing"),
        (7, "resolved"),
    ]
    firing = events[3]
    assert firing.message == ("a in x fell 43 % (3.15 -> 1.79; allowed: 30 %), 2 evaluations in a row (unconfirmed).")
    assert (firing.value, firing.baseline, firing.actions, firing.evidence) == (1.79, 3.15, ("warn", "save"), "screen")
    assert events[0].message.endswith("; allowed: 30 %), 1 evaluation (unconfirmed); it fires after 2.")
    assert events[4].message == "a in x is back within its limit (now 3; baseline: 3.15), 3 evaluations in a row."
    assert alarms.cells["fall/x"].since == 7


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (
            {"rule": "drop", "by": 0.1},
            [0.8, 0.68],
            "a in x fell by 0.12 (0.8 -> 0.68; allowed: 0.1) (unconfirmed).",
        ),
        (
            {"rule": "drop", "by": "30%"},
            [math.nan, 1.0, 0.697],
            "fell 30.3 % (1 -> 0.697; allowed: 30 %) since the baseline at step 1 (unconfirmed).",
        ),
        (
            {"rule": "outside", "by": "50%"},
            [2, 4],
            "rose 100 % (2 -> 4; allowed: ±50 %) (unconfirmed).",
        ),
        ({"rule": "outside", "low": 1, "high": 2}, [2.5], "a in x is 2.5, outside the band 1 to 2 (unconfirmed)."),
        ({"rule": "above", "level": 2}, [2.5], "a in x is 2.5, above the limit of 2 (unconfirmed)."),
        ({"rule": "absent"}, [math.nan], "a in x has had no value for 1 evaluation."),
    ],
)
def test_messages(settings, values, message):
    _, events = one(Rule("r", metric="a", for_=1, **settings), *values)
    assert message in events[-1].message


def test_what_ends_names_the_step_of_a_baseline_that_is_not_the_first():
    _, events = one(Rule("r", metric="a", rule="drop", by=1, for_=1, clear_for=1), math.nan, 3, 1, 3)
    assert [e.message for e in events] == [
        "a in x fell by 2 (3 -> 1; allowed: 1) since the baseline at step 1 (unconfirmed).",
        "a in x is back within its limit (now 3; baseline: 3 at step 1), 1 evaluation.",
    ]


@given(evaluations)
@settings(deadline=None, max_examples=30)
def test_the_brief_form_only_leaves_out(evaluations):
    alarms = Alarms((*RULES, GONE))
    for step, values in enumerate(evaluations):
        for event in alarms.observe(step, rows(step, values)):
            short, shortest = brief(event.message), brief(event.message, held=False)
            assert "unconfirmed" not in short
            assert not re.search(r", \d+ evaluations? in a row", shortest)
            words = iter(event.message.split(" "))
            assert all(word.rstrip(",.;") in (w.rstrip(",.;") for w in words) for word in shortest.split(" "))


def test_why_it_is_unknown():
    alarms = Alarms([RULES[0], RULES[2]])
    assert {key: cell.reason for key, cell in alarms.cells.items()} == {"low/all": "not evaluated yet"}
    alarms.observe(0, [Measurement(0, "x", "a", math.nan, reason="no quality"), Measurement(0, "y", "b", 1.0)])
    assert {key: cell.reason for key, cell in alarms.cells.items()} == {
        "fall/x": "no quality",
        "fall/y": "no a was measured",
        "low/all": "no a was measured",
    }
    assert set(alarms.states.values()) == {"unknown"}


def test_a_rule_without_a_domain_has_no_cell_over_all_domains():
    alarms = Alarms(
        [Rule("fall", metric="a", rule="drop", by="30%"), Rule("over", metric="a", rule="absent", domain="all")]
    )
    alarms.observe(0, rows(0, [1.0] * len(SERIES)))
    assert list(alarms.states) == ["fall/x", "fall/y", "over/all"]


def test_events_come_in_the_order_of_the_rules_and_then_of_the_domains():
    low, high = (
        Rule("z", metric="a", rule="below", level=1, for_=1),
        Rule("b", metric="b", rule="below", level=1, for_=1),
    )
    events = Alarms([low, high]).observe(0, rows(0, [0.0] * len(SERIES)))
    assert [(e.alarm, e.domain) for e in events] == [("z", "x"), ("z", "y"), ("b", "x"), ("b", "y")]


def test_absent_counts_what_is_not_measured_at_all():
    alarms = Alarms([Rule("gone", metric="a", domain="x", rule="absent", for_=2)])
    assert [e.state for e in alarms.observe(0, [])] == ["pending"]
    (event,) = alarms.observe(1, [])
    assert event.message == "a in x has had no value for 2 evaluations in a row (no a was measured)."


WARNING = Rule("fall", metric="a", rule="drop", by="20%", for_=2, clear_for=1)
CRITICAL = Rule("crash", metric="a", rule="drop", by="50%", severity="critical", evidence="screen", clear_for=1)


def inhibition(*values):
    alarms, found = Alarms([WARNING, CRITICAL]), []
    for step, value in enumerate(values):
        events = alarms.observe(step, [Measurement(step, "x", "a", value), Measurement(step, "y", "a", 1.0)])
        found.append(" ".join(f"{e.alarm}:{e.state}" for e in events))
    return alarms, found


def test_a_firing_critical_inhibits_the_warning_on_its_series():
    alarms, found = inhibition(1.0, 0.4, 0.4)
    assert found == ["", "crash:firing", ""]
    assert alarms.states["fall/x"] == "firing"


def test_what_was_held_back_is_told_when_the_critical_resolves():
    alarms, found = inhibition(1.0, 0.4, 0.4, 0.7)
    assert found[3] == "fall:firing crash:resolved"
    alarms, _ = inhibition(1.0, 0.4, 0.4)
    late = alarms.observe(9, [Measurement(9, "x", "a", 0.7), Measurement(9, "y", "a", 1.0)])[0]
    assert late.step == 9
    assert late.actions == ("warn",)
    assert late.message.endswith("This was held back from step 2 by a critical alarm.")


def test_what_was_not_told_ends_untold():
    assert inhibition(1.0, 0.4, 0.4, 1.0)[1] == ["", "crash:firing", "", "crash:resolved"]


def test_what_was_told_before_is_resolved_aloud():
    assert inhibition(1.0, 0.7, 0.7, 0.4, 1.0)[1] == [
        "",
        "fall:pending",
        "fall:firing",
        "crash:firing",
        "fall:resolved crash:resolved",
    ]


def test_another_series_is_not_inhibited():
    alarms = Alarms([WARNING, CRITICAL])
    alarms.observe(0, rows(0, [1.0] * len(SERIES)))
    events = alarms.observe(1, rows(1, [0.4, 1, 0.7, 1, 1, 1]))
    assert [(e.alarm, e.domain) for e in events] == [("fall", "y"), ("crash", "x")]


def test_series_of_two_signatures_are_never_mixed():
    alarms = Alarms(RULES)
    alarms.observe(0, rows(0, [1.0] * len(SERIES)))
    before = repr(alarms.cells)
    with pytest.raises(SignatureMismatch, match=r"'s'.*at step 1 as 't'"):
        alarms.observe(1, rows(1, [0.1] * len(SERIES), signature="t"))
    assert repr(alarms.cells) == before
    assert alarms.observe(2, rows(2, [math.nan] * len(SERIES), signature="t")) == []


def test_one_evaluation_at_a_time():
    alarms = Alarms(RULES)
    with pytest.raises(ValueError, match="measured twice at step 0"):
        alarms.observe(0, [Measurement(0, "x", "a", 1.0)] * 2)
    with pytest.raises(ValueError, match="this is the evaluation of step 1"):
        alarms.observe(1, [Measurement(0, "x", "a", 1.0)])


def test_alarms_that_cannot_live_together():
    def act(event, context):
        return None

    other = lambda event, context: None  # noqa: E731
    other.__name__ = "act"
    first = Rule("one", metric="a", rule="absent", then=(act,))
    with pytest.raises(ConfigError, match="Two functions in `then` are called 'act'"):
        Alarms([first, Rule("two", metric="a", rule="absent", then=(other,))])
    with pytest.raises(ConfigError, match="Two alarms are called 'one'"):
        Alarms([first, first])
    with pytest.raises(ConfigError, match="Not a Rule"):
        Alarms([first.to_mapping()])
    assert Alarms([first]).functions == {"act": act}


def test_advance_is_pure():
    cell = Cell()
    before = asdict(cell)
    moved, event = advance(RULES[0], cell, Measurement(0, "x", "a", 1.0))
    assert repr(asdict(cell)) == repr(before)
    assert event is None
    assert (moved.state, moved.baseline, moved.baseline_step, moved.since) == ("inactive", 1.0, 0, 0)
