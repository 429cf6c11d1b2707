"""Completions sorted on disk by group and prompt, so that lines in any order can be measured block by block.

A temporary SQLite file does the sorting. Prompts come back ordered by a hash of their domain and text: the order is the
same however the lines were shuffled, and the first prompts of a group are a random sample of it. What is kept in it is
JSON, never pickles. Prompts are matched between two files by the same hash.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from divmon.errors import ProbeError
from divmon.records import Probe, SampleBatch, as_messages
from divmon.samplers.file import Found, parse
from divmon.samplers.reading import Line

CHARACTERS = 16_000_000  # of completions held at once, at most, but for a single prompt with more
_CACHE = "PRAGMA cache_size = -16000"  # kB
_DECODING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_new_tokens": "max_new_tokens",
    "max_tokens": "max_new_tokens",
}
_STATED = 5  # different values of each that are kept
Group = tuple[str, ...]


@dataclass
class Summary:
    """What is known of a file once it has been read through.

    Attributes:
        completions: How many.
        prompts: Different ones, groups taken together.
        ks: Fewest and most completions of a prompt, by group.
        judges: Columns that rewards came from.
        judged: Whether any reward is known.
        gold: Whether any prompt has a gold answer.
        disputed: Prompts (of a group) whose rows have different gold answers; the first row's counts.
        difficulties: Those that occur.
        decoding: Values of the columns temperature, top_p and max_new_tokens (or max_tokens), where there are any.
        fingerprint: Of the set of prompts, in whatever order.
    """

    completions: int = 0
    prompts: int = 0
    ks: dict[Group, tuple[int, int]] = field(default_factory=dict)
    judges: set[str] = field(default_factory=set)
    judged: bool = False
    gold: bool = False
    disputed: int = 0
    difficulties: set[int] = field(default_factory=set)
    decoding: dict[str, set[float]] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def k(self) -> tuple[int, int]:
        """Fewest and most completions of a prompt (of a group)."""
        return min(low for low, _ in self.ks.values()), max(high for _, high in self.ks.values())


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt of one group with all its completions; the probe's id is the hash by which prompts are matched."""

    probe: Probe
    texts: tuple[str, ...]
    rewards: tuple[float, ...]

    @property
    def size(self) -> int:
        """Characters."""
        return sum(map(len, self.texts))


