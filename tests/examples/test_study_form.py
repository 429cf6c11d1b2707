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
SCRIPTS = sorted(path.name for path in STUDIES.glob("*.py") if path.stem not in ("table",) and not path.stem.startswith("_"))


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
    assert all(line.count("|") == 7 for line in done.stdout.splitlines())
