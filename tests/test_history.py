"""The record of a run on disk: what was appended is read back, whatever a kill or a full disk did in between."""

import errno
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import divmon.history as history_module
from divmon.errors import HistoryError, SignatureMismatch
from divmon.history import Evaluation, History
from divmon.records import AlarmEvent, Decoding, Measurement, Probe, SampleBatch

HOSTILE = (
    "\ud800 lone \udfff surrogates",
    "line\u2028 and paragraph\u2029 separators, \x85 too",
    "\x00\x01\x1b[31m\x7f",
    "\u202eright to left \u2066שלום مرحبا\u2069",
    "</script><img src=x onerror=alert(1)>",
    '{"step": 9}\n{"step": 10}\r\n',
    "x" * 100_000,
    "",
)
PROBES = (
    Probe("a", "?", domain="x", gold="7", difficulty=3, token_ids=(1, 2), columns={"level": "3", "n": [1]}),
    Probe("b", ({"role": "user", "content": HOSTILE[0]},), domain="y", reference="\u2028"),
)


def batch(step, texts=("m", "n")):
    k = len(texts)
    return SampleBatch(
        step,
        PROBES,
        (tuple(texts), tuple(reversed(texts))),
        token_ids=(((1, 2),) + ((),) * (k - 1), ((3,),) * k),
        finished=((True,) * k, (False,) * k),
        logprobs=((np.array([-0.5, -math.inf, math.nan]),) * k, (np.zeros(0),) * k),
        entropies=((np.array([0.25], dtype=np.float32),) * k, (np.zeros(0),) * k),
        rewards=((math.nan,) * k, (1.5,) * k),
        decoding=Decoding(0.7, 0.9, 12, 5),
        source="probe",
        fingerprint="f00",
    )


def evaluation(step, *, signature="s", value=None):
    found = math.sin(step) if value is None else value
    measured = Measurement(
        step, "x", "m", found, found - 0.1, math.inf, 2, signature, (found, math.nan), None, {"a": 1}
    )
    missing = Measurement(step, "y", "m", math.nan, n=0, signature="t", reason=HOSTILE[1])
    event = AlarmEvent(step, "narrow", "x", "m", "firing", "critical", found, actions=("save",), message=HOSTILE[3])
    return Evaluation(step, (measured, missing), (event,), {"seconds": 0.5, "nothing": math.nan})


def same(a, b):
    return repr(a) == repr(b)


def run(path, steps=(0, 4, 8), **kwargs):
    history = History.create(path, probes=PROBES, info={"k": 2})
    for step in steps:
        history.append(evaluation(step), batch(step, **kwargs))
    return history


def clean(path):
    """Every file of the run is whole lines of JSON, and nothing is left lying about."""
    files = [f for f in path.rglob("*") if f.is_file()]
    assert not [f for f in files if f.suffix == ".partial"]
    for file in files:
        data = file.read_bytes()
        assert data == b"" or data.endswith(b"\n")
        assert all(json.loads(line) is not None for line in data.split(b"\n")[:-1])


def test_what_is_appended_is_read_back(tmp_path):
    written = run(tmp_path / "run", texts=HOSTILE)
    read = History.read(tmp_path / "run")
    assert same(read.evaluations, written.evaluations)
    assert same(read.probes, PROBES)
    assert read.info == written.info == {"format": 1, "k": 2}
    assert (read.last_step, read.keys()) == (8, ["x/m", "y/m"])
    for step in (0, 4, 8):
        assert same(read.batch(step), floats(batch(step, texts=HOSTILE)))
    assert len((tmp_path / "run" / "history.jsonl").read_bytes().splitlines()) == 3
    clean(tmp_path / "run")


def floats(record):
    """With the arrays in the width they are read back in."""
    wide = tuple(tuple(np.asarray(v, dtype=float) for v in row) for row in record.entropies)
    return SampleBatch(**{**vars(record), "entropies": wide})


def test_a_batch_of_which_little_is_known(tmp_path):
    history = History.create(tmp_path, probes=PROBES)
    known = SampleBatch(3, PROBES, (("a",), ("b", "c")), source="file")
    history.append(Evaluation(3, ()), known)
    assert same(history.batch(3), known)


def test_a_probe_of_another_set_keeps_its_id(tmp_path):
    history = History.create(tmp_path, probes=PROBES)
    history.append(Evaluation(0, ()), SampleBatch(0, (Probe("z", "new"),), (("a", "b"),)))
    assert history.batch(0).probes == (Probe("z", ""),)


