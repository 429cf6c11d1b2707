"""What a user may set about `resample` as a lever: resampling inside one run, from an alarm until it resolves."""

from __future__ import annotations

from dataclasses import dataclass

from divmon.mitigations.checked import need
from divmon.mitigations.resample import ResampleSettings


@dataclass(frozen=True, kw_only=True)
class InRunSettings(ResampleSettings):
    """Of the lever `resample`: what a pass does (see `ResampleSettings`), who criticises, and how much is served.

    Attributes:
        critic: Who criticises: "policy", "model:NAME", the address of an endpoint, or "package.module:function".
            ``DiversityCallback(critic=...)`` goes before it, and may be a function.
        share: Of the rows of other prompts, how many are refinements while the lever acts. Rows of a prompt that has
            accepted refinements always are (own).
    """

    critic: str = "policy"
    share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        need(0 <= self.share <= 1, "share", self.share, "0 or more and at most 1")
