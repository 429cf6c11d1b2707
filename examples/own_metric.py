"""A metric of your own, with an alarm on it: how many ways of beginning an answer are left?

The tiny packaged model answers sums in four formats. TRL's SFTTrainer trains it on bullet lists only. The metric is a
function of one prompt's completions; divmon calls it for each probe and takes the mean over them, with its interval.
An alarm names it like any other metric; then training is saved and stopped.

    python examples/own_metric.py           # offline, on a CPU, about half a minute
    python examples/own_metric.py --steps 10 --out runs/short
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


def distinct_openings(completions: list[str]) -> float:  # <- divmon: the function's name is the metric's
    """First words of a prompt's completions that differ, out of all of them."""
    first = [text.split(maxsplit=1)[0] if text.strip() else "" for text in completions]
    return len(set(first)) / len(first)


ALARMS = [  # <- divmon: without rules of your own, the default ones warn and never act
    {
        "name": "same-beginnings",
        "metric": "distinct_openings",
        "rule": "drop",
        "by": "40%",  # more than this below the value at step 0 ...
        "for": 2,  # ... at two evaluations in a row
        "severity": "critical",
        "then": ["save", "stop"],
    },
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/own_metric"))
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
            logging_strategy="no",
            save_strategy="no",  # divmon saves when the alarm fires
            report_to="none",
            bf16=False,  # full precision; TRL's default is bfloat16
            use_cpu=True,
            disable_tqdm=True,
        ),
        callbacks=[
            divmon.DiversityCallback(  # <- divmon
                every=5,  # <- divmon: steps between evaluations
                metrics=["tfidf_distance", distinct_openings],  # <- divmon: in place of the default ones
                alarms=ALARMS,  # <- divmon
            )  # <- divmon
        ],
    )
    trainer.train()

    history = divmon.History.read(args.out)
    series = history.series("distinct_openings", "train")
    print(f"\nTraining ended at step {trainer.state.global_step} of {args.steps}.")
    for step, value, low, high in zip(series.steps, series.values, series.low, series.high, strict=True):
        print(f"  step {step:>3}  distinct_openings {value:.2f}  [{low:.2f}, {high:.2f}]")
    print(f"Checkpoints: {', '.join(map(str, sorted(args.out.glob('checkpoint-*')))) or 'none'}")
    print(f"Every number and every completion: {history.path}")


if __name__ == "__main__":
    main()
