import pytest

from divmon.alarms import Alarms, Rule
from divmon.errors import ConfigError, DivmonError
from divmon.mitigations import BUILT_IN, decide, mitigation
from divmon.records import ACTIONS, Action, AlarmEvent, Measurement


def event(*actions, state="firing", alarm="narrow"):
    return AlarmEvent(4, alarm, "poems", "vendi", state, "critical", 1.0, actions=actions, message=f"{alarm} fell.")


def kinds(*events, **settings):
    return [action.kind for action in decide(events, **settings)]


def test_the_built_in_ones_are_what_rules_may_name():
    assert tuple(BUILT_IN) == ACTIONS
    for name, run in BUILT_IN.items():
        assert run(event(), {}) == Action(name, "narrow", "narrow fell.")


def test_in_the_order_written_and_once_each():
    assert kinds(event("save", "warn"), event("warn", "stop", alarm="other")) == ["save", "warn", "stop"]
    actions = decide([event("warn"), event("warn", alarm="other")])
    assert actions == (Action("warn", "narrow", "narrow fell."),)


def test_a_checkpoint_is_saved_before_training_stops():
    assert kinds(event("stop", "warn", "save")) == ["warn", "save", "stop"]
    assert kinds(event("stop"), event("save", alarm="other")) == ["save", "stop"]
    assert kinds(event("stop", "warn")) == ["stop", "warn"]


@pytest.mark.parametrize("state", ["pending", "resolved", "inactive"])
def test_only_firing_alarms_act(state):
    assert kinds(event("stop", state=state)) == []


def test_functions_get_the_event_and_the_context():
    seen = []

    def look(happened, context):
        seen.append((happened.alarm, context["history"]))

    def halt(happened, context):
        return Action("stop", happened.alarm, "because")

    rule = Rule("low", metric="vendi", rule="below", level=2, for_=1, then=(look, halt, "save"))
    alarms = Alarms([rule])
    events = alarms.observe(0, [Measurement(0, "poems", "vendi", 1.0)])
    actions = decide(events, functions=alarms.functions, context={"history": "h"})
    assert seen == [("low", "h")]
    assert [action.kind for action in actions] == ["save", "stop"]
    assert actions[1].reason == "because"


def test_a_function_that_fails_does_not_take_the_others_with_it():
    def broken(happened, context):
        raise RuntimeError("no")

    def wrong(happened, context):
        return "stop"

    functions = {"broken": broken, "wrong": wrong}
    failed = []
    happened = event("broken", "wrong", "stop")
    assert kinds(happened, functions=functions, on_error=lambda name, error: failed.append((name, type(error)))) == [
        "stop"
    ]
    assert failed == [("broken", RuntimeError), ("wrong", DivmonError)]
    with pytest.raises(RuntimeError):
        decide([happened], functions=functions)
    with pytest.raises(DivmonError, match="wrong returned 'stop'"):
        decide([event("wrong")], functions=functions)


def test_unknown_actions():
    with pytest.raises(ConfigError, match=r"Unknown action 'sav'\. Did you mean 'save'"):
        decide([event("sav")])
    with pytest.raises(ConfigError, match="Did you mean 'stop'"):
        mitigation("stopp")
    assert mitigation("save") is BUILT_IN["save"]
