"""PPO, whose last home is TRL 1.12: run with that TRL first on the path (`tests/test_lanes.py` does)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import divmon

pytest.importorskip("trl.experimental.ppo", reason="this TRL has no PPO; tests/test_lanes.py runs these with 1.12.0")
pytestmark = pytest.mark.trainer
WATCHED: dict[str, Any] = {"every": 2, "k": 3, "max_new_tokens": 8, "sinks": [], "strict": True}
ALWAYS = {"name": "always", "metric": "length", "rule": "above", "level": 0.5, "for": 2, "then": ["stop"]}


def ppo(tiny: Any, out: Path, *, callbacks: Any = (), seed: int = 3, **more: Any) -> Any:
    from datasets import Dataset
    from transformers import GPT2Config, GPT2ForSequenceClassification
    from transformers.trainer_utils import set_seed
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    set_seed(seed)  # PPO's loop does not seed numpy by itself
    tok = tiny.tokenizer()
    tok.padding_side = "left"
    policy = tiny.gpt2()
    scorer = GPT2Config(**{**policy.config.to_diff_dict(), "num_labels": 1, "pad_token_id": tok.pad_token_id})
    rows = Dataset.from_list([{"input_ids": tok(p)["input_ids"]} for p in tiny.PROMPTS])
    settings = {
        "output_dir": str(out), "total_episodes": 24, "per_device_train_batch_size": 4, "num_ppo_epochs": 1,
        "num_mini_batches": 1, "response_length": 8, "learning_rate": 1e-3, "report_to": "none", "use_cpu": True,
        "bf16": False, "save_strategy": "no", "num_sample_generations": 0, "gradient_checkpointing": False,
        "gradient_accumulation_steps": 1, "missing_eos_penalty": None, "seed": seed, "logging_steps": 1, **more,
    }  # fmt: skip
    return PPOTrainer(
        args=PPOConfig(**settings), processing_class=tok, model=policy, ref_model=tiny.gpt2(),
        reward_model=GPT2ForSequenceClassification(scorer), value_model=GPT2ForSequenceClassification(scorer),
        train_dataset=rows, callbacks=list(callbacks),
    )  # fmt: skip


def rows_of(trainer: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "eps"} for row in trainer.state.log_history]


def test_undisturbed(tiny: Any, tmp_path: Path) -> None:
    plain = ppo(tiny, tmp_path / "plain")
    plain.train()
    watched = ppo(tiny, tmp_path / "watched", callbacks=[divmon.DiversityCallback(**WATCHED)])
    watched.train()
    assert repr(rows_of(watched)) == repr(rows_of(plain))  # repr: a NaN equals itself
    assert tiny.digest(watched.model) == tiny.digest(plain.model)
    history = divmon.History.read(tmp_path / "watched")
    assert [e.step for e in history.evaluations] == [0, 2, 4, 6]
    assert {probe.text for probe in history.probes} <= set(tiny.PROMPTS)
    rollouts = divmon.History.read(tmp_path / "watched" / "divmon" / "rollouts")
    assert [e.step for e in rollouts.evaluations] == [0, 1, 2, 3, 4, 5]
    assert len(rollouts.batch(0).texts) == 4
    assert "generate" not in watched.policy_model.__dict__  # unwrapped at the end


def test_watch_stops_saves_and_returns_cleanly(tiny: Any, tmp_path: Path) -> None:
    ended: list[int] = []

    from transformers import TrainerCallback

    class End(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ended.append(state.global_step)

    trainer = ppo(tiny, tmp_path, callbacks=[End()])
    divmon.watch(trainer, **WATCHED, alarms=[ALWAYS])
    assert trainer.train() is None
    assert trainer.state.global_step == 2
    assert (tmp_path / "checkpoint-2").is_dir()
    assert ended == [2]


def test_a_bare_callback_with_stop_is_refused_with_the_fix(tiny: Any, tmp_path: Path) -> None:
    trainer = ppo(tiny, tmp_path, callbacks=[divmon.DiversityCallback(**WATCHED, alarms=[ALWAYS])])
    with pytest.raises(divmon.ConfigError, match=r"divmon.watch\(trainer"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_curves_are_in_the_offline_wandb_run(tiny: Any, tmp_path: Path, offline_wandb: Any, read_wandb: Any) -> None:
    import wandb

    offline_wandb(tmp_path)
    settings = {"every": 2, "k": 3, "max_new_tokens": 8, "strict": True}
    ppo(tiny, tmp_path, callbacks=[divmon.DiversityCallback(**settings)], report_to="wandb").train()
    wandb.finish()
    [run] = read_wandb(tmp_path)
    for metric in ("tfidf_distance", "token_entropy"):
        series = divmon.History.read(tmp_path).series(metric, "train")
        assert run.series(f"divmon/train/{metric}") == list(zip(series.steps, series.values, strict=True))
    assert [step for step, _ in run.series("divmon/rollouts/effective_formats")] == [0, 1, 2, 3, 4, 5]


def test_a_warning_needs_no_watch(tiny: Any, tmp_path: Path) -> None:
    rule = {**ALWAYS, "then": ["warn"]}
    trainer = ppo(tiny, tmp_path, callbacks=[divmon.DiversityCallback(**WATCHED, alarms=[rule])])
    trainer.train()
    assert trainer.state.global_step == 6
    assert [event.state for event in divmon.History.read(tmp_path).events()] == ["pending", "firing"]
