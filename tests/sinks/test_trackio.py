"""Real trackio runs on this machine, read back through trackio's own storage, and its dashboard looked at."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import pytest

import divmon
from divmon.errors import ConfigError, MissingDependency
from divmon.records import AlarmEvent, LeverEvent, Measurement, Observation, Probe, SampleBatch
from divmon.sinks import TrackioSink

PROJECT = "divmon-test"
ALARM = {"name": "long", "metric": "length", "rule": "above", "level": 0.5, "for": 1, "severity": "critical"}
OURS = "divmon/math/tfidf_distance"
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage")


def observation(step, *, value=None, events=(), text="text", domain="math"):
    batch = SampleBatch(step=step, probes=(Probe(id="a", prompt="Hi", domain=domain),), texts=((text, f"two {step}"),))
    value = step / 100 if value is None else value
    distance = Measurement(step=step, domain=domain, metric="tfidf_distance", value=value)
    return Observation(step=step, measurements=(distance,), events=events, batch=batch, baseline=batch)


def event(**changes):
    fields = {"step": 4, "alarm": "x", "domain": "math", "metric": "vendi", "state": "firing", "severity": "warning"}
    return AlarmEvent(**{**fields, "value": 0.1, **changes})


def opened(trackio, name="one", **more):
    return trackio.init(project=PROJECT, name=name, auto_log_cpu=False, auto_log_gpu=False, **more)


def logged(trackio, name="one"):
    return trackio.SQLiteStorage.get_logs(PROJECT, name)


def series(rows, key):
    return [(row["train/global_step"], row[key]) for row in rows if key in row]


def test_curves_at_their_steps_and_nan_dropped(trackio):
    opened(trackio)
    sink = TrackioSink()
    for one in (observation(0), observation(5), observation(7, value=math.nan), observation(10)):
        sink.emit(one)
    sink.close()
    assert trackio.context_vars.current_run.get() is not None  # the one who opened it finishes it
    trackio.finish()
    rows = logged(trackio)
    assert series(rows, OURS) == [(0, 0.0), (5, 0.05), (10, 0.1)]
    assert [step for step, _ in series(rows, "divmon/samples")] == [0, 5, 7, 10]
    assert len(rows) == 4
    assert all(isinstance(value, float) for _, value in series(rows, OURS))


def test_the_table_names_its_step(trackio):
    opened(trackio)
    sink = TrackioSink(classifier=lambda text: ("mine",), table_rows=1)
    sink.emit(observation(5))
    trackio.finish()
    [(_, table)] = series(logged(trackio), "divmon/samples")
    assert table == {
        "_type": "trackio.table",
        "_value": [
            {
                "step": "5",
                "domain": "math",
                "prompt": "Hi",
                "baseline": "text",
                "now": "text",
                "baseline format": "mine",
                "now format": "mine",
            }
        ],
    }


def test_hostile_text_arrives_as_text(trackio):
    hostile = "<script>alert(1)</script>\x00\x1b[2J\ud800\u202e" + "x" * 5000
    opened(trackio)
    firing = event(alarm="a\ud800", domain="d\x00", message=hostile)
    TrackioSink().emit(observation(1, text=hostile, domain="d\ud800", events=(firing,)))
    trackio.finish()
    rows = logged(trackio)
    assert series(rows, "divmon/d/tfidf_distance") == [(1, 0.01)]
    [(_, table)] = series(rows, "divmon/samples")
    cell = table["_value"][0]["now"]
    assert cell.startswith("<script>alert(1)</script>[2Jxx")
    assert len(cell) <= 2000
    assert not {"\x00", "\x1b", "\ud800", "\u202e"} & set(cell)
    [alert] = trackio.Api().alerts(PROJECT)
    assert alert["title"] == "a firing (d)"
    assert "\x1b" not in alert["text"]


def test_alerts_carry_the_level_of_their_severity(trackio):
    events = (
        event(severity="info", message="one"),
        event(severity="warning", message="two"),
        event(severity="critical", message="three", actions=("save", "stop")),
        event(severity="critical", state="resolved", message="four"),
        event(severity="critical", state="pending"),
    )
    opened(trackio)
    TrackioSink().emit(observation(4, events=events))
    trackio.finish()
    sent = sorted(trackio.Api().alerts(PROJECT), key=lambda alert: alert["timestamp"])
    assert [(alert["level"], alert["text"].split("\n")[0]) for alert in sent] == [
        ("info", "one"),
        ("warn", "two"),
        ("error", "three"),
        ("info", "four"),
    ]
    assert sent[2]["text"] == "three\n\nStep 4.\nActions: save, stop."
    assert sent[3]["title"] == "x resolved (math)"


def test_what_was_done_about_an_alarm_is_an_alert(trackio):
    back = LeverEvent(4, "rollback", "applied", 0.5, "narrow", "Went back.")
    opened(trackio)
    TrackioSink().emit(replace(observation(4), changes=(back,)))
    trackio.finish()
    [sent] = trackio.Api().alerts(PROJECT)
    assert (sent["level"], sent["title"]) == ("warn", "rollback applied")
    assert sent["text"] == "Went back.\n\nStep 4. Learning rate x 0.5. Alarm: narrow."


def test_observations_wait_for_a_run_and_are_counted_when_none_comes(trackio, caplog):
    sink = TrackioSink()
    for step in (1, 2):
        sink.emit(observation(step))
    opened(trackio)
    sink.emit(observation(3))
    trackio.finish()
    assert [step for step, _ in series(logged(trackio), OURS)] == [1, 2, 3]
    sink.close()
    with caplog.at_level(logging.WARNING):
        sink.emit(observation(4))  # the run before was let go of: this one is not its
        sink.close()
        sink.close()
    assert [r.getMessage() for r in caplog.records] == [
        'No trackio run was open (report_to="trackio"?): 1 observations were not logged.'
    ]
    assert len(logged(trackio)) == 3


def test_what_comes_after_the_end_goes_into_the_same_run(trackio):
    opened(trackio, config={"mine": 1})
    sink = TrackioSink()
    sink.emit(observation(1))
    trackio.finish()
    sink.emit(observation(2, events=(event(),)))
    sink.close()
    assert [step for step, _ in series(logged(trackio), OURS)] == [1, 2]
    assert len(trackio.Api().alerts(PROJECT)) == 1
    [run] = trackio.Api().runs(PROJECT)
    assert run.config["mine"] == 1


def test_a_late_row_of_a_remote_run_is_said_once(trackio, caplog):
    rows = []
    remote = SimpleNamespace(url="http://server", log=lambda row: rows.append(row["train/global_step"]))
    token = trackio.context_vars.current_run.set(remote)
    sink = TrackioSink(table_rows=0)
    sink.emit(observation(1))
    trackio.context_vars.current_run.reset(token)
    with caplog.at_level(logging.WARNING):
        sink.emit(observation(2))
        sink.emit(observation(3))
    assert rows == [1, 2, 3]
    [said] = caplog.records
    assert "before step 2 was evaluated" in said.getMessage()


def test_bad_settings_fail_at_construction(monkeypatch):
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install 'divmon\[trackio\]'"):
        TrackioSink()
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace())
    with pytest.raises(ConfigError, match="table_rows"):
        TrackioSink(table_rows=-1)


def trained(tiny, out, *, watched, name, **settings):
    """A trainer that reports to trackio, after training; every=4 of 6 steps, so that the last evaluation comes late."""
    settings = {"every": 4, "k": 3, "max_new_tokens": 8, "alarms": [ALARM], "strict": True, **settings}
    callbacks = [divmon.DiversityCallback(**settings)] if watched else []
    more = {"report_to": "trackio", "project": PROJECT, "run_name": name, "logging_steps": 2}
    trainer = tiny.sft(out, callbacks=callbacks, **more)
    trainer.train()
    return trainer


def own_rows(rows):
    """The trainer's rows, without clocks and trackio's count of rows."""
    rows = [row for row in rows if not any(key.startswith("divmon/") for key in row)]
    return [{k: v for k, v in row.items() if k not in ("timestamp", "step") and "time" not in k} for row in rows]


@pytest.mark.trainer
def test_a_trainer_gets_every_curve_and_loses_no_row(tiny, trackio, tmp_path):
    plain = trained(tiny, tmp_path / "plain", watched=False, name="plain")
    watched = trained(tiny, tmp_path / "watched", watched=True, name="watched")
    rows = logged(trackio, "watched")
    assert own_rows(rows) == own_rows(logged(trackio, "plain"))
    assert [step for step, _ in series(rows, "train/loss")] == [2, 4, 6]
    assert tiny.rows(watched) == tiny.rows(plain)
    history = divmon.History.read(tmp_path / "watched")
    domain = history.probes[0].domain
    for metric in ("tfidf_distance", "effective_formats", "format_dominance", "token_entropy"):
        found = history.series(metric, domain)
        assert series(rows, f"divmon/{domain}/{metric}") == list(zip(found.steps, found.values, strict=True)), metric
        assert list(found.steps) == [0, 4, 6]
    assert series(rows, "divmon/alarm/long") == [(0, 2.0), (4, 2.0), (6, 2.0)]
    assert series(rows, "divmon/health/sink_failures") == [(0, 0), (4, 0), (6, 0)]
    tables = series(rows, "divmon/samples")
    assert [(step, {cell["step"] for cell in table["_value"]}) for step, table in tables] == [
        (0, {"0"}),
        (4, {"4"}),
        (6, {"6"}),
    ]
    [alert] = trackio.Api().alerts(PROJECT)
    assert (alert["run"], alert["level"]) == ("watched", "error")
    assert "long" in alert["title"]
    run = next(run for run in trackio.Api().runs(PROJECT) if run.name == "watched")
    assert run.config["max_steps"] == 6  # what the trainer recorded is still there


@pytest.fixture
def dashboard(trackio):
    """trackio's dashboard on a free port of this machine, showing a run with three points of a curve."""
    opened(trackio)
    sink = TrackioSink()
    for step in (0, 50, 100):
        sink.emit(observation(step, events=(event(),) if step == 100 else ()))
    trackio.finish()
    app, url, share, _ = trackio.show(PROJECT, open_browser=False, block_thread=False, share=False)
    assert share is None
    assert url.startswith("http://127.0.0.1:")
    yield url.rstrip("/")
    app.close()


