"""Every lever of a run on its trainer: made and checked at the start, set as the book says, watched, saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from divmon.errors import ConfigError
from divmon.health import Health
from divmon.levers.carrier import Carrier
from divmon.levers.diversity import DiversityReward
from divmon.levers.entropy import EntropyLever
from divmon.levers.gate import Gate
from divmon.levers.groups import GroupSeam
from divmon.mitigations.diversity import Labeller
from divmon.mitigations.levers import LeverBook
from divmon.mitigations.settings import (
    DiversityRewardSettings,
    EntropyBandSettings,
    GateSettings,
    LeverSettings,
)

CHECKS = {lever.name: lever.check for lever in (DiversityReward, Gate, EntropyLever)}


def check_levers(settings: Iterable[str], trainer: Any, more: Mapping[str, Callable[[Any], None]]) -> None:
    """Refuse, before the first step, every lever that this trainer would ignore.

    Args:
        settings: Names of the levers.
        trainer: The trainer.
        more: Checks of levers that are made elsewhere.

    Raises:
        ConfigError: With the reason.
    """
    for name in settings:
        try:
            {**CHECKS, **more}[name](trainer)
        except ConfigError as error:
            raise ConfigError(f"An alarm asks for {name}, which cannot be had here. {error}") from None


class Board:
    """The levers of one run.

    Args:
        trainer: The trainer, which `check_levers` has passed.
        settings: By lever.
        health: Where failures are counted.
        correct_at: A completion of at least this reward is correct.
        classifier: The user's formats; None for the built-in ones.
        more: Levers that are made elsewhere, by name.
    """

    def __init__(
        self,
        trainer: Any,
        settings: Mapping[str, LeverSettings],
        *,
        health: Health,
        correct_at: float = 0.5,
        classifier: Labeller | None = None,
        more: Mapping[str, Carrier] | None = None,
    ) -> None:
        self.health = health
        grouped = {"diversity_reward", "gate"} & set(settings)
        self.seam = GroupSeam(trainer, health) if grouped else None
        self.carriers: dict[str, Carrier] = dict(more or {})
        for name, chosen in settings.items():
            if name in self.carriers:
                continue
            if name == "entropy_band":
                self.carriers[name] = EntropyLever(trainer, cast(EntropyBandSettings, chosen))
            elif name == "gate":
                seam = cast(GroupSeam, self.seam)
                self.carriers[name] = Gate(seam, cast(GateSettings, chosen), correct_at=correct_at)
            else:
                seam, mine = cast(GroupSeam, self.seam), cast(DiversityRewardSettings, chosen)
                self.carriers[name] = DiversityReward(seam, mine, correct_at=correct_at, classifier=classifier)
        self._set: dict[str, float] = dict.fromkeys(self.carriers, 0.0)
        self.verified: set[str] = set()

    def apply(self, book: LeverBook) -> None:
        """Set every lever to what `book` says."""
        for name, strength in book.strengths.items():
            if strength != self._set[name]:
                self._set[name] = strength  # also where it fails: ranks must agree on who is asked for a verdict
                with self.health.shield("mitigation", name):
                    self.carriers[name].set(strength)

    def tick(self) -> None:
        """A training step is over."""
        for name, carrier in self.carriers.items():
            with self.health.shield("mitigation", name):
                carrier.tick()

    def verdicts(self) -> dict[str, bool | None]:
        """Of every lever that acts and has not been seen to: whether it took effect on this rank."""
        acting = [name for name, strength in self._set.items() if strength > 0 and name not in self.verified]
        found: dict[str, bool | None] = dict.fromkeys(acting)
        for name in acting:
            with self.health.shield("mitigation", name):  # the other ranks are waiting for what this one says
                found[name] = self.carriers[name].verdict()
        return found

    def idle(self, ranks: Iterable[Mapping[str, bool | None]]) -> list[str]:
        """Levers that some rank saw to have no effect. Those that were only seen to have one are not asked again."""
        found: dict[str, list[bool]] = {}
        for verdicts in ranks:
            for name, verdict in verdicts.items():
                found.setdefault(name, []).extend([] if verdict is None else [verdict])
        self.verified |= {name for name, seen in found.items() if seen and all(seen)}
        return [name for name, seen in found.items() if seen and not all(seen)]

    @property
    def waiting(self) -> bool:
        """Whether `verdicts` has anything to say; the same on every rank."""
        return any(strength > 0 and name not in self.verified for name, strength in self._set.items())

    def state(self) -> dict[str, Any]:
        """What the levers must remember over a resume, in plain JSON types."""
        return {name: carrier.state() for name, carrier in self.carriers.items()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name, carrier in self.carriers.items():
            with self.health.shield("mitigation", f"{name} (resume)"):
                carrier.restore(saved.get(name, {}))

    def detach(self) -> None:
        """Leave the trainer as it was found."""
        for name, carrier in self.carriers.items():
            with self.health.shield("mitigation", name):
                carrier.detach()
        if self.seam is not None:
            self.seam.detach()
