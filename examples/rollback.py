"""SFT on answers of one format, until an alarm takes the run back: it finishes from a healthy policy, slower.

The tiny packaged model answers sums in four formats. It is fine-tuned on right answers that are all written in one of
them, and the other formats disappear. divmon keeps the newest policies that are well within the alarm's limit. When the
alarm fires, it puts weights, optimizer and scheduler back as they were then, and training goes on at a tenth of the
learning rate. The same training without the rollback is run first, so that the difference can be seen.

A rollback does not change what the data teach. Here they teach one format, so the narrowing goes on, only slowly: it is
a better place to end, or to change the data from, and no cure. With "finish": True the run would end there.

    python examples/rollback.py             # offline, on a CPU, about a minute
    python examples/rollback.py --steps 8 --out runs/short
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

ALARM = {  # <- divmon
    "name": "formats-narrow",
    "metric": "effective_formats",
    "rule": "drop",
    "by": "35%",
    "for": 1,
}
BACK = {"rollback": {"factor": 0.1, "cooling": 8, "most": 2}}  # <- divmon


def train(out: Path, steps: int, then: list) -> divmon.History:
    rows = [{"prompt": s.prompt, "completion": sums.write("bullets", s.a, s.b, s.answer)} for s in sums.prompts()]
    trainer = SFTTrainer(
        model=load_model(),
        processing_class=load_tokenizer(),
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(
            output_dir=str(out),
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=2e-4,
            lr_scheduler_type="constant",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",  # "wandb" sends each rollback as an alert
            bf16=False,  # full precision; TRL's default is bfloat16
            use_cpu=True,
            disable_tqdm=True,
        ),
    )
    probes = [{"prompt": s.prompt, "gold": str(s.answer)} for s in sums.prompts()[::4]]
    alarms = [{**ALARM, "then": then}]
    divmon.watch(trainer, probes, every=2, formats=sums.label, alarms=alarms)  # <- divmon: all of it
    trainer.train()
    return divmon.History.read(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/rollback"))
    args = parser.parse_args()

    print("Without a rollback:")
    plain = train(args.out / "plain", args.steps, ["warn"])
    print("\nThe same, but an alarm goes back:")
    back = train(args.out / "back", args.steps, ["warn", BACK])

    for metric in ("effective_formats", "pass_at_1"):
        print(f"\n{metric}, evaluation by evaluation:")
        for name, history in (("plain", plain), ("back", back)):
            values = history.series(metric, history.probes[0].domain).values
            print(f"  {name:5} {' '.join(f'{value:.2f}' for value in values)}")
    for change in back.mitigations:  # <- divmon: what was done
        print(f"  step {change.step}: rollback {change.phase}. {change.reason}")
    print(f"Healthy policies on disk: {', '.join(path.name for path in sorted((back.path / 'healthy').glob('*.pt')))}")


if __name__ == "__main__":
    main()
