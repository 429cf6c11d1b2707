"""What the alarms of a recorded run did: each cell's story, and what could not be watched."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from divmon.alarms import Alarms, RuleSet, restore_rules
from divmon.errors import DivmonError
from divmon.history import History
from divmon.records import AlarmEvent
from divmon.report.text import number

RANK = {"critical": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class Incident:
    """One alarm in one domain that fired.

    Attributes:
        event: The event of the first time it fired.
        first_seen: The step at which the condition first held before that.
        times: How often it fired.
        resolved: The step at which it resolved for good; None while it still fires.
    """

    event: AlarmEvent
    first_seen: int
    times: int = 1
    resolved: int | None = None


def incidents(events: Iterable[AlarmEvent]) -> list[Incident]:
    """Every alarm that fired, the gravest first and then the earliest."""
    pending: dict[tuple[str, str], int] = {}
    found: dict[tuple[str, str], Incident] = {}
    for event in events:
        cell = (event.alarm, event.domain)
        if event.state == "pending":
            pending[cell] = event.step
        elif event.state == "firing" and cell in found:
            found[cell] = replace(found[cell], times=found[cell].times + 1, resolved=None)
        elif event.state == "firing":
            found[cell] = Incident(event, pending.get(cell, event.step))
        elif event.state == "resolved" and cell in found:
            found[cell] = replace(found[cell], resolved=event.step)
        elif event.state == "inactive":
            pending.pop(cell, None)
    return sorted(found.values(), key=lambda i: (RANK.get(i.event.severity, 3), i.event.step))


def pending(events: Iterable[AlarmEvent]) -> list[AlarmEvent]:
    """Alarms that were about to fire when the record ended."""
    last = {(e.alarm, e.domain): e for e in events}
    return [e for e in last.values() if e.state == "pending"]


@dataclass(frozen=True)
class Watch:
    """What the rules of a run watched.

    Attributes:
        rules: How many there were; None when the run does not say.
        blind: Alarms (``name/domain``) that could never be judged, with the reason.
    """

    rules: int | None
    blind: tuple[tuple[str, str], ...] = ()


def watch(history: History) -> Watch:
    """What was watched, from the rules kept with the run, folded again over its measurements."""
    rows = history.info.get("rules")
    if not isinstance(rows, list):
        return Watch(None)
    try:
        alarms = Alarms(RuleSet.restore(restore_rules(rows), history.info.get("alarms")))
        for evaluation in history.evaluations:
            alarms.fold(evaluation)
    except (DivmonError, TypeError, KeyError, ValueError, AttributeError):
        return Watch(len(rows))
    cells = alarms.cells.items()
    return Watch(len(rows), tuple((key, c.reason or "") for key, c in cells if c.state == "unknown"))


def change(event: AlarmEvent) -> str:
    """What the watched number did, in a few words: ``fell 46 %, from 3.66 to 1.98``."""
    if math.isnan(event.value):
        return "had no value"
    if math.isnan(event.baseline):
        return f"was {number(event.value)}, beyond its limit"
    verb = "fell" if event.value < event.baseline else "rose"
    by = f"{abs(event.value / event.baseline - 1):.0%}".replace("%", " %") if event.baseline > 0 else ""
    return f"{verb} {by}, from {number(event.baseline)} to {number(event.value)}".replace(" ,", ",")