class Store:
    """One source of completions, sorted on disk.

    Args:
        path: The file to sort in.
        group_by: Columns whose values make groups.
        reward_columns: See `divmon.samplers.file.parse`.
        prepare: Completion to the text that is measured.
    """

    def __init__(
        self,
        path: Path,
        *,
        group_by: Sequence[str] = (),
        reward_columns: Sequence[str] = (),
        prepare: Callable[[str], str] | None = None,
    ) -> None:
        self.group_by = tuple(group_by)
        self.reward_columns = tuple(reward_columns)
        self.prepare = prepare
        self.summary = Summary()
        self._db = sqlite3.connect(path)
        for setting in (_CACHE, "PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", "PRAGMA temp_store = FILE"):
            self._db.execute(setting)
        self._db.execute("CREATE TABLE rows (grp TEXT, prompt TEXT, domain TEXT, n INTEGER, gold TEXT, body TEXT)")
        self._db.execute("CREATE TABLE kept (prompt TEXT PRIMARY KEY, body BLOB) WITHOUT ROWID")

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def fill(self, lines: Iterable[Line]) -> None:
        """Read everything, check every row, and sort.

        Raises:
            ProbeError: A row that cannot be used; the message names it.
        """
        try:
            self._db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", (self._row(line) for line in lines))
            if not self.summary.completions:
                raise ProbeError("There are no completions: the file or list is empty.")
            self._db.execute("CREATE INDEX sorted ON rows (grp, prompt)")
        except sqlite3.OperationalError as error:
            raise ProbeError(
                f"Cannot sort the completions in {tempfile.gettempdir()}: {error}. That takes about the size of the "
                "source; TMPDIR names another folder."
            ) from error
        summary = self.summary
        totals = "SELECT grp, SUM(n) AS k, MIN(gold) <> MAX(gold) AS disputed FROM rows GROUP BY grp, prompt"
        found = self._db.execute(f"SELECT grp, MIN(k), MAX(k), TOTAL(disputed) FROM ({totals}) GROUP BY grp").fetchall()
        summary.ks = {tuple(json.loads(group)): (low, high) for group, low, high, _ in found}
        summary.disputed = int(sum(disputed for *_, disputed in found))
        [(summary.prompts,)] = self._db.execute("SELECT COUNT(DISTINCT prompt) FROM rows")
        digest = hashlib.sha256()
        for (prompt,) in self._db.execute("SELECT DISTINCT prompt FROM rows ORDER BY prompt"):
            digest.update(prompt.encode())
        summary.fingerprint = digest.hexdigest()[:12]

    def _row(self, line: Line) -> tuple[str, str, str, int, str | None, str]:
        found = parse(line, reward_columns=self.reward_columns)
        absent = next((name for name in self.group_by if name not in line.row), None)
        if absent is not None:
            there = sorted(map(str, line.row))
            raise ProbeError(f"{line.where}: no column {absent!r} to group by; there are {there}.")
        group = json.dumps([_label(line.row[name]) for name in self.group_by])
        if self.prepare is not None:
            found = replace(found, texts=tuple(map(self.prepare, found.texts)))
        self._note(found)
        probe, body = found.probe, json.dumps(_body(found), default=str)
        gold = None if probe.gold is None else json.dumps(probe.gold, default=str, sort_keys=True)
        return group, _key(probe), probe.domain, len(found.texts), gold, body

    def _note(self, found: Found) -> None:
        summary, probe = self.summary, found.probe
        summary.completions += len(found.texts)
        if any(not math.isnan(reward) for reward in found.rewards):
            summary.judged = True
            summary.judges.add(found.judge)
        summary.gold |= probe.gold is not None
        if probe.difficulty is not None:
            summary.difficulties.add(probe.difficulty)
        for column, name in _DECODING.items():
            value = probe.columns.get(column)
            if isinstance(value, (int, float)) and len(summary.decoding.get(name, ())) < _STATED:
                summary.decoding.setdefault(name, set()).add(float(value))

    def groups(self) -> list[tuple[Group, tuple[str, ...], int]]:
        """Groups with their domains and numbers of prompts, in the order of their values, numbers as numbers."""
        domains: dict[str, list[str]] = {}
        for group, domain in self._db.execute("SELECT DISTINCT grp, domain FROM rows ORDER BY domain"):
            domains.setdefault(group, []).append(domain)
        counts = dict(self._db.execute("SELECT grp, COUNT(DISTINCT prompt) FROM rows GROUP BY grp").fetchall())
        found = [(tuple(json.loads(group)), tuple(names), counts[group]) for group, names in domains.items()]
        return sorted(found, key=lambda item: [_natural(value) for value in item[0]])

    def entries(self, group: Group | None = None) -> Iterator[Entry]:
        """The prompts of a group (of all groups, each prompt once, without one) in the order of their hashes."""
        if group is None:
            self.sort_all()
            rows = self._db.execute("SELECT prompt, body FROM rows INDEXED BY sorted_all ORDER BY prompt, rowid")
        else:
            query = "SELECT prompt, body FROM rows WHERE grp = ? ORDER BY prompt, rowid"
            rows = self._db.execute(query, (json.dumps(list(group)),))
        yield from _joined(rows)

    def matching(self, ids: Sequence[str]) -> list[Entry]:
        """The prompts with these hashes, all groups taken together, in their order; absent ones are left out."""
        self.sort_all()
        marks = ",".join("?" * len(ids))
        query = f"SELECT prompt, body FROM rows INDEXED BY sorted_all WHERE prompt IN ({marks}) ORDER BY prompt, rowid"
        return list(_joined(self._db.execute(query, tuple(ids))))

    def sort_all(self) -> None:
        """Sort by prompt alone, too, unless that has been done."""
        self._db.execute("CREATE INDEX IF NOT EXISTS sorted_all ON rows (prompt)")

    def keep(self, ids: Sequence[str], values: np.ndarray) -> None:
        """Set aside numbers of prompts (float[N, M])."""
        rows = ((key, row.astype("<f8").tobytes()) for key, row in zip(ids, values, strict=True))
        self._db.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", rows)

    def recall(self, ids: Sequence[str], width: int) -> np.ndarray:
        """float[N, width]: what was set aside, NaN for prompts that are not here."""
        marks = ",".join("?" * len(ids))
        query = f"SELECT prompt, body FROM kept WHERE prompt IN ({marks})"
        found = dict(self._db.execute(query, tuple(ids)).fetchall())
        blank = np.full(width, math.nan).astype("<f8").tobytes()
        return np.stack([np.frombuffer(found.get(key, blank), "<f8") for key in ids])


