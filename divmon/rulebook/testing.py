"""Tests of rules on synthetic series, as promtool tests those of Prometheus.

::

    rules: rules.yaml                   # a file beside this one, `defaults`, or the alarms themselves
    every: 10                           # steps between two points (1 without it)
    tests:
      - name: a collapse is told once it has lasted
        series:
          - {metric: tfidf_distance, domain: creative, values: 0.8x4 0.4x6 _ 0.4}
        expect:
          - {alarm: narrow, domain: creative, states: inactive x4 pending firing x7}
          - {alarm: collapse, at: {30: inactive, 50: firing}}     # by step
        confirmations:                  # what fresh draws say to an alarm with `evidence: confirm`
          - {alarm: collapse, domain: creative, at: 50, p: 0.001}

The notation is that of `divmon.rulebook.notation`. Points are evaluations; the first one is the baseline. `steps: [0,
30, 90]` names their steps one by one. Where several series are given they have the same number of points. A rule file
may hold its own `tests`, beside its `alarms`; `every` then stands in each test.

An alarm that must be confirmed stays pending until a confirmation says more. With `p` it is held against the level that
the cell would have in a run (its share of alpha, and its number); `outcome: confirmed`, `refuted` or `unknown` says it
outright. A confirmation at a step at which the alarm does not ask for one is a mismatch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divmon.alarms import Rule, RuleSet, default_rules, load_ruleset
from divmon.alarms.checks import RuleError
from divmon.alarms.loading import parsed
from divmon.errors import ConfigError, suggest, unknown
from divmon.records import OVERALL, Measurement
from divmon.rulebook import notation
from divmon.rulebook.bench import OUTCOMES, Bench, Given
from divmon.rulebook.document import line_of

_KEYS = {
    "file": ("rules", "alarms", "alpha", "confirmations", "silences", "tests", "every"),
    "test": ("name", "series", "steps", "every", "confirmations", "expect"),
    "series": ("metric", "domain", "values"),
    "expect": ("alarm", "domain", "states", "at"),
    "confirmation": ("alarm", "domain", "at", "p", "outcome"),
}


@dataclass(frozen=True)
class Mismatch:
    """A state that is not the one expected.

    Attributes:
        test: Name of the test.
        alarm: Name of the alarm.
        domain: Of its cell.
        point: From 1.
        step: Of the point.
        expected: The state in the file.
        got: The state it is in.
        line: Of the expectation in the file.
    """

    test: str
    alarm: str
    domain: str
    point: int
    step: int
    expected: str
    got: str
    line: int = 0

    def __str__(self) -> str:
        where = f"test {self.test!r}, alarm {self.alarm!r} in {self.domain}, point {self.point} (step {self.step})"
        return f"{where}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True)
class Outcome:
    """What one test came to: its name, how many states were compared, and those that differ."""

    test: str
    compared: int
    mismatches: tuple[Mismatch, ...]


def run_tests(source: str | Path) -> list[Outcome]:
    """Run the tests in a file (a `Path`, or a string without a line break) or in YAML text.

    Raises:
        ConfigError: The file cannot be read or makes no sense; the message names the line.

    >>> text = '''
    ... alarms: [{name: low, metric: vendi, rule: below, level: 2, for: 2}]
    ... tests:
    ...   - series: [{metric: vendi, values: 3 1x2}]
    ...     expect: [{alarm: low, states: inactive firing x2}]
    ... '''
    >>> for outcome in run_tests(text):
    ...     print(outcome.mismatches[0])
    test '1', alarm 'low' in default, point 2 (step 1): expected firing, got pending
    """
    file, text = _opened(source)
    try:
        top = parsed(text)
        if not isinstance(top, Mapping):
            raise RuleError("A test file holds `rules:` and `tests:`.")
        _check_keys(top, "file")
        rules = _rules(top, Path(file).parent if file else Path())
        tests = _listed(top, "tests", "a test", "file")
        return [_run(test, i, rules, top) for i, test in enumerate(tests, 1)]
    except RuleError as error:
        raise (error if not file else error.at(", ".join(filter(None, (file, error.place))))) from None


def _opened(source: str | Path) -> tuple[str, str]:
    if isinstance(source, str) and "\n" in source:
        return "", source
    try:
        return str(source), Path(source).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the tests in {str(source)!r}: {error}.") from error


def _fail(text: str, row: Any, key: str = "") -> RuleError:
    line = line_of(row, key)
    return RuleError(text, key=key, place=f"line {line}" if line else "")


def _check_keys(row: Any, kind: str) -> None:
    if not isinstance(row, Mapping):
        raise _fail(f"A {kind} has the keys {', '.join(_KEYS[kind])}; this is {row!r}.", row)
    for key in row:
        if key not in _KEYS[kind]:
            raise _fail(str(unknown("key", str(key), _KEYS[kind])), row, str(key))


def _listed(row: Mapping[str, Any], key: str, what: str, kind: str) -> Sequence[Any]:
    items = row.get(key)
    if items is None and kind == "file":
        raise _fail(f"There are no `{key}:` here to run. `pydoc divmon.rulebook.testing` shows how to write them.", row)
    if not isinstance(items, Sequence) or isinstance(items, str) or not items:
        raise _fail(f"`{key}` is a list with {what} a line.", row, key if key in row else "")
    return items


def _rules(top: Mapping[str, Any], folder: Path) -> RuleSet:
    if ("rules" in top) == ("alarms" in top):
        raise _fail("A test file names its `rules:` (a file), or holds `alarms:` itself.", top)
    if "alarms" in top:
        return load_ruleset({key: value for key, value in top.items() if key not in ("tests", "every")})
    rules = top["rules"]
    if rules == "defaults":
        return RuleSet.of(default_rules())
    if isinstance(rules, str) and "\n" not in rules:
        return load_ruleset(folder / rules)
    return load_ruleset(rules)


def _run(test: Any, number: int, rules: RuleSet, top: Mapping[str, Any]) -> Outcome:
    _check_keys(test, "test")
    name = str(test.get("name") or number)
    series = [_series(row) for row in _listed(test, "series", "a series", "test")]
    n = len(series[0][2])
    for _, _, values, row in series:
        if len(values) != n:
            text = f"This series has {len(values)} points and the first one {n}; write `_` where a point is missing."
            raise _fail(text, row, "values")
    steps = _steps(test, top, n)
    domains = list(dict.fromkeys(domain for _, domain, _, _ in series))
    bench = Bench(rules, domains, [_given(row, rules, domains, steps) for row in _confirmations(test)])
    seen = []
    for i, step in enumerate(steps):
        measured = [_measurement(step, metric, domain, values[i]) for metric, domain, values, _ in series]
        seen.append(bench.observe(step, measured))
    wrong = [
        Mismatch(name, c.alarm, c.domain, steps.index(c.step) + 1, c.step, "a confirmation", "none asked for", c.line)
        for c in bench.unasked
    ]
    compared = len(wrong)
    for row in _listed(test, "expect", "an alarm", "test"):
        rule, domain = _cell(row, rules.rules, domains, "expect")
        for i, expected in _expected(row, steps):
            got = seen[i].get(f"{rule.name}/{domain}", "unknown")
            compared += 1
            if expected != got:
                wrong.append(Mismatch(name, rule.name, domain, i + 1, steps[i], expected, got, line_of(row)))
    return Outcome(name, compared, tuple(wrong))


def _confirmations(test: Mapping[str, Any]) -> Sequence[Any]:
    return _listed(test, "confirmations", "a confirmation", "test") if "confirmations" in test else ()


def _given(row: Any, rules: RuleSet, domains: Sequence[str], steps: Sequence[int]) -> Given:
    rule, domain = _cell(row, rules.rules, domains, "confirmation")
    if not rule.confirms:
        raise _fail(f"{rule.name!r} has evidence: screen; nothing confirms it.", row, "alarm")
    if row.get("at") not in steps or isinstance(row.get("at"), bool):
        raise _fail(f"`at` is the step of a point, not {row.get('at')!r}.", row, "at")
    p, outcome = row.get("p"), row.get("outcome")
    if (p is None) == (outcome is None):
        raise _fail("A confirmation has either `p`, or an `outcome`.", row)
    if outcome is not None and outcome not in OUTCOMES:
        raise _fail(str(unknown("outcome", str(outcome), OUTCOMES)), row, "outcome")
    if p is not None and (isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1):
        raise _fail(f"`p` is a number from 0 to 1, not {p!r}.", row, "p")
    return Given(rule.name, domain, row["at"], math.nan if p is None else float(p), outcome, line_of(row))


def _series(row: Any) -> tuple[str, str, list[float], Any]:
    _check_keys(row, "series")
    if not isinstance(row.get("metric"), str) or "values" not in row:
        raise _fail("A series needs a `metric` and its `values`, for example `values: 0.8x4 0.4`.", row)
    try:
        values = notation.points(row["values"])
    except ConfigError as error:
        raise _fail(str(error), row, "values") from None
    if not values:
        raise _fail("A series needs at least one point.", row, "values")
    return row["metric"], str(row.get("domain") or "default"), values, row


def _measurement(step: int, metric: str, domain: str, value: float) -> Measurement:
    return Measurement(step, domain, metric, value, reason="missing in the test" if math.isnan(value) else None)


def _steps(test: Mapping[str, Any], top: Mapping[str, Any], n: int) -> list[int]:
    steps = test.get("steps")
    if steps is None:
        every = test.get("every", top.get("every", 1))
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise _fail(f"`every` is a whole number of steps from 1, not {every!r}.", test, "every")
        return [i * every for i in range(n)]
    whole = isinstance(steps, list) and all(isinstance(s, int) and not isinstance(s, bool) for s in steps)
    if not whole or sorted(set(steps)) != steps:
        raise _fail("`steps` is a list of whole numbers that grow.", test, "steps")
    if len(steps) != n:
        raise _fail(f"There are {len(steps)} steps for {n} points.", test, "steps")
    return list(steps)


def _cell(row: Any, rules: Sequence[Rule], known: Sequence[str], kind: str) -> tuple[Rule, str]:
    _check_keys(row, kind)
    by_name = {rule.name: rule for rule in rules}
    name = row.get("alarm")
    if name not in by_name:
        raise _fail(f"Unknown alarm {name!r}.{suggest(str(name), by_name)}", row, "alarm")
    rule = by_name[name]
    known = [domain for domain in known if domain != OVERALL or rule.domain == OVERALL]
    domain = row.get("domain") or rule.domain or (known[0] if len(known) == 1 else None)
    if domain is None:
        raise _fail(f"{name!r} has a cell for each domain: add `domain:` ({', '.join(known)}).", row, "alarm")
    cells = rule.cells(known)
    if domain not in cells:
        raise _fail(f"{name!r} has no cell in {domain!r}.{suggest(str(domain), cells)}", row, "domain")
    return rule, str(domain)


def _expected(row: Mapping[str, Any], steps: Sequence[int]) -> Iterator[tuple[int, str]]:
    """(index of the point, state) of everything that `row` expects."""
    if ("states" in row) == ("at" in row):
        raise _fail("Write either `states: inactive x4 firing` or `at: {40: firing}`.", row)
    key = "states" if "states" in row else "at"
    try:
        if key == "at":
            yield from _by_step(row, steps)
            return
        found = notation.states(row["states"])
    except RuleError:
        raise
    except ConfigError as error:
        raise _fail(str(error), row, key) from None
    if len(found) != len(steps):
        raise _fail(f"There are {len(found)} states for {len(steps)} points.", row, "states")
    yield from ((i, state) for i, state in enumerate(found) if state != notation.ANY)


def _by_step(row: Mapping[str, Any], steps: Sequence[int]) -> Iterator[tuple[int, str]]:
    at = row["at"]
    if not isinstance(at, Mapping) or not at:
        raise _fail("`at` maps steps to states, for example `at: {40: firing}`.", row, "at")
    for key, state in at.items():
        step = int(key) if str(key).lstrip("-").isdigit() else None
        if step not in steps:
            raise _fail(f"No point is at step {key}; there are {', '.join(map(str, steps[:12]))}.", row, "at")
        [one] = notation.states(state)
        yield steps.index(step), one
