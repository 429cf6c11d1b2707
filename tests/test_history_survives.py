"""A run on disk survives a kill at any byte and a disk that fails: at most the evaluation being written is lost."""

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import divmon.history as history_module
from divmon.errors import HistoryError
from divmon.history import Evaluation, History
from divmon.records import AlarmEvent, Measurement, Probe, SampleBatch

PROBES = (Probe("a", "?", domain="x"), Probe("b", "?", domain="y"))


def batch(step):
    return SampleBatch(
        step, PROBES, (("m\u2028", "n"), ("\ud800", "")), rewards=((0.5, 1.0), (0.0, -1.5)), source="file"
    )


def evaluation(step):
    measured = Measurement(step, "x", "m", step / 7, signature="s")
    event = AlarmEvent(step, "narrow", "x", "m", "firing", "critical", step / 7, actions=("save",), message="\u202e")
    return Evaluation(step, (measured,), (event,), {"seconds": 0.5})


def same(a, b):
    return repr(a) == repr(b)


def run(path, steps=(0, 4, 8)):
    history = History.create(path, probes=PROBES)
    for step in steps:
        history.append(evaluation(step), batch(step))
    return history


def clean(path):
    """Every file of the run is whole lines of JSON, and nothing is left lying about."""
    files = [f for f in path.rglob("*") if f.is_file()]
    assert not [f for f in files if f.suffix == ".partial"]
    for file in files:
        data = file.read_bytes()
        assert data == b"" or data.endswith(b"\n")
        assert all(json.loads(line) is not None for line in data.split(b"\n")[:-1])


def test_a_kill_at_any_byte_of_the_history_loses_at_most_the_last_evaluation(tmp_path):
    history = run(tmp_path, steps=(0, 4))
    history.append(Evaluation(8, (Measurement(8, "x", "m", 0.5, signature="s"),)))
    file = tmp_path / "history.jsonl"
    whole = file.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(start, len(whole) + 1):
        file.write_bytes(whole[:cut])
        history = History.read(tmp_path)
        assert [e.step for e in history.evaluations] == ([0, 4, 8] if cut == len(whole) else [0, 4])
        assert history.batch(4).step == 4
        history.append(Evaluation(12, ()))
        assert file.read_bytes().startswith(whole[:start] if cut < len(whole) else whole)
        assert [e.step for e in History.read(tmp_path).evaluations] == [e.step for e in history.evaluations]
    clean(tmp_path)


def test_a_kill_at_any_byte_of_the_first_evaluation(tmp_path):
    run(tmp_path, steps=(0,))
    file = tmp_path / "history.jsonl"
    whole = file.read_bytes()
    for cut in range(0, len(whole), 31):
        file.write_bytes(whole[:cut])
        history = History.read(tmp_path)
        assert history.evaluations == []
        history.append(evaluation(0))
        assert file.read_bytes() == whole


def test_a_kill_at_any_byte_of_the_completions(tmp_path):
    """Completions are complete or absent; a cut file (copied from a dying machine, say) is not taken for a batch."""
    run(tmp_path)
    file = tmp_path / "completions" / "00000008.jsonl"
    whole = file.read_bytes()
    history = History.read(tmp_path)
    assert len(history.evaluations) == 3
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        assert history.batch(4).step == 4
        if cut == len(whole):
            assert same(history.batch(8), batch(8))
        else:
            with pytest.raises(HistoryError, match="damaged"):
                history.batch(8)
    file.write_bytes(whole[:40])
    History.read(tmp_path).append(evaluation(8), batch(8))
    assert file.read_bytes() == whole


def test_a_kill_between_the_completions_and_the_line(tmp_path):
    run(tmp_path)
    file = tmp_path / "history.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))
    (tmp_path / "completions" / "00000008.jsonl.partial").write_text('{"st')
    history = History.read(tmp_path)
    assert history.last_step == 4
    history.append(evaluation(8), batch(8))
    clean(tmp_path)


def test_a_run_killed_while_it_was_created(tmp_path):
    run(tmp_path / "run", steps=())
    (tmp_path / "run" / "history.jsonl").unlink()
    history = History.read(tmp_path / "run")
    history.append(evaluation(0), batch(0))
    assert same(History.read(tmp_path / "run").evaluations, history.evaluations)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "probes.jsonl").write_text('{"id": "a", "pro')
    History.create(tmp_path / "half", probes=PROBES)
    assert same(History.read(tmp_path / "half").probes, PROBES)
    assert not (tmp_path / "half.1").exists()


