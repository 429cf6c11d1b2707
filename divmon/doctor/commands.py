"""``divmon doctor``: what it does with its options, and prints."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from divmon.doctor.environment import Finding, examine
from divmon.doctor.runs import Examined, examine_run
from divmon.doctor.setups import SETUPS, markdown, told
from divmon.errors import ConfigError
from divmon.plain import to_json
from divmon.schedule import Forecast, Pace, in_plan, in_words


def doctor(args: argparse.Namespace) -> int:
    """See `divmon.doctor.options`."""
    if args.setups or args.markdown:
        print(json.dumps(to_json(SETUPS), indent=2) if args.json else markdown() if args.markdown else told())
        return 0
    if args.run_folder is not None:
        if args.model or args.settings:
            raise ConfigError("A recorded run is examined by itself: leave out --model and --settings.")
        return _run(args)
    for name, value in (("--steps", args.steps), ("--step-seconds", args.step_seconds)):
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be above 0, not {value:g}.")
    found, facts = examine(), dict[str, Any]()
    lines = [str(finding) for finding in found]
    if args.settings is not None or args.model is not None:
        more, facts = _planned(args)
        lines += more
    if args.json:
        print(json.dumps(to_json({"environment": found, **facts}), indent=2))
    else:
        print("\n".join(lines))
    foretold = facts.get("forecast")
    return 1 if foretold is not None and not foretold.holds else _status(found)


def _status(found: Sequence[Finding]) -> int:
    return 1 if any(finding.level == "problem" for finding in found) else 0


def _planned(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """What the settings come to, with costs measured on the model where one is given."""
    from divmon.config import plan
    from divmon.doctor.costs import foretell, load, measure_costs, pace_of, plain_overhead
    from divmon.settings import EVALUATIONS, Settings

    settings = Settings.load(args.settings) if args.settings is not None else Settings.make({"budget": "2%"})
    chosen = plan(settings)
    count = "32 of the trainer's own" if chosen.probes is None else str(len(chosen.probes))
    rules = len(chosen.rules) + len(chosen.score_rules)
    lines = [f"settings {count} prompts x {settings.k}, {len(chosen.metrics)} metrics, {rules} alarms"]
    facts: dict[str, Any] = {"probes": count, "k": settings.k, "alarms": rules}
    steps = args.steps or 1000
    pace = pace_of(settings, steps)
    if settings.scores:
        lines.append(f"schedule {in_plan(pace)}")
    if args.model is None:
        lines.append("costs    not measured: add --model PATH")
        return lines, facts
    costs = measure_costs(*load(args.model), chosen)
    facts["costs"] = costs
    lines.append(
        f"costs    {costs.parameters:.3g}M parameters, {costs.completions} completions, {costs.tokens} tokens: "
        f"a sampling takes {costs.sample:.3g} s, a score {costs.score:.3g} s ({costs.sample / costs.score:.1f} times "
        f"less), {costs.clock} time"
    )
    if args.step_seconds is None:
        lines.append("overhead unknown: add --step-seconds S (and --steps N)")
        return lines, facts
    if settings.scores:
        pace, told = foretell(costs, chosen, steps=steps, step_seconds=args.step_seconds)
        facts["forecast"] = told
        lines += [_verdict(pace, told, steps)]
    else:
        every = settings.every or max(1, -(-steps // EVALUATIONS))
        share = plain_overhead(costs, steps=steps, every=every, step_seconds=args.step_seconds)
        facts["overhead"] = share
        lines.append(f"overhead {100 * share:.2g} % of {steps} steps: a sampling every {every}; budget='2%' limits it")
    return lines, facts


def _verdict(pace: Pace, told: Forecast, steps: int) -> str:
    return f"{'overhead' if told.holds else 'PROBLEM '} {in_words(pace, told)}, over {steps} steps"


def _run(args: argparse.Namespace) -> int:
    found = examine_run(args.run_folder)
    if args.json:
        print(json.dumps(to_json({**to_json(found), "kept": found.kept}), indent=2))
    else:
        print("\n".join(_told(found)))
    return 0 if found.well else 1


def _told(run: Examined) -> Iterator[str]:
    yield f"run      {run.path}, up to step {run.steps}"
    yield f"planned  {run.planned}"
    parts = [f"{run.samplings} samplings (the baseline among them)"]
    parts += [f"{run.scores} scores"] if run.scores else []
    parts += [f"{run.rollouts} batches of rollouts"] if run.rollouts else []
    yield f"done     {', '.join(parts)}"
    if run.why:
        words = {"tenth": "in every tenth of the run", "moved": "the policy moved", "every": "as planned"}
        words |= {"gap": "too long since the last", "alarm": "an alarm on scores", "stale": "scores say too little"}
        yield f"because  {', '.join(f'{words.get(why, why)}: {n}' for why, n in run.why.items())}"
    if not math.isnan(run.used):
        limit = "" if run.budget is None else f", of {100 * run.budget:g} % allowed"
        yield f"cost     {100 * run.used:.2g} % of process time{limit}; the baseline took {run.baseline:.3g} s besides"
        yield f"         a score {run.score_cost:.3g} s, a sampling with its measuring {run.sample_cost:.3g} s"
    if not math.isnan(run.sample_seconds):
        yield f"         {run.sample_seconds:.3g} s of sampling, {run.measure_seconds:.3g} s of measuring (wall time)"
    if run.over:
        yield f"note     {run.over} scores went beyond the budget: every tenth of a run has one, whatever it costs"
    if run.waited:
        yield f"note     a sampling was wanted at the end ({run.waited}) and could not be paid"
    for part, n in run.failures.items():
        yield f"PROBLEM  {n} failure{'' if n == 1 else 's'} of the {part}; the log of the run says why"
    if not run.failures:
        yield "ok       nothing failed"
    reasons: dict[str, list[str]] = {}
    for key, why in run.missing.items():
        reasons.setdefault(why, []).append(key)
    for why, keys in reasons.items():
        shown = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
        yield f"missing  {shown}: {why}"
