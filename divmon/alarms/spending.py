"""What the confirmations of a run may cost: a false-alarm budget that only shrinks, and a journal of what is spent.

``alpha`` is the chance that any confirmed alarm of the run is false. Each cell (a confirmed rule in one domain) owns a
share of it by weight; its j-th confirmation is held against that share times 6 / (pi^2 j^2), which sums to the share
over all j. j is on disk before anything is drawn. A confirmation that was killed, failed, or belongs to a branch that
was given up has spent its j all the same.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from divmon.alarms.rules import Rule
from divmon.errors import HistoryError

ALPHA = 0.05
CONFIRMATIONS = 8
WAIT = 3  # evaluations a cell waits after its first failed confirmation; each further failure doubles the wait
_BASEL = 6 / math.pi**2


def cell_shares(rules: Iterable[Rule], domains: Sequence[str], alpha: float = ALPHA) -> dict[str, float]:
    """Each confirmed cell's share of `alpha`, keyed ``name/domain``.

    >>> rules = [Rule("a", metric="vendi", rule="drop", by="20%", evidence="confirm", weight=3),
    ...          Rule("b", metric="length", rule="rise", by="20%", evidence="confirm", domain="x")]
    >>> cell_shares(rules, ["x", "y"], alpha=0.875)
    {'a/x': 0.375, 'a/y': 0.375, 'b/x': 0.125}
    """
    weights = {
        f"{rule.name}/{domain}": rule.weight for rule in rules if rule.confirms for domain in rule.cells(domains)
    }
    total = sum(weights.values())
    return {key: alpha * weight / total for key, weight in weights.items()}


def level(share: float, attempt: int) -> float:
    """What the p-value of a cell's confirmation number `attempt` (from 1) is held against.

    >>> round(level(0.05, 1), 4), round(level(0.05, 2), 4)
    (0.0304, 0.0076)
    """
    return share * _BASEL / attempt**2


def next_wait(last: int) -> int:
    """Evaluations to wait after a failed confirmation, when `last` were waited before (0 at first).

    >>> next_wait(0), next_wait(3), next_wait(6)
    (3, 6, 12)
    """
    return max(WAIT, 2 * last)


@dataclass(frozen=True)
class Spent:
    """One confirmation that was paid for.

    Attributes:
        cell: ``name/domain``.
        attempt: Its number in the cell, from 1.
        step: When.
        level: What it cost of alpha.
    """

    cell: str
    attempt: int
    step: int
    level: float


class Journal:
    """What a run has spent: append-only, on disk before it counts, shared by all branches of the run.

    Args:
        path: The file; None keeps it in memory.

    >>> journal = Journal(None)
    >>> journal.spend("a/x", step=40, share=0.05).attempt, journal.spend("a/x", step=50, share=0.05).attempt
    (1, 2)
    >>> len(journal.entries), round(journal.spent, 4)
    (2, 0.038)
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.entries: list[Spent] = []
        if path is not None and path.exists():
            self.entries = [_spent(line, path) for line in path.read_bytes().split(b"\n")[:-1]]

    def attempts(self, cell: str) -> int:
        """How many confirmations `cell` has spent."""
        return max((entry.attempt for entry in self.entries if entry.cell == cell), default=0)

    @property
    def spent(self) -> float:
        """Of alpha, by every cell."""
        return math.fsum(entry.level for entry in self.entries)

    def spend(self, cell: str, *, step: int, share: float) -> Spent:
        """Pay for the next confirmation of `cell`. When this returns, it is on disk.

        Raises:
            OSError: The disk refused. Nothing must be drawn then.
        """
        attempt = self.attempts(cell) + 1
        entry = Spent(cell, attempt, step, level(share, attempt))
        if self.path is not None:
            _append(self.path, entry)
        self.entries.append(entry)
        return entry


def _append(path: Path, entry: Spent) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # a torn line was never acted on: the draw comes after the fsync
        file.write(json.dumps(vars(entry), ensure_ascii=True).encode("ascii") + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if new and os.name == "posix":  # the name of a new file is on disk only when its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _spent(line: bytes, path: Path) -> Spent:
    try:
        row = json.loads(line)
        return Spent(str(row["cell"]), int(row["attempt"]), int(row["step"]), float(row["level"]))
    except (ValueError, KeyError, TypeError) as error:
        raise HistoryError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
