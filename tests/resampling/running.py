"""Runs in which an alarm fires when it is told to, a scribe writes the refinements, and what the loss sees is kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

import divmon

RIGHT = "plus"


def quality(probe: Any, text: str) -> float:
    """A right answer says "plus"; an untrained model never does."""
    return float(RIGHT in text)


def answer(prompt: str) -> str:
    """What the scribe writes for a sum."""
    a, b = re.findall(r"(\d)\+(\d)=", prompt)[0]
    return f"{a} plus {b} gives {int(a) + int(b)}"


def text_of(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


class Scribe:
    """A writer that knows the answers."""

    name = "scribe"

    def write(self, prompts: Any, *, temperature: float, keys: Any) -> list[str]:
        return [answer(text_of(prompt)) for prompt in prompts]

    def logprob(self, prompts: Any, texts: Any) -> np.ndarray:
        return np.full(len(texts), -1.0)


def critic(prompt: str, attempt: str) -> str:
    return "Line one never names both numbers."


def failing(prompt: str, attempt: str) -> str:
    raise RuntimeError("no critique today")


class Story:
    """When the alarm is told to fire, and the batches that the loss has seen, by the step they were trained at."""

    def __init__(self, breaks: Callable[[int], bool]) -> None:
        self.step, self.breaks = 0, breaks
        self.seen: dict[int, list[dict[str, Any]]] = {}
        self.trainer: Any = None
        story = self

        class Clock(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                story.step = int(state.global_step)

        self.clock = Clock()

    def watch(self, trainer: Any) -> None:
        """Keep what the loss is given from now on."""
        self.trainer, self.step = trainer, 0
        loss = trainer.compute_loss

        def watched(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if model.training:
                kept = {k: v.tolist() for k, v in inputs.items() if hasattr(v, "tolist")}
                self.seen.setdefault(int(trainer.state.global_step) + 1, []).append(kept)
            return loss(model, inputs, *args, **kwargs)

        trainer.compute_loss = watched

    def told(self, texts: list[str]) -> float:
        return float(self.breaks(self.step))


def metric(story: Story) -> Any:
    def told(texts: list[str]) -> float:
        return story.told(texts)

    return told


def settings(story: Story, **then: Any) -> dict[str, Any]:
    """Of a callback whose alarm asks for resample."""
    rule = {"name": "told", "metric": "told", "rule": "above", "level": 0.5, "for": 1, "clear_for": 1}
    rule["then"] = [{"resample": {"cooling": 2, "min_correct": 1, "critiques": 1, "refinements": 1, **then}}]
    return {
        "every": 1, "k": 2, "max_new_tokens": 4, "sinks": [], "strict": True, "metrics": [metric(story)],
        "alarms": [rule], "quality": quality, "critic": critic, "writer": Scribe(),
    }  # fmt: skip


def train(
    make: Any,
    out: Path,
    *,
    breaks: Callable[[int], bool] = lambda step: 2 <= step < 4,
    then: dict[str, Any] | None = None,
    watched: dict[str, Any] | None = None,
    **more: Any,
) -> Story:
    """A run whose alarm fires at step 2, resolves at step 4, and whose lever has cooled down at step 6."""
    story = Story(breaks)
    resume, callbacks = more.pop("resume", None), more.pop("callbacks", [])
    callback = divmon.DiversityCallback(**{**settings(story, **(then or {})), **(watched or {})})
    story.watch(make(out, callbacks=[story.clock, callback, *callbacks], **{"max_steps": 10, **more}))
    story.trainer.train(resume_from_checkpoint=resume)
    return story


def plain(make: Any, out: Path, **more: Any) -> Story:
    """The run that nobody watches."""
    story = Story(lambda step: False)
    story.watch(make(out, **{"max_steps": 10, **more}))
    story.trainer.train()
    return story


def changes(out: Path) -> list[tuple[int, str, float]]:
    """Where the lever went, without what each pass came to."""
    found = [(c.step, c.phase, c.strength) for c in divmon.History.read(out).mitigations if "accepted" not in c.reason]
    return found


def passes(out: Path) -> dict[int, str]:
    return {c.step: c.reason for c in divmon.History.read(out).mitigations if "accepted" in c.reason}


def rows_of(batches: list[dict[str, Any]], pad: int) -> list[tuple[int, ...]]:
    """Every sequence of some batches, without padding."""
    return [
        tuple(i for i, kept in zip(ids, mask, strict=True) if kept)
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
