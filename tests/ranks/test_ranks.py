"""Two real processes (gloo): results do not depend on world size, a stop reaches both, a failing rank hangs nobody."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import divmon

pytestmark = pytest.mark.trainer
WORKER = Path(__file__).with_name("worker.py")


def launch(out: Path, mode: str, *, ranks: int = 2) -> list[str]:
    """Run the worker on `ranks` processes; the line each rank prints when done."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks),
        "--master-addr", "127.0.0.1", "--master-port", str(port), str(WORKER), str(out), mode,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = re.findall(r"DONE \d+ [0-9a-f]{64}", done.stdout)  # two ranks may write on one line
    assert len(lines) == ranks
    return lines


def test_two_ranks_measure_what_one_measures(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    launch(one, "watch", ranks=1)
    launch(two, "watch")
    first, second = (divmon.History.read(path) for path in (one, two))
    assert second.batch(0).texts == first.batch(0).texts
    assert second.batch(0).token_ids == first.batch(0).token_ids
    before, after = first.evaluations[0], second.evaluations[0]
    assert [(m.key, m.value, m.values) for m in after.measurements if m.value == m.value] == [
        (m.key, m.value, m.values) for m in before.measurements if m.value == m.value
    ]
    assert [e.step for e in second.evaluations] == [0, 2, 4, 6]


def test_two_ranks_are_undisturbed(tmp_path: Path) -> None:
    assert set(launch(tmp_path / "plain", "plain")) == set(launch(tmp_path / "watched", "watch"))


def test_two_ranks_confirm_what_one_confirms_undisturbed(tmp_path: Path) -> None:
    """Rank 0 decides and every rank draws. Weights differ with the number of ranks: only step 0 can be compared."""
    plain, one, two = tmp_path / "plain", tmp_path / "one", tmp_path / "two"
    assert set(launch(plain, "plain")) == set(launch(two, "confirm"))
    launch(one, "confirm", ranks=1)
    first, second = (divmon.History.read(path) for path in (one, two))
    assert second.kept("bank").texts == first.kept("bank").texts
    verdicts = [v for e in second.evaluations for v in e.verdicts]
    assert any(v.outcome == "confirmed" for v in verdicts)
    assert {v.completions for v in verdicts if v.p == v.p} == {12}


@pytest.mark.parametrize("mode", ["draw:0", "draw:1", "confirm:0"])
def test_a_confirmation_that_fails_on_one_rank_hangs_nobody(tmp_path: Path, mode: str) -> None:
    lines = launch(tmp_path, mode)
    assert {line.split()[1] for line in lines} == {"6"}
    history = divmon.History.read(tmp_path)
    assert not history.fired()


def test_rollouts_of_both_ranks_make_whole_groups(tmp_path: Path) -> None:
    assert set(launch(tmp_path / "plain", "grpo-plain")) == set(launch(tmp_path / "watched", "grpo"))
    rollouts = divmon.History.read(tmp_path / "watched").rollouts()
    assert [e.step for e in rollouts.evaluations] == [0, 1, 2, 3, 4, 5]
    assert [len(row) for row in rollouts.batch(0).texts] == [4, 4]  # 4 rows a rank, 4 completions a prompt


def test_both_score_and_sample_when_the_clock_of_rank_0_says_and_a_failing_scorer_hangs_nobody(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    assert set(launch(tmp_path / "plain", "plain")) == set(launch(watched, "scorer:1"))
    scores = divmon.History.read(watched).scores()
    assert [e.step for e in scores.evaluations] == list(range(7))  # every tenth of six steps is a step
    found = [next(m for m in e.measurements if m.metric == "retained_mass") for e in scores.evaluations]
    assert found[0].value == 1.0
    assert [m.value < 1.0 for m in found] == [False, True, *[False] * 5]  # then rank 1 fails
    assert all("scorer_failures" in (m.reason or "") for m in found[2:])
    assert [(e.step, e.alarm) for e in scores.fired()] == [(1, "lost")]
    assert (watched / "checkpoint-1").is_dir()


def test_a_lever_sees_whole_groups_where_no_rank_has_one(tmp_path: Path) -> None:
    lines = launch(tmp_path, "grpo-lever")  # each rank checks the advantages against the definition
    assert len(set(lines)) == 1
    assert [change.phase for change in divmon.History.read(tmp_path).mitigations] == ["applied"]


@pytest.mark.parametrize("seam", ["verdict", "text"])
def test_a_lever_that_fails_on_one_rank_hangs_nobody(tmp_path: Path, seam: str) -> None:
    lines = launch(tmp_path, f"{seam}:1")
    assert {line.split()[1] for line in lines} == {"6"}


def test_refinements_reach_the_batches_of_both_ranks(tmp_path: Path) -> None:
    assert len(set(launch(tmp_path, "resample"))) == 1  # each rank looks into its own batches
    changes = divmon.History.read(tmp_path).mitigations
    assert changes[1].reason.startswith("24 refinements accepted")


def test_resampling_that_fails_leaves_both_ranks_as_they_were(tmp_path: Path) -> None:
    assert set(launch(tmp_path / "plain", "resample-plain")) == set(launch(tmp_path / "rows", "pass:0"))


def test_two_ranks_are_undisturbed_by_scores_samplings_and_rollouts_together(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    assert set(launch(tmp_path / "plain", "grpo-plain")) == set(launch(watched, "grpo-mixture"))
    history = divmon.History.read(watched)
    assert len(history.rollouts().evaluations) == 6
    assert len(history.scores().evaluations) == 7
    assert len(history.evaluations) > 1


def test_sharded_weights_are_sampled_and_scored_and_training_is_undisturbed(tmp_path: Path) -> None:
    assert len(set(launch(tmp_path, "sharded"))) == 1  # each rank compares its weights and losses with a plain run
    history = divmon.History.read(tmp_path)
    assert [e.step for e in history.evaluations][:: len(history.evaluations) - 1] == [0, 4]
    first = {m.metric: m.value for m in history.scores().evaluations[0].measurements}
    assert (first["retained_mass"], first["kl_per_token"]) == (1.0, 0.0)
    assert [e.step for e in history.scores().evaluations] == [0, 1, 2, 3, 4]
    assert not any(n for e in history.evaluations for part, n in e.health.items() if part.endswith("_failures"))
    assert [len(row) for row in history.kept("bank").texts] == [4] * 5


def test_a_stop_reaches_both_ranks(tmp_path: Path) -> None:
    lines = launch(tmp_path, "stop")
    assert {line.split()[1] for line in lines} == {"2"}
    assert (tmp_path / "checkpoint-2").is_dir()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("seam", ["sampler", "start", "metric", "disk"])
def test_a_rank_that_fails_hangs_nobody(tmp_path: Path, seam: str, rank: int) -> None:
    lines = launch(tmp_path, f"{seam}:{rank}")
    assert {line.split()[1] for line in lines} == {"6"}


def test_two_ranks_go_back_together_to_a_checkpoint_that_both_can_read(tmp_path: Path) -> None:
    lines = launch(tmp_path, "rollback:1")  # the worker compares weights and rates before and after, on each rank
    assert len({line.split()[2] for line in lines}) == 1
    failed, applied = divmon.History.read(tmp_path).mitigations
    assert (failed.phase, applied.phase) == ("failed", "applied")
    assert "rollback broke on rank 1" in failed.reason
    assert "healthy checkpoint of step 0" in applied.reason
