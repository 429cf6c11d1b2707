"""Writers: keyed texts, likelihoods held to the full softmax by hand, and models left bitwise as found."""

from __future__ import annotations

import logging
import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from divmon.errors import ConfigError, SamplingError
from divmon.probes import ProbeSet
from divmon.records import Decoding
from divmon.resampling.writers import ModelWriter
from divmon.samplers.generate import GenerateSampler
from divmon.samplers.keyed import row_key

PROMPTS = ["1+1=", "the sum of 3 and 4 is", "9", "", "7-5=2, 5-2="]
TEXTS = ["2", "seven, or 7", "", "the sum is 7", "3" * 40]
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"


def adapted(model: Any) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    lora = {"r": 4, "lora_dropout": 0.1, "init_lora_weights": False, "fan_in_fan_out": True}
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM", **lora))


@pytest.fixture(scope="module")
def tok(tiny: Any) -> Any:
    return tiny.tokenizer()


@pytest.fixture(params=["gpt2", "lora", "checkpointing"])
def model(request: Any, tiny: Any) -> Any:
    """As a trainer holds it: in train mode, dropout on; some with an adapter, some with gradient checkpointing."""
    found = tiny.gpt2()
    if request.param == "lora":
        found = adapted(found)
    if request.param == "checkpointing":
        found.gradient_checkpointing_enable()
    return found.train()


def writer(model: Any, tok: Any, **more: Any) -> ModelWriter:
    return ModelWriter(model, tok, **{"max_new_tokens": 20, **more})


def by_hand(model: Any, tok: Any, prompt: str, text: str) -> float:
    """One row, no padding, one token after the other from the whole softmax in float64."""
    ids = tok(prompt)["input_ids"] or [tok.bos_token_id]
    after = [*tok(text, add_special_tokens=False)["input_ids"], tok.eos_token_id]
    was = model.training
    model.eval()
    total = 0.0
    for token in after:
        with torch.no_grad():
            p = torch.softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1)
        total += math.log(p[token].item())
        ids = [*ids, token]
    model.train(was)
    return total / len(after)


def everything(model: Any) -> Any:
    """What must not change: weights, modes, hooks, gradients, random streams."""
    modules = list(model.modules())
    return (
        {n: p.detach().clone() for n, p in model.state_dict().items()},
        [m.training for m in modules],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        [p.grad for p in model.parameters()],
        [id(m.__dict__.get("generation_config")) for m in modules],
        (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
    )


def assert_same(before: Any, after: Any) -> None:
    assert before[1:] == after[1:]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())


# ---- likelihood


