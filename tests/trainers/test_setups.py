"""Bitwise undisturbed by scores, samplings and rollouts together, in every set-up that runs on CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import divmon
from divmon.bank import Bank

pytestmark = pytest.mark.trainer
MIXED: dict[str, Any] = {
    "every": 2, "score_every": 1, "k": 3, "max_new_tokens": 8, "sinks": [], "strict": True, "alarms": [],
    "probes": ["1+1=", "2+3=", "1+2+3+4="],
}  # fmt: skip
ADAPTED = {"peft": "lora"}
# name: trainer, its arguments, what the model is cast to
SETUPS: dict[str, tuple[str, dict[str, Any], torch.dtype | None]] = {
    "lora sft": ("sft", ADAPTED, None),
    "lora grpo": ("grpo", ADAPTED, None),
    "checkpointing": ("sft", {"gradient_checkpointing_kwargs": {"use_reentrant": False}}, None),
    "checkpointing reentrant": ("sft", {"gradient_checkpointing_kwargs": {"use_reentrant": True}}, None),
    "checkpointing grpo": ("grpo", {"gradient_checkpointing_kwargs": {"use_reentrant": True}}, None),
    "bf16 autocast": ("sft", {"bf16": True}, None),
    "bf16 autocast grpo": ("grpo", {"bf16": True}, None),
    "bf16 weights": ("sft", {}, torch.bfloat16),
    "fp16 weights": ("sft", {"learning_rate": 1e-3}, torch.float16),
    "iterations": ("grpo", {"num_iterations": 2, "steps_per_generation": 2, "max_steps": 8}, None),
}


def run(tiny: Any, out: Path, name: str, callbacks: list[Any]) -> Any:
    """A run of the set-up `name`."""
    from peft import LoraConfig

    kind, more, dtype = SETUPS[name]
    more = {"max_steps": 4, **more}
    if more.get("peft"):
        more["peft"] = LoraConfig(r=4, lora_dropout=0.1, target_modules=["c_attn"], task_type="CAUSAL_LM")
    trainer = tiny.TRAINERS[kind](out, callbacks=callbacks, **more)
    if dtype is not None:
        trainer.model.to(dtype)
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", SETUPS)
def test_bitwise_undisturbed(tiny: Any, name: str, tmp_path: Path) -> None:
    plain = run(tiny, tmp_path / "plain", name, [])
    watched = run(tiny, tmp_path / "watched", name, [divmon.DiversityCallback(**MIXED)])
    assert tiny.rows(watched) == tiny.rows(plain)
    assert tiny.digest(watched.model) == tiny.digest(plain.model)
    assert tiny.digest(watched.model) != tiny.digest(tiny.gpt2())  # it learnt something
    steps, history = watched.state.max_steps, divmon.History.read(tmp_path / "watched")
    assert len(history.scores().evaluations) == steps + 1
    assert len(history.evaluations) >= 3
    first = {m.metric: m.value for m in history.scores().evaluations[0].measurements}
    assert (first["retained_mass"], first["kl_per_token"]) == (1.0, 0.0)  # in half precision too
    kinds = SETUPS[name][0]
    if kinds == "grpo":
        group = 2 * SETUPS[name][1].get("num_iterations", 1) if name == "iterations" else 1
        assert len(history.rollouts().evaluations) == steps // group


def test_long_prompts_lose_their_beginning_and_scores_see_what_was_sampled_from(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "1+" * 300 + "4="
    settings = {**MIXED, "probes": ["1+1=", long]}
    tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**settings)], max_steps=2).train()
    assert "1 of 2 prompts lose their beginning" in caplog.text
    history = divmon.History.read(tmp_path)
    bank = Bank.read(tmp_path / "divmon" / "bank.npz", probes=history.batch(0).probes)
    tokens = tuple(tiny.tokenizer()(long)["input_ids"])
    assert bank.prompts[1] == tokens[-(96 - 8) :]
    scores = history.scores().evaluations
    assert {m.metric: m.value for m in scores[0].measurements}["kl_per_token"] == 0.0
    assert all(m.value == m.value for e in scores for m in e.measurements if m.metric == "retained_mass")
