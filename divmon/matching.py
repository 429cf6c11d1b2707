"""Where runs are equally good: the points of their curves at one quality, never at equal steps.

A method that only slows training keeps more diversity at every step, and none at equal quality. So curves are read
where quality is the same, linearly between evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from divmon.errors import HistoryError

_ROUNDING = 1e-9  # what floating point may add to a quality that was asked for


@dataclass(frozen=True)
class Place:
    """A point on a curve, between two of its evaluations.

    Attributes:
        before: Index of the evaluation before it.
        after: Index of the one after it; the same where the point is an evaluation.
        weight: How far it is from `before` to `after`, 0 to 1.
    """

    before: int
    after: int
    weight: float

    def read(self, values: np.ndarray) -> float:
        """The value there of another curve (float[E]) of the same run; NaN when an evaluation it needs has none.

        >>> Place(0, 1, 0.25).read(np.array([4.0, 2.0]))
        3.5
        """
        return float(between(values[self.before], values[self.after], self.weight))


def between(before: np.ndarray, after: np.ndarray, weight: float) -> np.ndarray:
    """`before` and `after` (of one shape) mixed: all `before` at weight 0, where a NaN in `after` is no matter."""
    return before if weight == 0 else after if weight == 1 else (1 - weight) * before + weight * after


@dataclass(frozen=True)
class Match:
    """Points of several runs at one quality.

    Attributes:
        level: The quality.
        places: Where each run first has it.
    """

    level: float
    places: tuple[Place, ...]


def shared_range(qualities: Sequence[np.ndarray]) -> tuple[float, float]:
    """The lowest and the highest quality that every run passes through; lowest above highest when there is none.

    Args:
        qualities: float[E] for each run, NaN where unknown; each has a value.

    >>> shared_range([np.array([0.1, 0.8]), np.array([0.2, 0.9, 0.7])])
    (0.2, 0.8)
    """
    known = [quality[~np.isnan(quality)] for quality in qualities]
    return max(float(k.min()) for k in known), min(float(k.max()) for k in known)


def match(qualities: Sequence[np.ndarray], *, level: float | None = None) -> Match:
    """Find where each run first has one quality: `level`, or the highest that all of them reach.

    What moves it besides quality: its noise. The highest value of a noisy curve is higher than its policy is good, and
    the first time a curve passes a level is earlier.

    Args:
        qualities: float[E] for each run, NaN where unknown.
        level: The quality.

    >>> found = match([np.array([0.0, 0.4, 0.8]), np.array([0.2, 0.6])])
    >>> found.level, found.places[0].before, found.places[0].after, round(found.places[0].weight, 3)
    (0.6, 1, 2, 0.5)

    Raises:
        HistoryError: There is no such quality, or a run has none at all.

    Source: this project; the same quality for all is how Pareto fronts of quality and diversity are read.
    """
    if any(np.isnan(quality).all() for quality in qualities):
        raise HistoryError("A run has no quality at all: there is nothing to match by.")
    low, high = shared_range(qualities)
    if low > high:
        raise HistoryError("There is no quality that every run passes through.")
    wanted = high if level is None else level
    if not low - _ROUNDING <= wanted <= high + _ROUNDING:
        raise HistoryError(f"Not every run passes through a quality of {wanted:g}: they share {low:.3g} to {high:.3g}.")
    wanted = min(max(wanted, low), high)
    return Match(wanted, tuple(_first(quality, wanted) for quality in qualities))


def _first(quality: np.ndarray, level: float) -> Place:
    """The first point of the curve at `level`, which lies within its range."""
    known = np.flatnonzero(~np.isnan(quality))
    offset = quality[known] - level
    reached = offset >= 0 if offset[0] < 0 else offset <= 0
    i = int(np.argmax(reached))
    if offset[i] == 0:
        return Place(int(known[i]), int(known[i]), 0.0)
    return Place(int(known[i - 1]), int(known[i]), float(offset[i - 1] / (offset[i - 1] - offset[i])))


def joint_step(steps: Sequence[np.ndarray]) -> int | None:
    """The last step at which every run was evaluated; None when there is none.

    >>> joint_step([np.array([0, 10, 20]), np.array([0, 10, 15])])
    10
    """
    common = set.intersection(*({int(step) for step in row} for row in steps))
    return max(common, default=None)
