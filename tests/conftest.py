"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Tiny models are no faster on several threads, and threads that wait for each other are slow on a busy machine. Before
# torch is loaded, and inherited by every process a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing is looked up, and no test waits for a network that is not there. Read once, when huggingface_hub is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


collect_ignore_glob = ["benchmarks/*"]  # commands, run on demand; they import each other


def _load(name: str) -> ModuleType:
    """A helper module beside this file (with importlib import mode, test directories are not on the path)."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def read_wandb() -> Callable[..., list[Any]]:
    """Reads the offline W&B runs below a directory; see `wandb_reader.read`."""
    read: Callable[..., list[Any]] = _load("wandb_reader").read
    return read


@pytest.fixture
def offline_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Makes W&B write offline runs below a directory from now on; ends whatever run is open, now and afterwards."""
    wandb = pytest.importorskip("wandb")

    def write_to(directory: Path) -> None:
        wandb.teardown()  # it reads its environment once a process
        for name, value in {"MODE": "offline", "DIR": str(directory), "SILENT": "true", "CONSOLE": "off"}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)

    yield write_to
    wandb.finish()
    wandb.teardown()


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Tiny models, data and real trainers; see `tiny.py`."""
    return _load("tiny")
