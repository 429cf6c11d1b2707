"""Real offline runs of W&B, written by the sink and read back from disk."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import sys
from dataclasses import replace

import pytest

from divmon.errors import ConfigError, MissingDependency
from divmon.records import AlarmEvent, LeverEvent, Measurement, Observation, Probe, SampleBatch
from divmon.sinks import WandbSink
from divmon.sinks.samples import Outbox, alert, sample_rows

wandb = pytest.importorskip("wandb")
METRICS = ("tfidf_distance", "effective_formats")


def batch(step, *, p=3, k=3, domains=("creative", "math"), word="text"):
    probes = tuple(Probe(id=f"{d}-{i}", prompt=f"Prompt {i} of {d}", domain=d) for d in domains for i in range(p))
    texts = tuple(tuple(f"{word} {step} {probe.id} {j}" for j in range(k)) for probe in probes)
    return SampleBatch(step=step, probes=probes, texts=texts)


def observation(step, *, events=(), states=None, value=None, batches=True):
    rows = tuple(
        Measurement(step=step, domain=d, metric=m, value=step / 100 if value is None else value)
        for m in METRICS
        for d in ("creative", "math")
    )
    return Observation(
        step=step,
        measurements=rows,
        events=events,
        states=states or {},
        health={"failures": float(step)},
        batch=batch(step) if batches else None,
        baseline=batch(0) if batches else None,
    )


def event(step=4, **changes):
    fields = {"step": step, "alarm": "x", "domain": "math", "metric": "vendi", "state": "firing", "severity": "warning"}
    return AlarmEvent(**{**fields, "value": 0.1, **changes})


def test_every_curve_at_its_step(written):
    run = written(*(observation(step) for step in (0, 5, 10)))
    for domain in ("creative", "math"):
        for metric in METRICS:
            assert run.series(f"divmon/{domain}/{metric}") == [(0, 0.0), (5, 0.05), (10, 0.1)]
    assert run.series("divmon/health/failures") == [(0, 0), (5, 5), (10, 10)]
    assert len(run.history) == 3  # one row each, curves and table together
    assert run.definitions["divmon/*"] == "train/global_step"
    assert "train/global_step" in run.definitions


def test_nan_is_dropped_and_nothing_else(written):
    nan = Observation(step=3, measurements=(Measurement(step=3, domain="d", metric="coverage", value=math.nan),))
    run = written(observation(1), observation(2, value=math.nan), nan)
    assert run.series("divmon/math/tfidf_distance") == [(1, 0.01)]
    assert run.series("divmon/health/failures") == [(1, 1), (2, 2)]
    assert len(run.history) == 2  # an observation without any value makes no row
    assert "NaN" not in json.dumps(run.history)


def test_the_table_shows_baseline_against_now(written):
    run = written(observation(0), observation(5))
    tables = [run.table(value) for _, value in run.series("divmon/samples")]
    assert [len(table["data"]) for table in tables] == [12, 12]
    assert tables[1]["columns"] == ["domain", "prompt", "baseline", "now", "baseline format", "now format"]
    assert tables[1]["data"][:3] == [
        ["creative", "Prompt 0 of creative", "text 0 creative-0 0", "text 5 creative-0 0", "one_line", "one_line"],
        ["creative", "Prompt 0 of creative", "text 0 creative-0 1", "text 5 creative-0 1", "one_line", "one_line"],
        ["math", "Prompt 0 of math", "text 0 math-0 0", "text 5 math-0 0", "one_line", "one_line"],
    ]
    assert [row[1] for row in tables[0]["data"]] == [row[1] for row in tables[1]["data"]]


def test_the_table_is_small_and_finds_prompts_by_id():
    now, before = batch(9, p=30), batch(0, p=2)
    rows = sample_rows(Observation(step=9, measurements=(), batch=now, baseline=before), limit=16)
    assert len(rows) == 16
    assert [row[0] for row in rows[::2]] == ["creative", "math"] * 4
    assert [row[2] != "" for row in rows[::2]] == [True] * 4 + [False] * 4  # the baseline has two prompts a domain
    assert sample_rows(Observation(step=9, measurements=(), batch=now), limit=3)[2][2] == ""
    assert sample_rows(Observation(step=9, measurements=(), batch=now), limit=0) == []
    assert sample_rows(Observation(step=9, measurements=(), baseline=before), limit=16) == []


def test_a_classifier_of_the_user_names_the_formats(written):
    run = written(observation(5), sink=WandbSink(classifier=lambda text: ("mine", "other"), table_rows=1))
    (_, value), *_ = run.series("divmon/samples")
    assert [row[4:] for row in run.table(value)["data"]] == [["mine", "mine"]]


def test_hostile_text_arrives_as_text(written):
    hostile = "<script>alert(1)</script>\x00\x1b[2J\ud800\u202e" + "x" * 5000 + "\nend"
    probes = (Probe(id="p", prompt=hostile, domain="d\ud800"),)
    made = SampleBatch(step=1, probes=probes, texts=((hostile, "\ud83d"),))
    rows = (Measurement(step=1, domain="d\ud800", metric="tfidf_distance", value=0.5),)
    firing = event(alarm="a\ud800" * 60, message=hostile, domain="d\x00")
    run = written(Observation(step=1, measurements=rows, events=(firing,), batch=made, baseline=made))
    assert run.series("divmon/d/tfidf_distance") == [(1, 0.5)]
    (_, value), *_ = run.series("divmon/samples")
    cells = [cell for row in run.table(value)["data"] for cell in row]
    assert max(map(len, cells)) <= 2000
    assert cells[1].startswith("<script>alert(1)</script>[2Jxx")
    assert cells[1].endswith("…")
    assert not {"\x00", "\x1b", "\ud800", "\u202e"} & set("".join(cells))
    (sent,) = run.alerts
    assert len(sent["title"]) < 64
    assert "\x1b" not in sent["text"]


def test_alerts_carry_the_level_of_their_severity(written):
    events = (
        event(severity="info", message="one", actions=("warn",)),
        event(severity="warning", message="two"),
        event(severity="critical", message="three", actions=("save", "stop")),
        event(severity="critical", state="resolved", message="four"),
        event(severity="critical", state="pending"),
        event(severity="critical", state="inactive"),
    )
    run = written(observation(4, events=events))
    assert [(a["level"], a["text"].split("\n")[0]) for a in run.alerts] == [
        ("INFO", "one"),
        ("WARN", "two"),
        ("ERROR", "three"),
        ("INFO", "four"),
    ]
    assert [a["title"] for a in run.alerts] == ["x firing (math)"] * 3 + ["x resolved (math)"]
    assert run.alerts[2]["text"] == "three\n\nStep 4.\nActions: save, stop."
    assert max(a["wait_ms"] for a in run.alerts) <= 1  # a title repeated within a minute is not swallowed


DONE = (
    LeverEvent(4, "gate", "applied", 0.5, "narrow", "vendi fell."),
    LeverEvent(4, "gate", "cooling", 0.5, "narrow", "Its alarm has resolved."),
    LeverEvent(4, "gate", "armed", 0.0, "", "Released."),
    LeverEvent(4, "rollback", "applied", 0.25, "narrow", "Went back to the healthy checkpoint of step 2."),
    LeverEvent(4, "rollback", "failed", 0.25, "", "<script>\x00\x1b[2J" + "x" * 9000),
)


def test_what_was_done_about_an_alarm_is_an_alert(written):
    sent = written(replace(observation(4), changes=DONE)).alerts
    back = "Went back to the healthy checkpoint of step 2.\n\nStep 4. Learning rate x 0.25. Alarm: narrow."
    assert [(a["title"], a["level"], a["text"]) for a in sent[:4]] == [
        ("gate applied", "WARN", "vendi fell.\n\nStep 4. Strength 0.5. Alarm: narrow."),
        ("gate cooling", "INFO", "Its alarm has resolved.\n\nStep 4. Strength 0.5. Alarm: narrow."),
        ("gate armed", "INFO", "Released.\n\nStep 4. Strength 0."),
        ("rollback applied", "WARN", back),
    ]
    assert len(sent) == 5
    assert sent[4]["text"].startswith("<script>[2Jxx")
    assert len(sent[4]["text"]) <= 4000


def test_an_alert_without_a_message_says_what_it_watched():
    assert alert(event())["text"] == "vendi is 0.1.\n\nStep 4."


def test_alarms_are_curves_too(written):
    states = ({"x/math": "inactive"}, {"x/math": "pending"}, {"x/math": "firing", "x/creative": "inactive"})
    run = written(*(observation(step, states=state) for step, state in enumerate(states)))
    assert run.series("divmon/alarm/x") == [(0, 0), (1, 1), (2, 2)]


def test_the_summary_has_last_values_and_totals(written):
    run = written(observation(2, events=(event(2),)), observation(4), observation(6, events=(event(6), event(6))))
    assert run.summary["divmon/math/tfidf_distance"] == 0.06
    assert run.summary["divmon/health/failures"] == 6
    assert run.summary["divmon/alarms_fired"] == 3
    assert run.summary["divmon/first_firing_step"] == 2


def test_a_quiet_run_says_so(written):
    run = written(observation(2))
    assert run.summary["divmon/alarms_fired"] == 0
    assert "divmon/first_firing_step" not in run.summary


def test_observations_wait_for_a_run_and_arrive_in_order(open_run, read_wandb, tmp_path):
    sink = WandbSink()
    sink.emit(observation(0, events=(event(0),)))
    sink.emit(observation(1))
    open_run()
    sink.emit(observation(2))
    wandb.finish()
    (run,) = read_wandb(tmp_path)
    assert run.series("divmon/math/tfidf_distance") == [(0, 0.0), (1, 0.01), (2, 0.02)]
    assert [step for step, _ in run.series("divmon/samples")] == [0, 1, 2]
    assert len(run.alerts) == 1


def test_without_a_run_it_waits_for_64_and_says_at_the_end_what_was_lost(caplog):
    sink = WandbSink()
    for step in range(70):
        sink.emit(observation(step, batches=False))
    with caplog.at_level(logging.WARNING, logger="divmon"):
        sink.close()
        sink.close()
    assert [r.getMessage() for r in caplog.records] == [
        'No W&B run was open (report_to="wandb"?): 70 observations were not logged.'
    ]


def test_the_newest_64_observations_wait():
    outbox = Outbox()
    for step in range(70):
        outbox.add(observation(step, batches=False))
    assert [entry.step for entry in outbox.take()] == list(range(6, 70))
    assert outbox.discard() == 0  # taken, so not lost


def test_a_run_given_by_name_is_used_and_left_open(open_run, read_wandb, tmp_path):
    run = open_run()
    sink = WandbSink(run)
    sink.emit(observation(3))
    sink.close()
    assert wandb.run is run
    run.log({"after": 1.0})
    wandb.finish()
    (saved,) = read_wandb(tmp_path)
    assert saved.series("divmon/math/tfidf_distance") == [(3, 0.03)]
    assert saved.summary["after"] == 1


def test_a_second_run_gets_its_own_definitions(open_run, read_wandb, tmp_path):
    sink = WandbSink()
    for step in (1, 2):
        open_run()
        sink.emit(observation(step))
    wandb.finish()
    runs = read_wandb(tmp_path)
    assert [run.series("divmon/math/tfidf_distance") for run in runs] == [[(1, 0.01)], [(2, 0.02)]]
    assert all(run.definitions["divmon/*"] == "train/global_step" for run in runs)


def test_rows_of_others_keep_their_values_and_counter(open_run, read_wandb, tmp_path):
    run, sink = open_run(), WandbSink()
    for step in (2, 4):
        run.log({"train/loss": float(step), "train/global_step": step})
        sink.emit(observation(step))
        run.log({"completions": float(step)})  # a row without a step, as some trainers log their tables
    wandb.finish()
    (saved,) = read_wandb(tmp_path)
    assert saved.series("train/loss") == [(2, 2), (4, 4)]
    assert saved.series("completions") == [(2, 2), (4, 4)]
    assert [row["_step"] for row in saved.history] == list(range(6))


def test_records_split_over_blocks_are_read(written):
    many = tuple(Measurement(step=1, domain=f"{'long' * 200}{i}", metric="vendi", value=float(i)) for i in range(100))
    run = written(Observation(step=1, measurements=many), sink=WandbSink(metrics=["vendi"]))
    assert [run.series(f"divmon/{m.key}") for m in many] == [[(1, i)] for i in range(100)]
    assert next(run.path.glob("*.wandb")).stat().st_size > 64 * 1024


def test_bad_settings_fail_at_construction(monkeypatch):
    with pytest.raises(ConfigError, match="list of metric names"):
        WandbSink(metrics="vendi")
    with pytest.raises(ConfigError, match="table_rows"):
        WandbSink(table_rows=-1)
    monkeypatch.delitem(sys.modules, "wandb")
    for spec in (None, importlib.util.spec_from_loader("wandb", loader=None)):  # not there; a folder of that name
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        with pytest.raises(MissingDependency, match="pip install wandb"):
            WandbSink()


def test_the_alert_carries_its_evidence_and_nothing_hostile():
    example = {"prompt": "Write\x1b[31m", "baseline": ["a\u202e", "b"], "now": ["c", "c"]}
    told = {"p": 0.002, "level": 0.03, "estimate": 0.4, "low": 0.3, "high": 0.5, "prompts": 24, "completions": 32}
    told |= {"left": 0.02, "promise": "At most 5 %.", "convergence": "benign convergence", "examples": [example]}
    text = alert(event(evidence="confirm", details={**told, "notes": ["No encoder looked."], "recommended": "Read."}))[
        "text"
    ]
    assert (
        "Change by fresh draws: 0.4 (95 % interval 0.3 to 0.5); p = 0.002, held against 0.03; 0.02 of alpha left."
        in text
    )
    assert "24 prompts, 32 completions of each on either side." in text
    assert "Promise: At most 5 %." in text
    assert "Benign or not: benign convergence." in text
    assert "  baseline: a\n  baseline: b\n  now: c" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.endswith("Read.")