def test_mean_log_p_is_that_of_the_full_softmax(model: Any, tok: Any) -> None:
    found = writer(model, tok).logprob(PROMPTS, TEXTS)
    expected = [by_hand(model, tok, p, t) for p, t in zip(PROMPTS, TEXTS, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float64
    assert not np.allclose(found, found[0])


def test_likelihoods_do_not_depend_on_the_batch(tiny: Any, tok: Any) -> None:
    model = tiny.gpt2()
    expected = [writer(model, tok).logprob([p], [t])[0] for p, t in zip(PROMPTS, TEXTS, strict=True)]
    for size in (1, 2, 5, 64):
        found = writer(model, tok, batch_size=size).logprob(PROMPTS, TEXTS)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    backwards = writer(model, tok, batch_size=2).logprob(PROMPTS[::-1], TEXTS[::-1])
    np.testing.assert_allclose(backwards[::-1], expected, atol=1e-6)


def test_a_long_text_is_summed_in_pieces(tiny: Any, tok: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.gpt2()
    whole = writer(model, tok).logprob(PROMPTS, TEXTS)
    monkeypatch.setattr("divmon.resampling.writers._POSITIONS", 3)
    np.testing.assert_allclose(writer(model, tok).logprob(PROMPTS, TEXTS), whole, atol=1e-6)


def test_what_was_sampled_has_the_likelihood_the_sampler_saw(tiny: Any, tok: Any) -> None:
    model = tiny.gpt2()
    batch = GenerateSampler(model, tok, 8, Decoding(max_new_tokens=40))(ProbeSet.of(["1+1=", "9"]), step=0)
    cases = [
        (batch.probes[i].text, text, batch.logprobs[i][j].mean())
        for i, row in enumerate(batch.texts)
        for j, text in enumerate(row)
        # Only text that is tokenised again as it was drawn, and was ended by the tokenizer's own token.
        if batch.finished[i][j]
        and [*tok(text, add_special_tokens=False)["input_ids"], tok.eos_token_id] == list(batch.token_ids[i][j])
    ]
    assert len(cases) > 3
    prompts, texts, expected = zip(*cases, strict=True)
    np.testing.assert_allclose(writer(model, tok).logprob(prompts, texts), expected, atol=1e-5)


def test_chat_prompts_are_tokenised_by_the_template(tiny: Any, tok: Any) -> None:
    model = tiny.gpt2()
    chat = ({"role": "user", "content": "1+1"},)
    found = writer(model, tok, chat_options={"chat_template": CHAT}).logprob([chat], ["2"])
    np.testing.assert_allclose(found, by_hand(model, tok, "1+1=", "2"), atol=1e-5)


def test_likelihoods_nobody_can_know_are_nan(tiny: Any, tok: Any) -> None:
    model = tiny.gpt2()
    found = writer(model, tok).logprob(["1" * 90, "1+1=", "\ud800"], ["2" * 20, "2", "\ud800"])
    assert np.isnan(found).tolist() == [True, False, False]
    bare = tiny.tokenizer()
    bare.eos_token = None
    model.generation_config.eos_token_id = None
    assert np.isnan(writer(model, bare).logprob(["1", "1"], ["", "2"])).tolist() == [True, False]
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = torch.nan
    assert np.isnan(writer(model, tok).logprob(["1"], ["2"])).all()
    assert writer(model, tok).logprob([], []).shape == (0,)


# ---- writing


def test_equal_prompts_and_keys_give_equal_texts_whatever_the_batch(model: Any, tok: Any) -> None:
    keys = [3, 2**63 + 5, -7, 10**30, 3]
    alone = [writer(model, tok).write([p], temperature=0.7, keys=[k])[0] for p, k in zip(PROMPTS, keys, strict=True)]
    for size in (1, 2, 64):
        assert writer(model, tok, batch_size=size).write(PROMPTS, temperature=0.7, keys=keys) == alone
    assert writer(model, tok).write(PROMPTS, temperature=0.7, keys=[k + 1 for k in keys]) != alone


def test_texts_are_those_of_the_sampler(model: Any, tok: Any) -> None:
    probes = ProbeSet.of(["1+1=", "the sum of 3 and 4 is"])
    batch = GenerateSampler(model, tok, 3, Decoding(temperature=0.7, max_new_tokens=20, key=11))(probes, step=0)
    keys = [row_key(11, probe.id, j) for probe in probes for j in range(3)]
    prompts = [probe.text for probe in probes for _ in range(3)]
    assert writer(model, tok).write(prompts, temperature=0.7, keys=keys) == [t for row in batch.texts for t in row]


def test_temperature_nought_takes_the_likeliest_token(model: Any, tok: Any) -> None:
    texts = writer(model, tok).write(["1+1=", "9"], temperature=0.0, keys=[1, 2])
    assert texts == writer(model, tok).write(["1+1=", "9"], temperature=0, keys=[3, 4])
    model.eval()  # what a model with gradient checkpointing says in train mode is silently wrong
    for prompt, text in zip(["1+1=", "9"], texts, strict=True):
        ids = tok(prompt, return_tensors="pt")
        out = model.generate(**ids, do_sample=False, max_new_tokens=20, pad_token_id=tok.pad_token_id)
        assert text == tok.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_prompt_that_does_not_fit_gets_nothing_and_that_is_said_once(
    tiny: Any, tok: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made = writer(tiny.gpt2(), tok)
    with caplog.at_level(logging.WARNING, logger="divmon"):
        texts = made.write(["1" * 90, "1+1="], temperature=1.0, keys=[1, 2])
        made.write(["1" * 90], temperature=1.0, keys=[1])
    assert texts == ["", made.write(["1+1="], temperature=1.0, keys=[2])[0]]
    assert [r.getMessage().startswith("divmon: 1 of 2 prompts") for r in caplog.records] == [True]
    assert made.write([], temperature=1.0, keys=[]) == []
    assert len(made.write(["\ud800"], temperature=1.0, keys=[0])) == 1


# ---- left as found


def test_the_model_and_every_random_stream_are_left_as_found(model: Any, tok: Any) -> None:
    made, before = writer(model, tok), everything(model)
    made.write(PROMPTS, temperature=0.7, keys=range(5))
    made.logprob(PROMPTS, TEXTS)
    assert_same(before, everything(model))


def test_also_when_it_raises(model: Any, tok: Any) -> None:
    made = writer(model, tok)
    handle = next(iter(m for m in model.modules() if type(m).__name__ == "GPT2MLP")).register_forward_hook(_fail)
    before = everything(model)
    for call in (lambda: made.logprob(["1"], ["2"]), lambda: made.write(["1"], temperature=1.0, keys=[1])):
        with pytest.raises(RuntimeError, match="broken"):
            call()
        assert_same(before, everything(model))
    handle.remove()
    with pytest.raises(SamplingError, match="could not be tokenised"):
        made.write([({"role": "user", "content": "no template"},)], temperature=1.0, keys=[1])


def _fail(*_: Any) -> None:
    raise RuntimeError("broken")


def test_out_of_memory_halves_the_rows_and_goes_on(tiny: Any, tok: Any) -> None:
    model = tiny.gpt2()
    expected, sizes = writer(model, tok).logprob(PROMPTS * 2, TEXTS * 2), []

    def check(_: Any, __: Any, inputs: Any) -> None:
        sizes.append(inputs["input_ids"].shape[0])
        if sizes[-1] > limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB.")

    model.register_forward_pre_hook(check, with_kwargs=True)
    limit, made = 3, writer(model, tok)
    np.testing.assert_allclose(made.logprob(PROMPTS * 2, TEXTS * 2), expected, atol=1e-6)
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    limit = 0
    with pytest.raises(SamplingError, match="Out of memory while scoring"):
        made.logprob(["1"], ["2"])


def test_settings_that_cannot_work_are_refused(tiny: Any, tok: Any) -> None:
    with pytest.raises(ConfigError, match=r"no generate\(\)"):
        writer(torch.nn.Linear(2, 2), tok)
    with pytest.raises(ConfigError, match="leaves no room for a prompt"):
        writer(tiny.gpt2(), tok, max_new_tokens=96)
    made = writer(tiny.gpt2(), tok)
    for temperature in (-1.0, math.nan):
        with pytest.raises(SamplingError, match="temperature"):
            made.write(["1"], temperature=temperature, keys=[1])
    with pytest.raises(ValueError):
        made.write(["1"], temperature=1.0, keys=[1, 2])
