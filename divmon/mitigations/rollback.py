"""Going back: which policies are healthy, and when a run returns to one.

::

    evaluation --no alarm pending or firing, quality kept--> healthy: kept on disk, the newest `keep` of them
        |
        +-- an alarm asks --> back to the newest healthy one, learning rate x `factor`; at most `most` times,
                              and not again before `cooling` steps

A policy is healthy when

- no alarm is pending or firing in any domain,
- of the change from the baseline that a rule which asks for the rollback allows, at most the share `margin` is used
  (the policy just before an alarm is half collapsed, and nothing to go back to), and
- where something judges completions, pass@1 (mean quality where there is no pass@1) is in every domain at most
  `tolerance` below its first value.

A missing value where there was one is not health.

The steps go on: training does not repeat the data it has seen. Nothing here touches a trainer, and every rank that
feeds in the same gets the same.

No study isolates automatic rollback; it is engineering, not a result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from divmon.alarms.checks import Amount
from divmon.alarms.rules import Rule, breached
from divmon.mitigations.settings import RollbackSettings
from divmon.records import OVERALL, ROLLBACK, Action, LeverEvent

QUALITY = ("pass_at_1", "mean_quality")  # what may not have fallen; the first that a domain has
ILL = ("pending", "firing")


@dataclass
class RollbackBook:
    """Where the rollback of a run stands.

    Attributes:
        settings: How often, how much, and what counts as healthy.
        rules: Those that ask for the rollback.
        healthy: Steps of the healthy checkpoints on disk, oldest first.
        count: How often the run went back.
        last: The step at which it last did; -1 before.
        asking: Alarms that ask and were not answered, each with its message.
        restored: The step it went back to, until an evaluation has recorded that.
        start: First values of the series that health looks at.

    >>> book = RollbackBook(RollbackSettings(cooling=5))
    >>> book.illness({"narrow/poems": "inactive"}, {}), book.illness({"narrow/poems": "pending"}, {})
    (None, 'narrow/poems is pending')
    >>> book.kept(10)
    []
    >>> book.ask(20, actions=[Action("rollback", "narrow", "vendi fell.")], states={"narrow/poems": "firing"})
    ('go', None)
    >>> book.went(20, to=10).reason
    'Went back to the healthy checkpoint of step 10; learning rate x 0.5 (rollback 1 of at most 2): vendi fell.'
    """

    settings: RollbackSettings
    rules: tuple[Rule, ...] = ()
    healthy: list[int] = field(default_factory=list)
    count: int = 0
    last: int = -1
    asking: dict[str, str] = field(default_factory=dict)
    restored: int | None = None
    start: dict[str, float] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """What the learning rate is multiplied by now."""
        return self.settings.factor**self.count

    def level(self, step: int) -> float:
        """For the curve of the rollback: 2 in the `cooling` steps after one, else 0."""
        return 2.0 if self.last >= 0 and step - self.last < self.settings.cooling else 0.0

    def illness(self, states: Mapping[str, str], values: Mapping[str, float]) -> str | None:
        """Why the policy is not healthy, in words; None when it is.

        Args:
            states: Of every alarm cell, keyed ``name/domain``.
            values: ``domain/metric`` to value.
        """
        watched = self._watched(values)
        for key in (*watched, *_qualities(values)):
            if math.isfinite(value := values.get(key, math.nan)):
                self.start.setdefault(key, value)
        for cell, state in states.items():
            if state in ILL:
                return f"{cell} is {state}"
        for key, first in self.start.items():
            domain, _, metric = key.rpartition("/")
            value = values.get(key, math.nan)
            if math.isnan(value):
                return f"{metric} in {domain} was not measured"
            if any(breached(rule, value, first) for rule in watched.get(key, ())):
                return f"{metric} in {domain} went from {first:.3g} to {value:.3g}, near its limit"
            if metric in QUALITY and key not in watched and value < first - self.settings.tolerance:
                return f"{metric} in {domain} fell from {first:.3g} to {value:.3g}"
        return None

    def _watched(self, values: Mapping[str, float]) -> dict[str, list[Rule]]:
        """Series that the rules compare with the baseline, with rules that allow only `margin` of the change."""
        found: dict[str, list[Rule]] = {}
        for rule in self.rules:
            if rule.allowed is not None:
                by = Amount(rule.allowed.amount * self.settings.margin, rule.allowed.relative)
                narrow = replace(rule, by=by, tolerate=None, evidence="screen")
                for domain in rule.cells([d for d in _domains(values) if d != OVERALL]):
                    found.setdefault(f"{domain}/{rule.metric}", []).append(narrow)
        return found

    def kept(self, step: int) -> list[int]:
        """A healthy checkpoint of `step` is on disk; the steps whose checkpoints can go."""
        self.healthy = sorted({*self.healthy, step})
        gone, self.healthy = self.healthy[: -self.settings.keep], self.healthy[-self.settings.keep :]
        return gone

    def ask(self, step: int, *, actions: Iterable[Action], states: Mapping[str, str]) -> tuple[str, LeverEvent | None]:
        """What to do at this evaluation ("go", "stop", or "" for nothing), and what there is to tell.

        An alarm that asks too soon after a rollback is heard once the time has passed, if it still fires.
        """
        firing = {cell.partition("/")[0] for cell, state in states.items() if state == "firing"}
        new = {action.alarm: action.reason for action in actions if action.kind == ROLLBACK}
        self.asking = {**{name: why for name, why in self.asking.items() if name in firing}, **new}
        if not self.asking:
            return "", None
        s = self.settings
        if self.count >= s.most:
            why = f"It has gone back {self.count} times, which is the most" + ("; training stops." if s.stops else ".")
            return "stop" if s.stops else "", self._answered(step, why)
        if not self.healthy:
            return "", self._answered(step, "There is no healthy checkpoint to go back to.")
        if self.last >= 0 and step - self.last < s.cooling:
            why = (
                f"Asked for {step - self.last} steps after the last rollback; not before step {self.last + s.cooling}."
            )
            return "", self.event(step, "cooling", why) if new else None
        return "go", None

    def went(self, step: int, *, to: int) -> LeverEvent:
        """The run went back to its checkpoint of step `to`."""
        why = next(iter(self.asking.values()), "")
        self.count, self.last, self.restored = self.count + 1, step, to
        of = f"rollback {self.count} of at most {self.settings.most}"
        rate = "training stops on it" if self.settings.finish else f"learning rate x {self.scale:g}"
        return self._answered(
            step, f"Went back to the healthy checkpoint of step {to}; {rate} ({of}): {why}", "applied"
        )

    def refused(self, step: int, why: str) -> LeverEvent:
        """Nothing was done, because of `why`."""
        return self._answered(step, why)

    def event(self, step: int, phase: str, reason: str) -> LeverEvent:
        """Something that has happened."""
        return LeverEvent(step, ROLLBACK, phase, self.scale, ", ".join(self.asking), reason)

    def _answered(self, step: int, reason: str, phase: str = "refused") -> LeverEvent:
        event = self.event(step, phase, reason)
        self.asking = {}
        return event

    def to_json(self) -> dict[str, Any]:
        """Everything that must survive a resume, in plain JSON types."""
        names = ("healthy", "count", "last", "asking", "restored", "start")
        return {name: value.copy() if hasattr(value := getattr(self, name), "copy") else value for name in names}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave."""
        self.healthy = sorted(int(step) for step in saved.get("healthy", ()))
        self.count, self.last = int(saved.get("count", 0)), int(saved.get("last", -1))
        self.asking = {str(name): str(why) for name, why in saved.get("asking", {}).items()}
        self.restored = None if saved.get("restored") is None else int(saved["restored"])
        self.start = {str(key): float(value) for key, value in saved.get("start", {}).items()}


def _domains(values: Mapping[str, float]) -> list[str]:
    return list(dict.fromkeys(key.rpartition("/")[0] for key in values))


def _qualities(values: Mapping[str, float]) -> list[str]:
    """The series that says how good completions are, in each domain that has one."""
    pairs = ([key for name in QUALITY if (key := f"{domain}/{name}") in values] for domain in _domains(values))
    return [keys[0] for keys in pairs if keys]
