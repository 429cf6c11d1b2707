"""Models that think: what stands in <think>...</think> is stripped, kept or suppressed; undisturbed each way."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl import SFTConfig, SFTTrainer

import divmon
from divmon.bank import Bank
from divmon.errors import ConfigError
from divmon.reasoning import EMPTY
from divmon.records import Decoding
from divmon.samplers.generate import GenerateSampler

pytestmark = pytest.mark.trainer
MARKS = ["<think>", "</think>"]
PROMPTS = ["1+1=", "2+3=", "4+4=", "5+1="]
SETTINGS: dict[str, Any] = {
    "probes": PROMPTS, "k": 6, "max_new_tokens": 12, "sinks": [], "strict": True, "every": 2, "score_every": 1,
    "alarms": [],
}  # fmt: skip


def thinker(tiny: Any, *, special: bool = False) -> tuple[Any, Any]:
    """A model that answers "=" with a block of random length, then a number or two; and its tokenizer."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(MARKS, special_tokens=special)
    model = tiny.gpt2(vocabulary=len(tokenizer))
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in ("=", "<think>", "</think>", "7", "8", "9")}
    likely = torch.zeros(len(tokenizer), len(tokenizer))
    likely[ids["="], ids["<think>"]] = 30
    likely[ids["<think>"], ids["9"]] = 30
    likely[ids["9"], [ids["9"], ids["</think>"]]] = torch.tensor([30.0, 29.0])
    last = tokenizer(EMPTY)["input_ids"][-1]
    for before in (ids["</think>"], last):
        likely[before, [ids["7"], ids["8"]]] = 30
    likely[[ids["7"], ids["8"]], tokenizer.eos_token_id] = 30
    forward = model.forward

    def biased(input_ids: Any = None, **more: Any) -> Any:
        out = forward(input_ids=input_ids, **more)
        out.logits = out.logits + likely[input_ids][:, -out.logits.shape[1] :]
        return out

    model.forward = biased
    return model, tokenizer


def run(tiny: Any, out: Path, **settings: Any) -> tuple[Any, Any]:
    """A short run of a model that thinks; its trainer and history."""
    from datasets import Dataset

    model, tokenizer = thinker(tiny)
    trainer = SFTTrainer(
        model=model, args=SFTConfig(**tiny.arguments(out, max_steps=2)), processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": p, "completion": "<think>99</think>7"} for p in PROMPTS]),
        callbacks=[divmon.DiversityCallback(**{**SETTINGS, **settings})] if settings else [],
    )  # fmt: skip
    trainer.train()
    return trainer, divmon.History.read(out) if settings else None


@pytest.fixture(scope="module")
def runs(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("thinking")
    found = {way: run(tiny, out / way, reasoning=way) for way in ("strip", "keep", "empty")}
    return {**found, "plain": run(tiny, out / "plain")}


@pytest.mark.parametrize("way", ["strip", "keep", "empty"])
def test_each_way_is_undisturbed_and_part_of_the_signature(tiny: Any, runs: Any, way: str) -> None:
    trainer, history = runs[way]
    assert tiny.digest(trainer.model) == tiny.digest(runs["plain"][0].model)
    assert tiny.rows(trainer) == tiny.rows(runs["plain"][0])
    signature = history.series("unique_fraction", "default").signature
    assert (f"|reasoning:{way}" in signature) == (way != "keep")
    first = {m.metric: m.value for m in history.scores().evaluations[0].measurements}
    assert (first["retained_mass"], first["kl_per_token"]) == (1.0, 0.0)


def test_what_is_measured_is_the_answer_and_what_was_cut_while_reasoning_is_left_out(runs: Any) -> None:
    (_, stripped), (_, kept) = runs["strip"], runs["keep"]
    whole, answers = kept.batch(0), stripped.batch(0)
    assert whole.texts[0][0].startswith("<think>9")
    assert {text for row in answers.texts for text in row} <= {"7", "8"}
    found = [[text.partition("</think>")[2] for text in row] for row in whole.texts]
    assert answers.texts == tuple(tuple(text for text in row if text) for row in found)  # the same draws
    cut = sum(not text for row in found for text in row)
    assert cut
    assert any(text.endswith("</think>") for row in whole.texts for text in row)  # cut before its answer began
    assert stripped.evaluations[0].health["cut_while_reasoning"] == cut
    lengths = [len(ids) for row in answers.token_ids for ids in row]
    assert set(lengths) == {1, 2}  # the number, and the end where the cap left room for it
    assert lengths.count(1) == sum(not done for row in answers.finished for done in row)
    assert 1.5 < stripped.series("length", "default").values[0] < 2.0
    assert kept.series("length", "default").values[0] > 4.0
    bank = Bank.read(stripped.path / "bank.npz", probes=answers.probes)
    assert bank.batch.texts == whole.texts  # scores see whole completions


def test_an_empty_block_makes_answers_begin_at_once(tiny: Any, runs: Any) -> None:
    _, history = runs["empty"]
    assert {text for row in history.batch(0).texts for text in row} == {"7", "8"}
    assert "cut_while_reasoning" not in history.evaluations[0].health
    model, tokenizer = thinker(tiny)
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if add_generation_prompt %}<think>{% endif %}"
    closed = tokenizer.chat_template.replace("<think>", "<think></think>")
    probes = divmon.ProbeSet.of(PROMPTS)

    def shown(probes: Any, **options: Any) -> str:
        sampler = GenerateSampler(model, tokenizer, 1, Decoding(1.0, 1.0, 8, 0, "empty"), options)
        return tokenizer.decode(sampler.prompt_ids(probes)[0])

    assert shown(probes) == "1+1=" + EMPTY
    assert shown(probes.as_chat()) == "1+1=<think>\n</think>\n"
    assert shown(probes.as_chat(), chat_template=closed) == "1+1=<think></think>"


@pytest.mark.parametrize("special", [False, True])
def test_marks_that_are_special_tokens_and_prompts_that_open_the_block(tiny: Any, special: bool, caplog: Any) -> None:
    from divmon.health import Health
    from divmon.monitor import Monitor
    from divmon.session import Session

    model, tokenizer = thinker(tiny, special=special)
    decoding = Decoding(1.0, 1.0, 12, 0, "strip")
    probes = divmon.ProbeSet.of([*(p + "<think>" for p in PROMPTS), "3+3="])
    sampler = GenerateSampler(model, tokenizer, 6, decoding)
    assert sampler.opened(probes) == {probe.id for probe in probes.probes[:4]}
    health = Health(strict=True)
    session = Session(probes, sampler, Monitor(), [], health, 1, decoding, opened=sampler.opened(probes))
    batch = sampler(probes, step=0)
    with caplog.at_level(logging.WARNING, logger="divmon"):
        found = session._answers(batch)
        session._answers(batch)
    assert {text for row in found.texts for text in row} <= {"7", "8"}
    assert all(found.texts)
    left = sum(map(len, batch.texts)) - sum(map(len, found.texts))
    assert health.counts["cut_while_reasoning"] == 2 * left > 0
    assert caplog.text.count("cut while reasoning and are left out: raise max_new_tokens") == 1
    for whole, cut in ((batch.logprobs[4], found.logprobs[4]),):
        kept = [w for w, text in zip(whole, batch.texts[4], strict=True) if "</think>" in text]
        assert all(np.array_equal(w[-len(c) :], c) for w, c in zip(kept, cut, strict=True))


def test_a_name_that_is_no_way_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'strip'"):
        divmon.DiversityCallback(reasoning="stripp")
