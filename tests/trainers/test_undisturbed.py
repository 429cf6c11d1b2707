"""Law 1: with divmon on, losses and final weights are bitwise those of the run without it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import divmon
from divmon import callback
from divmon.records import Decoding
from divmon.samplers import generate

pytestmark = pytest.mark.trainer


def run(make: Any, out: Path, **settings: Any) -> tuple[Any, Any]:
    watching = divmon.DiversityCallback(**settings) if settings else None
    trainer = make(out, callbacks=[watching] if watching else [])
    trainer.train()
    return trainer, watching


WATCHED: dict[str, Any] = {"every": 1, "k": 3, "max_new_tokens": 8, "sinks": [], "strict": True}


@pytest.mark.parametrize("name", ["trainer", "sft", "dpo", "grpo"])
def test_losses_and_weights_are_bitwise_equal(tiny: Any, name: str, tmp_path: Path) -> None:
    make = tiny.TRAINERS[name]
    plain, _ = run(make, tmp_path / "plain")
    watched, _ = run(make, tmp_path / "watched", **WATCHED)
    assert tiny.rows(watched) == tiny.rows(plain)
    assert tiny.digest(watched.model) == tiny.digest(plain.model)
    assert len(divmon.History.read(tmp_path / "watched").evaluations) == 7


@pytest.mark.parametrize("name", ["trainer", "sft", "dpo", "grpo"])
def test_the_test_sees_a_missing_guard(tiny: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def unguarded(*_: Any) -> Iterator[None]:
        with torch.no_grad():
            yield

    make = tiny.TRAINERS[name]
    plain, _ = run(make, tmp_path / "plain")
    monkeypatch.setattr(generate, "undisturbed", unguarded)
    monkeypatch.setattr(callback, "same_streams", contextlib.nullcontext)
    monkeypatch.setattr("divmon.callback.same_streams", contextlib.nullcontext)
    watched, _ = run(make, tmp_path / "watched", **WATCHED)
    assert tiny.digest(watched.model) != tiny.digest(plain.model)


def test_rewards_and_quality_that_use_randomness_do_not_disturb(tiny: Any, tmp_path: Path) -> None:
    def noisy(completions: list[str], **_: Any) -> list[float]:
        return [-len(t) / 10 + 0 * (random.random() + np.random.rand() + float(torch.rand(()))) for t in completions]

    def make(out: Path, **more: Any) -> Any:
        trainer = tiny.grpo(out, **more)
        trainer.reward_funcs = [noisy]
        return trainer

    plain, _ = run(make, tmp_path / "plain")
    watched, _ = run(make, tmp_path / "watched", **WATCHED, quality="rewards", correct_at=-1.0)
    assert tiny.digest(watched.model) == tiny.digest(plain.model)
    series = divmon.History.read(tmp_path / "watched").series("mean_quality", "train")
    assert np.isfinite(series.values).all()


def test_everything_is_left_as_found_also_when_sampling_raises(tiny: Any) -> None:
    model, tokenizer = tiny.gpt2(), tiny.tokenizer()
    model.train()
    model.transformer.h[0].eval()  # a frozen sub-module
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    config, side = model.generation_config, tokenizer.padding_side
    sampler = generate.GenerateSampler(model, tokenizer, 2, Decoding(max_new_tokens=4))
    probes = divmon.ProbeSet.of(["1+1=", "2+2=2+2="])

    def state() -> Any:
        return (
            random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
            [m.training for m in model.modules()], model.is_gradient_checkpointing, model.config.use_cache,
            len(model.get_input_embeddings()._forward_hooks), tokenizer.padding_side,
        )  # fmt: skip

    before = state()
    sampler(probes, step=0)
    assert state() == before
    model.forward = lambda **_: (_ for _ in ()).throw(RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        sampler(probes, step=0)
    assert state() == before
    assert model.generation_config is config
    assert tokenizer.padding_side == side
