"""What studies share: a verdict computed from numbers, and a table that finds every script."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STUDIES = Path(__file__).parents[2] / "examples" / "studies"
SCRIPTS = sorted(path.name for path in STUDIES.glob("[!_]*.py") if path.stem != "table")


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"studies{name}", STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_result_that_turns_round_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    form = load("_study")
    study = form.Study("toy", "does it fall?", "it falls", "`divmon`", "nobody")

    def judge(numbers: Any) -> Any:
        fell = numbers["change"] < 0
        return form.Outcome(f"{numbers['change']:+.1f}", "It fell." if fell else "It rose.", fell)

    for change, word in ((-1.0, "found"), (1.0, "not found")):
        monkeypatch.setattr(sys, "argv", ["toy.py", "--quick", "--json", str(tmp_path / "toy.json")])
        form.run(study, lambda args, change=change: {"change": change, "missing": float("nan")}, judge)
        assert f"Verdict: {word}." in capsys.readouterr().out
        found = json.loads((tmp_path / "toy.json").read_text())
        assert found["word"] == word
        assert found["numbers"] == {"change": change, "missing": None}
        assert re.fullmatch(r"\| \[toy\]\(examples/studies/toy.py\) \|.*\| \d+ \|", form.row("toy.py", found))


def test_the_table_has_a_row_for_every_script() -> None:
    done = subprocess.run([sys.executable, str(STUDIES / "table.py")], capture_output=True, text=True, check=True)
    assert re.findall(r"\(examples/studies/(\w+\.py)\)", done.stdout) == SCRIPTS
    assert all(line.count("|") == 4 for line in done.stdout.splitlines())
    page = (STUDIES.parents[1] / "README.md").read_text("utf-8")
    [kept] = re.findall(r"^<!-- studies -->\n(.*?)^<!-- /studies -->$", page, re.MULTILINE | re.DOTALL)
    assert kept.strip() == done.stdout.strip()  # what it prints goes between the marks


BEFORE_AND_AFTER = {
    "human_away": {
        "gap_before": 0.5, "gap_before_interval": [0.4, 0.7], "gap_after": 2.0, "gap_after_interval": [1.8, 2.5],
        "reward_before": 0.3, "reward_after": 0.6, "away_before": 1, "away_after": 5,
        "dimensions_before": dict.fromkeys("abcdef", 0.1), "dimensions_after": dict.fromkeys("abcdef", -1.0),
    },
    "hivemind": {
        "between_before": 0.1, "between_before_interval": [0.09, 0.12], "between_after": 0.3,
        "between_after_interval": [0.28, 0.32], "sources_before": 2.5, "sources_after": 2.9, "repetition_before": 0.4,
        "repetition_after": 0.4, "models": 3,
    },
    "voice": {
        "spread_before": 1.0, "spread_before_interval": [0.9, 1.1], "spread_after": 0.3,
        "spread_after_interval": [0.2, 0.4], "reward_before": 0.5, "reward_before_interval": [0.45, 0.55],
        "reward_after": 0.8, "reward_after_interval": [0.75, 0.85],
        "spread_after_by_attribute": {"a": 0.3, "b": 0.4},
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "numbers"), BEFORE_AND_AFTER.items(), ids=BEFORE_AND_AFTER)
def test_verdicts_follow_from_the_numbers_alone(name: str, numbers: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(STUDIES))
    judge = load(name).judge
    assert judge(numbers).holds is True
    swap = {"before": "after", "after": "before"}
    turned = {key: numbers[_swapped(key, swap)] for key in numbers}
    turned |= {key: value for key, value in numbers.items() if key.startswith(("reward", "spread_after_by"))}
    assert judge(turned).holds is False
    still = {key: numbers[key.replace("after", "before")] if "by" not in key else numbers[key] for key in numbers}
    assert judge(still).holds is None


def _swapped(key: str, swap: dict[str, str]) -> str:
    found = next((word for word in swap if f"_{word}" in key and "by" not in key), None)
    return key if found is None else key.replace(found, swap[found])
