"""The record of a run on disk: what was appended is read back, whatever a kill or a full disk did in between."""

import errno
import io
import json
import math
import os

import numpy as np
import pytest

import divmon.history as history_module
from divmon.errors import HistoryError, SignatureMismatch
from divmon.history import Evaluation, History
from divmon.records import AlarmEvent, Decoding, LeverEvent, Measurement, Probe, SampleBatch

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
    with pytest.raises(HistoryError, match=r"has format 2, newer than this divmon reads. Upgrade divmon"):
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
        assert history_module.complete_bytes(io.BytesIO(data)) == data.rfind(b"\n") + 1


def test_rewinding_gives_a_branch_up_without_losing_it(tmp_path):
    history = run(tmp_path)
    history.rewind(8)
    assert history.superseded == []
    history.rewind(5)
    assert history.last_step == 4
    assert [event.step for event in history.events()] == [0, 4]
    history.append(evaluation(8, value=2.0), batch(8, texts=("again", "n")))
    for found in (history, History.read(tmp_path)):
        assert found.series("m", "x").steps.tolist() == [0, 4, 8]
        assert found.series("m", "x").values[2] == 2.0
        assert same(found.superseded, [evaluation(8)])
        assert found.batch(8).texts[0] == ("again", "n")
    names = sorted(path.name for path in (tmp_path / "completions").iterdir())
    assert names == ["00000000.jsonl", "00000004.jsonl", "00000008.jsonl", "00000008.superseded-1.jsonl"]
    history.rewind(5)
    history.rewind(-1)
    assert History.read(tmp_path).evaluations == []
    assert [e.step for e in History.read(tmp_path).superseded] == [8, 8, 0, 4]
    history.append(evaluation(0, signature="other"))  # nothing is left that it could be mixed with
    assert History.read(tmp_path).keys() == ["x/m", "y/m"]
    clean(tmp_path)


@pytest.mark.parametrize("lost", [0, 1])
def test_rewinding_on_a_full_disk_is_written_with_the_next_evaluation(tmp_path, monkeypatch, lost):
    history, real, failing = run(tmp_path), os.fsync, [True]

    def fsync(number):
        if failing:
            if lost:  # not even the line arrived
                os.ftruncate(number, os.fstat(number).st_size - 5)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(history_module.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space"):
        history.rewind(0)
    assert history.last_step == 0
    failing.clear()
    history.append(evaluation(4, value=2.0))
    read = History.read(tmp_path)
    assert same(read.evaluations, history.evaluations)
    assert [e.step for e in read.superseded] == [4, 8]
    clean(tmp_path)


def test_a_lever_line_without_an_evaluation_is_given_up_too(tmp_path):
    history = History.create(tmp_path / "run", probes=PROBES)
    for at in (2, 4):
        history.note(LeverEvent(at, "gate", "applied", 1.0))
    history.rewind(3)
    assert [change.step for change in history.mitigations] == [2]
    assert [change.step for change in History.read(tmp_path / "run").mitigations] == [2]
