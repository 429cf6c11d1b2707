"""What an alarm asks for: an event goes in, actions come out. Nothing here touches a trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from divmon.errors import DivmonError, unknown
from divmon.records import ACTIONS, LEVERS, ROLLBACK, Action, AlarmEvent

Mitigation = Callable[[AlarmEvent, Mapping[str, Any]], Action | None]


def warn(event: AlarmEvent, context: Mapping[str, Any]) -> Action:
    """Tell people."""
    return Action("warn", event.alarm, event.message)


def save(event: AlarmEvent, context: Mapping[str, Any]) -> Action:
    """Save a checkpoint now."""
    return Action("save", event.alarm, event.message)


def stop(event: AlarmEvent, context: Mapping[str, Any]) -> Action:
    """Stop training on all ranks."""
    return Action("stop", event.alarm, event.message)


def rollback(event: AlarmEvent, context: Mapping[str, Any]) -> Action:
    """Go back to the newest healthy checkpoint."""
    return Action(ROLLBACK, event.alarm, event.message)


def _pull(name: str) -> Mitigation:
    def pull(event: AlarmEvent, context: Mapping[str, Any]) -> Action:
        return Action(name, event.alarm, event.message)

    pull.__doc__ = f"Apply the lever {name} until the alarm resolves."
    return pull


BUILT_IN: Mapping[str, Mitigation] = {
    "warn": warn,
    "save": save,
    "stop": stop,
    ROLLBACK: rollback,
    **{name: _pull(name) for name in LEVERS},
}


def mitigation(name: str, functions: Mapping[str, Mitigation] | None = None) -> Mitigation:
    """The mitigation called `name`: a built-in one, or one of the user's `functions`.

    Raises:
        ConfigError: There is none.

    >>> mitigation("stopp")
    Traceback (most recent call last):
        ...
    divmon.errors.ConfigError: Unknown action 'stopp'. Did you mean 'stop'?
    """
    known = {**(functions or {}), **BUILT_IN}
    if name not in known:
        raise unknown("action", name, known)
    return known[name]


def decide(
    events: Iterable[AlarmEvent],
    *,
    functions: Mapping[str, Mitigation] | None = None,
    context: Mapping[str, Any] | None = None,
    on_error: Callable[[str, Exception], None] | None = None,
) -> tuple[Action, ...]:
    """The actions that firing alarms ask for, one of each kind, in the order of the events and of their `then`.

    Levers act until their alarms resolve, and a rollback may wait for its time: of those there is one for each alarm.
    When both are asked for, the checkpoint is saved before training stops, whichever was written first.

    Args:
        events: Of one evaluation, in the order of the rules. Only those that say "firing" count.
        functions: The user's functions in `then`, by name (`Alarms.functions`).
        context: Handed to every mitigation.
        on_error: Told the name and the error of a mitigation that fails, and the others go on. Without it, the error
            is raised.

    Raises:
        ConfigError: An event names an action that does not exist.

    >>> asked = {"domain": "poems", "metric": "vendi", "severity": "critical", "value": 1.0}
    >>> event = AlarmEvent(step=9, alarm="narrow", state="firing", actions=("stop", "save"), **asked)
    >>> [action.kind for action in decide([event])]
    ['save', 'stop']
    """
    actions: dict[tuple[str, str], Action] = {}
    for event in events:
        if event.state != "firing":
            continue
        for name in event.actions:
            run = mitigation(name, functions)
            try:
                action = _checked(name, run(event, context or {}))
            except Exception as error:
                if on_error is None:
                    raise
                on_error(name, error)
                continue
            if action is not None:
                lasting = action.kind in (ROLLBACK, *LEVERS)
                actions.setdefault((action.kind, event.alarm if lasting else ""), action)
    if ("save", "") in actions and ("stop", "") in actions:
        actions["stop", ""] = actions.pop(("stop", ""))
    return tuple(actions.values())


def _checked(name: str, action: Any) -> Action | None:
    if action is None or (isinstance(action, Action) and action.kind in ACTIONS):
        return action
    raise DivmonError(f"{name} returned {action!r}; a mitigation returns None or an Action of {', '.join(ACTIONS)}.")
