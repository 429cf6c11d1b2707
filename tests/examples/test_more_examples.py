"""RLOO, two ranks, a metric and sinks of one's own, run as a newcomer runs them (PPO: `tests/ppo`)."""

from __future__ import annotations

import csv
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trl
from packaging.version import Version

import divmon
from divmon.selftraining import SelfTrained

pytestmark = pytest.mark.trainer
EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT = 180.0  # seconds for one example on a busy machine; an idle one takes a fraction of it


def launch(command: list[str], *, cwd: Path) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "WANDB_", "TRL_"))}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=LIMIT
    )


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The standard output of an example that must have succeeded."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "failed and was skipped" not in done.stderr
    return done.stdout


def run(name: str, *arguments: str, cwd: Path) -> str:
    return said(launch([str(EXAMPLES / f"{name}.py"), *arguments], cwd=cwd))


def on_two_ranks(name: str, *arguments: str, cwd: Path) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command = [*program, "--master-port", str(port), str(EXAMPLES / f"{name}.py"), *arguments]
    return said(launch(command, cwd=cwd))


def steps(history: divmon.History) -> list[int]:
    return [evaluation.step for evaluation in history.evaluations]


def test_rloo_prints_its_rollouts_beside_the_probes(tmp_path: Path) -> None:
    text = run("rloo", "--steps", "4", cwd=tmp_path)
    probes = divmon.History.read(tmp_path / "runs" / "rloo")  # the folder it names when none is given
    rollouts = divmon.History.read(probes.path / "rollouts")
    assert steps(probes) == [0, 4]
    assert steps(rollouts) == [0, 1, 2, 3]
    first, last = (re.search(rf"^ +{step} .*$", text, re.MULTILINE) for step in (0, 4))
    assert first
    assert last
    numbers = [
        history.series(metric, domain).values[0]
        for metric in ("effective_formats", "mean_quality")
        for history, domain in ((probes, "sums"), (rollouts, "rollouts"))
    ]
    assert first[0].split() == ["0", *(f"{number:.2f}" for number in numbers)]
    assert last[0].split()[2::2] == ["-", "-"]  # nothing was drawn for training after the last step


def test_two_ranks_share_the_work_and_one_stop_ends_both(tmp_path: Path) -> None:
    text = on_two_ranks("two_ranks", "--out", "two", cwd=tmp_path)
    history = divmon.History.read(tmp_path / "two")
    end = history.last_step
    assert steps(history) == list(range(0, end + 1, 5))
    assert end < 40
    assert sorted(re.findall(r"rank (\d) of 2, process \d+\] trains on 1 in 2", text)) == ["0", "1"]
    assert sorted(re.findall(rf"rank (\d) of 2, process \d+\] ended at step {end} of 40", text)) == ["0", "1"]
    assert set(re.findall(r"rank (\d) of 2, process \d+\] measured", text)) == {"0"}
    assert (tmp_path / "two" / f"checkpoint-{end}" / "model.safetensors").is_file()

    alone = run("two_ranks", "--steps", "1", "--out", "one", cwd=tmp_path)
    assert "[rank 0 of 1" in alone
    assert divmon.History.read(tmp_path / "one").batch(0).texts == history.batch(0).texts


def test_a_lever_brings_the_formats_back_and_is_released(tmp_path: Path) -> None:
    text = run("diversity_reward", "--out", "out", cwd=tmp_path)
    history = divmon.History.read(tmp_path / "out")
    assert [change.phase for change in history.mitigations][:2] == ["applied", "cooling"]
    for change in history.mitigations:
        assert f"step {change.step}: diversity_reward {change.phase}." in text
    formats = history.series("effective_correct_formats", "train").values
    assert formats[-1] > 3 > formats.min()


