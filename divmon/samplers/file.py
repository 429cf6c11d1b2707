"""Completions somebody else made: a JSON Lines file, one prompt a line or one completion a line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from divmon.errors import ProbeError
from divmon.probes import ProbeSet, probes_from_rows
from divmon.probes.probeset import jsonl_lines
from divmon.records import Probe, SampleBatch

LISTS = ("completions", "generations", "responses", "outputs")
SINGLES = ("completion", "generation", "response", "output")
REWARDS = ("rewards", "scores", "correct", "is_correct", "reward", "score")
_MEASURED = {*LISTS, *SINGLES, *REWARDS}  # not part of the prompt


def read_completions(path: str | Path, *, step: int = 0) -> SampleBatch:
    """A batch from a JSON Lines file.

    A line holds a ``prompt`` (a text or chat messages) and either ``completions`` (a list of texts) or one
    ``completion``; lines with equal prompts are joined. Optional: ``rewards`` (numbers or booleans, one a completion),
    ``gold``, ``domain``, ``difficulty``, ``id``.

    Raises:
        ProbeError: The file is empty or a line has no prompt or no completions; the message names the line.
    """
    return _batch(jsonl_lines(Path(path)).items(), step, str(path))


def batch_from_rows(rows: Iterable[Mapping[str, Any]], *, step: int = 0, where: str = "rows") -> SampleBatch:
    """A batch from rows as `read_completions` describes them."""
    return _batch(enumerate(rows, 1), step, where)


def _batch(numbered: Iterable[tuple[int, Any]], step: int, source: str) -> SampleBatch:
    probes: dict[Any, Probe] = {}
    texts: dict[Any, list[str]] = {}
    rewards: dict[Any, list[float]] = {}
    for number, row in numbered:
        where = f"{source}, line {number}"
        if not isinstance(row, Mapping):
            raise ProbeError(f"{where}: not an object with a 'prompt' and 'completions'.")
        found = _texts(row, where)
        probe = _probe(row, number, where)
        key = (probe.domain, probe.text)
        probes.setdefault(key, probe)
        texts.setdefault(key, []).extend(found)
        rewards.setdefault(key, []).extend(_rewards(row, len(found), where))
    known = any(not math.isnan(reward) for line in rewards.values() for reward in line)
    return SampleBatch(
        step=step,
        probes=tuple(probes.values()),
        texts=tuple(tuple(line) for line in texts.values()),
        rewards=tuple(tuple(line) for line in rewards.values()) if known else None,
        source="file",
        fingerprint=ProbeSet(tuple(probes.values())).fingerprint,
    )


def _probe(row: Mapping[str, Any], number: int, where: str) -> Probe:
    kept = {name: value for name, value in row.items() if name not in _MEASURED}
    if "question" in row:
        kept.setdefault("prompt", row["question"])
    [probe] = probes_from_rows([kept], places=[where])
    return probe if row.get("id") not in (None, "") else replace(probe, id=f"line-{number:05d}")


def _texts(row: Mapping[str, Any], where: str) -> list[str]:
    for name in (*LISTS, *SINGLES):
        if name in row:
            values = row[name] if name in LISTS else [row[name]]
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                what = "a list of texts" if name in LISTS else "one text"
                raise ProbeError(f"{where}: {name!r} must hold {what}, not {str(row[name])[:80]!r}.")
            if not values:
                raise ProbeError(f"{where}: {name!r} is empty; remove the line, or fill it.")
            return values
    raise ProbeError(f"{where}: no completions. Name them 'completions' (a list of texts) or 'completion' (one text).")


def _rewards(row: Mapping[str, Any], n: int, where: str) -> list[float]:
    for name in REWARDS:
        if name in row:
            values = row[name] if isinstance(row[name], list) else [row[name]]
            if len(values) != n:
                raise ProbeError(f"{where}: {len(values)} {name} for {n} completions.")
            try:
                return [math.nan if value is None else float(value) for value in values]
            except (TypeError, ValueError, OverflowError) as error:
                raise ProbeError(f"{where}: {name!r} must hold numbers, booleans or null ({error}).") from error
    return [math.nan] * n


__all__ = ["batch_from_rows", "read_completions"]
