"""What a sink is, how one is named, and the short selection of curves that every tracker gets."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from divmon.errors import ConfigError, unknown
from divmon.metrics import METRICS
from divmon.metrics.human import DIMENSIONS
from divmon.records import OVERALL, Observation, State

# Where each named sink lives. Modules are loaded when asked for, so that naming one sink does not load the others.
SINKS: dict[str, tuple[str, str]] = {
    "console": ("divmon.sinks.console", "ConsoleSink"),
    "trackio": ("divmon.sinks.trackio", "TrackioSink"),
    "wandb": ("divmon.sinks.wandb", "WandbSink"),
}

# The default curves, the most telling first: how far apart completions are, which shapes they have, whether the hard
# and the rare are still reached, and the cheap model-side signal. `semantic_distance` takes the place of
# `tfidf_distance` where an encoder measured it.
DEFAULT_METRICS = (
    "semantic_distance",
    "tfidf_distance",
    "effective_formats",
    "pass_at_1",
    "tail_share",
    "format_dominance",
    "coverage",
    "token_entropy",
)
# Known only where the user gave something to compare with (references, other models, the writers' own texts), so each
# gets its curve and none counts towards a limit.
ASKED = (
    "human_gap",
    *(f"human_gap_{name}" for name in DIMENSIONS),
    "hivemind_similarity",
    "source_models",
    "voice_spread",
)
LEVELS: dict[State, float] = {"unknown": 0.0, "inactive": 0.0, "pending": 1.0, "firing": 2.0}
BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Sink(Protocol):
    """Something that shows or stores observations. Only rank 0 calls it.

    Attributes:
        name: For messages about it.
    """

    name: str

    def emit(self, observation: Observation) -> None:
        """Take one observation. What it raises is counted and reported by the caller and never stops training."""

    def close(self) -> None:
        """Training has ended. May be called more than once."""


@dataclass
class FunctionSink:
    """A plain function of an observation, as a sink."""

    fn: Callable[[Observation], object]
    name: str

    def emit(self, observation: Observation) -> None:
        """Call the function."""
        self.fn(observation)

    def close(self) -> None:
        """Do nothing: a function holds nothing open."""


def as_sink(obj: Any) -> Sink:
    """Turn a name, a sink or a function of an observation into a sink.

    >>> as_sink(print).name
    'print'

    Raises:
        ConfigError: For an unknown name, a class instead of an instance, and anything else.
    """
    if isinstance(obj, str):
        if obj not in SINKS:
            raise unknown("sink", obj, SINKS)
        module, attribute = SINKS[obj]
        sink: Sink = getattr(import_module(module), attribute)()
        return sink
    if isinstance(obj, type):
        raise ConfigError(f"{obj.__name__} is a class; pass an instance of it: {obj.__name__}().")
    if callable(getattr(obj, "emit", None)) and callable(getattr(obj, "close", None)):
        if not isinstance(getattr(obj, "name", None), str):
            raise ConfigError(f"A sink needs a name (a string attribute `name`); {obj!r} has none.")
        checked: Sink = obj
        return checked
    if callable(obj):
        return FunctionSink(obj, str(getattr(obj, "__name__", type(obj).__name__)))
    known = ", ".join(map(repr, sorted(SINKS)))
    raise ConfigError(
        f"A sink must be one of {known}, an object with name, emit(observation) and close(), "
        f"or a function of an observation, not {obj!r}."
    )


def metric_names(metrics: Sequence[str] | None) -> tuple[str, ...] | None:
    """The `metrics=` argument of a sink, checked (a lone string would be taken for its letters)."""
    if metrics is None:
        return None
    if isinstance(metrics, str) or not all(isinstance(name, str) for name in metrics):
        raise ConfigError(f"metrics= takes a list of metric names, not {metrics!r}.")
    return tuple(metrics)


def choose(
    observation: Observation,
    *,
    limit: int = 12,
    metrics: Sequence[str] | None = None,
    keep: Sequence[str] = (),
) -> tuple[str, ...]:
    """Which series (``domain/metric``) become curves.

    Metric by metric, those a user wrote first and then in the order of `DEFAULT_METRICS`, and within a metric domain by
    domain in the order they were measured, every series with a finite value is taken until there are `limit`; those of
    `ASKED` come on top. So every domain gets its surface distance before any gets its second curve. The overall domain
    counts only for metrics no domain has. Where none of these was measured, all that was is taken.

    Args:
        observation: The evaluation.
        limit: Most series; without meaning when `metrics` is given.
        metrics: Exactly these metrics, in every domain, instead of the default ones.
        keep: Series chosen before, which keep their place, so that curves do not come and go.
    """
    finite = {m.key: m for m in observation.measurements if math.isfinite(m.value)}
    if metrics is None:
        own = dict.fromkeys(m.metric for m in observation.measurements if m.metric not in METRICS)
        names: Sequence[str] = (*own, *DEFAULT_METRICS, *ASKED)
        if not any(m.metric in names for m in finite.values()):
            names = list(dict.fromkeys(m.metric for m in finite.values()))
    else:
        names = metrics
    chosen = list(dict.fromkeys(keep))
    taken = set(chosen)
    for name in names:
        found = [m for m in finite.values() if m.metric == name]
        for m in [m for m in found if m.domain != OVERALL] or found:
            encoded = metrics is None and name == "tfidf_distance" and f"{m.domain}/semantic_distance" in taken
            full = metrics is None and name not in ASKED and _counted(chosen) >= limit
            if m.key in taken or encoded or full:
                continue
            chosen.append(m.key)
            taken.add(m.key)
    return tuple(chosen)


def _counted(keys: Sequence[str]) -> int:
    return sum(key.rpartition("/")[2] not in ASKED for key in keys)


def curves(
    observation: Observation,
    *,
    limit: int = 12,
    metrics: Sequence[str] | None = None,
    keep: Sequence[str] = (),
) -> dict[str, float]:
    """The short row for a tracker: finite Python floats only, the rest lives in the History.

    ``divmon/<domain>/<metric>`` for the series of `choose` (same arguments), ``divmon/alarm/<name>`` (0 inactive or
    unknown, 1 pending, 2 firing; the highest over domains), ``divmon/mitigation/<name>`` (0 armed, 1 applied, 2
    cooling) and ``divmon/health/<key>``; the last three do not count towards `limit`.

    >>> from divmon.records import Measurement
    >>> distance = Measurement(step=3, domain="math", metric="tfidf_distance", value=0.6)
    >>> curves(Observation(step=3, measurements=(distance,), states={"collapse/math": "pending"}))
    {'divmon/math/tfidf_distance': 0.6, 'divmon/alarm/collapse': 1.0}
    """
    values = {m.key: float(m.value) for m in observation.measurements if math.isfinite(m.value)}
    chosen = choose(observation, limit=limit, metrics=metrics, keep=keep)
    row = {f"divmon/{key}": values[key] for key in chosen if key in values}
    row |= {f"divmon/alarm/{name}": LEVELS[state] for name, state in alarm_states(observation).items()}
    row |= {f"divmon/mitigation/{name}": float(level) for name, level in observation.mitigations.items()}
    row |= {f"divmon/health/{key}": float(v) for key, v in observation.health.items() if math.isfinite(v)}
    return {strip_controls(key): value for key, value in row.items()}


def alarm_states(observation: Observation) -> dict[str, State]:
    """The gravest state of each alarm over its domains (an alarm's name ends at the first slash of its cell)."""
    gravest: dict[str, State] = {}
    for cell, state in observation.states.items():
        name = cell.partition("/")[0]
        if name not in gravest or LEVELS[state] > LEVELS[gravest[name]]:
            gravest[name] = state
    return gravest


def _hostile(char: str) -> bool:
    return char in BIDI or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def strip_controls(text: str, *, limit: int | None = None, keep: str = "") -> str:
    """`text` without control characters, lone surrogates and direction overrides, cut to `limit` characters.

    >>> strip_controls("a\\x1b[31mb\\ud800c")
    'a[31mbc'
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(c for c in text if c in keep or not _hostile(c))


def escape_controls(text: str) -> str:
    """`text` with the same characters made visible instead, on one line.

    >>> print(escape_controls("a\\x1b[31mb\\nc"))
    a\\x1b[31mb\\nc
    """
    return "".join(c.encode("unicode_escape").decode("ascii") if _hostile(c) else c for c in text)