def test_series_and_events(tmp_path):
    run(tmp_path)
    history = History.read(tmp_path)
    curve = history.series("m", "x")
    assert (curve.key, curve.signature) == ("x/m", "s")
    assert curve.steps.tolist() == [0, 4, 8]
    assert curve.values.tolist() == [math.sin(step) for step in (0, 4, 8)]
    assert curve.low.tolist() == [math.sin(step) - 0.1 for step in (0, 4, 8)]
    assert np.isposinf(curve.high).all()
    assert np.isnan(history.series("m", "y").values).all()
    nothing = history.series("m", "z")
    assert (nothing.steps.size, nothing.values.size, nothing.signature) == (0, 0, "")
    assert [event.step for event in history.events()] == [0, 4, 8]
    assert History.create(tmp_path / "new", probes=PROBES).last_step == -1


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
            assert same(history.batch(8), floats(batch(8)))
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
    assert same(History.read(tmp_path).batch(2), floats(batch(2)))


def test_numbers_measured_differently_are_never_mixed(tmp_path):
    history = run(tmp_path)
    before = (tmp_path / "history.jsonl").read_bytes()
    with pytest.raises(SignatureMismatch, match=r"x/m was measured as 's', and at step 12 as 'other'.*new run folder"):
        history.append(evaluation(12, signature="other"), batch(12))
    assert (tmp_path / "history.jsonl").read_bytes() == before
    assert history.last_step == 8
    history.append(evaluation(12))
    line = json.dumps(history_module.to_json(evaluation(16, signature="other")))
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(SignatureMismatch, match="at step 16 as 'other'"):
        History.read(tmp_path)


def test_missing_numbers_have_a_signature_too(tmp_path):
    history = run(tmp_path)
    with pytest.raises(SignatureMismatch):
        history.append(evaluation(12, signature="other", value=math.nan))


def test_an_older_run_is_kept(tmp_path):
    path = tmp_path / "run"
    run(path, steps=(1,))
    run(path, steps=(2, 3))
    (tmp_path / "run.2").mkdir()
    History.create(path, probes=PROBES)
    kept = {name: History.read(tmp_path / name).last_step for name in ("run", "run.1", "run.3")}
    assert kept == {"run": -1, "run.1": 1, "run.3": 3}
    assert not list(path.glob("completions/*"))


def test_a_history_that_lost_its_run_json_is_kept_too(tmp_path):
    run(tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    History.create(tmp_path / "run", probes=PROBES).append(evaluation(5))
    assert len(History.read(tmp_path / "run").evaluations) == 1
    assert len((tmp_path / "run.1" / "history.jsonl").read_bytes().splitlines()) == 3


def test_a_run_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(".", steps=(1,))
    run(".", steps=(2,))
    assert History.read(tmp_path / "here").last_step == 2
    assert History.read(tmp_path / "here.1").last_step == 1


def test_a_run_is_found_below_the_trainers_folder(tmp_path):
    run(tmp_path / "divmon")
    assert History.read(str(tmp_path)).path == tmp_path / "divmon"


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(HistoryError, match=r"No divmon run in .*empty \(no run.json\)"):
        History.read(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(HistoryError, match="No divmon run"):
        History.read(tmp_path / "file")
    history = run(tmp_path / "run", steps=(0,))
    with pytest.raises(HistoryError, match=r"No completions were recorded at step 4 in .*run"):
        history.batch(4)


def test_reading_what_a_newer_version_wrote(tmp_path):
    run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 2}\n')
    with pytest.raises(HistoryError, match="has format 2, newer than this divmon reads. Upgrade divmon"):
        History.read(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', '{"format": "new"}', '{"format": null}', "\xff"])
def test_a_damaged_run_json(tmp_path, content):
    run(tmp_path)
    (tmp_path / "run.json").write_text(content, "latin-1")
    with pytest.raises(HistoryError, match=r"run.json is damaged"):
        History.read(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"\x00" * 30,
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"x"',
        b"\xff",
        b'{"step": 4}',
        b'{"step": 4, "measurements": [1]}',
    ],
)
def test_a_damaged_line_before_the_last_is_named(tmp_path, line):
    run(tmp_path)
    file = tmp_path / "history.jsonl"
    one, _, three = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([one, line, three, b""]))
    with pytest.raises(HistoryError, match=r"history.jsonl, line 2 is damaged .*Remove the line"):
        History.read(tmp_path)
    file.write_bytes(b"\n".join([one, three, b""]))
    assert [e.step for e in History.read(tmp_path).evaluations] == [0, 8]


def test_damaged_probes_are_named(tmp_path):
    run(tmp_path)
    (tmp_path / "probes.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(HistoryError, match=r"probes.jsonl, line 1 is damaged \(KeyError: 'prompt'\)"):
        History.read(tmp_path)


def test_the_end_of_the_last_line_is_found_in_long_files(monkeypatch):
    monkeypatch.setattr(history_module, "_BLOCK", 4)
    for data in (
        b"",
        b"\n",
        b"abc",
        b"abc\n",
        b"abcdefgh\nij",
        b"abcd\n" + b"x" * 9,
        b"x" * 12,
        b"a\nb\nc",
        b"abcdefg\n",
    ):
        assert history_module._complete_bytes(io.BytesIO(data)) == data.rfind(b"\n") + 1
