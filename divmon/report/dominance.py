"""When one format took over: the steps at which its share passed 50, 80 and 95 %."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from divmon.history import History
from divmon.report.text import joined, short

LEVELS = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class Passage:
    """When a share reached a level.

    Attributes:
        first: The first step at which it had reached it; None for never.
        lasting: The step from which on it never fell below it again; None where the last share is below.
    """

    first: int | None = None
    lasting: int | None = None


@dataclass(frozen=True)
class Takeover:
    """How the format that is commonest at the end got there.

    Attributes:
        label: The format; None when nothing was measured.
        passages: By level.
    """

    label: str | None
    passages: dict[float, Passage]


def steps_to_dominance(
    steps: Sequence[int] | np.ndarray, shares: ArrayLike, *, levels: Sequence[float] = LEVELS
) -> dict[float, Passage]:
    """When `shares` of one format reached each of `levels`, for the first time and for good.

    Missing shares (NaN) say nothing either way.

    What moves it besides dominance: how often was evaluated, and chance near a level.

    Args:
        steps: int[E], ascending.
        shares: float[E], between 0 and 1.
        levels: Shares to reach.

    >>> steps_to_dominance([0, 10, 20, 30], [0.3, 0.6, 0.4, 0.9], levels=(0.5, 0.95))
    {0.5: Passage(first=10, lasting=30), 0.95: Passage(first=None, lasting=None)}

    Raises:
        ValueError: Steps and shares are not of one length.

    Source: after Zhao et al. (2025), "Echo Chamber", arXiv:2504.07912.
    """
    values, at = np.asarray(shares, dtype=float), np.asarray(steps)
    if values.shape != at.shape or values.ndim != 1:
        raise ValueError(f"steps and shares must be of one length, not of shapes {at.shape} and {values.shape}")
    known = ~np.isnan(values)
    values, at = values[known], at[known]
    return {level: _passage(at, values >= level) for level in levels}


def _passage(steps: np.ndarray, reached: np.ndarray) -> Passage:
    if not reached.any():
        return Passage()
    below = np.flatnonzero(~reached)
    since = int(below[-1]) + 1 if below.size else 0
    return Passage(int(steps[reached.argmax()]), int(steps[since]) if since < len(steps) else None)


def takeover(history: History, domain: str, *, levels: Sequence[float] = LEVELS) -> Takeover:
    """When the format that is commonest at the end of a run reached each of `levels` in `domain`.

    It follows that one format's share, not the largest share of any: two formats may take turns above 50 %.
    """
    found = [m for e in history.evaluations for m in e.measurements if m.key == f"{domain}/format_dominance"]
    tables = [(m.step, m.details.get("shares")) for m in found if not math.isnan(m.value)]
    rows = [(step, table) for step, table in tables if isinstance(table, Mapping) and table]
    label = max(rows[-1][1], key=lambda name: _share(rows[-1][1][name])) if rows else None
    shares = [_share(row.get(label, 0.0)) for _, row in rows]
    return Takeover(label, steps_to_dominance([step for step, _ in rows], shares, levels=levels))


def _share(value: object) -> float:
    return float(np.nan_to_num(value)) if isinstance(value, (int, float)) else 0.0


def sentence(history: History, domain: str) -> str:
    """What `takeover` found, for people; "" where no format took over between the first evaluation and the last."""
    found = takeover(history, domain)
    start = next((e.step for e in history.evaluations if any(m.domain == domain for m in e.measurements)), 0)
    since = [(level, p.lasting) for level, p in found.passages.items() if p.lasting is not None and p.lasting > start]
    if not since or found.label is None:
        return ""
    said = [f"at {100 * level:.0f} % or more from step {step} on" for level, step in since]
    return f"{short(found.label, 32)}: {joined(said)}."
