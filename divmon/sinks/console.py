"""One line an evaluation on the terminal, a line an alert, and a table at the end."""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from typing import TextIO

from divmon.records import AlarmEvent, Measurement, Observation
from divmon.sinks.base import alarm_states, choose, escape_controls

WIDTH = 110
LABEL = 24  # characters of a domain, a format label or an alarm's name
ALARMS = 45  # columns the alarms may take on the line before they are counted instead of named
RED, GREEN, YELLOW = 31, 32, 33
COLOURS = {"critical": RED, "warning": YELLOW, "info": 0}
PLAIN = str.maketrans({"●": "*", "○": "o", "…": "...", "→": "->"})
# metric, its name on the line, whether its change is shown; the first items are the last to be left out
ITEMS = (
    ("semantic_distance", "semantic", True),
    ("tfidf_distance", "surface", True),
    ("effective_formats", "formats", True),
    ("format_dominance", "", False),
    ("pass_at_1", "pass@1", False),
    ("tail_share", "tail", True),
    ("coverage", "coverage", False),
    ("token_entropy", "entropy", True),
)


class ConsoleSink:
    """Prints observations as plain text. Changes are relative to the first observation seen.

    Lines go through ``tqdm.write`` when a progress bar may be on the same terminal. Colour appears on a terminal only
    (and not with ``NO_COLOR`` set). Anything a model or a data set wrote has its control characters escaped.

    Args:
        stream: Where to write; standard output, as it is at that moment, without one.
    """

    name = "console"

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._first: dict[str, Measurement] = {}
        self._last: dict[str, Measurement] = {}
        self._chosen: tuple[str, ...] = ()
        self._fired: dict[str, list[str]] = {}
        self._seen = 0
        self._closed = False

    def emit(self, observation: Observation) -> None:
        """Print the line, then the alerts of this evaluation."""
        self._seen += 1
        self._chosen = choose(observation, keep=self._chosen)
        for m in observation.measurements:
            if math.isfinite(m.value):
                self._first.setdefault(m.key, m)
                self._last[m.key] = m
        coloured = _coloured(self._target)
        self._write(status_line(observation, self._first, coloured=coloured))
        for event in observation.events:
            if event.state == "firing":
                fired = self._fired.setdefault(f"{event.domain}/{event.metric}", [])
                fired.append(f"{_clean(event.alarm)} at {event.step}")
            if event.state in ("firing", "resolved"):
                self._write(alert_line(event, coloured=coloured))

    def close(self) -> None:
        """Print the final table, once."""
        if self._closed:
            return
        self._closed = True
        if not self._seen:
            self._write("divmon  no evaluation took place")
            return
        for line in self._table():
            self._write(line)

    def _table(self) -> Iterator[str]:
        """Aligned rows: the curves of the default selection and every series on which an alarm fired."""
        rows = [("metric", "domain", "baseline", "last", "change", "95% interval", "alarms fired")]
        for key in dict.fromkeys((*self._chosen, *self._fired)):
            domain, _, metric = key.rpartition("/")
            fired = ", ".join(self._fired.get(key, ())) or "-"
            if key not in self._last:
                rows.append((_clean(metric), _clean(domain), "-", "-", "-", "-", fired))
                continue
            first, last = self._first[key], self._last[key]
            change = _change(first.value, last.value) if last.step != first.step else ""
            interval = f"{_short(last.low, 1)} to {_short(last.high, 1)}" if math.isfinite(last.low) else "-"
            values = (_short(first.value, 1), _short(last.value, 1), change or "-", interval)
            rows.append((_clean(metric), _clean(domain), *values, fired))
        widths = [max(_columns(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            cells = (cell + " " * (width - _columns(cell)) for cell, width in zip(row, widths, strict=True))
            yield f"divmon  {'  '.join(cells)}".rstrip()

    @property
    def _target(self) -> TextIO:
        return sys.stdout if self._stream is None else self._stream

    def _write(self, line: str) -> None:
        stream = self._target
        encoding = getattr(stream, "encoding", None) or "utf-8"
        try:
            line.encode(encoding)
        except UnicodeEncodeError:
            line = line.translate(PLAIN).encode(encoding, "backslashreplace").decode(encoding)
        bar = getattr(sys.modules.get("tqdm"), "tqdm", None)
        if bar is not None and stream in (sys.stdout, sys.stderr):
            bar.write(line, file=stream)
        else:
            stream.write(line + "\n")
        stream.flush()


def status_line(observation: Observation, first: Mapping[str, Measurement], *, coloured: bool = False) -> str:
    """The line of one evaluation, at most 110 columns wide.

    Each domain gets its first item before any gets its second, until the line is full ("…" says that more was
    measured). Alarms that fire or are pending stand at the end, named or, when there are many, counted.

    >>> now = Measurement(step=8, domain="math", metric="tfidf_distance", value=0.45)
    >>> then = Measurement(step=0, domain="math", metric="tfidf_distance", value=0.6)
    >>> status_line(Observation(step=8, measurements=(now,), states={"x/math": "firing"}), {now.key: then})
    'divmon  step 8  math: surface .45 (-25%)  ● x firing'
    """
    head, marks = f"divmon  step {observation.step}", _alarms(observation)
    tail = "".join(f"  {text}" for text, _ in marks)
    items = _items(observation, first)
    if not items:
        reason = next((m.reason for m in observation.measurements if m.reason), "nothing was measured")
        return f"{head}  no values: {_clean(reason, max(LABEL, WIDTH - 14 - len(head) - _columns(tail)))}{tail}"
    taken: list[tuple[str, str]] = []
    body = ""
    for place, item in enumerate(items):
        more = "" if place == len(items) - 1 else " …"
        longer = _body([*taken, item])
        if _columns(f"{head}  {longer}{more}{tail}") > WIDTH:
            body = f"{_body(taken)} …".lstrip()
            break
        taken.append(item)
        body = longer
    end = "".join(f"  {_paint(text, colour if coloured else 0)}" for text, colour in marks)
    return f"{head}  {body}{end}"


def alert_line(event: AlarmEvent, *, coloured: bool = False) -> str:
    """The message of an event as it is, with what will be done. Not cut to any width."""
    resolved = event.state == "resolved"
    colour = GREEN if resolved else COLOURS[event.severity]
    word = _paint("RESOLVED" if resolved else event.severity.upper(), colour if coloured else 0)
    message = escape_controls(event.message) or f"{_clean(event.metric)} is {_short(event.value)}"
    actions = f" → {', '.join(_clean(action) for action in event.actions)}" if event.actions else ""
    return f"divmon  {word} {_clean(event.alarm)} ({_clean(event.domain)}, step {event.step}): {message}{actions}"


def _items(observation: Observation, first: Mapping[str, Measurement]) -> list[tuple[str, str]]:
    """(domain, text) in the order in which they deserve a place."""
    chosen = choose(observation, limit=len(ITEMS) * max(1, len(observation.measurements)))
    found = {m.key: m for m in observation.measurements if m.key in chosen}
    items = []
    for metric, name, relative in ITEMS:
        for m in (m for m in found.values() if m.metric == metric):
            if metric == "format_dominance":
                items.append((m.domain, f"{_top(m)} {m.value:.0%}"))
                continue
            start = first.get(m.key)
            change = _change(start.value, m.value) if relative and start is not None and start.step != m.step else ""
            items.append((m.domain, f"{name} {_short(m.value)}" + (f" ({change})" if change else "")))
    return items


def _body(items: list[tuple[str, str]]) -> str:
    domains = dict.fromkeys(domain for domain, _ in items)
    named = [(d, "  ".join(text for domain, text in items if domain == d)) for d in domains]
    return " | ".join(text if d == "default" and len(named) == 1 else f"{_clean(d)}: {text}" for d, text in named)


def _alarms(observation: Observation) -> list[tuple[str, int]]:
    """Marks for what fires and what is pending, each with its colour."""
    states, room = alarm_states(observation), ALARMS
    marks = []
    for state, dot, colour in (("firing", "●", RED), ("pending", "○", YELLOW)):
        names = [_clean(name) for name, value in states.items() if value == state]
        text = ", ".join(names)
        if _columns(text) > room:
            text = f"{len(names)} alarms"
        room -= _columns(text)
        if names:
            marks.append((f"{dot} {text} {state}", colour))
    return marks


def _top(m: Measurement) -> str:
    """The most frequent format: ``details["shares"]``, or details that are themselves shares by format."""
    found = m.details.get("shares", m.details)
    shares = {k: v for k, v in found.items() if isinstance(v, float)} if isinstance(found, Mapping) else {}
    return _clean(str(max(shares, key=lambda label: shares[label]))) if shares else "top format"


def _change(before: float, now: float) -> str:
    """Relative change; empty where there is nothing to relate it to."""
    change = f"{now / before - 1:+.0%}" if before > 0 else ""
    return "0%" if change in ("+0%", "-0%") else change


def _short(value: float, more: int = 0) -> str:
    """Two decimals below one (without the zero), one above, three digits from 100; `more` digits in tables.

    >>> [_short(v) for v in (0.614, -0.5, 2.13, 1234.5)], _short(2.13, 1)
    (['.61', '-.50', '2.1', '1.23e+03'], '2.13')
    """
    if abs(value) < 0.995:
        return f"{value:.{2 + more}f}".replace("0.", ".", 1)
    return f"{value:.{1 + more}f}" if abs(value) < 100 else f"{value:.{3 + more}g}"


def _clean(text: str, limit: int = LABEL) -> str:
    """`text` on one line, visible, and cut to `limit` columns."""
    shown, cut = escape_controls(text[:limit]), len(text) > limit
    while _columns(shown) + cut > limit:
        shown, cut = shown[:-1], True
    return shown + "…" * cut


def _columns(text: str) -> int:
    """Terminal columns: wide characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _paint(text: str, colour: int) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colour else text


def _coloured(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
