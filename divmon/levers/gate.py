"""The lever `gate`: advantages of a prompt scaled by what solving it once more is worth to pass@k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from divmon.levers.groups import Groups, GroupSeam, Unmoved, refuse_without_groups
from divmon.mitigations.gate import gate_weights
from divmon.mitigations.settings import GateSettings


class Gate:
    """Scales advantages, not rewards: a factor that is the same for a whole group cancels when GRPO divides by its
    standard deviation.

    It helps the prompts that are not solved yet, and does nothing for breadth among the answers to one prompt. It slows
    pass@1 down, five times in simulation.

    Args:
        seam: Of the trainer.
        settings: k and tau.
        correct_at: A completion of at least this reward is correct.
    """

    name = "gate"

    def __init__(self, seam: GroupSeam, settings: GateSettings, *, correct_at: float) -> None:
        self.seam, self.correct_at, self.strength = seam, correct_at, 0.0
        self._seen: bool | None = None
        self.unmoved = Unmoved(self.name, correct_at)
        self.weights = gate_weights(int(seam.trainer.num_generations), k=settings.k, tau=settings.tau)

    @staticmethod
    def check(trainer: Any) -> None:
        """Refuse a trainer on which it would have no effect.

        Raises:
            ConfigError: With the reason.
        """
        refuse_without_groups(trainer, Gate.name)

    def set(self, strength: float) -> None:
        """Go this share of the way from weights of 1 to those of the gate."""
        self.strength = strength
        self.seam.weigh = self._weigh if strength > 0 else None
        if not strength:
            self.seam.weighed = None
        self._seen = None

    def tick(self) -> None:
        """Look whether the batches the trainer trains on have the scaled advantages."""
        batches = getattr(self.seam.trainer, "_buffered_inputs", None)
        given = self.seam.weighed
        if given is None or not batches or not np.abs(given).any():
            return
        found = np.concatenate([batch["advantages"].detach().double().cpu().numpy() for batch in batches])
        same = found.shape == given.shape and np.array_equal(np.sort(found, axis=0), np.sort(given, axis=0))
        self._seen = same if self._seen is None else self._seen and same

    def verdict(self) -> bool | None:
        """Whether they had."""
        return self._seen

    def state(self) -> dict[str, Any]:
        """Nothing of its own."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing of its own."""

    def detach(self) -> None:
        """Leave advantages alone."""
        self.set(0.0)

    def _weigh(self, groups: Groups) -> np.ndarray:
        known = np.nan_to_num(groups.rewards, nan=-np.inf)
        solved = (known >= self.correct_at).sum(axis=1)
        weights = np.asarray(1.0 - self.strength * (1.0 - self.weights[solved]))
        self.unmoved.see(moved=bool((weights < 1).any()), reached=bool(solved.any()), main=self.seam.main)
        return weights
