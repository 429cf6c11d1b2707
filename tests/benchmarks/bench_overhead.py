"""What watching costs: whole runs with and without divmon, one after the other in turn, and the arithmetic alone.

    python tests/benchmarks/bench_overhead.py
    python tests/benchmarks/bench_overhead.py --budget 2% --steps 500 --repeats 5      # hours, on a quiet core
    python tests/benchmarks/bench_overhead.py --budget 2% --steps 60 --repeats 1       # to see that it works

With `--budget`: SFT, DPO and GRPO on a model of 2.6 M parameters, 8 prompts x 4 for divmon, and GRPO watched by its
rollouts alone. The share by divmon's own count leaves the baseline out, and so does the ratio of whole runs beside it,
whose 95 % interval is over pairs of runs, one after the other in turn.

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


def larger(kind: str, module: Any) -> Any:
    """A trainer of `kind` on a Llama of 2.6 M parameters: 8 rows of about 150 tokens a step (GRPO: 8 x 4 of 32)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def model(**_: Any) -> Any:
        torch.manual_seed(0)
        shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
        ids = {name: getattr(module.tokenizer(), name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return LlamaForCausalLM(LlamaConfig(vocab_size=2048, max_position_embeddings=512, **shape, **ids))

    def make(out: Path, *, callbacks: Any, max_steps: int) -> Any:
        module.gpt2 = model
        words = " ".join(map(str, range(40))) if kind != "grpo" else "and then"
        module.PROMPTS[:] = [f"{a}+{b}= {words} {a * b}" for a in range(10, 40) for b in range(10, 14)]
        more: dict[str, Any] = {
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-4,
            "gradient_checkpointing": False,
        }
        if kind == "grpo":
            more |= {"per_device_train_batch_size": 32, "num_generations": 4, "max_completion_length": 32}
        return module.TRAINERS[kind](out, callbacks=callbacks, max_steps=max_steps, **more)

    return make


def within(pairs: list[tuple[float, float]]) -> str:
    """The mean ratio of pairs of runs, less 1, with its 95 % interval, in percent."""
    ratios = np.log([b / a for a, b in pairs])
    if len(ratios) < 2:
        return f"{100 * np.expm1(ratios.mean()):.1f} %"
    from scipy import stats

    half = stats.t.ppf(0.975, len(ratios) - 1) * ratios.std(ddof=1) / np.sqrt(len(ratios))
    low, high = np.expm1([ratios.mean() - half, ratios.mean() + half])
    return f"{100 * np.expm1(ratios.mean()):.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def whole(make: Any, steps: int, settings: dict[str, Any] | None) -> tuple[float, Any, list[int]]:
    """CPU seconds of one run without divmon's baseline, what doctor says of it, and the steps that were scored."""
    from divmon.doctor.runs import examine_run

    callbacks = [] if settings is None else [divmon.DiversityCallback(**settings)]
    with tempfile.TemporaryDirectory() as out:
        trainer = make(Path(out), callbacks=callbacks, max_steps=steps)
        start = time.process_time()
        trainer.train()
        took = time.process_time() - start
        if settings is None:
            return took, None, []
        found = examine_run(Path(out))
        return took - found.baseline, found, [e.step for e in divmon.History.read(out).scores().evaluations]


def budgets(module: Any, args: argparse.Namespace) -> None:
    """The table of `--budget`."""
    probes = [f"{a}+{b}= and then" for a in range(4) for b in range(2)]
    base: dict[str, Any] = {"probes": probes, "k": 4, "max_new_tokens": 32, "sinks": []}
    by_budget, never = {**base, "budget": args.budget}, 10**9
    alone = {**base, "score_every": never, "every": never, "moved": never}  # baseline and end are sampled all the same
    plans = {
        "SFT": ("sft", by_budget),
        "DPO": ("dpo", by_budget),
        "GRPO": ("grpo", by_budget),
        "GRPO, rollouts alone": ("grpo", alone),
    }
    print(f"| {args.steps} steps | own count | whole runs | a step | score | sampling | scores | tenths | samplings |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (kind, settings) in plans.items():
        if args.only and args.only != kind:
            continue
        make, pairs, own = larger(kind, module), [], []
        for _ in range(args.repeats):
            plain = whole(make, args.steps, None)[0]
            watched, found, scored = whole(make, args.steps, settings)
            pairs.append((plain, watched))
            own.append(100 * found.used)
        tenths = {(step - 1) * 10 // args.steps for step in scored if step > 0}
        costs = f"{pairs[-1][0] / args.steps:.3f} s | {found.score_cost:.3f} s | {found.sample_cost:.3f} s"
        counts = f"{found.scores - 1} | {len(tenths)} of 10 | {found.samplings - 1}"
        print(f"| {name} | {statistics.mean(own):.2f} % | {within(pairs)} | {costs} | {counts} |", flush=True)


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
    parser.add_argument("--budget", help="instead: runs with this budget on a larger model")
    parser.add_argument("--only", choices=("sft", "dpo", "grpo"), help="with --budget: this trainer")
    args = parser.parse_args()
    torch.set_num_threads(1)
    module = tiny()
    if args.budget is not None:
        budgets(module, args)
        return
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
