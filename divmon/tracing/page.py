"""A trace as one HTML page that loads nothing and runs no script. What models, files and users named is text in it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from divmon.records import OVERALL
from divmon.report.page import environment
from divmon.report.plots import Point, lineage
from divmon.report.text import meaning, named, number, short
from divmon.tracing.results import Series, Trace
from divmon.tracing.sentences import shown, verdicts, warnings
from divmon.tracing.table import mean_value

CHARTED = 8


def render(found: Trace) -> str:
    """The page as HTML."""
    metrics = shown(found)
    whole = OVERALL if len(found.domains) > 1 else found.domains[0]
    return environment(Path(__file__).parent).get_template("trace.html.j2").render(
        found=found,
        names=[seen.name for seen in found.checkpoints if not seen.failure],
        verdicts=[{"short": short, "long": long, "calm": "no stage" in short} for short, long in verdicts(found)],
        warnings=warnings(found),
        metrics=[_metric(found, metric, charted=i < CHARTED) for i, metric in enumerate(metrics)],
        rest=[m for m in found.metrics if m not in metrics],
        splits=[split for split in found.splits if split.domain == whole],
    )  # fmt: skip


def _metric(found: Trace, metric: str, *, charted: bool) -> dict[str, Any]:
    title = named(metric)
    both = [series for series in found.series if (series.metric, series.domain) == (metric, OVERALL)]
    both.sort(key=lambda series: series.aggregator != found.aggregator)
    several = len(found.domains) > 1
    by_domain = [found.get(metric, domain) for domain in found.domains] if several else []
    return {
        "metric": metric,
        "title": title[0].upper() + title[1:],
        "meaning": meaning(metric),
        "chart": _chart(found, both[0]) if both and charted else None,
        "series": both if several or (both and both[0].tasks > 1) else both[:1],
        "numbers": {seen.name: mean_value(found, seen.name, metric) for seen in found.checkpoints},
        "by_domain": [series for series in by_domain if series is not None],
        "reasons": list(
            dict.fromkeys(m.reason for row in found.values.values() for m in row if m.metric == metric and m.reason)
        ),
    }


def _chart(found: Trace, series: Series) -> Any:
    at = {stage.name: i for i, stage in enumerate(series.stages)}
    points = [Point(s.name, at.get(s.since), s.retained, s.retained_low, s.retained_high) for s in series.stages]
    said = ", ".join(f"{short(p.name, 40)} {number(p.value)} %" for p in points if not math.isnan(p.value))
    return lineage(points, level=100.0, alt=f"{named(series.metric)} in percent of the base: {said}")
