"""Reading alarm rules from YAML, from mappings or from Python, and keeping them with a run.

Every error in a file names the file, the line, the alarm and what to write instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from divmon.alarms.checks import Reaction, RuleError
from divmon.alarms.rules import Rule
from divmon.alarms.ruleset import RuleSet, Silence
from divmon.errors import ConfigError, unknown
from divmon.records import Action, AlarmEvent

Source = str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any] | Rule]
_SHARED = ("alpha", "confirmations", "silences")
TOP = ("alarms", *_SHARED, "tests")  # `tests` is reserved for synthetic series with the states expected of them


class _Located(dict[str, Any]):
    """A mapping that knows its own line and the lines of its keys and of the items of its lists."""

    line: int = 0
    lines: Mapping[str, int]
    items_of: Mapping[str, list[int]]


class _Loader(yaml.SafeLoader):
    """The safe loader, with line numbers and without silent duplicate keys."""


def _located(loader: _Loader, node: yaml.MappingNode) -> _Located:
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in seen:
            text = f"`{key}` is written twice (first in line {seen[key]}); keep one."
            raise RuleError(text, place=f"line {line}")
        seen[key] = line
    found = _Located((str(key), value) for key, value in loader.construct_mapping(node, deep=True).items())
    found.line = node.start_mark.line + 1
    pairs = [(str(key.value), key, value) for key, value in node.value]  # merged keys come first, own keys win
    found.lines = {name: key.start_mark.line + 1 for name, key, _ in pairs}
    found.items_of = {
        name: [item.start_mark.line + 1 for item in value.value]
        for name, _, value in pairs
        if isinstance(value, yaml.SequenceNode)
    }
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _located)


def load_rules(
    source: Source, *, known_metrics: Iterable[str] | None = None, known_domains: Iterable[str] | None = None
) -> tuple[Rule, ...]:
    """Rules from a YAML file, YAML text, a mapping with `alarms`, or a list of mappings and `Rule` objects.

    Args:
        source: A `Path` is a file; a string is text when it holds a line break or ``": "``, else the path of a file.
        known_metrics: Metrics a rule may name; None skips the check.
        known_domains: Domains a rule may name besides "all"; None skips the check.

    Raises:
        ConfigError: Something in it cannot work. The message says where, and what to write instead.

    >>> text = "alarms:\\n- {name: narrow, metric: vendi, rule: drop, by: 20%}"
    >>> load_rules(text)[0].hold
    2
    >>> load_rules(text, known_metrics=["vendy"])
    Traceback (most recent call last):
        ...
    divmon.alarms.checks.RuleError: line 2, alarm 'narrow': Unknown metric 'vendi'. Did you mean 'vendy'?
    """
    return load_ruleset(source, known_metrics=known_metrics, known_domains=known_domains).rules


def load_ruleset(
    source: Source | RuleSet, *, known_metrics: Iterable[str] | None = None, known_domains: Iterable[str] | None = None
) -> RuleSet:
    """As `load_rules`, with what the rules share: ``alpha``, ``confirmations`` and ``silences`` of the file.

    Raises:
        ConfigError: As `load_rules`.

    >>> found = load_ruleset("alpha: 0.01\\nalarms:\\n- {name: narrow, metric: vendi, rule: drop, by: 20%}")
    >>> len(found), found.alpha, found.confirmations
    (1, 0.01, 8)
    """
    if isinstance(source, RuleSet):
        _collect([("", rule) for rule in source], known_metrics=known_metrics, known_domains=known_domains)
        return source
    file, text = opened(source)
    try:
        document = source if text is None else parsed(text)
        rules = _collect(alarm_rows(document), known_metrics=known_metrics, known_domains=known_domains)
        return _shared(document, rules)
    except RuleError as error:
        raise error.at(", ".join(part for part in (file, error.place) if part)) from None


def _shared(document: Any, rules: tuple[Rule, ...]) -> RuleSet:
    """The rules with what stands beside them at the top of a file."""
    given = {key: document[key] for key in _SHARED if isinstance(document, Mapping) and document.get(key) is not None}
    silences = [_silence(row, place, rules) for place, row in _items(document, "silences", given.pop("silences", []))]
    try:
        return RuleSet(rules, **given, silences=tuple(silences))
    except RuleError as error:
        raise error.at(_place(document, error.key, "")) from None


def _silence(row: Any, place: str, rules: tuple[Rule, ...]) -> Silence:
    try:
        return Silence.from_mapping(row, rules)
    except RuleError as error:
        raise error.at(_place(row, error.key, place)) from None


def default_rules(known_metrics: Iterable[str] | None = None) -> tuple[Rule, ...]:
    """The rules for people who configured none: warnings only. Those on metrics that are not known are left out.

    >>> {rule.severity for rule in default_rules()}
    {'warning'}
    """
    known = None if known_metrics is None else frozenset(known_metrics)
    rules = load_rules(Path(__file__).with_name("defaults.yaml"))
    return tuple(rule for rule in rules if known is None or rule.metric in known)


def dump_rules(rules: Iterable[Rule]) -> list[dict[str, Any]]:
    """The rules in plain JSON types, to be kept with a run. Of a function in `then` only the name is kept."""
    return [rule.to_mapping() for rule in rules]


def restore_rules(
    rows: Iterable[Mapping[str, Any]], *, functions: Mapping[str, Reaction] | None = None
) -> tuple[Rule, ...]:
    """The rules that `dump_rules` kept.

    Args:
        rows: What was kept.
        functions: The functions in `then`, by name. One that is not given is replaced by one that does nothing, so
            that a recorded run can be replayed without the code that reacted to it.

    >>> rules = (Rule("narrow", metric="vendi", rule="drop", by="20%"),)
    >>> restore_rules(dump_rules(rules)) == rules
    True
    """
    known = functions or {}

    def step(value: Any) -> Any:
        if not isinstance(value, Mapping) or "call" not in value:
            return value
        name = str(value["call"])
        return known.get(name, _Recorded(name))

    return load_rules(
        [{**row, "then": [step(value) for value in row["then"]]} if "then" in row else row for row in rows]
    )


@dataclass(frozen=True)
class _Recorded:
    """Stands for a function of which only the name was kept."""

    __name__: str

    def __call__(self, event: AlarmEvent, context: Mapping[str, Any]) -> Action | None:
        """Nothing: the function is not here."""
        return None


def opened(source: Source) -> tuple[str, str | None]:
    """The name of the file (when there is one) and its text (when `source` is a file or text)."""
    if isinstance(source, str) and ("\n" in source or ": " in source or source.endswith(":") or not source.strip()):
        return "", source
    if not isinstance(source, (str, Path)):
        return "", None
    try:
        return str(source), Path(source).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the alarm rules in {str(source)!r}: {error}.") from error


def parsed(text: str) -> Any:
    """A YAML document whose mappings know their lines.

    Raises:
        RuleError: It is not YAML, a key is written twice, or it is a list without a name.
    """
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}" if mark else ""
        raise RuleError(f"This is not YAML: {error.problem or error.context}.", place=place) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise RuleError(f"This is not YAML: {error}.") from error
    if isinstance(document, list):
        line = getattr(document[0], "line", 1) if document else 1
        raise RuleError("The list of alarms needs `alarms:` above it.", place=f"line {line}")
    return document


def alarm_rows(source: Any) -> list[tuple[str, Any]]:
    """Every alarm with its place ("" when nobody knows it)."""
    if not isinstance(source, Mapping):
        if source is None or isinstance(source, (str, Rule)) or not isinstance(source, Iterable):
            raise RuleError("Rules are a list under the key `alarms:`. Write `alarms: []` for none.")
        return [("", item) for item in source]
    for key in source:
        if key not in TOP:
            raise RuleError(str(unknown("key", str(key), ["alarms", *_SHARED])), place=_place(source, str(key), ""))
    if "alarms" not in source:
        raise RuleError("There is no `alarms:` here. Write `alarms: []` for none.", place=_place(source, "", ""))
    return _items(source, "alarms", [] if source["alarms"] is None else source["alarms"])


def _items(source: Any, key: str, items: Any) -> list[tuple[str, Any]]:
    """The items of a list with their places."""
    if not isinstance(items, (list, tuple)):
        text = f"`{key}` is a list: put `- ` before the first key of each {key.removesuffix('s')}."
        raise RuleError(text, place=_place(source, key, ""))
    lines = source.items_of.get(key) if isinstance(source, _Located) else None
    return [(f"line {lines[i]}" if lines else "", item) for i, item in enumerate(items)]


def _collect(
    rows: Iterable[tuple[str, Any]], *, known_metrics: Iterable[str] | None, known_domains: Iterable[str] | None
) -> tuple[Rule, ...]:
    metrics = None if known_metrics is None else frozenset(known_metrics)
    domains = None if known_domains is None else frozenset(known_domains)
    rules: dict[str, Rule] = {}
    places: dict[str, str] = {}
    for place, row in rows:
        rule = _rule(row, place, metrics, domains)
        here = _place(row, "name", place)
        if rule.name in rules:
            first = f" (the other is in {places[rule.name]})" if here else ""
            text = f"Another alarm has this name too{first}. Give each alarm a name of its own."
            raise RuleError(text, key="name", alarm=rule.name, place=here)
        rules[rule.name], places[rule.name] = rule, here
    return tuple(rules.values())


def _rule(row: Any, place: str, metrics: frozenset[str] | None, domains: frozenset[str] | None) -> Rule:
    try:
        if isinstance(row, Rule):
            row.check_known(metrics, domains)
            return row
        if not isinstance(row, Mapping):
            text = f"An alarm is a mapping such as {{name: narrow, metric: vendi, rule: drop, by: 20%}}, not {row!r}."
            raise RuleError(text)
        return Rule.from_mapping(row, known_metrics=metrics, known_domains=domains)
    except RuleError as error:
        raise error.at(_place(row, error.key, place)) from None


def _place(row: Any, key: str, place: str) -> str:
    if not isinstance(row, _Located):
        return place
    return f"line {row.lines.get(key, row.line)}"
