"""Every study runs in its quick form, and its verdict comes from its numbers: about two minutes of one core in all."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.trainer
STUDIES = Path(__file__).parents[2] / "examples" / "studies"
NAMES = sorted(path.stem for path in STUDIES.glob("[!_]*.py") if path.stem != "table")
LIMIT = 600.0  # seconds for one study on a busy machine; an idle one takes under a tenth of it


def run(script: str, *arguments: str, cwd: Path) -> str:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "WANDB_", "TRL_"))}
    done = subprocess.run(
        [sys.executable, str(STUDIES / f"{script}.py"), *arguments], cwd=cwd, capture_output=True, encoding="utf-8",
        env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "failed and was skipped" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


def known(value: Any) -> Any:
    """Numbers as they were before JSON, which has no NaN."""
    if isinstance(value, dict):
        return {key: known(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [known(inner) for inner in value]
    return math.nan if value is None else value


@pytest.mark.parametrize("name", NAMES)
def test_its_quick_form_runs_and_its_verdict_comes_from_its_numbers(
    name: str, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run(name, "--quick", "--json", str(results / f"{name}.json"), cwd=tmp_path)
    found = json.loads((results / f"{name}.json").read_text("utf-8"))
    assert f"Verdict: {found['word']}. {found['verdict']}" in said
    assert not list(tmp_path.iterdir()), "it leaves something behind"
    monkeypatch.syspath_prepend(str(STUDIES))
    spec = importlib.util.spec_from_file_location(f"quick_{name}", STUDIES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, study)
    spec.loader.exec_module(study)
    outcome = study.judge(known(found["numbers"]))
    assert (outcome.number, outcome.verdict, outcome.word) == (found["number"], found["verdict"], found["word"])


def test_the_table_shows_what_was_found(results: Path, tmp_path: Path) -> None:
    there = {path.stem: json.loads(path.read_text("utf-8")) for path in results.glob("*.json")}
    if not there:
        pytest.skip("the studies were not run")
    rows = run("table", "--from", str(results), cwd=tmp_path).splitlines()[2:]
    assert len(rows) == len(NAMES)
    for name, row in zip(NAMES, rows, strict=True):
        assert f"(examples/studies/{name}.py)" in row
        if name in there:
            assert f"| {there[name]['number']} | {there[name]['word']}: {there[name]['verdict']} |" in row
