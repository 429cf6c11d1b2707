"""Uses that are not the plain one: dice in the user's own code, one-shot data, interrupted runs, two callbacks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

import divmon
from divmon.samplers.generate import GenerateSampler

pytestmark = pytest.mark.trainer
BASE: dict[str, Any] = {"every": 1, "k": 2, "max_new_tokens": 4, "sinks": []}


def both(make: Any, out: Path, **settings: Any) -> tuple[Any, Any]:
    """The trainer without and with divmon, both trained."""
    found = []
    for name, callbacks in {"plain": [], "watched": [divmon.DiversityCallback(**{**BASE, **settings})]}.items():
        found.append(make(out / name, callbacks=callbacks))
        found[-1].train()
    return found[0], found[1]


def draw(*_: Any) -> float:
    """What a user's function does that throws dice."""
    return random.random() + float(np.random.rand()) + float(torch.rand(()))


@pytest.mark.parametrize("settings", [{"quality": lambda probe, text: draw()}, {"sinks": [lambda observation: draw()]}])
def test_randomness_in_the_users_functions_does_not_disturb(tiny: Any, tmp_path: Path, settings: Any) -> None:
    plain, watched = both(tiny.sft, tmp_path, **settings)
    assert tiny.digest(watched.model) == tiny.digest(plain.model)


def language_modelling(tiny: Any, out: Path, rows: Any, callbacks: Any) -> Trainer:
    tok = tiny.tokenizer()
    return Trainer(
        model=tiny.gpt2(), args=TrainingArguments(**tiny.arguments(out)), train_dataset=rows, processing_class=tok,
        data_collator=DataCollatorForLanguageModeling(tok, mlm=False), callbacks=callbacks,
    )  # fmt: skip


def test_data_with_random_transforms_is_undisturbed(tiny: Any, tmp_path: Path) -> None:
    def make(out: Path, callbacks: Any) -> Trainer:
        ids = tiny.tokenizer()(list(tiny.PROMPTS))["input_ids"]
        rows = Dataset.from_dict({"input_ids": ids})
        rows.set_transform(lambda batch: {"input_ids": [row[random.randint(0, 2) :] for row in batch["input_ids"]]})
        return language_modelling(tiny, out, rows, callbacks)

    plain, watched = both(make, tmp_path)
    assert tiny.digest(watched.model) == tiny.digest(plain.model)


class OneShot(torch.utils.data.IterableDataset):  # type: ignore[misc]
    def __init__(self, rows: list[Any]) -> None:
        self.rows = iter(rows)

    def __iter__(self) -> Iterator[Any]:
        return self.rows


