"""Weights & Biases: curves, a table of completions, alerts and a summary, in the run the trainer has opened.

This sink opens and closes no run. Rows carry ``train/global_step`` and are committed one by one, so they stand beside
the trainer's rows and change none of them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from divmon.errors import MissingDependency
from divmon.metrics.base import Classifier
from divmon.records import Observation
from divmon.sinks.samples import COLUMNS, ROWS, SAMPLES, STEP, Entry, Outbox, installed

LOG = logging.getLogger(__name__)
# Events are changes of state, so each one counts. W&B drops an alert that repeats a title within a minute unless told
# otherwise, and takes zero for "not told".
AT_ONCE = 0.001


class WandbSink:
    """Logs each observation to a W&B run, on rank 0 (the only rank on which sinks are called).

    Args:
        run: Log to this run. By default the one that is open when an observation arrives (``wandb.run``: the
            trainer's, opened by ``report_to="wandb"``). Up to 64 observations wait, in order, for a run to be opened.
        metrics: Exactly these metrics become curves; see `divmon.sinks.base.choose` for the default.
        table_rows: Most rows of the samples table: two completions for each of up to eight prompts; 0 for no table.
        classifier: Gives the formats in the table; the built-in one without it.
    """

    name = "wandb"

    def __init__(
        self,
        run: Any = None,
        *,
        metrics: Sequence[str] | None = None,
        table_rows: int = ROWS,
        classifier: Classifier | None = None,
    ) -> None:
        if run is None and not installed("wandb"):
            raise MissingDependency("The wandb sink needs Weights & Biases: pip install wandb")
        self._given = run
        self._outbox = Outbox(metrics=metrics, table_rows=table_rows, classifier=classifier)
        self._defined: str | None = None
        self._fired: list[int] = []
        self._health: dict[str, float] = {}

    def emit(self, observation: Observation) -> None:
        """Log one row (curves and table together), and alerts: what fires, what resolves, what was done about it."""
        row = self._outbox.add(observation).row
        self._health = {key: value for key, value in row.items() if key.startswith("divmon/health/")}
        self._fired += [event.step for event in observation.events if event.state == "firing"]
        self._flush()

    def close(self) -> None:
        """Write the totals to the run's summary. The run stays open: the one who opened it finishes it."""
        run = self._flush()
        if run is None:
            lost = self._outbox.discard()
            if lost:
                LOG.warning('No W&B run was open (report_to="wandb"?): %d observations were not logged.', lost)
            return
        totals: dict[str, float] = {"divmon/alarms_fired": len(self._fired), **self._health}
        if self._fired:
            totals["divmon/first_firing_step"] = min(self._fired)
        run.summary.update(totals)

    def _flush(self) -> Any:
        """Send what waits, oldest first, and return the run; None when there is none."""
        run = self._given if self._given is not None else getattr(sys.modules.get("wandb"), "run", None)
        if run is None:
            return None
        if run.id != self._defined:
            run.define_metric(STEP)
            run.define_metric("divmon/*", step_metric=STEP)
            self._defined = run.id
        for entry in self._outbox.take():
            self._send(run, entry)
        return run

    def _send(self, run: Any, entry: Entry) -> None:
        """One entry, one committed row. Never ``step=``: the run's own counter belongs to the trainer's rows."""
        row: dict[str, Any] = dict(entry.row)
        if entry.table:
            import wandb

            row[SAMPLES] = wandb.Table(columns=list(COLUMNS), data=entry.table)
        if row:
            run.log({**row, STEP: entry.step})
        for alert in entry.alerts:
            run.alert(**alert, wait_duration=AT_ONCE)
