"""Weights & Biases: curves, a table of completions, alerts and a summary, in the run the trainer has opened.

This sink opens and closes no run. Rows carry ``train/global_step`` and are committed one by one, so they stand beside
the trainer's rows and change none of them.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from divmon.errors import ConfigError, MissingDependency
from divmon.metrics.base import Classifier
from divmon.metrics.structure import classify
from divmon.records import AlarmEvent, Observation, SampleBatch, Severity
from divmon.sinks.base import choose, curves, metric_names, strip_controls

LOG = logging.getLogger(__name__)
STEP = "train/global_step"
COLUMNS = ("domain", "prompt", "baseline", "now", "baseline format", "now format")
CELL = 2000  # characters of a table cell
TITLE = 63  # W&B refuses 64 and more
ALERT = 4000
PROMPTS, COMPLETIONS = 8, 2
QUEUE = 64
LEVELS: Mapping[Severity, str] = {"info": "INFO", "warning": "WARN", "critical": "ERROR"}
# Events are changes of state, so each one counts. W&B drops an alert that repeats a title within a minute unless told
# otherwise, and takes zero for "not told".
AT_ONCE = 0.001


@dataclass(frozen=True)
class _Entry:
    """What one observation becomes: small and free of W&B types, so that it can wait for a run."""

    step: int
    row: dict[str, float]
    table: list[list[str]]
    events: tuple[AlarmEvent, ...]


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
        table_rows: int = PROMPTS * COMPLETIONS,
        classifier: Classifier | None = None,
    ) -> None:
        if run is None and not _installed():
            raise MissingDependency("The wandb sink needs Weights & Biases: pip install wandb")
        if table_rows < 0:
            raise ConfigError(f"table_rows must be 0 (no table) or more, not {table_rows}.")
        self._given = run
        self._metrics = metric_names(metrics)
        self._table_rows = table_rows
        self._classifier = classifier or classify
        self._chosen: tuple[str, ...] = ()
        self._waiting: deque[_Entry] = deque(maxlen=QUEUE)
        self._dropped = 0
        self._defined: str | None = None
        self._fired: list[int] = []
        self._health: dict[str, float] = {}

    def emit(self, observation: Observation) -> None:
        """Log one row (curves and table together) and one alert for each event that fires or resolves."""
        self._chosen = choose(observation, metrics=self._metrics, keep=self._chosen)
        row = curves(observation, metrics=self._metrics, keep=self._chosen)
        self._health = {key: value for key, value in row.items() if key.startswith("divmon/health/")}
        self._fired += [event.step for event in observation.events if event.state == "firing"]
        if len(self._waiting) == QUEUE:
            self._dropped += 1
        table = sample_rows(observation, limit=self._table_rows, classifier=self._classifier)
        self._waiting.append(_Entry(observation.step, row, table, observation.events))
        self._flush()

    def close(self) -> None:
        """Write the totals to the run's summary. The run stays open: the one who opened it finishes it."""
        run = self._flush()
        if run is None:
            if self._waiting:
                lost = len(self._waiting) + self._dropped
                LOG.warning('No W&B run was open (report_to="wandb"?): %d observations were not logged.', lost)
                self._waiting.clear()
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
        while self._waiting:
            self._send(run, self._waiting.popleft())
        return run

    def _send(self, run: Any, entry: _Entry) -> None:
        """One entry, one committed row. Never ``step=``: the run's own counter belongs to the trainer's rows."""
        row: dict[str, Any] = dict(entry.row)
        if entry.table:
            import wandb

            row["divmon/samples"] = wandb.Table(columns=list(COLUMNS), data=entry.table)
        if row:
            run.log({**row, STEP: entry.step})
        for event in entry.events:
            if event.state in ("firing", "resolved"):
                run.alert(**alert(event), wait_duration=AT_ONCE)


def alert(event: AlarmEvent) -> dict[str, str]:
    """Title, text and level of the alert for `event` (a resolved one informs, whatever its severity).

    >>> alert(AlarmEvent(40, "collapse", "math", "vendi", "firing", "critical", 0.4, message="Fell by a third."))
    {'title': 'collapse firing (math)', 'text': 'Fell by a third.\\n\\nStep 40.', 'level': 'ERROR'}
    """
    title = strip_controls(f"{event.alarm} {event.state} ({event.domain})", limit=TITLE)
    lines = [event.message or f"{event.metric} is {event.value:.3g}.", "", f"Step {event.step}."]
    if event.actions:
        lines.append(f"Actions: {', '.join(event.actions)}.")
    text = strip_controls("\n".join(lines), limit=ALERT, keep="\n")
    return {"title": title, "text": text, "level": "INFO" if event.state == "resolved" else LEVELS[event.severity]}


def sample_rows(observation: Observation, *, limit: int, classifier: Classifier = classify) -> list[list[str]]:
    """Rows of `COLUMNS`: the same few prompts each time, at the baseline and now, with each one's primary format.

    Prompts are taken from each domain in turn, in the order of the probes, and found in the baseline by their ids.
    Text is cut to 2,000 characters and loses its control characters.
    """
    now, before = observation.batch, observation.baseline
    if now is None or limit <= 0:
        return []
    then = {} if before is None else {probe.id: row for probe, row in zip(before.probes, before.texts, strict=True)}
    rows = []
    for i in _in_turn(now)[:PROMPTS]:
        probe, texts = now.probes[i], now.texts[i]
        old_texts = then.get(probe.id, ())
        for j in range(min(COMPLETIONS, max(len(texts), len(old_texts)))):
            pair = [row[j] if j < len(row) else None for row in (old_texts, texts)]
            labels = ["" if text is None else next(iter(classifier(text)), "") for text in pair]
            rows.append([_cell(text or "") for text in (probe.domain, probe.text, *pair, *labels)])
    return rows[:limit]


def _in_turn(batch: SampleBatch) -> list[int]:
    """Indices of prompts: the first of each domain, the second of each domain, ..."""
    seen: dict[str, int] = {}
    turns = []
    for i, probe in enumerate(batch.probes):
        seen[probe.domain] = seen.get(probe.domain, -1) + 1
        turns.append((seen[probe.domain], i))
    return [i for _, i in sorted(turns)]


def _cell(text: str) -> str:
    return strip_controls(text, limit=CELL, keep="\n\t")


def _installed() -> bool:
    """Whether the package is there; a folder named "wandb" (offline runs make one) is not it."""
    if "wandb" in sys.modules:
        return True
    spec = importlib.util.find_spec("wandb")
    return spec is not None and spec.origin is not None
