"""A comparison as one HTML page that loads nothing and runs no script."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from divmon.comparing.results import Comparison, Domain
from divmon.report.page import CHARTED, environment
from divmon.report.plots import PALETTE, Trail, trails
from divmon.report.text import named, number, placed, short

DRAWN = 6  # metrics of a domain that get a chart


def render(found: Comparison) -> str:
    """The page as HTML."""
    return environment(Path(__file__).parent).get_template("compare.html.j2").render(
        found=found,
        colours=[PALETTE[i % len(PALETTE)] for i in range(len(found.groups))],
        several=any(len(folders) > 1 for folders in found.groups.values()),
        domains=[_domain(found, domain, full=i < CHARTED) for i, domain in enumerate(found.domains)],
        differs="quality differs here" if all(d.quality for d in found.domains) else "quality may differ here",
    )  # fmt: skip


def _domain(found: Comparison, domain: Domain, *, full: bool) -> dict[str, Any]:
    sections = []
    if domain.matched is not None:
        chosen = "as asked for" if found.at is not None else "the highest that every run reaches"
        title = f"At {named(domain.quality)} {number(domain.level)}, {chosen}"
        sections.append({"title": title, "section": domain.matched, "first": True})
    if domain.last is not None:
        title = f"{'Second' if sections else 'Only'}: at the last common step, {domain.last.steps[0][0]:.0f}"
        sections.append({"title": title, "section": domain.last, "first": False})
    charts = [_chart(domain, row.metric) for row in domain.matched.rows[:DRAWN]] if full and domain.matched else []
    heading = placed(domain.domain)
    return {"record": domain, "heading": heading[0].upper() + heading[1:], "sections": sections, "charts": charts}


def _chart(domain: Domain, metric: str) -> tuple[str, str, Markup]:
    lines = [Trail(curve.quality, curve.values[metric], curve.group) for curve in domain.curves]
    title = named(metric)
    known = [v for line in lines for q, v in zip(line.quality, line.values, strict=True) if not math.isnan(q + v)]
    ends = f"; {number(float(np.min(known)))} to {number(float(np.max(known)))}" if known else ""
    alt = f"{title} {placed(domain.domain)} over {named(domain.quality)}, {len(lines)} runs{ends}"
    svg = trails(lines, level=domain.level, across=short(named(domain.quality), 40), alt=alt)
    return title[0].upper() + title[1:], metric, svg
