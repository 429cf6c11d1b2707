"""Rows that have ended leave the batch and shared prompts are read once: cheaper, and the same completions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import divmon
from divmon.records import Decoding, SampleBatch
from divmon.samplers import stages
from divmon.samplers.generate import GenerateSampler

LONG = ["1+2=" * 9, "the sum of 3 and 4 is " * 2, "7-5=2, 5-2=3, 6-2=4, 8-1=7, 9-1="]  # 36, 44 and 32 tokens
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, Any] = {
    "llama": lambda **k: transformers.LlamaConfig(**k),
    "sliding window": lambda **k: transformers.MistralConfig(sliding_window=8, num_key_value_heads=2, **k),
    "both kinds": lambda **k: transformers.Gemma3TextConfig(
        sliding_window=8, head_dim=8, num_key_value_heads=2, layer_types=["sliding_attention", "full_attention"], **k
    ),
    "position table": lambda **k: transformers.OPTConfig(ffn_dim=64, **k),
    "no cache of rows": lambda **k: transformers.MambaConfig(state_size=4, **k),
}


def make(name: str) -> Any:
    """A random model of 60 tokens that ends a completion about every tenth token."""
    torch.manual_seed(3)
    config = CONFIGS[name](
        vocab_size=60, max_position_embeddings=96, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, **SHAPE,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = [2, 40, 41, 42, 43, 44]
    return model


class Work:
    """Counts the calls of `generate`, and the tokens that the model computes."""

    def __init__(self, model: Any) -> None:
        self.calls, self.tokens, self.inner = 0, 0, model.generate
        model.generate = self
        model.register_forward_pre_hook(self.count, with_kwargs=True)

    def __call__(self, **arguments: Any) -> Any:
        self.calls += 1
        return self.inner(**arguments)

    def count(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        self.tokens += inputs["input_ids"].numel()


def drawn(name: str, tiny: Any, **more: Any) -> tuple[SampleBatch, Work]:
    model = make(name)
    work = Work(model)
    sampler = GenerateSampler(model, tiny.tokenizer(), 8, Decoding(max_new_tokens=40), **more)
    return sampler(divmon.ProbeSet.of(LONG), step=0), work


@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_same_completions_for_less(name: str, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, work = drawn(name, tiny)
    alone, _ = drawn(name, tiny, batch_size=1) if name == "both kinds" else (batch, work)  # never padded, never dealt
    monkeypatch.setattr(stages, "can_be_dealt", lambda policy: False)
    plain, all_at_once = drawn(name, tiny)
    assert batch.token_ids == plain.token_ids == alone.token_ids
    assert batch.finished == plain.finished
    for ours, theirs in ((batch.logprobs, plain.logprobs), (batch.entropies, plain.entropies)):
        for row, other in zip(ours or (), theirs or (), strict=True):
            np.testing.assert_allclose(np.concatenate(row), np.concatenate(other), atol=1e-4)
    assert all_at_once.calls == 1
    if name == "no cache of rows":
        assert work.calls == 1
        return
    assert work.calls >= 3  # prompts, and at least two stages
    assert work.tokens < 0.5 * all_at_once.tokens
    used = 3 * 43 + sum(len(t) for row in batch.token_ids or () for t in row)  # three prompts, padded
    assert work.tokens < 2.5 * used


def test_a_cache_that_turns_out_otherwise_is_done_without(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = drawn("llama", tiny)
    monkeypatch.setattr(stages, "_plain", lambda cache: cache.get_seq_length() == 0)  # only the empty one looks well
    batch, work = drawn("llama", tiny)
    assert batch.token_ids == expected.token_ids
    assert work.calls == 3  # prompts, a first stage, and all the rest at once


def test_models_whose_state_is_not_known_to_be_rows_are_left_alone(models: Any, adapted: Any, tiny: Any) -> None:
    peft = pytest.importorskip("peft")
    assert stages.can_be_dealt(models["gpt2"]())
    assert stages.can_be_dealt(adapted(models["gpt2"]()))
    prompted = peft.get_peft_model(
        models["gpt2"](), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    assert not stages.can_be_dealt(prompted)
    sharded = models["gpt2"]()
    next(sharded.parameters()).device_mesh = object()
    assert not stages.can_be_dealt(sharded)

    compiled = models["gpt2"]()
    compiled.compile(backend="eager")
    assert not stages.can_be_dealt(compiled)
    assert not stages.can_be_dealt(torch.compile(models["gpt2"](), backend="eager"))

    class Foreign(transformers.GPT2LMHeadModel):  # type: ignore[misc]
        def prepare_inputs_for_generation(self, *args: Any, **more: Any) -> Any:
            return super().prepare_inputs_for_generation(*args, **more)

    assert not stages.can_be_dealt(Foreign(models["gpt2"]().config))
