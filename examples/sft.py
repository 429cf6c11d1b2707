"""Supervised fine-tuning on answers of one shape: the model forgets the other shapes, and divmon says so.

The tiny packaged model answers sums in four formats. TRL's SFTTrainer trains it on bullet lists only. divmon probes
it on the trainer's own prompts; its default alarms warn and never touch the training.

    python examples/sft.py                  # offline, on a CPU, about half a minute
    python examples/sft.py --steps 20 --out runs/short
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all of this is on disk; leave the line out to load a model of the Hub

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import divmon  # <- divmon
from divmon.demo import sums
from divmon.demo.training import load_model, load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/sft"))
    args = parser.parse_args()

    rows = [{"prompt": s.prompt, "completion": sums.write("bullets", s.a, s.b, s.answer)} for s in sums.prompts()]
    trainer = SFTTrainer(
        model=load_model(),
        processing_class=load_tokenizer(),
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(
            output_dir=str(args.out),
            max_steps=args.steps,
            per_device_train_batch_size=8,
            learning_rate=3e-4,
            lr_scheduler_type="constant",
            logging_steps=10,
            save_strategy="no",
            report_to="none",  # "wandb" draws divmon's curves beside the loss
            bf16=False,  # full precision; TRL's default is bfloat16
            use_cpu=True,
            disable_tqdm=True,
        ),
        callbacks=[
            divmon.DiversityCallback(  # <- divmon
                every=5,  # <- divmon: steps between evaluations
                formats=sums.label,  # <- divmon: text -> name of its format; the default knows 20 general ones
            )  # <- divmon
        ],
    )
    trainer.train()

    history = divmon.History.read(args.out)
    share = history.series("format_dominance", "train").values
    print(f"\nThe most frequent format went from {share[0]:.0%} to {share[-1]:.0%} of the answers.")
    for event in history.fired():
        print(f"  step {event.step:>3}  {event.alarm}")
    print(f"Every number and every completion is in {history.path}")


if __name__ == "__main__":
    main()
