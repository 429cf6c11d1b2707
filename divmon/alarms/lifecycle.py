"""How alarms live: the state of a cell (one rule in one domain) as a pure fold over measurements and verdicts.

::

    unknown -> inactive -> pending -> firing -> (resolved) inactive
                   ^_________|

A missing number (NaN) leaves every state and counter as it is; only an "absent" rule counts it.

A rule with `evidence: confirm` that has been broken for long enough asks (`Alarms.asks`), and fires only when the
verdict says "confirmed". After any other verdict it waits, longer each time. Because nothing but recorded measurements
and recorded verdicts goes in, the alarms of a recorded run are recomputed exactly as they were raised; a rule that was
not there asks in vain and stays pending: screened, unconfirmed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from divmon.alarms.checks import Reaction
from divmon.alarms.rules import Rule, breached, unusable
from divmon.alarms.ruleset import RuleSet
from divmon.alarms.sentences import NO_DRAW, breach, cleared, details, judged, waiting
from divmon.alarms.spending import next_wait
from divmon.errors import ConfigError, SignatureMismatch
from divmon.history import Evaluation
from divmon.records import OVERALL, AlarmEvent, Measurement, State, Verdict

NARROWING = "narrowing_share"  # the metric that tells benign convergence from narrowing among good outputs


@dataclass(frozen=True, slots=True)
class Cell:
    """Where one rule stands in one domain.

    Attributes:
        state: unknown, inactive, pending or firing.
        reason: Why the state is unknown, or why the latest evaluation did not count; else None.
        step: Of the latest evaluation.
        since: The step at which the state was entered; -1 before that.
        breaches: Evaluations in a row that broke the rule.
        clears: Evaluations in a row that did not, while firing.
        baseline: The first value of the series; NaN until there is one.
        baseline_step: Its step.
        signature: How the series is measured.
        wait: Evaluations during which it asks for no confirmation.
        waited: How long that was when it began; 0 before the first failed confirmation.
        judged: What the latest confirmation found, in words; "" before the first.
        owed: The event ("resolved", "inactive") that ends what was told about weights that are gone.
    """

    state: State = "unknown"
    reason: str | None = "not evaluated yet"
    step: int = -1
    since: int = -1
    breaches: int = 0
    clears: int = 0
    baseline: float = math.nan
    baseline_step: int = -1
    signature: str = ""
    wait: int = 0
    waited: int = 0
    judged: str = ""
    owed: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """A cell that has been screened and asks for a confirmation."""

    key: str
    rule: Rule
    domain: str
    step: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What else an evaluation knows about a cell.

    Attributes:
        verdict: The confirmation that it asked for, if one was had.
        why: Why none was had.
        narrowing: `narrowing_share` in its domain, where it is measured.
        judged: Whether anything judges completions there.
    """

    verdict: Verdict | None = None
    why: str = NO_DRAW
    narrowing: Measurement | None = None
    judged: bool = False


def advance(
    rule: Rule, cell: Cell, measurement: Measurement, evidence: Evidence | None = None
) -> tuple[Cell, AlarmEvent | None]:
    """The cell after one more measurement of its series, and the event when its state changed in a way worth telling.

    The first value is the baseline. Compared with itself it has not changed, so it only breaks fixed limits.

    Raises:
        SignatureMismatch: The value was measured differently from those before it.

    >>> rule = Rule("low", metric="vendi", rule="below", level=2.0, for_=1)
    >>> cell, event = advance(rule, Cell(), Measurement(step=0, domain="all", metric="vendi", value=1.5))
    >>> cell.state, event.message.split(" (")[0]
    ('firing', 'vendi over all domains is 1.5, below the limit of 2')
    """
    cell, broken = _screened(rule, cell, measurement)
    if broken is None:
        return cell, None
    if broken:
        return _broken(rule, cell, measurement, evidence or Evidence())
    return _clear(rule, cell, measurement)


def asks(rule: Rule, cell: Cell, measurement: Measurement) -> bool:
    """Whether this measurement makes the cell ask for a confirmation. Nothing moves."""
    cell, broken = _screened(rule, cell, measurement)
    return bool(broken) and asks_now(rule, cell)


