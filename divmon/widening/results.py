"""What widening found: arms, kinds of thinking, gains with paired intervals; as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from divmon.measuring.results import aligned
from divmon.plain import to_json
from divmon.resampling.base import Refinement
from divmon.resampling.modes import KINDS
from divmon.sinks.base import escape_controls


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What one mode, or the control ("plain"), drew and kept.

    Attributes:
        budget: Draws it was given, critiques included; the same for every arm.
        drawn: Draws it made: fewer where a critic failed.
        texts: Completions among them.
        feasible: Share of these that the gate let pass; NaN without any.
        accepted: What passed every filter.
        thinking: Share of each kind among the accepted, seen against what was there before; "unknown" where the
            classifier failed. Empty without any.
        counts: What each filter turned away.
        failures: What went wrong, one sentence each.
    """

    budget: int
    drawn: int
    texts: int
    feasible: float
    accepted: tuple[Refinement, ...]
    thinking: Mapping[str, float]
    counts: Mapping[str, int]
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A metric of what is there, of that with the control's draws, and of that with a mode's draws.

    Attributes:
        mode: Which.
        metric: Which.
        before: Of the completions as they were.
        plain: With what the control added.
        after: With what the mode added.
        gain: `after` less `plain`.
        low: Lower end of its 95 % bootstrap interval, the same prompts drawn on both sides; NaN for fewer than five.
        high: Upper end.
        n: Prompts with a value on both sides.
        reason: Why a number is missing.
    """

    mode: str
    metric: str
    before: float
    plain: float
    after: float
    gain: float
    low: float
    high: float
    n: int
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Widened:
    """What `divmon.widen` found.

    Attributes:
        prompts: In the file.
        served: Those that took part: two of their completions are alike.
        arms: "plain" and each mode.
        thinking: Share of each kind among the completions as they were, each seen against the others of its prompt.
        gains: For each mode and metric.
        notes: What a reader must know.
    """

    prompts: int
    served: int
    arms: Mapping[str, Arm]
    thinking: Mapping[str, float]
    gains: tuple[Gain, ...]
    notes: tuple[str, ...] = field(default=())

    def get(self, mode: str, metric: str) -> Gain:
        """One gain.

        Raises:
            KeyError: There is none.
        """
        for gain in self.gains:
            if (gain.mode, gain.metric) == (mode, metric):
                return gain
        raise KeyError((mode, metric))

    def to_json(self) -> dict[str, Any]:
        """In plain JSON types."""
        found: dict[str, Any] = to_json(self)
        return found

    def table(self) -> str:
        """For people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.served} of {self.prompts} prompts have completions that are alike, and were resampled."
        yield ""
        head = ["thinking", "draws", "feasible", "accepted", *KINDS]
        rows = [["(as it was)", "", "", "", *_kinds(self.thinking)]]
        for name, arm in self.arms.items():
            kept = f"{len(arm.accepted)} of {arm.texts}"
            rows.append([name, f"{arm.drawn} of {arm.budget}", _share(arm.feasible), kept, *_kinds(arm.thinking)])
        yield from aligned([head, *rows])
        yield ""
        yield from aligned(
            [
                ["mode", "metric", "before", "with plain", "with mode", "gain over plain", "95% interval"],
                *(
                    [g.mode, g.metric, _number(g.before), _number(g.plain), _number(g.after), *_change(g)]
                    for g in self.gains
                ),
            ]
        )
        missing = {gain.metric: gain.reason for gain in self.gains if gain.reason}
        for note in (*self.notes, *(f"{name}: {reason}" for name, reason in missing.items())):
            yield f"note: {escape_controls(note)}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.0f} %"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _change(gain: Gain) -> list[str]:
    signed = "-" if math.isnan(gain.gain) else f"{gain.gain:+.4g}"
    return [signed, f"{gain.low:.4g} to {gain.high:.4g}" if math.isfinite(gain.low) else "-"]


def _kinds(shares: Mapping[str, float]) -> list[str]:
    return [_share(shares.get(kind, math.nan)) for kind in KINDS]
