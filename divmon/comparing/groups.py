"""What is compared: runs, or groups of runs that are seeds of one method."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from divmon.errors import ConfigError, HistoryError
from divmon.history import History
from divmon.report.text import run_name


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed only.

    Attributes:
        name: What it is called.
        runs: One for each seed; groups of one size are paired in this order.
    """

    name: str
    runs: tuple[History, ...]


def open_groups(runs: Sequence[str | Path], groups: Sequence[str] = ()) -> list[Group]:
    """Open runs and groups: first the runs, each a group of its own, then the groups.

    Args:
        runs: Folders.
        groups: ``NAME=GLOB``, each a pattern of folders; numbers in their names are sorted as numbers.

    Raises:
        ConfigError: A group is not written so, or two are called the same.
        HistoryError: A folder holds no run, a pattern matches none, or a run is named twice.
    """
    named = [History.read(path) for path in runs]
    short = Counter(run_name(run.path) for run in named)
    own = [run_name(run.path) if short[run_name(run.path)] == 1 else str(run.path) for run in named]
    found = [Group(name, (run,)) for name, run in zip(own, named, strict=True)]
    found += [_matched(group) for group in groups]
    _refuse_twice(found)
    for name, times in Counter(group.name for group in found).items():
        if times > 1:
            raise ConfigError(f"Two groups are called {name!r}: give each --group a name of its own.")
    return found


def _matched(group: str) -> Group:
    name, equals, pattern = group.partition("=")
    if not (name and equals and pattern):
        raise ConfigError(f"--group {group!r} must be NAME=GLOB, for example --group plain='runs/plain-*'.")
    folders = sorted((p for p in glob.glob(os.path.expanduser(pattern)) if os.path.isdir(p)), key=natural)
    if not folders:
        raise HistoryError(f"--group {name}: no folder matches {pattern!r}. Quote the pattern, and name run folders.")
    return Group(name, tuple(History.read(folder) for folder in folders))


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers in names as numbers.

    >>> sorted(["run-10", "run-9"], key=natural)
    ['run-9', 'run-10']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part[0].isdigit() else (1, 0, part) for part in parts]


def seed(run: History) -> str:
    """The number at the end of a run's name, as written; empty when there is none."""
    found = re.search(r"[0-9]+$", run_name(run.path))
    return found[0] if found else ""


def check(groups: Sequence[Group]) -> None:
    """Refuse what cannot be compared at all.

    Raises:
        ConfigError: There are fewer than two groups, or a group is empty.
        HistoryError: A run was named twice, or has no evaluation.
    """
    if len(groups) < 2:
        have = f"{groups[0].name!r} alone" if groups else "nothing"
        raise ConfigError(
            f"compare sets runs side by side and got {have}: name two folders of runs, or two --group NAME=GLOB."
        )
    _refuse_twice(groups)
    for group in groups:
        if not group.runs:
            raise ConfigError(f"Group {group.name!r} has no runs.")
        for run in group.runs:
            if not run.evaluations:
                raise HistoryError(f"No evaluation was recorded in {run.path} yet: there is nothing to compare.")


def _refuse_twice(groups: Sequence[Group]) -> None:
    for path, times in Counter(run.path.resolve() for group in groups for run in group.runs).items():
        if times > 1:
            raise HistoryError(f"{path} is named twice: a run cannot be compared with itself.")
