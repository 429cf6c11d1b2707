"""What watching a recorded run cost: planned and real; what failed, what is missing and why."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from divmon.errors import HistoryError
from divmon.history import History
from divmon.report.tables import cost
from divmon.schedule import JOURNAL, Pace, in_plan


@dataclass(frozen=True)
class Examined:
    """A recorded run.

    Attributes:
        path: Its folder.
        steps: The newest step that was evaluated or scored.
        samplings: Evaluations on fresh completions, the baseline among them.
        scores: Scores of the baseline's completions; 0 where none were asked for.
        rollouts: Generation batches of the trainer's own.
        planned: What was asked for, in words.
        why: How often each reason led to a score or a sampling.
        waited: Why a sampling was wanted at the end that could not be paid; "" when none was.
        over: Scores that went beyond the budget.
        budget: Share of process time allowed; None without one.
        used: Share of process time that divmon took, the baseline apart; NaN where nobody counted.
        baseline: Process seconds of the baseline; NaN likewise.
        score_cost: Process seconds of a score.
        sample_cost: Process seconds of a sampling.
        sample_seconds: Wall seconds of all sampling.
        measure_seconds: Wall seconds of all measuring.
        failures: Of divmon itself, by part.
        missing: Series whose newest value is missing, and why.
    """

    path: str
    steps: int
    samplings: int
    scores: int
    rollouts: int
    planned: str
    why: Mapping[str, int] = field(default_factory=dict)
    waited: str = ""
    over: int = 0
    budget: float | None = None
    used: float = math.nan
    baseline: float = math.nan
    score_cost: float = math.nan
    sample_cost: float = math.nan
    sample_seconds: float = math.nan
    measure_seconds: float = math.nan
    failures: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> bool | None:
        """Whether the budget was kept; None without one."""
        return None if self.budget is None or math.isnan(self.used) else self.used <= self.budget

    @property
    def well(self) -> bool:
        """Whether nothing failed and the budget was kept."""
        return not self.failures and self.kept is not False


def decisions(run: Path) -> list[dict[str, Any]]:
    """What the schedule of the run at `run` decided, oldest first.

    A torn line is left out, and so is what was decided after the step that training was later resumed from.
    """
    try:
        lines = (run / JOURNAL).read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    rows: list[dict[str, Any]] = []
    for line in lines:
        try:
            row = dict(json.loads(line))
            if row.get("resumed"):
                rows = [kept for kept in rows if kept["step"] <= row["step"]]
            else:
                rows.append(row)
        except (ValueError, TypeError, KeyError):
            continue
    return rows


def examine_run(path: Path) -> Examined:
    """Read the run at `path`.

    Raises:
        HistoryError: There is none.
    """
    history = History.read(path)
    parts = {name: _part(history, name) for name in ("scores", "rollouts")}
    made, rows, pace = cost(history), decisions(history.path), _pace(history.info.get("schedule"))
    last: dict[str, Any] = rows[-1] if rows else {}
    costs = [math.nan if c is None else float(c) for c in last.get("costs", (None, None))]
    failed = Counter(made.failures)
    for part in parts.values():
        for name, n in cost(part).failures.items() if part is not None else ():
            failed[name] = max(failed[name], n)  # one counter, written by every series
    total = float(last.get("total") or 0.0)
    scores, rollouts = (0 if part is None else len(part.evaluations) for part in parts.values())
    return Examined(
        path=str(history.path),
        steps=max([history.last_step, *(part.last_step for part in parts.values() if part is not None)]),
        samplings=len(history.evaluations),
        scores=scores,
        rollouts=rollouts,
        planned=in_plan(pace) if pace is not None else "every evaluation samples; no scores, no budget",
        why=dict(Counter(row[kind] for row in rows for kind in ("score", "sample") if row.get(kind))),
        waited=str(last.get("waits") or ""),
        over=sum(bool(row.get("over")) for row in rows),
        budget=None if pace is None else pace.budget,
        used=float(last["spent"]) / total if total > 0 else math.nan,
        baseline=float(last.get("baseline") or math.nan),
        score_cost=costs[0],
        sample_cost=costs[1],
        sample_seconds=made.sampling,
        measure_seconds=made.measuring,
        failures=dict(failed),
        missing={**_missing(history), **(_missing(parts["scores"]) if parts["scores"] is not None else {})},
    )


def _part(history: History, name: str) -> History | None:
    try:
        return History.read(history.path / name)
    except HistoryError:
        return None


def _pace(row: Any) -> Pace | None:
    if not isinstance(row, Mapping):
        return None
    known = {f.name for f in fields(Pace)}
    return Pace(**{key: value for key, value in row.items() if key in known})


def _missing(history: History) -> dict[str, str]:
    newest = {m.key: m for evaluation in history.evaluations for m in evaluation.measurements}
    return {key: m.reason or "no reason was recorded" for key, m in newest.items() if math.isnan(m.value)}
