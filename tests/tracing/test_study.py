"""The verdict of the study of a lineage is computed from its numbers: a result that turns round says so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "examples" / "studies"


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUDIES))
        spec = importlib.util.spec_from_file_location("collapse_lineage", STUDIES / "collapse_lineage.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def numbers(study, worst="sft", late="late", *, same=True):
    row = {"sft": -60.0, "dpo": -5.0, "grpo": 4.0, "zero": -2.0, "late": -50.0, "low": 55.0, "high": 65.0}
    row |= {"kept": 39.0, "worst": worst, "sure": 1.0, "worst, turned round": late}
    tables = {f"{metric}, {aggregator}": row for metric in study.METRICS for aggregator in study.AGGREGATORS}
    return {**tables, "interrupted": True, "the same when resumed": same}


def test_the_verdict_follows_from_the_numbers(study):
    found = study.judge(numbers(study))
    assert found.holds is True
    assert found.number.startswith("surface distance: SFT took 60 (55 to 65) of the 61 points lost, DPO 5, GRPO -4;")
    assert found.verdict.startswith("By both metrics and aggregators sft lost most; with RL first, late did.")
    other = study.judge(numbers(study, "grpo", "zero"))
    assert other.holds is False
    assert other.verdict.startswith("By both metrics and aggregators grpo lost most; with RL first, zero did.")
    mixed = numbers(study)
    first = next(iter(mixed))
    mixed[first] = {**mixed[first], "worst": "dpo"}
    assert study.judge(mixed).holds is False
    assert study.judge(mixed).verdict.startswith("dpo and sft are named;")
    assert study.judge(numbers(study, "none", "none")).holds is None
    changed = study.judge(numbers(study, same=False))
    assert changed.holds is False
    assert "NOT the same" in changed.verdict
