"""Healthy checkpoints on disk: written whole or not at all, checked when read, and never unpickled.

::

    RUN/healthy/step-00000040.pt      weights, optimizer, scheduler (and gradient scaler) of step 40
    RUN/healthy/step-00000040.json    its size and checksum; written last, so it says that the other is complete

They lie beside the run's history, not among the trainer's checkpoints: `save_total_limit` does not count them, and
``resume_from_checkpoint`` does not find them. ``torch.load(PATH, weights_only=True)["weights"]`` has the weights that
training changes (an adapter's, with PEFT), by the names of ``model.named_parameters()``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from divmon.errors import DivmonError

FORMAT = 1
_BLOCK = 1 << 22


class Unusable(DivmonError):
    """A healthy checkpoint that is missing or damaged."""


class HealthyCheckpoints:
    """The checkpoints in one folder.

    Args:
        folder: Made when the first one is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, step: int, state: Mapping[str, Any]) -> None:
        """Write `state` as the checkpoint of `step`, or nothing at all.

        Raises:
            OSError: The disk refused (some of its refusals reach us as a RuntimeError of torch).
        """
        path, note = self._paths(step)
        partial = path.with_suffix(".partial")
        self.folder.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        try:
            with partial.open("wb") as file:
                torch.save({"format": FORMAT, "step": step, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            row = {"format": FORMAT, "step": step, "bytes": partial.stat().st_size, "crc32": _crc32(partial)}
            partial.replace(path)
            with partial.open("w", encoding="ascii") as text:
                text.write(json.dumps(row) + "\n")
                text.flush()
                os.fsync(text.fileno())
            partial.replace(note)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise

    def read(self, step: int) -> dict[str, Any]:
        """The checkpoint of `step`, on the CPU.

        Raises:
            Unusable: It is missing, torn or damaged, or holds what is not plain data.
        """
        path, note = self._paths(step)
        try:
            row = json.loads(note.read_bytes())
            whole = path.stat().st_size == row["bytes"] and _crc32(path) == row["crc32"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unusable(f"{path} is incomplete ({type(error).__name__}: {error})") from error
        if not whole:
            raise Unusable(f"{path} is torn or damaged: its size or checksum is not what was written")
        try:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # what torch raises depends on its version and on the file
            raise Unusable(f"{path} cannot be read ({type(error).__name__})") from error

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        found = (re.fullmatch(r"step-(\d+)\.json", path.name) for path in self.folder.glob("step-*.json"))
        return sorted(int(match[1]) for match in found if match and self._paths(int(match[1]))[0].exists())

    def remove(self, *steps: int) -> None:
        """Delete the checkpoints of `steps`, as far as they exist."""
        for path in (path for step in steps for path in reversed(self._paths(step))):
            path.unlink(missing_ok=True)

    def _paths(self, step: int) -> tuple[Path, Path]:
        return self.folder / f"step-{step:08d}.pt", self.folder / f"step-{step:08d}.json"


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
