"""Confirmations in real training: drawn from the live policy, undisturbed, recomputable from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import divmon
from divmon.alarms import restore_rules
from divmon.monitor import recheck
from divmon.samplers.generate import GenerateSampler

pytestmark = pytest.mark.trainer
MOVED = {
    "name": "moved",
    "metric": "token_entropy",
    "rule": "outside",
    "by": "0.2%",
    "tolerate": "0%",
    "severity": "critical",
}
LONG = {"name": "long", "metric": "length", "rule": "drop", "by": 1e-6, "tolerate": 0, "severity": "critical"}
BASE: dict[str, Any] = {"every": 2, "k": 3, "max_new_tokens": 6, "sinks": [], "strict": True, "alarms": [MOVED, LONG]}


def test_a_policy_that_moves_is_confirmed_and_recomputable(tiny: Any, tmp_path: Path) -> None:
    tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**BASE)]).train()
    history = divmon.History.read(tmp_path)
    verdicts = [v for e in history.evaluations for v in e.verdicts]
    assert "confirmed" in {v.outcome for v in verdicts}
    assert [e.alarm for e in history.fired()]
    assert divmon.replay(history, restore_rules(history.info["rules"])) == list(history.events())
    bank = history.kept("bank")
    assert {len(row) for row in bank.texts} == {12}
    evaluated = history.batch(0)
    assert bank.decoding
    assert evaluated.decoding
    assert bank.decoding.key != evaluated.decoding.key
    pairs = recheck(history)
    assert [repr(a) for a, _ in pairs] == [repr(b) for _, b in pairs]
    assert len(pairs) == sum(v.p == v.p for v in verdicts) > 0
    health = history.evaluations[-1].health
    assert health["confirmations"] == sum(v.attempt > 0 for v in verdicts)


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_drawing_confirmations_leaves_training_bitwise_as_it_was(tiny: Any, name: str, tmp_path: Path) -> None:
    plain = tiny.TRAINERS[name](tmp_path / "plain")
    plain.train()
    watched = tiny.TRAINERS[name](tmp_path / "watched", callbacks=[divmon.DiversityCallback(**BASE)])
    watched.train()
    assert tiny.digest(watched.model) == tiny.digest(plain.model)
    assert tiny.rows(watched) == tiny.rows(plain)
    history = divmon.History.read(tmp_path / "watched")
    assert any(v.attempt for e in history.evaluations for v in e.verdicts)


def test_a_sampler_that_breaks_during_a_confirmation(tiny: Any, tmp_path: Path, monkeypatch: Any) -> None:
    draw = GenerateSampler.__call__

    def broken(self: GenerateSampler, probes: Any, *, step: int) -> Any:
        if step and self.k > 3:
            raise RuntimeError("out of luck")
        return draw(self, probes, step=step)

    monkeypatch.setattr(GenerateSampler, "__call__", broken)
    trainer = tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**{**BASE, "strict": False})])
    trainer.train()
    assert trainer.state.global_step == 6
    history = divmon.History.read(tmp_path)
    asked = [v for e in history.evaluations for v in e.verdicts]
    assert asked
    assert {(v.outcome, v.attempt > 0) for v in asked} == {("unknown", True)}
    assert "could not be drawn" in str(asked[0].reason)
    assert history.evaluations[-1].health["sampler_failures"] == len(asked)
    assert not history.fired()


def test_a_resumed_run_confirms_what_the_uninterrupted_one_confirms(tiny: Any, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step >= 3

    def run(out: Path, *more: Any, resume: str | None = None, **settings: Any) -> divmon.History:
        callbacks = [divmon.DiversityCallback(**BASE), *more]
        tiny.sft(out, callbacks=callbacks, **settings).train(resume_from_checkpoint=resume)
        return divmon.History.read(out)

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", Stop(), save_strategy="steps", save_steps=3)
    parts = run(tmp_path / "parts", resume=str(tmp_path / "parts" / "checkpoint-3"))
    for step in (0, 2):
        one, two = (next(e for e in h.evaluations if e.step == step) for h in (whole, parts))
        assert [repr(v) for v in one.verdicts] == [repr(v) for v in two.verdicts]
    spent = [(v.key, v.attempt) for e in (*parts.evaluations, *parts.superseded) for v in e.verdicts if v.attempt]
    assert len(set(spent)) == len(spent)


def test_two_completions_a_prompt_start_a_run_all_the_same(tiny: Any, tmp_path: Path, capsys: Any) -> None:
    settings = {**BASE, "k": 2, "sinks": ["console"], "strict": False}
    trainer = tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**settings)])
    trainer.train()
    assert trainer.state.global_step == 6
    assert "not foretold: A pilot needs at least 3" in capsys.readouterr().out


def test_what_alarms_will_find_is_not_worked_out_for_long(
    tiny: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr("divmon.opening.FORETELL", 0.0)
    tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**{**BASE, "sinks": ["console"]})]).train()
    assert "not foretold: it would take" in capsys.readouterr().out


def test_a_resume_that_measures_otherwise_pays_nothing_back(tiny: Any, tmp_path: Path) -> None:
    def run(k: int, resume: str | None = None) -> list[bytes]:
        callback = divmon.DiversityCallback(**{**BASE, "k": k})
        trainer = tiny.sft(tmp_path, callbacks=[callback], save_strategy="steps", save_steps=3)
        trainer.train(resume_from_checkpoint=resume)
        return (tmp_path / "divmon" / "confirmations" / "spent.jsonl").read_bytes().splitlines()

    before = run(3)
    after = run(4, str(tmp_path / "checkpoint-3"))
    assert divmon.History.read(tmp_path).evaluations[0].step > 0
    assert before
    assert after[: len(before)] == before
