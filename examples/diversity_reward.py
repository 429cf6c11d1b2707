"""GRPO whose reward looks only at the answer, until an alarm changes that: the run is mended, not stopped.

The tiny packaged model answers sums in four formats. TRL's GRPOTrainer pays right answers, however they are written,
and one format takes over. When the alarm fires, divmon pulls a lever: from then on a right answer earns less, the more
of its group are written like it. Once the formats are back the alarm resolves, and the lever is released a while later.

    python examples/diversity_reward.py     # offline, on a CPU, at most a minute
    python examples/diversity_reward.py --steps 8 --out runs/short
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

ALARMS = [  # <- divmon
    {
        "name": "formats-narrow",
        "metric": "effective_formats",
        "rule": "drop",
        "by": "15%",  # early: nothing brings back a format that is no longer drawn
        "for": 1,
        "clear_for": 2,
        "then": [{"diversity_reward": {"by": "formats", "cooling": 8}}],
    },
]


def right(completions: list[str], answer: list[int], **_: object) -> list[float]:
    return [float(sums.is_correct(text, gold)) for text, gold in zip(completions, answer, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/diversity_reward"))
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
            scale_rewards="none",  # else the weight of the lever means little where a whole group is right
            logging_strategy="no",  # a row of 30 numbers a step would hide what is to be seen here
            save_strategy="no",
            report_to="none",  # "wandb" draws divmon/mitigation/diversity_reward beside the curves
            bf16=False,  # full precision; TRL's default is bfloat16
            use_cpu=True,
            disable_tqdm=True,
        ),
    )
    divmon.watch(trainer, quality="rewards", every=4, formats=sums.label, alarms=ALARMS)  # <- divmon: all of it
    trainer.train()

    history = divmon.History.read(args.out)
    formats = history.series("effective_correct_formats", "train").values
    print(f"\nEffective formats among right answers: {', '.join(f'{value:.1f}' for value in formats)}")
    for change in history.mitigations:  # <- divmon: what the lever did
        print(f"  step {change.step}: {change.lever} {change.phase}. {change.reason}")
    print(f"Every number and every completion: {history.path}")


if __name__ == "__main__":
    main()
