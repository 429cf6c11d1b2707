"""Offline W&B runs and a trackio of their own for the tests of the sinks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from divmon.sinks import WandbSink


@pytest.fixture
def open_run(tmp_path, offline_wandb):
    """Opens an offline run as `WandbCallback` does."""
    import wandb

    offline_wandb(tmp_path)

    def start():
        run = wandb.init(project="divmon-test", reinit="finish_previous")
        run.define_metric("train/global_step")
        run.define_metric("*", step_metric="train/global_step", step_sync=True)
        return run

    return start


@pytest.fixture
def written(open_run, read_wandb, tmp_path):
    """Emits observations into one run, closes the sink, finishes the run and reads it."""

    import wandb

    def write(*observations, sink=None):
        open_run()
        sink = sink or WandbSink()
        for one in observations:
            sink.emit(one)
        sink.close()
        wandb.finish()
        return read_wandb(tmp_path)[-1]

    return write


@pytest.fixture
def trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """trackio writing below `tmp_path`, without the network.

    It reads TRACKIO_DIR when it is first imported, which another test may have done: so each module's copy is replaced.
    """
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = pytest.importorskip("trackio")
    where = {"TRACKIO_DIR": tmp_path / "trackio"}
    where |= {"MEDIA_DIR": where["TRACKIO_DIR"] / "media", "ARTIFACTS_DIR": where["TRACKIO_DIR"] / "artifacts"}
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        for constant, path in where.items():
            if hasattr(sys.modules[name], constant):
                monkeypatch.setattr(sys.modules[name], constant, path)
    for variable in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL"):
        monkeypatch.delenv(variable, raising=False)
    yield found
    if found.context_vars.current_run.get() is not None:
        found.finish()
