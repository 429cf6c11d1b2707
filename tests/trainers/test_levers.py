"""Levers on real trainers: an alarm applies and releases them, and what they do is read back from the trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

import divmon
from divmon.errors import ConfigError

pytestmark = pytest.mark.trainer
GROUP = 4


def size(text: str) -> str:
    """A format of which even an untrained model has three."""
    return "abc"[sum(map(ord, text)) % 3]


def every_one(completions: list[str], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def one_in_some(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(map(ord, text)) % 5 < 2) for text in completions]


class Story:
    """A metric whose value is written down for each step, and what the trainer logged and trained on at each step."""

    def __init__(self, breaks: Callable[[int], bool]) -> None:
        self.step, self.breaks = 0, breaks
        self.rows: dict[int, dict[str, Any]] = {}
        story = self

        class Clock(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                story.step = int(state.global_step)
                story.rows[story.step] = story.look()

        self.clock = Clock()
        self.trainer: Any = None

    def told(self, texts: list[str]) -> float:
        return float(self.breaks(self.step))

    def look(self) -> dict[str, Any]:
        trainer = self.trainer
        found = {"digest": sum(float(p.detach().double().abs().sum()) for p in trainer.model.parameters())}
        if hasattr(trainer, "_logs"):
            found["advantages"] = list(trainer._logs["advantages"])
            found["completions"] = list(trainer._logs["completion"])
            found["trained"] = torch.cat([batch["advantages"] for batch in trainer._buffered_inputs]).tolist()
            found["entropy_coef"] = list(trainer._metrics["train"].get("entropy_coef", ()))
        return found


def train(make: Any, out: Path, then: Any, *, breaks: Any = lambda step: 2 <= step < 4, **more: Any) -> Story:
    """A run whose alarm fires at step 2, resolves at step 4, and whose lever has cooled down at step 6."""
    story = Story(breaks)
    resume, stop = more.pop("resume", None), more.pop("stop", None)
    rule = {"name": "told", "metric": "told", "rule": "above", "level": 0.5, "for": 1, "clear_for": 1, "then": [then]}
    watching = divmon.DiversityCallback(
        every=1,
        k=2,
        max_new_tokens=4,
        sinks=more.pop("sinks", []),
        strict=more.pop("strict", True),
        metrics=[divmon_metric(story), "length"],
        formats=size,
        alarms=[rule],
    )
    story.trainer = make(out, callbacks=[story.clock, watching, *([stop] if stop else [])], **{"max_steps": 8, **more})
    story.trainer.train(resume_from_checkpoint=resume)
    return story


def divmon_metric(story: Story) -> Any:
    def told(texts: list[str]) -> float:
        return story.told(texts)

    return told


def changes(out: Path) -> list[tuple[int, str, float]]:
    return [(c.step, c.phase, c.strength) for c in divmon.History.read(out).mitigations]


WHOLE = [(2, "applied", 1.0), (4, "cooling", 1.0), (6, "armed", 0.0)]
ACTS = {3, 4, 5, 6}  # the steps trained while the lever acts; its batches are drawn after it was set


def shared_out(completions: list[str]) -> np.ndarray:
    """Rewards of 1 under the set-level reward, from its definition."""
    labels = [size(text) for text in completions]
    return np.array([max((GROUP - labels.count(label)) / (GROUP - 1), 0.1) for label in labels])


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_diversity_reward_is_what_the_trainer_trains_on(tiny: Any, name: str, tmp_path: Path) -> None:
    make = tiny.grpo if name == "grpo" else tiny.rloo
    scale = {"scale_rewards": "none"} if name == "grpo" else {}
    then = {"diversity_reward": {"cooling": 2}}
    story = train(make, tmp_path, then, rewards=every_one, **scale)
    assert changes(tmp_path) == WHOLE
    moved = 0
    for step, row in story.rows.items():
        advantages = np.array(row["advantages"])
        reward = shared_out(row["completions"])
        others = reward.mean() if name == "grpo" else (reward.sum() - reward) / (GROUP - 1)
        np.testing.assert_allclose(advantages, reward - others if step in ACTS else np.zeros(GROUP), atol=1e-6)
        np.testing.assert_allclose(np.sort(row["trained"]), np.sort(advantages), atol=1e-6)
        moved += bool(advantages.any())
    assert moved >= 2
    still = [story.rows[step]["digest"] for step in (1, 2)]
    assert still[0] == still[1] != story.rows[6]["digest"]  # without the lever there is nothing to learn


def test_half_of_the_weight_goes_half_of_the_way(tiny: Any, tmp_path: Path) -> None:
    then = {"diversity_reward": {"cooling": 2, "weight": 0.5}}
    story = train(tiny.grpo, tmp_path, then, rewards=every_one, scale_rewards="none")
    for step in ACTS:
        reward = 1 - 0.5 * (1 - shared_out(story.rows[step]["completions"]))
        np.testing.assert_allclose(story.rows[step]["advantages"], reward - reward.mean(), atol=1e-6)


def test_the_gate_is_what_the_trainer_trains_on(tiny: Any, tmp_path: Path) -> None:
    then = {"gate": {"cooling": 2, "k": 4, "tau": 0.1}}
    story = train(tiny.grpo, tmp_path, then, rewards=one_in_some, scale_rewards="none")
    assert changes(tmp_path) == WHOLE
    weights = []
    for step, row in story.rows.items():
        reward = np.array(one_in_some(row["completions"]))
        m = int(reward.sum())
        value = [4 * np.prod([(GROUP - n + j) / (GROUP + 1 + j) for j in (1, 2, 3)]) for n in range(GROUP + 1)]
        weight = 1.0 if m == 0 else 0.0 if value[m] < 0.1 * (GROUP + 1) else value[m] / value[1]
        expected = (reward - reward.mean()) * (weight if step in ACTS else 1.0)
        np.testing.assert_allclose(np.sort(row["trained"]), np.sort(expected), atol=1e-6)
        weights += [weight] if step in ACTS and 0 < m < GROUP else []
    assert min(weights) < 1  # the story has prompts that the gate holds back


def test_the_entropy_band_moves_the_coefficient_of_the_loss(tiny: Any, tmp_path: Path) -> None:
    then = {"entropy_band": {"cooling": 2, "calibrate": 2, "low": 5.0, "high": 6.0, "step": 0.01, "most": 0.02}}
    story = train(tiny.grpo, tmp_path / "held", then, rewards=every_one)
    assert changes(tmp_path / "held") == WHOLE
    used = {step: row["entropy_coef"] for step, row in story.rows.items()}
    assert {step: [round(c, 4) for c in found] for step, found in used.items()} == {
        1: [], 2: [], 3: [0.0], 4: [0.01], 5: [0.02], 6: [0.02], 7: [], 8: [],
    }  # fmt: skip
    assert story.rows[1]["digest"] == story.rows[3]["digest"] != story.rows[4]["digest"]  # all rewards are equal
    trainer = story.trainer
    assert (trainer.entropy_coef, trainer._entropy_bonus_enabled) == (0.0, False)


@pytest.mark.parametrize("name", ["diversity_reward", "gate", "entropy_band"])
def test_armed_and_never_applied_is_bitwise_undisturbed(tiny: Any, name: str, tmp_path: Path) -> None:
    plain = tiny.grpo(tmp_path / "plain", rewards=one_in_some)
    plain.train()
    story = train(tiny.grpo, tmp_path / "armed", name, breaks=lambda step: False, rewards=one_in_some, max_steps=6)
    assert tiny.digest(story.trainer.model) == tiny.digest(plain.model)
    assert tiny.rows(story.trainer) == tiny.rows(plain)
    assert changes(tmp_path / "armed") == []
    methods = ("_calculate_rewards", "_generate_and_score_completions")
    assert not set(methods) & set(story.trainer.__dict__)  # and the trainer is as it was found


@pytest.mark.parametrize(
    ("name", "then", "more", "message"),
    [
        ("sft", "diversity_reward", {}, "needs groups of completions with rewards"),
        ("dpo", "gate", {}, "needs groups of completions with rewards"),
        ("rloo", "entropy_band", {}, "RLOOTrainer of this TRL has no entropy bonus"),
        ("grpo", "entropy_band", {"use_adaptive_entropy": True}, "use_adaptive_entropy=True lets TRL set"),
        (
            "grpo",
            "diversity_reward",
            {"multi_objective_aggregation": "normalize_then_sum", "rewards": [every_one, one_in_some]},
            "Use 'sum_then_normalize'",
        ),
    ],
)
def test_refused_where_it_would_do_nothing(
    tiny: Any, name: str, then: str, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train({**tiny.TRAINERS, **tiny.MORE_TRAINERS}[name], tmp_path, then, **more)


class Deaf(GRPOTrainer):
    """A trainer of some later version, which makes its advantages from something else."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        output["advantages"] = torch.zeros_like(output["advantages"])
        self._logs["advantages"].extend(output["advantages"].tolist())
        return output


