"""The learning rate after a rollback, for the kinds of schedulers there are; and the gradient scaler of fp16."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as kinds

from divmon.levers.rollback import Rollback, capture, changing, forget_rollouts, rates, slow_down
from divmon.mitigations import RollbackSettings


def linear(step: int) -> float:
    return max(0.0, 1 - step / 20)


def chained(optimizer: Any) -> Any:
    parts = [kinds.LinearLR(optimizer, 0.1, 1.0, 3), kinds.CosineAnnealingLR(optimizer, 12)]
    return kinds.SequentialLR(optimizer, parts, [3])


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda optimizer: kinds.LambdaLR(optimizer, linear),
    "step": lambda optimizer: kinds.StepLR(optimizer, 4),
    "cosine": lambda optimizer: kinds.CosineAnnealingLR(optimizer, 12),
    "one-cycle": lambda optimizer: kinds.OneCycleLR(optimizer, 0.1, total_steps=16),
    "sequential": chained,
    "wrapped": lambda optimizer: SimpleNamespace(scheduler=kinds.LambdaLR(optimizer, linear)),
}


def trainer(schedule: Callable[[Any], Any]) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    found = SimpleNamespace(model=model, optimizer=optimizer, lr_scheduler=schedule(optimizer))
    found.accelerator = SimpleNamespace(scaler=scaler)
    return found


def walk(made: Any, steps: int) -> list[float]:
    """The rates at which the next steps are taken."""
    seen = []
    scheduler = getattr(made.lr_scheduler, "scheduler", made.lr_scheduler)
    for _ in range(steps):
        seen.append(float(made.optimizer.param_groups[0]["lr"]))
        made.optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_later_step_is_taken_at_a_part_of_its_rate(name: str) -> None:
    plain, slowed = trainer(SCHEDULES[name]), trainer(SCHEDULES[name])
    assert walk(plain, 5) == walk(slowed, 5)
    slow_down(slowed, 0.25)
    expected = [rate / 4 for rate in walk(plain, 9)]
    assert walk(slowed, 9) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if name == "lambda":
        assert rates(slowed) == [0.025]


def test_a_plateau_is_lowered_too() -> None:
    made = trainer(lambda optimizer: kinds.ReduceLROnPlateau(optimizer, patience=0))
    slow_down(made, 0.5)
    made.lr_scheduler.step(1.0)
    assert made.optimizer.param_groups[0]["lr"] == 0.05
    assert rates(made) == []


def test_the_gradient_scaler_and_buffers_come_back(tmp_path: Any) -> None:
    made = trainer(SCHEDULES["lambda"])
    made.args = SimpleNamespace(should_save=True)
    made.model.register_buffer("mean", torch.ones(2))
    made.model.register_buffer("cache", torch.ones(2), persistent=False)
    made.model.bias.requires_grad_(False)
    made._buffered_inputs, made._last_loaded_step = ["drawn by weights that are gone"], 7
    assert set(changing(made.model)) == {"weight", "mean"}
    alone = SimpleNamespace(gather=lambda item: [item], broadcast=lambda item: item)
    lever = Rollback(made, RollbackSettings(), tmp_path, ranks=alone, health=None)  # type: ignore[arg-type]
    kept = {name: value.clone() for name, value in capture(made)["weights"].items()}
    assert lever._keep(3) == []
    with torch.no_grad():
        for tensor in (made.model.weight, made.model.mean, made.model.cache):
            tensor.add_(1)
    made.accelerator.scaler.load_state_dict(
        {**made.accelerator.scaler.state_dict(), "scale": 1.0, "_growth_tracker": 9}
    )
    [event] = lever.carry_out(5)
    assert event.phase == "applied"
    assert all(torch.equal(value, kept[name]) for name, value in changing(made.model).items())
    assert made.model.cache.tolist() == [2.0, 2.0]  # no part of the state
    assert made.accelerator.scaler.state_dict()["scale"] == 4.0
    assert (made._buffered_inputs, made._last_loaded_step) == (None, -1)
    forget_rollouts(SimpleNamespace())  # trainers that buffer nothing