def test_data_that_can_be_read_once_is_left_to_the_trainer(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def make(out: Path, callbacks: Any) -> Trainer:
        rows = [{"input_ids": ids} for ids in tiny.tokenizer()(list(tiny.PROMPTS) * 2)["input_ids"]]
        return language_modelling(tiny, out, OneShot(rows), callbacks)

    plain, watched = both(make, tmp_path)
    assert tiny.rows(watched) == tiny.rows(plain)
    assert "readable only once" in caplog.text


def test_rewards_that_can_be_read_once_are_left_to_the_trainer(tiny: Any, tmp_path: Path) -> None:
    def lazy(completions: list[str], **_: Any) -> Iterator[float]:
        yield from (-len(text) / 10 for text in completions)

    def make(out: Path, callbacks: Any) -> Any:
        trainer = tiny.grpo(out, callbacks=callbacks)
        trainer.reward_funcs = [lazy]
        return trainer

    plain, watched = both(make, tmp_path)
    assert tiny.digest(watched.model) == tiny.digest(plain.model)
    values = divmon.History.read(tmp_path / "watched" / "divmon" / "rollouts").series("mean_quality", "rollouts").values
    assert (values < 0).all()


def test_rewards_keep_their_weights_whatever_the_order_of_the_calls(tiny: Any, tmp_path: Path) -> None:
    async def late(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    def early(completions: list[str], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    from trl import GRPOConfig, GRPOTrainer

    settings = tiny.arguments(tmp_path, num_generations=4, max_completion_length=8, reward_weights=[10.0, 1.0])
    GRPOTrainer(
        model=tiny.gpt2(), args=GRPOConfig(**settings), train_dataset=Dataset.from_dict({"prompt": tiny.PROMPTS}),
        processing_class=tiny.tokenizer(), reward_funcs=[late, early], callbacks=[divmon.DiversityCallback(**BASE)],
    ).train()  # fmt: skip
    values = divmon.History.read(tmp_path / "divmon" / "rollouts").series("mean_quality", "rollouts").values
    assert values.tolist() == [10.0] * 6


def test_an_interrupted_run_leaves_nothing_behind_once_there_is_another(tiny: Any, tmp_path: Path) -> None:
    class Interrupt(TrainerCallback):  # type: ignore[misc]
        left = 2

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    callback = divmon.DiversityCallback(**BASE)
    trainer = tiny.grpo(tmp_path, callbacks=[callback, Interrupt()])
    rewards = list(trainer.reward_funcs)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    first = callback.session
    assert first is not None
    trainer.train()
    assert trainer.reward_funcs == rewards
    assert first.rollouts is not None
    assert first.rollouts.tap.take()[1] == []
    assert [e.step for e in divmon.History.read(tmp_path).evaluations] == list(range(7))


def test_two_callbacks_need_two_folders(tiny: Any, tmp_path: Path) -> None:
    one, other = divmon.DiversityCallback(**BASE), divmon.DiversityCallback(["1+1=", "2+2="], **BASE)
    for pair in ([one, one], [one, other]):
        with pytest.raises(divmon.ConfigError, match="give each a run_dir"):
            tiny.grpo(tmp_path / "same", callbacks=pair).train()
    apart = divmon.DiversityCallback(["1+1=", "2+2="], **BASE, run_dir=tmp_path / "apart")
    trainer = tiny.grpo(tmp_path / "own", callbacks=[one, apart])
    trainer.train()
    for folder, probes in {"own": 24, "apart": 2}.items():
        history = divmon.History.read(tmp_path / folder)
        assert (len(history.evaluations), len(history.probes)) == (7, probes)
        assert len(history.rollouts().evaluations) == 6


def test_a_callback_watches_the_trainer_that_trains(tiny: Any, tmp_path: Path) -> None:
    callback = divmon.DiversityCallback(**BASE)
    first = tiny.sft(tmp_path / "first", callbacks=[callback])
    tiny.grpo(tmp_path / "second", callbacks=[callback])
    first.train()
    assert len(divmon.History.read(tmp_path / "first").evaluations) == 7


def test_a_train_method_around_the_trainers_own_is_no_loop_of_its_own(tiny: Any, tmp_path: Path) -> None:
    class Greeting(Trainer):  # type: ignore[misc]
        def train(self, *args: Any, **kwargs: Any) -> Any:
            return super().train(*args, **kwargs)

    rule = {"name": "always", "metric": "length", "rule": "above", "level": 0, "for": 2, "then": ["stop"]}
    trainer = tiny.trainer(tmp_path, callbacks=[divmon.DiversityCallback(**BASE, alarms=[rule])])
    trainer.__class__ = Greeting
    trainer.train()
    assert trainer.state.global_step == 1
    assert (tmp_path / "checkpoint-1").is_dir()


BEST: dict[str, Any] = {
    "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_divmon/train/tfidf_distance",
    "greater_is_better": True,
}  # fmt: skip


@pytest.mark.parametrize("broken", [(0, 1, 2), (2, 3), range(7)])
def test_a_sampler_that_fails_where_it_chooses_the_best_model(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Any
) -> None:
    real = GenerateSampler.__call__

    def sometimes(self: GenerateSampler, probes: Any, *, step: int) -> Any:
        if step in broken:
            raise RuntimeError("the sampler broke")
        return real(self, probes, step=step)

    monkeypatch.setattr(GenerateSampler, "__call__", sometimes)
    trainer = tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**BASE)], save_strategy="best", **BEST)
    trainer.train()
    assert trainer.state.global_step == 6
    assert trainer.state.best_global_step not in broken


def test_a_metric_that_does_not_exist_cannot_choose_the_best_model(tiny: Any, tmp_path: Path) -> None:
    settings = {**BEST, "metric_for_best_model": "eval_divmon/train/no_such"}
    trainer = tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**BASE)], save_strategy="best", **settings)
    with pytest.raises(KeyError, match="no_such"):
        trainer.train()


@pytest.mark.parametrize("every", [2, 100])  # noticed at the end of a step, or while the trainer evaluates
def test_a_stop_saves_also_where_only_the_best_is_saved(tiny: Any, tmp_path: Path, every: int) -> None:
    rule = {"name": "always", "metric": "length", "rule": "above", "level": 0, "for": 3, "then": ["stop"]}
    callback = divmon.DiversityCallback(**{**BASE, "every": every}, alarms=[rule])
    best = {**BEST, "metric_for_best_model": "eval_loss"}  # greater is better, and it falls: step 1 is the best
    trainer = tiny.sft(tmp_path, callbacks=[callback], save_strategy="best", **best)
    trainer.train()
    assert trainer.state.global_step == (2 if every == 2 else 3)
    assert (tmp_path / f"checkpoint-{trainer.state.global_step}").is_dir()


def test_a_config_error_of_a_sink_does_not_stop_training(tiny: Any, tmp_path: Path) -> None:
    def sink(observation: Any) -> None:
        if observation.step > 0:
            raise divmon.ConfigError("too late for that")

    trainer = tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**{**BASE, "sinks": [sink]})])
    trainer.train()
    assert trainer.state.global_step == 6
    assert divmon.History.read(tmp_path).evaluations[-1].health["sink_failures"] == 5


def test_rollouts_go_on_where_their_record_was_damaged(tiny: Any, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4}
    tiny.grpo(tmp_path, callbacks=[divmon.DiversityCallback(**BASE)], **settings).train()
    record = tmp_path / "divmon" / "rollouts" / "history.jsonl"
    record.write_text("{damaged\n" + record.read_text("utf-8"), "utf-8")
    trainer = tiny.grpo(tmp_path, callbacks=[divmon.DiversityCallback(**BASE)], **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    history = divmon.History.read(tmp_path)
    assert [e.step for e in history.evaluations] == list(range(7))
    assert [e.step for e in history.rollouts().evaluations] == [4, 5]
    assert record.parent.with_name("rollouts.1").is_dir()
