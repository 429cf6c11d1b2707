"""GRPO whose reward looks only at the answer: one format takes over, divmon saves a checkpoint and stops the run.

The tiny packaged model answers sums in four formats. TRL's GRPOTrainer pays right answers, however they are written.
divmon probes it on the trainer's own prompts, judges with the trainer's own reward, and acts on one alarm.

    python examples/grpo.py                 # offline, on a CPU, at most a minute
    python examples/grpo.py --steps 8 --out runs/short
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all of this is on disk; leave the line out to load a model of the Hub

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import divmon  # <- divmon
from divmon.demo import sums
from divmon.demo.training import load_model, load_tokenizer

ALARMS = [  # <- divmon: without rules of your own, the default ones warn and never act
    {
        "name": "one-format-takes-over",
        "metric": "effective_formats",  # 4.0 when four formats are used equally, 1.0 when only one is left
        "rule": "drop",
        "by": "35%",  # more than this below the value at step 0 ...
        "for": 2,  # ... at two evaluations in a row
        "severity": "critical",
        "then": ["save", "stop"],
    },
    {"name": "solves-less", "metric": "coverage", "rule": "drop", "by": 0.2, "for": 2},  # only warns
]


def right(completions: list[str], answer: list[int], **_: object) -> list[float]:
    return [float(sums.is_correct(text, gold)) for text, gold in zip(completions, answer, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("runs/grpo"))
    args = parser.parse_args()

    trainer = GRPOTrainer(
        model=load_model(),
        processing_class=load_tokenizer(),
        reward_funcs=right,
        train_dataset=Dataset.from_list([{"prompt": s.prompt, "answer": s.answer} for s in sums.prompts()]),
        args=GRPOConfig(
            output_dir=str(args.out),
            max_steps=args.steps,
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=32,
            learning_rate=2.5e-4,
            lr_scheduler_type="constant",
            scale_rewards="none",
            logging_strategy="no",  # a row of 30 numbers a step would hide what is to be seen here
            save_strategy="no",  # divmon saves when the alarm fires
            report_to="none",  # "wandb" draws divmon's curves beside the reward
            bf16=False,  # full precision; TRL's default is bfloat16
            use_cpu=True,
            disable_tqdm=True,
        ),
    )
    divmon.watch(trainer, quality="rewards", every=4, formats=sums.label, alarms=ALARMS)  # <- divmon: all of it
    trainer.train()

    print(f"\nTraining ended at step {trainer.state.global_step} of {args.steps}.")
    print(f"Checkpoints: {', '.join(map(str, sorted(args.out.glob('checkpoint-*')))) or 'none'}")
    print(f"Every number and every completion: {divmon.History.read(args.out).path}")


if __name__ == "__main__":
    main()
