"""A comparison as aligned text, at most 110 columns wide and safe to print."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from divmon.comparing.results import Comparison, Domain, Estimate, Section
from divmon.measuring.results import aligned, columns
from divmon.sinks.base import escape_controls

WIDTH = 110
_NAME = 40  # columns of a name in a sentence
_LEAST = (18, 8)  # columns that the names of a metric and of a group are given at least
_TITLES = ["metric", "run", "value", "ratio", "difference", "95% interval", "interval by"]
_WAYS = {"paired t": "paired t, {} pairs", "Welch t": "Welch t, {} runs", "bootstrap over prompts": "{} prompts"}


def table(found: Comparison) -> str:
    """The comparison as lines for people: equal quality first, the last common step second."""
    lines = [*wrapped(f"Compared at equal quality, never at equal step. Reference: {_said(found.reference)}.")]
    for name, folders in found.groups.items():
        runs = f"{len(folders)} runs: " if len(folders) > 1 else ""
        lines += wrapped(f"{_said(name)}: {runs}{', '.join(map(escape_controls, folders))}", "  ")
    for domain in found.domains:
        lines += _domain(found, domain)
    lines.append("")
    for line in (*_keys(found), *(f"note: {note}" for note in found.notes)):
        lines += wrapped(line)
    return "\n".join(lines)


def _said(name: str) -> str:
    """A name in a sentence."""
    return _fit(escape_controls(name), _NAME)


def wrapped(text: str, indent: str = "") -> list[str]:
    """`text` in lines of at most `WIDTH` columns of a terminal, on which some characters take two."""
    lines = [indent]
    for word in escape_controls(text).split():
        gap = " " if lines[-1].strip() else ""
        if gap and columns(lines[-1] + gap + word) > WIDTH:
            lines.append(indent + "  ")
            gap = ""
        lines[-1] += gap
        for char in word:
            if columns(lines[-1] + char) > WIDTH:
                lines.append(indent + "  ")
            lines[-1] += char
    return lines


def _domain(found: Comparison, domain: Domain) -> Iterator[str]:
    yield ""
    names = list(found.groups)
    if domain.matched is not None:
        chosen = "as asked for" if found.at is not None else "the highest that all reach"
        where = _steps(names, domain.matched)
        yield from wrapped(f"{_said(domain.domain)}: at {_said(domain.quality)} {domain.level:.4g}, {chosen} ({where})")
        yield from _rows(domain.matched)
        second = "second, "
    else:
        yield from wrapped(f"{_said(domain.domain)}: NOT at equal quality. {domain.reason}")
        second = "only "
    if domain.last is None:
        yield from wrapped(
            f"{_said(domain.domain)}: no step was evaluated in every run, so there is no last common step"
        )
        return
    differs = "where quality differs" if domain.quality else "where quality may differ: more may only mean slower"
    yield ""
    yield from wrapped(
        f"{_said(domain.domain)}: {second}at the last common step {domain.last.steps[0][0]:.0f}, {differs}"
    )
    yield from _rows(domain.last)


def _steps(names: Sequence[str], section: Section) -> str:
    told = []
    for name, steps in zip(names, section.steps, strict=True):
        low, high = f"{min(steps):.0f}", f"{max(steps):.0f}"
        told.append(f"{_said(name)} at step {low}" if low == high else f"{_said(name)} at steps {low} to {high}")
    return ", ".join(told)


def _rows(section: Section) -> Iterator[str]:
    rows = [list(_TITLES)]
    for row in section.rows:
        for i, estimate in enumerate(row.estimates):
            rows.append([row.metric if i == 0 else "", estimate.group, *_cells(estimate)])
    if len(rows) > 1:
        yield from aligned(_narrowed([[escape_controls(cell) for cell in row] for row in rows]))
    reasons: dict[str, list[str]] = {}
    for row in section.rows:
        for estimate in row.estimates:
            if estimate.reason:
                reasons.setdefault(estimate.reason, []).append(f"{_said(row.metric)} of {_said(estimate.group)}")
    for reason, where in reasons.items():
        yield from wrapped(f"{', '.join(where)}: {reason}", "  ")


def _cells(estimate: Estimate) -> list[str]:
    ends = f"{estimate.low:+.3g} to {estimate.high:+.3g}" if math.isfinite(estimate.low) else ""
    way = _WAYS[estimate.interval].format(" and ".join(map(str, estimate.n))) if estimate.interval else ""
    return [
        _number(estimate.value, ".4g") or "-",
        _number(estimate.ratio, ".3g"),
        _number(estimate.difference, "+.3g"),
        ends,
        way,
    ]


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def _narrowed(rows: list[list[str]]) -> list[list[str]]:
    """The same cells, names cut so that a line has at most `WIDTH` columns."""
    widths = [max(columns(row[i]) for row in rows) for i in range(len(_TITLES))]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH and (widths[0] > _LEAST[0] or widths[1] > _LEAST[1]):
        widths[0 if widths[0] - _LEAST[0] >= widths[1] - _LEAST[1] else 1] -= 1
    return [[_fit(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]


def _fit(text: str, width: int) -> str:
    """The beginning and the end of `text` in `width` columns of a terminal: names of runs differ at their ends.

    >>> _fit("plain-with-a-long-name-12", 12)
    'plain-…me-12'
    """
    if columns(text) <= width:
        return text
    head, tail = text, ""
    while columns(tail) < (width - 1) // 2:
        head, tail = head[:-1], head[-1] + tail
    tail = tail if columns(tail) <= (width - 1) // 2 else tail[1:]
    while columns(head) + 1 + columns(tail) > width:
        head = head[:-1]
    return f"{head}…{tail}"


def _keys(found: Comparison) -> Iterator[str]:
    """What the columns mean, as far as they are used."""
    sections = [s for d in found.domains for s in (d.matched, d.last) if s is not None]
    used = {estimate.interval for s in sections for row in s.rows for estimate in row.estimates}
    mean = "Values are means over the runs of a group; ratio (of these means)" if _several(found) else "Ratio"
    yield f"{mean} and difference are to {_said(found.reference)}. Intervals: 95 %, of the difference."
    if "paired t" in used:
        yield "paired t: over pairs of runs, in the order given."
    if "bootstrap over prompts" in used:
        yield "prompts: percentile bootstrap over prompts, the same in both runs. It says nothing about other seeds."
    if any(d.matched is not None for d in found.domains):
        yield "Between evaluations all is taken to go in a straight line, and the point of comparison as known."


def _several(found: Comparison) -> bool:
    return any(len(folders) > 1 for folders in found.groups.values())
