"""A run whose alarm is told when to fire, and a spy that sees the trainer after divmon has acted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import divmon


class Run:
    """A training run in which `told` is 1, and the alarm fires, at the steps of `breaks`.

    Attributes:
        seen: By step, what the trainer was left with: digest of the weights, optimizer and scheduler.
    """

    def __init__(self, tiny: Any, make: Any, out: Path, *, breaks: Collection[int], then: Any, **more: Any) -> None:
        self.step, self.out, self.seen = 0, out, dict[int, dict[str, Any]]()
        self.observed: list[Any] = []
        run, resume, extra = self, more.pop("resume", None), more.pop("extra", [])

        class Clock(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                run.step = int(state.global_step)

        class Spy(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                run.seen.setdefault(int(state.global_step), {})["began"] = tiny.digest(given["model"])

            def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                run.seen[int(state.global_step)] = {
                    "digest": tiny.digest(given["model"]),
                    "weights": {name: p.detach().clone() for name, p in given["model"].named_parameters()},
                    "optimizer": copy.deepcopy(given["optimizer"].state_dict()),
                    "scheduler": copy.deepcopy(given["lr_scheduler"].state_dict()),
                    "buffered": getattr(run.trainer, "_buffered_inputs", "none"),
                }

        def told(texts: list[str]) -> float:
            return float(self.step in breaks)

        rule = {"name": "told", "metric": "told", "rule": "above", "level": 0.5, "for": 1, "clear_for": 1}
        self.watching = divmon.DiversityCallback(
            **{
                "every": 2, "k": 2, "max_new_tokens": 4, "sinks": [self.observed.append], "strict": True,
                "metrics": [told, "length"], "alarms": [{**rule, "then": then}], **more.pop("watch", {}),
            }
        )  # fmt: skip
        callbacks = [Clock(), *extra, self.watching, Spy()]
        self.trainer = make(out, callbacks=callbacks, **{"max_steps": 8, **more})
        self.trainer.train(resume_from_checkpoint=resume)

    @property
    def history(self) -> divmon.History:
        return divmon.History.read(self.out)

    @property
    def changes(self) -> list[tuple[int, str, float]]:
        return [(c.step, c.phase, c.strength) for c in self.history.mitigations]

    @property
    def kept(self) -> list[str]:
        return sorted(path.name for path in (self.out / "divmon" / "healthy").glob("*"))

    def rate(self, step: int) -> float:
        """The learning rate that the trainer logged for this step."""
        [found] = [r["learning_rate"] for r in self.trainer.state.log_history if r["step"] == step and "loss" in r]
        return float(found)


@pytest.fixture
def told(tiny: Any, tmp_path: Path) -> Callable[..., Run]:
    """Trains, in a folder of its own: ``told(make, breaks=[4], then=["rollback"], **trainer_arguments)``."""

    def start(make: Any, name: str = "run", **more: Any) -> Run:
        return Run(tiny, make, tmp_path / name, **{"breaks": [4], "then": [{"rollback": {"cooling": 3}}], **more})

    return start
