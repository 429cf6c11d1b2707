"""Which charts a domain gets, with what is written beside each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup

from divmon.history import History
from divmon.metrics import METRICS
from divmon.records import Measurement
from divmon.report.acted import acted
from divmon.report.dominance import sentence
from divmon.report.plots import PALETTE, Line, curve, levels, stacked
from divmon.report.tables import Change
from divmon.report.text import interval, meaning, named, number, placed, short

MAIN = (
    "tfidf_distance",
    "semantic_distance",
    "effective_formats",
    "format_dominance",
    "pass_at_1",
    "coverage",
    "token_entropy",
    "length",
    "human_gap",
    "hivemind_similarity",
    "source_models",
    "voice_spread",
)


@dataclass(frozen=True)
class Chart:
    """One chart and what stands beside it.

    Attributes:
        title: What is drawn.
        metric: Its name in tables, configuration and trackers.
        meaning: How to read it.
        svg: The drawing.
        changes: One for each run; None where it is not drawn.
        note: What a reader must be warned of.
    """

    title: str
    metric: str
    meaning: str
    svg: Markup
    changes: tuple[Change | None, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Shares:
    """Shares of formats over steps.

    Attributes:
        run: Which run it is.
        svg: The drawing.
        legend: Label, colour, share at the first and at the last step.
        note: When one format took over.
    """

    run: int
    svg: Markup
    legend: tuple[tuple[str, str, float, float], ...]
    note: str = ""


@dataclass(frozen=True)
class Tail:
    """Where solved completions lie on the scale of difficulty, at the baseline and now."""

    run: int
    svg: Markup
    solved: int
    baseline_solved: int
    tail_levels: tuple[str, ...]
    guessed: bool
    step: int


@dataclass(frozen=True)
class DomainCharts:
    """Everything drawn for a domain."""

    curves: tuple[Chart, ...] = ()
    shares: tuple[Shares, ...] = ()
    tails: tuple[Tail, ...] = ()


def domain_charts(
    runs: Sequence[History], found: Sequence[dict[str, Change]], domain: str, mixed: set[str]
) -> DomainCharts:
    """The charts of `domain`. Of series in `mixed`, measured differently in the second run, the first's are drawn."""
    alarmed = [e.metric for run in runs for e in run.events() if e.state == "firing" and e.domain == domain]
    order = [m for m in dict.fromkeys((*alarmed, *MAIN)) if any(f"{domain}/{m}" in row for row in found)]
    curves = tuple(_curve(runs, found, domain, metric, mixed) for metric in order)
    tails = [_tail(run, domain, i) for i, run in enumerate(runs)]
    return DomainCharts(curves, tuple(_all_shares(runs, domain)), tuple(t for t in tails if t))


def _fired(run: History, domain: str) -> list[tuple[str, int]]:
    return [(e.metric, e.step) for e in run.events() if e.state == "firing" and e.domain == domain]


def _curve(
    runs: Sequence[History], found: Sequence[dict[str, Change]], domain: str, metric: str, mixed: set[str]
) -> Chart:
    key = f"{domain}/{metric}"
    drawn = [key in row and (i == 0 or key not in mixed) for i, row in enumerate(found)]
    lines = [_line(run, domain, metric) if there else None for run, there in zip(runs, drawn, strict=True)]
    kept = tuple(row[key] if there else None for row, there in zip(found, drawn, strict=True))
    title = named(metric)
    said = [_spoken(change, line) for change, line in zip(kept, lines, strict=True) if change and line]
    alt = f"{title} {placed(domain)}: {'; second run: '.join(said)}"
    note = "The second run measured it differently, so its curve is left out." if key in mixed else ""
    known = METRICS.get(metric)
    bounds = known.bounds if known else (-math.inf, math.inf)
    svg = curve(lines, bounds=bounds, alt=alt)
    return Chart(title[0].upper() + title[1:], metric, meaning(metric), svg, kept, note)


def _line(run: History, domain: str, metric: str) -> Line:
    fired = _fired(run, domain)
    own = tuple(step for name, step in fired if name == metric)
    others = tuple(step for name, step in fired if name != metric and step not in own)
    return Line(run.series(metric, domain), own, others, acted(run))


