"""What an alarm says to people: one plain sentence with the numbers in it."""

from __future__ import annotations

import re

from divmon.alarms.checks import Amount
from divmon.alarms.rules import Rule
from divmon.records import OVERALL, Measurement

UNCONFIRMED = "(unconfirmed)"  # a screen against one noisy baseline: no error rate is promised

_HELD = re.compile(r", \d+ evaluations? in a row(?=$|[.;])")


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


def breach(rule: Rule, measurement: Measurement, baseline: float, *, since: int, held: int) -> str:
    """The sentence for a rule that has been broken for `held` evaluations, by a change from `baseline` at step `since`.

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
        text += f" {UNCONFIRMED}"
    return f"{text}; it fires after {rule.hold}." if held < rule.hold else f"{text}."


def cleared(rule: Rule, measurement: Measurement, baseline: float, *, since: int, fired: bool) -> str:
    """The sentence for an alarm that is over, or (not `fired`) was over before it fired."""
    now = "has values again" if rule.rule == "absent" else "is back within its limit"
    number = f"now {measurement.value:.3g}"
    if rule.allowed is not None:
        number += f"; baseline: {baseline:.3g}" + (f" at step {since}" if since else "")
    when = _evaluations(rule.clear_for) if fired else "before the alarm fired"
    return f"{_where(measurement)} {now} ({number}), {when}."


def brief(message: str, *, held: bool = True) -> str:
    """`message` without the mark of a screen and the full stop; without `held`, without how long it has been so either.

    >>> text = "vendi in math is 1.5, below the limit of 2, 3 evaluations in a row (unconfirmed)."
    >>> brief(text), brief(text, held=False)
    ('vendi in math is 1.5, below the limit of 2, 3 evaluations in a row', 'vendi in math is 1.5, below the limit of 2')
    """
    text = message.replace(f" {UNCONFIRMED}", "").removesuffix(".")
    return text if held else _HELD.sub("", text)
