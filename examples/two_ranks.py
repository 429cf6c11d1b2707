"""Two processes train one model: each samples half of the probes, rank 0 measures, and a stop reaches both.

The tiny packaged model answers sums in four formats; TRL's SFTTrainer trains it on bullet lists only, on as many
processes as torchrun starts. divmon's line in the script is that of a single process. This prints which rank does
what. With GPUs each process would have its own; here they talk over gloo on the CPU.

    torchrun --nproc-per-node 2 examples/two_ranks.py      # offline, on a CPU, about half a minute
    python examples/two_ranks.py --out runs/one_rank       # one process measures the same at step 0
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

ALARMS = [  # <- divmon: rank 0 decides, and every rank obeys at the same step
    {
        "name": "one-format-takes-over",
        "metric": "format_dominance",  # the share of the most frequent format
        "rule": "above",
        "level": 0.8,
        "for": 2,  # evaluations in a row
        "severity": "critical",
        "then": ["save", "stop"],
    },
]


def told(observation: divmon.Observation) -> None:  # <- divmon: a sink, which rank 0 alone calls
    share = observation.get("format_dominance")
    if share is not None:
        print(f"{me()} measured all {share.n} probes at step {observation.step}", flush=True)


def me() -> str:
    return f"[rank {os.environ.get('RANK', '0')} of {os.environ.get('WORLD_SIZE', '1')}, process {os.getpid()}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/two_ranks"))
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
            report_to="none",  # "wandb" draws divmon's curves beside the loss
            bf16=False,  # full precision; TRL's default is bfloat16
            use_cpu=True,  # and with it gloo
            disable_tqdm=True,
        ),
    )
    divmon.watch(trainer, every=5, formats=sums.label, alarms=ALARMS, sinks=["console", told])  # <- divmon: all of it
    share = f"1 in {trainer.args.world_size}"
    print(f"{me()} trains on {share} of the rows and samples {share} of the probes", flush=True)
    trainer.train()

    print(f"{me()} ended at step {trainer.state.global_step} of {args.steps}", flush=True)
    if trainer.is_world_process_zero():
        print(f"Checkpoints: {', '.join(map(str, sorted(args.out.glob('checkpoint-*')))) or 'none'}")
        print(f"Every number and every completion: {divmon.History.read(args.out).path}")


if __name__ == "__main__":
    main()
