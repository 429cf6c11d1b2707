"""Self-training on sums in columns: what the example, the study, the benchmark and the tests have in common."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from divmon.demo import columns
from divmon.records import Probe
from divmon.selftraining import SelfTraining

SFT = {
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 16,
    "learning_rate": 2e-5,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "logging_steps": 1000,
}
WATCH = {"every": 10**6, "sinks": [], "alarms": [], "metrics": ["tfidf_distance", "tail_share"]}
SETTINGS = {"keep": 4, "critiques": 4, "refinements": 2}
PROMPTS, HELD_OUT = 20, 12  # of each level


def rows(numbers: Sequence[int], *, seed: int) -> list[dict[str, Any]]:
    """So many prompts of each level."""
    return [
        {"id": f"{seed}-{i}", "prompt": one.prompt, "difficulty": one.level, "domain": "sums"}
        for i, one in enumerate(columns.tasks(numbers, seed=seed))
    ]


def quality(probe: Probe, text: str) -> float:
    """1 for a right answer, 0 for a wrong one."""
    return float(columns.is_correct(probe.text, text))


def training(model: Any, tokenizer: Any, *, out: Path, seed: int, critic: Any = None, **more: Any) -> SelfTraining:
    """Self-training of `model` that draws eight completions a prompt and round, critiques included.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        out: Folder.
        seed: Of prompts, held-out prompts, sampling and training.
        critic: None for plain self-training.
        **more: Other arguments of `SelfTraining`.
    """
    levels = len(columns.LEVELS)
    given: dict[str, Any] = {
        "settings": SETTINGS,
        "samples": 4,
        "budget": 8 * PROMPTS * levels,
        "keep": 4,
        "held_out": rows([HELD_OUT] * levels, seed=1000 + seed),
        "templates": {"refine": columns.REFINE},
        "max_new_tokens": 16,
        "sft": SFT,
        "watch": WATCH,
        **more,
    }
    given = {"prompts": rows([PROMPTS] * levels, seed=seed), "quality": quality, **given}
    return SelfTraining(model, tokenizer, critic=critic, out=out, seed=seed, **given)
