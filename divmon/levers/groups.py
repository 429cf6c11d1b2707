"""Where levers meet the groups of GRPO and RLOO: rewards and advantages, between the trainer's own two steps.

TRL calls reward functions on each rank's rows, which need not be whole groups, and gathers what they return. Levers
work on what was gathered, with the completions gathered too. Reward functions stay as they are, so that rollouts and
``quality="rewards"`` go on measuring what the user pays for.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from divmon.errors import ConfigError, DivmonError
from divmon.health import Health

log = logging.getLogger("divmon")
PATIENCE = 20  # batches
REWARDS, SCORE = "_calculate_rewards", "_generate_and_score_completions"


@dataclass(frozen=True)
class Groups:
    """A generation batch of all ranks.

    Attributes:
        texts: P x G completions.
        rewards: float[P, G], the trainer's weighted sums; NaN where no reward function had an answer.
    """

    texts: tuple[tuple[str, ...], ...]
    rewards: np.ndarray


Shape = Callable[[Groups], np.ndarray]  # float[P, G]: what rewards are multiplied by
Weigh = Callable[[Groups], np.ndarray]  # float[P]: what advantages are multiplied by


def refuse_without_groups(trainer: Any, lever: str) -> None:
    """Levers on groups need a trainer that has some.

    Raises:
        ConfigError: It has none, or not where this version of divmon knows to find them.
    """
    kind = type(trainer).__name__
    if not (hasattr(trainer, "reward_funcs") and hasattr(trainer, "num_generations")):
        raise ConfigError(f"{lever} needs groups of completions with rewards (GRPO, RLOO); {kind} has none.")
    for name, wanted in ((REWARDS, ("prompts", "completions")), (SCORE, ())):
        method = getattr(trainer, name, None)
        parameters = inspect.signature(method).parameters if callable(method) else {}
        if not callable(method) or any(parameter not in parameters for parameter in wanted):
            raise ConfigError(
                f"{lever} would have no effect: this version of {kind} has no {name}() of the form divmon knows. TRL "
                "1.0 to 1.16 are known to work."
            )
    if int(trainer.num_generations) < 2:
        raise ConfigError(f"{lever} compares completions of a prompt; num_generations is {trainer.num_generations}.")


@dataclass
class Unmoved:
    """Says, once, that a lever acts and changes nothing in what the policy draws.

    Attributes:
        lever: Its name.
        correct_at: A completion of at least this reward is correct.
        batches: In a row that it has left as they were.
        said: Whether it was said.
    """

    lever: str
    correct_at: float
    batches: int = 0
    said: bool = False

    def see(self, *, moved: bool, reached: bool, main: bool) -> None:
        """Take in a batch: whether the lever `moved` anything in it, whether any completion `reached` correctness."""
        self.batches = 0 if moved else self.batches + 1
        if self.batches < PATIENCE or self.said:
            return
        self.said = True
        why = f"no reward reaches correct_at={self.correct_at:g}" if not reached else "every group is alike to it"
        if main:
            log.warning("divmon: %s has acted on %d batches and changed nothing: %s", self.lever, self.batches, why)


class GroupSeam:
    """Stands between the trainer's rewards and its advantages. With nothing to do it passes everything on untouched.

    Args:
        trainer: A GRPO or RLOO trainer.
        health: Where failures are counted; rewards then stay as they are.

    Attributes:
        shape: Multiplies rewards; None leaves them.
        weigh: Multiplies advantages; None leaves them.
        shaped: (before, after, advantages) of the newest batch whose rewards were changed, float[P, G] each.
        weighed: The local advantages of the newest batch whose advantages were changed, as handed to the trainer.
    """

    def __init__(self, trainer: Any, health: Health) -> None:
        self.trainer, self.health = trainer, health
        self.shape: Shape | None = None
        self.weigh: Weigh | None = None
        self.shaped: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self.weighed: np.ndarray | None = None
        self._pair: tuple[np.ndarray, np.ndarray] | None = None
        self._weights: np.ndarray | None = None
        self._rewards, self._score = getattr(trainer, REWARDS), getattr(trainer, SCORE)
        self._before = {name: trainer.__dict__[name] for name in (REWARDS, SCORE) if name in trainer.__dict__}
        self._signature = inspect.signature(self._rewards)
        setattr(trainer, REWARDS, self._on_rewards)
        setattr(trainer, SCORE, self._on_score)

    @property
    def main(self) -> bool:
        """Whether this rank speaks for all."""
        return int(self.trainer.accelerator.process_index) == 0

    def detach(self) -> None:
        """Unwrap the trainer."""
        self.shape = self.weigh = None
        for name, mine in ((REWARDS, self._on_rewards), (SCORE, self._on_score)):
            if self.trainer.__dict__.get(name) == mine:
                del self.trainer.__dict__[name]
                self.trainer.__dict__.update({name: self._before[name]} if name in self._before else {})

    def _on_rewards(self, *args: Any, **kwargs: Any) -> Any:
        rewards = self._rewards(*args, **kwargs)
        self._pair = self._weights = None
        if not self.trainer.model.training or (self.shape is None and self.weigh is None):
            return rewards
        from accelerate.utils import gather_object

        rows: list[tuple[str, str]] = []
        with self.health.shield("mitigation", "groups"):
            given = self._signature.bind(*args, **kwargs).arguments
            rows = list(zip(map(repr, given["prompts"]), map(_text, given["completions"]), strict=True))
        rows = list(gather_object(rows))  # every rank is here: levers act on all ranks or on none
        changed = rewards
        with self.health.shield("mitigation", "groups"):
            changed = self._changed(rewards, rows)
        return changed

    def _changed(self, rewards: Any, rows: list[tuple[str, str]]) -> Any:
        groups = self._groups(rewards, rows)
        if self.weigh is not None:
            self._weights = np.repeat(self.weigh(groups), groups.rewards.shape[1])
        if self.shape is None:
            return rewards
        factor = self.shape(groups)
        self._pair = groups.rewards, groups.rewards * factor
        return rewards * rewards.new_tensor(factor.reshape(-1, 1))

    def _groups(self, rewards: Any, rows: list[tuple[str, str]]) -> Groups:
        """Raises `DivmonError` unless the rows are whole groups, one after the other."""
        size, total = int(self.trainer.num_generations), len(rewards)
        if len(rows) != total or total % size:
            raise DivmonError(f"{len(rows)} completions and {total} rewards are not whole groups of {size}")
        for start in range(0, total, size):
            if len({prompt for prompt, _ in rows[start : start + size]}) > 1:
                raise DivmonError("a group holds completions of different prompts")
        weights = self.trainer.reward_weights.to(rewards.device).unsqueeze(0)
        sums = (rewards * weights).nansum(dim=1)
        sums[rewards.isnan().all(dim=1)] = float("nan")
        texts = tuple(tuple(text for _, text in rows[i : i + size]) for i in range(0, total, size))
        return Groups(texts, sums.double().cpu().numpy().reshape(-1, size))

    def _on_score(self, *args: Any, **kwargs: Any) -> Any:
        output = self._score(*args, **kwargs)
        pair, weights, self._pair, self._weights = self._pair, self._weights, None, None
        with self.health.shield("mitigation", "groups"):
            if pair is not None:
                kept = list(self.trainer._logs["advantages"])[-pair[0].size :]
                if len(kept) == pair[0].size:
                    self.shaped = (*pair, np.array(kept, dtype=float).reshape(pair[0].shape))
            if weights is not None:
                advantages = output["advantages"]
                first = int(self.trainer.accelerator.process_index) * len(advantages)
                mine = advantages.new_tensor(weights[first : first + len(advantages)])
                if len(mine) != len(advantages):
                    raise DivmonError(f"{len(weights)} weights for {len(advantages)} advantages of this rank")
                output["advantages"] = advantages * (mine if advantages.dim() == 1 else mine.unsqueeze(1))
                self.weighed = output["advantages"].detach().double().cpu().numpy()
        return output


def _text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)
