"""What a firing alarm does to a real run, and that live alarms equal replayed ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import divmon
from divmon.alarms import restore_rules

pytestmark = pytest.mark.trainer
BASE: dict[str, Any] = {"every": 2, "k": 3, "max_new_tokens": 6, "sinks": [], "strict": True}


def rule(*then: str, level: float = 0.5) -> dict[str, Any]:
    return {"name": "long", "metric": "length", "rule": "above", "level": level, "for": 2, "then": list(then)}


@pytest.mark.parametrize("name", ["trainer", "sft", "dpo", "grpo"])
def test_stop_saves_a_checkpoint_first_and_ends_the_run(tiny: Any, name: str, tmp_path: Path) -> None:
    trainer = tiny.TRAINERS[name](tmp_path, callbacks=[divmon.DiversityCallback(**BASE, alarms=[rule("stop")])])
    trainer.train()
    assert trainer.state.global_step == 2  # pending at 0, firing at 2
    assert (tmp_path / "checkpoint-2").is_dir()


def test_a_stop_at_the_baseline_ends_the_run_at_the_first_step_with_a_checkpoint(tiny: Any, tmp_path: Path) -> None:
    alarms = [{**rule("stop"), "for": 1}]
    trainer = tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**BASE, alarms=alarms)])
    trainer.train()
    assert trainer.state.global_step == 1
    assert (tmp_path / "checkpoint-1").is_dir()


def test_save_saves_and_training_goes_on(tiny: Any, tmp_path: Path) -> None:
    trainer = tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**BASE, alarms=[rule("save")])])
    trainer.train()
    assert trainer.state.global_step == 6
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_warn_changes_nothing(tiny: Any, tmp_path: Path) -> None:
    trainer = tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**BASE, alarms=[rule("warn")])])
    trainer.train()
    assert trainer.state.global_step == 6
    assert not list(tmp_path.glob("checkpoint-*"))


def test_live_events_equal_replayed_ones(tiny: Any, tmp_path: Path) -> None:
    rules = [rule("warn"), {"name": "moved", "metric": "token_entropy", "rule": "outside", "by": "0.001%", "for": 1}]
    tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**BASE, alarms=rules)]).train()
    history = divmon.History.read(tmp_path)
    live = list(history.events())
    assert {event.alarm for event in live} == {"long", "moved"}
    assert divmon.replay(history, restore_rules(history.info["rules"])) == live


def test_a_resumed_run_continues_its_history(tiny: Any, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    tiny.sft(whole, callbacks=[divmon.DiversityCallback(**BASE, alarms=[rule("warn")])]).train()
    parts = tmp_path / "parts"
    callback = divmon.DiversityCallback(**BASE, alarms=[rule("warn")])
    first = tiny.sft(parts, callbacks=[callback], save_strategy="steps", save_steps=3)
    first.add_callback(stop_at(3))
    first.train()
    tiny.sft(parts, callbacks=[divmon.DiversityCallback(**BASE, alarms=[rule("warn")])]).train(
        resume_from_checkpoint=str(parts / "checkpoint-3")
    )
    one, two = divmon.History.read(whole), divmon.History.read(parts)
    assert [e.step for e in two.evaluations if e.step % 2 == 0] == [0, 2, 4, 6]
    assert list(one.events()) == list(two.events())
    for metric in ("tfidf_distance", "token_entropy"):
        here, there = one.series(metric, "train"), two.series(metric, "train")
        at = [i for i, step in enumerate(there.steps) if step % 2 == 0]
        assert there.values[at].tolist() == here.values.tolist()


def stop_at(step: int) -> Any:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step >= step

    return Stop()
