"""The examples run as a newcomer runs them: a fresh process, another folder, nothing set, a minute at most."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import divmon

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
GSM8K = ROOT.parent / "shared" / "oracles" / "gsm8k" / "example_model_solutions.jsonl"
LIMIT = 120.0  # seconds for one example on a busy machine; an idle one takes a fraction of it


def run(name: str, *arguments: str, cwd: Path) -> str:
    """The standard output of an example that must succeed in time."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "WANDB_", "TRL_"))}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        cwd=cwd,
        env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed and was skipped" not in done.stderr
    assert time.monotonic() - started < LIMIT
    return done.stdout


def fired(history: divmon.History) -> list[str]:
    return [event.alarm for event in history.events() if event.state == "firing"]


def steps(history: divmon.History) -> list[int]:
    return [evaluation.step for evaluation in history.evaluations]


@pytest.mark.trainer
def test_sft_warns_when_the_formats_collapse(tmp_path: Path) -> None:
    said = run("sft", "--steps", "20", cwd=tmp_path)
    history = divmon.History.read(tmp_path / "runs" / "sft")  # the folder it names when none is given
    assert steps(history) == [0, 5, 10, 15, 20]
    assert {"formats-narrowing", "format-takeover"} <= set(fired(history))
    assert "WARNING formats-narrowing (step 20)" in said
    assert str(Path("runs", "sft", "divmon")) in said
    assert history.series("format_dominance", "train").values[-1] > 0.9


@pytest.mark.trainer
def test_grpo_saves_and_stops_when_one_format_takes_over(tmp_path: Path) -> None:
    said = run("grpo", "--steps", "28", "--out", "out", cwd=tmp_path)
    history = divmon.History.read(tmp_path / "out")
    assert fired(history) == ["one-format-takes-over"]
    end = history.last_step
    assert steps(history) == list(range(0, end + 1, 4))
    assert end < 28
    assert f"CRITICAL one-format-takes-over (step {end})" in said
    assert f"Training ended at step {end} of 28" in said
    assert (tmp_path / "out" / f"checkpoint-{end}" / "model.safetensors").is_file()
    coverage = history.series("coverage", "train").values
    assert ((coverage > 0.5) & (coverage <= 1)).all()  # the trainer's own reward judged


@pytest.mark.trainer
def test_dpo_warns_when_one_format_is_preferred(tmp_path: Path) -> None:
    said = run("dpo", "--out", "out", cwd=tmp_path)
    history = divmon.History.read(tmp_path / "out")
    assert steps(history) == [0, 5, 10, 15, 20, 25, 30]
    assert "formats-narrowing" in fired(history)
    assert "WARNING formats-narrowing (step" in said
    assert "pass@1" in said


@pytest.mark.trainer
def test_a_plain_trainer_on_balanced_data_stays_silent(tmp_path: Path) -> None:
    said = run("plain_trainer", "--steps", "20", "--out", "out", cwd=tmp_path)
    history = divmon.History.read(tmp_path / "out")
    assert steps(history) == [0, 10, 20]
    assert fired(history) == []
    assert "Alarms: none" in said


def test_a_file_is_measured_without_a_trainer(tmp_path: Path) -> None:
    said = run("measure_jsonl", cwd=tmp_path)
    history = divmon.History.read(tmp_path / "runs" / "measure_jsonl")
    assert steps(history) == [0]
    assert len(history.probes) == 12
    named = {line.split()[0] for line in said.splitlines() if line}
    assert {m.metric for m in history.evaluations[0].measurements} <= named
    assert divmon.METRICS["coverage"].summary in said


def test_the_real_file_of_gsm8k_is_measured(tmp_path: Path) -> None:
    if not GSM8K.is_file():
        pytest.skip(f"the GSM8K oracle is not at {GSM8K}")
    run("measure_jsonl", str(GSM8K), "--out", "out", cwd=tmp_path)
    history = divmon.History.read(tmp_path / "out")
    assert len(history.probes) == 1319
    found = {m.metric: m for m in history.evaluations[0].measurements}
    assert found["pass_at_1"].value == pytest.approx(_share_correct())
    assert found["pass_at_1"].n == 1319
    assert found["coverage"].value > found["pass_at_1"].value


def _share_correct() -> float:
    text = GSM8K.read_text("utf-8")
    right, wrong = text.count('"is_correct": true'), text.count('"is_correct": false')
    return right / (right + wrong)
