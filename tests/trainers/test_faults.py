"""Law 7: a sampler, metric, sink or disk that fails never stops training; it is counted, and said once."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

import divmon
from divmon import history as history_module
from divmon.samplers.generate import GenerateSampler

pytestmark = pytest.mark.trainer
BASE: dict[str, Any] = {"every": 2, "k": 3, "max_new_tokens": 6}


class Seen:
    """A sink that keeps what it gets."""

    name = "seen"

    def __init__(self) -> None:
        self.observations: list[Any] = []

    def emit(self, observation: Any) -> None:
        self.observations.append(observation)

    def close(self) -> None:
        pass


def train(tiny: Any, out: Path, **settings: Any) -> tuple[Any, Seen]:
    seen = Seen()
    sinks = [*settings.pop("sinks", ()), seen]
    trainer = tiny.sft(out, callbacks=[divmon.DiversityCallback(**{**BASE, **settings}, sinks=sinks)])
    trainer.train()
    assert trainer.state.global_step == 6
    return trainer, seen


def reports(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "divmon" and f"{part}_failures" in r.getMessage()]


def test_a_sampler_that_fails(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = GenerateSampler.__call__

    def sometimes(self: GenerateSampler, probes: Any, *, step: int) -> Any:
        if step in (2, 4):
            raise RuntimeError("the sampler broke")
        return real(self, probes, step=step)

    monkeypatch.setattr(GenerateSampler, "__call__", sometimes)
    _, seen = train(tiny, tmp_path)
    assert [o.health["sampler_failures"] for o in seen.observations] == [0, 1, 2, 2]
    assert len(reports(caplog, "sampler")) == 1
    series = divmon.History.read(tmp_path).series("tfidf_distance", "train")
    assert series.steps.tolist() == [0, 2, 4, 6]
    assert [bool(v == v) for v in series.values] == [True, False, False, True]
    missed = seen.observations[1].get("tfidf_distance")
    assert "sampler failed" in missed.reason


def test_a_metric_that_fails(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(texts: list[str]) -> float:
        raise ZeroDivisionError("my metric broke")

    _, seen = train(tiny, tmp_path, metrics=["tfidf_distance", broken])
    last = seen.observations[-1]
    assert last.health["metric_failures"] == 4
    assert last.get("tfidf_distance").value >= 0
    assert "failed" in last.get("broken").reason
    [report] = reports(caplog, "metric")
    assert "my metric broke" in report


def test_a_sink_that_fails(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(observation: Any) -> None:
        raise ConnectionError("the tracker is down")

    _, seen = train(tiny, tmp_path, sinks=[broken])
    assert [o.health["sink_failures"] for o in seen.observations] == [1, 2, 3, 4]
    assert len(reports(caplog, "sink")) == 1


def test_a_quality_function_that_fails(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(probe: Any, completion: str) -> float:
        raise KeyError("my judge broke")

    _, seen = train(tiny, tmp_path, quality=broken)
    assert seen.observations[-1].health["quality_failures"] == 4
    assert seen.observations[-1].get("tfidf_distance").value >= 0
    [report] = reports(caplog, "quality")
    assert "my judge broke" in report


def test_a_disk_that_fails_and_comes_back(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, failing = history_module.os.fsync, {"left": 0}

    def full(fd: int) -> None:
        if failing["left"]:
            failing["left"] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    def fill_up(observation: Any) -> None:
        failing["left"] = 1 if observation.step in (0, 2) else 0

    monkeypatch.setattr(history_module.os, "fsync", full)
    _, seen = train(tiny, tmp_path, sinks=[fill_up])
    assert seen.observations[-1].health["disk_failures"] == 2
    assert len(reports(caplog, "disk")) == 1
    recorded = divmon.History.read(tmp_path)
    assert [e.step for e in recorded.evaluations] == [0, 2, 4, 6]
    assert all(len(recorded.batch(step).texts) == len(recorded.probes) for step in (0, 2, 4, 6))


def test_a_disk_that_never_works(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    _, seen = train(tiny, tmp_path, run_dir=tmp_path / "file" / "run")
    assert seen.observations[-1].health["disk_failures"] >= 1
    assert seen.observations[-1].get("tfidf_distance").value >= 0


def test_a_reaction_that_fails(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Any, context: Any) -> None:
        raise RuntimeError("my reaction broke")

    rule = {"name": "always", "metric": "length", "rule": "above", "level": 0, "for": 1, "then": [broken]}
    _, seen = train(tiny, tmp_path, alarms=[rule])
    assert seen.observations[-1].health["mitigation_failures"] == 1
    assert len(reports(caplog, "mitigation")) == 1


def test_strict_lets_failures_through(tiny: Any, tmp_path: Path) -> None:
    def broken(texts: list[str]) -> float:
        raise ZeroDivisionError("my metric broke")

    with pytest.raises(ZeroDivisionError):
        train(tiny, tmp_path, metrics=[broken], strict=True)


def test_nothing_is_lost_when_everything_fails(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GenerateSampler, "__call__", lambda *_, **__: 1 / 0)
    trainer, seen = train(tiny, tmp_path)
    assert seen.observations[-1].health["sampler_failures"] == 4
    assert len([row for row in trainer.state.log_history if "loss" in row]) == 6
