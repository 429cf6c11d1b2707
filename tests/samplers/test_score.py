"""Teacher-forced scores of real tiny models: equal to brute force, whatever the batch, and gone without a trace."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import divmon
from divmon.bank import Bank, Block
from divmon.errors import HistoryError, SamplingError, SignatureMismatch
from divmon.records import Decoding, SampleBatch
from divmon.samplers import head, score
from divmon.samplers.generate import GenerateSampler
from divmon.samplers.head import _warps
from divmon.samplers.ranks import merge
from divmon.samplers.score import Scorer, identify

TEXTS = ["1+1=", "2+2=", "the sum of 3 and 4 is", "9", "7-5=2, 5-2="]
PROBES = divmon.ProbeSet.of(TEXTS)


@pytest.fixture
def banked(tiny: Any) -> Callable[..., Bank]:
    """Four completions of at most 20 tokens for each of five texts, banked."""

    def draw(model: Any, *, decoding: Decoding | None = None) -> Bank:
        tokenizer = tiny.tokenizer()
        sampler = GenerateSampler(model, tokenizer, 4, decoding or Decoding(max_new_tokens=20))
        return Bank(sampler(PROBES, step=0), sampler.prompt_ids(PROBES), identify(model, tokenizer))

    return draw


def brute(model: Any, bank: Bank, *, temperature: float = 1.0) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """One completion at a time, all logits, double precision."""
    model.eval()
    found = []
    for prompt, row in zip(bank.prompts, bank.batch.token_ids or (), strict=True):
        line = []
        for tokens in row:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].double()
            logp, plain = torch.log_softmax(logits / temperature, -1), torch.log_softmax(logits, -1)
            chosen = logp.gather(1, torch.tensor(tokens)[:, None])[:, 0]
            line.append((chosen.numpy(), -(plain.exp() * plain).sum(-1).numpy()))
        found.append(line)
    return found


def assert_equal(batch: SampleBatch, expected: Any, *, atol: float = 1e-4) -> None:
    for lps, hs, row in zip(batch.logprobs or (), batch.entropies or (), expected, strict=True):
        for lp, h, (want_lp, want_h) in zip(lps, hs, row, strict=True):
            np.testing.assert_allclose(lp, want_lp, atol=atol)
            np.testing.assert_allclose(h, want_h, atol=atol)


def capped(kind: str) -> Any:
    """Models that do something to their logits after the output layer."""
    from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(2)
    shape = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 96, "initializer_range": 0.5, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "cohere":
        return CohereForCausalLM(CohereConfig(**shape, logit_scale=0.3))
    return Gemma2ForCausalLM(Gemma2Config(**shape, head_dim=8, final_logit_softcapping=3.0))


@pytest.mark.parametrize("name", ["gpt2", "llama", "demo", "adapted", "gemma2", "cohere"])
def test_scores_are_those_of_sampling_and_of_brute_force(
    name: str, models: Any, adapted: Any, banked: Callable[..., Bank]
) -> None:
    if name in ("gemma2", "cohere"):
        model = capped(name)
    else:
        model = adapted(models["gpt2"]()) if name == "adapted" else models[name]()
    bank = banked(model)
    scorer = Scorer(model)
    scored = scorer(bank, step=3)
    assert scorer._head is not None  # no logits of every token
    assert (scored.source, scored.step, scored.texts) == ("score", 3, bank.batch.texts)
    assert_equal(scored, brute(model, bank))
    sampled = [list(zip(*rows, strict=True)) for rows in zip(bank.batch.logprobs, bank.batch.entropies, strict=True)]
    assert_equal(scored, sampled)
    assert bank.disagreement(scored) < 1e-5
    assert scored.logprobs is not None
    assert scored.logprobs[0][0].dtype == np.float32


def test_an_output_layer_that_cannot_be_looked_into_costs_time_only(
    models: Any, banked: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["llama"]()
    bank = banked(model)
    expected = brute(model, bank)
    forward = type(model).forward

    def odd(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.logits = out.logits + 0.1 * out.logits.sin()  # neither a factor nor a cap
        return out

    monkeypatch.setattr(type(model), "forward", odd)
    scorer = Scorer(model)
    scored = scorer(bank, step=0)
    assert scorer._plain
    assert_equal(scored, brute(model, bank))
    monkeypatch.undo()
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: None)
    assert_equal(Scorer(model)(bank, step=0), expected)


def test_slices_batches_and_ranks_change_nothing(
    models: Any, banked: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["llama"]()
    bank = banked(model)
    whole = Scorer(model)(bank, step=0)
    expected = [list(zip(*rows, strict=True)) for rows in zip(whole.logprobs or (), whole.entropies or (), strict=True)]
    for size in (1, 7, 64):
        assert_equal(Scorer(model, batch_size=size)(bank, step=0), expected, atol=2e-5)
    monkeypatch.setitem(head.LOGITS, "cpu", 900)  # three positions of this vocabulary
    monkeypatch.setattr(head, "_FEWEST", 1)
    assert_equal(Scorer(model)(bank, step=0), expected, atol=2e-5)
    shares = [bank.share(index, 2) for index in range(2)]
    merged = merge([Scorer(model)(share, step=0) for share in shares if share], PROBES)
    assert_equal(merged, expected, atol=2e-5)
    assert merged.signature == whole.signature
    assert bank.share(7, 8) is None


def test_temperature_is_that_of_the_draw(models: Any, banked: Callable[..., Bank]) -> None:
    model = models["llama"]()
    bank = banked(model, decoding=Decoding(temperature=0.7, max_new_tokens=20))
    scored = Scorer(model)(bank, step=0)
    assert_equal(scored, brute(model, bank, temperature=0.7))
    assert bank.disagreement(scored) < 1e-5  # by entropies: sampling records log-probabilities at 1
    assert bank.anchor(scored).disagreement(scored) == 0.0


def test_everything_is_left_as_found(tiny: Any, models: Any, banked: Callable[..., Bank]) -> None:
    model, tokenizer = models["gpt2"](), tiny.tokenizer()
    bank = banked(model)
    model.gradient_checkpointing_enable()
    model.train()
    model.transformer.h[0].eval()  # one frozen part
    tokenizer.padding_side = "right"
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    modes = [module.training for module in model.modules()]
    weights, python, legacy, stream = (
        tiny.digest(model),
        random.getstate(),
        np.random.get_state()[1],
        torch.get_rng_state(),
    )
    quiet = Scorer(model, tokenizer)(bank, step=0)
    Scorer(model, tokenizer).cross(bank)
    assert tiny.digest(model) == weights
    assert [module.training for module in model.modules()] == modes
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert random.getstate() == python
    assert (np.random.get_state()[1] == legacy).all()
    assert torch.equal(torch.get_rng_state(), stream)
    assert tokenizer.padding_side == "right"
    assert all(p.grad is None for p in model.parameters())
    assert_equal(quiet, brute(model, bank))  # dropout was off


def test_memory_that_runs_out_halves_the_batch(
    models: Any, banked: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["llama"]()
    bank = banked(model)
    expected, forward, sizes = brute(model, bank), type(model).forward, []

    def narrow(self: Any, input_ids: Any, **kwargs: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", narrow)
    limit = 3
    assert_equal(Scorer(model, batch_size=5)(bank, step=0), expected)
    assert max(sizes) == 5
    limit = 0
    monkeypatch.setattr(score, "probe", lambda inputs: {})
    monkeypatch.setattr(score, "head_of", lambda *_: None)
    with pytest.raises(SamplingError, match="one completion"):
        Scorer(model, batch_size=1)(bank, step=0)
    assert not model.lm_head._forward_pre_hooks


def test_a_soft_cap_that_the_config_names_is_not_missed_where_logits_are_small() -> None:
    raw = torch.randn(1, 4, 50) * 0.01
    for warp in _warps(raw, torch.tanh(raw / 30) * 30, 30.0):
        if torch.allclose(warp(raw), torch.tanh(raw / 30) * 30, rtol=1e-4, atol=1e-4):
            break
    assert float(warp(torch.tensor(1000.0))) == pytest.approx(30.0)


def test_weights_that_are_not_numbers_are_said(models: Any, banked: Callable[..., Bank]) -> None:
    model = models["llama"]()
    bank = banked(model)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(SamplingError, match="not numbers"):
        Scorer(model)(bank, step=0)


def test_a_block_is_every_completion_under_every_prompt(models: Any, banked: Callable[..., Bank]) -> None:
    model = models["llama"]()
    bank = banked(model)
    block = Scorer(model).cross(bank, size=3)
    assert block is not None
    assert block.ids == tuple(PROBES.probes[i].id for i in (0, 1, 3))
    model.eval()
    for i, x in enumerate((0, 1, 3)):
        for j, y in enumerate((0, 1, 3)):
            tokens = bank.batch.token_ids[y][0][:16]
            ids = torch.tensor([[*bank.prompts[x], *tokens]])
            with torch.no_grad():
                logp = torch.log_softmax(model(ids).logits[0, len(bank.prompts[x]) - 1 : -1].double(), -1)
            expected = float(logp.gather(1, torch.tensor(tokens)[:, None]).sum())
            assert block.logprobs[i, j] == pytest.approx(expected, abs=1e-3)
    parts = [Scorer(model).cross(bank, size=3, index=index, count=2) for index in range(2)]
    np.testing.assert_allclose(Block.merge([p for p in parts if p]).logprobs, block.logprobs, atol=1e-4)
    assert Scorer(model).cross(bank.part([0]), size=3) is None


# ---- the bank on disk


def test_a_bank_survives_the_disk(models: Any, banked: Callable[..., Bank], tmp_path: Path) -> None:
    bank = banked(models["demo"]())
    odd = replace(bank, batch=replace(bank.batch, texts=(("\ud800", "", "森", "\x00"), *bank.batch.texts[1:])))
    odd.write(tmp_path / "a" / "bank.npz")
    again = Bank.read(
        tmp_path / "a" / "bank.npz", probes=PROBES.probes, fingerprint=PROBES.fingerprint, identity=bank.identity
    )
    assert again.digest == bank.digest
    assert again.prompts == bank.prompts
    for name in ("step", "probes", "texts", "token_ids", "finished", "decoding", "source", "fingerprint"):
        assert getattr(again.batch, name) == getattr(odd.batch, name)
    assert again.batch.logprobs is not None
    assert all(
        (a == b).all()
        for x, y in zip(again.batch.logprobs, odd.batch.logprobs, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["bank.npz"]


def test_a_bank_that_is_torn_edited_or_of_another_run_is_refused(
    models: Any, banked: Callable[..., Bank], tmp_path: Path
) -> None:
    bank, path = banked(models["demo"]()), tmp_path / "bank.npz"
    bank.write(path)
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(HistoryError, match="damaged"):
            Bank.read(path, probes=PROBES.probes)
    damaged = 0
    for place in range(200, len(whole) - 200, len(whole) // 13):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:  # the archive has bytes that mean nothing, such as times
            assert Bank.read(path, probes=PROBES.probes).digest == bank.digest
        except HistoryError:
            damaged += 1
    assert damaged > 8
    path.write_bytes(whole)
    with pytest.raises(SignatureMismatch, match="not among the probes"):
        Bank.read(path, probes=PROBES.probes[1:])
    with pytest.raises(SignatureMismatch, match="fingerprint"):
        Bank.read(path, probes=PROBES.probes, fingerprint="another")
    with pytest.raises(SignatureMismatch, match="tokenizer is"):
        Bank.read(path, probes=PROBES.probes, identity={**bank.identity, "tokenizer": "0" * 12})
    np.savez(path, head=np.array([{"a": 1}], dtype=object))
    with pytest.raises(HistoryError, match="damaged"):
        Bank.read(path, probes=PROBES.probes)
    path.unlink()
    with pytest.raises(HistoryError, match="Cannot read"):
        Bank.read(path, probes=PROBES.probes)


def test_a_bank_without_tokens_or_log_probabilities_is_no_bank(models: Any, banked: Callable[..., Bank]) -> None:
    bank = banked(models["demo"]())
    for gone in ({"token_ids": None}, {"logprobs": None}):
        with pytest.raises(ValueError, match="needs the token ids"):
            Bank(replace(bank.batch, **gone), bank.prompts)
    with pytest.raises(ValueError, match="prompts for"):
        Bank(bank.batch, bank.prompts[1:])
