"""Comparing groups of recorded runs: which series, at which points, and what is there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from divmon.comparing.estimates import Reading, estimate
from divmon.comparing.groups import Group, check, seed
from divmon.comparing.results import Comparison, Curve, Domain, Row, Section
from divmon.errors import ConfigError, HistoryError, SignatureMismatch, unknown
from divmon.history import History
from divmon.matching import joint_step, match, shared_range
from divmon.metrics import METRICS
from divmon.records import Measurement
from divmon.report.tables import by_key, differing, domains
from divmon.report.text import run_name
from divmon.sinks.base import DEFAULT_METRICS

QUALITY = ("pass_at_1", "mean_quality")
AMONG_RIGHT = ("effective_correct_formats", "correct_distance")  # what equal quality is about
EVERY = "all"


@dataclass(frozen=True)
class Point:
    """A point between two evaluations of a run (the same step twice at an evaluation)."""

    before: int
    after: int
    weight: float

    @property
    def step(self) -> float:
        """The step there."""
        return self.before + self.weight * (self.after - self.before)


class Run:
    """One run, its measurements by series and step."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.name = run_name(history.path)
        self.steps = [evaluation.step for evaluation in history.evaluations]
        self.series = {key: {m.step: m for m in row} for key, row in by_key(history).items()}

    def metric(self, key: str) -> str:
        """The metric of a series."""
        return next(iter(self.series[key].values())).metric

    def signature(self, key: str) -> str:
        """How a series was measured."""
        return next(iter(self.series[key].values())).signature

    def curve(self, key: str) -> np.ndarray:
        """float[E], a value for each evaluation, NaN where there is none."""
        row = self.series.get(key, {})
        return np.array([row[step].value if step in row else math.nan for step in self.steps])

    def read(self, key: str, point: Point) -> Reading:
        """A series at a point."""
        row: dict[int, Measurement] = self.series.get(key, {})
        return Reading(row.get(point.before), row.get(point.after), point.weight, self.name, point.step)


Side = tuple[str, list[Run]]


def compare(
    groups: Sequence[Group], *, metrics: Sequence[str] = (), quality: str | None = None, level: float | None = None
) -> Comparison:
    """Set groups of runs side by side where they are equally good, and second at the last step that all share.

    Args:
        groups: Two or more; the first is the reference.
        metrics: Names; without any, the short list of curves, variety among right answers, and a user's own metrics;
            ``"all"`` for every series that all runs have.
        quality: The metric to match by; `pass_at_1`, else `mean_quality`, without it.
        level: The quality to compare at; in each domain the highest that all runs reach, without it.

    Raises:
        ConfigError: Fewer than two groups, an unknown metric, or a `level` that no domain's runs share.
        HistoryError: A run is empty or named twice, or the runs share no range of quality.
        SignatureMismatch: The runs share no series, or one that is compared was measured differently.
    """
    check(groups)
    sides: list[Side] = [(group.name, [Run(run) for run in group.runs]) for group in groups]
    runs = [run for _, side in sides for run in side]
    shared = [key for key in runs[0].series if all(key in run.series for run in runs)]
    if not shared:
        raise SignatureMismatch("The runs share no series of one metric and domain: they cannot be compared.")
    names = _chosen(metrics, quality, [runs[0].metric(key) for key in shared])
    every = domains(run.history for run in runs)
    found = []
    for domain in every:
        here = [name for name in names if f"{domain}/{name}" in shared]
        by = _quality(runs, domain, quality)
        for name in dict.fromkeys((*([by] if by else []), *here)):
            _agree(runs, f"{domain}/{name}")
        if here:
            found.append(_domain(sides, domain, here, quality, level))
    if not found:
        raise SignatureMismatch(f"No domain has {', '.join(names)} in every run: there is nothing to compare.")
    _refuse(found, level)
    folders = {group.name: tuple(str(run.path) for run in group.runs) for group in groups}
    return Comparison(folders, level, tuple(found), tuple(_notes(groups, every, found)))


def _chosen(metrics: Sequence[str], quality: str | None, shared: Sequence[str]) -> list[str]:
    """Names of the metrics to compare, the most telling first."""
    known = list(dict.fromkeys(shared))
    for name in (*metrics, *([quality] if quality else [])):
        if name not in known and name != EVERY:
            raise unknown("metric of all these runs", name, known)
    first = [name for name in (*AMONG_RIGHT, *DEFAULT_METRICS) if name in known]
    if EVERY in metrics:
        return list(dict.fromkeys((*first, *known)))
    if metrics:
        return list(dict.fromkeys(metrics))
    return list(dict.fromkeys((*first, *(name for name in known if name not in METRICS)))) or known


def _quality(runs: Sequence[Run], domain: str, wanted: str | None) -> str:
    """The metric of quality that every run has; empty when there is none."""
    names = QUALITY if wanted is None else (wanted,)
    has = [name for name in names if all(not np.isnan(run.curve(f"{domain}/{name}")).all() for run in runs)]
    return has[0] if has else ""


