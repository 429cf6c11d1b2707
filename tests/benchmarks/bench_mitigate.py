"""How much the diversity reward, pulled by an alarm, keeps: paired runs, judged on held-out prompts at equal quality.

    python tests/benchmarks/bench_mitigate.py                     # 5 seeds, about 15 minutes on one core
    python tests/benchmarks/bench_mitigate.py --seeds 1 --steps 40
    python tests/benchmarks/bench_mitigate.py --lever entropy_band

Each seed trains the packaged model with GRPO twice on four fifths of the sums, with the ordinary correctness reward:
once with an alarm that only warns, once with one that applies a lever (`diversity_reward` unless another is named). The
other fifth is probed. Runs are compared where both first reach the highest pass@1 that both reach (never at equal
steps; linearly between evaluations), by the effective number of formats among correct completions, which the reward
pays for, and by the effective number of wordings (Hill number of order 2 of the TF-IDF kernel among a prompt's correct
completions, over pairs), which it does not.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np

import divmon
from divmon.demo import sums
from divmon.matching import match
from divmon.metrics.text import char_ngrams

HELD_OUT = 20
K = 16
EVERY = 4


def split() -> tuple[list[sums.Sum], list[sums.Sum]]:
    """Sums to train on, and sums to probe."""
    chosen = set(np.random.default_rng(0).permutation(100)[:HELD_OUT].tolist())
    every = sums.prompts()
    return [s for i, s in enumerate(every) if i not in chosen], [s for i, s in enumerate(every) if i in chosen]


def rule(*then: Any) -> dict[str, Any]:
    name, metric = "formats-narrow", "effective_formats"
    return {"name": name, "metric": metric, "rule": "drop", "by": "15%", "for": 1, "clear_for": 2, "then": list(then)}


def wordings(texts: list[list[str]]) -> float:
    """1 / mean squared TF-IDF cosine over pairs of correct completions of a prompt: effective wordings, free of their
    number."""
    found = []
    for row in texts:
        if len(row) < 2:
            continue
        grams = char_ngrams(tuple(row))
        idf = np.log((1 + len(row)) / (1 + grams.documents)) + 1
        weights = grams.counts * np.repeat(idf, grams.documents)
        matrix = np.zeros((len(row), len(grams.grams)))
        matrix[grams.owners, np.repeat(np.arange(len(grams.grams)), grams.documents)] = weights
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        cosines = (matrix @ matrix.T)[np.triu_indices(len(row), 1)]
        found.append(float((cosines**2).mean()))
    return 1 / float(np.mean(found)) if found else math.nan


@dataclass(frozen=True)
class Run:
    """One run at its evaluations."""

    steps: np.ndarray
    accuracy: np.ndarray
    formats: np.ndarray
    wordings: np.ndarray
    applied: int | None


def train(out: Path, *, seed: int, steps: int, then: list[Any]) -> Run:
    import torch
    from transformers import PrinterCallback

    from divmon.demo import training

    torch.set_num_threads(1)
    trained, probed = split()
    probes = [{"prompt": s.prompt, "gold": str(s.answer), "domain": "sums"} for s in probed]
    callback = divmon.DiversityCallback(
        probes,
        every=EVERY,
        k=K,
        formats=sums.label,
        quality=lambda probe, text: float(sums.is_correct(text, int(probe.gold))),
        alarms=[rule(*then)],
        metrics=["effective_formats", "effective_correct_formats", "pass_at_1", "token_entropy", "length"],
        sinks=[],
        rollouts=False,
    )
    trainer = training.grpo_trainer(
        output_dir=out, healthy=False, steps=steps, seed=seed, callbacks=[callback], prompts=trained
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    history = divmon.History.read(out)
    accuracy = history.series("pass_at_1", "sums")
    spread = [
        wordings(
            [
                [text for text in row if sums.is_correct(text, int(probe.gold))]
                for probe, row in zip(history.probes, history.batch(int(step)).texts, strict=True)
            ]
        )
        for step in accuracy.steps
    ]
    applied = next((change.step for change in history.mitigations if change.phase == "applied"), None)
    formats = history.series("effective_correct_formats", "sums").values
    return Run(accuracy.steps, accuracy.values, formats, np.array(spread), applied)


def compare(plain: Run, helped: Run) -> dict[str, float]:
    """Both at the highest pass@1 both reach, and at the end."""
    found = match([plain.accuracy, helped.accuracy])
    a, b = found.places
    formats = a.read(plain.formats), b.read(helped.formats)
    spread = a.read(plain.wordings), b.read(helped.wordings)
    return {
        "applied": -1 if helped.applied is None else helped.applied,
        "level": found.level,
        "plain step": a.read(plain.steps),
        "helped step": b.read(helped.steps),
        "plain formats": formats[0],
        "helped formats": formats[1],
        "formats ratio": formats[1] / formats[0],
        "wordings ratio": spread[1] / spread[0],
        "end formats ratio": float(helped.formats[-3:].mean() / plain.formats[-3:].mean()),
        "end wordings ratio": float(helped.wordings[-3:].mean() / plain.wordings[-3:].mean()),
        "end accuracy": float(helped.accuracy[-3:].mean() - plain.accuracy[-3:].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lever", default="diversity_reward")
    parser.add_argument("--curves", action="store_true", help="also print both curves of each seed")
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            plain = train(Path(folder) / "plain", seed=seed, steps=args.steps, then=["warn"])
            lever = {args.lever: {"cooling": 20}}
            helped = train(Path(folder) / "helped", seed=seed, steps=args.steps, then=[lever])
        rows.append(compare(plain, helped))
        if args.curves:
            for name, run in (("plain", plain), ("helped", helped)):
                print(name, "pass@1  ", np.round(run.accuracy, 3).tolist())
                print(name, "formats ", np.round(run.formats, 2).tolist())
                print(name, "wordings", np.round(run.wordings, 2).tolist(), flush=True)
        print(f"seed {seed}: " + ", ".join(f"{key} {value:.3g}" for key, value in rows[-1].items()), flush=True)
    for key in ("formats ratio", "wordings ratio", "end formats ratio", "end wordings ratio"):
        values = np.array([row[key] for row in rows])
        print(f"{key}: geometric mean {np.exp(np.log(values).mean()):.2f}, least {values.min():.2f}")
    print(f"accuracy at the end: {np.mean([row['end accuracy'] for row in rows]):+.3f}")


if __name__ == "__main__":
    main()
