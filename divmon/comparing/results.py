"""What a comparison found, as frozen records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Estimate:
    """One number of one group, beside the reference's.

    Attributes:
        group: Its name.
        value: Mean over its runs; NaN when one has none.
        runs: The value of each run.
        ratio: To the reference: of the two means; NaN where the reference is not above 0, and for the reference.
        difference: From the reference; NaN for the reference.
        low: Lower end of the 95 % interval of the difference, NaN when there is none.
        high: Upper end.
        interval: "paired t", "Welch t", "bootstrap over prompts", or empty.
        n: Pairs of runs, or prompts, that the interval rests on; of both groups, for Welch.
        reason: Why the value or the interval is missing.
    """

    group: str
    value: float
    runs: tuple[float, ...]
    ratio: float = math.nan
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    interval: str = ""
    n: tuple[int, ...] = ()
    reason: str | None = None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Row:
    """One metric; the reference's estimate comes first."""

    metric: str
    signature: str
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True)
class Section:
    """All metrics at one place of the runs.

    Attributes:
        steps: For each group, the step of each run; between evaluations where it was interpolated.
        rows: The metrics.
    """

    steps: tuple[tuple[float, ...], ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Curve:
    """A run's evaluations, for drawing: float[E] of quality, and of each metric, NaN where missing."""

    group: int
    quality: tuple[float, ...]
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Domain:
    """One domain.

    Attributes:
        domain: Its name.
        quality: The metric that quality is; empty when no metric of quality was measured in every run.
        level: The quality of the comparison; NaN when there is none.
        shared: The lowest and highest quality that every run passes through; NaN without quality.
        matched: The comparison at equal quality; None when there is none, and then `reason` says why.
        last: At the last step that all runs share; None when there is no such step.
        reason: Why there is no comparison at equal quality.
        curves: One for each run; empty without quality.
    """

    domain: str
    quality: str
    level: float
    shared: tuple[float, float]
    matched: Section | None
    last: Section | None
    reason: str | None = None
    curves: tuple[Curve, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        groups: Folders of the runs of each group, by name; the first group is the reference.
        at: The quality that was asked for; None for the highest that all reach.
        domains: What was found.
        notes: What else a reader must know.
    """

    groups: Mapping[str, tuple[str, ...]]
    at: float | None
    domains: tuple[Domain, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def reference(self) -> str:
        """The group that others are compared with."""
        return next(iter(self.groups))
