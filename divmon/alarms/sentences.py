"""What an alarm says to people: one plain sentence with the numbers in it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from divmon.alarms.checks import Amount
from divmon.alarms.rules import Rule
from divmon.records import OVERALL, Measurement, Verdict

UNCONFIRMED = "(unconfirmed)"  # a screen against one noisy baseline: no error rate is promised

NO_ENCODER = "No encoder looked: this is the surface of the texts, not their meaning."
NO_DRAW = "screened, unconfirmed: nothing was drawn to confirm it"
_HELD = re.compile(r", \d+ evaluations? in a row(?=$|[.;,])")
_BENIGN, _NARROWING = "benign convergence", "narrowing among good outputs"
_SURFACE = re.compile(r"tfidf_distance|self_bleu|unique_fraction|distinct_\w+|opening_dominance|compression_ratio")
_HALF = 0.5  # of the fall: from there on, a fall is one among good outputs


def _where(measurement: Measurement) -> str:
    place = "over all domains" if measurement.domain == OVERALL else f"in {measurement.domain}"
    return f"{measurement.metric} {place}"


def _evaluations(n: int) -> str:
    return f"{n} evaluation" if n == 1 else f"{n} evaluations in a row"


def _percent(share: float, limit: float) -> str:
    """`share` in whole percent, or with as many decimals as it takes to be seen to exceed `limit`."""
    texts = [f"{100 * share:.{digits}f}" for digits in range(4)]
    return next((text for text in texts if float(text) > round(100 * limit, 6)), texts[-1]) + " %"


def _change(allowed: Amount, measurement: Measurement, baseline: float, since: int, *, both_ways: bool) -> str:
    value = measurement.value
    size = f"by {abs(value - baseline):.3g}"
    if allowed.relative:
        size = _percent(abs(value - baseline) / baseline, allowed.amount)
    text = (
        f"{_where(measurement)} {'fell' if value < baseline else 'rose'} {size} "
        f"({baseline:.3g} -> {value:.3g}; allowed: {'±' if both_ways else ''}{allowed})"
    )
    return f"{text} since the baseline at step {since}" if since else text


def _limit(rule: Rule, measurement: Measurement) -> str:
    if rule.level is not None:
        return f"{_where(measurement)} is {measurement.value:.4g}, {rule.rule} the limit of {rule.level:.4g}"
    return f"{_where(measurement)} is {measurement.value:.4g}, outside the band {rule.low:.4g} to {rule.high:.4g}"


def breach(
    rule: Rule,
    measurement: Measurement,
    baseline: float,
    *,
    since: int,
    held: int,
    verdict: Verdict | None = None,
    why: str = "",
) -> str:
    """The sentence for a rule that has been broken for `held` evaluations, by a change from `baseline` at step `since`.

    `verdict`: the confirmation it asked for; `why`: the reason why a rule that asks has no answer.

    >>> rule = Rule("formats", metric="effective_formats", rule="drop", by="30%")
    >>> now = Measurement(step=40, domain="creative", metric="effective_formats", value=1.79)
    >>> breach(rule, now, 3.15, since=0, held=2)  # doctest: +NORMALIZE_WHITESPACE
    'effective_formats in creative fell 43 % (3.15 -> 1.79; allowed: 30 %), 2 evaluations in a row (unconfirmed).'
    """
    if rule.rule == "absent":
        text = f"{_where(measurement)} has had no value for {_evaluations(held)}"
        text += f" ({measurement.reason})" if measurement.reason else ""
    else:
        by, both_ways = rule.allowed, rule.rule == "outside"
        said = _change(by, measurement, baseline, since, both_ways=both_ways) if by else _limit(rule, measurement)
        text = f"{said}, {_evaluations(held)}" if rule.hold > 1 else said
        if verdict is not None and verdict.outcome == "confirmed":
            return f"{text}, {confirmed(verdict)}."
        text += f" {UNCONFIRMED}"
    if held >= rule.hold and (verdict is not None or why):
        return f"{text}; {why if verdict is None else judged(verdict)}."
    return f"{text}; it fires after {rule.hold}." if held < rule.hold else f"{text}."


def cleared(
    rule: Rule, measurement: Measurement, baseline: float, *, since: int, fired: bool, back: bool = False
) -> str:
    """The sentence for an alarm that is over, or (not `fired`) was over before it fired, or since a rollback."""
    now = "has values again" if rule.rule == "absent" else "is back within its limit"
    number = f"now {measurement.value:.3g}"
    if rule.allowed is not None:
        number += f"; baseline: {baseline:.3g}" + (f" at step {since}" if since else "")
    when = _evaluations(rule.clear_for) if fired else "before the alarm fired"
    when = "since the weights were taken back" if back else when
    return f"{_where(measurement)} {now} ({number}), {when}."


def brief(message: str, *, held: bool = True) -> str:
    """`message` without the mark of a screen and the full stop; without `held`, without how long it has been so either.

    >>> text = "vendi in math is 1.5, below the limit of 2, 3 evaluations in a row (unconfirmed)."
    >>> brief(text), brief(text, held=False)
    ('vendi in math is 1.5, below the limit of 2, 3 evaluations in a row', 'vendi in math is 1.5, below the limit of 2')
    """
    text = message.replace(f" {UNCONFIRMED}", "").removesuffix(".")
    return text if held else _HELD.sub("", text)


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 0.001 else f"{p:.0e}"


def confirmed(verdict: Verdict) -> str:
    """That fresh draws confirmed it, in a few words: ``confirmed (p = 0.0012)``."""
    return f"confirmed (p = {_p(verdict.p)})"


def judged(verdict: Verdict) -> str:
    """What a confirmation found.

    >>> judged(Verdict(40, "narrow", "x", "vendi drop beyond 10%", "refuted", p=0.21, level=0.0076))
    'screened at step 40, not confirmed: p = 0.21 > 0.0076'
    """
    if verdict.outcome == "confirmed":
        return f"{confirmed(verdict)} at step {verdict.step}"
    if verdict.outcome == "unknown":
        return f"screened at step {verdict.step}, but unknown: {verdict.reason}"
    if verdict.p <= verdict.level:
        found = f"by fresh draws the change is {verdict.estimate:.3g}, within what is tolerated"
        return f"screened at step {verdict.step}, not confirmed: {found}"
    return f"screened at step {verdict.step}, not confirmed: p = {_p(verdict.p)} > {_p(verdict.level)}"


def waiting(verdict_text: str, evaluations: int) -> str:
    """Why a screened cell does not ask again yet."""
    return f"{verdict_text}; it asks again after {evaluations} more evaluation{'s' if evaluations != 1 else ''}"


def promise(rule: Rule, verdict: Verdict | None) -> str:
    """What is promised about a firing alarm, in words."""
    if verdict is None or verdict.outcome != "confirmed":
        return "None: a screen against one noisy baseline, at every evaluation."
    alpha = f"{100 * (verdict.spent + verdict.left):.3g} %"
    held = "had training changed nothing"
    if verdict.details.get("scope") != "pooled":
        held += f" (with many prompts: nothing by more than {rule.margin})"
    return f"At most {alpha} of runs would confirm any alarm at any evaluation, {held}."


def convergence(share: Measurement | None, *, judged: bool = False) -> str:
    """Whether a fall is one among good outputs too, from `narrowing_share` where it was measured.

    `judged`: whether anything judges completions.

    >>> convergence(Measurement(4, "x", "narrowing_share", 0.1, 0.0, 0.2))
    'benign convergence'
    >>> convergence(None)
    'unknown: pass quality='
    """
    if share is None:
        return "unknown: add narrowing_share to metrics=" if judged else "unknown: pass quality="
    if math.isnan(share.value):
        return f"unknown: {share.reason or 'narrowing_share has no value'}"
    if share.low < _HALF <= share.high:
        return f"unknown: too few prompts to tell {_BENIGN} from {_NARROWING}"
    return _NARROWING if share.value >= _HALF else _BENIGN


def recommended(rule: Rule, since: int) -> str:
    """What to do about it."""
    if rule.rule == "absent":
        return "See the reason, and divmon/health, for what stopped the measurement."
    if rule.rule in ("below", "above") or rule.low is not None:
        return "Read completions of this step beside the baseline's; then lower the learning rate, or remove the limit."
    text = f"Read the examples. If the change is not wanted, go back to a checkpoint before step {since}"
    return f"{text}, and lower the learning rate or raise the KL, entropy or data mix that keeps completions apart."


def details(
    rule: Rule, *, since: int, verdict: Verdict | None, share: Measurement | None, judged: bool, n: int
) -> Mapping[str, Any]:
    """What a firing alarm carries besides its sentence, in plain JSON types (null for NaN)."""
    found: dict[str, Any] = {"promise": promise(rule, verdict), "prompts": n}
    if rule.allowed is not None and rule.rule != "rise":
        found["convergence"] = convergence(share, judged=judged)
    if _SURFACE.fullmatch(rule.metric):
        found["notes"] = [NO_ENCODER]
    if verdict is not None:
        numbers = {name: getattr(verdict, name) for name in ("p", "level", "estimate", "low", "high", "spent", "left")}
        found |= {name: None if math.isnan(value) else value for name, value in numbers.items()}
        found |= {"prompts": verdict.n, "informative": verdict.informative, "completions": verdict.completions}
        found |= {"attempt": verdict.attempt, "exact": verdict.exact, "draws": verdict.draws, **verdict.details}
    return {**found, "recommended": recommended(rule, since)}


def evidence_lines(told: Mapping[str, Any]) -> list[str]:
    """What `details` says, in lines for people. Its examples hold text of a model: escape them.

    >>> evidence_lines({"promise": "None.", "p": 0.002, "level": 0.03, "estimate": 0.4, "low": 0.3, "high": 0.5,
    ...                 "prompts": 24, "completions": 32, "left": 0.02})[0]
    'Change by fresh draws: 0.4 (95 % interval 0.3 to 0.5); p = 0.002, held against 0.03; 0.02 of alpha left.'
    """
    lines = []
    if told.get("p") is not None:
        numbers = [f"{told['estimate']:.3g}" if told.get("estimate") is not None else "unknown"]
        if told.get("low") is not None:
            numbers.append(f"(95 % interval {told['low']:.3g} to {told['high']:.3g})")
        tested = f"p = {_p(told['p'])}, held against {_p(told['level'])}; {_p(told['left'])} of alpha left"
        lines.append(f"Change by fresh draws: {' '.join(numbers)}; {tested}.")
        lines.append(f"{told['prompts']} prompts, {told['completions']} completions of each on either side.")
    if told.get("promise"):
        lines.append(f"Promise: {told['promise']}")
    if told.get("convergence"):
        lines.append(f"Benign or not: {told['convergence']}.")
    lines += told.get("notes", ())
    for example in told.get("examples", ()):
        lines += ["", f"Prompt: {example['prompt']}"]
        lines += [f"  baseline: {text}" for text in example["baseline"]]
        lines += [f"  now: {text}" for text in example["now"]]
    if told.get("recommended"):
        lines += ["", str(told["recommended"])]
    return lines
