"""Completions somebody else made: files of rows, one prompt a row or one completion a row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from divmon.errors import ProbeError
from divmon.probes import ProbeSet, probes_from_rows
from divmon.records import Probe, SampleBatch
from divmon.samplers.reading import Line, lines_of

LISTS = ("completions", "generations", "responses", "outputs")
SINGLES = ("completion", "generation", "response", "output")
REWARDS = ("rewards", "scores", "correct", "is_correct", "reward", "score")
ADVANTAGE = "advantage"  # the column by which TRL's own files of completions are known
_MEASURED = {*LISTS, *SINGLES, *REWARDS}  # not part of the prompt


@dataclass(frozen=True, slots=True)
class Found:
    """What a row holds.

    Attributes:
        probe: The prompt; its id is the row's own, or its place.
        texts: Completions.
        rewards: One a completion, NaN where unknown.
        judge: The columns that `rewards` come from, empty when there are none.
    """

    probe: Probe
    texts: tuple[str, ...]
    rewards: tuple[float, ...]
    judge: str = ""


def read_completions(path: str | Path, *, step: int = 0) -> SampleBatch:
    """A batch from a file: JSON Lines (``.jsonl``, ``.jsonl.gz``), a JSON list or Parquet; or from a folder or pattern.

    A row holds a ``prompt`` (a text or chat messages) and either ``completions`` (a list) or one ``completion``, each
    a text or chat messages; rows with equal prompts are joined. Optional: ``rewards`` (numbers or booleans, one a
    completion), ``gold``, ``domain``, ``difficulty``, ``id``. In the Parquet files that TRL writes with
    ``log_completions=True`` the reward is the sum of the numeric columns between ``completion`` and ``advantage``.

    Raises:
        ProbeError: The file is empty or a row has no prompt or no completions; the message names the row.
    """
    return _batch(lines_of(path), step)


def batch_from_rows(rows: Iterable[Mapping[str, Any]], *, step: int = 0, where: str = "rows") -> SampleBatch:
    """A batch from rows as `read_completions` describes them."""
    return _batch(as_lines(rows, where), step)


def as_lines(rows: Iterable[Any], where: str = "rows") -> Iterable[Line]:
    """Rows that are in memory, as `lines_of` would give them."""
    return (Line(f"{where}, line {number}", f"line-{number:05d}", row) for number, row in enumerate(rows, 1))


def _batch(lines: Iterable[Line], step: int) -> SampleBatch:
    probes: dict[Any, Probe] = {}
    texts: dict[Any, list[str]] = {}
    rewards: dict[Any, list[float]] = {}
    for line in lines:
        found = parse(line)
        key = (found.probe.domain, found.probe.text)
        probes.setdefault(key, found.probe)
        texts.setdefault(key, []).extend(found.texts)
        rewards.setdefault(key, []).extend(found.rewards)
    known = any(not math.isnan(reward) for line in rewards.values() for reward in line)
    return SampleBatch(
        step=step,
        probes=tuple(probes.values()),
        texts=tuple(tuple(line) for line in texts.values()),
        rewards=tuple(tuple(line) for line in rewards.values()) if known else None,
        source="file",
        fingerprint=ProbeSet(tuple(probes.values())).fingerprint,
    )


def parse(line: Line, *, reward_columns: Sequence[str] = ()) -> Found:
    """What one row holds; `reward_columns` are summed to its reward, instead of the usual columns.

    >>> found = parse(Line("c.jsonl, line 1", "line-00001", {"prompt": "3+4?", "completion": "7", "reward": True}))
    >>> found.probe.id, found.texts, found.rewards, found.judge
    ('line-00001', ('7',), (1.0,), 'reward')

    Raises:
        ProbeError: What is missing or of the wrong kind, and where.
    """
    where, name, row = line
    if not isinstance(row, Mapping):
        raise ProbeError(f"{where}: not an object with a 'prompt' and 'completions'.")
    texts = _texts(row, where)
    judge = tuple(reward_columns) or _reward_columns(row)
    kept = {column: value for column, value in row.items() if column not in _MEASURED}
    if "question" in row:
        kept.setdefault("prompt", row["question"])
    if isinstance(kept.get("prompt"), list):
        kept["prompt"] = [_turn(turn) for turn in kept["prompt"]]
    [probe] = probes_from_rows([kept], places=[where])
    probe = probe if row.get("id") not in (None, "") else replace(probe, id=name)
    return Found(probe, tuple(texts), _rewards(row, judge, len(texts), where), "+".join(judge))


def _turn(turn: Any) -> Any:
    """A message whose content is one text: parts are joined, columns that other rows have are left out."""
    if not isinstance(turn, Mapping):
        return turn
    kept = {key: value for key, value in turn.items() if value is not None}
    return kept | {"content": _content(turn.get("content"))}


def _content(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(str(part.get("text") or "") if isinstance(part, Mapping) else str(part) for part in value)
    return "" if value is None else str(value)


def _text(value: Any) -> str | None:
    """A completion as text: itself, or what the assistant says in chat messages; None when it is neither."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and "content" in value:
        value = [value]
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(turn, Mapping) and turn.get("role") for turn in value):
        return None
    said = [turn for turn in value if turn["role"] == "assistant"] or value
    return "\n".join(_content(turn.get("content")) for turn in said)


def _texts(row: Mapping[str, Any], where: str) -> list[str]:
    for name in (*LISTS, *SINGLES):
        if row.get(name) is None:
            continue
        given = row[name] if name in LISTS else [row[name]]
        values = [_text(value) for value in given] if isinstance(given, list) else [None]
        if any(value is None for value in values):
            what = "a list of texts" if name in LISTS else "one text"
            raise ProbeError(f"{where}: {name!r} must hold {what}, not {str(row[name])[:80]!r}.")
        if not values:
            raise ProbeError(f"{where}: {name!r} is empty; remove the line, or fill it.")
        return [value for value in values if value is not None]
    raise ProbeError(
        f"{where}: no completions. Name them 'completions' (a list of texts) or 'completion' (one text); there are "
        f"{sorted(map(str, row))}."
    )


def _reward_columns(row: Mapping[str, Any]) -> tuple[str, ...]:
    usual = next((name for name in REWARDS if name in row), None)
    if usual is not None:
        return (usual,)
    columns = list(row)
    if ADVANTAGE not in columns or "completion" not in columns:
        return ()
    between = columns[columns.index("completion") + 1 : columns.index(ADVANTAGE)]
    return tuple(name for name in between if row[name] is None or isinstance(row[name], (int, float)))


def _rewards(row: Mapping[str, Any], columns: Sequence[str], n: int, where: str) -> tuple[float, ...]:
    """The sum over `columns`, NaN where none of them is known (as TRL sums its reward functions)."""
    total = [math.nan] * n
    for name in columns:
        if name not in row:
            raise ProbeError(f"{where}: no column {name!r} to read rewards from; there are {sorted(map(str, row))}.")
        if row[name] is None:
            continue
        values = row[name] if isinstance(row[name], list) else [row[name]]
        if len(values) != n:
            raise ProbeError(f"{where}: {len(values)} {name} for {n} completions.")
        try:
            found = [math.nan if value is None else float(value) for value in values]
        except (TypeError, ValueError, OverflowError) as error:
            raise ProbeError(f"{where}: {name!r} must hold numbers, booleans or null ({error}).") from error
        total = [b if math.isnan(a) else a if math.isnan(b) else a + b for a, b in zip(total, found, strict=True)]
    return tuple(total)


__all__ = ["Found", "as_lines", "batch_from_rows", "parse", "read_completions"]
