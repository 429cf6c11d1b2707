"""The pure half of the rollback: what is healthy, when to go back, what alarms make of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from divmon.alarms import Alarms, Rule
from divmon.config import plan
from divmon.errors import ConfigError
from divmon.history import Evaluation
from divmon.mitigations import RollbackBook, RollbackSettings
from divmon.records import Action, Measurement
from divmon.settings import Settings

WELL, ILL = {"narrow/poems": "inactive", "other/poems": "unknown"}, {"narrow/poems": "firing"}
ASKS = [Action("rollback", "narrow", "vendi fell.")]


def book(**settings: Any) -> RollbackBook:
    found = RollbackBook(RollbackSettings(**settings))
    found.kept(10)
    return found


@pytest.mark.parametrize(
    ("states", "values", "why"),
    [
        (WELL, {"poems/pass_at_1": 0.41, "poems/vendi": 0.1}, None),
        (WELL, {"poems/pass_at_1": 0.39}, "pass_at_1 in poems fell from 0.5 to 0.39"),
        (WELL, {"poems/pass_at_1": float("nan")}, "pass_at_1 in poems was not measured"),
        (WELL, {}, "pass_at_1 in poems was not measured"),
        ({**WELL, "other/poems": "pending"}, {"poems/pass_at_1": 0.9}, "other/poems is pending"),
        (ILL, {"poems/pass_at_1": 0.9}, "narrow/poems is firing"),
    ],
)
def test_healthy_is_no_alarm_and_no_lost_quality(states: Any, values: Any, why: str | None) -> None:
    found = book()
    assert found.illness(WELL, {"poems/pass_at_1": 0.5, "poems/mean_quality": 0.7}) is None
    assert found.illness(states, values) == why


def test_mean_quality_stands_in_for_pass_at_1_and_alarms_alone_where_nothing_judges() -> None:
    found = book(tolerance=0.5)
    assert found.illness(WELL, {"poems/mean_quality": -1.0, "code/pass_at_1": 0.5}) is None
    assert found.illness(WELL, {"poems/mean_quality": -1.6, "code/pass_at_1": 0.5}) is not None
    assert book().illness(WELL, {"poems/vendi": 2.0}) is None


def test_a_policy_on_the_brink_is_not_healthy() -> None:
    rules = (
        Rule("narrow", metric="vendi", rule="drop", by="40%", then=("rollback",)),
        Rule("longer", metric="length", rule="rise", by=10, domain="all", severity="critical", then=("rollback",)),
        Rule("low", metric="vendi", rule="below", level=0.1, then=("rollback",)),
    )
    start = {"poems/vendi": 5.0, "code/vendi": 2.0, "all/vendi": 3.0, "poems/length": 9.0, "all/length": 20.0}
    for changed, why in (
        ({"poems/vendi": 4.0}, None),  # a fifth of the way down is half of what is allowed
        ({"poems/vendi": 3.9}, "vendi in poems went from 5 to 3.9, near its limit"),
        ({"code/vendi": 1.5}, "vendi in code went from 2 to 1.5, near its limit"),
        ({"all/vendi": 0.2, "poems/length": 99.0}, None),  # no rule has a cell there
        ({"all/length": 26.0}, "length in all went from 20 to 26, near its limit"),
        ({"all/length": float("nan")}, "length in all was not measured"),
    ):
        found = RollbackBook(RollbackSettings(), rules)
        assert found.illness(WELL, start) is None
        assert found.illness(WELL, {**start, **changed}) == why
    late = RollbackBook(RollbackSettings(margin=1.0), rules)
    late.illness(WELL, start)
    assert late.illness(WELL, {**start, "poems/vendi": 3.0}) is None


def test_the_newest_are_kept() -> None:
    found = book(keep=2)
    assert [found.kept(step) for step in (20, 30, 40)] == [[], [10], [20]]
    assert found.healthy == [30, 40]


def test_at_most_so_often_and_the_rate_falls_each_time() -> None:
    found = book(cooling=0, most=2, factor=0.1)
    for step in (20, 30):
        assert found.ask(step, actions=ASKS, states=ILL) == ("go", None)
        found.went(step, to=10)
    assert found.scale == pytest.approx(0.01)
    what, event = found.ask(40, actions=ASKS, states=ILL)
    assert (what, event and event.phase) == ("", "refused")
    assert found.ask(50, actions=[], states=ILL) == ("", None)  # said once for each time it is asked
    stopping = book(after="stop", most=1)
    stopping.went(20, to=10)
    assert stopping.ask(90, actions=ASKS, states=ILL)[0] == "stop"


def test_what_asks_too_soon_is_heard_later_if_it_still_fires() -> None:
    for later, heard in ((ILL, "go"), (WELL, "")):
        found = book(cooling=10)
        found.went(20, to=10)
        what, event = found.ask(25, actions=ASKS, states=ILL)
        assert (what, event and event.phase) == ("", "cooling")
        assert [found.level(step) for step in (20, 29, 30)] == [2.0, 2.0, 0.0]
        assert found.ask(29, actions=[], states=ILL) == ("", None)
        assert found.ask(30, actions=[], states=later)[0] == heard


def test_nothing_healthy_is_refused_with_the_reason() -> None:
    what, event = RollbackBook(RollbackSettings()).ask(5, actions=ASKS, states=ILL)
    assert (what, event and event.reason) == ("", "There is no healthy checkpoint to go back to.")


def test_it_survives_json() -> None:
    found = book(cooling=10)
    found.illness(WELL, {"poems/pass_at_1": 0.5})
    found.went(20, to=10)
    found.ask(25, actions=ASKS, states=ILL)
    again = RollbackBook(found.settings)
    again.restore(json.loads(json.dumps(found.to_json())))
    assert again == found
    assert RollbackBook(found.settings).to_json() == RollbackBook(found.settings).to_json()


RULE = Rule("low", metric="vendi", rule="below", level=0.5, for_=2, clear_for=3)


def told(alarms: Alarms, step: int, value: float, restored: int | None = None) -> list[str]:
    measured = (Measurement(step, "x", "vendi", value),)
    return [event.state for event in alarms.fold(Evaluation(step, measured, restored=restored))]


@pytest.mark.parametrize(
    ("after", "states"),
    [
        ([1.0, 1.0], [["resolved"], []]),  # one clear evaluation is enough, where three were needed
        ([float("nan"), 1.0], [[], ["resolved"]]),  # a missing value says nothing
        ([0.0, 1.0, 1.0], [["pending"], ["resolved"], []]),
        ([0.0, 0.0, 1.0, 1.0, 1.0], [["pending"], ["firing"], [], [], ["resolved"]]),  # it asks again
    ],
)
def test_a_firing_alarm_is_judged_afresh(after: list[float], states: list[list[str]]) -> None:
    alarms = Alarms([RULE])
    assert [told(alarms, step, 0.0) for step in range(3)] == [["pending"], ["firing"], []]
    assert [told(alarms, 3 + i, value, 0 if i == 0 else None) for i, value in enumerate(after)] == states


def test_a_pending_alarm_is_judged_afresh() -> None:
    for value, states in ((1.0, ["inactive"]), (0.0, ["pending"])):
        alarms = Alarms([RULE])
        assert told(alarms, 0, 0.0) == ["pending"]
        assert told(alarms, 1, value, 0) == states
    calm = Alarms([RULE])
    assert [told(calm, 0, 1.0), told(calm, 1, 1.0, 0)] == [[], []]


def asking(then: Any) -> Settings:
    rule = {"name": "a", "metric": "length", "rule": "above", "level": 1, "then": [then]}
    return Settings.make({"alarms": [rule]})


def test_settings_are_read_and_checked() -> None:
    assert plan(asking("rollback")).rollback == RollbackSettings()
    assert plan(asking({"rollback": {"most": 1, "finish": True}})).rollback == RollbackSettings(most=1, finish=True)
    assert plan(asking("save")).rollback is None
    for given, said in (
        ({"mots": 1}, "Did you mean 'most'"),
        ({"factor": 0}, "`factor` must be above 0"),
        ({"keep": 0}, "`keep` must be 1 or more"),
        ({"after": "stopp"}, "Did you mean 'stop'"),
        ({"finish": "yes"}, "`finish` must be true or false"),
    ):
        with pytest.raises(ConfigError, match=said):
            plan(asking({"rollback": given}))