def blocks(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    """Entries in blocks of at most `size` prompts and about `CHARACTERS` characters."""
    block: list[Entry] = []
    characters = 0
    for entry in entries:
        if block and (len(block) == size or characters + entry.size > CHARACTERS):
            yield block
            block, characters = [], 0
        block.append(entry)
        characters += entry.size
    if block:
        yield block


def batch_of(entries: Sequence[Entry], *, fingerprint: str = "", judged: bool = True) -> SampleBatch:
    """A batch of a block; without rewards where the whole file has none (`judged`)."""
    return SampleBatch(
        step=0,
        probes=tuple(entry.probe for entry in entries),
        texts=tuple(entry.texts for entry in entries),
        rewards=tuple(entry.rewards for entry in entries) if judged else None,
        source="file",
        fingerprint=fingerprint,
    )


def _key(probe: Probe) -> str:
    text = json.dumps([probe.domain, probe.text])
    return hashlib.blake2b(text.encode("ascii"), digest_size=12).hexdigest()


def _label(value: Any) -> str:
    """The value of a column as a group is called: 10.0 is 10."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)


def _natural(value: str) -> tuple[int, float, str]:
    number = re.fullmatch(r"[-+]?\d{1,18}(\.\d{1,18})?", value)
    return (0, float(value), value) if number else (1, 0.0, value)


def _body(found: Found) -> Mapping[str, Any]:
    probe = found.probe
    body = {"prompt": probe.prompt, "domain": probe.domain, "gold": probe.gold, "reference": probe.reference}
    return body | {
        "difficulty": probe.difficulty,
        "columns": probe.columns,
        "texts": found.texts,
        "rewards": found.rewards,
    }


def _joined(rows: Iterable[tuple[str, str]]) -> Iterator[Entry]:
    """Rows of one prompt follow each other; the first one says what the prompt is."""
    current = ""
    first: Mapping[str, Any] = {}
    texts: list[str] = []
    rewards: list[float] = []
    for key, body in rows:
        row = json.loads(body)
        if key != current and texts:
            yield _entry(current, first, texts, rewards)
        if key != current:
            current, first, texts, rewards = key, row, [], []
        texts.extend(row["texts"])
        rewards.extend(row["rewards"])
    if texts:
        yield _entry(current, first, texts, rewards)


def _entry(key: str, row: Mapping[str, Any], texts: list[str], rewards: list[float]) -> Entry:
    prompt = row["prompt"] if isinstance(row["prompt"], str) else as_messages(row["prompt"])
    known = {name: row[name] for name in ("domain", "gold", "reference", "difficulty", "columns")}
    return Entry(Probe(id=key, prompt=prompt, **known), tuple(texts), tuple(rewards))
