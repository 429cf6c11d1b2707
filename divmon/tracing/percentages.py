"""Percentages of the base, by domain and over all of them, with intervals and the stage that lost most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from divmon.metrics.base import Metric
from divmon.records import OVERALL
from divmon.tracing.attribution import AGGREGATORS, Blame, Stage, blame, percent_of_base, stages, with_groups
from divmon.tracing.numbers import Numbers, drawn_rows
from divmon.tracing.results import Series
from divmon.uncertainty import MIN_PROMPTS

_CHUNK = 4_000_000  # floats held at once
_SIGN = {"higher": 1, "lower": -1}


@dataclass(frozen=True)
class Shape:
    """A lineage as far as it was measured.

    Attributes:
        names: The checkpoints, the base first.
        parents: Of these, the nearest ancestor that was measured; None for the base.
        groups: Members of each group.
        branches: From the base to a last checkpoint.
        per: "task" or "prompt".
    """

    names: Sequence[str]
    parents: Mapping[str, str | None]
    groups: Mapping[str, Sequence[str]]
    branches: Sequence[tuple[str, ...]]
    per: str = "task"


@dataclass(frozen=True)
class _Table:
    """What percentages are taken of, with what resamples it: `draws` of tasks, or `index` of prompts."""

    per: str
    values: np.ndarray  # float[C, T]
    draws: np.ndarray | None = None  # float[R, C, T]
    index: np.ndarray | None = None  # int[R, T]

    def kept(self, aggregator: str) -> np.ndarray | None:
        """float[R, C], percent of the base in each resampled set of prompts."""
        if self.draws is not None:
            return percent_of_base(self.draws, 0, aggregator)
        if self.index is None:
            return None
        step = max(1, _CHUNK // max(1, self.values.size))
        chunks = [self.index[i : i + step] for i in range(0, len(self.index), step)]
        drawn = [percent_of_base(np.moveaxis(self.values[:, chunk], 0, 1), 0, aggregator) for chunk in chunks]
        return np.concatenate(drawn)


def percentages(metric: Metric, found: Mapping[str, Numbers], shape: Shape) -> list[Series]:
    """One series for each domain, and over all domains one for each aggregator.

    A number that may be below 0, or is itself a change since the base, has no percentage of the base.
    """
    if metric.compares or (metric.bounds[0] < 0 and metric.family != "user"):
        return []
    rows = []
    for stream, (domain, one) in enumerate(found.items()):
        if len(found) > 1:
            rows += _series(metric, domain, _table([one], [stream], shape), shape)
    whole = _table(list(found.values()), list(range(len(found))), shape)
    return [*rows, *_series(metric, OVERALL, whole, shape)]


def _table(found: Sequence[Numbers], streams: Sequence[int], shape: Shape) -> _Table:
    tables = [one.prompts for one in found if one.prompts is not None]
    if shape.per == "prompt" and len(tables) == len(found):
        values = with_groups(shape.names, np.concatenate(tables, axis=1), shape.groups)
        if any(table.shape[1] < MIN_PROMPTS for table in tables):
            return _Table("prompt", values)
        starts = np.cumsum([0, *(table.shape[1] for table in tables[:-1])])
        index = [drawn_rows(t.shape[1], s) + start for t, s, start in zip(tables, streams, starts, strict=True)]
        return _Table("prompt", values, index=np.concatenate(index, axis=1))
    values = np.stack([one.values for one in found], axis=1)
    some = ~np.isnan(values).all(axis=1)
    kept = ~np.isnan(values[some]).any(axis=0)  # tasks that each checkpoint has which has any
    chosen = [one.draws for one, keep in zip(found, kept, strict=True) if keep]
    drawn = [draws for draws in chosen if draws is not None]
    draws = np.stack(drawn, axis=2) if drawn and len(drawn) == len(chosen) else None
    draws = None if draws is None else with_groups(shape.names, draws, shape.groups)
    return _Table("task", with_groups(shape.names, values[:, kept], shape.groups), draws)


def _series(metric: Metric, domain: str, table: _Table, shape: Shape) -> list[Series]:
    if table.values.shape[1] == 0:
        return []
    names = [*shape.names, *shape.groups]
    parents = {**shape.parents, **{group: shape.parents[members[0]] for group, members in shape.groups.items()}}
    found = []
    for aggregator in AGGREGATORS:
        kept = table.kept(aggregator)
        rows = tuple(stages(names, parents, table.values, aggregator=aggregator, kept_draws=kept))
        blames = _blames(metric, rows, kept, shape)
        found.append(Series(metric.name, domain, aggregator, table.per, rows, blames, table.values.shape[1]))
    return found


def _blames(metric: Metric, rows: Sequence[Stage], kept: np.ndarray | None, shape: Shape) -> tuple[Blame, ...]:
    sign = _SIGN.get(metric.direction)
    if sign is None:
        return ()
    at = {name: i for i, name in enumerate(shape.names)}
    found = []
    for branch in shape.branches:
        there = [name for name in branch if name in at]
        drawn = None if kept is None else kept[:, [at[name] for name in there]]
        found.append(blame(there, rows, drawn, sign=sign, clear=kept is not None))
    return tuple(found)
