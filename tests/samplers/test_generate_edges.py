"""Prompts as the trainer makes them, and what happens when sampling cannot go on."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

import divmon
from divmon.errors import ConfigError, SamplingError
from divmon.records import Decoding, Probe
from divmon.samplers import generate
from divmon.samplers.generate import GenerateSampler

BOS, EOS = 1, 2
TEXTS = ["1+1=", "2+2=", "the sum of 3 and 4 is", "9", "7-5=2, 5-2="]
PROBES = divmon.ProbeSet.of(TEXTS)
SHORT = Decoding(max_new_tokens=20)


@pytest.fixture
def prompts_seen(sample: Any) -> Callable[..., list[list[int]]]:
    """What `generate` is given as prompts, without padding."""

    def spy_on(model: Any, tokenizer: Any, probes: Any, **more: Any) -> list[list[int]]:
        seen: list[list[int]] = []
        inner = model.generate

        def spy(**arguments: Any) -> Any:
            for ids, mask in zip(arguments["input_ids"].tolist(), arguments["attention_mask"].tolist(), strict=True):
                assert sorted(mask) == mask  # padding on the left
                seen.append(ids[mask.index(1) :])
            return inner(**arguments)

        model.generate = spy
        sample(model, tokenizer=tokenizer, texts=probes, k=1, **more)
        return seen

    return spy_on


# ---- prompts


def test_a_tokenizer_that_closes_its_texts(models: Any, tiny: Any, prompts_seen: Any) -> None:
    tokenizer = tiny.tokenizer()
    plain = prompts_seen(models["gpt2"](), tokenizer, PROBES)
    special = [("<s>", BOS), ("</s>", EOS)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    assert tokenizer("1")["input_ids"][-1] == EOS
    assert prompts_seen(models["gpt2"](), tokenizer, PROBES) == [[BOS, *ids] for ids in plain]


def test_chat_messages_go_through_the_template_once(models: Any, tiny: Any, prompts_seen: Any) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}{{ mark or '=' }}{% endif %}"
    )
    probes = divmon.ProbeSet.of(["1+1", "2+2"]).as_chat()
    GenerateSampler(models["gpt2"](), tokenizer, 2, SHORT).check(probes)
    newline, equals, minus = (tokenizer(c)["input_ids"][1] for c in "\n=-")
    body = [tokenizer(text)["input_ids"] for text in ("1+1", "2+2")]  # begins with BOS
    assert prompts_seen(models["gpt2"](), tokenizer, probes) == [[*ids, newline, equals] for ids in body]
    options = {"chat_options": {"mark": "-"}}
    assert prompts_seen(models["gpt2"](), tokenizer, probes, **options) == [[*ids, newline, minus] for ids in body]


def test_chat_that_cannot_be_written_is_refused_by_check(models: Any, tiny: Any) -> None:
    tokenizer, probes = tiny.tokenizer(), divmon.ProbeSet.of(TEXTS).as_chat()
    sampler = GenerateSampler(models["gpt2"](), tokenizer, 2, SHORT)
    with pytest.raises(ConfigError, match="no chat template"):
        sampler.check(probes)
    sampler.check(divmon.ProbeSet.of(TEXTS))
    GenerateSampler(models["gpt2"](), tokenizer, 2, SHORT, chat_options={"chat_template": tiny.CHAT}).check(probes)
    refuses = "{{ raise_exception('only system messages, please') }}"
    with pytest.raises(ConfigError, match="only system messages, please"):
        GenerateSampler(models["gpt2"](), tokenizer, 2, SHORT, chat_options={"chat_template": refuses}).check(probes)


def test_exact_prompt_tokens_are_used_as_they_are(models: Any, tiny: Any, prompts_seen: Any) -> None:
    probes = divmon.ProbeSet((Probe("a", "ignored", token_ids=(9, EOS, 8)),))
    assert prompts_seen(models["gpt2"](), tiny.tokenizer(), probes) == [[9, EOS, 8]]


def test_a_long_prompt_keeps_its_end(models: Any, tiny: Any, prompts_seen: Any) -> None:
    tokenizer = tiny.tokenizer()
    probes = divmon.ProbeSet.of(["1+2=" * 40, "1+1="])
    seen = sorted(prompts_seen(models["gpt2"](), tokenizer, probes), key=len)
    whole = tokenizer("1+2=" * 40)["input_ids"]
    assert seen == [tokenizer("1+1=")["input_ids"], whole[-(96 - 20) :]]


def test_completions_as_long_as_the_window_are_refused_by_check(models: Any, tiny: Any) -> None:
    for longest in (96, 200):
        with pytest.raises(ConfigError, match="max_new_tokens=48 or less"):
            GenerateSampler(models["gpt2"](), tiny.tokenizer(), 2, Decoding(max_new_tokens=longest)).check(PROBES)
    sampler = GenerateSampler(models["gpt2"](), tiny.tokenizer(), 2, Decoding(max_new_tokens=95))
    sampler.check(PROBES)
    assert len(sampler(PROBES, step=0).texts) == len(PROBES)


def test_an_empty_prompt_starts_with_the_first_token_the_policy_knows(
    models: Any, tiny: Any, prompts_seen: Any
) -> None:
    tokenizer, probes = tiny.tokenizer(), divmon.ProbeSet((Probe("empty", ""), Probe("one", "1")))
    assert [BOS] in prompts_seen(models["gpt2"](), tokenizer, probes)
    tokenizer.bos_token = None
    assert [tokenizer.pad_token_id] in prompts_seen(models["gpt2"](), tokenizer, probes)


# ---- failures


class Memory:
    """Makes a model run out of memory above a number of rows, with a tensor that only its traceback keeps alive."""

    def __init__(self, model: Any, rows: int) -> None:
        self.rows, self.sizes = rows, []
        self.held: weakref.ref[torch.Tensor] | None = None
        model.register_forward_pre_hook(self._check, with_kwargs=True)

    def _check(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        size = inputs["input_ids"].shape[0]
        self.sizes.append(size)
        if size > self.rows:
            large = torch.zeros(1000)
            self.held = weakref.ref(large)
            raise RuntimeError(f"CUDA out of memory. Tried to allocate {large.numel()} GiB.")


def test_out_of_memory_halves_the_batch_and_goes_on(
    models: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sample: Any
) -> None:
    expected = sample(models["gpt2"](), k=8)
    model = models["gpt2"]()
    memory, freed = Memory(model, 9), []
    clear = generate.clear_device_cache
    monkeypatch.setattr(
        generate,
        "clear_device_cache",
        lambda **k: (clear(**k), freed.append(memory.held() is None)),  # type: ignore[misc]
    )
    sampler = GenerateSampler(model, tiny.tokenizer(), 8, SHORT)
    with caplog.at_level(logging.INFO, logger="divmon"):
        batch = sampler(PROBES, step=0)
    assert batch.token_ids == expected.token_ids
    assert freed == [True, True, True]  # 40, 20 and 10 rows failed; each time the memory could be given back
    assert "sampling goes on with 5" in caplog.text
    memory.sizes.clear()
    assert sampler(PROBES, step=1).token_ids == expected.token_ids
    assert max(memory.sizes) == 5  # remembered


def test_out_of_memory_with_one_row_is_a_sampling_error(models: Any, sample: Any) -> None:
    model = models["gpt2"]().train()
    Memory(model, 0)
    with pytest.raises(SamplingError, match="sampling one completion"):
        sample(model)
    assert model.training


def test_other_errors_pass_through_at_once(models: Any, sample: Any) -> None:
    model, calls = models["gpt2"](), []

    def broken(*_: Any) -> None:
        calls.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        sample(model)
    assert len(calls) == 1


def test_a_policy_that_overflowed_is_a_sampling_error(models: Any, sample: Any) -> None:
    model = models["gpt2"]()
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = torch.nan
    with pytest.raises(SamplingError, match="not numbers"):
        sample(model)


def test_models_that_cannot_be_sampled_are_refused_at_once(models: Any, tiny: Any, adapted: Any) -> None:
    from transformers import GPT2ForSequenceClassification, T5Config, T5ForConditionalGeneration

    gpt2 = models["gpt2"]()
    classifier = GPT2ForSequenceClassification(gpt2.config)
    small = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 1, "vocab_size": 9}
    t5 = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **small))
    for model in (torch.nn.Linear(2, 2), gpt2.transformer, classifier, adapted(classifier, task="SEQ_CLS")):
        with pytest.raises(ConfigError, match=r"no generate\(\)"):
            GenerateSampler(model, tiny.tokenizer(), 2)
    with pytest.raises(ConfigError, match="encoder-decoder"):
        GenerateSampler(t5, tiny.tokenizer(), 2)
    with pytest.raises(ConfigError, match="no tokenizer"):
        GenerateSampler(gpt2, None, 2)


def test_prompts_that_lose_their_beginning_are_counted_at_the_start(caplog):
    from divmon.demo.training import load_model, load_tokenizer
    from divmon.probes import ProbeSet
    from divmon.records import Decoding
    from divmon.samplers.generate import GenerateSampler

    probes = ProbeSet.of(["What is 1+1?", "What is " + "1+" * 20 + "1?"])
    GenerateSampler(load_model(), load_tokenizer(), 1, Decoding(max_new_tokens=100)).check(probes)
    assert "1 of 2 prompts lose their beginning" in caplog.text
    caplog.clear()
    GenerateSampler(load_model(), load_tokenizer(), 1, Decoding(max_new_tokens=64)).check(probes)
    assert not caplog.text
