"""The trainer's own reward functions as a judge of probe completions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from divmon.compat import reward_functions
from divmon.errors import ConfigError, SamplingError
from divmon.probes import ProbeSet
from divmon.records import Probe, SampleBatch
from divmon.samplers.guard import undisturbed

PASSED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


@dataclass
class TrainerRewards:
    """Calls a GRPO or RLOO trainer's reward functions on probes, as the trainer would, and leaves training as found.

    Only probes taken from the trainer's own rows carry the columns that reward functions ask for.

    Attributes:
        trainer: The trainer.

    Raises:
        ConfigError: A reward is a model or asynchronous.
    """

    trainer: Any

    def __post_init__(self) -> None:
        reward_functions(self.trainer)

    def check(self, probes: ProbeSet) -> None:
        """Fail now where a reward function asks for a column that the probes do not have.

        Raises:
            ConfigError: There are no reward functions, or one asks for such a column.
        """
        functions = reward_functions(self.trainer)
        if not functions:
            raise ConfigError(
                "quality='rewards', but this trainer has no reward functions. Pass quality=your_function."
            )
        known = {*PASSED, *set.intersection(*(set(probe.columns) for probe in probes))}
        for function, _ in functions:
            for name, parameter in inspect.signature(function).parameters.items():
                needed = parameter.default is parameter.empty and parameter.kind not in (
                    parameter.VAR_KEYWORD,
                    parameter.VAR_POSITIONAL,
                )
                if needed and name not in known:
                    raise ConfigError(
                        f"quality='rewards': {getattr(function, '__name__', function)!r} asks for {name!r}, which "
                        f"not every probe has. Add it, or leave probes= out to take the trainer's own rows."
                    )

    def __call__(self, batch: SampleBatch) -> SampleBatch:
        """`batch` with weighted sums of rewards; NaN where every function abstains.

        Raises:
            SamplingError: A function does not return one reward a completion.
        """
        rows = [(probe, text, i, j) for i, probe in enumerate(batch.probes) for j, text in enumerate(batch.texts[i])]
        arguments = self._arguments(batch, rows)
        totals = [math.nan] * len(rows)
        with undisturbed(self.trainer.model):
            for function, weight in reward_functions(self.trainer):
                for n, reward in enumerate(self._call(function, arguments)):
                    if not math.isnan(reward):
                        totals[n] = (0.0 if math.isnan(totals[n]) else totals[n]) + weight * reward
        flat = iter(totals)
        return replace(batch, rewards=tuple(tuple(next(flat) for _ in row) for row in batch.texts))

    @staticmethod
    def _call(function: Any, arguments: dict[str, Any]) -> list[float]:
        """One reward a completion; NaN, like the None of TRL, is an abstention."""
        rewards = [math.nan if reward is None else float(reward) for reward in function(**arguments)]
        if len(rewards) != len(arguments["completions"]):
            name = getattr(function, "__name__", type(function).__name__)
            expected = len(arguments["completions"])
            raise SamplingError(f"The reward function {name!r} gave {len(rewards)} rewards for {expected} completions.")
        return rewards

    def _arguments(self, batch: SampleBatch, rows: Sequence[tuple[Probe, str, int, int]]) -> dict[str, Any]:
        chat = [not isinstance(probe.prompt, str) for probe, *_ in rows]
        names = {name for probe in batch.probes for name in probe.columns}
        ids = batch.token_ids
        return {
            **{name: [probe.columns.get(name) for probe, *_ in rows] for name in names},
            "prompts": [p.prompt if isinstance(p.prompt, str) else [dict(m) for m in p.prompt] for p, *_ in rows],
            "completions": [
                [{"role": "assistant", "content": text}] if is_chat else text
                for is_chat, (_, text, *_) in zip(chat, rows, strict=True)
            ],
            "completion_ids": [list(ids[i][j]) if ids else [] for *_, i, j in rows],
            "trainer_state": self.trainer.state,
            "log_extra": lambda *_, **__: None,
            "log_metric": lambda *_, **__: None,
        }
