"""Completions of several steps from files: TRL's ``completions_*.parquet``, or JSON Lines with a ``step``."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from divmon.errors import MissingDependency, ProbeError
from divmon.probes.probeset import ProbeSet, jsonl_lines
from divmon.records import SampleBatch
from divmon.samplers.file import LISTS, SINGLES, batch_from_rows

DIFFER = "differ by step"  # the fingerprint of prompts that are others at each step
Rows = dict[int, list[Mapping[str, Any]]]
_TRL = {"step", "prompt", "completion", "advantage"}  # other numbers in TRL's table are rewards


def read_steps(path: str | Path) -> list[SampleBatch]:
    """One batch a step, oldest first.

    Args:
        path: A JSON Lines file whose lines are as `divmon.samplers.file.read_completions` takes them, with a ``step``
            more; a Parquet file that TRL has written (``log_completions=True``); a folder of them, or the trainer's
            output folder above it.

    Returns:
        Batches that can be compared: the prompts of the first step, in its order, where every step has the same
        prompts; whatever prompts there are (as with rollouts) where they differ. Every prompt has the commonest number
        of completions; others are cut to it or left out.

    Raises:
        ProbeError: Nothing usable there; the message names the file and the line.
        MissingDependency: Parquet cannot be read here.
    """
    path = Path(path)
    rows = _parquet(_tables(path)) if path.is_dir() or path.suffix == ".parquet" else _jsonl(path)
    batches = [
        batch_from_rows(map(_named, found), step=step, where=f"{path}, step {step}")
        for step, found in sorted(rows.items())
    ]
    return _comparable(list(_even(batches)))


def _tables(path: Path) -> list[Path]:
    found = [path] if path.is_file() else sorted(path.glob("completions_*.parquet"))
    found = found or sorted((path / "completions").glob("completions_*.parquet"))
    if not found:
        raise ProbeError(
            f"No divmon run and no completions_*.parquet in {path}. TRL writes those with log_completions=True."
        )
    return found


def _parquet(paths: Iterable[Path]) -> Rows:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependency("Reading Parquet needs pyarrow: pip install pyarrow.") from error
    rows: Rows = {}
    for path in paths:
        try:
            table = parquet.read_table(path).to_pylist()
        except (OSError, ValueError) as error:
            raise ProbeError(f"Cannot read {path}: {error}.") from error
        for number, row in enumerate(table, 1):
            rows.setdefault(_step(row, f"{path}, row {number}"), []).append(_plain(row))
    return rows


def _plain(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of TRL's table: chat completions as text, the rewards of its functions summed without weights."""
    found = {key: row[key] for key in ("prompt", *LISTS, *SINGLES) if row.get(key) is not None}
    for name in SINGLES:
        if isinstance(found.get(name), list):
            found[name] = "\n".join(str(turn.get("content") or "") for turn in found[name])
    rewards = [float(v) for k, v in row.items() if k not in (*_TRL, *found) and isinstance(v, (bool, int, float))]
    known = [value for value in rewards if not math.isnan(value)]
    return {**found, "reward": sum(known)} if known else found


def _jsonl(path: Path) -> Rows:
    rows: Rows = {}
    for number, row in jsonl_lines(path).items():
        where = f"{path}, line {number}"
        if not isinstance(row, Mapping):
            raise ProbeError(f"{where}: not an object with a 'step', a 'prompt' and 'completions'.")
        rows.setdefault(_step(row, where), []).append({key: value for key, value in row.items() if key != "step"})
    return rows


def _step(row: Mapping[str, Any], where: str) -> int:
    step = row.get("step")
    if isinstance(step, bool) or not isinstance(step, (int, float)) or step != int(step):
        raise ProbeError(f"{where}: 'step' must be a whole number, not {step!r}. `divmon measure` needs no step.")
    return int(step)


def _named(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with an id that follows from its prompt, so that one prompt has one id at every step."""
    if row.get("id") not in (None, ""):
        return row
    text = json.dumps([row.get("domain"), row.get("prompt", row.get("question"))], sort_keys=True, default=str)
    return {**row, "id": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]}


def _even(batches: Sequence[SampleBatch]) -> Iterator[SampleBatch]:
    """The batches with the commonest number of completions for every prompt."""
    sizes = Counter(len(row) for batch in batches for row in batch.texts)
    k = max(sizes, key=lambda size: (sizes[size], size))
    for batch in batches:
        kept = [i for i, row in enumerate(batch.texts) if len(row) >= k]
        if kept:
            yield _subset(batch, kept, k)


def _subset(batch: SampleBatch, rows: Sequence[int], k: int) -> SampleBatch:
    rewards = None if batch.rewards is None else tuple(batch.rewards[i][:k] for i in rows)
    texts = tuple(batch.texts[i][:k] for i in rows)
    return replace(batch, probes=tuple(batch.probes[i] for i in rows), texts=texts, rewards=rewards)


def _comparable(found: Sequence[SampleBatch]) -> list[SampleBatch]:
    """Prompts in the order of the first batch, and a fingerprint that says whether they are the same throughout."""
    order = {probe.id: i for i, probe in enumerate(found[0].probes)}
    same = all({probe.id for probe in batch.probes} == set(order) for batch in found)
    if not same:
        return [replace(batch, fingerprint=DIFFER) for batch in found]
    fingerprint = ProbeSet(found[0].probes).fingerprint
    k = len(found[0].texts[0])

    def in_order(batch: SampleBatch) -> SampleBatch:
        rows = sorted(range(len(batch.probes)), key=lambda i: order[batch.probes[i].id])
        return replace(_subset(batch, rows, k), fingerprint=fingerprint, probes=found[0].probes)

    return [in_order(batch) for batch in found]
