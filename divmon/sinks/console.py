"""One line an evaluation on the terminal, a line an alert, and a table at the end."""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TextIO

from divmon.alarms.sentences import UNCONFIRMED, brief, judged
from divmon.records import ROLLBACK, AlarmEvent, LeverEvent, Measurement, Observation, State, Verdict
from divmon.sinks.base import alarm_states, choose, escape_controls

WIDTH = 110
LONG = 120  # columns from which an alert leaves out how long the condition has held, and a legend goes on below
LABEL = 24  # characters of a domain, a format label or an alarm's name
ALARMS = 45  # columns the alarms may take on the line before they are counted instead of named
RED, GREEN, YELLOW = 31, 32, 33
COLOURS = {"critical": RED, "warning": YELLOW, "info": 0}
PLAIN = str.maketrans({"●": "*", "○": "o", "…": "...", "→": "->", "·": "-"})
TOP = "top format"  # on the line the name of that format stands for it
PROMISE = "confirmed by fresh completions"
SCREEN = "unconfirmed: a screen against one noisy baseline; it promises no false-alarm rate"
# metric, its name on the line, whether its change is shown; the first items are the last to be left out
ITEMS = (
    ("semantic_distance", "semantic", True),
    ("tfidf_distance", "surface", True),
    ("effective_formats", "formats", True),
    ("format_dominance", TOP, False),
    ("pass_at_1", "pass@1", False),
    ("tail_share", "tail", True),
    ("coverage", "coverage", False),
    ("token_entropy", "entropy", True),
)
URGENT: dict[State, tuple[str, int]] = {"firing": ("●", RED), "pending": ("○", YELLOW)}
NAMES = {metric: name for metric, name, _ in ITEMS}
RELATIVE = {metric for metric, _, relative in ITEMS if relative}
LEGEND = {
    "semantic_distance": "how different completions are in meaning (0 = the same)",
    "tfidf_distance": "how different completions are (0 = the same)",
    "effective_formats": "effective number",
    "format_dominance": TOP,
    "tail_share": "how much of what is solved is hard",
    "coverage": "prompts solved at least once",
}


class Item(NamedTuple):
    """What a series has on the line: its name there, its value, its change (empty without one)."""

    domain: str
    metric: str
    name: str
    value: str
    change: str = ""

    @property
    def text(self) -> str:
        """As it stands there."""
        return f"{self.name} {self.value}" + (f" ({self.change})" if self.change else "")