def test_a_lever_seen_to_have_no_effect_is_taken_off_and_says_so(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny.grpo, tmp_path, "diversity_reward", breaks=lambda step: step >= 2, rewards=every_one, kind=Deaf)
    found = divmon.History.read(tmp_path).mitigations
    assert [change.phase for change in found] == ["applied", "refused"]
    assert "had no effect on this trainer" in caplog.text
    assert found[-1].strength == 0.0


def test_a_lever_that_fails_leaves_rewards_alone_and_is_counted(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("divmon.levers.diversity.clusters", lambda *_, **__: 1 / 0)
    out: list[Any] = []
    story = train(tiny.grpo, tmp_path, "diversity_reward", rewards=every_one, strict=False, sinks=[out.append])
    assert not any(any(row["advantages"]) for row in story.rows.values())
    assert out[-1].health["mitigation_failures"] > 0


@pytest.mark.parametrize(
    ("then", "reward", "why"),
    [
        ({"diversity_reward": {"by": "text"}}, 0.4, "no reward reaches correct_at=0.5"),
        ({"diversity_reward": {"by": "answer"}}, 1.0, "every group is alike to it"),
        ("gate", 0.4, "no reward reaches correct_at=0.5"),
    ],
)
def test_a_lever_that_changes_nothing_says_why(
    tiny: Any, then: Any, reward: float, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("divmon.levers.groups.PATIENCE", 3)
    monkeypatch.setattr("divmon.mitigations.diversity.extract_answer", lambda text: "4")

    def always(completions: list[str], **_: Any) -> list[float]:
        return [reward] * len(completions)

    train(tiny.grpo, tmp_path, then, breaks=lambda step: step >= 2, rewards=always)
    name = then if isinstance(then, str) else next(iter(then))
    said = f"divmon: {name} has acted on 3 batches and changed nothing: {why}"
    assert [record.message for record in caplog.records].count(said) == 1


def test_a_resumed_run_goes_on_with_its_levers(tiny: Any, tmp_path: Path) -> None:
    then = {"entropy_band": {"cooling": 2, "calibrate": 2, "low": 5.0, "high": 6.0, "step": 0.01, "most": 0.05}}
    whole = train(tiny.grpo, tmp_path / "whole", then, rewards=every_one)
    parts = tmp_path / "parts"

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step >= 4

    saving = {"save_strategy": "steps", "save_steps": 4, "rewards": every_one}
    train(tiny.grpo, parts, then, stop=Stop(), **saving)
    kept = json.loads((parts / "checkpoint-4" / "trainer_state.json").read_text())["stateful_callbacks"]["divmon"]
    assert kept["book"]["levers"]["entropy_band"]["phase"] == "cooling"
    assert kept["levers"]["entropy_band"]["coefficient"] == pytest.approx(0.02)
    story = train(tiny.grpo, parts, then, resume=str(parts / "checkpoint-4"), **saving)
    assert changes(parts) == changes(tmp_path / "whole") == WHOLE
    for step in (5, 6, 7, 8):
        assert story.rows[step]["entropy_coef"] == whole.rows[step]["entropy_coef"]


def test_trackers_see_where_levers_stand(tiny: Any, tmp_path: Path) -> None:
    seen: list[Any] = []
    train(tiny.grpo, tmp_path, {"gate": {"cooling": 2}}, rewards=one_in_some, sinks=[seen.append])
    assert [o.mitigations["gate"] for o in seen] == [0, 0, 1, 1, 2, 2, 0, 0, 0]
    assert [change.phase for o in seen for change in o.changes] == ["applied", "cooling", "armed"]
