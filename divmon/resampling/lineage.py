"""Where each accepted refinement comes from, on disk: one line of JSON each, only ever appended.

A line has the prompt, the first answer, the critique, the refinement, the filters it passed, its variant (or mode),
critic, writer, step, quality, log-probability, novelty, and token ids when they are known. A process that is killed
loses at most the lines it was writing. One process writes a file at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from divmon.errors import HistoryError
from divmon.history import complete_bytes
from divmon.plain import float_from_json, probe_from_json, to_json
from divmon.resampling.base import Attempt, Candidate, Refinement


class Lineage:
    """The lineage at `path`, to be written.

    Attributes:
        path: The file; its folder is made when it is first written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._unwritten: list[str] = []
        self._retry_at: int | None = None  # where the lines begin that a failing disk may hold or not

    def append(self, refinements: Iterable[Refinement]) -> None:
        """Write `refinements`. What could not be written is written with the next ones.

        Raises:
            OSError: The disk refused; nothing is lost while the process lives.
        """
        self._unwritten += [_dumps(_row(refinement)) for refinement in refinements]
        self.flush()

    def rewind(self, step: int) -> None:
        """Go on from a checkpoint at `step`: what was accepted after it stays in the file, and is no longer read.

        Raises:
            OSError: The disk refused.
        """
        if self.path.exists() or self._unwritten:
            self._unwritten.append(_dumps({"resumed_at": step}))
            self.flush()

    def flush(self) -> None:
        """Write whatever earlier attempts could not."""
        if not self._unwritten:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            complete = complete_bytes(file)
            self._retry_at = complete if self._retry_at is None else min(complete, self._retry_at)
            file.truncate(self._retry_at)
            file.write("".join(self._unwritten).encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
        self._retry_at = None
        self._unwritten = []

    @staticmethod
    def read(path: str | Path) -> tuple[Refinement, ...]:
        """What was accepted, oldest first, but for branches given up by resuming; a torn last line is left out.

        Raises:
            HistoryError: There is no such file, or a line before its last is damaged.
        """
        path = Path(path)
        if not path.exists():
            raise HistoryError(f"There is no {path}.")
        *lines, _torn = path.read_bytes().split(b"\n")
        found: list[Refinement] = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if "resumed_at" in row:
                    found = [refinement for refinement in found if refinement.step <= int(row["resumed_at"])]
                else:
                    found.append(refinement_from_json(row))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                why = f"{path}, line {number} is damaged ({type(error).__name__}: {error})"
                raise HistoryError(f"{why}. Remove the line to read the rest.") from error
        return tuple(found)


def _dumps(row: Mapping[str, Any]) -> str:
    # ensure_ascii keeps every line one line whatever a model wrote (U+2028, lone surrogates, control characters)
    return json.dumps(to_json(row), ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"


def _row(refinement: Refinement) -> Mapping[str, Any]:
    candidate = refinement.candidate
    return {
        "step": refinement.step,
        "probe": replace(refinement.probe, columns={}, token_ids=None),  # anything may be in columns
        "attempt": candidate.attempt.text,
        "attempt_quality": candidate.attempt.quality,
        **{name: getattr(candidate, name) for name in _CANDIDATE},
        **{name: getattr(refinement, name) for name in _NUMBERS},
        "passed": refinement.passed,
    }


_CANDIDATE = ("critique", "text", "variant", "critic", "writer", "number", "token_ids")
_NUMBERS = ("quality", "logprob", "novelty")


def refinement_from_json(row: Mapping[str, Any]) -> Refinement:
    """A line of the lineage as the refinement it was, but for the columns and tokens of its prompt."""
    attempt = Attempt(probe_from_json(row["probe"]), row["attempt"], float_from_json(row["attempt_quality"]))
    told = {name: row[name] for name in _CANDIDATE}
    told["token_ids"] = None if told["token_ids"] is None else tuple(told["token_ids"])
    numbers = {name: float_from_json(row[name]) for name in _NUMBERS}
    return Refinement(Candidate(attempt, **told), int(row["step"]), **numbers, passed=tuple(row["passed"]))
