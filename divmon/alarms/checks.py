"""What a rule may say: the settings of one rule are read, filled in and checked here, before a `Rule` exists.

Every complaint names the setting and says what to write instead.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from divmon.errors import ConfigError, suggest, unknown
from divmon.records import ACTIONS, LEVERS, ROLLBACK, Action, AlarmEvent, Severity

Kind = Literal["drop", "rise", "below", "above", "outside", "absent"]
Evidence = Literal["screen", "confirm"]
Reaction = Callable[[AlarmEvent, Mapping[str, Any]], Action | None]
Values = dict[str, Any]

KINDS: tuple[str, ...] = get_args(Kind)
SEVERITIES: tuple[str, ...] = get_args(Severity)
_USES = {"drop": {"by"}, "rise": {"by"}, "below": {"level"}, "above": {"level"}, "outside": {"by", "low", "high"}}
_HOME = {"by": "drop", "level": "below", "low": "outside", "high": "outside"}
_CONFIRMED = ("drop", "rise", "outside")  # rules that compare with the baseline, which fresh draws can decide
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class RuleError(ConfigError):
    """A rule that cannot work.

    Attributes:
        text: What is wrong and what to write instead, without the place.
        key: The setting it is about, as it is written in a file ("" when it is about the whole rule).
        alarm: The rule's name ("" when it has none).
        place: The file and line it comes from ("" when nobody knows).
    """

    def __init__(self, text: str, *, key: str = "", alarm: str = "", place: str = "") -> None:
        where = ", ".join(part for part in (place, f"alarm {alarm!r}" if alarm else "") if part)
        super().__init__(f"{where}: {text}" if where else text)
        self.text, self.key, self.alarm, self.place = text, key, alarm, place

    def at(self, place: str) -> RuleError:
        """The same error with another place."""
        return RuleError(self.text, key=self.key, alarm=self.alarm, place=place)


class Amount(NamedTuple):
    """A size of change: a share of the baseline when `relative`, else in the metric's own unit.

    >>> Amount.of("20%"), str(Amount.of("20%")), Amount.of(0.1).relative
    (Amount(amount=0.2, relative=True), '20 %', False)
    """

    amount: float
    relative: bool

    @classmethod
    def of(cls, value: Any, key: str = "by") -> Amount:
        """Read ``"20%"``, ``0.1`` or a pair ``(amount, relative)``."""
        if isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[1], bool):
            found = cls(number(value[0], key), value[1])
        elif isinstance(value, str) and value.strip().endswith("%"):
            found = cls(number(value.strip()[:-1], key) / 100, True)
        else:
            found = cls(number(value, key), False)
        if found.amount < 0:
            raise RuleError(f"`{key}` is a size and cannot be negative ({value!r}); `rule` says which way.", key=key)
        return found

    @property
    def plain(self) -> str | float | list[Any]:
        """What `of` reads back as exactly this."""
        text = f"{100 * self.amount:.12g}%"
        if not self.relative:
            return self.amount
        return text if Amount.of(text) == self else [self.amount, True]

    def __str__(self) -> str:
        return f"{100 * self.amount:.4g} %" if self.relative else f"{self.amount:.4g}"


class Request(NamedTuple):
    """An action in `then` with settings of its own: ``{diversity_reward: {weight: 0.3}}``.

    >>> Request.of({"gate": {"k": 8}}).plain
    {'gate': {'k': 8}}
    """

    action: str
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, value: Mapping[Any, Any]) -> Request:
        """Read a mapping of one action to its settings (which are checked by whoever carries them out)."""
        [(action, settings)] = value.items() if len(value) == 1 else [(None, None)]
        if not isinstance(action, str) or not isinstance(settings, (Mapping, type(None))):
            text = f"`then` lists names of actions, or one with its settings ({{gate: {{k: 8}}}}), not {dict(value)!r}."
            raise RuleError(text, key="then")
        if action not in (settable := (ROLLBACK, *LEVERS)):
            known = action in ACTIONS
            why = (
                f"{action!r} takes no settings; write it alone." if known else str(unknown("action", action, settable))
            )
            raise RuleError(why, key="then")
        return cls(action, {str(key): value for key, value in (settings or {}).items()})

    @property
    def plain(self) -> dict[str, Any]:
        """What `of` reads back as exactly this."""
        return {self.action: dict(self.settings)}


def number(value: Any, key: str) -> float:
    """`value` as a finite float; ``"1e-3"``, which YAML reads as a word, is one too."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        example = "20% or 0.1" if key in ("by", "tolerate") else "0.2 (in the metric's own unit)"
        raise RuleError(f"`{key}` must be a number, not {value!r}. Write for example `{key}: {example}`.", key=key)
    return found


def name_of(function: Any) -> str:
    """The name under which a step of `then` is known."""
    if isinstance(function, (str, Request)):
        return function if isinstance(function, str) else function.action
    return str(getattr(function, "__name__", type(function).__name__))


def checked(values: Mapping[str, Any]) -> Values:
    """The settings of one rule (by field name) with defaults filled in and numbers read.

    Raises:
        RuleError: They contradict each other, or describe a rule that can never fire.
    """
    _check_words(values)
    filled = _filled(values)
    _check_limits(filled)
    _check_by(filled)
    _check_evidence(filled)
    for key, verb in (("for_", "fire"), ("clear_for", "resolve")):
        _check_count(key.rstrip("_"), filled[key], verb)
    _check_then(filled["then"])
    return filled


def _check_words(values: Mapping[str, Any]) -> None:
    for key in ("name", "metric", "rule", "severity", "evidence", "domain"):
        word = values[key]
        if not (isinstance(word, str) and word) and not (key in ("domain", "evidence") and word is None):
            raise RuleError(f"`{key}` must be a word, not {word!r} (numbers and yes/no need quotes).", key=key)
    if not NAME.fullmatch(values["name"]):
        better = re.sub(r"[^A-Za-z0-9._-]+", "-", values["name"]).strip("-._") or "my-alarm"
        raise RuleError(f"`name` may hold letters, digits, dots, dashes, underscores; write {better!r}.", key="name")
    for key, options in (("rule", KINDS), ("severity", SEVERITIES), ("evidence", get_args(Evidence))):
        if values[key] not in options and values[key] is not None:
            raise RuleError(str(unknown(key, values[key], options)), key=key)


def _exceptions(values: Mapping[str, Any]) -> tuple[str, ...]:
    names = values["except_"]
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) and name for name in names):
        raise RuleError(f"`except` is a list of domains such as [code, math], not {names!r}.", key="except")
    if names and values["domain"] is not None:
        raise RuleError("`except` is for rules without `domain`; remove one of the two.", key="except")
    return tuple(names)


