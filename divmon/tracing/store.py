"""Completions of a checkpoint on disk: drawn once, in blocks that are whole or not there.

::

    OUT/completions/sft-1a2b3c4d5e6f/request.json     what was asked for: weights, prompts, K, decoding
    OUT/completions/sft-1a2b3c4d5e6f/00000.jsonl.gz   the first block of prompts

The folder's name ends in a hash of the request.

A block is written beside its place and moved there, so that a process killed at any byte leaves none or all of it; a
damaged one (its checksum is that of gzip) is drawn again. Other settings or other weights have another folder, so
nothing that was drawn is ever thrown away.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from divmon.errors import HistoryError
from divmon.plain import batch_from_rows, batch_rows, to_json
from divmon.records import Probe, SampleBatch

log = logging.getLogger("divmon")
ROWS = (64, 256)  # completions of a block: fewest, and most
BLOCKS = 16  # as many blocks as this, within these bounds: what workers share, and what a kill can cost
_DIGITS = 5  # decimals of log-probabilities and entropies


@dataclass(frozen=True)
class Block:
    """Completions of some prompts, and how they came about.

    Attributes:
        batch: The completions.
        facts: Plain JSON: which tokenizer and chat template, whether prompts end inside a reasoning block, notes.
    """

    batch: SampleBatch
    facts: Mapping[str, Any] = field(default_factory=dict)


def blocks(probes: Sequence[Probe], k: int) -> list[tuple[Probe, ...]]:
    """The prompts in blocks that depend on nothing but their number and `k`.

    >>> [len(block) for block in blocks([Probe(str(i), "?") for i in range(20)], 8)]
    [8, 8, 4]
    """
    few, many = (max(1, -(-rows // k)) for rows in ROWS)
    size = min(many, max(few, -(-len(probes) // BLOCKS)))
    return [tuple(probes[i : i + size]) for i in range(0, len(probes), size)]


class Drawn:
    """The folder of one checkpoint.

    Args:
        root: ``OUT/completions``.
        name: The checkpoint.
        request: Plain JSON, all that the completions depend on.
    """

    def __init__(self, root: Path, name: str, request: Mapping[str, Any]) -> None:
        self.request = json.loads(_dumps(request))
        digest = hashlib.sha256(_dumps(self.request).encode("ascii")).hexdigest()[:12]
        self.path = root / f"{_slug(name)}-{digest}"

    @classmethod
    def without_weights(cls, root: Path, name: str, request: Mapping[str, Any]) -> Drawn | None:
        """Completions that were drawn as asked from weights that are no longer there; None when there are none."""
        wanted = json.loads(_dumps(request))
        for folder in sorted(root.glob(f"{_slug(name)}-*")):
            try:
                there = json.loads((folder / "request.json").read_text("ascii"))
            except (OSError, ValueError):
                continue
            if isinstance(there, dict) and {**there, "weights": None} == {**wanted, "weights": None}:
                return cls(root, name, there)
        return None

    def begin(self) -> None:
        """Say what is asked for."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "request.json", (_dumps(self.request) + "\n").encode("ascii"))

    def _file(self, index: int) -> Path:
        return self.path / f"{index:05d}.jsonl.gz"

    def write(self, index: int, block: Block) -> None:
        """Put a block in its place."""
        batch = replace(block.batch, logprobs=_rounded(block.batch.logprobs), entropies=_rounded(block.batch.entropies))
        lines = [{"facts": block.facts}, *batch_rows(batch)]
        text = "".join(_dumps(line) + "\n" for line in lines)
        write_whole(self._file(index), gzip.compress(text.encode("ascii"), 4, mtime=0))

    def read(self, index: int, probes: Sequence[Probe]) -> Block | None:
        """A block; None where there is none, or where it is damaged, which is said."""
        path = self._file(index)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HistoryError(f"Cannot read {path}: {error.strerror}.") from error
        try:
            head, *rows = [json.loads(line) for line in gzip.decompress(raw).decode("ascii").splitlines()]
            batch = batch_from_rows(rows, probes)
            if batch.probes != tuple(probes):
                raise ValueError("it holds other prompts")
            return Block(batch, dict(head["facts"]))
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
            log.warning("divmon: %s is damaged (%s) and will be drawn again.", path, error)
            return None


def _rounded(rows: Any) -> Any:
    if rows is None:
        return None
    return tuple(tuple(np.round(np.asarray(cell, dtype=float), _DIGITS) for cell in row) for row in rows)


def _dumps(value: Any) -> str:
    return json.dumps(to_json(value), ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":"))


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:60].strip(".") or "checkpoint"


def write_whole(path: Path, data: bytes) -> None:
    """All of a file or none of it; several processes may write different files.

    Raises:
        HistoryError: The disk would not.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise HistoryError(f"Cannot write {path}: {error.strerror}.") from error
