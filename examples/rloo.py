"""RLOO watched twice: on fixed probes every few steps, and on what it generates itself at every step.

The tiny packaged model answers sums in four formats. TRL's RLOOTrainer pays right answers, however they are written.
divmon samples its probes as for any trainer; besides, it measures the completions that RLOO draws for training anyway.
Those cost nothing and come every step, but on eight other prompts each time: they jump, and are a series of their own
with no alarms. At the end both are read back from disk and printed side by side.

    python examples/rloo.py                 # offline, on a CPU, about half a minute
    python examples/rloo.py --steps 8 --out runs/short
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all of this is on disk; leave the line out to load a model of the Hub

from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer

import divmon  # <- divmon
from divmon.demo import sums
from divmon.demo.training import load_model, load_tokenizer

PROBES = [{"prompt": s.prompt, "answer": s.answer, "domain": "sums"} for s in sums.prompts()[::6]]  # <- divmon


def beside(probes: divmon.History, rollouts: divmon.History) -> str:
    """Two metrics of both series, at the steps at which the probes were sampled."""
    lines = ["        effective formats      mean reward", "  step    probes  rollouts     probes  rollouts"]
    names = ("effective_formats", "mean_quality")
    pairs = [(probes.series(name, "sums"), rollouts.series(name, "rollouts")) for name in names]
    columns = [dict(zip(series.steps, series.values, strict=True)) for pair in pairs for series in pair]
    for step in columns[0]:
        cells = [f"{column[step]:.2f}" if step in column else "-" for column in columns]  # after the last step: none
        lines.append(f"  {step:>4}  {cells[0]:>8}  {cells[1]:>8}   {cells[2]:>8}  {cells[3]:>8}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("runs/rloo"))
    args = parser.parse_args()

    trainer = RLOOTrainer(
        model=load_model(),
        processing_class=load_tokenizer(),
        reward_funcs=sums.correctness,  # 1 for a right answer, else 0
        train_dataset=Dataset.from_list([{"prompt": s.prompt, "answer": s.answer} for s in sums.prompts()]),
        args=RLOOConfig(
            output_dir=str(args.out),
            max_steps=args.steps,
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=32,
            learning_rate=2.5e-4,
            lr_scheduler_type="constant",
            beta=0.0,
            logging_strategy="no",  # a row of 30 numbers a step would hide what is to be seen here
            save_strategy="no",
            report_to="none",  # "wandb" draws divmon's curves beside the reward
            bf16=False,  # full precision; TRL's default is bfloat16
            gradient_checkpointing=False,
            use_cpu=True,
            disable_tqdm=True,
        ),
        callbacks=[divmon.DiversityCallback(PROBES, quality="rewards", every=4, formats=sums.label)],  # <- divmon
    )
    trainer.train()

    probes = divmon.History.read(args.out)
    rollouts = probes.rollouts()  # <- divmon: the free series is a run of its own
    print(f"\n{beside(probes, rollouts)}\n")
    print(f"The probes are the same {len(probes.probes)} prompts each time; the rollouts are what was trained on.")
    print(f"Every number and every completion: {probes.path}")
    print(f"Every number of the rollouts: {rollouts.path}")


if __name__ == "__main__":
    main()
