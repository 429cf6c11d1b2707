"""A lineage of tiny checkpoints on disk, and a way to trace numbers that stand in a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

import divmon
from divmon.demo import sums
from divmon.probes import ProbeSet
from divmon.records import SampleBatch


def number(texts: list[str]) -> float:
    """What the first completion says."""
    return float(texts[0])


def right(probe: divmon.Probe, text: str) -> float:
    return float(sums.is_correct(text, int(probe.gold or -1)))


@pytest.fixture
def told() -> Callable[[Mapping[str, Mapping[str, float]]], Any]:
    """Opens checkpoints whose completions are the numbers of a table: checkpoint to prompt to number."""

    def open_table(table: Mapping[str, Mapping[str, float]]) -> Any:
        def draw(checkpoint: Any) -> Any:
            row = table[checkpoint.name]

            def sample(probes: ProbeSet, *, step: int) -> SampleBatch:
                return SampleBatch(step, probes.probes, tuple((repr(row[p.id]),) * 2 for p in probes))

            return sample

        return draw

    return open_table


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three stages of the packaged model: the second is sharper, the third has another head and no tokenizer."""
    import torch

    from divmon.demo.training import load_model, load_tokenizer

    root = tmp_path_factory.mktemp("lineage")
    for name, scale in (("base", 1.0), ("sft", 1.7), ("rl", 1.6)):
        model = load_model()
        with torch.no_grad():
            model.lm_head.weight.mul_(scale)
        model.save_pretrained(root / name)
        if name != "rl":
            load_tokenizer().save_pretrained(root / name)
    return {name: root / name for name in ("base", "sft", "rl")}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    chosen = sums.prompts()[::9]
    return [
        {"id": s.prompt, "prompt": s.prompt, "gold": str(s.answer), "domain": "easy" if s.a < 5 else "hard"}
        for s in chosen
    ]


@pytest.fixture
def judged() -> Any:
    return right


@pytest.fixture
def read_number() -> Any:
    return number
