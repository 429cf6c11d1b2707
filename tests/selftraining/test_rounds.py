"""Rounds of self-training on a tiny model: real sampling, real SFT, divmon in every round."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

import divmon
from divmon.demo import columns, columns_run
from divmon.demo.columns_model import load_base
from divmon.errors import ConfigError, HistoryError
from divmon.resampling.dialogue import noise
from divmon.resampling.lineage import Lineage
from divmon.selftraining import SelfTrained, SelfTraining, beside

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    return load_base()


@pytest.fixture(scope="module")
def guided(base: Any, tmp_path_factory: pytest.TempPathFactory) -> SelfTrained:
    return training(base, tmp_path_factory.mktemp("guided"), critic=columns.criticism).run()


@pytest.fixture(scope="module")
def plain(base: Any, tmp_path_factory: pytest.TempPathFactory) -> SelfTrained:
    return training(base, tmp_path_factory.mktemp("plain")).run()


def training(base: Any, out: Path, **more: Any) -> SelfTraining:
    given = {
        "seed": 5, "rounds": 2, "samples": 3, "budget": 123, "held_out": columns_run.rows([2] * 5, seed=1),
        "prompts": columns_run.rows([4] * 5, seed=0), "watch": columns_run.WATCH | {"k": 4, "strict": True}, **more,
    }  # fmt: skip
    return columns_run.training(*base, out=out, **given)


def weights(found: SelfTrained, tiny: Any, number: int) -> str:
    return tiny.digest(AutoModelForCausalLM.from_pretrained(found.out / f"round-{number}" / "model"))


def timeless(found: SelfTrained) -> list[Any]:
    return [json.dumps(dataclasses.asdict(dataclasses.replace(one, seconds=0.0))) for one in found.rounds]


def pairs(found: SelfTrained, number: int) -> list[dict[str, Any]]:
    text = (found.out / f"round-{number}" / "accepted.jsonl").read_text("ascii")
    return [json.loads(line) for line in text.splitlines()]


def test_both_arms_draw_the_whole_budget_and_no_more(plain: SelfTrained, guided: SelfTrained) -> None:
    for one in plain.rounds:
        assert (one.drawn, one.critiques, one.refinements) == (123, 0, 0)
    for one in guided.rounds:
        assert one.critiques > 0
        assert one.refinements > one.critiques
        assert one.drawn + one.critiques + one.refinements == one.spent == 123
        assert one.counts["critiques"] == one.critiques


def test_what_was_accepted_is_right_and_capped_and_counted_by_level(plain: SelfTrained, guided: SelfTrained) -> None:
    for found in (plain, guided):
        for one in found.rounds:
            rows = pairs(found, one.number)
            assert all(columns.is_correct(row["prompt"], row["completion"]) for row in rows)
            assert len({(row["prompt"], row["completion"]) for row in rows}) == len(rows)
            assert max(sum(row["prompt"] == other["prompt"] for other in rows) for row in rows) <= 4
            for i, level in enumerate(one.levels):
                assert one.direct[i] == sum(row["level"] == level and not row["refined"] for row in rows)
                assert one.refined[i] == sum(row["level"] == level and row["refined"] for row in rows)
            assert one.data == (4, 4, 4, 4, 4)
    assert sum(guided.rounds[0].refined) > 0
    assert sum(plain.rounds[0].refined) == 0


def test_every_refinement_has_its_lineage(guided: SelfTrained) -> None:
    made = Lineage.read(guided.out / "lineage.jsonl")
    for number in (1, 2):
        written = {(one.probe.id, one.text) for one in made if one.step == number}
        assert {(row["id"], row["completion"]) for row in pairs(guided, number) if row["refined"]} <= written
    for one in made:
        attempt = one.candidate.attempt
        assert one.candidate.critique == columns.criticism(attempt.probe.text, attempt.text)


def test_divmon_watches_every_round_and_its_numbers_are_in_the_record(guided: SelfTrained) -> None:
    for one in guided.rounds:
        history = divmon.History.read(guided.out / f"round-{one.number}" / "divmon")
        assert [evaluation.step for evaluation in history.evaluations] == [0, one.steps]
        batch = history.batch(one.steps)
        for level, at_1, at_k in zip(one.held_out_levels, one.pass_at_1, one.pass_at_k, strict=True):
            marks = [
                [columns.is_correct(probe.text, text) for text in texts]
                for probe, texts in zip(batch.probes, batch.texts, strict=True)
                if probe.difficulty == level
            ]
            assert at_1 == pytest.approx(sum(map(sum, marks)) / sum(map(len, marks)))
            assert at_k == pytest.approx(sum(map(any, marks)) / len(marks))
        assert one.diversity["tfidf_distance"] == history.series("tfidf_distance", "sums").values[-1]
        assert one.k == 4


def test_each_round_trains_the_base(base: Any, guided: SelfTrained, tiny: Any, tmp_path: Path) -> None:
    settings = json.loads((guided.out / "selftraining.json").read_text("ascii"))["settings"]
    assert settings["learner"] == "base"
    rows = [{name: row[name] for name in ("prompt", "completion")} for row in pairs(guided, 2)]
    seed = noise(5, "training", 2) % 2**31
    args = SFTConfig(
        output_dir=str(tmp_path), num_train_epochs=1, seed=seed, save_strategy="no", report_to="none",
        **columns_run.SFT,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=copy.deepcopy(base[0]), args=args, train_dataset=Dataset.from_list(rows), processing_class=base[1]
    )
    trainer.train()
    assert tiny.digest(trainer.model) == weights(guided, tiny, 2)  # bitwise: divmon left training undisturbed, too


def test_interrupted_between_rounds_it_ends_as_uninterrupted(
    base: Any, guided: SelfTrained, tiny: Any, tmp_path: Path
) -> None:
    once = training(base, tmp_path, critic=columns.criticism, rounds=1).run()
    assert len(once.rounds) == 1
    (tmp_path / "round-2").mkdir()
    (tmp_path / "round-2" / "accepted.jsonl").write_text("torn")  # the process died in the second round
    again = training(base, tmp_path, critic=columns.criticism).run()
    assert timeless(again) == timeless(guided)
    assert weights(again, tiny, 2) == weights(guided, tiny, 2)
    assert pairs(again, 2) == pairs(guided, 2)
    lineages = [[(r.step, r.text) for r in Lineage.read(run.out / "lineage.jsonl")] for run in (again, guided)]
    assert lineages[0] == lineages[1]
    assert timeless(SelfTrained.read(tmp_path)) == timeless(guided)
    with pytest.raises(ConfigError, match="holds self-training with keep=4, not 2"):
        training(base, tmp_path, critic=columns.criticism, keep=2).run()


@pytest.mark.parametrize("fault", ["raises", "silent"])
def test_a_failing_critic_leaves_a_plain_round(
    base: Any, plain: SelfTrained, tiny: Any, tmp_path: Path, fault: str
) -> None:
    def critic(prompt: str, answer: str) -> str | None:
        if fault == "raises":
            raise RuntimeError("the server is gone")
        return None

    failed = training(base, tmp_path, critic=critic, rounds=1).run()
    assert pairs(failed, 1) == pairs(plain, 1)
    assert weights(failed, tiny, 1) == weights(plain, tiny, 1)
    assert failed.rounds[0].spent == plain.rounds[0].spent
    assert any("critiques could not be had" in event for event in failed.rounds[0].events)


def test_the_hardest_are_served_first(base: Any, tmp_path: Path) -> None:
    asked: list[int] = []

    def critic(prompt: str, answer: str) -> str | None:
        asked.append(columns.read(prompt).level)
        return columns.criticism(prompt, answer)

    found = training(base, tmp_path, critic=critic, rounds=1, budget=72).run()
    one = found.rounds[0]
    assert 11 <= one.critiques + one.refinements <= 12  # one is too few for a critique with its refinement
    assert one.counts["needy"] > one.counts["served"]
    assert asked == sorted(asked, reverse=True)
    assert one.spent == 72


def test_tables_say_what_was_measured(plain: SelfTrained, guided: SelfTrained) -> None:
    text = guided.table()
    one = guided.rounds[1]
    assert f"    2      5   0.200  {one.accepted[4] / sum(one.accepted):>8.3f}" in text
    assert "guided by criticism" in text
    both = beside(plain, guided)
    assert f"{guided.tail / plain.tail:.3f} times" in both
    with pytest.raises(HistoryError, match="Not to be compared: 2 and 1 finished rounds"):
        beside(plain, dataclasses.replace(guided, rounds=guided.rounds[:1]))
    with pytest.raises(HistoryError, match="There is no self-training in"):
        SelfTrained.read(plain.out / "nowhere")