def _screened(rule: Rule, cell: Cell, measurement: Measurement) -> tuple[Cell, bool | None]:
    """The cell with its baseline, and whether the rule is broken; None when the measurement does not count."""
    missing = math.isnan(measurement.value)
    cell = replace(cell, step=measurement.step)
    if missing and rule.rule != "absent":
        return replace(cell, reason=measurement.reason or "no value"), None
    if not missing:
        cell = _anchor(cell, measurement)
    why = unusable(rule, cell.baseline)
    if why is not None:
        return replace(cell, state="unknown", reason=why), None
    cell = replace(cell, reason=None, wait=max(0, cell.wait - 1))
    return cell, breached(rule, measurement.value, cell.baseline)


def _anchor(cell: Cell, measurement: Measurement) -> Cell:
    if cell.baseline_step < 0:
        value, step = float(measurement.value), measurement.step
        return replace(cell, baseline=value, baseline_step=step, signature=measurement.signature)
    if cell.signature != measurement.signature:
        raise SignatureMismatch(
            f"{measurement.key} was measured as {cell.signature!r}, and at step {measurement.step} as "
            f"{measurement.signature!r}: an alarm cannot compare the two. Start a new run, or measure as before."
        )
    return cell


def _broken(rule: Rule, cell: Cell, measurement: Measurement, evidence: Evidence) -> tuple[Cell, AlarmEvent | None]:
    asked = asks_now(rule, cell)
    before, verdict = cell.state, evidence.verdict if asked else None
    first = cell.since if before == "pending" else measurement.step
    cell = replace(cell, breaches=cell.breaches + 1, clears=0)
    why, state = "", before
    if before == "firing":
        return cell, None
    if not rule.confirms or cell.breaches < rule.hold:
        state = "firing" if cell.breaches >= rule.hold else "pending"
    elif verdict is not None:
        cell, state = _judged(cell, verdict)
    else:
        state = before if before == "unknown" and cell.judged and cell.breaches > 1 else "pending"
        why = waiting(cell.judged, cell.wait) if cell.wait else evidence.why
        cell = replace(cell, reason=why)
    if state == before:
        return cell, None
    cell = replace(cell, state=state, since=measurement.step, owed="" if state == "firing" else cell.owed)
    text = breach(
        rule, measurement, cell.baseline, since=cell.baseline_step, held=cell.breaches, verdict=verdict, why=why
    )
    evidence = replace(evidence, verdict=verdict)
    return cell, _event(rule, cell, measurement, state, text, evidence=evidence, first=first)


def asks_now(rule: Rule, cell: Cell) -> bool:
    """Whether a cell whose rule is broken once more asks for a confirmation."""
    return rule.confirms and cell.state != "firing" and cell.breaches + 1 >= rule.hold and not cell.wait


def _judged(cell: Cell, verdict: Verdict) -> tuple[Cell, State]:
    """The cell after a confirmation: it fires, or it waits."""
    if verdict.outcome == "confirmed":
        return replace(cell, wait=0, waited=0, judged=judged(verdict)), "firing"
    wait = next_wait(cell.waited)
    cell = replace(cell, wait=wait, waited=wait, judged=judged(verdict), reason=judged(verdict))
    return cell, "unknown" if verdict.outcome == "unknown" else "pending"


def _clear(rule: Rule, cell: Cell, measurement: Measurement) -> tuple[Cell, AlarmEvent | None]:
    fired, owed, told = cell.state == "firing", cell.owed, cell.state != "unknown" or cell.breaches > 0
    cell = replace(cell, breaches=0, clears=cell.clears + 1 if fired else 0, owed="")
    if (cell.state == "inactive" and not owed) or (fired and cell.clears < rule.clear_for):
        return cell, None
    cell = replace(cell, state="inactive", since=measurement.step, clears=0)
    if not (told or owed):
        return cell, None
    text = cleared(rule, measurement, cell.baseline, since=cell.baseline_step, fired=fired, back=bool(owed))
    return cell, _event(rule, cell, measurement, "resolved" if fired else owed or "inactive", text)


def taken_back(cell: Cell) -> Cell:
    """The cell once the weights it has judged are gone. It is judged afresh.

    The event that ends what was told comes with the first evaluation that finds the rule kept.
    """
    if cell.state not in ("pending", "firing"):
        return cell
    owed = "resolved" if cell.state == "firing" or cell.owed == "resolved" else "inactive"
    return replace(cell, state="inactive", breaches=0, clears=0, owed=owed)


