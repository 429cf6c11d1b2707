"""`examples/ppo.py` as a newcomer runs it, with TRL 1.12 first on PYTHONPATH (`tests/test_lanes.py`); else skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import divmon

pytest.importorskip("trl.experimental.ppo", reason="this TRL has no PPO; tests/test_lanes.py runs this with 1.12.0")
pytestmark = pytest.mark.trainer
EXAMPLE = Path(__file__).parents[2] / "examples" / "ppo.py"


def test_ppo_saves_and_stops_when_the_favourite_format_takes_over(tmp_path: Path) -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "WANDB_", "TRL_"))}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        cwd=tmp_path,
        env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "failed and was skipped" not in done.stderr
    out = tmp_path / "runs" / "ppo"  # the folder it names when none is given
    history = divmon.History.read(out)
    assert [event.alarm for event in history.fired()] == ["one-format-takes-over"]
    assert history.last_step < 24
    assert (out / f"checkpoint-{history.last_step}" / "model.safetensors").is_file()
    assert f"Training ended at step {history.last_step} of 24" in done.stdout
    [takeover] = [m for m in history.evaluations[-1].measurements if m.metric == "format_dominance"]
    assert takeover.details["shares"]["program"] == pytest.approx(takeover.value)
    rollouts = divmon.History.read(history.path / "rollouts")
    assert [evaluation.step for evaluation in rollouts.evaluations] == list(range(history.last_step))