def _filled(values: Mapping[str, Any]) -> Values:
    then = values["then"]
    then = (then,) if isinstance(then, (str, Mapping, Request)) or callable(then) else then
    if not isinstance(then, (tuple, list)):
        raise RuleError(f"`then` is a list of actions such as [warn, save], not {then!r}.", key="then")
    steps = tuple(Request.of(step) if isinstance(step, Mapping) else step for step in then)
    filled: Values = {**values, "then": steps, "except_": _exceptions(values)}
    if filled["for_"] is None:
        filled["for_"] = 1 if filled["severity"] == "critical" else 2
    for key in ("by", "tolerate"):
        filled[key] = None if filled[key] is None else Amount.of(filled[key], key)
    for key in ("level", "low", "high"):
        filled[key] = None if filled[key] is None else number(filled[key], key)
    filled["weight"] = number(filled["weight"], "weight")
    by = filled["by"]
    if filled["evidence"] is None:
        sought = filled["rule"] in _CONFIRMED and by is not None
        filled["evidence"] = "confirm" if filled["severity"] == "critical" and sought else "screen"
    if filled["evidence"] == "confirm" and filled["tolerate"] is None and by is not None:
        filled["tolerate"] = Amount(by.amount / 2, by.relative)
    return filled


def _check_limits(values: Values) -> None:
    kind = values["rule"]
    uses = _USES.get(kind, set())
    for key, home in _HOME.items():
        if values[key] is not None and key not in uses:
            raise RuleError(f"`{key}` means nothing to rule: {kind}; remove it, or write `rule: {home}`.", key=key)
    if "level" in uses and values["level"] is None:
        text = f"rule: {kind} needs `level`, the limit itself: write for example `level: 0.2`."
        raise RuleError(text, key="rule")
    if kind in ("drop", "rise") and values["by"] is None:
        raise RuleError(
            f"rule: {kind} needs `by`, the change that is still allowed: write `by: 20%` (of the baseline) or "
            "`by: 0.1` (in the metric's own unit).",
            key="rule",
        )
    if kind == "outside":
        _check_band(values["by"], values["low"], values["high"])


