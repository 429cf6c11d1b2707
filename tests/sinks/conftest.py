"""Offline W&B runs for the tests of the sinks."""

from __future__ import annotations

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
