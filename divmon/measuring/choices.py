"""What to measure and through which models: from settings, or from a protocol with the user's models in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from divmon.config import Plan, plan
from divmon.errors import ConfigError
from divmon.measuring.store import Summary
from divmon.metrics.base import Metric
from divmon.monitor import Lenses
from divmon.protocols import Protocol, get_protocol
from divmon.settings import Settings

_GIVEN = ("references", "others", "attributes")
ALLOWED = ("metrics", "encoder", "nli", "equivalence", "quality", "correct_at", "formats", *_GIVEN)
_MODELS = ("encoder", "nli", "equivalence")
_ANY_K = 1 << 30  # a file's K is what it is: too few completions is a missing value with its reason


@dataclass(frozen=True)
class Choices:
    """Settings looked up.

    Attributes:
        metrics: What to measure.
        lenses: Through what.
        protocol: Whose choices these are; None without one.
    """

    metrics: tuple[Metric, ...]
    lenses: Lenses
    protocol: Protocol | None = None

    @property
    def prepare(self) -> Callable[[str], str] | None:
        """What is done to each completion first."""
        return self.protocol.prepare if self.protocol is not None else None

    def deviations(self, summary: Summary) -> tuple[str, ...]:
        """In what this measurement is not the protocol's."""
        if self.protocol is None:
            return ()
        names = _names(self.lenses)
        return self.protocol.deviations(k=summary.k, prompts=summary.prompts, decoding=summary.decoding, lenses=names)


def choose(settings: Mapping[str, Any], protocol: str | None) -> Choices:
    """Everything looked up and loaded.

    Raises:
        ConfigError: An unknown setting, metric or protocol, or a model that cannot be had; what to pass instead.
    """
    for name in settings:
        if name not in ALLOWED and name in Settings.__dataclass_fields__:
            raise ConfigError(f"{name} is for a trainer; a file is measured with {', '.join(ALLOWED)}.")
    if protocol is None:
        made = _plan(settings)
        return Choices(made.metrics, made.lenses)
    return _of_protocol(settings, get_protocol(protocol))


def _plan(settings: Mapping[str, Any]) -> Plan:
    return plan(Settings.make({**settings, "k": _ANY_K, "alarms": []}))


def _of_protocol(settings: Mapping[str, Any], protocol: Protocol) -> Choices:
    metrics = protocol.chosen(tuple(settings.get("metrics") or ()))
    needs: set[str] = {need for metric in metrics for need in metric.needs}
    models = {kind: settings.get(kind) for kind in _MODELS}
    for kind in _MODELS:
        if kind not in needs or models[kind] is not None:
            continue
        if kind in protocol.supplied:
            raise ConfigError(
                f"The protocol {protocol.name} measures through {getattr(protocol, kind)!r}, which cannot be loaded by "
                f"name: pass {kind}= a function, or another model, which then is named as a deviation."
            )
        models[kind] = getattr(protocol, kind) or None
    formats = settings.get("formats") or protocol.formats or None
    try:
        made = _plan({**settings, **models, "metrics": metrics, "formats": formats})
    except ConfigError as error:
        if all(models[kind] is settings.get(kind) for kind in _MODELS):
            raise
        raise ConfigError(
            f"{error} (The protocol {protocol.name} asks for it: pass another model, or name only metrics that need "
            "none.)"
        ) from error
    given = {kind: settings.get(kind) is not None for kind in _MODELS}
    return Choices(made.metrics, _renamed(made.lenses, protocol, given), protocol)


def _names(lenses: Lenses) -> dict[str, str]:
    judges = lenses.judges
    return {"encoder": lenses.encoder_name, "nli": judges.nli_name, "equivalence": judges.equivalence_name}


def _renamed(lenses: Lenses, protocol: Protocol, given: Mapping[str, bool]) -> Lenses:
    """A model that stands in the place of the protocol's says so in its name, and with it in every signature."""
    names = _names(lenses)
    for kind, name in names.items():
        wanted = str(getattr(protocol, kind))
        if given[kind] and wanted and name.rpartition("/")[2] != wanted.rpartition("/")[2]:
            names[kind] = f"{name} instead of {wanted.rpartition('/')[2]}"
    judges = replace(lenses.judges, nli_name=names["nli"], equivalence_name=names["equivalence"])
    return replace(lenses, encoder_name=names["encoder"], judges=judges)
