"""What a trace says in sentences, for the terminal and for the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from divmon.metrics import METRICS
from divmon.records import OVERALL
from divmon.report.text import joined, named, number, short
from divmon.sinks.base import DEFAULT_METRICS
from divmon.tracing.attribution import Blame
from divmon.tracing.results import Series, Trace
from divmon.uncertainty import MIN_PROMPTS

NAME = 40  # characters of a name in a sentence


def shown(found: Trace) -> list[str]:
    """The metrics that are shown first: the short list of curves, or all where few were named."""
    usual = [name for name in found.metrics if name in DEFAULT_METRICS or name not in METRICS]
    return usual or list(found.metrics)


def headline(found: Trace) -> Series | None:
    """The series that the answer is read from: the first with a direction."""
    series = (found.get(metric) for metric in found.metrics)
    return next((one for one in series if one is not None and one.blames), None)


def verdicts(found: Trace) -> Iterator[tuple[str, str]]:
    """For each branch, the answer in short, and what it rests on."""
    series = headline(found)
    if series is None:
        why = "the base failed" if found.base in found.failed else "no metric with a direction was measured"
        yield "No stage can be named", f"{why[0].upper()}{why[1:]}."
        return
    if found.checkpoints and len(found.failed) == len(found.checkpoints) - 1:
        yield "No stage can be named", "Only the base was measured: all other checkpoints failed."
        return
    for branch in series.blames:
        yield verdict(found, series, branch)


def verdict(found: Trace, series: Series, branch: Blame) -> tuple[str, str]:
    """The answer for one branch, and what it rests on."""
    way = " → ".join(short(name, NAME) for name in branch.branch)
    over = f" ({series.aggregator} over {series.tasks} {series.per}s)" if series.tasks > 1 else ""
    last = series.stage(branch.branch[-1])
    left = f"{named(series.metric)} of {short(last.name, NAME)} is {number(last.retained)} % of the base's{over}"
    if not branch.stage:
        return f"{way}: no stage clearly lost diversity", f"{left[0].upper()}{left[1:]}."
    stage = series.stage(branch.stage)
    ends = f" (95 % interval {number(-stage.change_high)} to {number(-stage.change_low)})"
    sure = f", and most in {branch.sure:.0%} of resampled prompt sets" if not math.isnan(branch.sure) else ""
    more = "lost" if _falls(series) else "added"
    told = (
        f"{left[0].upper()}{left[1:]}. {short(stage.name, NAME)} {more} {number(abs(stage.change))} percentage "
        f"points{ends if _falls(series) and not math.isnan(stage.change_low) else ''}, {branch.share:.0%} of what the "
        f"stages of this branch {more}{sure}."
    )
    return f"{way}: {short(stage.name, NAME)} lost most", told + kind(found, branch.stage)


def _falls(series: Series) -> bool:
    return series.metric not in METRICS or METRICS[series.metric].direction != "lower"


def kind(found: Trace, stage: str) -> str:
    """Whether a stage's loss is narrowing; empty where that was not measured."""
    split = found.split(stage, OVERALL) or (found.split(stage, found.domains[0]) if len(found.domains) == 1 else None)
    if split is None or math.isnan(split.narrowing) or split.n < MIN_PROMPTS:
        return ""
    ends = f" (95 % interval {split.low:.0%} to {split.high:.0%})" if not math.isnan(split.low) else ""
    return (
        f" Of its loss of {named(split.metric)}, {split.narrowing:.0%}{ends} is found among correct completions too: "
        f"narrowing; the rest is the loss of errors ({split.n} prompts)."
    )


def warnings(found: Trace) -> list[str]:
    """What a reader must know before the numbers: failures first."""
    told = [f"{seen.name} failed and is left out: {seen.failure}" for seen in found.checkpoints if seen.failure]
    told += [f"{seen.name}: {note}" for seen in found.checkpoints for note in seen.notes]
    return [*told, *found.notes]


def titles(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return joined([short(name, NAME) for name in names])
