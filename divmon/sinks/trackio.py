"""trackio: curves, a table of completions and alerts in a dashboard on this machine, without an account.

Rows go into the run that the trainer has opened (``report_to="trackio"``), each a row of its own, as the trainer's are.
trackio's default axis counts rows; its axis ``train/global_step`` shows the trainer's curves and these at their steps::

    trackio show --project huggingface    # then choose train/global_step as the x axis
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


class TrackioSink:
    """Logs each observation to the open trackio run, on rank 0 (the only rank on which sinks are called).

    Up to 64 observations wait, in order, for a run to be opened. The trainer finishes its run before the final
    evaluation: that one still goes into the same run, through the object that was open. (A run on this machine writes
    it at once. For one on a Space or a server trackio keeps it on this machine, which is said once.)

    Args:
        metrics: Exactly these metrics become curves; see `divmon.sinks.base.choose` for the default.
        table_rows: Most rows of the samples table: two completions for each of up to eight prompts; 0 for no table.
        classifier: Gives the formats in the table; the built-in one without it.
    """

    name = "trackio"

    def __init__(
        self,
        *,
        metrics: Sequence[str] | None = None,
        table_rows: int = ROWS,
        classifier: Classifier | None = None,
    ) -> None:
        if not installed("trackio"):
            raise MissingDependency("The trackio sink needs trackio: pip install 'divmon[trackio]'")
        self._outbox = Outbox(metrics=metrics, table_rows=table_rows, classifier=classifier)
        self._run: Any = None
        self._said = False

    def emit(self, observation: Observation) -> None:
        """Log one row (curves and table together), and alerts: what fires, what resolves, what was done about it."""
        self._outbox.add(observation)
        self._flush()

    def close(self) -> None:
        """Let go of the run. The one who opened it finishes it."""
        self._flush()
        lost = self._outbox.discard()
        if lost:
            LOG.warning('No trackio run was open (report_to="trackio"?): %d observations were not logged.', lost)
        self._run = None

    def _flush(self) -> None:
        """Send what waits, oldest first, to the run that is open, or else to the one that was."""
        opened = open_run()
        if opened is not None:
            self._run = opened
        if self._run is None:
            return
        for entry in self._outbox.take():
            if opened is None and self._run.url is not None and not self._said:
                self._said = True
                LOG.warning(
                    "The trainer had finished its trackio run before step %d was evaluated: trackio keeps that row on "
                    "this machine, and it may not reach the server.",
                    entry.step,
                )
            _send(self._run, entry)


def open_run() -> Any:
    """The run that is open in this thread's context; None without one."""
    trackio = sys.modules.get("trackio")
    return None if trackio is None else trackio.context_vars.current_run.get()


def _send(run: Any, entry: Entry) -> None:
    """One entry, one row. Never ``step=``: it would move the counter on which the trainer's next rows are placed.

    trackio's page names a table by its row's number, so the table has a column for the step.
    """
    import trackio

    row: dict[str, Any] = dict(entry.row)
    if entry.table:
        cells = [[str(entry.step), *cells] for cells in entry.table]
        row[SAMPLES] = trackio.Table(columns=["step", *COLUMNS], data=cells)
    if row:
        run.log({**row, STEP: entry.step})
    for alert in entry.alerts:
        run.alert(title=alert["title"], text=alert["text"], level=trackio.AlertLevel[alert["level"]])
