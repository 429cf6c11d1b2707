"""PPO, whose last home is TRL 1.12: run with that TRL first on the path (`tests/test_lanes.py` does)."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

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


class Look:
    """Weights (with the value model's), optimizer and rate after divmon has acted, by step."""

    def __init__(self, tiny: Any) -> None:
        from transformers import TrainerCallback

        self.seen: dict[int, tuple[str, Any, list[float]]] = {}
        look = self

        class Spy(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                moments = copy.deepcopy(given["optimizer"].state_dict()["state"])
                look.seen[state.global_step] = tiny.digest(given["model"]), moments, given["lr_scheduler"].base_lrs

        self.spy = Spy()


def fires_at(step: int, then: Any) -> tuple[Any, dict[str, Any]]:
    """A callback that knows the step, and settings with an alarm that fires at `step` only."""
    from transformers import TrainerCallback

    now = [0]

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            now[0] = state.global_step

    def told(texts: list[str]) -> float:
        return float(now[0] == step)

    rule = {"name": "told", "metric": "told", "rule": "above", "level": 0.5, "for": 1, "then": [then]}
    return Clock(), {**WATCHED, "metrics": [told, "length"], "alarms": [rule]}


def test_rollback_takes_policy_value_model_and_optimizer_back(tiny: Any, tmp_path: Path) -> None:
    look = Look(tiny)
    clock, settings = fires_at(4, "rollback")
    trainer = ppo(tiny, tmp_path, callbacks=[clock, divmon.DiversityCallback(**settings), look.spy])
    trainer.train()
    assert [(c.step, c.phase) for c in divmon.History.read(tmp_path).mitigations] == [(4, "applied")]
    (healthy, moments, rates), (back, again, lower) = look.seen[2], look.seen[4]
    assert back == healthy != look.seen[3][0]
    assert lower == [rate / 2 for rate in rates]
    assert moments
    for i, state in moments.items():
        assert all(torch.equal(torch.as_tensor(state[name]), torch.as_tensor(again[i][name])) for name in state)
    assert look.seen[5][0] not in (healthy, look.seen[3][0])
    assert trainer.state.global_step == 6
    logged = [row["lr"] for row in rows_of(trainer) if "lr" in row]
    assert logged[4] == pytest.approx(logged[2] / 2)  # the step after the checkpoint again, at half its rate


def test_a_rollback_that_finishes_needs_watch_and_ends_on_the_healthy_policy(tiny: Any, tmp_path: Path) -> None:
    finish = {"rollback": {"finish": True}}
    clock, settings = fires_at(4, finish)
    bare = ppo(tiny, tmp_path / "bare", callbacks=[clock, divmon.DiversityCallback(**settings)])
    with pytest.raises(divmon.ConfigError, match=r"divmon.watch\(trainer"):
        bare.train()
    look = Look(tiny)
    clock, settings = fires_at(4, finish)
    trainer = ppo(tiny, tmp_path / "watched", callbacks=[clock])
    divmon.watch(trainer, **settings)
    trainer.add_callback(look.spy)
    trainer.train()
    assert trainer.state.global_step == 4
    assert tiny.digest(trainer.model) == look.seen[2][0]
    assert (tmp_path / "watched" / "checkpoint-4").is_dir()


@pytest.mark.parametrize(
    ("lever", "why"),
    [
        ("diversity_reward", "needs groups of completions with rewards (GRPO, RLOO); PPOTrainer has none."),
        ("gate", "needs groups of completions with rewards (GRPO, RLOO); PPOTrainer has none."),
        ("entropy_band", "PPOTrainer of this TRL has no entropy bonus."),
    ],
)
def test_levers_that_ppo_would_ignore_are_refused_before_the_first_step(
    tiny: Any, lever: str, why: str, tmp_path: Path
) -> None:
    rule = {**ALWAYS, "then": [lever]}
    trainer = ppo(tiny, tmp_path)
    divmon.watch(trainer, **WATCHED, alarms=[rule])
    with pytest.raises(divmon.ConfigError, match=re.escape(why)) as refused:
        trainer.train()
    assert f"An alarm asks for {lever}, which cannot be had here." in str(refused.value)
    assert trainer.state.global_step == 0