def _agree(runs: Sequence[Run], key: str) -> None:
    mine = runs[0].signature(key)
    for run in runs[1:]:
        if (theirs := run.signature(key)) != mine:
            how = differing(mine, theirs)
            advice = "Measure them alike (probes, K, decoding, judge, encoder), or name what to compare with --metric"
            if "probes:" in how:
                advice = "Their probes differ: watch every run with the same probes"
            raise SignatureMismatch(
                f"{key} was measured differently in {runs[0].history.path} and {run.history.path} ({how}), and such "
                f"numbers are never mixed. {advice}."
            )


def _domain(
    sides: Sequence[Side], domain: str, names: Sequence[str], wanted: str | None, level: float | None
) -> Domain:
    runs = [run for _, side in sides for run in side]
    by = _quality(runs, domain, wanted)
    last = joint_step([np.array(run.steps) for run in runs])
    at_last = None
    if last is not None:
        also = [*([by] if by else []), *(name for name in names if name != by)]
        at_last = _section(sides, domain, also, [Point(last, last, 0.0)] * len(runs))
    if not by:
        reason = _unjudged(runs, domain, QUALITY if wanted is None else (wanted,))
        return Domain(domain, "", math.nan, (math.nan, math.nan), None, at_last, reason)
    qualities = [run.curve(f"{domain}/{by}") for run in runs]
    shared = shared_range(qualities)
    curves = _curves(sides, domain, names, by)
    try:
        matched = match(qualities, level=level)
    except HistoryError:
        reason = _ranges(runs, qualities, by)
        return Domain(domain, by, math.nan, shared, None, at_last, reason, curves)
    points = [
        Point(run.steps[place.before], run.steps[place.after], place.weight)
        for run, place in zip(runs, matched.places, strict=True)
    ]
    section = _section(sides, domain, [name for name in names if name != by], points)
    return Domain(domain, by, matched.level, shared, section, at_last, None, curves)


def _unjudged(runs: Sequence[Run], domain: str, names: Sequence[str]) -> str:
    curves = [[run.curve(f"{domain}/{name}") for name in names] for run in runs]
    lost = [run.name for run, row in zip(runs, curves, strict=True) if all(np.isnan(curve).all() for curve in row)]
    if lost:
        return f"no quality was measured in {', '.join(lost)}: give all runs a judge (quality=, or gold answers)"
    return f"none of {', '.join(names)} was measured in every run: judge all of them alike"


def _ranges(runs: Sequence[Run], qualities: Sequence[np.ndarray], by: str) -> str:
    ends = [f"{np.nanmin(q):.3g} to {np.nanmax(q):.3g} in {run.name}" for run, q in zip(runs, qualities, strict=True)]
    return f"{by} is {'; '.join(ends)}"


def _section(sides: Sequence[Side], domain: str, names: Sequence[str], points: Sequence[Point]) -> Section:
    remaining = iter(points)
    placed = [(name, [(run, next(remaining)) for run in side]) for name, side in sides]
    rows = []
    for metric in names:
        key = f"{domain}/{metric}"
        readings = [(name, [run.read(key, point) for run, point in side]) for name, side in placed]
        reference = readings[0][1]
        estimates = [estimate(name, row, None if i == 0 else reference) for i, (name, row) in enumerate(readings)]
        rows.append(Row(metric, sides[0][1][0].signature(key), tuple(estimates)))
    return Section(tuple(tuple(point.step for _, point in side) for _, side in placed), tuple(rows))


def _curves(sides: Sequence[Side], domain: str, names: Sequence[str], by: str) -> tuple[Curve, ...]:
    return tuple(
        Curve(
            i,
            tuple(run.curve(f"{domain}/{by}").tolist()),
            {name: tuple(run.curve(f"{domain}/{name}").tolist()) for name in names if name != by},
        )
        for i, (_, side) in enumerate(sides)
        for run in side
    )


def _refuse(found: Sequence[Domain], level: float | None) -> None:
    """Quality was measured, but nowhere do the runs share what was asked for."""
    tried = [d for d in found if d.quality]
    if not tried or any(d.matched is not None for d in found):
        return
    ranges = "; ".join(f"{d.domain}: {d.reason}" for d in tried[:4])
    if level is not None and any(d.shared[0] <= d.shared[1] for d in tried):
        common = ", ".join(f"{d.shared[0]:.3g} to {d.shared[1]:.3g} in {d.domain}" for d in tried[:4])
        raise ConfigError(f"Not all runs pass through a quality of {level:g}. All share {common}: choose --at there.")
    raise HistoryError(
        f"There is no quality that every run passes through ({ranges}). Train the weaker run longer, evaluate the "
        "better one from its start on, or leave out the run that does not fit."
    )


def _notes(groups: Sequence[Group], every: Sequence[str], found: Sequence[Domain]) -> list[str]:
    have = {d.domain for d in found}
    notes = [f"{name}: not every run has it with these metrics; left out" for name in every if name not in have]
    for group in groups[1:]:
        seeds = [[seed(run) for run in side.runs] for side in (groups[0], group)]
        if len(seeds[0]) == len(seeds[1]) > 1 and all(map(all, seeds)) and seeds[0] != seeds[1]:
            pairs = ", ".join(f"{a} with {b}" for a, b in zip(*seeds, strict=True))
            notes.append(f"{group.name}: runs are paired in their order, though their numbers differ: {pairs}")
    return notes
