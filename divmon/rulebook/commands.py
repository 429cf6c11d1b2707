"""``divmon rules check|test|plan`` and ``divmon replay``: what they do with their options, and print."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from divmon.alarms import RuleSet, default_rules, load_ruleset
from divmon.alarms.planning import CellPlan, RulePlan, plan_rules
from divmon.alarms.simulation import POWER
from divmon.plain import to_json
from divmon.rulebook.checking import check_rules
from divmon.rulebook.options import DEFAULTS
from divmon.rulebook.pilot import pilots, read_pilot
from divmon.rulebook.replaying import Replayed, replay_path
from divmon.rulebook.testing import run_tests
from divmon.rulebook.vain import Setting
from divmon.settings import EVALUATIONS


def _rules(name: str) -> RuleSet:
    return RuleSet.of(default_rules()) if name == DEFAULTS else load_ruleset(Path(name))


def check(args: argparse.Namespace) -> int:
    """``divmon rules check``; see `divmon.rulebook.options`."""
    names = ("domains", "metrics", "have", "probes", "k", "alpha", "evaluations", "every")
    setting = Setting(**{name: getattr(args, name) for name in names})
    source: Any = RuleSet.of(default_rules()) if args.file == DEFAULTS else Path(args.file)
    problems, rules = check_rules(source, setting)
    for problem in problems:
        place = f"{args.file}:{problem.line}: " if problem.line else f"{args.file}: "
        print(place + str(replace(problem, line=0)))
    counts = {level: sum(p.level == level for p in problems) for level in ("error", "warning")}
    confirmed = sum(rule.confirms for rule in rules)
    spent = f", {confirmed} confirmed within alpha {rules.alpha:g}" if confirmed else ""
    found = ", ".join(f"{n} {level}{'' if n == 1 else 's'}" for level, n in counts.items())
    print(f"{args.file}: {len(rules)} alarm{'' if len(rules) == 1 else 's'}{spent}; {found}.")
    if counts["error"]:
        return 2
    return 1 if args.strict and counts["warning"] else 0


def test(args: argparse.Namespace) -> int:
    """``divmon rules test``; see `divmon.rulebook.options`."""
    wrong = 0
    for file in args.files:
        for outcome in run_tests(file):
            wrong += len(outcome.mismatches)
            for mismatch in outcome.mismatches:
                line = f", line {mismatch.line}" if mismatch.line else ""
                print(f"{file}{line}: {mismatch}")
            if not outcome.mismatches:
                print(f"{file}: test {outcome.test!r}: {outcome.compared} states as expected")
    return 1 if wrong else 0


def plan(args: argparse.Namespace) -> int:
    """``divmon rules plan``; see `divmon.rulebook.options`."""
    rules = _rules(args.rules)
    if args.alpha is not None:
        rules = replace(rules, alpha=args.alpha)
    batch, seconds = read_pilot(args.pilot)
    evaluations = EVALUATIONS if args.evaluations is None else args.evaluations
    found = plan_rules(rules, pilots(batch, (rule.metric for rule in rules)), evaluations=evaluations)
    if args.json:
        print(json.dumps(to_json(found)))
        return 0
    print("\n".join(plan_lines(found, rules, seconds=seconds)))
    print("The pilot was measured with the built-in formats, by rewards or gold answers, and without an encoder.")
    return 0


def plan_lines(plan: RulePlan, rules: RuleSet, *, seconds: float = math.nan) -> list[str]:
    """A plan as text.

    Args:
        plan: See `plan_rules`.
        rules: Of the plan.
        seconds: To draw one completion; NaN when nobody knows.
    """
    head = ("alarm", "domain", "prompts", "value", "noise", "false alarms a run", f"found in {POWER:.0%}", "delay")
    rows = [head, *(_row(cell) for cell in plan.cells)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{cell.alarm}/{cell.domain}: {cell.reason}" for cell in plan.cells if cell.reason]
    confirmed = any(rule.confirms for rule in rules)
    drawn = f"{plan.watching:,} completions for {plan.evaluations + 1} evaluations at K = {plan.k}"
    if confirmed:
        drawn += (
            f"; for confirmations {plan.bank:,} once and about {plan.confirming:,.0f} more in a run without any change "
            f"(at most {rules.confirmations})"
        )
        share = f"{100 * plan.alpha:.3g} %"
        lines.append(f"Confirmed alarms together: at most {share} of runs without a change have a false one.")
        asked = sum(cell.confirmations for cell in plan.cells)
        if asked > rules.confirmations:
            lines.append(
                f"Without any change the cells would ask for about {asked:.0f} confirmations, and a run has "
                f"{rules.confirmations}: none may be left when it matters. Raise `confirmations:`, or `by`."
            )
    lines.append(f"{drawn}{_time(plan.watching + plan.bank + plan.confirming, seconds)}.")
    lines.append(
        "noise: of one prompt's value, as a share of the mean. found: the smallest lasting change found in that share "
        "of simulated runs, and the evaluations it takes. Screens promise nothing: their false alarms are simulated."
    )
    return lines


def _row(cell: CellPlan) -> tuple[str, ...]:
    false = "" if math.isnan(cell.false_alarm) else f"{cell.false_alarm:.1%}"
    if cell.evidence == "confirm" and false:
        false += f" (at most {cell.alpha:.2g})"
    found = "" if math.isnan(cell.false_alarm) else "none" if math.isnan(cell.smallest) else f"{cell.smallest:.1%}"
    delay = "" if math.isnan(cell.delay) else f"{cell.delay:g}"
    value, noise = (("" if math.isnan(x) else text) for x, text in _numbers(cell))
    return cell.alarm, cell.domain, str(cell.prompts or ""), value, noise, false, found, delay


def _numbers(cell: CellPlan) -> Sequence[tuple[float, str]]:
    return (cell.value, f"{cell.value:.3g}"), (cell.noise, f"{cell.noise:.0%}")


def _time(completions: float, seconds: float) -> str:
    if math.isnan(seconds):
        return ""
    return f"; about {completions * seconds / 60:,.1f} minutes, at {seconds:.2g} s a completion as in the pilot"


def replay(args: argparse.Namespace) -> int:
    """``divmon replay``; see `divmon.rulebook.options`."""
    found = replay_path(args.path, rules=None if args.rules is None else _rules(args.rules))
    if args.json:
        print(json.dumps(_as_json(found)))
        return 0
    for event in found.events:
        print(f"step {event.step}  {event.severity} {event.state}  {event.alarm}: {event.message}")
    width = max((len(key) for key in found.cells), default=0)
    steps = f"{found.evaluations} evaluation{'' if found.evaluations == 1 else 's'}"
    print(f"{steps}, {len(found.events)} events. In the end:")
    for key, cell in found.cells.items():
        state, why = found.state(key), f" ({cell.reason})" if cell.reason and cell.state == "unknown" else ""
        since = f" since step {cell.since}" if cell.since >= 0 and cell.state != "inactive" else ""
        print(f"  {key:<{width}}  {state}{since}{why}")
    for remark in found.remarks:
        print(remark)
    if found.same is not None:
        print("The recorded events came back bit for bit." if found.same else _DIFFERENT)
    return 0


_DIFFERENT = (
    "These are NOT the recorded events: the run was recorded by another version, resumed with other alarms, or edited."
)


def _as_json(found: Replayed) -> dict[str, Any]:
    cells = {key: {**to_json(cell), "state": found.state(key)} for key, cell in found.cells.items()}
    return {
        "events": [to_json(event) for event in found.events],
        "cells": cells,
        "rules": [rule.to_mapping() for rule in found.rules],
        "evaluations": found.evaluations,
        "same_as_recorded": found.same,
        "remarks": list(found.remarks),
    }
