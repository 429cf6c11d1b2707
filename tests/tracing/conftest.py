"""A lineage of tiny checkpoints on disk, and a way to trace numbers that stand in a table."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

import divmon
from divmon.demo import sums
from divmon.probes import ProbeSet
from divmon.records import SampleBatch

PACKAGED = Path(sums.__file__).with_name("model")


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


def load_model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(PACKAGED)


def load_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(PACKAGED)


@pytest.fixture(scope="session")
def packaged() -> Any:
    """The packaged model and its tokenizer, without the trainers that `divmon.demo.training` loads."""
    return SimpleNamespace(load_model=load_model, load_tokenizer=load_tokenizer)


@pytest.fixture(scope="session", autouse=True)
def quick_collections() -> Iterator[None]:
    """Every checkpoint ends in a garbage collection; what is there already need not be looked at each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three stages of the packaged model: the second is sharper, the third has another head and no tokenizer."""
    import torch

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