def _event(
    rule: Rule,
    cell: Cell,
    measurement: Measurement,
    state: str,
    message: str,
    *,
    evidence: Evidence | None = None,
    first: int = -1,
) -> AlarmEvent:
    sure = rule.confirms and state in ("firing", "resolved")
    told: Mapping[str, Any] = {}
    if state == "firing" and evidence is not None:
        verdict, share, quality = evidence.verdict, evidence.narrowing, evidence.judged
        told = details(rule, since=first, verdict=verdict, share=share, judged=quality, n=measurement.n)
    return AlarmEvent(
        step=measurement.step,
        alarm=rule.name,
        domain=measurement.domain,
        metric=rule.metric,
        state=state,
        severity=rule.severity,
        value=float(measurement.value),
        baseline=math.nan if rule.allowed is None else cell.baseline,
        evidence="confirm" if sure else "screen",
        actions=rule.actions if state == "firing" else (),
        message=message,
        details=told,
    )


class Alarms:
    """Every cell of a set of rules, moved on one evaluation at a time.

    While a critical alarm fires, other alarms on the same series (domain and metric) are inhibited: their cells go on
    as ever, but that they became pending or firing is not told and asks for no action. What is still so when the
    critical alarm resolves is told then. A change that was not told ends untold too. Silences do the same to their
    cells until they end; a silenced cell asks for no confirmation and inhibits nothing.

    Args:
        rules: See `load_rules` and `load_ruleset`. Names must differ.

    >>> alarms = Alarms([Rule("narrow", metric="vendi", rule="drop", by="20%", for_=1)])
    >>> for step, value in enumerate([4.0, 3.9, 2.0]):
    ...     events = alarms.observe(step, [Measurement(step=step, domain="poems", metric="vendi", value=value)])
    >>> alarms.states, events[0].state
    ({'narrow/poems': 'firing'}, 'firing')
    """

    def __init__(self, rules: Iterable[Rule] | RuleSet) -> None:
        self.rules = tuple(rules)
        self.silences = rules.silences if isinstance(rules, RuleSet) else ()
        self.functions: dict[str, Reaction] = {}
        for i, rule in enumerate(self.rules):
            if not isinstance(rule, Rule):
                raise ConfigError(f"Not a Rule: {rule!r}. Read rules with load_rules(...).")
            if any(rule.name == other.name for other in self.rules[:i]):
                raise ConfigError(f"Two alarms are called {rule.name!r}. Give each a name of its own.")
            for name, function in rule.functions.items():
                if self.functions.setdefault(name, function) is not function:
                    raise ConfigError(f"Two functions in `then` are called {name!r}. Rename one of them.")
        self._domains: tuple[str, ...] = ()
        self._cells: dict[str, Cell] = {}
        self._untold: dict[str, tuple[AlarmEvent, str]] = {}  # with what held it back

    @property
    def cells(self) -> dict[str, Cell]:
        """Every cell, keyed ``name/domain``. Without a domain, a rule has cells once measurements name the domains."""
        return {key: self._cells.get(key, Cell()) for key, _, _ in self._order(self._domains)}

    @property
    def states(self) -> dict[str, State]:
        """The state of every cell, keyed ``name/domain``."""
        return {key: cell.state for key, cell in self.cells.items()}

    def asks(self, step: int, measurements: Sequence[Measurement]) -> list[Ask]:
        """The cells that these measurements make ask for a confirmation. Nothing moves.

        Raises:
            SignatureMismatch: A series was measured differently from before.
        """
        found = _by_series(step, measurements)
        return [
            Ask(key, rule, domain, step)
            for key, rule, domain in self._order(self._known(measurements))
            if rule.confirms
            and (domain, rule.metric) in found
            and self._silenced(rule, domain, step) is None
            and asks(rule, self._cells.get(key, Cell()), found[domain, rule.metric])
        ]

    def observe(
        self, step: int, measurements: Sequence[Measurement], verdicts: Iterable[Verdict] = ()
    ) -> list[AlarmEvent]:
        """Move every cell on by one evaluation.

        Args:
            step: Of the evaluation.
            measurements: All of its measurements. A series that is not among them counts as missing.
            verdicts: Answers to what `asks` returned for them. One to another question is ignored.

        Returns:
            What changed, in the order of the rules and then of the domains as they were first seen.

        Raises:
            SignatureMismatch: A series was measured differently from before. No cell has moved then.
            ValueError: The measurements are not those of one evaluation. No cell has moved then.
        """
        found, answers = _by_series(step, measurements), {(v.key, v.tested): v for v in verdicts}
        domains = self._known(measurements)
        order = list(self._order(domains))
        cells, events = dict(self._cells), dict[str, AlarmEvent | None]()
        quiet: dict[str, str] = {}
        with_quality = {m.domain for m in measurements if "quality:" in m.signature and not math.isnan(m.value)}
        for key, rule, domain in order:
            nothing = Measurement(step, domain, rule.metric, math.nan, reason=f"no {rule.metric} was measured")
            now = found.get((domain, rule.metric), nothing)
            silence = self._silenced(rule, domain, step)
            verdict = answers.get((key, rule.claim)) if silence is None else None
            evidence = Evidence(verdict, silence or NO_DRAW, found.get((domain, NARROWING)), domain in with_quality)
            cells[key], events[key] = advance(rule, cells.get(key, Cell()), now, evidence)
            if silence is not None:
                quiet[key] = "by a silence"
        self._domains, self._cells = domains, cells
        loud = [row for row in order if row[0] not in quiet]
        taken = {(rule.metric, domain) for key, rule, domain in loud if _is_critical(rule, cells[key])}
        inhibited = {key for key, r, domain in order if (r.metric, domain) in taken and r.severity != "critical"}
        return list(self._tell(step, events, {**dict.fromkeys(inhibited, "by a critical alarm"), **quiet}))

    def take_back(self) -> None:
        """The weights were taken back to an earlier step: alarms that are pending or firing are judged afresh."""
        self._cells = {key: taken_back(cell) for key, cell in self._cells.items()}

    def fold(self, evaluation: Evaluation) -> list[AlarmEvent]:
        """Move every cell on by one recorded evaluation, as it was moved when that was recorded."""
        if evaluation.restored is not None:
            self.take_back()
        return self.observe(evaluation.step, evaluation.measurements, evaluation.verdicts)

    def _known(self, measurements: Sequence[Measurement]) -> tuple[str, ...]:
        """Every domain seen so far, these measurements included."""
        return tuple(dict.fromkeys([*self._domains, *(m.domain for m in measurements if m.domain != OVERALL)]))

    def _silenced(self, rule: Rule, domain: str, step: int) -> str | None:
        """That this cell is silenced, in words; None when it is not."""
        ends = [silence.until for silence in self.silences if silence.covers(rule.name, domain, step)]
        return f"silenced until step {max(ends)}" if ends else None

    def _order(self, domains: tuple[str, ...]) -> Iterator[tuple[str, Rule, str]]:
        for rule in self.rules:
            for domain in rule.cells(domains):
                yield f"{rule.name}/{domain}", rule, domain

    def _tell(
        self, step: int, events: Mapping[str, AlarmEvent | None], inhibited: Mapping[str, str]
    ) -> Iterator[AlarmEvent]:
        """The events that are not inhibited, and those held back that no longer are."""
        for key, event in events.items():
            held, by = self._untold.pop(key, (None, ""))
            if event is not None and event.state in ("resolved", "inactive"):
                if held is None:
                    yield event
            elif key in inhibited:
                if (kept := event or held) is not None:
                    self._untold[key] = (kept, inhibited[key])
            elif event is not None:
                yield event
            elif held is not None:
                told = f"{held.message} This was held back from step {held.step} {by}."
                yield replace(held, step=step, message=told)


def _is_critical(rule: Rule, cell: Cell) -> bool:
    return rule.severity == "critical" and cell.state == "firing"


def _by_series(step: int, measurements: Sequence[Measurement]) -> dict[tuple[str, str], Measurement]:
    found: dict[tuple[str, str], Measurement] = {}
    for m in measurements:
        if m.step != step:
            raise ValueError(f"{m.key} was measured at step {m.step}, but this is the evaluation of step {step}")
        if (m.domain, m.metric) in found:
            raise ValueError(f"{m.key} was measured twice at step {step}")
        found[m.domain, m.metric] = m
    return found
