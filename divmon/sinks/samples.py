"""What trackers with tables and alerts are sent of an observation: the short row, a table of samples, the alerts."""

from __future__ import annotations

import importlib.util
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from divmon.alarms.sentences import evidence_lines
from divmon.errors import ConfigError
from divmon.metrics.base import Classifier
from divmon.metrics.structure import classify
from divmon.records import ROLLBACK, AlarmEvent, LeverEvent, Observation, SampleBatch, Severity
from divmon.sinks.base import choose, curves, metric_names, strip_controls

STEP = "train/global_step"  # as the trainers' own reporters name it
SAMPLES = "divmon/samples"
COLUMNS = ("domain", "prompt", "baseline", "now", "baseline format", "now format")
CELL = 2000  # characters of a table cell
TITLE = 63  # W&B refuses 64 and more
ALERT = 4000
PROMPTS, COMPLETIONS = 8, 2
ROWS = PROMPTS * COMPLETIONS
QUEUE = 64
LEVELS: Mapping[Severity, str] = {"info": "INFO", "warning": "WARN", "critical": "ERROR"}


@dataclass(frozen=True)
class Entry:
    """What one observation becomes: small and free of a tracker's types, so that it can wait for a run.

    Attributes:
        step: The trainer's global step.
        row: The curves, finite Python floats.
        table: Rows of `COLUMNS`.
        alerts: Title, text and level of each alarm that fires or resolves, and of what was done about it.
    """

    step: int
    row: dict[str, float]
    table: list[list[str]]
    alerts: list[dict[str, str]]


class Outbox:
    """Turns observations into entries and keeps up to 64 of them, in order, until there is a run to send them to.

    >>> outbox = Outbox()
    >>> outbox.add(Observation(step=4, measurements=(), health={"failures": 0})).row
    {'divmon/health/failures': 0.0}
    >>> [entry.step for entry in outbox.take()]
    [4]

    Args:
        metrics: Exactly these metrics become curves; see `divmon.sinks.base.choose` for the default.
        table_rows: Most rows of the samples table; 0 for no table.
        classifier: Gives the formats in the table; the built-in one without it.
    """

    def __init__(
        self,
        *,
        metrics: Sequence[str] | None = None,
        table_rows: int = ROWS,
        classifier: Classifier | None = None,
    ) -> None:
        if table_rows < 0:
            raise ConfigError(f"table_rows must be 0 (no table) or more, not {table_rows}.")
        self._metrics = metric_names(metrics)
        self._table_rows = table_rows
        self._classifier = classifier or classify
        self._chosen: tuple[str, ...] = ()
        self._waiting: deque[Entry] = deque(maxlen=QUEUE)
        self._dropped = 0

    def add(self, observation: Observation) -> Entry:
        """Prepare an observation; the oldest one makes room where too many wait."""
        self._chosen = choose(observation, metrics=self._metrics, keep=self._chosen)
        if len(self._waiting) == QUEUE:
            self._dropped += 1
        entry = Entry(
            observation.step,
            curves(observation, metrics=self._metrics, keep=self._chosen),
            sample_rows(observation, limit=self._table_rows, classifier=self._classifier),
            [
                *(alert(event) for event in observation.events if event.state in ("firing", "resolved")),
                *map(lever_alert, observation.changes),
            ],
        )
        self._waiting.append(entry)
        return entry

    def take(self) -> Iterator[Entry]:
        """Hand out what waits, oldest first; each entry once."""
        while self._waiting:
            yield self._waiting.popleft()

    def discard(self) -> int:
        """Forget what waits. Returns how many observations were lost for want of a run; 0 if none waits."""
        lost = len(self._waiting) + self._dropped if self._waiting else 0
        self._waiting.clear()
        return lost


def alert(event: AlarmEvent) -> dict[str, str]:
    """Title, text and level of the alert for `event` (a resolved one informs, whatever its severity).

    >>> alert(AlarmEvent(40, "collapse", "math", "vendi", "firing", "critical", 0.4, message="Fell by a third."))
    {'title': 'collapse firing (math)', 'text': 'Fell by a third.\\n\\nStep 40.', 'level': 'ERROR'}
    """
    title = strip_controls(f"{event.alarm} {event.state} ({event.domain})", limit=TITLE)
    lines = [event.message or f"{event.metric} is {event.value:.3g}.", "", f"Step {event.step}."]
    if event.actions:
        lines.append(f"Actions: {', '.join(event.actions)}.")
    if event.state == "firing" and event.details:
        lines += ["", *evidence_lines(event.details)]
    text = strip_controls("\n".join(lines), limit=ALERT, keep="\n")
    return {"title": title, "text": text, "level": "INFO" if event.state == "resolved" else LEVELS[event.severity]}


def lever_alert(change: LeverEvent) -> dict[str, str]:
    """Title, text and level of the alert for what was done; being applied and failing warn, the rest informs.

    >>> lever_alert(LeverEvent(40, "gate", "applied", 0.5, "narrow", "vendi fell."))
    {'title': 'gate applied', 'text': 'vendi fell.\\n\\nStep 40. Strength 0.5. Alarm: narrow.', 'level': 'WARN'}
    """
    title = strip_controls(f"{change.lever} {change.phase}", limit=TITLE)
    strength = "Learning rate x" if change.lever == ROLLBACK else "Strength"
    facts = f"Step {change.step}. {strength} {change.strength:g}." + (
        f" Alarm: {change.alarm}." if change.alarm else ""
    )
    text = strip_controls(f"{change.reason}\n\n{facts}".lstrip(), limit=ALERT, keep="\n")
    grave = change.phase in ("applied", "refused", "failed")
    return {"title": title, "text": text, "level": "WARN" if grave else "INFO"}


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


def installed(package: str) -> bool:
    """Whether a tracker is there; a folder of its name (offline runs make one) is not it.

    >>> installed("json"), installed("no_such_tracker")
    (True, False)
    """
    if package in sys.modules:
        return True
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None