WRITER = """
import sys
from divmon.history import Evaluation, History
from divmon.records import Measurement, Probe, SampleBatch
path, start = sys.argv[1], int(sys.argv[2])
probes = tuple(Probe(f"p{i}", "?") for i in range(4))
history = History.read(path) if start >= 0 else History.create(path, probes=probes)
step = history.last_step + 1
while True:
    values = tuple(i / 7 + step for i in range(200))
    m = Measurement(step, "x", "m", float(step), values=values, signature="s")
    history.append(Evaluation(step, (m,)), SampleBatch(step, probes, (("\\u2028" * 50, "b" * 500),) * 4))
    print(step, flush=True)
    step += 1
"""


def test_a_process_that_is_killed_again_and_again(tmp_path):
    rng = random.Random(7)
    script, said = tmp_path / "writer.py", -1
    script.write_text(WRITER)
    for _ in range(6):
        command = [sys.executable, str(script), str(tmp_path / "run"), str(said)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            said = int(process.stdout.readline())
            time.sleep(rng.uniform(0, 0.06))
            process.send_signal(signal.SIGKILL)
            lines = process.stdout.read().split("\n")
            said = max([said, *(int(line) for line in lines[:-1] if line)])
        history = History.read(tmp_path / "run")
        steps = [e.step for e in history.evaluations]
        assert steps == list(range(len(steps)))
        assert said <= steps[-1] <= said + 1  # what was said to be appended is there
        for step in steps:
            assert history.batch(step).texts[0][1] == "b" * 500
            assert history.evaluations[step].measurements[0].values[199] == 199 / 7 + step
    history.append(Evaluation(steps[-1] + 1, ()))
    leftover = list((tmp_path / "run" / "completions").glob("*.partial"))
    assert len(leftover) <= 1
    for file in leftover:
        file.unlink()
    clean(tmp_path / "run")


class Disk:
    """A disk that can be told to fail: when opening, in the middle of a line, at the flush or at fsync."""

    def __init__(self, monkeypatch):
        self.fails = None
        real_open, real_fsync, disk = Path.open, os.fsync, self

        class File(io.FileIO):
            def write(self, data):
                if disk.fails == "write" and len(data) > 20:
                    super().write(bytes(data)[: len(data) // 2])
                    disk.full()
                return super().write(data)

        def opened(path, mode="r", *args, **kwargs):
            if disk.fails == "open" and "r" not in mode:
                disk.full()
            if mode == "a+b":
                return io.BufferedRandom(File(path, "a+"))
            return real_open(path, mode, *args, **kwargs)

        def fsync(number):
            if disk.fails == "fsync":
                disk.full()
            real_fsync(number)

        monkeypatch.setattr(Path, "open", opened)
        monkeypatch.setattr(history_module.os, "fsync", fsync)

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["open", "write", "fsync"])
@pytest.mark.parametrize("completions", [True, False])
def test_a_disk_that_fails_loses_nothing(tmp_path, monkeypatch, where, completions):
    def one(step):
        return evaluation(step), batch(step) if completions else None

    history = History.create(tmp_path / "run", probes=PROBES)
    expected = History.create(tmp_path / "expected", probes=PROBES)
    disk = Disk(monkeypatch)
    for step in range(6):
        disk.fails = where if step in (1, 2, 4) else None
        if disk.fails:
            with pytest.raises(OSError, match="No space"):
                history.append(*one(step))
            steps = [e.step for e in History.read(tmp_path / "run").evaluations]
            assert steps == list(range(len(steps)))
            assert len(steps) >= (1 if step < 3 else 4)
        else:
            history.append(*one(step))
        assert history.last_step == step
        disk.fails = None
        expected.append(*one(step))
    for name in ("history.jsonl", *(f"completions/{s:08d}.jsonl" for s in range(6) if completions)):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    clean(tmp_path / "run")


def test_flush_writes_what_is_left(tmp_path, monkeypatch):
    history = run(tmp_path, steps=(0,))
    disk = Disk(monkeypatch)
    disk.fails = "fsync"
    for step in (1, 2):
        with pytest.raises(OSError, match="No space"):
            history.append(evaluation(step), batch(step))
    with pytest.raises(OSError, match="No space"):
        history.flush()
    disk.fails = None
    history.flush()
    history.flush()
    assert [e.step for e in History.read(tmp_path).evaluations] == [0, 1, 2]
    assert same(History.read(tmp_path).batch(2), batch(2))
