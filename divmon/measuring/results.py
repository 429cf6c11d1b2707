"""What measuring a file gives: rows with their intervals and changes, as a table for people or as JSON."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from divmon.plain import to_json
from divmon.records import OVERALL, Measurement
from divmon.sinks.base import escape_controls

_CELL = 40  # columns of a name or a group in the table
_REASON = 70
_LINE = 100
_PAIRED = {"paired": "", "unpaired": " unpaired"}


@dataclass(frozen=True)
class Source:
    """A file that was measured.

    Attributes:
        path: As it was named.
        sha256: Of each file's bytes, by path; empty for rows in memory.
        completions: How many.
        prompts: Different ones.
        k: Fewest and most completions of a prompt.
        quality: What judged completions; empty when nothing did.
        fingerprint: Of the prompts.
    """

    path: str
    sha256: Mapping[str, str]
    completions: int
    prompts: int
    k: tuple[int, int]
    quality: str
    fingerprint: str


@dataclass(frozen=True)
class Change:
    """How far a number has moved from the baseline's.

    Attributes:
        baseline: The baseline's own number, over all its prompts.
        value: The change: over common prompts when paired, else the difference of the two numbers.
        low: Lower end of its 95 % interval, NaN when there is none.
        high: Upper end.
        n: Prompts (pairs, when paired).
        pairing: "paired" by prompt, or "unpaired" where too few prompts are common.
        interval: "bootstrap", "normal", or empty.
        reason: Why it is missing.
    """

    baseline: float
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    pairing: str = "paired"
    interval: str = ""
    reason: str | None = None


@dataclass(frozen=True)
class Row:
    """One number of one group.

    Attributes:
        group: Values of the columns of `Results.group_by`.
        measurement: Domain, metric, value, interval, n, signature, reason and details; no per-prompt values.
        interval: "bootstrap" (percentile, over prompts), "normal", or empty when there is none.
        change: From the baseline; None without one.
    """

    group: tuple[str, ...]
    measurement: Measurement
    interval: str = ""
    change: Change | None = None


@dataclass(frozen=True)
class Results:
    """Everything that measuring gave.

    Attributes:
        source: What was measured.
        against: The baseline; None without one.
        group_by: Columns that made groups.
        rows: Metric by metric, and within one group by group and domain by domain.
        protocol: Name of the protocol; empty without one.
        deviations: In what the measurement is not the protocol's.
        notes: What else a reader must know: failures, two judges.
    """

    source: Source
    against: Source | None
    group_by: tuple[str, ...]
    rows: tuple[Row, ...]
    protocol: str = ""
    deviations: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def get(self, metric: str, domain: str | None = None, group: tuple[str, ...] | None = None) -> Row | None:
        """The first row of a metric, in a domain and group where they are named; of several domains the overall one."""
        rows = [row for row in self.rows if row.measurement.metric == metric and group in (None, row.group)]
        rows.sort(key=lambda row: row.measurement.domain != OVERALL)
        return next((row for row in rows if domain in (None, row.measurement.domain)), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; null for NaN."""
        found: dict[str, Any] = {
            "source": to_json(self.source),
            "against": to_json(self.against),
            "protocol": self.protocol or None,
            "deviations": list(self.deviations),
            "notes": list(self.notes),
            "group_by": list(self.group_by),
        }
        return found | {"measurements": [self._row(row) for row in self.rows]}

    def _row(self, row: Row) -> dict[str, Any]:
        measured: dict[str, Any] = to_json(row.measurement)
        for name in ("step", "values"):
            measured.pop(name)
        group = dict(zip(self.group_by, row.group, strict=True))
        return {"group": group, **measured, "interval": row.interval, "change": to_json(row.change)}

    def table(self) -> str:
        """Aligned plain text, safe to print whatever the file holds."""
        return "\n".join((*self._head(), "", *aligned(list(self._cells())), *self._tail()))

    def _head(self) -> Iterator[str]:
        for name, source in (("", self.source), ("against ", self.against)):
            if source is not None:
                low, high = source.k
                k = str(low) if low == high else f"{low} to {high}"
                judged = f", quality: {source.quality}" if source.quality else ""
                size = f"{source.completions:,} completions of {source.prompts:,} prompts, K {k}"
                yield _clean(f"{name}{source.path}: {size}{judged}", 300)
        if self.protocol:
            yield f"protocol {self.protocol}" + ("; deviations:" if self.deviations else "")
        for deviation in self.deviations:
            yield f"  {escape_controls(deviation)}"
        if self.protocol:
            yield f"  what it never gives exactly: divmon protocols {self.protocol}"

    def _cells(self) -> Iterator[list[str]]:
        domains = len({row.measurement.domain for row in self.rows} - {OVERALL}) > 1
        kept = [True, *(True for _ in self.group_by), domains, True, True, True, *[self.against is not None] * 4, True]
        titles = ["metric", *self.group_by, "domain", "value", "95% interval", "prompts"]
        titles += ["baseline", "change", "95% interval", "pairs", ""]
        yield [_clean(title) for title, keep in zip(titles, kept, strict=True) if keep]
        for row in self.rows:
            m = row.measurement
            if m.metric in self._unmeasured:
                continue
            cells = [m.metric, *row.group, m.domain, _number(m.value), _interval(m.low, m.high), str(m.n)]
            cells += _changes(row.change)
            reasons = [m.reason, row.change.reason if row.change is not None and m.reason is None else None]
            cells.append(_clean("; ".join(reason for reason in reasons if reason), _REASON))
            yield [_clean(cell, _REASON) for cell, keep in zip(cells, kept, strict=True) if keep]

    @property
    def _unmeasured(self) -> dict[str, str]:
        """Metrics without any value, all for one reason: said once, below the table."""
        reasons: dict[str, set[str | None]] = {}
        for row in self.rows:
            reasons.setdefault(row.measurement.metric, set()).add(row.measurement.reason)
        return {metric: str(*found) for metric, found in reasons.items() if len(found) == 1 and None not in found}

    def _tail(self) -> Iterator[str]:
        unmeasured = self._unmeasured
        if unmeasured or self.notes:
            yield ""
        for reason in dict.fromkeys(unmeasured.values()):
            names = ", ".join(metric for metric, why in unmeasured.items() if why == reason)
            yield from _wrapped(f"not measured: {names} ({reason})")
        for note in self.notes:
            yield from _wrapped(f"note: {note}")


