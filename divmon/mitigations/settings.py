"""What a user may set about each lever, checked before training starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from divmon.errors import ConfigError, suggest, unknown
from divmon.mitigations.checked import LeverSettings, need
from divmon.mitigations.inrun import InRunSettings

__all__ = [
    "BY",
    "SETTINGS",
    "DiversityRewardSettings",
    "EntropyBandSettings",
    "GateSettings",
    "LeverSettings",
    "lever_settings",
    "read",
]

BY = ("formats", "answer", "text", "tfidf")


@dataclass(frozen=True, kw_only=True)
class DiversityRewardSettings(LeverSettings):
    """Of the set-level reward; see `divmon.mitigations.diversity`.

    Attributes:
        weight: 1 multiplies rewards by the diversity factor, 0.5 goes half the way.
        by: What makes two completions alike: "formats" (the structural label, or yours from ``formats=``), "answer",
            "text" (equal but for white space) or "tfidf" (chained by surface similarity).
        correct_only: Count, and pay, only correct completions (`divmon.Settings.correct_at`).
        floor: The factor of a completion that is like all others.
        similarity: With by="tfidf": the cosine from which two completions are alike.
    """

    weight: float = 1.0
    by: str = "formats"
    correct_only: bool = True
    floor: float = 0.1
    similarity: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        need(0 < self.weight <= 1, "weight", self.weight, "above 0 and at most 1")
        need(0 <= self.floor < 1, "floor", self.floor, "0 or more and below 1")
        need(0 < self.similarity <= 1, "similarity", self.similarity, "above 0 and at most 1")
        if self.by not in BY:
            raise unknown("by", self.by, BY)


@dataclass(frozen=True, kw_only=True)
class GateSettings(LeverSettings):
    """Of the gate on saturated prompts; see `divmon.mitigations.gate`.

    Attributes:
        k: The pass@k whose gain counts.
        tau: A prompt whose expected gain is below this is saturated.
    """

    k: int = 16
    tau: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        need(self.k >= 2, "k", self.k, "2 or more")
        need(0 <= self.tau < 1, "tau", self.tau, "0 or more and below 1")


@dataclass(frozen=True, kw_only=True)
class EntropyBandSettings(LeverSettings):
    """Of the controller of GRPO's entropy coefficient; see `divmon.mitigations.entropy`.

    Attributes:
        low: The lower end of the band, as a share of the run's own entropy in its first steps.
        high: Its upper end.
        calibrate: Steps that are averaged for that.
        step: What the coefficient changes by a step.
        most: Its cap.
    """

    low: float = 0.8
    high: float = 1.2
    calibrate: int = 10
    step: float = 5e-3
    most: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        need(0 < self.low < self.high, "low", self.low, "above 0 and below `high`")
        need(self.calibrate >= 1, "calibrate", self.calibrate, "1 or more steps")
        need(0 < self.step <= self.most, "step", self.step, "above 0 and at most `most`")


SETTINGS: Mapping[str, type[LeverSettings]] = {
    "diversity_reward": DiversityRewardSettings,
    "gate": GateSettings,
    "entropy_band": EntropyBandSettings,
    "resample": InRunSettings,
}


def read(lever: str, values: Mapping[str, Any]) -> LeverSettings:
    """The settings of `lever` from a mapping.

    Raises:
        ConfigError: A name or a value that cannot work, with a suggestion.

    >>> read("gate", {"kk": 8})
    Traceback (most recent call last):
        ...
    divmon.errors.ConfigError: gate: Unknown setting 'kk'. Did you mean 'k'?
    """
    kind = SETTINGS[lever]
    known = [field.name for field in fields(kind)]
    for name in values:
        if name not in known:
            raise ConfigError(f"{lever}: Unknown setting {name!r}.{suggest(name, known)}")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{lever}: {error}") from None


def lever_settings(rules: Iterable[Any]) -> dict[str, LeverSettings]:
    """The settings of every lever that `rules` name, by lever.

    Args:
        rules: With `name`, `actions` and `settings`, as `divmon.Rule` has them.

    Raises:
        ConfigError: A setting that cannot work, or two rules that set up one lever differently.
    """
    found: dict[str, tuple[str, LeverSettings]] = {}
    for rule in rules:
        for action in rule.actions:
            if action not in SETTINGS:
                continue
            try:
                settings = read(action, rule.settings.get(action, {}))
            except ConfigError as error:
                raise ConfigError(f"alarm {rule.name!r}: {error}") from None
            first, before = found.setdefault(action, (rule.name, settings))
            if before != settings:
                raise ConfigError(
                    f"The alarms {first!r} and {rule.name!r} set up {action} differently. There is one {action}: give "
                    "both the same settings."
                )
    return {name: settings for name, (_, settings) in found.items()}
