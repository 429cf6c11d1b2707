"""KTO, RLOO, OnlineDPO and PEFT: attached by the same line, bitwise undisturbed, with the rollout tap on."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

import divmon

pytestmark = pytest.mark.trainer
WATCHED: dict[str, Any] = {"every": 2, "k": 3, "max_new_tokens": 8, "sinks": [], "strict": True}


def pair(make: Any, tmp_path: Path, **settings: Any) -> tuple[Any, Any]:
    plain = make(tmp_path / "plain")
    plain.train()
    watched = make(tmp_path / "watched", callbacks=[divmon.DiversityCallback(**{**WATCHED, **settings})])
    watched.train()
    return plain, watched


@pytest.mark.parametrize("name", ["kto", "rloo", "online_dpo"])
def test_undisturbed(tiny: Any, name: str, tmp_path: Path) -> None:
    if name == "online_dpo":
        pytest.importorskip("trl.experimental.online_dpo", reason="this TRL has no OnlineDPO")
    plain, watched = pair(tiny.MORE_TRAINERS[name], tmp_path)
    assert tiny.rows(watched) == tiny.rows(plain)
    assert tiny.digest(watched.model) == tiny.digest(plain.model)
    assert [e.step for e in divmon.History.read(tmp_path / "watched").evaluations] == [0, 2, 4, 6]


@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_undisturbed_with_lora(tiny: Any, name: str, tmp_path: Path) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=["c_attn"], lora_dropout=0.1, fan_in_fan_out=True, task_type="CAUSAL_LM")
    make = functools.partial(tiny.TRAINERS[name], peft=lora)
    plain, watched = pair(make, tmp_path)
    assert tiny.rows(watched) == tiny.rows(plain)
    assert tiny.digest(watched.model) == tiny.digest(plain.model)


@pytest.mark.parametrize("name", ["grpo", "rloo", "online_dpo"])
def test_rollouts_are_a_series_of_their_own_every_step(tiny: Any, name: str, tmp_path: Path) -> None:
    make = {**tiny.TRAINERS, **tiny.MORE_TRAINERS}[name]
    seen: list[tuple[int, list[Any], list[str]]] = []

    def reward(prompts: Any, completions: list[str], **_: Any) -> list[float]:
        if trainer.model.training:
            seen.append((trainer.state.global_step, list(prompts), list(completions)))
        return [float("1" in text) for text in completions]

    trainer = make(tmp_path, callbacks=[divmon.DiversityCallback(**WATCHED)])
    trainer.reward_funcs = [reward]
    trainer.train()
    assert trainer.reward_funcs == [reward]  # unwrapped at the end
    rollouts = divmon.History.read(tmp_path / "divmon" / "rollouts")
    quality = rollouts.series("mean_quality", "rollouts")
    by_step: dict[int, list[str]] = {}
    for step, _, completions in seen:
        by_step.setdefault(step, []).extend(completions)
    assert quality.steps.tolist() == sorted(by_step)
    expected = [sum("1" in text for text in texts) / len(texts) for _, texts in sorted(by_step.items())]
    assert quality.values.tolist() == pytest.approx(expected)
    first = rollouts.batch(0)
    assert sorted(text for row in first.texts for text in row) == sorted(by_step[0])
    assert first.source == "rollout"
    keys = divmon.History.read(tmp_path).keys()
    assert all(key.startswith("train/") for key in keys)


def test_rollouts_are_what_was_generated_even_if_a_reward_edits_it(tiny: Any, tmp_path: Path) -> None:
    seen: list[str] = []

    def vandal(completions: list[str], **_: Any) -> list[float]:
        seen.extend(completions)
        completions[:] = ["edited"] * len(completions)
        return [0.0] * len(completions)

    trainer = tiny.grpo(tmp_path, callbacks=[divmon.DiversityCallback(**WATCHED)], max_steps=1)
    trainer.reward_funcs = [vandal]
    trainer.train()
    rollouts = divmon.History.read(tmp_path).rollouts()
    assert sorted(text for row in rollouts.batch(0).texts for text in row) == sorted(seen)
    assert rollouts.evaluations[0].measurements[0].values  # on disk, though not in the memory of the run


def test_a_reward_object_that_is_awaited_stays_one(tiny: Any, tmp_path: Path) -> None:
    class Judge:
        __name__ = "judge"

        async def __call__(self, completions: list[str], **_: Any) -> list[float]:
            return [float("1" in text) for text in completions]

    trainer = tiny.grpo(tmp_path, max_steps=2)
    plain = type(trainer)(
        model=tiny.gpt2(), args=trainer.args, train_dataset=trainer.train_dataset, reward_funcs=Judge(),
        processing_class=tiny.tokenizer(), callbacks=[divmon.DiversityCallback(**WATCHED)],
    )  # fmt: skip
    plain.train()
    rollouts = divmon.History.read(tmp_path).rollouts()
    expected = [sum("1" in t for t in row) / len(row) for row in rollouts.batch(0).texts]
    assert rollouts.series("mean_quality", "rollouts").values[0] == pytest.approx(sum(expected) / len(expected))


def test_rollouts_can_be_switched_off(tiny: Any, tmp_path: Path) -> None:
    tiny.grpo(tmp_path, callbacks=[divmon.DiversityCallback(**WATCHED, rollouts=False)]).train()
    assert not (tmp_path / "divmon" / "rollouts").exists()


def test_the_best_checkpoint_can_be_chosen_by_diversity(tiny: Any, tmp_path: Path) -> None:
    from transformers import EarlyStoppingCallback

    key = "divmon/train/token_entropy"
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 12}
    trainer = tiny.sft(
        tmp_path, callbacks=[divmon.DiversityCallback(**WATCHED), EarlyStoppingCallback(2)],
        metric_for_best_model=key, greater_is_better=True, load_best_model_at_end=True, **settings,
    )  # fmt: skip
    trainer.train()
    series = divmon.History.read(tmp_path).series("token_entropy", "train")
    values = dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))
    del values[0]  # the baseline is no checkpoint
    best = max(values, key=lambda step: (values[step], -step))
    assert trainer.state.best_metric == values[best]
    assert trainer.state.global_step < 12  # early stopping used it as well
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
