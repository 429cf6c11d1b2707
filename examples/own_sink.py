"""Sinks of your own: a function that appends every number to a CSV file, and a class that keeps the alerts in a file.

The tiny packaged model answers sums in four formats. TRL's SFTTrainer trains it on bullet lists only. After each
evaluation divmon hands its sinks one `divmon.Observation`: the measurements, what the alarms did, and the completions.
A sink that raises is counted and skipped; it never stops the training.

    python examples/own_sink.py             # offline, on a CPU, about half a minute
    python examples/own_sink.py --steps 10 --out runs/short
"""

import argparse
import csv
import functools
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all of this is on disk; leave the line out to load a model of the Hub

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import divmon  # <- divmon
from divmon.demo import sums
from divmon.demo.training import load_model, load_tokenizer


def append_csv(path: Path, observation: divmon.Observation) -> None:  # <- divmon: called after each evaluation
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(("step", "domain", "metric", "value", "low", "high", "missing because"))
        for m in observation.measurements:
            writer.writerow((m.step, m.domain, m.metric, m.value, m.low, m.high, m.reason or ""))


class Alerts:  # <- divmon: a name, emit and close make a sink; no base class is needed
    """Writes a line for each alarm that begins or ceases to fire, with one completion to look at."""

    name = "alerts"

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8")

    def emit(self, observation: divmon.Observation) -> None:
        """Take one evaluation."""
        for event in observation.events:
            if event.state in ("firing", "resolved"):
                sample = observation.batch.texts[0][0] if observation.batch else ""
                self.file.write(f"{event.state}: {event.message} For example {sample!r}\n")
        self.file.flush()

    def close(self) -> None:
        """Training has ended. May be called more than once."""
        self.file.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/own_sink"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table, alerts = args.out / "diversity.csv", args.out / "alerts.txt"
    table.unlink(missing_ok=True)  # of an earlier run

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
            save_strategy="no",
            report_to="none",
            bf16=False,  # full precision; TRL's default is bfloat16
            use_cpu=True,
            disable_tqdm=True,
        ),
        callbacks=[
            divmon.DiversityCallback(  # <- divmon
                every=5,  # <- divmon: steps between evaluations
                formats=sums.label,  # <- divmon: text -> name of its format
                sinks=["console", functools.partial(append_csv, table), Alerts(alerts)],  # <- divmon: exactly these
            )  # <- divmon
        ],
    )
    trainer.train()

    print(f"\n{table}: {len(table.read_text('utf-8').splitlines()) - 1} numbers")
    print(f"{alerts}:\n{alerts.read_text('utf-8')}")


if __name__ == "__main__":
    main()
