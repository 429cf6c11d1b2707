"""The record of a run on disk: append-only, readable line by line, and the one source that replays and reports use.

::

    RUN/run.json                 what was measured and how; written once
    RUN/probes.jsonl             the prompts
    RUN/history.jsonl            one line an evaluation: measurements, events, health; a line for each change of a
                                 lever, and for each resume
    RUN/completions/00000040.jsonl   the completions of step 40, one line a prompt
    RUN/rollouts/, RUN/scores/   histories of their own: what the trainer generates itself, what scores measure
    RUN/confirmations/   what confirmations drew: the bank, the fresh completions of each, and what they have spent

An evaluation exists once its line in history.jsonl ends with a newline; its completions are on disk before that. A
process killed at any byte therefore loses at most the evaluation it was writing. One process writes a run at a time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from divmon.errors import HistoryError, SignatureMismatch
from divmon.plain import (
    batch_from_rows,
    batch_rows,
    event_from_json,
    float_from_json,
    lever_event_from_json,
    measurement_from_json,
    probe_from_json,
    to_json,
    verdict_from_json,
)
from divmon.records import AlarmEvent, LeverEvent, Measurement, Probe, SampleBatch, Verdict

FORMAT = 1
T = TypeVar("T")
_BLOCK = 65_536  # bytes read at once while looking for the end of the last complete line


@dataclass(frozen=True)
class Evaluation:
    """Everything one evaluation recorded.

    `restored` is the step whose weights training has gone back to since the evaluation before; None where it has not.
    """

    step: int
    measurements: tuple[Measurement, ...]
    events: tuple[AlarmEvent, ...] = ()
    health: Mapping[str, float] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    restored: int | None = None


@dataclass(frozen=True)
class Series:
    """One curve: `values[i]` (with interval `low[i]`, `high[i]`) at `steps[i]`, all of one signature."""

    key: str
    signature: str
    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _dumps(value: Any) -> str:
    # ensure_ascii keeps every line one line whatever a model wrote (U+2028, lone surrogates, control characters)
    return json.dumps(to_json(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _read_lines(path: Path, convert: Callable[[Any], T]) -> list[T]:
    """The complete lines of a JSON Lines file; a torn last line is ignored, a damaged earlier one is an error."""
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(convert(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"{path}, line {number} is damaged ({type(error).__name__}: {error})"
            raise HistoryError(f"{why}. Remove the line to read the rest.") from error
    return rows


def _read_info(path: Path) -> Mapping[str, Any]:
    try:
        info = json.loads(path.read_bytes())
        newer = int(info.get("format", FORMAT)) > FORMAT
    except (ValueError, TypeError, AttributeError) as error:
        raise HistoryError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
    if newer:
        raise HistoryError(f"{path.parent} has format {info['format']}, newer than this divmon reads. Upgrade divmon.")
    return dict(info)


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class History:
    """A run on disk. Open an existing one with `History.read(path)`, start one with `History.create(path, ...)`."""

    def __init__(self, path: Path, *, info: Mapping[str, Any], probes: Sequence[Probe]) -> None:
        self.path = path
        self.info = dict(info)
        self.probes = tuple(probes)
        self.evaluations: list[Evaluation] = []
        self.mitigations: list[LeverEvent] = []  # what levers did, oldest first
        self.superseded: list[Evaluation] = []  # of branches given up by resuming from an earlier checkpoint
        self._signatures: dict[str, str] = {}
        self._unwritten: list[tuple[Any, SampleBatch | None]] = []  # lines of history.jsonl with their completions
        self._retry_at: int | None = None  # where in history.jsonl a line begins that a failing disk may hold or not

    @classmethod
    def create(cls, path: str | Path, *, probes: Sequence[Probe], info: Mapping[str, Any] | None = None) -> History:
        """Start a run at `path`. A run already there is kept, under the next free ``NAME.1``, ``NAME.2``, ..."""
        path = Path(path).absolute()
        if (path / "run.json").exists() or (path / "history.jsonl").exists():
            n = next(i for i in range(1, 10_000) if not path.with_name(f"{path.name}.{i}").exists())
            shutil.move(str(path), str(path.with_name(f"{path.name}.{n}")))
        history = cls(path, info={"format": FORMAT, **(info or {})}, probes=probes)
        path.mkdir(parents=True, exist_ok=True)
        _write_whole(path / "probes.jsonl", "".join(_dumps(p) + "\n" for p in probes))
        _write_whole(path / "run.json", _dumps(history.info) + "\n")
        (path / "history.jsonl").touch()
        return history

    @classmethod
    def read(cls, path: str | Path) -> History:
        """Open the run at `path` (the folder that holds run.json, or the trainer's output folder above it).

        Raises:
            HistoryError: Nothing was recorded there, or a file is damaged before its last line.
        """
        path = Path(path)
        if not (path / "run.json").exists() and (path / "divmon" / "run.json").exists():
            path = path / "divmon"
        if not (path / "run.json").exists():
            raise HistoryError(f"No divmon run in {path} (no run.json). Pass the folder named when training started.")
        info = _read_info(path / "run.json")
        history = cls(path, info=info, probes=_read_lines(path / "probes.jsonl", probe_from_json))
        for line in _read_lines(path / "history.jsonl", _line_from_json):
            if isinstance(line, Evaluation):
                history._admit(line)
            elif isinstance(line, LeverEvent):
                history.mitigations.append(line)
            elif line is not None:
                history._supersede(line)
        return history

    @property
    def last_step(self) -> int:
        """The newest recorded step, -1 when there is none."""
        return self.evaluations[-1].step if self.evaluations else -1

    def append(self, evaluation: Evaluation, batch: SampleBatch | None = None) -> None:
        """Record one evaluation and, when given, its completions.

        It is kept in memory at once. What could not be written is written with the next evaluation.

        Raises:
            SignatureMismatch: A series would mix numbers that were measured differently.
            OSError: The disk refused; nothing is lost while the process lives.
        """
        self._admit(evaluation)
        self._unwritten.append((evaluation, batch))
        self.flush()

    def note(self, change: LeverEvent) -> None:
        """Record what a lever did. What could not be written is written with the next line.

        Raises:
            OSError: The disk refused; nothing is lost while the process lives.
        """
        self.mitigations.append(change)
        self._unwritten.append(({"mitigation": change}, None))
        self.flush()

    def rewind(self, step: int) -> None:
        """Go on from a checkpoint at `step`: what was recorded after it belongs to a branch that was given up.

        Those evaluations stay in the file and in `superseded`; their completions are kept as
        ``STEP.superseded-N.jsonl``.
        """
        gone = [evaluation.step for evaluation in self.evaluations if evaluation.step > step]
        for path in map(self._completions, gone):
            if path.exists():
                names = (path.with_suffix(f".superseded-{n}.jsonl") for n in range(1, 10_000))
                path.rename(next(name for name in names if not name.exists()))
        if gone or any(change.step > step for change in self.mitigations):
            self._supersede(step)
            self._unwritten.append(({"resumed_at": step}, None))
            self.flush()

    def slim(self) -> None:
        """Forget, in memory only, what takes most space of the newest evaluation: its vectors, which are on disk."""
        if self.evaluations and not self._unwritten:
            last = self.evaluations[-1]
            slim = tuple(replace(m, values=(), details={}) for m in last.measurements)
            self.evaluations[-1] = replace(last, measurements=slim)

    def flush(self) -> None:
        """Write whatever earlier attempts could not."""
        while self._unwritten:
            self._write(*self._unwritten[0])
            self._unwritten.pop(0)

    def _supersede(self, step: int) -> None:
        self.superseded += [evaluation for evaluation in self.evaluations if evaluation.step > step]
        self.evaluations = [evaluation for evaluation in self.evaluations if evaluation.step <= step]
        self.mitigations = [change for change in self.mitigations if change.step <= step]
        self._signatures = {m.key: m.signature for evaluation in self.evaluations for m in evaluation.measurements}

    def _admit(self, evaluation: Evaluation) -> None:
        for m in evaluation.measurements:
            known = self._signatures.get(m.key, m.signature)
            if known != m.signature:
                raise SignatureMismatch(
                    f"{m.key} was measured as {known!r}, and at step {m.step} as {m.signature!r}: the two do not "
                    "belong in one curve. Start a new run folder, or measure as before."
                )
        for m in evaluation.measurements:
            self._signatures[m.key] = m.signature
        self.evaluations.append(evaluation)

    def _write(self, value: Any, batch: SampleBatch | None) -> None:
        if batch is not None:
            _write_whole(self._completions(value.step), "".join(_dumps(row) + "\n" for row in batch_rows(batch)))
        line = (_dumps(value) + "\n").encode("ascii")
        with (self.path / "history.jsonl").open("a+b") as file:
            complete = complete_bytes(file)
            # what a kill has torn goes, and so does what an earlier attempt at this very line has left
            self._retry_at = complete if self._retry_at is None else min(complete, self._retry_at)
            file.truncate(self._retry_at)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._retry_at = None

    def _completions(self, step: int) -> Path:
        return self.path / "completions" / f"{step:08d}.jsonl"

    def keys(self) -> list[str]:
        """``domain/metric`` of every series, in the order first recorded."""
        return list(self._signatures)

    def series(self, metric: str, domain: str) -> Series:
        """The curve of `metric` in `domain`; empty when it was never measured."""
        key = f"{domain}/{metric}"
        found = [m for e in self.evaluations for m in e.measurements if m.key == key]
        columns = ([m.step for m in found], *([getattr(m, c) for m in found] for c in ("value", "low", "high")))
        steps, values, low, high = (np.array(c) for c in columns)
        return Series(key, self._signatures.get(key, ""), steps, values, low, high)

    def rollouts(self) -> History:
        """What the trainer generated itself, a run of its own with the one domain ``rollouts``.

        Raises:
            HistoryError: The trainer generated nothing, or ``rollouts=False`` was said.
        """
        return History.read(self.path / "rollouts")

    def scores(self) -> History:
        """What scores of the baseline's completions have measured, a run of its own.

        Raises:
            HistoryError: No scores were taken.
        """
        return History.read(self.path / "scores")

    def fired(self) -> list[AlarmEvent]:
        """Every alarm that fired, oldest first."""
        return [event for event in self.events() if event.state == "firing"]

    def events(self) -> Iterator[AlarmEvent]:
        """Every recorded alarm event, oldest first."""
        return (event for evaluation in self.evaluations for event in evaluation.events)

    def batch(self, step: int) -> SampleBatch:
        """The completions recorded at `step`.

        Raises:
            HistoryError: None were recorded at that step, or the file is damaged.
        """
        path = self._completions(step)
        if not path.exists():
            raise HistoryError(f"No completions were recorded at step {step} in {self.path}.")
        return self._batch(path)

    @property
    def confirmations(self) -> Path:
        """The folder of what confirmations drew and spent."""
        return self.path / "confirmations"

    def keep(self, name: str, batch: SampleBatch) -> None:
        """Write the completions that a confirmation drew, under `name`."""
        _write_whole(self.confirmations / f"{name}.jsonl", "".join(_dumps(row) + "\n" for row in batch_rows(batch)))

    def kept(self, name: str) -> SampleBatch:
        """The completions that `keep` wrote.

        Raises:
            HistoryError: There are none of that name, or the file is damaged.
        """
        path = self.confirmations / f"{name}.jsonl"
        if not path.exists():
            raise HistoryError(f"There is no {path}.")
        return self._batch(path)

    def _batch(self, path: Path) -> SampleBatch:
        rows = _read_lines(path, dict)
        try:
            return batch_from_rows(rows, self.probes)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise HistoryError(f"{path} is damaged ({type(error).__name__}: {error}).") from error


def complete_bytes(file: BinaryIO) -> int:
    """Bytes of `file` up to the end of its last complete line."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _line_from_json(row: Mapping[str, Any]) -> Evaluation | LeverEvent | int | None:
    """An evaluation, a change of a lever, the step from which training was resumed; None for what later kinds say."""
    if "resumed_at" in row:
        return int(row["resumed_at"])
    if "mitigation" in row:
        return lever_event_from_json(row["mitigation"])
    later = isinstance(row, Mapping) and bool(row) and not {"step", "measurements"} & set(row)
    return None if later else _evaluation_from_json(row)


def _evaluation_from_json(row: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        step=int(row["step"]),
        measurements=tuple(measurement_from_json(m) for m in row["measurements"]),
        events=tuple(event_from_json(e) for e in row.get("events", ())),
        health={name: float_from_json(value) for name, value in row.get("health", {}).items()},
        verdicts=tuple(verdict_from_json(v) for v in row.get("verdicts", ())),
        restored=None if row.get("restored") is None else int(row["restored"]),
    )
