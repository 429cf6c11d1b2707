"""Fixtures of the sampler's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

import divmon
from divmon.demo.training import load_model
from divmon.records import Decoding, SampleBatch
from divmon.samplers.generate import GenerateSampler

TEXTS = ["1+1=", "2+2=", "the sum of 3 and 4 is", "9", "7-5=2, 5-2="]
SHORT = Decoding(max_new_tokens=20)


@pytest.fixture(scope="session")
def assert_drawn_from() -> Callable[[np.ndarray, np.ndarray], None]:
    """Chi-square of counts against probabilities, both [V]; tokens expected fewer than five times share one cell."""

    def check(p: np.ndarray, seen: np.ndarray) -> None:
        assert not seen[p == 0].any()
        expected = p / p.sum() * seen.sum()
        common = expected >= 5
        want, got = [*expected[common], expected[~common].sum()], [*seen[common], seen[~common].sum()]
        if want[-1] < 5:  # too few even together: they join the first cell
            want, got = [want[0] + want[-1], *want[1:-1]], [got[0] + got[-1], *got[1:-1]]
        assert len(want) == 1 or stats.chisquare(got, want).pvalue > 1e-4

    return check


@pytest.fixture
def models(tiny: Any) -> dict[str, Callable[[], Any]]:
    """Fresh models, always with the same weights: two random ones with dropout, and the one of the package.

    The Llama has more embeddings than the tokenizer has tokens.
    """

    def llama() -> Any:
        torch.manual_seed(1)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(
            vocab_size=300, num_key_value_heads=2, max_position_embeddings=96, initializer_range=0.3,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, attention_dropout=0.1, **shape,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    return {"gpt2": tiny.gpt2, "llama": llama, "demo": load_model}


@pytest.fixture
def adapted() -> Callable[..., Any]:
    """Puts a GPT-2 under a LoRA adapter that changes what it says."""
    peft = pytest.importorskip("peft")

    def wrap(model: Any, *, task: str | None = "CAUSAL_LM") -> Any:
        torch.manual_seed(5)
        lora = {"r": 4, "lora_dropout": 0.1, "init_lora_weights": False, "fan_in_fan_out": True}
        return peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"], task_type=task, **lora))

    return wrap


@pytest.fixture
def sample(tiny: Any) -> Callable[..., SampleBatch]:
    """Four completions of at most 20 tokens for each of five texts, unless told otherwise."""

    def draw(model: Any, *, tokenizer: Any = None, texts: Any = TEXTS, k: int = 4, **more: Any) -> SampleBatch:
        probes = texts if isinstance(texts, divmon.ProbeSet) else divmon.ProbeSet.of(texts)
        sampler = GenerateSampler(model, tokenizer or tiny.tokenizer(), k, **{"decoding": SHORT, **more})
        return sampler(probes, step=0)

    return draw
