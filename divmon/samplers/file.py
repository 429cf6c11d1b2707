"""Completions somebody else made: a JSON Lines file, one prompt a line or one completion a line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from divmon.errors import ProbeError
from divmon.probes import ProbeSet, probes_from_rows
from divmon.probes.probeset import jsonl_rows
from divmon.records import Probe, SampleBatch

LISTS = ("completions", "generations", "responses", "outputs")
SINGLES = ("completion", "generation", "response", "output")
REWARDS = ("rewards", "scores", "correct", "is_correct", "reward", "score")


def read_completions(path: str | Path, *, step: int = 0) -> SampleBatch:
    """A batch from a JSON Lines file.

    A line holds a ``prompt`` (a text or chat messages) and either ``completions`` (a list of texts) or one
    ``completion``; lines with equal prompts are joined. Optional: ``rewards`` (numbers or booleans, one a completion),
    ``gold``, ``domain``, ``difficulty``, ``id``.

    Raises:
        ProbeError: The file is empty or a line has no prompt or no completions; the message names the line.
    """
    return batch_from_rows(jsonl_rows(Path(path)), step=step, where=str(path))


def batch_from_rows(rows: Iterable[Mapping[str, Any]], *, step: int = 0, where: str = "rows") -> SampleBatch:
    """A batch from rows as `read_completions` describes them."""
    probes: dict[Any, Probe] = {}
    texts: dict[Any, list[str]] = {}
    rewards: dict[Any, list[float]] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise ProbeError(f"{where}, line {number}: not an object with a 'prompt' and 'completions'.")
        prompt = row.get("prompt", row.get("question"))
        [probe] = probes_from_rows([{**row, "prompt": prompt}])
        key = (probe.domain, probe.text)
        probes.setdefault(key, replace(probe, id=str(row.get("id") or f"line-{number:05d}")))
        found = _texts(row, f"{where}, line {number}")
        texts.setdefault(key, []).extend(found)
        rewards.setdefault(key, []).extend(_rewards(row, len(found), f"{where}, line {number}"))
    known = any(not math.isnan(reward) for line in rewards.values() for reward in line)
    return SampleBatch(
        step=step,
        probes=tuple(probes.values()),
        texts=tuple(tuple(line) for line in texts.values()),
        rewards=tuple(tuple(line) for line in rewards.values()) if known else None,
        source="file",
        fingerprint=ProbeSet(tuple(probes.values())).fingerprint,
    )


def _texts(row: Mapping[str, Any], where: str) -> list[str]:
    for name in (*LISTS, *SINGLES):
        if name in row:
            values = row[name] if name in LISTS else [row[name]]
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise ProbeError(f"{where}: {name!r} must hold text, not {type(row[name]).__name__}.")
            return values
    raise ProbeError(f"{where}: no completions. Name them 'completions' (a list of texts) or 'completion' (one text).")


def _rewards(row: Mapping[str, Any], n: int, where: str) -> list[float]:
    for name in REWARDS:
        if name in row:
            values = row[name] if isinstance(row[name], list) else [row[name]]
            if len(values) != n:
                raise ProbeError(f"{where}: {len(values)} {name} for {n} completions.")
            return [math.nan if value is None else float(value) for value in values]
    return [math.nan] * n


__all__ = ["batch_from_rows", "read_completions"]
