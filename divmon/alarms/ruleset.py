"""The rules of a run together with what they share: the false-alarm budget and the silences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

from divmon.alarms.checks import RuleError, number
from divmon.alarms.rules import Rule
from divmon.alarms.spending import ALPHA, CONFIRMATIONS
from divmon.errors import unknown


@dataclass(frozen=True)
class Silence:
    """An alarm that says nothing, asks for nothing and spends nothing before the step `until`.

    Attributes:
        alarm: The rule's name.
        until: The first step at which it may speak again. What is still so then is told then.
        domain: Only there; None for every domain.
    """

    alarm: str
    _: KW_ONLY
    until: int
    domain: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.until, bool) or not isinstance(self.until, int) or self.until < 1:
            raise RuleError(f"`until` is the step at which a silence ends, not {self.until!r}.", key="until")

    def covers(self, alarm: str, domain: str, step: int) -> bool:
        """Whether it silences this cell at `step`."""
        return step < self.until and alarm == self.alarm and self.domain in (None, domain)

    @classmethod
    def from_mapping(cls, row: Any, rules: Iterable[Rule]) -> Silence:
        """Read ``{alarm, until, domain?}``, as in a rule file."""
        keys = {f.name for f in fields(cls)}
        if isinstance(row, cls):
            row = row.to_mapping()
        if not isinstance(row, Mapping):
            raise RuleError(f"A silence is a mapping such as {{alarm: narrow, until: 200}}, not {row!r}.")
        for key in row:
            if key not in keys:
                raise RuleError(str(unknown("key", str(key), keys)), key=str(key))
        for key, example in (("alarm", "narrow"), ("until", "200")):
            if row.get(key) is None:
                end = " A silence without an end would be forgotten." if key == "until" else ""
                raise RuleError(f"A silence needs `{key}`, for example `{key}: {example}`.{end}")
        names = [rule.name for rule in rules]
        if row["alarm"] not in names:
            raise RuleError(str(unknown("alarm", str(row["alarm"]), names)), key="alarm")
        return cls(str(row["alarm"]), until=row["until"], domain=row.get("domain"))

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON types, as in a rule file."""
        where = {} if self.domain is None else {"domain": self.domain}
        return {"alarm": self.alarm, "until": self.until, **where}


@dataclass(frozen=True)
class RuleSet:
    """Rules, and what they share. It iterates over the rules.

    Attributes:
        rules: The rules.
        alpha: The chance, for the whole run, that any confirmed alarm is false.
        confirmations: How many confirmations a run may draw.
        confirm_k: Completions a prompt that a confirmation draws on either side; None: four times as many as an
            evaluation.
        silences: Which alarms say nothing until when.
    """

    rules: tuple[Rule, ...] = ()
    _: KW_ONLY
    alpha: float = ALPHA
    confirmations: int = CONFIRMATIONS
    confirm_k: int | None = None
    silences: tuple[Silence, ...] = ()

    def __post_init__(self) -> None:
        alpha = number(self.alpha, "alpha")
        if not 0 < alpha < 1:
            raise RuleError(
                f"`alpha` is a probability for the whole run, for example 0.05, not {self.alpha!r}.", key="alpha"
            )
        object.__setattr__(self, "alpha", alpha)
        for key in ("confirmations", "confirm_k"):
            count = getattr(self, key)
            least = 0 if key == "confirmations" else 2
            if key == "confirm_k" and count is None:
                continue
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise RuleError(f"`{key}` is a whole number from {least}, not {count!r}.", key=key)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    @classmethod
    def of(cls, rules: Iterable[Rule] | RuleSet) -> RuleSet:
        """`rules` with the default budget, unless they come with one."""
        return rules if isinstance(rules, RuleSet) else cls(tuple(rules))

    @property
    def confirms(self) -> bool:
        """Whether any rule may ask for a confirmation."""
        return self.confirmations > 0 and any(isinstance(rule, Rule) and rule.confirms for rule in self.rules)

    @property
    def shared(self) -> dict[str, Any]:
        """All but the rules, in plain JSON types; `restore` reads it."""
        return {
            "alpha": self.alpha,
            "confirmations": self.confirmations,
            "confirm_k": self.confirm_k,
            "silences": [silence.to_mapping() for silence in self.silences],
        }

    @classmethod
    def restore(cls, rules: Iterable[Rule], shared: Mapping[str, Any] | None) -> RuleSet:
        """A set from `rules` and what `shared` gave (None or missing keys: the defaults)."""
        known = {key: value for key, value in (shared or {}).items() if key in cls.__dataclass_fields__}
        kept = tuple(rules)
        names = {rule.name for rule in kept}
        silences = [row for row in known.pop("silences", ()) if row["alarm"] in names]
        return cls(kept, **known, silences=tuple(Silence.from_mapping(row, kept) for row in silences))
