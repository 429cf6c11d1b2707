"""The notation of synthetic series: ``0.8x4 0.4x6 _ 0.4`` and ``inactive x4 pending firing``.

=============  ====================================================================
``0.8``        one point
``0.8x4``      the value four times (``0.8 x4`` too)
``0.8-0.1x4``  a ramp of four points: 0.8, 0.7, 0.6, 0.5
``_``, ``_x3`` a missing point (NaN), three of them
=============  ====================================================================

promtool writes series in the same way, but counts what comes *after* the first point: its ``0.8x3`` is ``0.8x4`` here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, get_args

from divmon.errors import ConfigError, suggest
from divmon.records import State

STATES: tuple[str, ...] = get_args(State)
ANY = "_"
MOST = 100_000  # points of one series; more is a typing error
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_VALUE = re.compile(rf"(?P<start>{_NUMBER}|_)(?P<step>[+-](?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)?(?:x(?P<times>\d+))?")
_STATE = re.compile(r"(?P<state>[A-Za-z]+|_)(?:x(?P<times>\d+))?")
_TIMES = re.compile(r"\s+(x\d+)(?=\s|$)")


def points(text: Any) -> list[float]:
    """The values of a series, NaN where it is missing.

    Args:
        text: The notation, a number, or a list of these (null is missing).

    Raises:
        ConfigError: It is not the notation; the message names the word.

    >>> points("0.8x2 0.4 _ 1-0.25x3")
    [0.8, 0.8, 0.4, nan, 1.0, 0.75, 0.5]
    """
    found: list[float] = []
    for word in _words(text):
        match = _VALUE.fullmatch(word)
        if match is None or (match["step"] and (match["times"] is None or match["start"] == ANY)):
            raise ConfigError(f"{word!r} is no value; write for example 0.8, 0.8x4 (four times), 0.8-0.1x4 or _.")
        times = _count(word, match["times"])
        if match["start"] == ANY:
            found += [math.nan] * times
        else:
            start, step = float(match["start"]), float(match["step"] or 0)
            found += [round(start + i * step, 12) if step else start for i in range(times)]
    return _not_too_many(found)


def states(text: Any) -> list[str]:
    """The states expected at each point, ``_`` where any will do.

    Raises:
        ConfigError: A word is no state.

    >>> states("inactive x2 pending firing")
    ['inactive', 'inactive', 'pending', 'firing']
    """
    found: list[str] = []
    for word in _words(text):
        match = _STATE.fullmatch(word)
        name = match["state"] if match else word
        if match is None or name not in (*STATES, ANY):
            raise ConfigError(f"{name!r} is no state.{suggest(name, STATES)}")
        found += [name] * _count(word, match["times"])
    return _not_too_many(found)


def _words(text: Any) -> list[str]:
    if isinstance(text, Sequence) and not isinstance(text, str):
        return [word for item in text for word in _words(item)]
    if text is None:
        return [ANY]
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise ConfigError(f"a series is written like 0.8x4 0.4x6 _ 0.4, not {text!r}")
    return _TIMES.sub(r"\1", str(text)).split()


def _count(word: str, times: str | None) -> int:
    n = 1 if times is None else int(times)
    if not 1 <= n <= MOST:
        raise ConfigError(f"{word!r}: a point is repeated 1 to {MOST:,} times")
    return n


def _not_too_many(found: list[Any]) -> list[Any]:
    if len(found) > MOST:
        raise ConfigError(f"a series has at most {MOST:,} points, not {len(found):,}")
    return found
