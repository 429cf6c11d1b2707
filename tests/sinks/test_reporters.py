"""The trainer's other reporters get the short row, and the trainer notices nothing."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest

import divmon
from divmon.records import Measurement, Observation
from divmon.sinks import ReporterSink
from divmon.sinks.reporters import reporters

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
OURS = "divmon/math/tfidf_distance"


def observation(step, value=0.5):
    distance = Measurement(step=step, domain="math", metric="tfidf_distance", value=value)
    return Observation(step=step, measurements=(distance,), health={"failures": float("nan")})


class Client:
    """Stands in for the module of MLflow, of which the callback calls only this."""

    def __init__(self):
        self.sent = []

    def log_metrics(self, metrics, step, synchronous=True):
        self.sent.append((step, metrics))

    def active_run(self):
        return None


class Tracked(transformers.integrations.MLflowCallback):
    """MLflow's callback with a client of its own: what it does with a row is Transformers' code."""

    def __init__(self):
        self._ml_flow, self._initialized, self._async_log, self._auto_end_run = Client(), False, False, False

    def setup(self, args, state, model):
        self._initialized = True


class Mute(transformers.TrainerCallback):
    """A user's callback, no reporter."""

    def on_log(self, args, state, control, **kwargs):
        raise AssertionError("only reporters are called")


def trainer_with(*callbacks, step=4, rows=()):
    return SimpleNamespace(
        callback_handler=SimpleNamespace(callbacks=list(callbacks)),
        args=SimpleNamespace(output_dir="out"),
        state=transformers.TrainerState(global_step=step, log_history=list(rows), is_world_process_zero=True),
        control=transformers.TrainerControl(should_log=True),
        model=None,
    )


def started(reporter):
    reporter._initialized = True
    return reporter


def test_only_reporters_are_found():
    tracked = Tracked()
    skipped = [kind.__new__(kind) for kind in (transformers.integrations.WandbCallback,)]
    skipped.append(transformers.integrations.CodeCarbonCallback.__new__(transformers.integrations.CodeCarbonCallback))
    assert reporters(trainer_with(Mute(), tracked, *skipped)) == [tracked]


def test_a_reporter_gets_python_floats_at_the_step_and_changes_nothing():
    tracked = started(Tracked())
    trainer = trainer_with(Mute(), tracked)
    before = copy.deepcopy((trainer.state, trainer.control))
    ReporterSink(trainer).emit(observation(4))
    assert tracked._ml_flow.sent == [(4, {OURS: 0.5})]
    assert type(tracked._ml_flow.sent[0][1][OURS]) is float
    assert (trainer.state, trainer.control) == before


def test_rows_wait_until_the_reporter_has_begun():
    tracked = Tracked()
    trainer = trainer_with(tracked, step=0)
    sink = ReporterSink(trainer)
    sink.emit(observation(0))
    assert tracked._ml_flow.sent == []
    started(tracked)
    trainer.state.global_step = 5
    sink.emit(observation(5))
    assert [step for step, _ in tracked._ml_flow.sent] == [0, 5]


def test_a_row_without_values_is_not_sent():
    tracked = started(Tracked())
    ReporterSink(trainer_with(tracked)).emit(observation(4, float("nan")))
    assert tracked._ml_flow.sent == []


def test_a_reporter_that_has_ended_is_left_alone_and_it_is_said_once(caplog):
    tracked = started(Tracked())
    sink = ReporterSink(trainer_with(tracked, rows=[{"train_runtime": 1.0}]))
    with caplog.at_level(logging.WARNING):
        sink.emit(observation(4))
        sink.emit(observation(5))
        sink.close()
    assert tracked._ml_flow.sent == []
    assert [r.getMessage() for r in caplog.records] == [
        "Tracked had ended before step 4 was evaluated, so that row is not in it."
    ]


def test_a_failing_reporter_keeps_no_other_from_its_row():
    first, second = started(Tracked()), started(Tracked())
    first._ml_flow.log_metrics = None
    sink = ReporterSink(trainer_with(first, second))
    with pytest.raises(TypeError):
        sink.emit(observation(4))
    assert second._ml_flow.sent == [(4, {OURS: 0.5})]


@pytest.fixture
def events(tmp_path, monkeypatch):
    """Trains a tiny model with ``report_to="tensorboard"`` and reads the events it left."""
    read = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator

    def run(make, name, *callbacks):
        where = tmp_path / name / "events"
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(where))
        trainer = make(tmp_path / name, callbacks=callbacks, report_to="tensorboard", logging_steps=2)
        trainer.train()
        found = read(str(where), size_guidance={"scalars": 0})
        found.Reload()
        tags = found.Tags()["scalars"]
        return trainer, {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags}

    return run


def single(values):
    """As TensorBoard stores them."""
    return [float(torch.tensor(value, dtype=torch.float32)) for value in values]


@pytest.mark.trainer
@pytest.mark.parametrize("name", ["trainer", "sft", "grpo"])
@pytest.mark.parametrize("every", [2, 4])  # 4: the last evaluation, at 6, comes after the reporters have ended
def test_tensorboard_has_every_curve_and_the_trainer_keeps_its_rows(tiny, events, tmp_path, name, every):
    make = tiny.TRAINERS[name]
    plain, alone = events(make, "plain")
    settings = {"every": every, "k": 3, "max_new_tokens": 8, "strict": True}
    trainer, beside = events(make, "watched", divmon.DiversityCallback(**settings))

    assert tiny.rows(trainer) == tiny.rows(plain)
    assert tiny.digest(trainer.model) == tiny.digest(plain.model)
    clocks = ("time", "per_second")
    own = {tag: rows for tag, rows in beside.items() if not tag.startswith("train/divmon/")}
    assert own.keys() == alone.keys()
    for tag, rows in own.items():
        assert any(clock in tag for clock in clocks) or rows == alone[tag], tag
    assert [step for step, _ in own["train/loss"]] == [2, 4, 6]

    history = divmon.History.read(tmp_path / "watched")
    domain = history.probes[0].domain
    for metric in ("tfidf_distance", "effective_formats", "token_entropy"):
        found = history.series(metric, domain)
        expected = list(zip(found.steps, single(found.values), strict=True))
        assert beside[f"train/divmon/{domain}/{metric}"] == expected, metric
        assert list(found.steps) == ([0, 2, 4, 6] if every == 2 else [0, 4, 6])
    [writer] = reporters(trainer)
    assert writer.tb_writer is None  # no file is left open


@pytest.mark.trainer
@pytest.mark.parametrize("reports", [[], ["tensorboard"]])
def test_sinks_are_chosen_from_what_the_trainer_reports_to(tiny, tmp_path, monkeypatch, capsys, reports):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    callback = divmon.DiversityCallback(["1+1=", "2+2="], every=3, k=2, max_new_tokens=4, strict=True)
    seen = []
    end = callback.on_step_end
    callback.on_step_end = lambda *a, **k: (seen.append([sink.name for sink in callback.session.sinks]), end(*a, **k))[
        1
    ]
    tiny.trainer(tmp_path, callbacks=[callback], report_to=reports or "none").train()
    assert seen[0] == ["console", *(["reporters"] if reports else [])]
    assert ("set report_to=" in capsys.readouterr().out) is not bool(reports)
