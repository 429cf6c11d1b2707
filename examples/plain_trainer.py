"""A plain transformers.Trainer with divmon, on balanced data: no format wins, and no alarm fires.

The tiny packaged model goes on training on sums answered in four formats equally often. divmon probes it on prompts
that are named here, and calls a good completion one that holds the probe's gold answer.

    python examples/plain_trainer.py        # offline, on a CPU, about half a minute
    python examples/plain_trainer.py --steps 10 --out runs/short
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all of this is on disk; leave the line out to load a model of the Hub

from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

import divmon  # <- divmon
from divmon.demo import sums
from divmon.demo.training import load_model, load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/plain_trainer"))
    args = parser.parse_args()

    tokenizer = load_tokenizer()
    texts = [s.prompt + sums.write(name, s.a, s.b, s.answer) for s in sums.prompts() for name in sums.FORMATS]
    rows = [{"input_ids": tokenizer(text + tokenizer.eos_token)["input_ids"]} for text in texts]
    probes = [  # <- divmon: any list of prompts; gold, domain and difficulty are optional
        {"prompt": s.prompt, "gold": s.answer, "domain": "sums", "difficulty": s.difficulty}  # <- divmon
        for s in sums.prompts()[::4]  # <- divmon
    ]  # <- divmon
    trainer = Trainer(
        model=load_model(),
        processing_class=tokenizer,  # divmon reads prompts and completions with it
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=Dataset.from_list(rows),
        args=TrainingArguments(
            output_dir=str(args.out),
            max_steps=args.steps,
            per_device_train_batch_size=16,
            learning_rate=1e-4,
            logging_steps=10,
            save_strategy="no",
            report_to="none",  # "wandb" draws divmon's curves beside the loss
            use_cpu=True,
            disable_tqdm=True,
        ),
        callbacks=[divmon.DiversityCallback(probes, every=10)],  # <- divmon
    )
    trainer.train()

    history = divmon.History.read(args.out)
    print(f"\nAlarms: {', '.join(e.alarm for e in history.fired()) or 'none'}")
    print(f"Every number and every completion: {history.path}")


if __name__ == "__main__":
    main()
