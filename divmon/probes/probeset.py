"""ProbeSet: the prompts of a run, their fingerprint, and the ways to make one."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from divmon.errors import ProbeError, suggest
from divmon.probes.rows import Decode, probes_from_rows
from divmon.records import OVERALL, Probe

PACKS = ("creative", "math", "ideation", "opinion", "code", "rewrite")
_STREAMED = 2048  # rows looked at in a data set that has no length


@dataclass(frozen=True)
class ProbeSet:
    """Fixed prompts, the same at every evaluation of a run.

    Attributes:
        probes: At least one, ids unique.

    >>> probes = ProbeSet.of(["Tell a joke.", "Name a colour."], domain="creative")
    >>> len(probes), probes.domains
    (2, ('creative',))
    """

    probes: tuple[Probe, ...]

    def __post_init__(self) -> None:
        if not self.probes:
            raise ProbeError(
                "There are no prompts: pass a list, a .jsonl file, a data set or a pack name that has some."
            )
        ids = [probe.id for probe in self.probes]
        if len(set(ids)) != len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise ProbeError(f"Two probes have the id {twice!r}; ids name curves and noise, so they must be unique.")
        if OVERALL in self.domains:
            raise ProbeError(
                f"The domain {OVERALL!r} names the numbers over every domain; call this one something else."
            )

    def __len__(self) -> int:
        return len(self.probes)

    def __iter__(self) -> Iterator[Probe]:
        return iter(self.probes)

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains in the order they first appear."""
        return tuple(dict.fromkeys(probe.domain for probe in self.probes))

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change when a prompt, its order, gold, domain, difficulty or reference does."""
        rows = [
            [p.id, p.domain, p.prompt, p.gold, p.difficulty, p.token_ids, *([p.reference] if p.reference else [])]
            for p in self.probes
        ]
        text = json.dumps(rows, sort_keys=True, ensure_ascii=True, default=str)
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:12]

    @classmethod
    def of(cls, source: Any, *, domain: str = "default", limit: int | None = None) -> ProbeSet:
        """Probes from whatever the user has.

        Args:
            source: A ProbeSet; one of `PACKS` (``"creative"``), or several joined by ``+``; a path to a
                ``.jsonl`` file; a Hub data set as ``"hub:owner/name"`` or ``"hub:owner/name:split"``; a
                ``datasets.Dataset``; a list of texts, of chat messages, or of mappings.
            domain: For rows that name none.
            limit: At most this many, spread evenly over the source.

        Raises:
            ProbeError: Nothing usable there; the message says what to pass instead.
        """
        if isinstance(source, cls):
            found = source.probes
        elif isinstance(source, (str, os.PathLike)):
            found = tuple(_named(str(source), domain, limit))
        elif isinstance(source, (Mapping, AbstractSet)) or hasattr(source, "iloc"):
            raise ProbeError(_unreadable(source))
        elif hasattr(source, "column_names") or isinstance(source, Iterable):
            found = tuple(probes_from_rows(spread(source, limit), domain=domain))
        else:
            kind = type(source).__name__
            raise ProbeError(f"Cannot read probes from a {kind}: pass a list, a path, a data set or a pack name.")
        return cls(tuple(spread(found, limit)))

    @classmethod
    def from_rows(cls, rows: Any, *, domain: str, limit: int, decode: Decode | None = None) -> ProbeSet:
        """Probes from a trainer's own rows, at most `limit`, spread evenly."""
        found = probes_from_rows(spread(rows, 4 * limit), domain=domain, decode=decode)
        return cls(tuple(replace(p, id=f"{p.domain}-{i:04d}") for i, p in enumerate(spread(found, limit))))

    def as_chat(self) -> ProbeSet:
        """Plain texts wrapped as one user message each, for chat models."""
        return ProbeSet(
            tuple(
                replace(p, prompt=({"role": "user", "content": p.prompt},))
                if isinstance(p.prompt, str) and p.token_ids is None
                else p
                for p in self.probes
            )
        )


def spread(rows: Any, limit: int | None) -> Sequence[Any]:
    """At most `limit` of `rows`, evenly spaced and without randomness; the first ones of a source without a length.

    >>> spread(list(range(10)), 4)
    [0, 2, 5, 7]
    """
    if not hasattr(rows, "__len__"):
        rows = list(itertools.islice(iter(rows), _STREAMED))
    n = len(rows)
    if limit is None or n <= limit:
        return rows if isinstance(rows, (list, tuple)) else [rows[i] for i in range(n)]
    return [rows[i * n // limit] for i in range(limit)]


def _named(name: str, domain: str, limit: int | None) -> list[Probe]:
    if name.startswith("hub:"):
        rows = _hub_rows(name.removeprefix("hub:"))
        return probes_from_rows(spread(rows, None if limit is None else 4 * limit), domain=domain)
    if name.endswith((".jsonl", ".json")) or os.path.isfile(name):
        lines = jsonl_lines(Path(name))
        return probes_from_rows(lines.values(), domain=domain, places=[f"{name}, line {number}" for number in lines])
    packs = name.split("+")
    if all(pack in PACKS for pack in packs):
        return [probe for pack in packs for probe in probes_from_rows(_pack_rows(pack), domain=pack)]
    bad = next(pack for pack in packs if pack not in PACKS)
    bad = bad if len(bad) < 80 else f"{bad[:80]}..."
    raise ProbeError(
        f"{bad!r} is neither a pack nor a file.{suggest(bad, PACKS)} A file ends in .jsonl; a Hub data set is written "
        "'hub:owner/name'; prompts are passed in a list."
    )


def _pack_rows(name: str) -> list[Any]:
    text = resources.files("divmon.probes").joinpath("packs", f"{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _unreadable(source: Any) -> str:
    if isinstance(source, AbstractSet):
        return "A set has no order of its own: pass a list of prompts."
    if isinstance(source, Mapping):
        keys = ", ".join(repr(key) for key in list(source)[:5])
        return f"This is a mapping with the keys {keys}: pass one data set (or split) of it, or a list of mappings."
    return "Cannot read probes from a data frame: pass frame.to_dict('records')."


def jsonl_lines(path: Path) -> dict[int, Any]:
    """The objects of a JSON Lines file by line number; a damaged one is a `ProbeError` that names the line."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise ProbeError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ProbeError(f"{path} is not UTF-8 ({error}): save it as UTF-8.") from error
    rows = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows[number] = json.loads(line)
        except ValueError as error:
            raise ProbeError(
                f"{path}, line {number} is not JSON ({error}); a line is one object with a 'prompt'."
            ) from error
    if not rows:
        raise ProbeError(f"{path} is empty: write one JSON object with a 'prompt' a line.")
    return rows


def _hub_rows(name: str) -> Any:
    from datasets import load_dataset

    path, _, split = name.partition(":")
    try:
        return load_dataset(path, split=split or "train")
    except Exception as error:
        raise ProbeError(
            f"Cannot load the Hub data set {path!r}, split {split or 'train'!r}: {error}. "
            "Check the name and the network, or save the prompts as a .jsonl file."
        ) from error
