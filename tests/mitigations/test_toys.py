"""The levers in simulation, against the reference figures: a short version of `tests/benchmarks/toys.py`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def toys() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "toys.py"
    spec = importlib.util.spec_from_file_location("toys_of_levers", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("lever", "steps"), [("none", 700), ("diversity_reward", 2500), ("diversity_reward, scaled", 1200)]
)
def test_breadth_at_equal_quality(toys: ModuleType, lever: str, steps: int) -> None:
    curve = toys.bandit(lever, runs=40, steps=steps, seed=5)
    at8, at9, *_ = toys.BANDIT[lever]
    assert toys.reached(curve, 0.8).fits(at8)
    assert toys.reached(curve, 0.9).fits(at9)


def test_the_entropy_band_at_equal_quality(toys: ModuleType) -> None:
    curve = toys.bandit("entropy_band", runs=20, steps=2000, seed=5)
    assert toys.reached(curve, 0.9).fits(toys.BANDIT["entropy_band"][1])


def test_coverage_of_hard_prompts_at_equal_quality(toys: ModuleType) -> None:
    found = {}
    for lever, steps in (("none", 250), ("gate", 1600)):
        rng = np.random.default_rng(0)
        curves = np.array([toys.coverage(lever, steps=steps, rng=rng) for _ in range(3)])
        assert curves.mean(axis=0)[-1, 0] > 0.40
        found[lever] = toys.covered(curves, 0.40)
        assert found[lever].fits(toys.COVERAGE[lever][0])
    assert found["gate"].value > 3 * found["none"].value
