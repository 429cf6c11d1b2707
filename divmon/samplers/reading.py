"""Rows out of files of completions, a few at a time: JSON Lines (also gzipped), JSON lists, Parquet, and folders."""

from __future__ import annotations

import glob
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from divmon.errors import MissingDependency, ProbeError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_ROWS = 256  # rows of a Parquet file held at once
_EMPTY = "is empty: write one JSON object with a 'prompt' a line."


class Line(NamedTuple):
    """One row and where it stands.

    Attributes:
        where: For messages: ``file.jsonl, line 3``.
        name: Unlike those of all other rows read with it: ``line-00003``.
        row: What stands there; nothing has been checked.
    """

    where: str
    name: str
    row: Any


def files_of(source: str | Path) -> list[Path]:
    """The files of a path, a folder or a glob pattern, in the order of their names.

    Raises:
        ProbeError: A folder without a file whose name ends in one of `SUFFIXES`, or a pattern that fits none.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.is_file() and p.name.endswith(SUFFIXES))
        if not found:
            raise ProbeError(f"{path} holds no file of completions: names must end in {', '.join(SUFFIXES)}.")
        return found
    if not path.exists() and glob.has_magic(str(source)):
        found = sorted(Path(name) for name in glob.glob(str(source), recursive=True) if Path(name).is_file())
        if not found:
            raise ProbeError(f"No file fits the pattern {str(source)!r}.")
        return found
    return [path]


def lines_of(source: str | Path) -> Iterator[Line]:
    """The rows of `source` in order, never more than a few held (but for ``.json``, which is read as a whole).

    Raises:
        ProbeError: A file cannot be read, is empty, or a line is not JSON; the message names file and line.
        MissingDependency: A Parquet file, and pyarrow is not installed.
    """
    files = files_of(source)
    for path in files:
        unit, rows = _rows(path)
        start = "line" if len(files) == 1 else path.name
        n = 0
        for number, row in rows:
            n += 1
            yield Line(f"{path}, {unit} {number}", f"{start}-{number:05d}", row)
        if not n:
            raise ProbeError(f"{path} {_EMPTY if unit == 'line' else 'has no rows.'}")


def _rows(path: Path) -> tuple[str, Iterator[tuple[int, Any]]]:
    if path.name.endswith(".parquet"):
        return "row", _parquet(path)
    if path.name.endswith(".json"):
        return "item", _json(path)
    return "line", _jsonl(path)


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Bytes are split at line feeds only: other line breaks of Unicode stand inside texts."""
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as opened:
            for number, raw in enumerate(opened, 1):
                if raw.strip():
                    yield number, _decoded(raw, path, number)
    except (OSError, EOFError) as error:
        raise ProbeError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error


def _decoded(raw: bytes, path: Path, number: int) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise ProbeError(f"{path} is not UTF-8 (line {number}: {error}): save it as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise ProbeError(
            f"{path}, line {number} is not JSON ({error}); a line is one object with a 'prompt'."
            + ("" if path.name.endswith(SUFFIXES) else f" Files read have names in {', '.join(SUFFIXES)}.")
        ) from error


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ProbeError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ProbeError(f"{path} is not UTF-8 ({error}): save it as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{path} is not JSON ({error}); a file with one object a line must end in .jsonl.") from error
    if not isinstance(found, list):
        raise ProbeError(f"{path} must hold a list of objects; a file with one object a line must end in .jsonl.")
    return enumerate(found, 1)


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependency("Parquet files need pyarrow: pip install pyarrow") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as opened:
            for batch in opened.iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except OSError as error:
        raise ProbeError(f"Cannot read {path}: {error.strerror or error}.") from error
    except pyarrow.lib.ArrowException as error:
        raise ProbeError(f"{path} is not a Parquet file that can be read, after row {number} ({error}).") from error


__all__ = ["SUFFIXES", "Line", "files_of", "lines_of"]
