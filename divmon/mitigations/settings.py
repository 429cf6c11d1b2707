"""What a user may set about each lever, checked before training starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from divmon.errors import ConfigError, suggest, unknown
from divmon.mitigations.checked import LeverSettings, check_kinds, need
from divmon.mitigations.inrun import InRunSettings
from divmon.records import ROLLBACK

__all__ = [
    "BY",
    "SETTINGS",
    "DiversityRewardSettings",
    "EntropyBandSettings",
    "GateSettings",
    "LeverSettings",
    "RollbackSettings",
    "lever_settings",
    "read",
    "rollback_settings",
]

Kept = TypeVar("Kept")

AFTER = ("nothing", "stop")
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


@dataclass(frozen=True, kw_only=True)
class RollbackSettings:
    """Of going back to a healthy checkpoint; see `divmon.mitigations.rollback`.

    Attributes:
        most: How often a run may go back.
        factor: What the learning rate is multiplied by each time.
        cooling: Steps after one rollback in which there is no other.
        keep: Healthy checkpoints kept on disk, the newest ones. An older one is used where a newer one is damaged.
        tolerance: How far below its first value pass@1 (mean quality where there is no pass@1) may be, in its own
            unit, for a policy to count as healthy. Without anything that judges completions, alarms alone decide.
        margin: Which share of the change that a rule allows a healthy policy may have used, where the rule asks for the
            rollback and compares with the baseline. At 1, the policy just before the alarm is healthy.
        after: When a run that has gone back `most` times asks again: "nothing", or "stop" (saved first).
        finish: Go back and stop there.
    """

    most: int = 2
    factor: float = 0.5
    cooling: int = 50
    keep: int = 2
    tolerance: float = 0.1
    margin: float = 0.5
    after: str = "nothing"
    finish: bool = False

    def __post_init__(self) -> None:
        check_kinds(self)
        need(self.most >= 1, "most", self.most, "1 or more")
        need(0 < self.factor <= 1, "factor", self.factor, "above 0 and at most 1")
        need(self.cooling >= 0, "cooling", self.cooling, "a number of steps, 0 or more")
        need(self.keep >= 1, "keep", self.keep, "1 or more")
        need(self.tolerance >= 0, "tolerance", self.tolerance, "0 or more")
        need(0 < self.margin <= 1, "margin", self.margin, "above 0 and at most 1")
        if self.after not in AFTER:
            raise unknown("after", self.after, AFTER)

    @property
    def stops(self) -> bool:
        """Whether it may end training."""
        return self.finish or self.after == "stop"


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
    return _read(lever, values, SETTINGS[lever])


def _read(lever: str, values: Mapping[str, Any], kind: type[Kept]) -> Kept:
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
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
    return _agreed(rules, SETTINGS)


def rollback_settings(rules: Iterable[Any]) -> RollbackSettings | None:
    """The settings of the rollback that `rules` ask for; None where none does.

    Raises:
        ConfigError: A setting that cannot work, or two rules that set it up differently.
    """
    return _agreed(rules, {ROLLBACK: RollbackSettings}).get(ROLLBACK)


def _agreed(rules: Iterable[Any], kinds: Mapping[str, type[Kept]]) -> dict[str, Kept]:
    found: dict[str, tuple[str, Kept]] = {}
    for rule in rules:
        for action in rule.actions:
            if action not in kinds:
                continue
            try:
                settings = _read(action, rule.settings.get(action, {}), kinds[action])
            except ConfigError as error:
                raise ConfigError(f"alarm {rule.name!r}: {error}") from None
            first, before = found.setdefault(action, (rule.name, settings))
            if before != settings:
                raise ConfigError(
                    f"The alarms {first!r} and {rule.name!r} set up {action} differently. There is one {action}: give "
                    "both the same settings."
                )
    return {name: settings for name, (_, settings) in found.items()}
