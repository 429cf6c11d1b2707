"""The second half of a round: supervised fine-tuning on what was kept, watched by divmon, and how well it went."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from divmon.callback import DiversityCallback
from divmon.errors import ConfigError, DivmonError
from divmon.history import History
from divmon.probes import ProbeSet
from divmon.records import OVERALL, Probe, Prompt
from divmon.resampling.base import Quality
from divmon.resampling.sieve import finite
from divmon.selftraining.gathering import Kept

EVALUATIONS = 4  # of a round, when no cadence is named, and one before it


def load(model: Any) -> Any:
    """The base model, in eval mode: from a folder or a Hub name; a model is copied, so that nobody changes it.

    Raises:
        ConfigError: It cannot be loaded.
    """
    if isinstance(model, torch.nn.Module):
        return copy.deepcopy(model).eval()
    from transformers import AutoModelForCausalLM

    try:
        found = AutoModelForCausalLM.from_pretrained(str(model), dtype="auto")
    except Exception as error:
        raise ConfigError(f"Cannot load the model {str(model)!r}: {error}") from error
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return found.to(device).eval()


def reload(base: Any, folder: Path) -> Any:
    """The model that a round saved, of the kind, type and place of `base`."""
    return type(base).from_pretrained(folder, dtype=base.dtype).to(base.device).eval()


def row_of(prompt: Prompt, text: str) -> dict[str, Any]:
    """A prompt and its completion as `SFTTrainer` takes them.

    >>> row_of("2+2=", "4")
    {'prompt': '2+2=', 'completion': '4'}
    """
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": text}
    return {"prompt": [dict(m) for m in prompt], "completion": [{"role": "assistant", "content": text}]}


@dataclass(frozen=True)
class Learner:
    """Trains and looks.

    Attributes:
        tokenizer: Of the model.
        held_out: Prompts that divmon watches.
        quality: Of a completion.
        threshold: From which it is correct.
        sft: Arguments of `SFTConfig`.
        watch: Settings of `DiversityCallback`.
        max_new_tokens: Cap of a completion.
    """

    tokenizer: Any
    held_out: ProbeSet
    quality: Quality
    threshold: float
    sft: Mapping[str, Any]
    watch: Mapping[str, Any]
    max_new_tokens: int

    def train(self, model: Any, rows: Sequence[Mapping[str, Any]], folder: Path, *, seed: int) -> int:
        """Train a copy of `model` on `rows` and save it in ``folder/model``; returns the optimiser's steps."""
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        given = {"save_strategy": "no", "report_to": "none", "num_train_epochs": 1.0, "seed": seed % 2**31}
        args = SFTConfig(**{**given, **self.sft, "output_dir": str(folder / "trainer")})
        trainer = SFTTrainer(
            model=copy.deepcopy(model),
            args=args,
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            processing_class=self.tokenizer,
        )
        trainer.add_callback(self.watcher(folder, steps=_steps(args, len(rows))))
        trainer.train()
        trainer.save_model(str(folder / "model"))
        return int(trainer.state.global_step)

    def watcher(self, folder: Path, *, steps: int) -> DiversityCallback:
        """The callback of a round of so many steps.

        Raises:
            ConfigError: A setting in `watch` that cannot work.
        """
        own: dict[str, Any] = {
            "every": max(1, -(-steps // EVALUATIONS)),
            "max_new_tokens": self.max_new_tokens,
            "quality": self.quality,
            "correct_at": self.threshold,
            **self.watch,
            "run_dir": folder / "divmon",
        }
        return DiversityCallback(self.held_out, **own)

    def outcome(self, folder: Path, level: Mapping[str, int]) -> dict[str, Any]:
        """How held-out prompts fare after the round, from divmon's history: fields of `Round`.

        Args:
            folder: Of the round.
            level: Of held-out prompts, by id; 0 where there is none.
        """
        try:
            history = History.read(folder / "divmon")
            batch = history.batch(history.last_step)
        except (DivmonError, OSError) as error:
            return {"events": (f"What divmon saw of this round cannot be read: {error}",)}
        levels = tuple(sorted({level.get(probe.id, 0) for probe in batch.probes}))
        rates: dict[int, list[float]] = {name: [] for name in levels}
        solved: dict[int, list[bool]] = {name: [] for name in levels}
        for probe, texts in zip(batch.probes, batch.texts, strict=True):
            marks = [self._mark(probe, text) for text in texts]
            rates[level.get(probe.id, 0)].append(sum(marks) / max(1, len(marks)))
            solved[level.get(probe.id, 0)].append(any(marks))
        last = history.evaluations[-1].measurements
        overall = OVERALL if any(m.domain == OVERALL for m in last) else batch.domains[0]
        return {
            "held_out_levels": levels,
            "pass_at_1": tuple(sum(rates[name]) / len(rates[name]) for name in levels),
            "pass_at_k": tuple(sum(solved[name]) / len(solved[name]) for name in levels),
            "k": batch.k,
            "diversity": {m.metric: m.value for m in last if m.domain == overall},
            "alarms": tuple(dict.fromkeys(event.alarm for event in history.fired())),
        }

    def _mark(self, probe: Probe, text: str) -> bool:
        try:
            return finite(self.quality(probe, text)) >= self.threshold
        except Exception:
            return False  # unknown, as nothing was proved


def rows_of(found: Sequence[Kept]) -> list[dict[str, Any]]:
    """Accepted completions as rows of `SFTTrainer`."""
    return [row_of(one.probe.prompt, one.text) for one in found]


def _steps(args: Any, rows: int) -> int:
    if args.max_steps > 0:
        return int(args.max_steps)
    batch = int(args.per_device_train_batch_size * max(1, args.n_gpu) * args.gradient_accumulation_steps)
    return max(1, math.ceil(float(args.num_train_epochs) * math.ceil(rows / batch)))
