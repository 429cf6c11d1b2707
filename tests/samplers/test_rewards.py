"""The trainer's rewards on probe completions: called as TRL calls them, added up as TRL adds them up."""

from __future__ import annotations

import functools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

import divmon
from divmon.compat import reward_functions
from divmon.errors import ConfigError, SamplingError
from divmon.records import SampleBatch
from divmon.samplers.rewards import TrainerRewards

ROWS = [
    {
        "prompt": f"{n}+1=",
        "answer": str(n + 1),
        "weight": n / 2,
        "id": f"row {n}",
        "reference": "by hand",
        "domain": "sums",
    }
    for n in range(4)
]


def chat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]


def batch_of(rows: list[dict[str, Any]]) -> SampleBatch:
    probes = divmon.ProbeSet.from_rows(Dataset.from_list(rows), domain="prompts", limit=32)
    texts = tuple((f"{i}", f"{i + 1}", "") for i in range(len(probes)))
    ids = tuple(tuple(tuple(range(5, 5 + len(t))) for t in row) for row in texts)
    return SampleBatch(7, probes.probes, texts, token_ids=ids)


@pytest.fixture
def make(tiny: Any, tmp_path: Path) -> Any:
    """A real GRPO trainer with the given reward functions."""

    def grpo(*functions: Any, weights: Any = None) -> Any:
        trainer = tiny.grpo(tmp_path, reward_weights=weights and list(weights[:1]))
        trainer.reward_funcs = list(functions)
        trainer.reward_weights = torch.tensor(weights or [1.0] * len(functions))
        return trainer

    return grpo


class Recorder:
    """A reward function that keeps what it was called with."""

    __name__ = "recorder"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **more: Any) -> list[float]:
        known = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        self.calls.append({**known, **more})
        return [float(len(str(c))) for c in completions]


@pytest.mark.parametrize("conversational", [False, True])
def test_arguments_are_those_of_trl(conversational: bool, make: Any) -> None:
    rows = chat(ROWS) if conversational else ROWS
    batch, ours, theirs = batch_of(rows), Recorder(), Recorder()
    TrainerRewards(make(ours))(batch)

    trainer = make(theirs)  # TRL's own call, on the same completions
    trainer.reward_func_names, trainer.reward_processing_classes = ["recorder"], [None]
    inputs = [row for row in rows for _ in range(3)]
    texts = [text for row in batch.texts for text in row]
    completions = [[{"role": "assistant", "content": t}] for t in texts] if conversational else texts
    ids = [list(tokens) for row in batch.token_ids or () for tokens in row]
    trainer._calculate_rewards(inputs, [row["prompt"] for row in inputs], completions, ids)

    [mine], [its] = ours.calls, theirs.calls
    assert mine.keys() == its.keys()
    for name in mine.keys() - {"trainer_state", "log_extra", "log_metric"}:
        assert mine[name] == its[name], name
    assert mine["trainer_state"].global_step == its["trainer_state"].global_step
    assert mine["log_extra"]("column", [1]) is None
    assert mine["log_metric"]("name", 1.0) is None
    assert not trainer._pending_metrics


def test_rewards_are_weighted_sums_over_those_that_do_not_abstain(make: Any) -> None:
    def right(completions: Any, answer: Any, **_: Any) -> list[float | None]:
        return [None if not c else float(c == a) for c, a in zip(completions, answer, strict=True)]

    def heavy(completions: Any, weight: Any, **_: Any) -> torch.Tensor:
        return torch.tensor([math.nan if not c else w for c, w in zip(completions, weight, strict=True)])

    batch = batch_of(ROWS)
    rated = TrainerRewards(make(right, heavy, weights=[2.0, -0.5]))(batch)
    expected = [[0 - n / 4, 2 - n / 4, math.nan] for n in range(4)]
    np.testing.assert_allclose(rated.rewards, expected)
    assert batch.rewards is None
    assert (rated.texts, rated.token_ids, rated.step) == (batch.texts, batch.token_ids, 7)
    one_abstains = TrainerRewards(make(lambda completions, **_: [math.nan] * len(completions), heavy))(batch)
    other_order = TrainerRewards(make(heavy, lambda completions, **_: [math.nan] * len(completions)))(batch)
    np.testing.assert_array_equal(one_abstains.rewards, other_order.rewards)
    np.testing.assert_allclose(np.array(one_abstains.rewards)[:, :2], [[n / 2] * 2 for n in range(4)])


def test_probes_without_the_columns_get_none(make: Any) -> None:
    rows = [ROWS[0], {"prompt": "plain"}]
    probes = divmon.ProbeSet.of(rows)
    recorder = Recorder()
    TrainerRewards(make(recorder))(SampleBatch(0, probes.probes, (("a",), ("b",))))
    assert recorder.calls[0]["answer"] == ["1", None]
    assert recorder.calls[0]["completion_ids"] == [[], []]


def test_a_wrong_number_of_rewards_is_an_error(make: Any) -> None:
    for count in (2, 99):
        rewards = TrainerRewards(make(lambda count=count, **_: [0.0] * count))
        with pytest.raises(SamplingError, match=f"gave {count} rewards for 12 completions"):
            rewards(batch_of(ROWS))


def test_training_is_left_as_found_also_when_a_reward_raises(make: Any) -> None:
    def noisy(completions: Any, **_: Any) -> list[float]:
        random.random(), np.random.rand(), torch.rand(())
        raise ValueError("no")

    trainer = make(noisy)
    trainer.model.train()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with pytest.raises(ValueError, match="no"):
        TrainerRewards(trainer)(batch_of(ROWS))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert trainer.model.training


async def slow(completions: Any, **_: Any) -> list[float]:
    return [0.0] * len(completions)


class Slow:
    async def __call__(self, completions: Any, **_: Any) -> list[float]:
        return [0.0] * len(completions)


@pytest.mark.parametrize("reward", [slow, Slow(), functools.partial(slow, extra=1), torch.nn.Linear(1, 1)])
def test_models_and_asynchronous_rewards_are_refused_at_once(reward: Any, make: Any) -> None:
    with pytest.raises(ConfigError, match="quality=your_function"):
        TrainerRewards(make(len, reward))


def test_trainers_without_rewards_have_none(tiny: Any, tmp_path: Path) -> None:
    assert reward_functions(tiny.sft(tmp_path)) == []
