"""What an alarm watches for: one frozen `Rule`, checked when it is made, and the pure condition it stands for.

A rule compares a series with its own baseline (drop, rise, outside with `by`), with fixed numbers (below, above,
outside with `low` and `high`), or notices that there is no number (absent). What happens over time is in `lifecycle`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

from divmon.alarms.checks import Amount, Evidence, Kind, Reaction, Request, RuleError, checked, name_of
from divmon.errors import unknown
from divmon.records import OVERALL, Severity

_SLACK = 1e-9  # a change that equals the limit up to rounding is not more than the limit


@dataclass(frozen=True)
class Rule:
    """One alarm rule. Making one that cannot work raises a `ConfigError` that says what to write instead.

    Attributes:
        name: Names the alarm in logs: letters, digits, dots, dashes and underscores.
        metric: Name in the metrics table.
        rule: drop, rise, below, above, outside or absent.
        domain: One probe domain, or "all" for the numbers over every domain; None gives a cell for each probe domain.
        except_: Probe domains that have no cell (without `domain`), because there the change is wanted.
        by: The change from the baseline that is still allowed (drop, rise, outside): "20%" or 0.1.
        level: The limit (below, above). Being exactly at it is allowed.
        low: The lower end of the allowed band (outside).
        high: Its upper end.
        tolerate: The change that a confirmation calls benign (half of `by` without it). The screen does not use it.
        for_: Evaluations in a row the condition must hold; by default 1 for critical rules and 2 for others.
        clear_for: Evaluations in a row it must be clear before a firing alarm resolves.
        severity: info, warning or critical.
        evidence: "confirm": once the screen has held, fresh completions decide, within the run's alpha. "screen": the
            screen alone, which promises no error rate. None: "confirm" for critical drop, rise and outside with `by`.
        weight: Its share of the run's alpha, relative to the other alarms that are confirmed.
        then: What to ask for when it fires: "warn", "save", "stop", "rollback", a lever ("diversity_reward", "gate",
            "entropy_band", "resample"), each of these two with settings as in ``{"gate": {"k": 8}}``, or a function of
            (event, context).

    >>> rule = Rule("creative-collapse", metric="tfidf_distance", domain="creative", rule="drop", by="20%")
    >>> rule.by, rule.hold, breached(rule, 0.7, 0.9), breached(rule, 0.8, 0.9)
    (Amount(amount=0.2, relative=True), 2, True, False)
    """

    name: str
    _: KW_ONLY
    metric: str
    rule: Kind
    domain: str | None = None
    except_: tuple[str, ...] = ()
    by: Amount | tuple[float, bool] | str | float | None = None
    level: float | None = None
    low: float | None = None
    high: float | None = None
    tolerate: Amount | tuple[float, bool] | str | float | None = None
    for_: int | None = None
    clear_for: int = 3
    severity: Severity = "warning"
    evidence: Evidence | None = None
    weight: float = 1.0
    then: tuple[str | Request | Reaction, ...] = ("warn",)

    def __post_init__(self) -> None:
        try:
            values = checked({name: getattr(self, name) for name in _FIELDS.values()})
        except RuleError as error:
            raise RuleError(error.text, key=error.key, alarm=str(self.name)) from None
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def allowed(self) -> Amount | None:
        """`by` as an `Amount`; None for rules that do not compare with the baseline."""
        return None if self.by is None else Amount.of(self.by)

    def cells(self, domains: Iterable[str]) -> tuple[str, ...]:
        """Where it has a cell, of the probe `domains`.

        >>> Rule("a", metric="vendi", rule="drop", by="20%", except_=("code",)).cells(["code", "poems"])
        ('poems',)
        """
        if self.domain is not None:
            return (self.domain,)
        return tuple(domain for domain in domains if domain not in self.except_)

    @property
    def hold(self) -> int:
        """`for_` with its default: evaluations in a row the condition must hold before the alarm fires."""
        return self.for_ or 1

    @property
    def confirms(self) -> bool:
        """Whether it fires only when fresh draws confirm it."""
        return self.evidence == "confirm"

    @property
    def margin(self) -> Amount:
        """What a confirmation calls benign."""
        return Amount(0.0, False) if self.tolerate is None else Amount.of(self.tolerate)

    @property
    def claim(self) -> str:
        """What a confirmation tests, for example ``vendi drop beyond 10%``."""
        return f"{self.metric} {self.rule} beyond {self.margin.plain}"

    @property
    def functions(self) -> dict[str, Reaction]:
        """The functions among `then`, by name."""
        return {name_of(step): step for step in self.then if not isinstance(step, (str, Request))}

    @property
    def actions(self) -> tuple[str, ...]:
        """The names of `then`, in order."""
        return tuple(name_of(step) for step in self.then)

    @property
    def settings(self) -> dict[str, Mapping[str, Any]]:
        """The settings of the actions among `then` that have some, by action."""
        return {step.action: step.settings for step in self.then if isinstance(step, Request)}

    def check_known(self, metrics: Iterable[str] | None, domains: Iterable[str] | None = None) -> None:
        """Raise a `ConfigError` unless the metric and the domain exist. None: nobody knows what exists."""
        if metrics is not None and self.metric not in (names := set(metrics)):
            raise RuleError(str(unknown("metric", self.metric, names)), key="metric", alarm=self.name)
        if self.domain is None or domains is None:
            return
        if self.domain not in (places := {*domains, OVERALL}):
            raise RuleError(str(unknown("domain", self.domain, places)), key="domain", alarm=self.name)

    @classmethod
    def from_mapping(
        cls,
        mapping: Mapping[str, Any],
        *,
        known_metrics: Iterable[str] | None,
        known_domains: Iterable[str] | None = None,
        line: int | None = None,
    ) -> Rule:
        """Make a rule from the keys of a rule file (`for` instead of `for_`; null means "not given").

        Args:
            mapping: The keys and values.
            known_metrics: Metrics a rule may name; None skips the check.
            known_domains: Domains a rule may name besides "all"; None skips the check.
            line: Where the rule is, for error messages.

        Raises:
            ConfigError: A key is unknown or missing, or the rule cannot work.
        """
        try:
            given = {key: value for key, value in mapping.items() if value is not None or key not in _FIELDS}
            _check_keys(given)
            rule = cls(**{_FIELDS[key]: value for key, value in given.items()})
            rule.check_known(known_metrics, known_domains)
        except RuleError as error:
            raise (error if line is None else error.at(f"line {line}")) from None
        return rule

    def to_mapping(self) -> dict[str, Any]:
        """The rule in plain JSON types; `from_mapping` reads it back (rules with functions: see `restore_rules`)."""
        plain: dict[str, Any] = {key: getattr(self, name) for key, name in _FIELDS.items()}
        for key in ("by", "tolerate"):
            plain[key] = None if plain[key] is None else Amount.of(plain[key]).plain
        plain["except"] = list(self.except_) or None
        plain["then"] = [_plain(step) for step in self.then]
        return {key: value for key, value in plain.items() if value is not None}


def _plain(step: str | Request | Reaction) -> Any:
    return step if isinstance(step, str) else step.plain if isinstance(step, Request) else {"call": name_of(step)}


_FIELDS = {f.name.rstrip("_"): f.name for f in fields(Rule)}  # the key in a file -> the field


def _check_keys(given: Mapping[str, Any]) -> None:
    alarm = str(given.get("name", ""))
    for key in given:
        if key not in _FIELDS:
            raise RuleError(str(unknown("key", str(key), _FIELDS)), key=str(key), alarm=alarm)
    for key, example in (("name", "creative-collapse"), ("metric", "tfidf_distance"), ("rule", "drop")):
        if key not in given:
            raise RuleError(f"An alarm needs `{key}`, for example `{key}: {example}`.", alarm=alarm)


def unusable(rule: Rule, baseline: float) -> str | None:
    """Why `rule` cannot compare anything with `baseline`; None when it can.

    >>> unusable(Rule("a", metric="length", rule="drop", by="20%"), 0.0)
    'a share of the baseline needs a baseline above 0, and it is 0; use an absolute `by`'
    """
    if rule.allowed is None:
        return None
    if not math.isfinite(baseline):
        return f"the baseline is {baseline:g}"
    if rule.allowed.relative and baseline <= 0:
        return f"a share of the baseline needs a baseline above 0, and it is {baseline:.4g}; use an absolute `by`"
    return None


def breached(rule: Rule, value: float, baseline: float) -> bool:
    """Whether one `value` breaks `rule`, given the series' `baseline`.

    NaN breaks only "absent". A change must be more than `by`: a fall of exactly 20 % passes `by: 20%`.

    >>> band = Rule("entropy", metric="token_entropy", rule="outside", by="50%")
    >>> [breached(band, value, 1.0) for value in (0.4, 0.5, 1.4, 1.6, float("nan"))]
    [True, False, False, True, False]
    """
    if rule.rule == "absent" or math.isnan(value):
        return rule.rule == "absent" and math.isnan(value)
    if rule.level is not None:
        return value < rule.level if rule.rule == "below" else value > rule.level
    if rule.low is not None and rule.high is not None:
        return not rule.low <= value <= rule.high
    if rule.allowed is None or unusable(rule, baseline):
        return False
    changes = {"drop": baseline - value, "rise": value - baseline}
    change = changes.get(rule.rule, abs(value - baseline))
    limit = rule.allowed.amount * (baseline if rule.allowed.relative else 1.0)
    return change - limit > _SLACK * max(abs(baseline), limit)
