"""`resample` inside one SFT run: what was accepted after an alarm is in the batches of the loss, and only then."""

from __future__ import annotations

import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

import divmon
from divmon.resampling.critics import FunctionCritic
from divmon.resampling.lineage import Lineage

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def story(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("sft")
    return running.train(tiny.sft, out), out


def by_trl(tiny: Any, out: Path, rows: list[dict[str, Any]], **more: Any) -> dict[tuple[int, ...], list[int]]:
    """Token ids to labels, as a trainer made for these rows prepares them."""
    made = SFTTrainer(
        model=tiny.gpt2(), args=SFTConfig(**tiny.arguments(out, **more)), train_dataset=Dataset.from_list(rows),
        processing_class=tiny.tokenizer(),
    )  # fmt: skip
    return {tuple(row["input_ids"]): made.data_collator([row])["labels"][0].tolist() for row in made.train_dataset}


def test_accepted_refinements_are_in_the_batches_of_the_loss(tiny: Any, story: Any, tmp_path: Path) -> None:
    story, out = story
    assert running.changes(out) == [(2, "applied", 1.0), (4, "cooling", 1.0), (6, "armed", 0.0)]
    assert list(running.passes(out)) == [2, 3, 4, 5]  # once an evaluation, while it acts
    known = by_trl(tiny, tmp_path, [{"prompt": p, "completion": running.answer(p)} for p in tiny.PROMPTS])
    ordinary = by_trl(tiny, tmp_path, [{"prompt": p, "completion": f"the sum is {len(p)}"} for p in tiny.PROMPTS])
    found: dict[int, int] = {}
    for step, batches in story.seen.items():
        for batch in batches:
            for ids, labels, mask in zip(*(batch[n] for n in ("input_ids", "labels", "attention_mask")), strict=True):
                row = tuple(i for i, kept in zip(ids, mask, strict=True) if kept)
                assert row in known or row in ordinary
                assert labels[: len(row)] == {**ordinary, **known}[row]  # the loss is on the completion, end included
                found[step] = found.get(step, 0) + (row in known)
    # a batch is read one step ahead, but for the first one of an epoch (step 7)
    assert found == {step: 4 if 4 <= step <= 6 else 0 for step in range(1, 11)}


def test_the_history_says_what_was_accepted(story: Any) -> None:
    _, out = story
    history = divmon.History.read(out)
    assert running.passes(out)[2].startswith("24 refinements accepted of ")
    row = history.evaluations[-1].health
    assert row["resample_accepted"] >= 24
    assert row["resample_rows"] == 12


BREAKING = {"strict": False}


def told(history: divmon.History, name: str) -> float:
    return float(history.evaluations[-1].health[name])


def rubbish(prompt: str, attempt: str) -> Any:
    return 7


def stalling(prompt: str, attempt: str) -> str:
    time.sleep(60)
    return "too late"


class Deaf(running.Scribe):
    def write(self, prompts: Any, *, temperature: float, keys: Any) -> list[str]:
        raise RuntimeError("no refinement today")


class Noisy(running.Scribe):
    """Draws from every global stream before it fails."""

    def write(self, prompts: Any, *, temperature: float, keys: Any) -> list[str]:
        torch.rand(3), np.random.rand(3), random.random()
        return ["nothing of the kind"] * len(prompts)


@pytest.fixture(scope="module")
def plain(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return running.plain(tiny.sft, tmp_path_factory.mktemp("plain"), max_steps=7)


@pytest.mark.parametrize(
    ("name", "watched"),
    [
        ("failing", {"critic": running.failing, **BREAKING}),
        ("rubbish", {"critic": rubbish, **BREAKING}),
        ("stalling", {"critic": FunctionCritic(stalling, deadline=0.05), **BREAKING}),
        ("deaf", {"writer": Deaf(), **BREAKING}),
        ("noisy", {"writer": Noisy()}),
        ("policy", {"writer": None, "critic": "policy"}),
        ("unfired", {}),
    ],
)
def test_without_an_accepted_refinement_the_run_is_bitwise_the_unmitigated_one(
    tiny: Any, plain: Any, name: str, watched: dict[str, Any], tmp_path: Path
) -> None:
    breaks = (lambda step: False) if name == "unfired" else (lambda step: step >= 2)
    story = running.train(tiny.sft, tmp_path, breaks=breaks, watched=watched, max_steps=7)
    assert tiny.digest(story.trainer.model) == tiny.digest(plain.trainer.model)
    assert tiny.rows(story.trainer) == tiny.rows(plain.trainer)
    assert story.seen == plain.seen
    history = divmon.History.read(tmp_path)
    assert [c.phase for c in history.mitigations][:1] == ([] if name == "unfired" else ["applied"])
    assert all(reason.startswith("0 refinements accepted") for reason in running.passes(tmp_path).values())
    if name in ("failing", "rubbish", "stalling", "deaf"):
        assert told(history, "mitigation_failures") > 0


def test_the_data_set_is_left_as_it_was_found(tiny: Any, story: Any, tmp_path: Path) -> None:
    trainer = story[0].trainer
    assert trainer.train_dataset.format["type"] is None
    more = running.train(tiny.sft, tmp_path, max_steps=6, remove_unused_columns=False)
    assert more.trainer.train_dataset.format["type"] is None  # here the loader reads the very object
    assert any(len(batch["input_ids"]) for batch in more.seen[6])
    assert told(divmon.History.read(tmp_path), "resample_rows") > 0


class Stop(TrainerCallback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.at


@pytest.mark.parametrize("at", [2, 3, 6])  # where it was just set, in the midst of it, at the end of an epoch
def test_a_resumed_run_sees_the_batches_of_the_uninterrupted_one(
    tiny: Any, story: Any, at: int, tmp_path: Path
) -> None:
    whole, out = story
    saving = {"save_strategy": "steps", "save_steps": at}
    first = running.train(tiny.sft, tmp_path, callbacks=[Stop(at)], **saving)
    second = running.train(tiny.sft, tmp_path, resume=str(tmp_path / f"checkpoint-{at}"), **saving)
    assert {**first.seen, **second.seen} == whole.seen
    assert tiny.digest(second.trainer.model) == tiny.digest(whole.trainer.model)
    assert running.changes(tmp_path) == running.changes(out)
    assert running.passes(tmp_path) == running.passes(out)
    kept = [json.loads(line) for line in (tmp_path / "divmon" / "lineage.jsonl").read_text().splitlines()]
    assert sum("resumed_at" not in line for line in kept) == 24


def test_what_an_evaluation_of_the_trainers_has_brought_is_in_the_checkpoint_of_its_step(
    tiny: Any, tmp_path: Path
) -> None:
    more = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    more |= {"watched": {"every": 4}, "max_steps": 5, "gradient_accumulation_steps": 2}
    whole = running.train(tiny.sft, tmp_path / "whole", **more)
    assert len(Lineage.read(tmp_path / "whole" / "divmon" / "lineage.jsonl")) == 24
    running.train(tiny.sft, tmp_path / "cut", callbacks=[Stop(2)], **more)
    second = running.train(tiny.sft, tmp_path / "cut", resume=str(tmp_path / "cut" / "checkpoint-2"), **more)
    assert tiny.digest(second.trainer.model) == tiny.digest(whole.trainer.model)
    assert running.passes(tmp_path / "cut") == running.passes(tmp_path / "whole")


class Wordy(running.Scribe):
    def write(self, prompts: Any, *, temperature: float, keys: Any) -> list[str]:
        found = super().write(prompts, temperature=temperature, keys=keys)
        return [text + " and so on" * 20 * (i > 0) for i, text in enumerate(found)]


def test_refinements_that_the_models_window_cannot_hold_are_not_served(tiny: Any, tmp_path: Path) -> None:
    story = running.train(tiny.sft, tmp_path, breaks=lambda step: step >= 1, watched={"writer": Wordy()}, max_steps=6)
    assert running.passes(tmp_path)[1] == (
        "1 refinement accepted of 24 written for 24 needy prompts. Turned away: 23 not fitting."
    )
    assert told(divmon.History.read(tmp_path), "resample_not_fitting") == 23
    assert story.trainer.state.global_step == 6


class Interrupt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_who_reads_the_data_after_an_interruption_finds_the_plain_rows(tiny: Any, tmp_path: Path) -> None:
    made: dict[str, Any] = {}

    def make(out: Path, **more: Any) -> Any:
        made["trainer"] = tiny.sft(out, **more)  # whose loader reads the very object
        made["rows"] = [dict(row) for row in made["trainer"].train_dataset]
        return made["trainer"]

    with pytest.raises(KeyboardInterrupt):
        running.train(make, tmp_path, callbacks=[Interrupt()], remove_unused_columns=False)
    data = made["trainer"].train_dataset
    assert data.format["type"] == "custom"
    assert dict(copy.deepcopy(data)[3]) == made["rows"][3]
    assert [dict(row) for row in data] == made["rows"]
    assert data.format["type"] is None


def test_a_share_of_the_rows_of_other_prompts_gives_way(tiny: Any, tmp_path: Path) -> None:
    probes = ["7+7=", "8+8="]  # no rows of the data
    story = running.train(
        tiny.sft, tmp_path, breaks=lambda step: step >= 1, then={"share": 0.5}, watched={"probes": probes}, max_steps=24
    )
    rows = running.rows_of([batch for step, found in story.seen.items() if step > 2 for batch in found], 0)
    known = by_trl(tiny, tmp_path, [{"prompt": p, "completion": running.answer(p)} for p in probes])
    served = [row for row in rows if row in known]
    assert set(served) == set(known)
    assert len(served) / len(rows) == pytest.approx(0.5, abs=0.15)
    again = running.train(
        tiny.sft, tmp_path / "again", breaks=lambda step: step >= 1, then={"share": 0.5}, watched={"probes": probes},
        max_steps=24,
    )  # fmt: skip
    assert again.seen == story.seen


def test_the_policy_criticises_and_refines_itself(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No scribe: with a judge of whims, even an untrained model writes something that is accepted."""
    small = tiny.gpt2

    def roomy(**_: Any) -> Any:
        model = small()
        config = type(model.config)(**{**model.config.to_dict(), "n_positions": 1024})
        return type(model)(config)

    monkeypatch.setattr(tiny, "gpt2", roomy)
    then = {"logprob": None, "novelty": 0.0, "overlap": 1.0, "shortcut": False, "min_correct": 2}
    watched = {"writer": None, "critic": "policy", "quality": lambda probe, text: float(sum(map(ord, text)) % 2)}
    story = running.train(tiny.sft, tmp_path, then=then, watched=watched, max_steps=6)
    kept = Lineage.read(tmp_path / "divmon" / "lineage.jsonl")
    assert kept
    assert {made.candidate.writer for made in kept} == {made.candidate.critic for made in kept} == {"policy"}
    known = by_trl(tiny, tmp_path, [{"prompt": made.probe.prompt, "completion": made.text} for made in kept])
    rows = {step: running.rows_of(batches, 0) for step, batches in story.seen.items()}
    assert not any(row in known for step in (1, 2, 3) for row in rows[step])
    assert any(row in known for step in (4, 5, 6) for row in rows[step])
