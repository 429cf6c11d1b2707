"""One pass of critique-guided resampling: needy prompts, critiques, refinements, filters, lineage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from divmon.health import Health
from divmon.mitigations.resample import ResampleSettings
from divmon.records import Probe
from divmon.resampling.base import Attempt, Critic, Quality, Resampled, Writer
from divmon.resampling.lineage import Lineage
from divmon.resampling.prompts import Templates

Feasible = Callable[[Probe, str], bool]


class Resampler:
    """Finds needy prompts among attempts, has them criticised and refined, and keeps what passes every filter.

    Args:
        writer: Writes refinements, the policy as a rule.
        critic: Writes critiques; None where the variant needs none.
        settings: See `ResampleSettings`.
        quality: Of one completion; None only with `mode`.
        lineage: Where what was accepted is written down.
        health: Counts failures as those of a mitigation; with ``strict`` it lets them through.
        feasible: With `mode`: whether a completion is a possible answer at all.
        templates: Your own words for critics and the policy.
    """

    def __init__(
        self,
        writer: Writer,
        critic: Critic | None,
        settings: ResampleSettings,
        *,
        quality: Quality | None,
        lineage: Lineage | None = None,
        health: Health | None = None,
        feasible: Feasible | None = None,
        templates: Templates | Mapping[str, str] | None = None,
    ) -> None:
        self.writer, self.critic, self.settings = writer, critic, settings

    def resample(self, attempts: Sequence[Attempt], *, step: int, key: int) -> Resampled:
        """One pass over `attempts`; never raises, unless ``health.strict``."""
        return Resampled()

    def state(self) -> dict[str, Any]:
        """What was kept so far, in plain JSON types, for a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
