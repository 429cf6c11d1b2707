"""Completions side by side: the baseline and now, for the prompts that narrowed most."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from dataclasses import dataclass

from divmon.errors import HistoryError
from divmon.history import History
from divmon.metrics.structure import classify
from divmon.records import Measurement, SampleBatch
from divmon.report.text import short, visible

RANKED_BY = ("tfidf_distance", "semantic_distance", "unique_fraction")  # all per prompt, all falling with diversity
PROMPTS = 3  # a domain
SHOWN = 8  # different completions on each side
CHARACTERS = 600
LINES = 20


@dataclass(frozen=True)
class Group:
    """Equal completions of one prompt.

    Attributes:
        text: The first characters of it.
        left_out: Characters that are not shown.
        count: How many completions are equal to it.
        labels: Its structural formats.
    """

    text: str
    left_out: int
    count: int
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """The completions of one prompt at one step."""

    step: int
    total: int
    different: int
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Example:
    """One prompt at the baseline and now."""

    prompt: str
    metric: str
    before: float
    after: float
    sides: tuple[Side, Side]


@dataclass(frozen=True)
class Examples:
    """The prompts of a domain that narrowed most, or why there are none."""

    found: tuple[Example, ...] = ()
    reason: str | None = None
    own_formats: bool = False


def examples(history: History, domain: str) -> Examples:
    """The prompts of `domain` whose completions became most alike."""
    row = _ranking(history, domain)
    if len(row) < 2:
        return Examples(reason="Fewer than two evaluations have a distance prompt by prompt to compare.")
    first = row[0]
    try:
        before = history.batch(first.step)
        last, after = _newest(history, row[1:])
    except HistoryError as error:
        return Examples(reason=short(str(error), 300))
    at, then = before.rows(domain), after.rows(domain)
    if not len(at) == len(then) == len(first.values) == len(last.values):
        return Examples(reason="The recorded completions do not belong to the recorded values.")
    falls = [a - b if not math.isnan(a - b) else math.inf for a, b in zip(last.values, first.values, strict=True)]
    order = sorted(range(len(falls)), key=falls.__getitem__)[:PROMPTS]
    found = tuple(
        Example(
            prompt=_cut(before.probes[at[i]].text)[0],
            metric=first.metric,
            before=first.values[i],
            after=last.values[i],
            sides=(_side(before, int(at[i])), _side(after, int(then[i]))),
        )
        for i in order
    )
    return Examples(found, own_formats=_own_formats(history))


def _ranking(history: History, domain: str) -> list[Measurement]:
    for metric in RANKED_BY:
        row = [m for e in history.evaluations for m in e.measurements if (m.metric, m.domain) == (metric, domain)]
        known = [m for m in row if m.values and not math.isnan(m.value)]
        if known:
            return known
    return []


def _newest(history: History, row: list[Measurement]) -> tuple[Measurement, SampleBatch]:
    """The newest measurement whose completions were recorded."""
    for m in reversed(row[1:]):
        with contextlib.suppress(HistoryError):
            return m, history.batch(m.step)
    return row[0], history.batch(row[0].step)


def _own_formats(history: History) -> bool:
    rows = (m.signature.split("|") for e in history.evaluations[:1] for m in e.measurements)
    return any(part.startswith("formats:") and part != "formats:builtin" for row in rows for part in row)


def _cut(text: str) -> tuple[str, int]:
    """The beginning of `text`, made visible, and how many characters were left out."""
    kept = "\n".join(text[:CHARACTERS].split("\n")[:LINES])
    return visible(kept), len(text) - len(kept)


def _side(batch: SampleBatch, row: int) -> Side:
    counts = Counter(text.strip() for text in batch.texts[row])
    groups = tuple(Group(*_cut(text), count, classify(text)[:3]) for text, count in counts.most_common(SHOWN))
    return Side(batch.step, counts.total(), len(counts), groups)
