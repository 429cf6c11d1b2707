"""Sampling real tiny models: exact, repeatable, deaf to the model's generation config, and gone without a trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

import divmon
from divmon import compat
from divmon.records import Decoding, SampleBatch
from divmon.samplers.generate import GenerateSampler

BOS, EOS = 1, 2
TEXTS = ["1+1=", "2+2=", "the sum of 3 and 4 is", "9", "7-5=2, 5-2="]
PROBES = divmon.ProbeSet.of(TEXTS)
SHORT = Decoding(max_new_tokens=20)


# ---- exactness


@pytest.mark.parametrize("name", ["gpt2", "llama", "demo"])
def test_completions_come_from_the_softmax_of_the_logits(
    name: str, models: Any, tiny: Any, assert_drawn_from: Callable[..., None], sample: Any
) -> None:
    model, tokenizer = models[name]().eval(), tiny.tokenizer()
    batch = sample(model, texts=TEXTS[:2], k=4000, decoding=Decoding(max_new_tokens=1))
    assert batch.token_ids is not None
    for text, row in zip(TEXTS, batch.token_ids, strict=False):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            p = torch.softmax(model(ids).logits[0, -1].double(), -1).numpy()
        assert_drawn_from(p, np.bincount([tokens[0] for tokens in row], minlength=len(p)))


@pytest.mark.parametrize("name", ["gpt2", "llama", "demo", "adapted"])
@pytest.mark.parametrize("decoding", [SHORT, Decoding(0.8, 0.9, 20)], ids=["plain", "warped"])
def test_log_probabilities_and_entropies_are_those_of_a_forward_pass(
    name: str, decoding: Decoding, models: Any, tiny: Any, sample: Any, adapted: Any
) -> None:
    model = adapted(models["gpt2"]()) if name == "adapted" else models[name]()
    batch = sample(model, decoding=decoding)
    model.eval()
    assert batch.token_ids
    assert batch.logprobs
    assert batch.entropies
    lengths = set()
    for i, text in enumerate(TEXTS):
        prompt = tiny.tokenizer()(text)["input_ids"]
        for tokens, logprobs, entropies in zip(batch.token_ids[i], batch.logprobs[i], batch.entropies[i], strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].double()
            logp = torch.log_softmax(logits, -1)
            np.testing.assert_allclose(logprobs, logp.gather(1, torch.tensor(tokens)[:, None])[:, 0], atol=1e-4)
            np.testing.assert_allclose(entropies, -(logp.exp() * logp).sum(-1), atol=1e-4)
            assert logprobs.dtype == entropies.dtype == np.float32
            lengths.add(len(tokens))
    assert len(lengths) > 1 or name == "llama"  # some ended by themselves


# ---- law 3: same policy, same number


@pytest.mark.parametrize("name", ["gpt2", "llama", "demo"])
def test_batch_size_and_repetition_change_nothing(name: str, models: Any, tiny: Any, sample: Any) -> None:
    model = models[name]()
    sampler = GenerateSampler(model, tiny.tokenizer(), 13, SHORT, batch_size=64)  # 65 rows
    first = sampler(PROBES, step=0)
    repeated = sampler(PROBES, step=0)
    assert measured(repeated) == measured(first)
    for size in (1, 7):
        other = sample(model, k=13, batch_size=size)
        assert other.token_ids == first.token_ids
        assert other.texts == first.texts
        assert other.finished == first.finished
        ours, theirs = measured(other), measured(first)
        assert ours.keys() == theirs.keys()
        for metric, value in theirs.items():  # logits differ in the last bit between batch sizes, and so do entropies
            close = "entropy" in metric and isinstance(value, float)
            assert ours[metric] == (pytest.approx(value, rel=1e-5) if close else value), metric


def measured(batch: SampleBatch) -> dict[str, str | float]:
    found = divmon.Monitor(list(divmon.METRICS.values())).observe(batch).measurements
    return {m.key: m.reason or m.value for m in found}


def test_order_and_company_of_probes_change_nothing(models: Any, tiny: Any, sample: Any) -> None:
    model, tokenizer = models["gpt2"](), tiny.tokenizer()
    whole = sample(model, tokenizer=tokenizer)
    assert whole.token_ids
    known = dict(zip((p.id for p in whole.probes), whole.token_ids, strict=True))
    turned = sample(model, texts=divmon.ProbeSet(PROBES.probes[::-1]))
    assert dict(zip((p.id for p in turned.probes), turned.token_ids or (), strict=True)) == known
    assert sample(model, texts=divmon.ProbeSet(PROBES.probes[2:3])).token_ids == whole.token_ids[2:3]
    more = sample(model, tokenizer=tokenizer, k=6).token_ids
    assert more
    assert tuple(row[:4] for row in more) == whole.token_ids
    assert sample(model, tokenizer=tokenizer, decoding=Decoding(max_new_tokens=20, key=1)).token_ids != whole.token_ids


def test_a_longer_cap_only_adds_tokens(models: Any, sample: Any) -> None:
    short = sample(models["gpt2"](), decoding=Decoding(max_new_tokens=5)).token_ids
    long = sample(models["gpt2"]()).token_ids
    assert short
    assert long
    assert [[tokens[:5] for tokens in row] for row in long] == [list(row) for row in short]


# ---- what must not matter

HOSTILE: dict[str, Any] = {
    "do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.5, "min_p": 0.9, "typical_p": 0.5, "top_h": 0.1,
    "epsilon_cutoff": 0.5, "eta_cutoff": 0.5, "repetition_penalty": 5.0, "no_repeat_ngram_size": 1,
    "suppress_tokens": [5, 6, 7, 8, 9], "begin_suppress_tokens": list(range(4, 30)), "bad_words_ids": [[10], [11, 12]],
    "min_new_tokens": 15, "min_length": 50, "max_length": 6, "max_new_tokens": 3, "forced_bos_token_id": 9,
    "forced_eos_token_id": 9, "num_beams": 4, "num_return_sequences": 2, "length_penalty": 3.0,
    "sequence_bias": {(20,): 50.0}, "exponential_decay_length_penalty": (1, 5.0), "renormalize_logits": True,
    "guidance_scale": 3.0, "return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True,
    "use_cache": False, "cache_implementation": "static", "max_time": 1e-9, "prompt_lookup_num_tokens": 3,
    "stop_strings": ["a"], "token_healing": True, "remove_invalid_values": True, "pad_token_id": 4, "bos_token_id": 5,
}  # fmt: skip


def make_hostile(model: Any) -> GenerationConfig:
    config: GenerationConfig = model.generation_config
    for name, value in HOSTILE.items():
        assert hasattr(config, name), name
        setattr(config, name, value)
    config.unheard_of = 3
    return config


@pytest.mark.parametrize("wrap", ["plain", "peft", "peft without a task"])
def test_a_hostile_generation_config_changes_nothing(wrap: str, models: Any, sample: Any, adapted: Any) -> None:
    def make() -> Any:
        model = models["gpt2"]()
        return model if wrap == "plain" else adapted(model, task="CAUSAL_LM" if wrap == "peft" else None)

    plain, hostile = make(), make()
    inner = hostile.get_base_model() if wrap != "plain" else hostile
    config = make_hostile(inner)
    before = copy.deepcopy(vars(config))
    for size in (None, 3):  # a second batch meets the config that the first one put there
        ours = sample(hostile, batch_size=size)
        assert ours.token_ids == sample(plain).token_ids
    assert inner.generation_config is config
    assert vars(config) == before
    assert compat.own_generation_configs(hostile) == [inner]


def test_dropout_and_gradient_checkpointing_are_inert(models: Any, sample: Any) -> None:
    for name in ("gpt2", "llama"):
        expected = sample(models[name]().eval())
        model = models[name]().train()
        model.gradient_checkpointing_enable()
        model.config.use_cache = False
        hooks = len(model.get_input_embeddings()._forward_hooks)
        assert sample(model).token_ids == expected.token_ids
        assert model.training
        assert model.config.use_cache is False
        assert model.is_gradient_checkpointing
        assert len(model.get_input_embeddings()._forward_hooks) == hooks


def test_adapters_sample_as_if_merged_and_are_left_as_found(models: Any, tiny: Any, sample: Any, adapted: Any) -> None:
    model = adapted(models["gpt2"]()).train()
    base = models["gpt2"]()
    merged = copy.deepcopy(model).merge_and_unload()

    def state() -> Any:
        flags = [(n, p.requires_grad) for n, p in model.named_parameters()]
        modes = [m.training for m in model.modules()]
        return (
            tiny.digest(model),
            model.active_adapters,
            flags,
            modes,
            sum(len(m._forward_hooks) for m in model.modules()),
        )

    before, config = state(), model.get_base_model().generation_config
    drawn = sample(model).token_ids
    assert state() == before
    assert model.get_base_model().generation_config is config
    assert drawn == sample(merged).token_ids
    assert drawn != sample(base).token_ids
    with model.disable_adapter():
        assert sample(model).token_ids == sample(base).token_ids


def test_half_precision_weights_sample_and_report(models: Any, record_property: Any, sample: Any) -> None:
    model = models["demo"]().bfloat16()
    one, other = (sample(model, k=8, batch_size=size) for size in (40, 7))
    assert one.logprobs
    assert one.entropies
    for row in (*one.logprobs, *one.entropies):
        assert all(np.isfinite(values).all() and values.dtype == np.float32 for values in row)
    assert model.dtype == torch.bfloat16
    pairs = [
        (a, b)
        for x, y in zip(one.token_ids or (), other.token_ids or (), strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    share = float(np.mean([a == b for a, b in pairs]))
    record_property("identical_completions", share)
    assert share > 0.5  # batch sizes round differently; on these weights most completions survive it


def test_wrapped_models_are_unwrapped(models: Any, sample: Any) -> None:
    expected = sample(models["gpt2"]()).token_ids

    class Pair(torch.nn.Module):
        def __init__(self, policy: Any) -> None:
            super().__init__()
            self.policy = policy

    compiled = torch.compile(models["gpt2"](), backend="eager")
    make_hostile(compiled._orig_mod)
    for model in (Pair(models["gpt2"]()), torch.nn.DataParallel(models["gpt2"]()), compiled):
        model.train()
        assert sample(model).token_ids == expected
        assert all(module.training for module in model.modules())


# ---- where completions end


@pytest.mark.parametrize("declared", [[5, 7], 9, None])
def test_stop_tokens_of_model_and_tokenizer_are_united(declared: Any, models: Any, sample: Any) -> None:
    model = models["gpt2"]()
    model.generation_config.eos_token_id = declared
    batch = sample(model, k=16)
    assert batch.token_ids
    assert batch.finished
    stops = {EOS, *(declared if isinstance(declared, list) else [declared])}
    ends = set()
    for i, row in enumerate(batch.token_ids):
        for j, tokens in enumerate(row):
            assert batch.finished[i][j] == (tokens[-1] in stops)
            assert not stops & set(tokens[:-1])
            assert batch.finished[i][j] or len(tokens) == SHORT.max_new_tokens
            assert len(batch.logprobs[i][j]) == len(batch.entropies[i][j]) == len(tokens)  # type: ignore[index]
            ends.add(tokens[-1] if batch.finished[i][j] else None)
    assert ends == {*stops - {None}, None}


def test_without_any_stop_token_every_completion_is_cut(models: Any, tiny: Any, sample: Any) -> None:
    model, tokenizer = models["gpt2"](), tiny.tokenizer()
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    batch = sample(model, tokenizer=tokenizer)
    assert {len(tokens) for row in batch.token_ids or () for tokens in row} == {SHORT.max_new_tokens}
    assert not any(flag for row in batch.finished or () for flag in row)


def test_a_stop_token_as_the_last_one_allowed_counts_as_finished(models: Any, sample: Any) -> None:
    model = models["gpt2"]()
    model.generation_config.eos_token_id = list(range(3, 50))
    batch = sample(model, k=16, decoding=Decoding(max_new_tokens=1))
    assert batch.finished == tuple(tuple(t[0] not in (0, BOS) for t in row) for row in batch.token_ids or ())


@pytest.mark.parametrize("pad", [None, "<beyond>"])
def test_a_missing_or_unknown_pad_token_is_fine(pad: str | None, models: Any, tiny: Any, sample: Any) -> None:
    expected = sample(models["gpt2"]())
    tokenizer = tiny.tokenizer()
    if pad:
        tokenizer.add_special_tokens({"pad_token": pad})
        assert tokenizer.pad_token_id >= models["gpt2"]().config.vocab_size
    else:
        tokenizer.pad_token = None
    assert sample(models["gpt2"](), tokenizer=tokenizer).token_ids == expected.token_ids


def test_tokens_beyond_the_tokenizer_decode_to_something(models: Any, sample: Any) -> None:
    batch = sample(models["llama"]())  # 300 rows of embeddings, 50 tokens
    assert max(token for row in batch.token_ids or () for tokens in row for token in tokens) >= 50
    assert all(isinstance(text, str) for row in batch.texts for text in row)
