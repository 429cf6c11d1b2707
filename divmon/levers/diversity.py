"""The lever `diversity_reward`: rewards shared out over the completions of a group that are alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from divmon.errors import ConfigError
from divmon.levers.groups import Groups, GroupSeam, Unmoved, refuse_without_groups
from divmon.mitigations.diversity import Labeller, clusters, factors, shaped
from divmon.mitigations.settings import DiversityRewardSettings

AGREES = 0.5  # correlation within groups; it is 1 unless the trainer puts a KL penalty into the reward


class DiversityReward:
    """Multiplies rewards by how few of a group are like them, as strongly as an alarm has asked for.

    What TRL then does with it: with ``scale_rewards="none"`` (and in RLOO) the weight is the weight. At GRPO's default,
    ``"group"``, advantages are divided by the group's standard deviation, so that in a group whose completions are all
    correct any weight above 0 acts in full. A group that is all alike gets no signal: nothing here brings back what the
    policy no longer draws, which is why the lever belongs to an early alarm.

    Args:
        seam: Of the trainer.
        settings: What counts as alike, and how much it costs.
        correct_at: A completion of at least this reward is correct.
        classifier: The user's formats; None for the built-in ones.
    """

    name = "diversity_reward"

    def __init__(
        self, seam: GroupSeam, settings: DiversityRewardSettings, *, correct_at: float, classifier: Labeller | None
    ) -> None:
        self.seam, self.settings, self.correct_at, self.classifier = seam, settings, correct_at, classifier
        self.strength = 0.0
        self.unmoved = Unmoved(self.name, correct_at)

    @staticmethod
    def check(trainer: Any) -> None:
        """Refuse a trainer on which it would have no effect, or another one than it says.

        Raises:
            ConfigError: With the reason.
        """
        refuse_without_groups(trainer, DiversityReward.name)
        each = getattr(trainer, "multi_objective_aggregation", "") == "normalize_then_sum"
        if each and len(trainer.reward_funcs) > 1:
            raise ConfigError(
                "diversity_reward multiplies the sum of the rewards, and multi_objective_aggregation="
                "'normalize_then_sum' normalises each reward function before summing. Use 'sum_then_normalize'."
            )

    def set(self, strength: float) -> None:
        """Act with this share of `weight`."""
        self.strength = strength
        self.seam.shape = self._factor if strength > 0 else None
        if not strength:
            self.seam.shaped = None

    def tick(self) -> None:
        """Nothing: it acts on generation batches."""

    def verdict(self) -> bool | None:
        """Whether the trainer's advantages follow the changed rewards, in the groups where they were changed."""
        if self.seam.shaped is None:
            return None
        before, after, advantages = (np.nan_to_num(values) for values in self.seam.shaped)
        moved = (np.ptp(after, axis=1) > 1e-6) & (np.abs(after - before).max(axis=1) > 1e-9)
        if not moved.any():
            return None
        pushed = _standard(after[moved]) * _standard(advantages[moved])
        return bool(pushed.mean() > AGREES)

    def state(self) -> dict[str, Any]:
        """Nothing of its own."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing of its own."""

    def detach(self) -> None:
        """Leave rewards alone."""
        self.set(0.0)

    def _factor(self, groups: Groups) -> np.ndarray:
        s = self.settings
        alike = np.array(
            [clusters(row, s.by, classifier=self.classifier, similarity=s.similarity) for row in groups.texts]
        )
        known = np.nan_to_num(groups.rewards, nan=-np.inf)
        counted = known >= self.correct_at if s.correct_only else np.isfinite(groups.rewards)
        factor = factors(alike, counted, floor=s.floor)
        ones = np.ones_like(factor)
        factor = np.where(known > 0, shaped(ones, factor, weight=s.weight * self.strength), ones)
        moved = np.ptp(np.where(known > 0, known * factor, 0.0) - np.maximum(known, 0.0), axis=1) > 1e-9
        self.unmoved.see(moved=bool(moved.any()), reached=bool(counted.any()), main=self.seam.main)
        return factor


def _standard(values: np.ndarray) -> np.ndarray:
    """float[P, G], each row with mean 0 and standard deviation 1 (0 where it is constant)."""
    centred = values - values.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    return np.asarray(np.where(spread > 1e-9, centred / np.where(spread > 1e-9, spread, 1.0), 0.0))
