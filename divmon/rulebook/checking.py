"""Everything that is wrong with a rule file, in one reading: errors, and rules that could never fire.

An *error* stops a run from starting. A *warning* is a rule that would watch in vain, or say what another says. A
*note* is only worth knowing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from divmon.alarms.checks import NAME, RuleError
from divmon.alarms.loading import Source
from divmon.alarms.rules import Rule
from divmon.alarms.ruleset import RuleSet, Silence
from divmon.alarms.spending import cell_shares
from divmon.errors import ConfigError, suggest
from divmon.metrics import METRICS
from divmon.mitigations import lever_settings, rollback_settings
from divmon.records import OVERALL
from divmon.rulebook import vain
from divmon.rulebook.document import Document, line_of, read_document
from divmon.rulebook.vain import Problem, Setting

_STANDIN: Mapping[str, Any] = {"by": "50%", "level": 0.0, "name": "unnamed"}  # to read on after an error about them
_LAST = ("rule", "low", "high", "metric", "")  # after these nothing sensible can be said about the rest of the rule
KEYS = tuple(field.name.rstrip("_") for field in fields(Rule))  # of an alarm in a file
_SEVERAL = 12  # errors of one rule that are looked for


def check_rules(source: Source | RuleSet, setting: Setting | None = None) -> tuple[list[Problem], RuleSet]:
    """Read a rule file to its end and say everything that is wrong with it.

    Args:
        source: As `divmon.alarms.load_ruleset` takes it.
        setting: What is known about the run.

    Returns:
        The problems, in the order of the file, and what can be read of the rules.

    Raises:
        ConfigError: The file cannot be read.

    >>> text = "alarms:\\n- {name: a, metric: vendy, rule: drop, by: lots}\\n- {name: b, metric: length, rulr: drop}"
    >>> for problem in check_rules(text, Setting(metrics=["vendi", "length"]))[0]:
    ...     print(problem)
    line 2: error: alarm 'a': Unknown metric 'vendy'. Did you mean 'vendi'?
    line 2: error: alarm 'a': `by` must be a number, not 'lots'. Write for example `by: 20% or 0.1`.
    line 3: error: alarm 'b': Unknown key 'rulr'. Did you mean 'rule'?
    line 3: error: alarm 'b': An alarm needs `rule`, for example `rule: drop`.
    """
    setting = setting or Setting()
    try:
        document = read_document(source)
    except RuleError as error:
        place = re.match(r"line (\d+)", error.place)
        return [Problem("error", error.text, error.alarm, int(place[1]) if place else 0)], RuleSet()
    problems = [Problem("error", text, line=line) for line, text in document.wrong]
    found: list[tuple[Rule, Any]] = []
    for number, row in enumerate(document.rows):
        wrong, rule = _read(row, setting)
        problems += [Problem("error", text, name, document.line("alarms", number, key)) for name, key, text in wrong]
        if rule is not None:
            found.append((rule, row))
    problems += _same_names(document)
    book, silences = _book(document, [rule for rule, _ in found], setting, problems)
    problems += _in_vain(found, book, setting)
    problems += _lever_conflict(found)
    for remark in vain.shared(book, _shares(book, setting), setting):
        name, _, i = remark.key.partition(".")
        line = document.line("silences", silences[int(i)], "until") if i else line_of(document.top, name)
        problems.append(Problem(remark.level, remark.text, line=line))
    problems.sort(key=lambda problem: problem.line or math.inf)
    return problems, book


def _book(
    document: Document, rules: Sequence[Rule], setting: Setting, problems: list[Problem]
) -> tuple[RuleSet, list[int]]:
    """The rules with what they share, so far as it can be read, and which silences of the file these are."""
    book, kept = RuleSet(tuple(rules)), list[int]()
    given: dict[str, Any] = {"alpha": setting.alpha} if setting.alpha is not None else {}
    for key in ("alpha", "confirmations", "confirm_k"):
        value = given.get(key, document.top.get(key))
        try:
            book = book if value is None else replace(book, **{key: value})
        except RuleError as error:
            problems.append(Problem("error", error.text, line=line_of(document.top, key)))
    known = {rule.name: rule for rule in rules}
    for row in document.rows:
        name = str(row.get("name")) if isinstance(row, Mapping) else ""
        if NAME.fullmatch(name):  # of an alarm with errors: a silence may name it all the same
            known.setdefault(name, Rule(name, metric="unknown", rule="absent"))
    for i, row in enumerate(document.silences):
        try:
            silence = Silence.from_mapping(row, known.values())
        except RuleError as error:
            problems.append(Problem("error", error.text, line=document.line("silences", i, error.key)))
        else:
            book = replace(book, silences=(*book.silences, silence))
            kept.append(i)
    return book, kept


def _shares(book: RuleSet, setting: Setting) -> dict[str, float]:
    return cell_shares(book, setting.domains or ("default",), book.alpha)


def _read(row: Any, setting: Setting) -> tuple[list[tuple[str, str, str]], Rule | None]:
    """(name, key, text) of every error in one alarm, and the rule it is when there is none."""
    if isinstance(row, Rule):
        return [], row
    if not isinstance(row, Mapping):
        return [("", "", f"An alarm is a mapping such as {{name: narrow, metric: vendi}}, not {row!r}.")], None
    name = str(row.get("name") or "")
    errors: list[tuple[str, str]] = [*_unknown_keys(row), *_unknown_names(row, setting)]
    values = {key: value for key, value in row.items() if key in KEYS}
    rule = None
    for _ in range(_SEVERAL):
        try:
            rule = Rule.from_mapping(values, known_metrics=None)
            break
        except RuleError as error:
            errors.append((error.key, error.text))
            if error.key in _LAST:
                break
            values.pop(error.key, None)
            if error.key in _STANDIN:
                values[error.key] = _STANDIN[error.key]
    if rule is not None:
        errors += [("then", text) for text in _lever_errors([rule])]
    return [(name, key, text) for key, text in errors], None if errors else rule


def _lever_conflict(found: Sequence[tuple[Rule, Any]]) -> Iterator[Problem]:
    """The first rule that sets up a lever differently from those before it."""
    for n, (rule, row) in enumerate(found, 1):
        for text in _lever_errors([other for other, _ in found[:n]]):
            yield Problem("error", text, rule.name, line_of(row, "then"))
            return


def _lever_errors(rules: Sequence[Rule]) -> Iterator[str]:
    """What is wrong with the settings of levers, in one rule or between several."""
    try:
        lever_settings(rules)
        rollback_settings(rules)
    except ConfigError as error:
        yield str(error).removeprefix(f"alarm {rules[-1].name!r}: ")


def _unknown_keys(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in row:
        if key not in KEYS:
            yield str(key), f"Unknown key {str(key)!r}.{suggest(str(key), KEYS)}"


def _unknown_names(row: Mapping[str, Any], setting: Setting) -> Iterator[tuple[str, str]]:
    metric, domain = row.get("metric"), row.get("domain")
    known = {*METRICS, *(setting.metrics or ())}
    if isinstance(metric, str) and setting.metrics is not None and metric in METRICS and metric not in setting.metrics:
        yield "metric", f"{metric!r} is not measured. Add it to metrics= (measured: {', '.join(setting.metrics)})."
    elif isinstance(metric, str) and metric not in known:
        yield "metric", f"Unknown metric {metric!r}.{suggest(metric, known)}"
    if isinstance(domain, str) and setting.domains is not None and domain not in (*setting.domains, OVERALL):
        yield "domain", f"Unknown domain {domain!r}.{suggest(domain, [*setting.domains, OVERALL])}"


def _same_names(document: Document) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for row in document.rows:
        name = str(row.name if isinstance(row, Rule) else row.get("name", "") if isinstance(row, Mapping) else "")
        if name in first:
            other = f" (the other is in line {first[name]})" if first[name] else ""
            text = f"Another alarm has this name too{other}. Give each alarm a name of its own."
            yield Problem("error", text, name, line_of(row, "name"))
        elif name:
            first[name] = line_of(row, "name")


def _in_vain(found: Sequence[tuple[Rule, Any]], book: RuleSet, setting: Setting) -> Iterator[Problem]:
    shares = _shares(book, setting)
    for i, (rule, row) in enumerate(found):
        before = [(other, line_of(written)) for other, written in found[:i]]
        for remark in (*vain.alone(rule, setting), *vain.beside(rule, before), *vain.too_few(rule, shares, setting)):
            yield Problem(remark.level, remark.text, rule.name, line_of(row, remark.key))
