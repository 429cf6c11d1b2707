"""What scoring costs, and how good it is: against sampling, in memory, and against exact values.

    python tests/benchmarks/bench_score.py [--only cost|memory|exact] [--repeats 3] [--runs 4]

Cost: least of several repeats, taken in turns, in process CPU seconds on a CPU and wall seconds elsewhere; sampling and
scoring look at the same completions. Memory: peaks of processes of their own, on a CPU resident memory with everything
that was loaded, and without what was there before. Exact: a policy whose completions can all be listed, trained by real
steps (see tests/enumerable.py).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import math
import resource
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from bench_sampler import device, least, tiny_llama

from divmon.bank import Bank
from divmon.demo.training import load_tokenizer
from divmon.metrics.scores import bank_context, measure_scores, stale
from divmon.probes import ProbeSet
from divmon.records import Decoding, Probe, SampleBatch
from divmon.samplers.generate import GenerateSampler
from divmon.samplers.score import Scorer

sys.path.insert(1, str(Path(__file__).parents[1]))
toy = importlib.import_module("enumerable")  # of the tests

DEFAULT = {"vocabulary": 2048, "prompts": 8, "k": 4, "tokens": 64}
GROWTH = {"prompts": (4, 16), "k": (2, 8), "tokens": (32, 128), "vocabulary": (512, 32000)}
LARGE = {"vocabulary": 150_000, "rows": 16, "tokens": 64, "width": 64}
FIVE_POINTS = 0.05


def cost(repeats: int, *, width: int, vocabulary: int, prompts: int, k: int, tokens: int) -> tuple[float, float]:
    """Seconds of sampling P x K completions, and of scoring the same."""
    model, tokenizer = tiny_llama(vocabulary, width), load_tokenizer()
    tokenizer.eos_token = None
    probes = ProbeSet.of([f"{i + 10}+2=" * 3 for i in range(prompts)])
    sampler = GenerateSampler(model, tokenizer, k, Decoding(max_new_tokens=tokens))
    bank = Bank(sampler(probes, step=0), sampler.prompt_ids(probes))
    scorer = Scorer(model)
    sampled, scored = least(repeats, lambda: sampler(probes, step=0), lambda: scorer(bank, step=0))
    return sampled, scored


def costs(args: argparse.Namespace) -> None:
    print(f"\nScore against sample at equal completions, width {args.width}, on {device()}")
    print(
        f"{'vocabulary':>10} {'prompts':>7} {'K':>3} {'tokens':>6} {'sample s':>9} {'score s':>8} {'score/sample':>12}"
    )
    chosen = [DEFAULT, *({**DEFAULT, name: size} for name, sizes in GROWTH.items() for size in sizes)]
    for sizes in chosen:
        sampled, scored = cost(args.repeats, width=args.width, **sizes)
        shown = f"{sizes['vocabulary']:>10} {sizes['prompts']:>7} {sizes['k']:>3} {sizes['tokens']:>6}"
        print(f"{shown} {sampled:>9.3f} {scored:>8.4f} {scored / sampled:>12.3f}", flush=True)


def peak() -> float:
    """MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_peak(what: str) -> None:
    """Score or train on one batch of a model with a large vocabulary, and print the peak before and after."""
    torch.set_num_threads(1)
    model = tiny_llama(LARGE["vocabulary"], LARGE["width"])
    rows = torch.randint(0, LARGE["vocabulary"], (LARGE["rows"], LARGE["tokens"]), device=device())
    gc.collect()
    before = peak()
    if what == "train":
        optimiser = torch.optim.AdamW(model.parameters())
        model.train()
        model(rows, labels=rows).loss.backward()
        optimiser.step()
    else:
        ids = tuple((tuple(row[8:]),) for row in rows.tolist())
        unknown = tuple((np.zeros(len(row[0])),) for row in ids)
        probes = tuple(Probe(str(i), "?") for i in range(len(ids)))
        batch = SampleBatch(0, probes, (("",),) * len(ids), token_ids=ids, logprobs=unknown)
        Scorer(model)(Bank(batch, tuple(tuple(row[:8]) for row in rows.tolist())), step=0)
    print(before, peak())


