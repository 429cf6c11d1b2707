"""What was done about alarms: levers applied and released, and the policy taken back, as the run recorded it."""

from __future__ import annotations

from dataclasses import dataclass

from divmon.history import History
from divmon.records import ROLLBACK, LeverEvent
from divmon.report.text import number

LISTED = 100


@dataclass(frozen=True)
class Deed:
    """One row of the table.

    Attributes:
        step: When.
        what: The lever, or "rollback".
        phase: What happened to it.
        strength: What it acts with from then on, in words.
        alarm: What it answers to.
        reason: Why.
    """

    step: int
    what: str
    phase: str
    strength: str
    alarm: str
    reason: str


def deeds(history: History) -> list[Deed]:
    """Every change of a lever, and everything about the rollback, oldest first; at most the first hundred."""
    return [
        Deed(c.step, c.lever, c.phase, _strength(c), c.alarm or "–", c.reason or "–")
        for c in history.mitigations[:LISTED]
    ]


def acted(history: History) -> tuple[int, ...]:
    """Steps at which something began to act on the run."""
    return tuple(sorted({change.step for change in history.mitigations if change.phase == "applied"}))


def _strength(change: LeverEvent) -> str:
    if change.lever == ROLLBACK:
        return "learning rate unchanged" if change.strength == 1 else f"learning rate × {number(change.strength)}"
    return f"{change.strength:.0%} of full strength".replace("%", " %") if change.strength else "does not act"
