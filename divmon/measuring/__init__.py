"""Measuring completions in files of any size, without a trainer."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from divmon.errors import ConfigError
from divmon.measuring.choices import choose
from divmon.measuring.engine import BLOCK, SAMPLE, Engine
from divmon.measuring.results import Change, Results, Row, Source
from divmon.measuring.side import Side, freeze_classifier
from divmon.measuring.store import Store
from divmon.samplers.file import as_lines
from divmon.samplers.reading import Line, lines_of

Rows = str | Path | Iterable[Mapping[str, Any]]
_SHOWN = 4  # different K in a note


def measure(
    source: Rows,
    *,
    against: Rows | None = None,
    group_by: Sequence[str] = (),
    protocol: str | None = None,
    reward_columns: Sequence[str] = (),
    progress: bool = False,
    **settings: Any,
) -> Results:
    """Measure a file of completions in memory that does not grow with it.

    Rows may come in any order; they are sorted in a temporary file of about the size of the source (in the folder that
    ``TMPDIR`` names). Intervals are percentile bootstraps over prompts, and normal ones over more than 512 values.

    Args:
        source: A file, folder, or pattern that `divmon.read_completions` could read, or rows.
        against: A baseline: idf and shares are frozen on it, and changes from it are given, paired by prompt.
        group_by: Columns (``step``, ...) that split the rows into groups, each measured by itself.
        protocol: A name of `divmon.protocols.PROTOCOLS`: measures what that study measured, and says in what the file
            or the models deviate.
        reward_columns: Columns whose sum judges completions, instead of ``reward``, ``correct``, ...
        progress: Show bars on standard error, when it is a terminal.
        **settings: `metrics`, `encoder`, `nli`, `equivalence`, `quality`, `correct_at`, `formats`, `references`,
            `others`, `attributes`, as in `divmon.Settings`.

    >>> rows = [{"prompt": "Greet.", "completions": ["hello", "hello", "good day"]}]
    >>> results = measure(rows, metrics=["unique_fraction"])
    >>> round(results.get("unique_fraction").measurement.value, 3)
    0.667

    Raises:
        ProbeError: A row that cannot be used; the message names it.
        ConfigError: An unknown metric, setting or protocol, or a model that cannot be loaded.
    """
    chosen = choose(settings, protocol)
    if isinstance(group_by, str):
        raise ConfigError(f"group_by must be a list of columns, for example group_by=[{group_by!r}].")
    with contextlib.ExitStack() as stack:

        def side(rows: Rows, name: str, groups: Sequence[str]) -> Side:
            path = stack.enter_context(_temporary())
            store = Store(path, group_by=groups, reward_columns=reward_columns, prepare=chosen.prepare)
            stack.callback(store.close)
            with contextlib.suppress(OSError):  # where an open file can be removed, none stays however the process ends
                path.unlink()
            with _bar(f"reading {name}", "row", None, progress) as tick:
                store.fill(_ticked(_lines(rows), tick))
            return Side(store, chosen.lenses, name=name, path=rows if isinstance(rows, (str, Path)) else None)

        before = None if against is None else side(against, "baseline", ())
        now = side(source, "file", tuple(group_by))
        sides = [now] if before is None else [now, before]
        freeze_classifier(before or now, sides)
        total = sum(prompts for one in sides for _, _, prompts in one.store.groups())
        with _bar("measuring", "prompt", total, progress) as tick:
            engine = Engine(chosen.metrics, now, before, protocol=protocol or "", tick=tick)
            rows = tuple(engine.rows())
        return Results(
            source=now.source(),
            against=before.source() if before else None,
            group_by=tuple(group_by),
            rows=rows,
            protocol=protocol or "",
            deviations=chosen.deviations(now.store.summary),
            notes=_notes(engine, sides),
        )


@contextlib.contextmanager
def _temporary() -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix="divmon-", suffix=".sqlite")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _notes(engine: Engine, sides: Sequence[Side]) -> tuple[str, ...]:
    notes = [f"{name} failed with {error}" for name, error in engine.failures.items()]
    notes += [failure for side in sides for failure in side.failures]
    judges = {side.judge for side in sides}
    if len(judges) > 1:
        named = " and ".join(repr(side.judge or "nothing") for side in sides)
        notes.append(f"file and baseline are judged by {named}: changes of quality compare two judges")
    if engine.before is not None and not engine.common:
        notes.append("no prompt (domain and text) of the file is in the baseline: changes compare different prompts")
    notes += _unequal(sides)
    disputed = {side.name: side.store.summary.disputed for side in sides if side.store.summary.disputed}
    for name, n in disputed.items():
        notes.append(f"{n:,} of the prompts of the {name} have another gold answer in a later row: the first counts")
    return tuple(dict.fromkeys(notes))


def _unequal(sides: Sequence[Side]) -> Iterator[str]:
    """Groups and files may differ in K; a range within each of them stands above the table."""
    ks = list(dict.fromkeys(k for side in sides for k in side.store.summary.ks.values()))
    if len(ks) > 1:
        named = ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in ks[:_SHOWN])
        where = "file and baseline" if len(sides) > 1 else "groups"
        many = ", ..." if len(ks) > _SHOWN else ""
        yield f"K differs between {where} ({named}{many}): distinct_*, self_bleu, coverage and others move with K alone"


def _lines(rows: Rows) -> Iterable[Line]:
    return lines_of(rows) if isinstance(rows, (str, Path)) else as_lines(rows)


def _ticked(lines: Iterable[Line], tick: Callable[[int], object]) -> Iterator[Line]:
    for line in lines:
        tick(1)
        yield line


@contextlib.contextmanager
def _bar(title: str, unit: str, total: int | None, wanted: bool) -> Iterator[Callable[[int], object]]:
    if not wanted:
        yield lambda n: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit=unit, disable=None, leave=False) as bar:
        yield bar.update


__all__ = ["BLOCK", "SAMPLE", "Change", "Results", "Row", "Source", "measure"]
