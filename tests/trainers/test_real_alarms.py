"""Confirmed alarms on a real model: silent while nothing changes, in time when formats are lost.

The fast version of `tests/benchmarks/bench_real_alarms.py`.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def real() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "real_runs.py"
    spec = importlib.util.spec_from_file_location("real_runs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_runs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_an_unchanged_policy_gives_uniform_p_values(real: Any) -> None:
    found = real.redraws(["tfidf_distance"], blocks=range(10), block=20, tokens=12)["tfidf_distance"]
    p = np.array([case.p for case in found])
    assert len(p) == 200
    np.testing.assert_allclose(p, [case.brute for case in found], atol=1e-9)  # counted over all relabellings
    assert kstest([case.spread for case in found], "uniform").pvalue > 0.001
    assert kstest(p, "uniform", alternative="greater").pvalue > 0.001  # ties may only make it larger


def test_own_samples_confirm_nothing(real: Any, tmp_path: Path) -> None:
    rows = real.policy_rows(480, 0)
    seen = real.watched(lambda out, calls: real.sft(rows, out, 30, 0, calls), real.EVERYTHING, tmp_path, every=10)
    assert len(seen.steps) == 4
    assert not seen.confirmed


def test_a_collapse_is_confirmed_before_half_of_it(real: Any, tmp_path: Path) -> None:
    case = next(real.scenarios(0))
    seen = real.watched(case.sick, real.COLLAPSE, tmp_path, every=4)
    first = seen.confirmed[0]
    assert first.p <= first.level < 0.05
    assert seen.total("effective_formats") > 0.5
    assert 2 * seen.fall("effective_formats", first.step) < seen.total("effective_formats")


def test_its_healthy_twin_is_silent(real: Any, tmp_path: Path) -> None:
    case = next(real.scenarios(0))
    assert not real.watched(case.well, real.COLLAPSE, tmp_path, every=4).confirmed