def _wrapped(text: str) -> list[str]:
    shown = escape_controls(text)
    return textwrap.wrap(shown, _LINE, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _changes(change: Change | None) -> list[str]:
    if change is None:
        return ["-", "-", "-", "-"]
    pairs = f"{change.n}{_PAIRED[change.pairing]}" if math.isfinite(change.value) else "-"
    moved = _number(change.value)
    moved = f"+{moved}" if change.value > 0 else moved
    return [_number(change.baseline), moved, _interval(change.low, change.high), pairs]


def aligned(rows: list[list[str]]) -> Iterator[str]:
    """Lines in which the cells of each column begin at one place on a terminal."""
    widths = [max(columns(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(c + " " * (w - columns(c)) for c, w in zip(row, widths, strict=True)).rstrip()


def _number(value: float) -> str:
    """Four significant digits.

    >>> [_number(v) for v in (0.61413, 12345.6, float("nan"))]
    ['0.6141', '1.235e+04', '-']
    """
    return f"{value:.4g}" if not math.isnan(value) else "-"


def _interval(low: float, high: float) -> str:
    return f"{_number(low)} to {_number(high)}" if math.isfinite(low) else "-"


def _clean(text: str, limit: int = _CELL) -> str:
    shown = escape_controls(text)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def columns(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
