"""The lever `entropy_band`: GRPO's entropy coefficient, moved every step while an alarm fires."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from divmon.errors import ConfigError
from divmon.mitigations.entropy import EntropyBand
from divmon.mitigations.settings import EntropyBandSettings


class EntropyLever:
    """Sets `trainer.entropy_coef`, which GRPO reads at every step, on top of what the user has set.

    The trainer's argument of that name is copied when the trainer is made, and changing it later does nothing.

    Args:
        trainer: A GRPO trainer with an entropy bonus.
        settings: The band, the speed and the cap.
    """

    name = "entropy_band"

    def __init__(self, trainer: Any, settings: EntropyBandSettings) -> None:
        self.trainer, self.band, self.strength = trainer, EntropyBand(settings), 0.0
        self._base, self._enabled = float(trainer.entropy_coef), bool(trainer._entropy_bonus_enabled)
        self._read: tuple[Any, int] = None, 0  # the trainer's list, which is another one once it was logged
        self._seen: bool | None = None

    @staticmethod
    def check(trainer: Any) -> None:
        """Refuse a trainer that has no entropy bonus, or moves it itself.

        Raises:
            ConfigError: With the reason.
        """
        kind = type(trainer).__name__
        if not (hasattr(trainer, "entropy_coef") and hasattr(trainer, "_entropy_bonus_enabled")):
            raise ConfigError(
                f"entropy_band would have no effect: {kind} of this TRL has no entropy bonus. Only GRPOTrainer has "
                "one, since TRL 1.8; diversity_reward works in GRPO and RLOO."
            )
        if getattr(trainer, "use_adaptive_entropy", False):
            raise ConfigError(
                "entropy_band would have no effect: use_adaptive_entropy=True lets TRL set the coefficient itself at "
                "every step. Turn one of the two off."
            )

    def set(self, strength: float) -> None:
        """Act with this share of the controller's coefficient."""
        self.strength = strength
        if strength > 0:
            self.trainer._entropy_bonus_enabled = True
        else:
            self.band.reset()
            self.trainer._entropy_bonus_enabled = self._enabled
        self._seen = None
        self._write()

    def tick(self) -> None:
        """Read the entropy of the step from the trainer's own metrics; calibrate on it first, control by it later."""
        rows = self.trainer._metrics["train"]
        entropies = rows.get("entropy", [])
        known, count = self._read
        fresh = [float(value) for value in entropies[count if known is entropies else 0 :]]
        self._read = entropies, len(entropies)
        if self.strength > 0 and self.band.bonus > 0 and rows.get("entropy_coef"):
            used = float(rows["entropy_coef"][-1])
            self._seen = abs(used - float(self.trainer.entropy_coef)) < 1e-12
        if not fresh:
            return
        mean = sum(fresh) / len(fresh)
        if self.band.target is None:
            self.band.calibrate([mean])
        elif self.strength > 0:
            self.band.move(mean)
            self._write()

    def verdict(self) -> bool | None:
        """Whether the loss of the newest step used the coefficient that was set for it."""
        return self._seen

    def state(self) -> dict[str, Any]:
        """The entropies of the first steps, and the coefficient."""
        return {"seen": list(self.band.seen), "coefficient": self.band.coefficient, "bonus": self.band.bonus}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with them."""
        self.band.seen = [float(value) for value in state.get("seen", ())]
        self.band.coefficient = float(state.get("coefficient", 0.0))
        self.band.bonus = float(state.get("bonus", 0.0))
        self._write()

    def detach(self) -> None:
        """Put the user's coefficient back."""
        self.set(0.0)

    def _write(self) -> None:
        self.trainer.entropy_coef = self._base + self.strength * self.band.bonus