def ask(url, name, **question):
    request = urllib.request.Request(f"{url}/api/{name}", json.dumps(question).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["data"]


def test_the_dashboard_serves_the_run(dashboard):
    with urllib.request.urlopen(f"{dashboard}/?project={PROJECT}", timeout=30) as page:
        assert "Trackio" in page.read().decode()
    assert ask(dashboard, "get_all_projects") == [PROJECT]
    assert [run["name"] for run in ask(dashboard, "get_runs_for_project", project=PROJECT)] == ["one"]
    assert OURS in ask(dashboard, "get_metrics_for_run", project=PROJECT, run="one")
    assert series(ask(dashboard, "get_logs", project=PROJECT, run="one"), OURS) == [(0, 0), (50, 0.5), (100, 1)]
    [alert] = ask(dashboard, "get_alerts", project=PROJECT)
    assert alert["title"] == "x firing (math)"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to look at the dashboard with")
def test_the_dashboard_draws_the_curve(dashboard, tmp_path):
    page = f"{dashboard}/?project={PROJECT}&x_axis=train/global_step"
    flags = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
    flags += [f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=20000", "--timeout=60000"]
    done = subprocess.run(["chromium", *flags, "--dump-dom", page], capture_output=True, text=True, timeout=180)
    shown = done.stdout
    assert "tfidf_distance" in shown, done.stderr[-2000:]
    assert "divmon (" in shown  # the section of its own
    assert "x firing (math)" in shown
    assert "<canvas" in shown or "<svg" in shown
