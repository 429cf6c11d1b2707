"""What watching costs: whole runs with and without divmon, one after the other in turn, and the arithmetic alone.

    python tests/benchmarks/bench_overhead.py

Process time (CPU seconds of the whole process), so that other work on the machine matters less. The model is the tiny
one of the demo: with a real model the training step and the sampling both cost more, and the ratio depends on how many
completions are drawn for how many steps. The first column of the table says how many.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

import divmon
from divmon.demo import training
from divmon.metrics import default_metrics
from divmon.records import Probe, SampleBatch


def tiny() -> Any:
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "tiny.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.gpt2 = lambda **_: training.load_model()
    return module


def seconds(make: Any, steps: int, settings: dict[str, Any] | None) -> tuple[float, float]:
    """CPU seconds of one run, and the share that divmon says it took."""
    shares: list[float] = []
    sinks = [lambda observation: shares.append(observation.health["overhead"])]
    callbacks = [] if settings is None else [divmon.DiversityCallback(**settings, sinks=sinks)]
    with tempfile.TemporaryDirectory() as out:
        trainer = make(Path(out), callbacks=callbacks, max_steps=steps)
        start = time.process_time()
        trainer.train()
        return time.process_time() - start, shares[-1] if shares else 0.0


def arithmetic() -> float:
    """CPU seconds to measure 64 prompts x 16 completions of 160 words with every default metric."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(4000)])
    ranks = 1 / np.arange(1, 4001)
    texts = tuple(
        tuple(" ".join(rng.choice(words, size=160, p=ranks / ranks.sum())) for _ in range(16)) for _ in range(64)
    )
    batch = SampleBatch(0, tuple(Probe(str(i), "?") for i in range(64)), texts, source="file")
    monitor = divmon.Monitor(default_metrics())
    monitor.observe(batch)
    start = time.process_time()
    monitor.observe(batch)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    module = tiny()
    probes = [f"What is {a}+{b}?" for a in range(4) for b in range(2)]
    few = {"probes": probes, "k": 4, "every": args.steps // 2, "max_new_tokens": 32, "rollouts": False}
    plans: dict[str, tuple[str, str, dict[str, Any]]] = {
        "SFT, defaults": ("sft", f"21 x 24 x 8 in {args.steps} steps", {}),
        "SFT, 8 prompts x 4, 3 times": ("sft", f"3 x 8 x 4 in {args.steps} steps", few),
        "DPO, 8 prompts x 4, 3 times": ("dpo", f"3 x 8 x 4 in {args.steps} steps", few),
        "GRPO, 8 prompts x 4, 3 times": ("grpo", f"3 x 8 x 4 in {args.steps} steps", few),
        "GRPO, and rollouts every step": ("grpo", f"3 x 8 x 4 in {args.steps} steps", {**few, "rollouts": True}),
    }
    print("| run | completions drawn for divmon | without | with | ratio | share by its own count |")
    print("|---|---|---|---|---|---|")
    for name, (trainer, drawn, settings) in plans.items():
        make = module.TRAINERS[trainer]
        pairs = [(seconds(make, args.steps, None), seconds(make, args.steps, settings)) for _ in range(args.repeats)]
        plain, watched = (statistics.median(pair[i][0] for pair in pairs) for i in (0, 1))
        share = statistics.median(pair[1][1] for pair in pairs)
        print(
            f"| {name} | {drawn} | {plain:.1f} s | {watched:.1f} s | {watched / plain:.2f} | {share:.0%} |", flush=True
        )
    print(f"\nMeasuring 64 x 16 completions of 160 words: {arithmetic():.2f} CPU seconds.")


if __name__ == "__main__":
    main()