def memory(args: argparse.Namespace) -> None:
    print(f"\nPeak memory in MiB: {LARGE}, on {device()}")
    found = {}
    for what in ("train", "score"):
        done = subprocess.run(
            [sys.executable, __file__, "--only", what], capture_output=True, text=True, check=True, timeout=300
        )
        before, after = map(float, done.stdout.split()[-2:])
        found[what] = (after, after - before)
        print(f"{what:>6}: {after:8.0f} in all, {after - before:8.0f} more than before")
    print(f"score / train: {found['score'][0] / found['train'][0]:.2f} in all, ", end="")
    print(f"{found['score'][1] / found['train'][1]:.2f} of what was added")


def estimated(bank: Bank, scored: SampleBatch, context: object) -> tuple[dict[str, tuple[float, float]], str | None]:
    """(estimate, standard error) by quantity, and why fresh completions are due."""
    measured = measure_scores(bank, scored, baseline=context, intervals=False)  # type: ignore[arg-type]
    found = {m.metric: m for m in measured}
    means = ("kl_per_token", "retained_mass", "retained_head", "retained_tail", "scored_entropy")
    known = {name: (found[name].value, float(found[name].details["standard_error"])) for name in means}
    shares = found["scored_format_dominance"]
    if not math.isnan(shares.value):
        errors = shares.details["standard_errors"]
        known |= {f"share:{name}": (value, errors[name]) for name, value in shares.details["shares"].items()}
    return known, stale(measured)


def exact(args: argparse.Namespace) -> None:
    """Coverage of three standard errors, and how far shares were off before fresh completions were asked for."""
    inside: dict[str, list[bool]] = defaultdict(list)
    off: dict[int, list[float]] = defaultdict(list)
    first, late = [], 0
    sizes = (32, 128)
    for run in range(args.runs):
        model = toy.close(toy.policy(run))
        base = toy.law(model)
        banks = {(k, s): toy.bank(base, k=k, seed=100 * run + s) for k in sizes for s in range(3)}
        contexts = {name: bank_context(bank, classifier=toy.label) for name, bank in banks.items()}
        asked: dict[tuple[int, int], int] = {}
        for step in range(args.steps):
            if step:
                toy.train(model, 1, seed=1000 * run + step, lr=8e-4)
            now, scorer = toy.law(model), Scorer(model)
            for name, bank in banks.items():
                truth = toy.exact(base, now, k=name[0])
                known, due = estimated(bank, scorer(bank, step=step), contexts[name])
                for quantity, (value, error) in known.items():
                    kind = quantity.split(":")[0]
                    inside[kind].append(abs(value - truth[quantity]) <= 3 * max(error, 1e-5))
                if due is not None:
                    asked.setdefault(name, step)
                wrong = [abs(v - truth[q]) for q, (v, _) in known.items() if q.startswith("share:")]
                if name not in asked and wrong:
                    off[name[0]].append(max(wrong))
                    late += name[0] == sizes[1] and max(wrong) > FIVE_POINTS
        first += list(asked.values())
    print(f"\nExact values: {args.runs} runs of {args.steps} checkpoints, {3 * len(sizes)} banks each")
    for kind, pairs in inside.items():
        print(f"{kind:>15}: {np.mean(pairs):7.2%} of {len(pairs):5d} (checkpoint, quantity) pairs within 3 SE")
    pairs = [pair for found in inside.values() for pair in found]
    print(f"{'all':>15}: {np.mean(pairs):7.2%} of {len(pairs):5d}")
    for k, worst in off.items():
        n = toy.PROMPTS * k
        print(f"bank of {n:5d}: worst share off by {max(worst):.3f} before fresh completions were asked for", end="")
        print(f" ({worst[0]:.3f} at the baseline itself)")
    print(f"fresh completions were asked for at steps {min(first, default=-1)} to {max(first, default=-1)};", end=" ")
    print(f"checkpoints of large banks off by more than five points before that: {late}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("cost", "memory", "exact", "train", "score"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--width", type=int, default=96)
    args = parser.parse_args()
    if args.only in ("train", "score"):
        one_peak(args.only)
        return
    for name, part in {"cost": costs, "memory": memory, "exact": exact}.items():
        if args.only in (None, name):
            part(args)


if __name__ == "__main__":
    main()
