"""What a set of rules can promise before training starts, from one batch at step 0.

Every cell is simulated on its own noise (see `divmon.alarms.simulation`): without any change, for its false alarms and
what its confirmations cost, and with lasting changes of any size, for the smallest that it finds in 80 % of runs. Cells
are simulated one by one, each with all confirmations of a run: where many cells compete for them, the run does worse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from divmon.alarms.rules import Rule, unusable
from divmon.alarms.ruleset import RuleSet
from divmon.alarms.simulation import BANK, POWER, Pilot, Runs
from divmon.alarms.spending import CONFIRMATIONS, cell_shares
from divmon.errors import ConfigError
from divmon.records import OVERALL

RUNS = 400


@dataclass(frozen=True)
class CellPlan:
    """What one rule can do in one domain.

    Attributes:
        alarm: Name of the rule.
        domain: Of the cell.
        metric: What it watches.
        evidence: "screen" or "confirm".
        prompts: Prompts with a value.
        value: At the pilot.
        noise: Standard deviation of a prompt's value at K, as a share of the mean value.
        alpha: The cell's share of alpha; NaN for a screen, which promises nothing.
        false_alarm: Share of simulated runs without any change in which it fires.
        smallest: The smallest lasting change (a share of the value) found in 80 % of runs; NaN when none is.
        delay: Median evaluations until it is found, at that size.
        confirmations: Expected in a run without any change.
        completions: Drawn for this cell's confirmations in such a run, the bank left out.
        reason: Why nothing can be said.
    """

    alarm: str
    domain: str
    metric: str
    evidence: str
    prompts: int = 0
    value: float = math.nan
    noise: float = math.nan
    alpha: float = math.nan
    false_alarm: float = math.nan
    smallest: float = math.nan
    delay: float = math.nan
    confirmations: float = 0.0
    completions: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class RulePlan:
    """What a set of rules can do in a run.

    Attributes:
        cells: In the order of the rules.
        alpha: For the whole run.
        evaluations: After the baseline.
        k: Completions a prompt.
        watching: Completions drawn by the evaluations, the baseline among them.
        bank: Completions of the confirmation bank; 0 where no rule asks for one.
    """

    cells: tuple[CellPlan, ...]
    alpha: float
    evaluations: int
    k: int
    watching: int = 0
    bank: int = 0

    @property
    def confirming(self) -> float:
        """Completions that confirmations are expected to draw in a run without any change."""
        return sum(cell.completions for cell in self.cells)


def plan_rules(
    rules: Iterable[Rule] | RuleSet,
    pilots: Iterable[Pilot],
    *,
    evaluations: int = 20,
    runs: int = RUNS,
    seed: int = 0,
) -> RulePlan:
    """Simulate every cell of `rules` on the noise of `pilots`.

    Args:
        rules: See `load_ruleset`; alpha and the number of confirmations come with them.
        pilots: The series the rules watch, measured at step 0. Series without a pilot are not planned.
        evaluations: After the baseline.
        runs: How many to simulate for each cell.
        seed: Of the simulation.

    >>> rng = np.random.default_rng(0)
    >>> noise = rng.normal(0, 0.3, (32, 8))
    >>> pilot = Pilot("vendi", "poems", np.full(32, 3.0), noise - noise.mean(1, keepdims=True), 32)
    >>> plan = plan_rules([Rule("fall", metric="vendi", rule="drop", by="20%")], [pilot])
    >>> plan.cells[0].false_alarm, 0.18 < plan.cells[0].smallest < 0.22
    (0.0, True)
    """
    if evaluations < 1:
        raise ConfigError(f"A plan needs at least one evaluation after the baseline, not {evaluations}.")
    book = RuleSet.of(rules)
    series = {(pilot.metric, pilot.domain): pilot for pilot in pilots}
    domains = list(dict.fromkeys(pilot.domain for pilot in series.values() if pilot.domain != OVERALL))
    shares = cell_shares(book, domains, book.alpha)
    cells: list[CellPlan] = []
    for rule in book:
        for domain in rule.cells(domains):
            share = shares.get(f"{rule.name}/{domain}", math.nan)
            rng = np.random.default_rng((seed, len(cells)))
            pilot = series.get((rule.metric, domain))
            cells.append(_plan_cell(rule, domain, pilot, share, (evaluations, runs, book), rng))
    k = max((pilot.influence.shape[1] for pilot in series.values()), default=0)
    prompts = sum(max(p.prompts for p in series.values() if p.domain == domain) for domain in domains)
    confirm_k = book.confirm_k or BANK * k
    bank = confirm_k * prompts if book.confirms else 0
    return RulePlan(tuple(cells), book.alpha, evaluations, k, (evaluations + 1) * k * prompts, bank)


def _plan_cell(
    rule: Rule,
    domain: str,
    pilot: Pilot | None,
    share: float,
    sizes: tuple[int, int, RuleSet],
    rng: np.random.Generator,
) -> CellPlan:
    evaluations, times, book = sizes
    evidence = str(rule.evidence)
    cell = CellPlan(rule.name, domain, rule.metric, evidence, alpha=share)
    if pilot is None or not len(pilot.values):
        return replace(cell, reason=f"the pilot has no {rule.metric} in {domain}")
    value = float(pilot.values.mean())
    noise = float(np.sqrt((pilot.noise**2).mean())) / abs(value) if value else math.nan
    cell = replace(cell, prompts=pilot.prompts, value=value, noise=noise)
    if rule.rule == "absent":
        return replace(cell, reason="nothing to simulate: it watches for missing values")
    if (why := unusable(rule, value)) is not None:
        return replace(cell, reason=why)
    runs = Runs(rule, pilot, share, (evaluations, times, book.confirmations), rng, confirm_k=book.confirm_k)
    healthy = runs.watch(0.0, start=1)
    attempts = float(healthy.confirmations.mean())
    drawn = attempts * pilot.prompts * (book.confirm_k or BANK * pilot.influence.shape[1])
    cell = replace(cell, false_alarm=healthy.found(1), confirmations=attempts, completions=drawn)
    if rule.confirms and pilot.pooled:
        return replace(cell, reason="power is simulated for means over prompts only")
    size, delay = runs.smallest()
    return replace(cell, smallest=size, delay=delay)


def brief(plan: RulePlan) -> list[str]:
    """One line for each cell that is confirmed: what it will find, for people who have just started a run."""
    lines = []
    for cell in plan.cells:
        if cell.evidence != "confirm":
            continue
        finds = f"finds nothing of any size in {POWER:.0%} of runs"
        if not math.isnan(cell.smallest):
            late = "at once" if cell.delay < 1 else f"{cell.delay:g} evaluations late"
            size = f"{100 * cell.smallest:.2g}" if cell.smallest < 0.1 else f"{100 * cell.smallest:.0f}"
            finds = f"finds a lasting change of {size} % in {POWER:.0%} of runs, {late}"
        lines.append(f"{cell.alarm} in {cell.domain}: {cell.reason or finds}")
    return lines


def power(
    rule: Rule, pilot: Pilot, change: float, *, share: float, evaluations: int = 100, start: int = 30, seed: int = 0
) -> float:
    """The predicted share of runs in which `rule` finds a lasting `change` that begins at evaluation `start`.

    Args:
        rule: One rule.
        pilot: The series it watches.
        change: A share of the mean value; negative for a fall.
        share: The cell's share of alpha.
        evaluations: After the baseline.
        start: From 1.
        seed: Of the simulation.
    """
    runs = Runs(rule, pilot, share, (evaluations, RUNS, CONFIRMATIONS), np.random.default_rng(seed))
    return runs.watch(change, start=start).found(start)
