"""Rollback on real trainers: what comes back, bit for bit, and how training goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.trainer_utils import get_last_checkpoint
from trl import BEMACallback

import divmon
from divmon.alarms import restore_rules
from divmon.errors import ConfigError

pytestmark = pytest.mark.trainer
SAVING = {"save_strategy": "steps", "save_steps": 2}


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", modules_to_save=["lm_head"])


def same(a: Any, b: Any) -> bool:
    """Equal, and tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def without_rates(state: dict[str, Any]) -> dict[str, Any]:
    """Optimizer or scheduler without what a lower learning rate changes."""
    rates = ("lr", "initial_lr", "base_lrs", "_last_lr")
    groups = [{k: v for k, v in group.items() if k not in rates} for group in state.get("param_groups", [])]
    return {**{k: v for k, v in state.items() if k not in rates}, "param_groups": groups}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "trainer": ("trainer", {}),
    "sft": ("sft", {"gradient_accumulation_steps": 2}),
    "sft-adapter": ("sft", {"peft": lora}),
    "dpo": ("dpo", {}),
    "kto": ("kto", {}),
    "grpo": ("grpo", {"steps_per_generation": 4, "gradient_accumulation_steps": 1}),
    "rloo": ("rloo", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_alarm_takes_everything_back_and_training_goes_on_at_half_the_rate(tiny: Any, told: Any, case: str) -> None:
    name, more = CASES[case]
    more = {key: value() if callable(value) else value for key, value in more.items()}
    run = told({**tiny.TRAINERS, **tiny.MORE_TRAINERS}[name], **more)
    assert run.changes == [(4, "applied", 0.5)]
    healthy, back, later = run.seen[2], run.seen[4], run.seen[5]
    assert back["digest"] == healthy["digest"] != run.seen[3]["digest"]
    assert same(back["optimizer"]["state"], healthy["optimizer"]["state"])
    assert healthy["optimizer"]["state"]  # Adam has moments by then
    assert same(without_rates(back["optimizer"]), without_rates(healthy["optimizer"]))
    assert same(without_rates(back["scheduler"]), without_rates(healthy["scheduler"]))
    halved = [rate / 2 for rate in healthy["scheduler"]["base_lrs"]]
    assert back["scheduler"]["base_lrs"] == halved
    assert back["buffered"] in (None, "none")  # what was drawn by the weights that are gone
    # the step after the checkpoint again, at half its rate, and so on
    assert [run.rate(step) for step in (5, 6, 7)] == [run.rate(3) / 2, pytest.approx(run.rate(4) / 2), run.rate(7)]
    assert later["digest"] not in (healthy["digest"], run.seen[3]["digest"])
    assert run.trainer.state.global_step == 8
    assert run.kept == [f"step-0000000{step}.{kind}" for step in (6, 8) for kind in ("json", "pt")]
    history = run.history
    assert [(e.step, e.restored) for e in history.evaluations] == [(0, None), (2, None), (4, None), (6, 2), (8, None)]
    assert [(e.step, e.state) for e in history.events()] == [(4, "firing"), (6, "resolved")]
    assert divmon.replay(history, restore_rules(history.info["rules"])) == list(history.events())


def test_the_next_update_is_half_as_long(tiny: Any, told: Any) -> None:
    """Plain gradient descent at a constant rate: the same weights, rows and dropout, so the same gradient."""
    moves = []
    for factor in (1.0, 0.5):
        then = [{"rollback": {"factor": factor}}]
        more = {"optim": "sgd", "lr_scheduler_type": "constant", "max_steps": 5}
        run = told(tiny.sft, f"x{factor}", then=then, **more)
        before, after = run.seen[4]["weights"], run.seen[5]["weights"]
        moves.append(torch.cat([(after[name] - before[name]).double().flatten() for name in before]))
    full, half = moves
    assert full.norm() > 1e-3
    torch.testing.assert_close(half, full / 2, rtol=1e-3, atol=1e-7)


def test_twice_at_most_and_the_rate_is_counted_from_the_checkpoint(tiny: Any, told: Any) -> None:
    """At 4 back to 2; at 6 it fires again, too soon; at 8 back to 2 once more; at 12 it has had its two."""
    constant = {"lr_scheduler_type": "constant", "max_steps": 14, "learning_rate": 0.004}
    run = told(tiny.sft, breaks=[4, 6, 8, 12], **constant)
    assert run.changes == [(4, "applied", 0.5), (6, "cooling", 0.5), (8, "applied", 0.25), (12, "refused", 0.25)]
    assert run.seen[8]["digest"] == run.seen[4]["digest"] == run.seen[2]["digest"] != run.seen[12]["digest"]
    assert [run.rate(step) for step in (4, 5, 8, 9, 14)] == [0.004, 0.002, 0.002, 0.001, 0.001]
    assert run.history.mitigations[-1].reason == "It has gone back 2 times, which is the most."
    levels = {o.step: o.mitigations["rollback"] for o in run.observed}
    assert levels == {0: 0, 2: 0, 4: 2, 6: 2, 8: 2, 10: 2, 12: 0, 14: 0}
    assert [c.phase for o in run.observed for c in o.changes] == ["applied", "cooling", "applied", "refused"]
    assert divmon.replay(run.history, restore_rules(run.history.info["rules"])) == list(run.history.events())


def test_the_third_time_it_may_stop(tiny: Any, told: Any) -> None:
    then = [{"rollback": {"cooling": 0, "most": 1, "after": "stop"}}]
    run = told(tiny.sft, breaks=[2, 6], then=then)
    assert run.changes == [(2, "applied", 0.5), (6, "refused", 0.5)]
    assert run.seen[2]["digest"] == run.seen[0]["began"]  # the baseline is healthy, and its optimizer is empty
    assert run.seen[2]["optimizer"]["state"] == {}
    assert run.trainer.state.global_step == 6
    assert (run.out / "checkpoint-6").is_dir()


def test_finish_ends_on_the_healthy_policy(tiny: Any, told: Any) -> None:
    run = told(tiny.grpo, then=[{"rollback": {"finish": True}}])
    assert run.trainer.state.global_step == 4
    assert tiny.digest(run.trainer.model) == run.seen[2]["digest"]
    saved = type(run.trainer.model).from_pretrained(run.out / "checkpoint-4")
    assert same(dict(saved.named_parameters()), dict(run.trainer.model.named_parameters()))
    assert run.rate(4) == pytest.approx(run.rate(3) * 5 / 6)  # the rate is left alone


def test_at_the_end_only_finish_goes_back(tiny: Any, told: Any) -> None:
    for finish, back in ((True, 4), (False, 5)):
        run = told(tiny.sft, f"{finish}", breaks=[5], max_steps=5, then=[{"rollback": {"finish": finish}}])
        assert tiny.digest(run.trainer.model) == run.seen[back]["digest"]
        assert run.changes == [(5, "applied" if finish else "refused", 0.5 if finish else 1.0)]


def test_asked_inside_an_evaluation_it_waits_for_the_next_step(tiny: Any, told: Any) -> None:
    """The trainer's numbers, and the checkpoint it may choose by them, are of the weights it has evaluated."""
    run = told(tiny.sft, breaks=[3], eval_strategy="steps", eval_steps=3, max_steps=6)
    assert run.changes == [(3, "applied", 0.5)]
    assert run.seen[3]["digest"] != run.seen[2]["digest"]
    began = run.history.evaluations
    assert [(e.step, e.restored) for e in began][:4] == [(0, None), (2, None), (3, None), (4, 2)]
    assert run.rate(4) == run.rate(3) / 2
    assert run.observed[3].changes[0].phase == "applied"  # sinks hear of it with the next evaluation


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_armed_and_never_asked_is_bitwise_undisturbed(tiny: Any, told: Any, name: str, tmp_path: Path) -> None:
    plain = tiny.TRAINERS[name](tmp_path / "plain", max_steps=8)
    plain.train()
    more = {**SAVING, "save_total_limit": 1}
    run = told(tiny.TRAINERS[name], breaks=[], then=[{"rollback": {"keep": 3}}], **more)
    assert tiny.digest(run.trainer.model) == tiny.digest(plain.model)
    assert tiny.rows(run.trainer) == tiny.rows(plain)
    # neither is in the other's way
    assert run.kept == [f"step-0000000{step}.{kind}" for step in (4, 6, 8) for kind in ("json", "pt")]
    assert [path.name for path in run.out.glob("checkpoint-*")] == ["checkpoint-8"]
    assert get_last_checkpoint(str(run.out)) == str(run.out / "checkpoint-8")


def test_a_resumed_run_goes_on_with_its_checkpoints_its_count_and_its_rate(tiny: Any, told: Any) -> None:
    whole = told(tiny.sft, "whole", breaks=[4, 8], max_steps=10, **SAVING)
    assert whole.changes == [(4, "applied", 0.5), (8, "applied", 0.25)]
    parts = told(tiny.sft, "parts", breaks=[4], max_steps=10, **SAVING)
    for step in (6, 4):  # later, and right after the rollback, before any evaluation has recorded it
        kept = json.loads((parts.out / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert kept["stateful_callbacks"]["divmon"]["rollback"]["count"] == 1
        again = told(
            tiny.sft, "parts", breaks=[8], max_steps=10, resume=str(parts.out / f"checkpoint-{step}"), **SAVING
        )
        assert again.changes == whole.changes
        assert tiny.digest(again.trainer.model) == tiny.digest(whole.trainer.model)
        assert again.trainer.lr_scheduler.base_lrs == whole.trainer.lr_scheduler.base_lrs == [5e-3 / 4] * 2
        assert list(again.history.events()) == list(whole.history.events())
        rules = restore_rules(again.history.info["rules"])
        assert divmon.replay(again.history, rules) == list(again.history.events())


def test_a_rate_that_the_checkpoint_does_not_hold_is_lowered_again(tiny: Any, told: Any, caplog: Any) -> None:
    constant = {"lr_scheduler_type": "constant", "save_only_model": True, **SAVING}
    told(tiny.sft, **constant, max_steps=6)
    again = told(tiny.sft, breaks=[], resume=True, **constant)
    assert [again.rate(step) for step in (7, 8)] == [2.5e-3, 2.5e-3]
    assert "lowered again" in caplog.text


@pytest.mark.parametrize(
    ("more", "then", "message"),
    [
        ({"extra": [BEMACallback()]}, "rollback", "would leave the copy of the policy that BEMACallback keeps"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, **SAVING},
            {"rollback": {"finish": True}},
            "loads another checkpoint at the end",
        ),
    ],
)
def test_refused_where_it_could_not_keep_its_word(
    tiny: Any, told: Any, more: dict[str, Any], then: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        told(tiny.sft, then=[then], **more)


@pytest.mark.parametrize("name", ["deepspeed", "fsdp"])
def test_sharded_training_is_refused(tiny: Any, name: str, tmp_path: Path) -> None:
    from divmon.levers.rollback import Rollback
    from divmon.mitigations import RollbackSettings

    trainer = tiny.trainer(tmp_path)
    setattr(trainer, f"is_{name}_enabled", True)
    with pytest.raises(ConfigError, match=f"{name} shards them over ranks"):
        Rollback.check(trainer, RollbackSettings())
