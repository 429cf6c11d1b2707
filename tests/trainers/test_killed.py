"""kill -9 at random moments, then resume: one continuous history, nothing recorded lost, the same final numbers.

Eight kills here; ``DIVMON_KILLS=50 python -m pytest tests/trainers/test_killed.py`` takes some minutes.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import divmon
from divmon.alarms import restore_rules
from divmon.alarms.spending import Journal, Spent

pytestmark = pytest.mark.trainer
KILLS = int(os.environ.get("DIVMON_KILLS", "8"))


class Trainings:
    """Talks to `crash.py`."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parents[1] / "crash.py")], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while self.read() != "ready":  # other libraries may have something to say first
            assert self.process.poll() is None

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def run(self, out: Path, *, kill_after: float | None = None, confirm: bool = False) -> str:
        assert self.process.stdin
        self.process.stdin.write(f"{'confirm ' if confirm else ''}{out}\n")
        self.process.stdin.flush()
        child = int(self.read().split()[0])
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(child, signal.SIGKILL)
        return self.read()


@pytest.fixture
def trainings() -> Iterator[Trainings]:
    found = Trainings()
    yield found
    found.process.kill()
    found.process.wait()


def lines(out: Path) -> list[str]:
    """Every complete line recorded in any history of the run."""
    texts = [path.read_text("ascii") for path in out.glob("divmon*/history.jsonl")]
    return [line for text in texts for line in text.split("\n")[:-1]]


def numbers(history: divmon.History) -> list[Any]:
    return [
        (m.step, m.key, repr(m.value), repr(m.low), repr(m.values), m.signature, m.reason)
        for evaluation in history.evaluations
        for m in evaluation.measurements
    ]


def test_killed_anywhere_and_resumed(tmp_path: Path, trainings: Trainings) -> None:
    assert trainings.run(tmp_path / "whole") == "done"
    start = time.perf_counter()
    assert trainings.run(tmp_path / "whole-again") == "done"
    length = time.perf_counter() - start
    whole = divmon.History.read(tmp_path / "whole")
    assert [e.step for e in whole.evaluations] == [0, 2, 4, 6, 8, 10]
    assert list(whole.events())

    rng, kills, runs = random.Random(7), 0, 0
    while kills < KILLS:
        runs += 1
        out, recorded = tmp_path / f"run-{runs}", list[str]()
        while kills < KILLS and not any("checkpoint-10" in str(path) for path in out.glob("checkpoint-*")):
            ended = trainings.run(out, kill_after=rng.uniform(0, 0.7 * length))
            kills += ended == "ended 9"
            now = lines(out)
            assert set(recorded) <= set(now), "a recorded line was lost"
            recorded = now
        assert trainings.run(out) == "done"
        assert set(recorded) <= set(lines(out))
        history = divmon.History.read(out)
        assert [e.step for e in history.evaluations] == [e.step for e in whole.evaluations]
        assert numbers(history) == numbers(whole)
        assert list(history.events()) == list(whole.events())
        assert all(history.batch(e.step).texts == whole.batch(e.step).texts for e in whole.evaluations)


def test_killed_anywhere_with_confirmations(tmp_path: Path, trainings: Trainings) -> None:
    """No number of a confirmation is used twice or given back, and what was recorded stays true."""
    start = time.perf_counter()
    assert trainings.run(tmp_path / "whole", confirm=True) == "done"
    length = time.perf_counter() - start
    whole = divmon.History.read(tmp_path / "whole")
    assert any(v.attempt for e in whole.evaluations for v in e.verdicts)

    rng, out, spent = random.Random(11), tmp_path / "run", list[Spent]()
    for kill in range(KILLS):
        trainings.run(out, kill_after=rng.uniform(0.2, 0.9) * length, confirm=True)
        now = [entry for path in out.glob("divmon/confirmations/spent.jsonl") for entry in Journal(path).entries]
        assert now[: len(spent)] == spent or not any(out.glob("checkpoint-*")), kill  # a new start is a new run
        spent = now
        if any("checkpoint-10" in str(path) for path in out.glob("checkpoint-*")):
            break
    assert trainings.run(out, confirm=True) == "done"
    history = divmon.History.read(out)
    entries = Journal(out / "divmon" / "confirmations" / "spent.jsonl").entries
    assert entries[: len(spent)] == spent
    assert len({(entry.cell, entry.attempt) for entry in entries}) == len(entries)
    recorded = [(v.key, v.attempt, v.level) for e in history.evaluations for v in e.verdicts if v.attempt]
    assert set(recorded) <= {(entry.cell, entry.attempt, entry.level) for entry in entries}
    assert numbers(history) == numbers(whole)
    assert divmon.replay(history, restore_rules(history.info["rules"])) == list(history.events())
