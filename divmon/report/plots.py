"""Charts as static SVG to be put into a page: they scale with it and take its colours, light or dark.

Colours are written as variables of the page (``var(--a)``). Text stays text, in the page's font, escaped by
matplotlib. There is no script in them, and they load nothing.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from divmon.history import Series
from divmon.report.text import short

SIZE = (4.4, 2.15)  # inches of 72 units: about as wide as a phone, so that text keeps its size
_LEVEL = 5  # names on an axis that stay level
MARKED = 40  # evaluations up to which every value gets a mark
# stand-ins while drawing, replaced by variables of the page afterwards
INK, MUTED, GRID, CARD, ALARM, ACTED = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b08"
RUNS = ("#0a0b06", "#0a0b07")
_NAMES = ("ink", "muted", "grid", "card", "alarm", "calm", "a", "b")
_VARIABLES = dict(zip((INK, MUTED, GRID, CARD, ALARM, ACTED, *RUNS), _NAMES, strict=True))
# Okabe and Ito (2008): told apart by all common forms of colour vision
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.usetex": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Line:
    """One run's curve of a metric.

    Attributes:
        series: What was measured.
        fired: Steps at which an alarm on this very metric fired.
        others: Steps at which other alarms of the domain fired.
        acted: Steps at which a lever was applied or the policy was taken back.
    """

    series: Series
    fired: tuple[int, ...] = ()
    others: tuple[int, ...] = ()
    acted: tuple[int, ...] = ()


def curve(lines: Sequence[Line | None], *, bounds: tuple[float, float], alt: str) -> Markup:
    """The curves of one metric, each with its 95 % interval; the alarms' steps as vertical lines.

    Args:
        lines: One for each run; None where that run has no comparable series.
        bounds: Of the metric. The axis starts at the lower one where it is finite, so that no change looks larger.
        alt: What the chart shows, for those who do not see it.
    """
    with matplotlib.style.context(["default", _STYLE]):
        figure, axes = _axes()
        for i, line in enumerate(lines):
            if line is not None:
                _draw(axes, line, i)
        for i, line in enumerate(lines):
            for step in line.others if line else ():
                axes.axvline(step, color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
            for step in line.fired if line else ():
                axes.axvline(step, color=ALARM, linewidth=1.6, linestyle="-" if i == 0 else "--")
                top = axes.get_xaxis_transform()
                axes.plot([step], [1.0], marker="v", markersize=9, color=ALARM, transform=top, clip_on=False)
            _mark_acted(axes, line.acted if line else ())
        _limits(axes, bounds)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel("training step")
        return _svg(figure, alt)


def _mark_acted(axes: Any, steps: Sequence[int]) -> None:
    """Standing on the axis, so that it is told from an alarm, which hangs from the top, also where both are."""
    for step in steps:
        look: dict[str, Any] = {"color": ACTED, "transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot([step], [0.0], marker="^", markersize=9, zorder=5, **look)


def _draw(axes: Any, line: Line, i: int) -> None:
    s, colour = line.series, RUNS[i % len(RUNS)]
    known = ~np.isnan(s.values)
    bars = known & ~np.isnan(s.low) & ~np.isnan(s.high)
    if bars.sum() == 1:
        at = bars.nonzero()[0]
        axes.vlines(s.steps[at], s.low[at], s.high[at], color=colour, linewidth=6, alpha=0.25)
    else:
        axes.fill_between(s.steps, s.low, s.high, where=bars, color=colour, alpha=0.17, linewidth=0)
    marks = ("o" if i == 0 else "s") if len(s.steps) <= MARKED or known.sum() == 1 else ""
    axes.plot(
        s.steps, s.values, color=colour, linewidth=2, linestyle="-" if i == 0 else (0, (5, 2)), marker=marks,
        markersize=4.5, markeredgecolor=CARD, markeredgewidth=0.8,
    )  # fmt: skip
    lost = s.steps[~known]
    if len(lost):
        axes.plot(lost, np.zeros(len(lost)), "x", color=colour, transform=axes.get_xaxis_transform(), clip_on=False)


def _limits(axes: Any, bounds: tuple[float, float]) -> None:
    top = bounds[1] if bounds[1] <= 1 else axes.get_ylim()[1]
    if math.isfinite(bounds[0]):
        axes.set_ylim(bounds[0], top if top > bounds[0] else bounds[0] + 1)
    axes.margins(x=0.03)


def stacked(
    steps: Sequence[int],
    shares: Sequence[Sequence[float]],
    *,
    fired: Sequence[int],
    alt: str,
    acted: Sequence[int] = (),
) -> Markup:
    """Shares over steps, stacked from the bottom in the order given, with the colours of `PALETTE`.

    Args:
        steps: S steps.
        shares: S shares for each label, no more labels than there are colours.
        fired: Steps at which alarms fired.
        alt: What the chart shows, for those who do not see it.
        acted: Steps at which a lever was applied or the policy was taken back.
    """
    with matplotlib.style.context(["default", _STYLE]):
        figure, axes = _axes()
        base = np.zeros(len(steps))
        for values, colour in zip(shares, PALETTE, strict=False):
            top = base + np.nan_to_num(np.array(values, dtype=float))
            look: dict[str, Any] = {"facecolor": colour, "edgecolor": CARD, "linewidth": 1}
            if len(steps) == 1:
                axes.bar([steps[0]], top - base, bottom=base, width=0.6, **look)
                axes.set_xlim(steps[0] - 1, steps[0] + 1)
            else:
                axes.fill_between(steps, base, top, **look)
            base = top
        for step in fired:
            axes.axvline(step, color=ALARM, linewidth=1.6)
            axes.plot(
                [step],
                [1.0],
                marker="v",
                markersize=9,
                color=ALARM,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
            )
        _mark_acted(axes, acted)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.margins(x=0.01)
        axes.set_xlabel("training step")
        return _svg(figure, alt)


def levels(
    names: Sequence[str], before: Sequence[float], now: Sequence[float], *, tail: int, run: int = 0, alt: str
) -> Markup:
    """Shares by level of difficulty: the baseline's beside today's; the last `tail` levels on a tinted ground."""
    with matplotlib.style.context(["default", _STYLE]):
        figure, axes = _axes()
        at = np.arange(len(names))
        if tail:
            axes.axvspan(len(names) - tail - 0.5, len(names) - 0.5, color=MUTED, alpha=0.12, linewidth=0)
        axes.bar(at - 0.2, np.nan_to_num(before), 0.38, facecolor=CARD, edgecolor=RUNS[run], linewidth=1.5)
        axes.bar(at + 0.2, np.nan_to_num(now), 0.38, facecolor=RUNS[run], edgecolor=RUNS[run], linewidth=1.5)
        axes.set_xticks(at, [short(name, 12) for name in names])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_ylim(0, None)
        axes.set_xlabel("difficulty, easy to hard")
        return _svg(figure, alt)


@dataclass(frozen=True)
class Trail:
    """One run's way through quality and another metric.

    Attributes:
        quality: float[E], NaN where unknown.
        values: float[E] of the metric.
        group: Runs of one group share a colour.
    """

    quality: Sequence[float]
    values: Sequence[float]
    group: int


def trails(lines: Sequence[Trail], *, level: float, across: str, alt: str) -> Markup:
    """A metric over quality, a line for each run from its first evaluation (a ring) to its last.

    Args:
        lines: One for each run.
        level: The quality at which runs are compared, drawn as a vertical line; NaN for none.
        across: What quality is called.
        alt: What the chart shows, for those who do not see it.
    """
    with matplotlib.style.context(["default", _STYLE]):
        figure, axes = _axes()
        for line in lines:
            points = np.array([line.quality, line.values], dtype=float)
            x, y = points[:, ~np.isnan(points).any(axis=0)]
            colour, dashed = PALETTE[line.group % len(PALETTE)], line.group >= len(PALETTE)
            axes.plot(x, y, color=colour, linewidth=1.5, marker=".", markersize=4, linestyle="--" if dashed else "-")
            axes.plot(x[:1], y[:1], "o", markersize=6, color=colour, markerfacecolor=CARD)
        if not math.isnan(level):
            axes.axvline(level, color=MUTED, linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_xlabel(across)
        return _svg(figure, alt)


@dataclass(frozen=True)
class Point:
    """One checkpoint of a lineage.

    Attributes:
        name: Under its place on the axis.
        parent: Index of the point it came from; None for the base.
        value: Its number; NaN where there is none.
        low: Lower end of an interval, NaN where there is none.
        high: Upper end.
    """

    name: str
    parent: int | None
    value: float
    low: float = math.nan
    high: float = math.nan


def lineage(points: Sequence[Point], *, level: float, alt: str) -> Markup:
    """A number of each checkpoint with its interval, and a line to each from the one it came from.

    Args:
        points: In order, the base first.
        level: Where nothing has changed, drawn as a horizontal line.
        alt: What the chart shows, for those who do not see it.
    """
    with matplotlib.style.context(["default", _STYLE]):
        figure, axes = _axes()
        axes.axhline(level, color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
        for i, point in enumerate(points):
            if point.parent is not None:
                above = points[point.parent]
                axes.plot([point.parent, i], [above.value, point.value], color=RUNS[0], linewidth=1.5)
            if not math.isnan(point.low + point.high):
                axes.vlines(i, point.low, point.high, color=RUNS[0], linewidth=5, alpha=0.25)
            axes.plot([i], [point.value], "o", markersize=5, color=RUNS[0])
        axes.set_xticks(range(len(points)), [short(point.name, 14) for point in points])
        if len(points) > _LEVEL:
            axes.tick_params(axis="x", labelrotation=45)
        axes.margins(x=0.06)
        lowest = min((v for p in points for v in (p.value, p.low) if not math.isnan(v)), default=0.0)
        axes.set_ylim(bottom=0.0 if lowest >= 0 else None)
        return _svg(figure, alt)


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.tick_params(length=0, pad=4)
    axes.spines["left"].set_visible(False)
    return figure, axes


def _svg(figure: Figure, alt: str) -> Markup:
    file = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": alt}):
        warnings.simplefilter("ignore")  # a label may hold what matplotlib's own font cannot measure
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    body = file.getvalue()
    body = body[body.index(">", body.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    used = set(re.findall(r"#(\w+)[\")]", body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for colour, name in _VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r"\n\s*", "\n", body).strip()
    width, height = (72 * inches for inches in SIZE)
    head = (
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {width:g} {height:g}" preserveAspectRatio="xMidYMid">'
    )
    return Markup(head + body)