def _spoken(c: Change, line: Line) -> str:
    ends = interval(c.last.low, c.last.high)
    return (
        f"{number(c.first.value)} at step {c.first.step}, {number(c.last.value)} at step {c.last.step}"
        + (f" with 95 % interval {ends}" if ends else "")
        + (f", alarm at step {', '.join(map(str, line.fired[:6]))}" if line.fired else "")
        + (f", acted on at step {', '.join(map(str, line.acted[:6]))}" if line.acted else "")
    )


def _share(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _details(run: History, domain: str, metric: str) -> list[tuple[int, Measurement]]:
    rows = (m for e in run.evaluations for m in e.measurements if (m.metric, m.domain) == (metric, domain))
    return [(m.step, m) for m in rows if isinstance(m.details.get("shares"), dict) and m.details["shares"]]


def _format_rows(run: History, domain: str) -> list[tuple[int, dict[str, float]]]:
    rows = _details(run, domain, "format_dominance")
    return [(step, {str(k): np.nan_to_num(_share(v)) for k, v in m.details["shares"].items()}) for step, m in rows]


def _all_shares(runs: Sequence[History], domain: str) -> list[Shares]:
    """One chart a run; a label has the same place and colour in all of them."""
    every = [_format_rows(run, domain) for run in runs]
    totals: dict[str, float] = {}
    for label, share in (pair for rows in every for _, row in rows for pair in row.items()):
        totals[label] = totals.get(label, 0.0) + share
    order = sorted(totals, key=lambda label: (-totals[label], label))
    kept = order if len(order) <= len(PALETTE) else order[: len(PALETTE) - 1]
    fired = [sorted({step for _, step in _fired(run, domain)}) for run in runs]
    drawn = [_shares(i, rows, kept, placed(domain), (fired[i], acted(runs[i]))) for i, rows in enumerate(every) if rows]
    return [replace(shares, note=sentence(runs[shares.run], domain)) for shares in drawn]


def _shares(
    i: int,
    rows: list[tuple[int, dict[str, float]]],
    kept: list[str],
    place: str,
    marked: tuple[Sequence[int], Sequence[int]],
) -> Shares:
    """`marked` are the steps at which alarms fired, and those at which something was done."""
    columns = [(short(label, 32), [row.get(label, 0.0) for _, row in rows]) for label in kept]
    rest = [max(0.0, sum(row.values()) - sum(c[j] for _, c in columns)) for j, (_, row) in enumerate(rows)]
    if len(kept) == len(PALETTE) - 1 and max(rest) > 0:
        columns.append(("others", rest))
    legend = tuple((label, colour, v[0], v[-1]) for (label, v), colour in zip(columns, PALETTE, strict=False))
    said = ", ".join(f"{label} {first:.0%} to {last:.0%}" for label, _, first, last in legend)
    alt = f"Shares of formats {place} from step {rows[0][0]} to {rows[-1][0]}, run {i + 1}: {said}"
    steps, values = [step for step, _ in rows], [v for _, v in columns]
    return Shares(i, stacked(steps, values, fired=marked[0], alt=alt, acted=marked[1]), legend)


def _tail(run: History, domain: str, i: int) -> Tail | None:
    rows = _details(run, domain, "tail_share") or _details(run, domain, "tail_shift")
    if not rows:
        return None
    step, m = rows[-1]
    now, before = m.details["shares"], m.details.get("baseline_shares") or {}
    names = [str(name) for name in now]
    pairs = [(_share(before.get(name)), _share(now[name])) for name in names]
    hard = [name for name in map(str, m.details.get("tail_levels") or ()) if name in names]
    said = "; ".join(f"level {short(name, 12)}: {b:.0%} to {a:.0%}" for name, (b, a) in zip(names, pairs, strict=True))
    alt = f"Shares of solved completions by difficulty {placed(domain)}, baseline to step {step}, run {i + 1}: {said}"
    svg = levels(names, [b for b, _ in pairs], [a for _, a in pairs], tail=len(hard), run=i, alt=alt)
    solved, earlier = int(m.details.get("solved") or 0), int(m.details.get("baseline_solved") or 0)
    guessed = m.details.get("levels_from") == "baseline pass rate"
    return Tail(i, svg, solved, earlier, tuple(hard), guessed, step)
