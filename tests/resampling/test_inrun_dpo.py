"""`resample` inside one DPO run: the refinement is preferred to the policy's own answer. And where it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import running
from datasets import Dataset, IterableDataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import divmon
from divmon.errors import ConfigError
from divmon.resampling.lineage import Lineage

pytestmark = pytest.mark.trainer
BOTH = ("input_ids", "attention_mask", "completion_mask")


@pytest.fixture(scope="module")
def story(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("dpo")
    return running.train(tiny.dpo, out), out


def pairs(tiny: Any, out: Path, rows: list[dict[str, Any]]) -> set[tuple[tuple[int, ...], ...]]:
    """(prompt, chosen, rejected) as a trainer made for these rows prepares them."""
    made = DPOTrainer(
        model=tiny.gpt2(), ref_model=tiny.gpt2(), args=DPOConfig(**tiny.arguments(out)),
        train_dataset=Dataset.from_list(rows), processing_class=tiny.tokenizer(),
    )  # fmt: skip
    return {tuple(tuple(row[f"{n}_ids"]) for n in ("prompt", "chosen", "rejected")) for row in made.train_dataset}


def seen(batch: dict[str, Any]) -> list[tuple[tuple[int, ...], ...]]:
    """(prompt, chosen, rejected) in a batch of the loss, which holds the chosen ones above the rejected ones."""
    parts = []
    for ids, mask, completion in zip(*(batch[name] for name in BOTH), strict=True):
        prompt = tuple(i for i, kept, c in zip(ids, mask, completion, strict=True) if kept and not c)
        parts.append((prompt, tuple(i for i, c in zip(ids, completion, strict=True) if c)))
    half = len(parts) // 2
    assert [p for p, _ in parts[:half]] == [p for p, _ in parts[half:]]
    return [(prompt, chosen, parts[half + i][1]) for i, (prompt, chosen) in enumerate(parts[:half])]


def test_the_refinement_is_chosen_and_the_wrong_answer_rejected(tiny: Any, story: Any, tmp_path: Path) -> None:
    story, out = story
    assert running.changes(out) == [(2, "applied", 1.0), (4, "cooling", 1.0), (6, "armed", 0.0)]
    kept = Lineage.read(out / "divmon" / "lineage.jsonl")
    assert len(kept) == 24
    tried = {probe.id: row for probe, row in zip(*_drawn(out), strict=True)}
    assert all(made.candidate.attempt.text in tried[made.probe.id] for made in kept)  # what the policy itself wrote
    rows = [
        {"prompt": made.probe.prompt, "chosen": made.text, "rejected": made.candidate.attempt.text} for made in kept
    ]
    known = pairs(tiny, tmp_path, rows)
    ordinary = pairs(tiny, tmp_path, [{"prompt": p, "chosen": "- 1 - 2", "rejected": "the sum"} for p in tiny.PROMPTS])
    found = {step: [row for batch in batches for row in seen(batch)] for step, batches in story.seen.items()}
    assert {row for rows in found.values() for row in rows} <= known | ordinary
    counted = {step: sum(row in known for row in rows) for step, rows in found.items()}
    assert counted == {step: 4 if 4 <= step <= 6 else 0 for step in range(1, 11)}


def _drawn(out: Path) -> Any:
    batch = divmon.History.read(out).batch(2)
    return batch.probes, batch.texts


@pytest.mark.parametrize("name", ["failing", "unfired"])
def test_with_an_always_failing_critic_the_run_is_bitwise_the_unmitigated_one(
    tiny: Any, name: str, tmp_path: Path
) -> None:
    plain = running.plain(tiny.dpo, tmp_path / "plain", max_steps=7)
    breaks = (lambda step: False) if name == "unfired" else (lambda step: step >= 2)
    watched = {"critic": running.failing, "strict": False}
    story = running.train(tiny.dpo, tmp_path / "failing", breaks=breaks, watched=watched, max_steps=7)
    assert tiny.digest(story.trainer.model) == tiny.digest(plain.trainer.model)
    assert tiny.rows(story.trainer) == tiny.rows(plain.trainer)
    assert story.seen == plain.seen


def other(tiny: Any, kind: Any, args: Any, rows: Any, **more: Any) -> Any:
    """A trainer of `kind` on other rows."""

    def make(out: Path, *, callbacks: Any, **given: Any) -> Any:
        settings = args(**{**tiny.arguments(out), **more.get("args", {}), **given})
        extra = {key: value for key, value in more.items() if key != "args"}
        return kind(
            model=tiny.gpt2(), args=settings, train_dataset=rows, processing_class=tiny.tokenizer(),
            callbacks=callbacks, **extra,
        )  # fmt: skip

    return make


def sums(tiny: Any) -> list[dict[str, Any]]:
    return [{"prompt": p, "completion": "the sum"} for p in tiny.PROMPTS]


@pytest.mark.parametrize(
    ("make", "more", "message"),
    [
        ("grpo", {}, "GRPOTrainer trains on what it generates itself"),
        ("rloo", {}, "RLOOTrainer trains on what it generates itself"),
        ("trainer", {}, "knows the rows of TRL's SFTTrainer and DPOTrainer; those of Trainer"),
        ("kto", {}, "knows the rows of TRL's SFTTrainer and DPOTrainer; those of KTOTrainer"),
        ("sft", {"dataloader_num_workers": 1}, "Set dataloader_num_workers=0"),
        ("sft", {"packing": True, "max_length": 64}, "packing=True joins several prompts into a row"),
        ("dpo", {"precompute_ref_log_probs": True}, "Set precompute_ref_log_probs=False"),
    ],
)
def test_refused_before_the_first_step(
    tiny: Any, make: str, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        running.train({**tiny.TRAINERS, **tiny.MORE_TRAINERS}[make], tmp_path, **more)
    assert "An alarm asks for resample, which cannot be had here." in str(caught.value)


def test_other_data_is_refused(tiny: Any, tmp_path: Path) -> None:
    rows, tokens = sums(tiny), [{"input_ids": [3, 4, 5, 6], "labels": [-100, 4, 5, 6]}] * 8
    text = [{"text": row["prompt"] + row["completion"]} for row in rows]
    formatted = {"formatting_func": lambda row: row["text"]}
    for data, more, message in (
        (IterableDataset.from_generator(lambda: iter(rows)), {}, "Streams are read ahead"),
        (Dataset.from_list(tokens), {}, "tokenised before it came to the trainer"),
        (Dataset.from_list(text), formatted, "formatting_func writes the rows"),
    ):
        with pytest.raises(ConfigError, match=message):
            running.train(other(tiny, SFTTrainer, SFTConfig, data, **more), tmp_path)


def test_without_a_judge_only_redundancy_can_be_resampled(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must know which completions are correct"):
        running.train(tiny.sft, tmp_path, watched={"quality": None})
    story = running.train(
        tiny.sft, tmp_path, watched={"quality": None}, then={"mode": "combinational", "min_correct": 2}, max_steps=4
    )
    assert running.passes(tmp_path)
    assert story.trainer.state.global_step == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"critic": "policey"}, "Unknown critic 'policey'. Did you mean 'policy'"),
        ({"critic": "no.such:thing"}, "critic='no.such:thing' cannot be imported"),
        ({"writer": object()}, "writer= must have `name`, `write` and `logprob`"),
        ({"alarms": []}, "critic= would have no effect: no alarm lists resample"),
    ],
)
def test_what_cannot_work_fails_at_construction(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        divmon.DiversityCallback(**{**running.settings(running.Story(lambda step: False)), **values})


def test_the_rule_names_a_critic_in_words() -> None:
    given = running.settings(running.Story(lambda step: False), critic="running:critic")
    given["critic"] = None
    assert divmon.DiversityCallback(**given).plan.critic.name == "critic"


CHAT = [{"role": "user", "content": "1+2="}]


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("pairs", lambda p, a: {"prompt": _user(p), "completion": _assistant(a)}),
        ("messages", lambda p, a: {"messages": _user(p) + _assistant(a)}),
        ("text", lambda p, a: {"text": p + a}),
    ],
)
def test_rows_of_every_form_are_those_that_the_trainer_makes(tiny: Any, kind: str, rows: Any, tmp_path: Path) -> None:
    """Chats through the template, plain texts with their end token; masks and limits as in the data itself."""
    templated = kind != "text"

    def make(out: Path, *, callbacks: Any = (), answers: Any = None, **given: Any) -> Any:
        tok = tiny.tokenizer()
        tok.chat_template = tiny.CHAT if templated else None
        data = [rows(p, "the sum" if answers is None else answers[p]) for p in tiny.PROMPTS]
        return SFTTrainer(
            model=tiny.gpt2(), args=SFTConfig(**tiny.arguments(out, max_length=20, **given)), processing_class=tok,
            train_dataset=Dataset.from_list(data), callbacks=list(callbacks),
        )  # fmt: skip

    probes = [_user(p) if templated else p for p in tiny.PROMPTS]
    then = {"share": 1.0, "novelty": 0.0}
    story = running.train(make, tmp_path / "run", then=then, watched={"probes": probes}, max_steps=6)
    answers = {p: running.answer(p) for p in tiny.PROMPTS}
    made = make(tmp_path, answers=answers)
    known = {tuple(row["input_ids"]): made.data_collator([row])["labels"][0].tolist() for row in made.train_dataset}
    batch = story.seen[5][0]
    for ids, labels, mask in zip(*(batch[n] for n in ("input_ids", "labels", "attention_mask")), strict=True):
        row = tuple(i for i, kept in zip(ids, mask, strict=True) if kept)
        assert labels[: len(row)] == known[row]


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_a_disk_that_is_full_for_the_lineage_stops_nothing(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lineage, "flush", lambda self: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    story = running.train(tiny.sft, tmp_path, watched={"strict": False}, max_steps=6)
    health = divmon.History.read(tmp_path).evaluations[-1].health
    assert health["resample_rows"] > 0
    assert health["mitigation_failures"] > 0
    assert story.trainer.state.global_step == 6


def test_the_lineage_that_a_full_disk_has_refused_is_written_in_the_end(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, calls = Lineage.flush, []

    def full(self: Lineage) -> None:
        calls.append(self.path)
        if len(calls) <= 3:  # the passes of steps 2 to 4; only the first of them accepts anything
            raise OSError(28, "No space left on device")
        flush(self)

    monkeypatch.setattr(Lineage, "flush", full)
    running.train(tiny.sft, tmp_path, watched={"strict": False}, max_steps=5)
    assert len(calls) == 4
    assert len(Lineage.read(tmp_path / "divmon" / "lineage.jsonl")) == 24


def test_rows_that_cannot_be_made_leave_the_run_as_it_was(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = running.plain(tiny.sft, tmp_path / "plain", max_steps=6)
    monkeypatch.setattr("divmon.resampling.inrun.prepare", lambda *_: 1 / 0)
    story = running.train(tiny.sft, tmp_path / "run", watched={"strict": False}, max_steps=6)
    assert story.seen == plain.seen
    assert tiny.digest(story.trainer.model) == tiny.digest(plain.trainer.model)
    assert divmon.History.read(tmp_path / "run").evaluations[-1].health["mitigation_failures"] > 0
