"""Reads the `run-*.wandb` file of an offline run, so that tests can look at what really reached the tracker.

The file is a LevelDB log: a 7-byte header, then blocks of 32 KiB with records of (crc, length, kind) that may be split
over blocks. Checksums are not verified.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
FILE_HEADER = 7  # ":W&B", a magic number, a version
RECORD_HEADER = struct.Struct("<IHB")  # crc, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class WandbRun:
    """What an offline run holds.

    Attributes:
        path: The run's directory.
        history: One dict a row, in the order logged, values decoded from JSON.
        alerts: Dicts with "title", "text", "level" and "wait_ms".
        summary: The last value of each key.
        definitions: Metric name or glob to the metric it is plotted against ("" for none).
        started: When, in nanoseconds.
    """

    path: Path
    history: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    definitions: dict[str, str] = field(default_factory=dict)
    started: int = 0

    def series(self, key: str) -> list[tuple[int, Any]]:
        """``(train/global_step, value)`` of each row that has `key`."""
        return [(row["train/global_step"], row[key]) for row in self.history if key in row]

    def table(self, value: dict[str, Any]) -> dict[str, Any]:
        """The ``columns`` and ``data`` of a table logged as `value`."""
        content: dict[str, Any] = json.loads((self.path / "files" / value["path"]).read_text(encoding="utf-8"))
        return content


def payloads(path: Path) -> Iterator[bytes]:
    """The records of a log file, put together again where they were split; up to where the file ends by now."""
    data = path.read_bytes()
    if data[:4] != b":W&B"[: len(data)]:
        raise ValueError(f"{path} is not a W&B log")
    at, parts = FILE_HEADER, b""
    while at + RECORD_HEADER.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < RECORD_HEADER.size:  # too little for a header: padding
            at += left
            continue
        _, length, kind = RECORD_HEADER.unpack_from(data, at)
        at += RECORD_HEADER.size
        if at + length > len(data):
            return
        chunk, at = data[at : at + length], at + length
        if kind in (FULL, FIRST):
            parts = chunk
        elif kind in (MIDDLE, LAST):
            parts += chunk
        else:
            raise ValueError(f"record kind {kind} at byte {at} of {path}")
        if kind in (FULL, LAST):
            yield parts


def read(directory: str | Path, *, timeout: float = 60.0) -> list[WandbRun]:
    """Every finished offline run below `directory`, in the order of their starts.

    ``wandb.finish()`` returns before its service has written an offline file to the end, so this waits for the record
    that closes a run.
    """
    deadline = time.monotonic() + timeout
    runs = []
    for path in Path(directory).rglob("run-*.wandb"):
        while (run := _read(path)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} is not finished")
            time.sleep(0.02)
        runs.append(run)
    return sorted(runs, key=lambda run: run.started)


def _read(path: Path) -> WandbRun | None:
    """The run in a file; None while its end is not there."""
    from wandb.proto import wandb_internal_pb2

    run, ended = WandbRun(path.parent), False
    for payload in payloads(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "alert":
            alert = record.alert
            row = {"title": alert.title, "text": alert.text, "level": alert.level, "wait_ms": alert.wait_duration}
            run.alerts.append(row)
        elif kind == "summary":
            run.summary.update(_items(record.summary.update))
        elif kind == "metric":
            run.definitions[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "run":
            run.started = record.run.start_time.ToNanoseconds()
        elif kind == "exit":
            ended = True
    return run if ended else None


def _items(items: Any) -> dict[str, Any]:
    """Decoded values; those of media come piece by piece (nested keys) and become a dict again."""
    row: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = row
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return row
