"""The engine on a test's bench: alarms as in a run, with confirmations whose answers are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from divmon.alarms import Alarms, RuleSet
from divmon.alarms.lifecycle import Ask
from divmon.alarms.spending import Journal, cell_shares
from divmon.records import OVERALL, Measurement, Outcome, Verdict

OUTCOMES: tuple[str, ...] = get_args(Outcome)


@dataclass(frozen=True)
class Given:
    """The answer to a confirmation that a cell asks for at `step`.

    Attributes:
        alarm: Name of the rule.
        domain: Of the cell.
        step: When.
        p: To be held against the level of the cell; NaN when the outcome is said.
        outcome: What it came to, whatever the level.
        line: In the file.
    """

    alarm: str
    domain: str
    step: int
    p: float = math.nan
    outcome: Outcome | None = None
    line: int = 0

    @property
    def cell(self) -> str:
        """``alarm/domain``."""
        return f"{self.alarm}/{self.domain}"


class Bench:
    """Alarms that get their confirmations from a list. One that is asked for and not given is had later, or never.

    Args:
        rules: With their budget.
        domains: Of the series.
        given: The answers.

    >>> from divmon.alarms import Rule
    >>> rules = RuleSet((Rule("fall", metric="vendi", rule="drop", by="20%", severity="critical"),))
    >>> bench = Bench(rules, ["x"], [Given("fall", "x", 2, p=0.001)])
    >>> for step, value in enumerate([4.0, 2.0, 2.0]):
    ...     print(bench.observe(step, [Measurement(step, "x", "vendi", value)]))
    {'fall/x': 'inactive'}
    {'fall/x': 'pending'}
    {'fall/x': 'firing'}
    """

    def __init__(self, rules: RuleSet, domains: Sequence[str], given: Sequence[Given] = ()) -> None:
        self.alarms = Alarms(rules)
        self.unasked = list(given)
        self._shares = cell_shares(rules, [domain for domain in domains if domain != OVERALL], rules.alpha)
        self._most = rules.confirmations
        self._journal = Journal(None)

    def observe(self, step: int, measurements: Sequence[Measurement]) -> dict[str, str]:
        """The state of every cell after one more evaluation."""
        verdicts = [v for ask in self.alarms.asks(step, measurements) if (v := self._answer(ask)) is not None]
        self.alarms.observe(step, measurements, verdicts)
        return dict(self.alarms.states)

    def _answer(self, ask: Ask) -> Verdict | None:
        found = next((g for g in self.unasked if (g.cell, g.step) == (ask.key, ask.step)), None)
        if found is None:
            return None
        self.unasked.remove(found)
        if len(self._journal.entries) >= self._most:
            return self._verdict(ask, "unknown", reason="out of confirmations")
        paid = self._journal.spend(ask.key, step=ask.step, share=self._shares[ask.key])
        outcome = found.outcome or ("confirmed" if found.p <= paid.level else "refuted")
        return self._verdict(ask, outcome, attempt=paid.attempt, level=paid.level, p=found.p)

    def _verdict(self, ask: Ask, outcome: Outcome, reason: str | None = None, **numbers: float) -> Verdict:
        if outcome == "unknown":
            reason = reason or "the test says so"
        return Verdict(ask.step, ask.rule.name, ask.domain, ask.rule.claim, outcome, reason, **numbers)  # type: ignore[arg-type]
