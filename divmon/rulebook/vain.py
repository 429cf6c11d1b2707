"""Rules that would watch in vain: what can be said beforehand from a metric's bounds and the size of the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from divmon.alarms.evidence import MIN_PAIRS, smallest_p
from divmon.alarms.rules import Rule
from divmon.alarms.ruleset import RuleSet
from divmon.alarms.spending import CONFIRMATIONS, level
from divmon.config import misspelt_exception
from divmon.errors import suggest
from divmon.metrics import METRICS
from divmon.metrics.base import MISSING, Metric, Need
from divmon.records import OVERALL

Level = Literal["error", "warning", "note"]
FROM_BASELINE = ("format_shift", "tail_shift", "tail_kl")  # distances from the baseline: 0 at the baseline itself
CONFIGURED: tuple[Need, ...] = ("quality", "difficulty", "encoder", "nli", "equivalence")  # what a user has to give
_COLLAPSE = {("higher", "rise"): "fall", ("lower", "drop"): "rise"}


@dataclass(frozen=True)
class Problem:
    """Something about a rule file.

    Attributes:
        level: error, warning or note.
        text: What it is, and what to write instead.
        alarm: The rule's name ("" when it has none, or when it is not about one rule).
        line: In the file; 0 when nobody knows.
    """

    level: Level
    text: str
    alarm: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.level}: " + (f"alarm {self.alarm!r}: " if self.alarm else "") + self.text


class Remark(NamedTuple):
    """A problem of a rule, with the setting it is about instead of a line."""

    key: str
    text: str
    level: Level = "warning"


@dataclass(frozen=True)
class Setting:
    """What is known about the run the rules are for; None where nobody knows.

    Attributes:
        metrics: Names of what is measured, the user's own among them.
        domains: Of the probes.
        have: What is configured besides completions: quality, difficulty, encoder, nli, equivalence.
        probes: Prompts in each domain.
        k: Completions a prompt.
        alpha: The chance of a false confirmed alarm over the whole run; None for that of the file.
        evaluations: After the baseline.
        every: Steps between evaluations.
    """

    metrics: Sequence[str] | None = None
    domains: Sequence[str] | None = None
    have: Sequence[str] | None = None
    probes: int | None = None
    k: int | None = None
    alpha: float | None = None
    evaluations: int | None = None
    every: int = 1


def alone(rule: Rule, setting: Setting) -> Iterator[Remark]:
    """Why one rule could never fire, or stays unknown.

    >>> rule = Rule("low", metric="effective_formats", rule="below", level=1.0)
    >>> [remark.text for remark in alone(rule, Setting())]
    ['effective_formats is never below 1, so this can never fire.']
    """
    if setting.evaluations is not None and rule.hold > setting.evaluations:
        n = setting.evaluations
        yield Remark(
            "for", f"`for: {rule.hold}` is longer than the {n} evaluations after the baseline; it never fires."
        )
    yield from _exceptions(rule, setting)
    metric = METRICS.get(rule.metric)
    if metric is None:
        return
    yield from _without_values(metric, setting)
    yield from _limits(rule, metric)
    if rule.allowed is not None:
        yield from _sizes(rule, metric)


def _exceptions(rule: Rule, setting: Setting) -> Iterator[Remark]:
    if setting.domains is None:
        return
    if not rule.cells(setting.domains):
        yield Remark("except", "every domain is an exception: it has no cell, and can never fire.")
    for name in rule.except_:
        if hint := misspelt_exception(name, setting.domains):
            yield Remark("except", f"no probe has the domain {name!r}.{hint}")


def _without_values(metric: Metric, setting: Setting) -> Iterator[Remark]:
    if setting.k is not None and setting.k < metric.min_k:
        text = f"{metric.name} needs {metric.min_k} completions a prompt, not {setting.k}: it never has a value."
        yield Remark("metric", text)
    for need in sorted(metric.needs):
        if setting.have is not None and need in CONFIGURED and need not in setting.have:
            yield Remark("metric", f"{metric.name} stays unknown without {need} ({MISSING[need]}).")


def _limits(rule: Rule, metric: Metric) -> Iterator[Remark]:
    (low, high), name = metric.bounds, metric.name
    if rule.rule == "below" and rule.level is not None:
        if rule.level <= low:
            yield Remark("level", f"{name} is never below {low:g}, so this can never fire.")
        elif rule.level > high:
            yield Remark("level", f"{name} is never above {high:g}, so this always fires.")
    if rule.rule == "above" and rule.level is not None:
        if rule.level >= high:
            yield Remark("level", f"{name} is never above {high:g}, so this can never fire.")
        elif rule.level < low:
            yield Remark("level", f"{name} is never below {low:g}, so this always fires.")
    if rule.low is not None and rule.high is not None:
        if rule.low <= low and rule.high >= high:
            yield Remark("low", f"{name} is always between {low:g} and {high:g}, so this can never fire.")
        elif rule.low > high or rule.high < low:
            yield Remark("low", f"{name} is between {low:g} and {high:g}, so this always fires.")


def _sizes(rule: Rule, metric: Metric) -> Iterator[Remark]:
    """Changes that cannot be as large, or have nothing to be a share of."""
    (low, high), name, by = metric.bounds, metric.name, rule.allowed
    assert by is not None
    if name in FROM_BASELINE and (by.relative or rule.rule == "drop"):
        text = f"{name} is a distance from the baseline, 0 there: write `rule: above` with `level`, or an absolute `by`"
        yield Remark("by", f"{text} with `rule: rise`. This can never fire.")
        return
    if by.relative and low < 0:
        text = f"{name} can be 0 or negative, and no share of such a baseline can be taken; write `by` in its own unit."
        yield Remark("by", text)
    if by.relative and low == 0 and rule.confirms and metric.family in ("quality", "tails", "coverage"):
        text = f"{name} is often 0 at the baseline, where a share means nothing; write `by` in its own unit."
        yield Remark("by", text, "note")
    if not by.relative and by.amount >= high - low:
        yield Remark("by", f"{name} lies between {low:g} and {high:g}: no change exceeds {by}, so it can never fire.")
    if by.relative and low > 0 and math.isfinite(high):
        impossible = {"drop": high * (1 - by.amount) <= low, "rise": low * (1 + by.amount) >= high}
        if impossible.get(rule.rule, all(impossible.values())):
            yield Remark("by", f"{name} lies between {low:g} and {high:g}: it cannot change by {by}.")
    if (other := _COLLAPSE.get((metric.direction, rule.rule))) is not None:
        yield Remark("rule", f"a collapse makes {name} {other}; this watches for the opposite.", "note")


def beside(rule: Rule, before: Sequence[tuple[Rule, int]]) -> Iterator[Remark]:
    """Why one rule says nothing that those `before` it (with their lines) do not say."""
    for other, line in before:
        where = f" (line {line})" if line else ""
        if other.metric != rule.metric or not (other.domain == rule.domain or None in (other.domain, rule.domain)):
            continue
        if other.domain != rule.domain and OVERALL in (other.domain, rule.domain):
            continue  # without a domain a rule has a cell for each probe domain, and none over all
        if rule.domain in other.except_ or other.domain in rule.except_:
            continue
        if (other.rule, other.severity) == (rule.rule, rule.severity):
            text = f"{other.name!r}{where} watches the same series in the same way; keep one, or change a severity."
            yield Remark("name", text)


def too_few(rule: Rule, shares: Mapping[str, float], setting: Setting) -> Iterator[Remark]:
    """Why a rule could never, or not often, be confirmed with this many prompts: the exact numbers.

    Args:
        rule: One rule.
        shares: Of alpha, by cell (see `cell_shares`).
        setting: What is known about the run.
    """
    if not rule.confirms or setting.probes is None:
        return
    n = setting.probes * (len(setting.domains) if rule.domain == OVERALL and setting.domains else 1)
    if n < MIN_PAIRS:
        yield Remark("evidence", f"{n} prompts are fewer than the {MIN_PAIRS} a confirmation needs: it stays unknown.")
        return
    share = next((share for key, share in shares.items() if key.startswith(f"{rule.name}/")), None)
    if share is None:  # it has no cell, which `alone` says
        return
    first, best = level(share, 1), smallest_p(n, sides=2 if rule.rule == "outside" else 1)
    if best > first:
        cells = f"{len(shares)} cell{'s' if len(shares) > 1 else ''}"
        yield Remark(
            "evidence",
            f"{n} prompts give p = {best:.3g} at best, and the first confirmation is held to {first:.3g} (alpha over "
            f"{cells}): it can never be confirmed. Use {n + math.ceil(math.log2(best / first))} prompts or more.",
        )
    elif best > level(share, CONFIRMATIONS):
        last = int(math.sqrt(first / best))
        text = f"{n} prompts give p = {best:.3g} at best: only its first {last} confirmations could succeed."
        yield Remark("evidence", text, "note")


def shared(rules: RuleSet, shares: Mapping[str, float], setting: Setting) -> Iterator[Remark]:
    """What is wrong with what the rules share: the budget, and silences (their number is the key)."""
    if 0 < rules.confirmations < len(shares):
        text = f"{rules.confirmations} confirmations in a run are shared by {len(shares)} cells: some may get none."
        yield Remark("confirmations", text)
    if shares and rules.confirmations == 0:
        yield Remark("confirmations", "`confirmations: 0` lets no alarm with evidence: confirm ever fire.")
    for i, silence in enumerate(rules.silences):
        if silence.until <= setting.every:
            text = f"the silence of {silence.alarm!r} is over before anything could fire: `until` is {silence.until}, "
            yield Remark(f"silences.{i}", f"{text}and the first evaluation after the baseline is at {setting.every}.")
        elif setting.evaluations is not None and silence.until > setting.every * setting.evaluations > setting.every:
            text = f"the silence of {silence.alarm!r} lasts longer than the run: it can never fire."
            yield Remark(f"silences.{i}", text)
        if setting.domains is not None and silence.domain not in (None, OVERALL, *setting.domains):
            text = f"the silence of {silence.alarm!r}: unknown domain {silence.domain!r}."
            yield Remark(f"silences.{i}", text + suggest(str(silence.domain), setting.domains), "error")
