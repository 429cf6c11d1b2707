"""Levers: mitigations that act for a while. Their settings, and where each stands as a pure state machine.

::

    armed --alarm fires--> applied --alarm resolves--> cooling (still acts) --`cooling` steps--> armed
                              |                            |
                              +--overshoot--> cooling (does not act) --`cooling` steps--> armed,
                                              or applied again at half the strength while the alarm still fires

Both sides release: a series that is back in band, and a run that overshoots (entropy or length exploding). Nothing here
touches a trainer; evaluations go in, changes come out, and every rank that feeds in the same gets the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from divmon.mitigations.settings import LeverSettings
from divmon.records import Action, LeverEvent

LEVELS = {"armed": 0.0, "applied": 1.0, "cooling": 2.0, "refused": 0.0}
OVERSHOOTS = ("token_entropy", "length")  # what explodes when a lever pushes too hard
WEAKEST = 0.25  # a lever that was halved below this is not tried again while its alarm goes on


@dataclass(frozen=True, slots=True)
class Lever:
    """Where one lever stands.

    Attributes:
        name: One of `divmon.records.LEVERS`.
        phase: "armed", "applied", "cooling", or "refused" (it was seen to have no effect; it stays off).
        acting: Whether it acts: while applied, and while cooling after its alarm has resolved.
        strength: What it acts with: 1, halved each time it overshoots.
        since: The step at which the phase was entered; -1 before that.
        alarms: Those it answers to.
    """

    name: str
    phase: str = "armed"
    acting: bool = False
    strength: float = 1.0
    since: int = -1
    alarms: tuple[str, ...] = ()

    def event(self, reason: str) -> LeverEvent:
        """This state as something that has just happened."""
        acts = self.strength if self.acting else 0.0
        return LeverEvent(self.since, self.name, self.phase, acts, ", ".join(self.alarms), reason)


def advance(
    lever: Lever, step: int, *, asked: Mapping[str, str], firing: Iterable[str], overshoot: str | None, cooling: int
) -> tuple[Lever, LeverEvent | None]:
    """The lever after one evaluation, and what changed.

    Args:
        lever: Before it.
        step: Of the evaluation.
        asked: Alarms that ask for the lever now, each with its message.
        firing: Every alarm that fires in some domain.
        overshoot: What explodes, in words; None when nothing does.
        cooling: Steps a cooling lever waits.

    >>> state = {"firing": ["narrow"], "overshoot": None, "cooling": 50}
    >>> lever, event = advance(Lever("gate"), 20, asked={"narrow": "vendi fell."}, **state)
    >>> event.phase, event.strength, event.reason
    ('applied', 1.0, 'vendi fell.')
    >>> lever, event = advance(lever, 30, asked={}, **{**state, "firing": []})
    >>> event.phase, lever.acting
    ('cooling', True)
    >>> advance(lever, 80, asked={}, **{**state, "firing": []})[1].phase
    'armed'
    """
    now = set(firing)
    alarms = tuple(dict.fromkeys((*lever.alarms, *asked)))
    lever = replace(lever, alarms=alarms)
    wanted = bool(asked) or any(alarm in now for alarm in alarms)
    if lever.phase == "refused":
        return lever, None
    if lever.acting and overshoot is not None:
        return _back_off(lever, step, overshoot)
    if lever.phase == "armed":
        why = next(iter(asked.values()), "")
        return _moved(lever, step, "applied", True, why) if asked else (replace(lever, alarms=()), None)
    if lever.phase == "applied":
        why = "Its alarm has resolved; it acts on while it cools."
        return (lever, None) if wanted else _moved(lever, step, "cooling", True, why)
    return _cooling(lever, step, wanted=wanted, over=step - lever.since >= cooling, overshoot=overshoot)


def _cooling(
    lever: Lever, step: int, *, wanted: bool, over: bool, overshoot: str | None
) -> tuple[Lever, LeverEvent | None]:
    if lever.acting:
        if wanted:
            return _moved(lever, step, "applied", True, "Its alarm fires again.")
        return _released(lever, step, "Released: its alarm has not come back.") if over else (lever, None)
    if not over or overshoot is not None:
        return lever, None
    if not wanted:
        return _released(lever, step, "Released: its alarm has resolved.")
    if lever.strength < WEAKEST:
        return _released(lever, step, "Given up: it overshoots even at a quarter of its strength.")
    return _moved(lever, step, "applied", True, f"Its alarm still fires; at {lever.strength:.0%} of its strength.")


def _back_off(lever: Lever, step: int, overshoot: str) -> tuple[Lever, LeverEvent]:
    return _moved(
        replace(lever, strength=lever.strength / 2), step, "cooling", False, f"Backed off, because {overshoot}."
    )


def _moved(lever: Lever, step: int, phase: str, acting: bool, reason: str) -> tuple[Lever, LeverEvent]:
    lever = replace(lever, phase=phase, acting=acting, since=step)
    return lever, lever.event(reason)


def _released(lever: Lever, step: int, reason: str) -> tuple[Lever, LeverEvent]:
    lever, event = _moved(replace(lever, strength=1.0), step, "armed", False, reason)
    return replace(lever, alarms=()), event


class LeverBook:
    """Every lever that some rule names, moved on by one evaluation at a time.

    Args:
        settings: By lever; see `divmon.mitigations.settings.lever_settings`.

    >>> book = LeverBook({"gate": LeverSettings()})
    >>> events = book.advance(4, actions=[Action("gate", "narrow", "vendi fell.")], states={"narrow/all": "firing"})
    >>> book.levels, book.strengths
    ({'gate': 1.0}, {'gate': 1.0})
    """

    def __init__(self, settings: Mapping[str, LeverSettings]) -> None:
        self.settings = dict(settings)
        self.levers = {name: Lever(name) for name in self.settings}
        self.start: dict[str, float] = {}  # series whose explosion backs levers off, at their first value

    @property
    def levels(self) -> dict[str, float]:
        """0 armed (or refused), 1 applied, 2 cooling."""
        return {name: LEVELS[lever.phase] for name, lever in self.levers.items()}

    @property
    def strengths(self) -> dict[str, float]:
        """What each lever acts with; 0 where it does not."""
        return {name: lever.strength if lever.acting else 0.0 for name, lever in self.levers.items()}

    def advance(
        self,
        step: int,
        *,
        actions: Iterable[Action] = (),
        states: Mapping[str, str],
        values: Mapping[str, float] | None = None,
    ) -> tuple[LeverEvent, ...]:
        """Move every lever on by one evaluation; what changed.

        Args:
            step: Of the evaluation.
            actions: What its alarms ask for.
            states: Of every alarm cell, keyed ``name/domain``. Without any, nothing was evaluated and nothing changes.
            values: ``domain/metric`` to value. A missing one is not an explosion.
        """
        if not states:
            return ()
        found = {k: v for k, v in (values or {}).items() if k.rpartition("/")[2] in OVERSHOOTS and math.isfinite(v)}
        for key, value in found.items():
            self.start.setdefault(key, value)
        asked: dict[str, dict[str, str]] = {}
        for action in actions:
            asked.setdefault(action.kind, {})[action.alarm] = action.reason
        firing = [cell.partition("/")[0] for cell, state in states.items() if state == "firing"]
        changes = []
        for name, lever in self.levers.items():
            settings = self.settings[name]
            self.levers[name], event = advance(
                lever,
                step,
                asked=asked.get(name, {}),
                firing=firing,
                overshoot=self._overshoot(found, settings.overshoot),
                cooling=settings.cooling,
            )
            changes += [event] if event is not None else []
        return tuple(changes)

    def refuse(self, name: str, step: int, reason: str) -> LeverEvent:
        """Take a lever off for good: it was seen to have no effect."""
        lever = replace(self.levers[name], phase="refused", acting=False, since=step)
        self.levers[name] = lever
        return lever.event(reason)

    def _overshoot(self, values: Mapping[str, float], factor: float) -> str | None:
        for key, value in values.items():
            domain, _, metric = key.rpartition("/")
            if value > factor * self.start[key] > 0:
                return f"{metric} in {domain} has grown from {self.start[key]:.3g} to {value:.3g}"
        return None

    def to_json(self) -> dict[str, Any]:
        """Everything that must survive a resume, in plain JSON types."""
        levers = {name: {**asdict(lever), "alarms": list(lever.alarms)} for name, lever in self.levers.items()}
        return {"levers": levers, "start": dict(self.start)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave. Levers that no rule names any more are forgotten."""
        for name, row in saved.get("levers", {}).items():
            if name in self.levers:
                known = {key: value for key, value in row.items() if key in Lever.__dataclass_fields__}
                self.levers[name] = Lever(**{**known, "alarms": tuple(known.get("alarms", ()))})
        self.start = {str(key): float(value) for key, value in saved.get("start", {}).items()}
