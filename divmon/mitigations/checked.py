"""What every lever has, and the checks of settings: by type, then by range, each error in one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_type_hints

from divmon.errors import ConfigError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


@dataclass(frozen=True, kw_only=True)
class LeverSettings:
    """What every lever has.

    Attributes:
        cooling: Steps a lever still acts once its alarm has resolved, and steps it waits after it has overshot.
        overshoot: Token entropy or length of the probes above this multiple of its first value backs the lever off
            (where `token_entropy` and `length` are measured, as they are by default).
    """

    cooling: int = 50
    overshoot: float = 3.0

    def __post_init__(self) -> None:
        check_kinds(self)
        need(self.cooling >= 0, "cooling", self.cooling, "a number of steps, 0 or more")
        need(self.overshoot > 1, "overshoot", self.overshoot, "a multiple above 1")


def check_kinds(settings: Any) -> None:
    """Insist that every field of a record of settings is of the kind it says.

    Raises:
        ConfigError: One is not.
    """
    for name, kind in get_type_hints(type(settings)).items():
        _check_kind(name, getattr(settings, name), kind)


def _check_kind(name: str, value: Any, kind: Any) -> None:
    kinds = get_args(kind) or (kind,)
    if value is None and NoneType in kinds:
        return
    kind = next(one for one in kinds if one is not NoneType)
    good = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
    if not good or (kind is not bool and isinstance(value, bool)) or (kind is float and not math.isfinite(value)):
        or_none = " or null" if NoneType in kinds else ""
        raise ConfigError(f"`{name}` must be {_WORDS[kind]}{or_none}, not {value!r}.")


def need(holds: bool, name: str, value: Any, what: str) -> None:
    """Insist that `holds`.

    Raises:
        ConfigError: It does not: ``name`` must be ``what``.
    """
    if not holds:
        raise ConfigError(f"`{name}` must be {what}, not {value!r}.")
