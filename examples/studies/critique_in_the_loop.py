"""Critique in the loop: does self-training lose the hard prompts, and do critiques keep them?

python examples/studies/critique_in_the_loop.py             # 3 seeds, 3 rounds
python examples/studies/critique_in_the_loop.py --quick     # 1 seed, 2 rounds
"""

import argparse
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from _study import Outcome, Study, run
from transformers.utils import logging

from divmon.demo import columns, columns_run
from divmon.demo.columns_model import load_base

STUDY = Study(
    name="Critique in the loop",
    question="Does self-training lose my hard prompts, and do critiques keep them?",
    claim="Plain self-training accepts fewer completions of hard prompts than the data has of them; with critiques of "
    "wrong answers, and as many completions drawn, it accepts at least 1.5 times as large a share.",
    feature="`divmon.SelfTraining(..., critic=...)`: shares, coverage and pass rates by level and round",
    source="Xi et al. 2024, arXiv:2411.16579; Ding et al. 2024, arXiv:2411.00750",
)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Plain and guided self-training of the same base models."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found: dict[str, Any] = {"plain tail": [], "guided tail": [], "ratio": []}
    accepted: dict[str, list[list[float]]] = {"plain": [], "guided": []}
    rates: dict[str, list[float]] = {"plain": [], "guided": []}
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = load_base()
        for seed in range(args.seed, args.seed + (1 if args.quick else 3)):
            for name, critic in (("plain", None), ("guided", columns.criticism)):
                out = Path(folder) / f"{name}-{seed}"
                rounds = 2 if args.quick else 3
                made = columns_run.training(model, tokenizer, out=out, seed=seed, critic=critic, rounds=rounds).run()
                found[f"{name} tail"].append(made.tail)
                accepted[name].append([count / sum(made.accepted) for count in made.accepted])
                rates[name].append(sum(made.rounds[-1].pass_at_1) / len(made.rounds[-1].pass_at_1))
            found["ratio"].append(found["guided tail"][-1] / found["plain tail"][-1])
    found["share in the data by level"] = [1 / len(columns.LEVELS)] * len(columns.LEVELS)
    for name, rows in accepted.items():
        found[f"{name}: accepted by level"] = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        found[f"{name}: held-out pass@1"] = sum(rates[name]) / len(rates[name])
    found["rounds"] = rounds
    return found


def judge(numbers: Mapping[str, Any]) -> Outcome:
    """From the tails: shares of the two hardest levels among accepted completions over their shares in the data."""
    plain, ratios = numbers["plain tail"], numbers["ratio"]
    if not all(math.isfinite(value) and value > 0 for value in (*plain, *ratios)):
        return Outcome("unknown", "In some run nothing hard was accepted at all, so there is no ratio.", None)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    lost, kept = sum(plain) / len(plain), sum(numbers["guided tail"]) / len(ratios)
    number = f"share of the two hardest levels, guided over plain: {mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f}, "
    number += f"{len(ratios)} seed{'s' if len(ratios) > 1 else ''})"
    what = f"Accepted over data, the two hardest levels stand at {lost:.2f} plain and {kept:.2f} with critiques."
    return Outcome(number, what, lost < 1 and mean >= 1.5)


if __name__ == "__main__":
    run(STUDY, measure, judge)
