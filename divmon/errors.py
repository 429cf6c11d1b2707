"""Everything divmon raises, as one tree.

DivmonError
├── ConfigError (ValueError)        a setting, rule, metric or action that cannot work; raised at construction
├── ProbeError (ValueError)         prompts that cannot be probed
├── SamplingError (RuntimeError)    the policy could not be sampled
├── HistoryError (RuntimeError)     a run on disk cannot be read or written
│   └── SignatureMismatch           two numbers that were not measured the same way
└── MissingDependency (ImportError) an optional package is needed; the message names the command that installs it
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DivmonError(Exception):
    """Base of every error divmon raises."""


class ConfigError(DivmonError, ValueError):
    """A setting, rule, metric or action that cannot work. Always raised at construction, never during training."""


class ProbeError(DivmonError, ValueError):
    """Prompts that cannot be probed: an empty file, duplicate ids, a row without a prompt."""


class SamplingError(DivmonError, RuntimeError):
    """The policy could not be sampled."""


class HistoryError(DivmonError, RuntimeError):
    """A run on disk cannot be read or written."""


class SignatureMismatch(HistoryError):
    """Two numbers under one name were measured differently, so they do not belong in one curve."""


class MissingDependency(DivmonError, ImportError):
    """An optional package is needed; the message names the command that installs it."""


def suggest(name: str, options: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest of `options`, else the list of them.

    >>> suggest("tfidf_distanse", ["tfidf_distance", "vendi"])
    " Did you mean 'tfidf_distance'?"
    """
    known = sorted(options)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def unknown(kind: str, name: str, options: Iterable[str]) -> ConfigError:
    """The error for a name that is not in a table, with a suggestion."""
    return ConfigError(f"Unknown {kind} {name!r}.{suggest(name, options)}")