def _check_band(by: Amount | None, low: float | None, high: float | None) -> None:
    if by is not None and low is None and high is None:
        return
    if by is not None or (low is None and high is None):
        text = "rule: outside needs either `by: 50%` (a band around the baseline) or both `low` and `high`."
        raise RuleError(text, key="rule")
    if low is None or high is None:
        other = "below" if high is None else "above"
        text = f"rule: outside needs both `low` and `high`; for one side write `rule: {other}` with `level`."
        raise RuleError(text, key="rule")
    if low >= high:
        raise RuleError(f"`low` ({low:g}) must be less than `high` ({high:g}).", key="low")


def _check_by(values: Values) -> None:
    by, benign, kind = values["by"], values["tolerate"], values["rule"]
    if by is not None and by.relative and by.amount >= 1 and kind != "rise":
        other = "by: 50%" if kind == "drop" else "rule: rise"
        raise RuleError(
            f"by: {by.plain} can never fire on the way down, because nothing falls by more than 100 %; "
            f"write for example `{other}`.",
            key="by",
        )
    if benign is not None and (by is None or benign.relative != by.relative or benign.amount > by.amount):
        text = "`tolerate` must be at most `by` and written the same way (both with % or neither)."
        raise RuleError(text, key="tolerate")


def _check_evidence(values: Values) -> None:
    if not values["weight"] > 0:
        raise RuleError("`weight` is this alarm's share of alpha, so it is above 0.", key="weight")
    if values["evidence"] == "confirm" and values["by"] is None:
        why = "a fixed limit has no baseline to swap with" if values["rule"] != "absent" else "nothing can be drawn"
        raise RuleError(
            f"evidence: confirm tests a change from the baseline, and rule: {values['rule']} is none ({why}). Use "
            "evidence: screen, or rule: drop, rise or outside with `by`.",
            key="evidence",
        )


def _check_count(key: str, count: Any, verb: str) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise RuleError(
            f"`{key}` counts evaluations, so it is a whole number from 1, not {count!r}; write `{key}: 1` to {verb} "
            "at the first one.",
            key=key,
        )


def _check_then(then: tuple[Any, ...]) -> None:
    names = [name_of(step) for step in then]
    for step, name in zip(then, names, strict=True):
        if callable(step):
            _check_function(step)
        elif isinstance(step, Request):
            Request.of(step.plain)
        elif not isinstance(step, str):
            raise RuleError(f"`then` lists names of actions such as save, not {step!r}.", key="then")
        elif step not in ACTIONS:
            text = f"Unknown action {step!r}.{suggest(step, ACTIONS)} (From Python, a function works too.)"
            raise RuleError(text, key="then")
        if names.count(name) > 1:
            raise RuleError(f"`then` lists {name!r} twice.", key="then")


def _check_function(function: Reaction) -> None:
    name = name_of(function)
    if not name.isidentifier() or name in ACTIONS:
        raise RuleError(f"A function in `then` needs a name of its own, not {name!r}; use `def`.", key="then")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        text = f"{name} in `then` must take two arguments: `def {name}(event, context)`."
        raise RuleError(text, key="then") from None
    except ValueError:  # a builtin without a signature
        return
