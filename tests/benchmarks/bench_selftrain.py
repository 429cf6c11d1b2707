"""Whether critiques keep the hard prompts that plain self-training loses: paired runs, equally many completions.

    python tests/benchmarks/bench_selftrain.py                    # 5 seeds, about two minutes on one core
    python tests/benchmarks/bench_selftrain.py --learning-rate 1e-4

The base is the packaged model of sums in columns (`divmon.demo.columns`). Each seed has prompts and held-out prompts of
its own, and trains itself twice with the same settings: plain, and guided by a function that names the first wrong
column and never what would be right; the model itself answers again. Critiques count as completions, though a function
writes them. The number that decides: the share of accepted completions from the two hardest levels, over all rounds,
guided over plain.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import numpy as np
import torch
from scipy import stats

from divmon.demo import columns, columns_run
from divmon.demo.columns_model import load_base
from divmon.selftraining import SelfTrained, beside

torch.set_num_threads(1)


def pair(folder: Path, *, seed: int, rounds: int, rate: float) -> tuple[SelfTrained, SelfTrained]:
    """Plain and guided self-training of the base model."""
    sft = columns_run.SFT | {"learning_rate": rate}
    model, tokenizer = load_base()
    plain, guided = (
        columns_run.training(
            model, tokenizer, out=folder / name, critic=critic, seed=seed, rounds=rounds, sft=sft
        ).run()
        for name, critic in (("plain", None), ("guided", columns.criticism))
    )
    return plain, guided


def mean_by_level(runs: list[SelfTrained], name: str) -> list[float]:
    """Over seeds: shares of accepted completions over all rounds, or a pass rate after the last one."""
    if name == "accepted":
        return np.mean([np.array(run.accepted) / sum(run.accepted) for run in runs], axis=0).tolist()
    return np.mean([getattr(run.rounds[-1], name) for run in runs], axis=0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=columns_run.SFT["learning_rate"])
    parser.add_argument("--out", type=Path, default=None, help="kept there, and read from there where it is finished")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp())
    started, found = time.process_time(), []
    for seed in args.seeds:
        found.append(pair(out / f"seed-{seed}", seed=seed, rounds=args.rounds, rate=args.learning_rate))
        print(f"seed {seed}\n{beside(*found[-1])}\n", flush=True)
    plains, guideds = [plain for plain, _ in found], [guided for _, guided in found]
    print(f"Mean of {len(found)} seeds, {args.rounds} rounds")
    print("level    data  accepted: plain  guided  pass@1: plain  guided  pass@k: plain  guided")
    first = plains[0].rounds[0]
    names = ("accepted", "pass_at_1", "pass_at_k")
    cells = [mean_by_level(runs, name) for name in names for runs in (plains, guideds)]
    for i, level in enumerate(first.levels):
        row = [first.data[i] / sum(first.data), *(values[i] for values in cells)]
        widths = (6, 15, 6, 13, 6, 13, 6)
        print(f"{level:>5}  " + "  ".join(f"{value:>{w}.3f}" for value, w in zip(row, widths, strict=True)))
    means = [sum(values) / len(values) for values in cells]
    total = "  ".join(f"{mean:>{w}.3f}" for mean, w in zip(means[2:], (13, 6, 13, 6), strict=True))
    print(f"  all  {'':29}  {total}")
    print("\nHardest two levels, accepted over data, by round (mean of seeds)")
    for name, runs in (("plain", plains), ("guided", guideds)):
        tails = np.array([[one.tail for one in run.rounds] for run in runs])
        print(f"  {name:<7} {'  '.join(f'{value:.3f}' for value in tails.mean(axis=0))}   all rounds "
              f"{np.mean([run.tail for run in runs]):.3f}; of hard prompts covered in the last round "
              f"{np.mean([np.mean(run.rounds[-1].covered[-2:]) for run in runs]):.3f}")  # fmt: skip
    ratios = np.array([guided.tail / plain.tail for plain, guided in found])
    logs = np.log(ratios)
    print(f"\nguided / plain by seed: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    geometric, half = math.exp(logs.mean()), 0.0
    if len(ratios) > 1:
        half = float(stats.t.ppf(0.975, len(ratios) - 1) * logs.std(ddof=1) / math.sqrt(len(ratios)))
    low, high = geometric * math.exp(-half), geometric * math.exp(half)
    print(f"geometric mean {geometric:.2f} (95 % t interval {low:.2f} to {high:.2f}); "
          f"at least 1.5: {'yes' if geometric >= 1.5 else 'no'}")  # fmt: skip
    spent = {one.spent for run in (*plains, *guideds) for one in run.rounds}
    seconds = time.process_time() - started
    print(f"completions a round in either arm: {', '.join(map(str, sorted(spent)))}; {seconds:.0f} s of one core")


if __name__ == "__main__":
    main()
