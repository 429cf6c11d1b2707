"""What every lever has in common: it can be refused, set, watched, and taken off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Carrier(Protocol):
    """One lever on one trainer.

    While its strength is 0 it leaves training bit for bit as it is.

    Attributes:
        name: One of `divmon.records.LEVERS`.
    """

    name: str

    def set(self, strength: float) -> None:
        """Act with this share of the full strength from the next step on; 0 takes the lever off."""

    def tick(self) -> None:
        """A training step is over."""

    def verdict(self) -> bool | None:
        """Whether it was seen to take effect on this rank; None where nothing shows it yet."""

    def state(self) -> dict[str, Any]:
        """What must survive a resume, in plain JSON types."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""

    def detach(self) -> None:
        """Leave the trainer as it was found."""
