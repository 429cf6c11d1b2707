"""Where a pilot comes from: the first evaluation of a recorded run, or a file of completions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from divmon import piloting
from divmon.alarms.simulation import Pilot
from divmon.errors import HistoryError
from divmon.history import History
from divmon.metrics import METRICS
from divmon.metrics.base import MetricContext
from divmon.metrics.quality import judge
from divmon.records import SampleBatch
from divmon.samplers.file import read_completions


def read_pilot(path: str | Path) -> tuple[SampleBatch, float]:
    """The completions at `path` and the seconds it took to draw one of them (NaN when nobody knows).

    Args:
        path: A recorded run, whose first completions are taken, or a JSON Lines file of completions.

    Raises:
        HistoryError: The run has no completions.
        ProbeError: The file holds none.
    """
    path = Path(path)
    if not path.is_dir():
        return read_completions(path), math.nan
    history = History.read(path)
    first = next((e for e in history.evaluations if e.measurements), None)
    if first is None:
        raise HistoryError(f"{history.path} has no evaluation yet.")
    batch = history.batch(first.step)
    seconds = first.health.get("sample_seconds", math.nan)
    return batch, seconds / max(1, sum(map(len, batch.texts)))


def pilots(batch: SampleBatch, metrics: Iterable[str]) -> list[Pilot]:
    """The pilots of those `metrics` that divmon knows, judged by rewards or gold answers; see `divmon.piloting`."""
    quality, _ = judge(batch, None)
    return piloting.pilots(
        MetricContext(batch, quality=quality), (METRICS[name] for name in metrics if name in METRICS)
    )