def test_a_rollback_finishes_with_more_formats_than_the_run_it_saves(tmp_path: Path) -> None:
    text = run("rollback", "--steps", "16", "--out", "out", cwd=tmp_path)
    plain, back = (divmon.History.read(tmp_path / "out" / name) for name in ("plain", "back"))
    [change] = back.mitigations
    assert f"step {change.step}: rollback applied. Went back to the healthy checkpoint of step" in text
    lost, kept = (history.series("effective_formats", "default").values for history in (plain, back))
    assert kept[-1] > 2 > lost[-1]
    assert lost[: change.step // 2 + 1].tolist() == kept[: change.step // 2 + 1].tolist()  # up to there, the same run
    right = back.series("pass_at_1", "default").values
    assert right[-1] > right[0]
    for path in (back.path / "healthy").glob("*.pt"):
        assert path.name in text


def test_divpo_keeps_the_formats_that_ordinary_pairs_lose(tmp_path: Path) -> None:
    text = run("divpo", "--out", "out", cwd=tmp_path)
    ends = {}
    for name in ("as", "divpo"):
        formats = divmon.History.read(tmp_path / "out" / name).series("effective_correct_formats", "sums").values
        assert f"{formats[0]:.2f} -> {formats[-1]:.2f}" in text
        ends[name] = formats[-1] / formats[0]
    assert ends["divpo"] > 1 > ends["as"]


def test_a_metric_of_ones_own_stops_the_run(tmp_path: Path) -> None:
    text = run("own_metric", "--out", "out", cwd=tmp_path)
    history = divmon.History.read(tmp_path / "out")
    assert [event.alarm for event in history.fired()] == ["same-beginnings"]
    assert history.last_step < 40
    assert history.keys() == ["train/tfidf_distance", "train/distinct_openings"]
    values = history.series("distinct_openings", "train").values
    assert ((values >= 1 / 8) & (values <= 1)).all()
    assert f"distinct_openings {values[-1]:.2f}" in text
    assert (tmp_path / "out" / f"checkpoint-{history.last_step}").is_dir()


def test_sinks_of_ones_own_write_every_number_and_every_alert(tmp_path: Path) -> None:
    run("own_sink", "--out", "out", cwd=tmp_path)
    history = divmon.History.read(tmp_path / "out")
    with (tmp_path / "out" / "diversity.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    recorded = [m for evaluation in history.evaluations for m in evaluation.measurements]
    assert [(row["step"], row["metric"], row["value"]) for row in rows] == [
        (str(m.step), m.metric, str(m.value)) for m in recorded
    ]
    alerts = (tmp_path / "out" / "alerts.txt").read_text("utf-8").splitlines()
    assert len(alerts) == len(history.fired()) > 0
    assert all(event.message in line for event, line in zip(history.fired(), alerts, strict=True))


def test_ppo_on_a_trl_without_it_says_how_to_get_it(tmp_path: Path) -> None:
    if Version(trl.__version__) < Version("1.13"):
        pytest.skip("this TRL has PPO")
    done = launch([str(EXAMPLES / "ppo.py")], cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install -e . 'trl==1.12.0'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_resampling_in_one_sft_run_brings_hard_sums_back(tmp_path: Path) -> None:
    text = run("resample_sft", "--steps", "35", "--out", "out", cwd=tmp_path)
    alone, resampled = (divmon.History.read(tmp_path / "out" / name) for name in ("alone", "resampled"))
    fired = next(event.step for event in resampled.events() if event.state == "firing")
    before = [
        [evaluation.step for evaluation in run.evaluations if evaluation.step <= fired] for run in (alone, resampled)
    ]
    values = [run.series("pass_at_1", "unseen").values for run in (alone, resampled)]
    assert list(values[0][: len(before[0])]) == list(values[1][: len(before[1])])  # one run until the alarm
    assert values[1][-1] > values[0][-1] + 0.1
    assert resampled.mitigations[0].phase == "applied"
    assert any("refinements accepted of" in change.reason for change in resampled.mitigations)
    kept = (resampled.path / "lineage.jsonl").read_text().splitlines()
    assert len(kept) > 10
    assert f"afterwards {values[0][-1]:.0%} alone and {values[1][-1]:.0%} with resampling" in text


def test_self_training_keeps_its_hard_prompts_with_critiques(tmp_path: Path) -> None:
    text = run("self_training", "--rounds", "1", "--out", "out", cwd=tmp_path)
    plain, guided = (SelfTrained.read(tmp_path / "out" / name) for name in ("plain", "guided"))
    assert plain.tail < 1 < guided.tail
    assert [one.spent for one in (*plain.rounds, *guided.rounds)] == [800, 800]
    assert f"tail: plain {plain.tail:.3f}, guided {guided.tail:.3f}: {guided.tail / plain.tail:.3f} times" in text
    assert divmon.History.read(tmp_path / "out" / "plain" / "round-1" / "divmon").last_step == plain.rounds[0].steps