class ConsoleSink:
    """Prints observations as plain text. Changes are relative to the first observation seen.

    Lines go through ``tqdm.write`` when a progress bar may be on the same terminal. Colour appears on a terminal only
    (and not with ``NO_COLOR`` set). Anything a model or a data set wrote has its control characters escaped.

    Args:
        stream: Where to write; standard output, as it is at that moment, without one.
        metrics: Exactly these metrics are shown; see `divmon.sinks.base.choose` for the default.
        alerts: Nothing but alerts and the table at the end, for a series that comes often.
    """

    name = "console"

    def __init__(
        self, stream: TextIO | None = None, *, metrics: Sequence[str] | None = None, alerts: bool = False
    ) -> None:
        self._stream = stream
        self._metrics = metrics
        self._alerts = alerts
        self._begin()

    def _begin(self) -> None:
        self._first: dict[str, Measurement] = {}
        self._last: dict[str, Measurement] = {}
        self._chosen: tuple[str, ...] = ()
        self._fired: dict[str, list[str]] = {}
        self._watched: dict[str, str] = {}
        self._explained: set[str] = set()
        self._steps: list[int] = []
        self._resumed = False
        self._closed = False

    def emit(self, observation: Observation) -> None:
        """Print the line (with a legend, the first time), then the alerts of this evaluation."""
        if self._closed:  # a second training with the same sink is another run
            self._begin()
        if not self._steps:
            self._resumed = observation.baseline is not None and observation.baseline.step != observation.step
        self._steps.append(observation.step)
        self._watched |= {f"{e.alarm}/{e.domain}": f"{e.domain}/{e.metric}" for e in observation.events}
        self._chosen = choose(observation, metrics=self._metrics, keep=self._chosen)
        for m in observation.measurements:
            if math.isfinite(m.value):
                self._first.setdefault(m.key, m)
                self._last[m.key] = m
        coloured = _coloured(self._target)
        line, shown = status_line(observation, self._first, watched=self._watched, coloured=coloured)
        for text in () if self._alerts else (line, *self._legend(shown)):
            self._write(text)
        for found in observation.verdicts:
            self._checked(found)
        for event in observation.events:
            if event.state == "firing":
                fired = self._fired.setdefault(f"{event.domain}/{event.metric}", [])
                fired.append(f"{_clean(event.alarm)} at {event.step}")
            if event.state in ("firing", "resolved"):
                self._write(alert_line(event, coloured=coloured))
            if event.state == "firing" and event.evidence == "confirm" and PROMISE not in self._explained:
                self._explained.add(PROMISE)
                self._write(f"divmon  {PROMISE}: {escape_controls(str(event.details.get('promise', '')))}")
            if event.state == "firing" and UNCONFIRMED in event.message and SCREEN not in self._explained:
                self._explained.add(SCREEN)
                self._write(f"divmon  {SCREEN}")
        for change in observation.changes:
            self._write(lever_line(change))

    def _checked(self, found: Verdict) -> None:
        """A confirmation that did not confirm; one that spent nothing is said once for each reason."""
        text = f"{_clean(found.alarm)} ({_clean(found.domain)}): {escape_controls(judged(found))}"
        said = f"{found.key}: {found.reason}"
        if found.outcome == "confirmed" or (not found.attempt and said in self._explained):
            return
        self._explained.add(said)
        spent = f" ({found.left:.2g} of alpha left)" if found.attempt else ""
        self._write(f"divmon  checked {text}{spent}")

    def close(self) -> None:
        """Print the final table, once."""
        if self._closed:
            return
        self._closed = True
        if not self._steps:
            if not self._alerts:
                self._write("divmon  no evaluation took place")
            return
        for line in self._table():
            self._write(line)

    def _legend(self, shown: Sequence[Item]) -> Iterator[str]:
        """What the names on the line mean, each name once in a run."""
        line = ""
        for item in shown:
            if item.metric in self._explained or item.metric not in LEGEND:
                continue
            self._explained.add(item.metric)
            name = item.text if item.metric == "format_dominance" else item.name
            text = f"{name}: {LEGEND[item.metric]}"
            if line and _columns(f"{line} · {text}") > LONG:
                yield line
                line = ""
            line = f"{line} · {text}" if line else f"divmon  {text}"
        if line:
            yield line

    def _table(self) -> Iterator[str]:
        """Aligned rows: the curves of the default selection and every series on which an alarm fired."""
        start, end = self._steps[0], self._steps[-1]
        begin = f"step {start}" if start == 0 or self._resumed else f"baseline (step {start})"
        rows = [["metric", "domain", begin, f"step {end}", "change", "95% interval", "alarms fired"]]
        for key in dict.fromkeys((*self._chosen, *self._fired)):
            domain, _, metric = key.rpartition("/")
            cells = [_titled(metric), _clean(domain), "-", "-", "-", "-", ", ".join(self._fired.get(key, ())) or "-"]
            if key in self._last:
                first, last = self._first[key], self._last[key]
                cells[2], cells[3] = _at(first, start), _at(last, end)
                cells[4] = (_change(first.value, last.value) if last.step != first.step else "") or "-"
                cells[5] = f"{_short(last.low, 1)} to {_short(last.high, 1)}" if math.isfinite(last.low) else "-"
            rows.append(cells)
        if start == end:  # nothing to compare with
            rows = [[*row[:3], *row[5:]] for row in rows]
        widths = [max(_columns(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            padded = (cell + " " * (width - _columns(cell)) for cell, width in zip(row, widths, strict=True))
            yield f"divmon  {'  '.join(padded)}".rstrip()

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


def status_line(
    observation: Observation,
    first: Mapping[str, Measurement],
    *,
    watched: Mapping[str, str] | None = None,
    coloured: bool = False,
) -> tuple[str, list[Item]]:
    """The line of one evaluation, at most 110 columns wide, and the items that found a place on it.

    Series whose alarms fire or are pending come first. Then each domain gets its first item before any gets its second,
    until the line is full ("…" says that more was measured). The alarms stand at the end, named or, when there are
    many, counted.

    Args:
        observation: The evaluation.
        first: What changes are relative to, by series.
        watched: The series (``domain/metric``) that each alarm cell (``name/domain``) watches, where known.
        coloured: Paint the alarms.

    >>> now = Measurement(step=8, domain="math", metric="tfidf_distance", value=0.45)
    >>> then = Measurement(step=0, domain="math", metric="tfidf_distance", value=0.6)
    >>> status_line(Observation(step=8, measurements=(now,), states={"x/math": "firing"}), {now.key: then})[0]
    'divmon  step 8  math: surface .45 (-25%)  ● x firing'
    """
    head, items = f"divmon  step {observation.step}", _items(observation, first, watched or {})
    for room in (ALARMS, 0):  # alarms are counted rather than take the place of every number
        marks = _alarms(observation, room)
        tail = "".join(f"  {text}" for text, _ in marks)
        taken, body = _fitting(items, WIDTH - _columns(f"{head}  {tail}"))
        if taken or not items:
            break
    if not items:
        reason = next((m.reason for m in observation.measurements if m.reason), "nothing was measured")
        body = f"no values: {_clean(reason, max(LABEL, WIDTH - 13 - _columns(f'{head}{tail}')))}"
    end = "".join(f"  {_paint(text, colour if coloured else 0)}" for text, colour in marks)
    return f"{head}  {body}{end}", taken


def _fitting(items: Sequence[Item], room: int) -> tuple[list[Item], str]:
    """As many of the first items as `room` columns hold, and their text."""
    taken: list[Item] = []
    body = ""
    for place, item in enumerate(items):
        longer = _body([*taken, item])
        if _columns(longer) + (0 if place == len(items) - 1 else 2) > room:
            return taken, f"{body} …".lstrip()
        taken.append(item)
        body = longer
    return taken, body


def alert_line(event: AlarmEvent, *, coloured: bool = False) -> str:
    """The message of an event, with what will be done. Never cut, but a long one does not say how long it has held.

    The domain stands in the message; that nothing was confirmed is said once a run, not on every line.
    """
    resolved = event.state == "resolved"
    colour = GREEN if resolved else COLOURS[event.severity]
    word = _paint("RESOLVED" if resolved else event.severity.upper(), colour if coloured else 0)
    message = event.message or f"{event.metric} in {event.domain} is {_short(event.value)}"
    place = "" if message.startswith(event.metric) else f"{_clean(event.domain)}, "
    asked = ", ".join(_clean(action) for action in event.actions if action != "warn")
    start, end = f"{_clean(event.alarm)} ({place}step {event.step}): ", f" → {asked}" if asked else ""
    plain = f"divmon  {'RESOLVED' if resolved else event.severity} {start}{escape_controls(brief(message))}{end}"
    return f"divmon  {word} {start}{escape_controls(brief(message, held=_columns(plain) <= LONG))}{end}"


def lever_line(change: LeverEvent) -> str:
    """What a lever did, on one line.

    >>> lever_line(LeverEvent(70, "gate", "armed", 0.0, "narrow", "Released: its alarm has not come back."))
    'divmon  gate armed (step 70, strength 0): Released: its alarm has not come back.'
    """
    reason = escape_controls(brief(change.reason, held=False))
    strength = "learning rate x" if change.lever == ROLLBACK else "strength"
    return f"divmon  {change.lever} {change.phase} (step {change.step}, {strength} {change.strength:g}): {reason}."


def _items(observation: Observation, first: Mapping[str, Measurement], watched: Mapping[str, str]) -> list[Item]:
    """In the order in which they deserve a place."""
    chosen = choose(observation, limit=len(ITEMS) * max(1, len(observation.measurements)))
    finite = {m.key: m for m in observation.measurements if math.isfinite(m.value)}
    grave = [cell for state in URGENT for cell, now in observation.states.items() if now == state]
    urgent = [watched[cell] for cell in grave if watched.get(cell) in finite]
    usual = [key for metric in NAMES for key in chosen if finite[key].metric == metric]
    return [_item(finite[key], first.get(key), urgent=key in urgent) for key in dict.fromkeys((*urgent, *usual))]


def _item(m: Measurement, start: Measurement | None, *, urgent: bool) -> Item:
    if m.metric == "format_dominance":
        return Item(m.domain, m.metric, _top(m), f"{m.value:.0%}")
    relative = urgent or m.metric in RELATIVE
    change = _change(start.value, m.value) if relative and start is not None and start.step != m.step else ""
    return Item(m.domain, m.metric, NAMES.get(m.metric, _clean(m.metric)), _short(m.value), change)


def _body(items: Sequence[Item]) -> str:
    domains = dict.fromkeys(item.domain for item in items)
    named = [(d, "  ".join(item.text for item in items if item.domain == d)) for d in domains]
    return " | ".join(text if d == "default" and len(named) == 1 else f"{_clean(d)}: {text}" for d, text in named)


def _alarms(observation: Observation, room: int) -> list[tuple[str, int]]:
    """Marks for what fires and what is pending, each with its colour; names that need more than `room` are counted."""
    states = alarm_states(observation)
    marks = []
    for state, (dot, colour) in URGENT.items():
        names = [_clean(name) for name, value in states.items() if value == state]
        text = ", ".join(names)
        if _columns(text) > room:
            text = "1 alarm" if len(names) == 1 else f"{len(names)} alarms"
        room -= _columns(text)
        if names:
            marks.append((f"{dot} {text} {state}", colour))
    return marks


def _top(m: Measurement) -> str:
    """The most frequent format: ``details["shares"]``, or details that are themselves shares by format."""
    found = m.details.get("shares", m.details)
    shares = {k: v for k, v in found.items() if isinstance(v, float)} if isinstance(found, Mapping) else {}
    return _clean(str(max(shares, key=lambda label: shares[label]))) if shares else TOP


def _change(before: float, now: float) -> str:
    """Relative change; empty where there is nothing to relate it to."""
    change = f"{now / before - 1:+.0%}" if before > 0 else ""
    return "0%" if change in ("+0%", "-0%") else change


def _titled(metric: str) -> str:
    """A metric's own name with the one it has on the line."""
    name = NAMES.get(metric, metric)
    return _clean(metric) if name == metric else f"{metric} ({name})"


def _at(m: Measurement, step: int) -> str:
    """A value in the column of `step`, with its own step where that is another one."""
    return _short(m.value, 1) + (f" at {m.step}" if m.step != step else "")


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
