"""Supervised fine-tuning on easy sums forgets the hard ones; an alarm asks for `resample`, which brings them back.

The tiny packaged model adds single digits. TRL's SFTTrainer trains it on easy sums only, twice. In both runs an alarm
fires when right answers to hard sums become rare. In the first run it warns. In the second one it asks for
critique-guided resampling: wrong answers are criticised, refinements are written, and those that are right are mixed
into the next batches, until the alarm resolves. What counts in the end are hard sums that were never probed.

A model of 0.3 million parameters cannot read a critique. So the refinements are written by a helper: the same model
as it was before this training. With one that follows instructions, leave `writer` out: it refines its own answers.

    python examples/resample_sft.py                  # offline, on a CPU, about a minute
"""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all of this is on disk; leave the line out to load a model of the Hub

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import divmon
from divmon.demo import sums
from divmon.demo.training import load_model, load_tokenizer
from divmon.resampling.writers import ModelWriter

HARD = [s for s in sums.prompts() if s.difficulty >= 4]
EASY = [s for s in sums.prompts() if s.difficulty <= 2]


def right(probe: divmon.Probe, completion: str) -> float:
    return float(sums.is_correct(completion, int(probe.gold or -1)))


def critic(prompt: str, answer: str) -> str:
    a, b = map(int, re.findall(r"\d", prompt)[:2])
    if sums.answer(answer) is None:
        return "It gives no number in any of the known forms, so nobody can tell what it adds up to."
    return (
        f"Step 1, the digits {a} and {b}, may hold. Step 2 does not: counting on from {a}, it stops at a wrong number."
    )


class Helper(ModelWriter):
    """The model as it was: it answers the question that it finds in what it is asked, and ignores the critique."""

    def write(self, prompts: Sequence[Any], *, temperature: float, keys: Sequence[int]) -> list[str]:
        """Answers to the bare questions."""
        questions = [re.search(r"What is \d\+\d\?", str(prompt))[0] for prompt in prompts]
        return super().write(questions, temperature=temperature, keys=keys)


def train(out: Path, *, steps: int, seed: int, then: list) -> divmon.History:
    rows = [{"prompt": s.prompt, "completion": sums.write("bullets", s.a, s.b, s.answer)} for s in EASY]
    hard = [{"id": s.prompt, "prompt": s.prompt, "gold": str(s.answer)} for s in HARD]
    probes = [{**row, "domain": "unseen" if i % 2 else "hard"} for i, row in enumerate(hard)]
    helper: dict[str, Any] = {}
    if "warn" not in then:
        helper["critic"] = critic  # or "policy", "model:NAME", "http://localhost:8000/v1#NAME"
        helper["writer"] = Helper(load_model(), load_tokenizer(), max_new_tokens=32, name="helper")
    trainer = SFTTrainer(
        model=load_model(),
        processing_class=load_tokenizer(),
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(
            output_dir=str(out),
            max_steps=steps,
            seed=seed,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            bf16=False,
            use_cpu=True,
            disable_tqdm=True,
        ),
        callbacks=[
            divmon.DiversityCallback(
                probes,
                every=5,
                k=8,
                max_new_tokens=32,
                quality=right,
                formats=sums.label,
                metrics=["pass_at_1", "coverage", "effective_formats"],
                alarms=[
                    {
                        "name": "hard-sums-lost",
                        "metric": "pass_at_1",
                        "domain": "hard",  # the domain "unseen" only looks on
                        "rule": "drop",
                        "by": "25%",
                        "for": 1,
                        "then": then,
                    }
                ],
                **helper,
            )
        ],
    )
    trainer.train()
    return divmon.History.read(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/resample"))
    args = parser.parse_args()

    resample = {"resample": {"min_correct": 6, "share": 0.5, "cooling": 20}}
    runs = {"alone": ["warn"], "resampled": [resample]}
    found = {name: train(args.out / name, steps=args.steps, seed=args.seed, then=then) for name, then in runs.items()}

    print("\nHard sums answered right (pass@1); those of `unseen` were never probed for, criticised or refined:")
    print(f"  {'step':>4}" + "".join(f"  {name + ', ' + d:>17}" for name in runs for d in ("hard", "unseen")))
    columns = [
        history.series("pass_at_1", domain).values for history in found.values() for domain in ("hard", "unseen")
    ]
    for i, evaluation in enumerate(found["alone"].evaluations):
        print(f"  {evaluation.step:>4}" + "".join(f"  {values[i]:>17.2f}" for values in columns))
    for change in found["resampled"].mitigations:
        print(f"  step {change.step:>3}  resample {change.phase}: {change.reason}")
    alone, resampled = columns[1][-1], columns[3][-1]
    print(
        f"\nOf the unseen hard sums {columns[1][0]:.0%} were right before training; afterwards {alone:.0%} alone and "
        f"{resampled:.0%} with resampling. One seed, a toy task: look at your own run."
    )
    print(f"What was accepted, with critique and first answer: {found['resampled'].path / 'lineage.jsonl'}")


if __name__ == "__main__":
    main()
