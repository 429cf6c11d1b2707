"""The entropy band: GRPO's entropy coefficient, raised below the band and lowered above it.

The band lies around the mean entropy of the run's own first steps, since what is high for one model and mask is low for
another. Skywork's recipe has a fixed target of 0.2 nat, steps of 1e-4 and a cap of 5e-3, which is nearly inert in small
runs; TRL's default has steps of 5e-3 and a cap of 1.0, and its documented target of 5 nat lifts the coefficient until
the policy is noise. The steps here are TRL's, and the cap is 0.1.

Source: Skywork-OR1 (2025), adaptive entropy control; the constants are this project's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from divmon.mitigations.settings import EntropyBandSettings


def controlled(coefficient: float, entropy: float, *, low: float, high: float, step: float, most: float) -> float:
    """The coefficient after a step with this entropy: up to `low`, down above `high`, within 0 and `most`.

    >>> controlled(0.01, 0.2, low=0.5, high=1.0, step=0.005, most=0.1)
    0.015
    >>> controlled(0.01, 1.5, low=0.5, high=1.0, step=0.05, most=0.1)
    0.0
    """
    change = step if entropy <= low else -step if entropy > high else 0.0
    return min(max(coefficient + change, 0.0), most)


@dataclass
class EntropyBand:
    """A band found on the first steps of a run, and the coefficient that keeps entropy in it.

    Attributes:
        settings: Width of the band, speed and cap.
        seen: The entropies of the first steps.
        coefficient: Where the controller stands.
        bonus: What the entropy is paid with at the next step: the coefficient, and nothing while above the band.

    >>> band = EntropyBand(EntropyBandSettings(calibrate=2))
    >>> band.calibrate([2.0, 1.0]); band.target
    1.5
    >>> band.move(1.0), band.move(1.0), band.move(1.5), band.move(2.0), band.coefficient
    (0.005, 0.01, 0.01, 0.0, 0.005)
    """

    settings: EntropyBandSettings
    seen: list[float] = field(default_factory=list)
    coefficient: float = 0.0
    bonus: float = 0.0

    @property
    def target(self) -> float | None:
        """The mean entropy of the first steps; None until there were enough of them."""
        if len(self.seen) < self.settings.calibrate:
            return None
        return sum(self.seen) / len(self.seen)

    def calibrate(self, entropies: Iterable[float]) -> None:
        """Take in the entropies of more steps; only the first count."""
        self.seen = [*self.seen, *entropies][: self.settings.calibrate]

    def move(self, entropy: float) -> float:
        """The bonus after a step with this entropy (unchanged before the band is known)."""
        target, s = self.target, self.settings
        if target is not None:
            self.coefficient = controlled(
                self.coefficient, entropy, low=s.low * target, high=s.high * target, step=s.step, most=s.most
            )
            self.bonus = self.coefficient if entropy <= s.high * target else 0.0
        return self.bonus

    def reset(self) -> None:
        """Begin again at 0; the band stays."""
        self.coefficient = self.bonus = 0.0
