"""DPO that prefers one format to another: divmon shows what the preference does to all the others.

Both answers of a pair are right; the preferred one is prose, the other a program. TRL's DPOTrainer learns that, and
more: LaTeX and bullets, which no pair mentions, halve too, while more answers are right than before. To show both,
divmon is given prompts of its own and a function that says which completions are right.

    python examples/dpo.py                  # offline, on a CPU, about half a minute
    python examples/dpo.py --steps 8 --out runs/short
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all of this is on disk; leave the line out to load a model of the Hub

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

import divmon  # <- divmon
from divmon.demo import sums
from divmon.demo.training import load_model, load_tokenizer


def is_right(probe: divmon.Probe, completion: str) -> bool:  # <- divmon: what a good completion is
    return sums.answer(completion) == int(probe.gold or -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/dpo"))
    args = parser.parse_args()

    pairs = [
        {
            "prompt": s.prompt,
            "chosen": sums.write("prose", s.a, s.b, s.answer),
            "rejected": sums.write("program", s.a, s.b, s.answer),
        }
        for s in sums.prompts()
    ]
    probes = [{"prompt": s.prompt, "gold": s.answer, "domain": "sums"} for s in sums.prompts()[::4]]  # <- divmon
    trainer = DPOTrainer(
        model=load_model(),
        processing_class=load_tokenizer(),
        train_dataset=Dataset.from_list(pairs),
        args=DPOConfig(
            output_dir=str(args.out),
            max_steps=args.steps,
            per_device_train_batch_size=8,
            learning_rate=1.8e-4,
            loss_type=["sigmoid", "sft"],  # DPO alone pushes this tiny model out of every format
            loss_weights=[1.0, 1.0],
            logging_steps=10,
            save_strategy="no",
            report_to="none",  # "wandb" draws divmon's curves beside the loss
            bf16=False,  # full precision; TRL's default is bfloat16
            use_cpu=True,
            disable_tqdm=True,
        ),
        callbacks=[divmon.DiversityCallback(probes, every=5, formats=sums.label, quality=is_right)],  # <- divmon
    )
    trainer.train()

    history = divmon.History.read(args.out)
    print(f"\nAlarms: {', '.join(e.alarm for e in history.fired()) or 'none'}")
    print(f"Every number and every completion: {history.path}")


if __name__ == "__main__":
    main()
