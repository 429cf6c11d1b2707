"""A trace as aligned text, safe to print."""

from __future__ import annotations

import math
from collections.abc import Iterator

from divmon.comparing.table import wrapped
from divmon.measuring.results import aligned
from divmon.records import OVERALL
from divmon.sinks.base import escape_controls
from divmon.tracing.attribution import Stage
from divmon.tracing.results import Series, Split, Trace
from divmon.tracing.sentences import shown, verdicts, warnings
from divmon.uncertainty import MIN_PROMPTS

_NAME = 28
_TITLES = ["metric", "checkpoint", "since", "value", "% of base", "95% interval", "stage", "95% interval", "narrowing"]


def table(found: Trace) -> str:
    """The answer for each branch, what must be known, and the numbers that it rests on."""
    lines = []
    for short, long in verdicts(found):
        lines += [*wrapped(short), *wrapped(long, "  ")]
    lines += [line for note in warnings(found) for line in wrapped(f"note: {note}")]
    size = f"{found.prompts} prompts x {found.k} completions, {found.decoding}"
    lines += ["", *wrapped(f"{size}. Percentages: {found.aggregator}, per {found.per}.")]
    domains = found.domains
    rows = [row for metric in shown(found) for row in _rows(found, metric, OVERALL)]
    if rows:
        lines += list(aligned([_TITLES, *rows]))
    if len(domains) > 1 and found.series:
        lines += ["", "By domain, % of base:", *aligned(list(_by_domain(found)))]
    lines += ["", *wrapped("Intervals: 95 %, percentile bootstrap over prompts, the same in all checkpoints; they say "
                           "nothing about another training run. Narrowing: share of the stage's loss that correct "
                           "completions show too.")]  # fmt: skip
    return "\n".join(lines)


def _rows(found: Trace, metric: str, domain: str) -> Iterator[list[str]]:
    series = found.get(metric, domain)
    names = [stage.name for stage in series.stages] if series is not None else [s.name for s in found.checkpoints]
    for i, name in enumerate(names):
        cells = [metric if i == 0 else "", name]
        value = _number(mean_value(found, name, metric))
        if series is None:
            yield [_clean(cell) for cell in (*cells, "", value, "", "", "", "", "")]
        else:
            split = found.split(name, OVERALL) or found.split(name, found.domains[0])
            yield [_clean(cell) for cell in (*cells, *_cells(series.stage(name), value, metric, split))]


def mean_value(found: Trace, name: str, metric: str) -> float:
    """A checkpoint's number, the mean over the domains in which it and the base have one; NaN for a group."""
    pairs = [(found.value(found.base, metric, domain), found.value(name, metric, domain)) for domain in found.domains]
    known = [
        now for base, now in pairs if not math.isnan(now) and not (math.isnan(base) and found.values.get(found.base))
    ]
    return sum(known) / len(known) if known else math.nan


def _cells(stage: Stage, value: str, metric: str, split: Split | None) -> list[str]:
    narrowing = ""
    told = split is not None and split.metric == metric and split.n >= MIN_PROMPTS  # enough to tell
    if told and split is not None and stage.change < 0 and not math.isnan(split.narrowing):
        narrowing = f"{split.narrowing:.0%}"
    return [
        stage.since,
        value,
        _percent(stage.retained),
        _interval(stage.retained_low, stage.retained_high, ".1f"),
        _percent(stage.change, "+.1f"),
        _interval(stage.change_low, stage.change_high, "+.1f"),
        narrowing,
    ]


def _by_domain(found: Trace) -> Iterator[list[str]]:
    yield ["metric", "domain", *(_clean(s.name) for s in found.checkpoints if not s.failure)]
    for metric in shown(found):
        for domain in found.domains:
            series = found.get(metric, domain)
            if series is not None:
                yield [_clean(metric), _clean(domain), *_kept(series, found)]


def _kept(series: Series, found: Trace) -> list[str]:
    return [_percent(series.stage(seen.name).retained) or "-" for seen in found.checkpoints if not seen.failure]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _percent(value: float, form: str = ".1f") -> str:
    return "" if math.isnan(value) else format(value, form)


def _interval(low: float, high: float, form: str) -> str:
    return "" if math.isnan(low) else f"{low:{form}} to {high:{form}}"


def _clean(text: str) -> str:
    said = escape_controls(text)
    return said if len(said) <= _NAME else f"{said[: _NAME - 1]}…"
