"""Self-training that keeps its hard prompts: wrong answers are criticised, and the model answers again.

A small model has learned sums from the left; the more carries a sum has, the more it guesses. It is trained on its own
right answers, round by round, from the same base: first plain, then with a critic who names the digits that are wrong
(never the right ones). Both draw equally many completions. The table shows what that does to each level of difficulty.

    python examples/self_training.py                  # offline, on a CPU, about a minute
    python examples/self_training.py --rounds 3 --out runs/longer

A run that is interrupted goes on where it was when it is started again.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all of this is on disk; leave the line out to load a model of the Hub
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from transformers import logging

import divmon
from divmon.demo import columns
from divmon.demo.columns_model import load_base
from divmon.selftraining import beside


def prompts(number: int, *, seed: int) -> list[dict]:
    """So many sums of each of the five levels. Each row has an id, its prompt and its difficulty."""
    found = columns.tasks([number] * len(columns.LEVELS), seed=seed)
    return [{"id": f"{seed}-{i}", "prompt": s.prompt, "difficulty": s.level} for i, s in enumerate(found)]


def is_right(probe: divmon.Probe, completion: str) -> bool:
    return columns.is_correct(probe.text, completion)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/self_training"))
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    model, tokenizer = load_base()
    runs = []
    for name, critic in (("plain", None), ("guided", columns.criticism)):  # or "policy", or a server's address
        training = divmon.SelfTraining(
            model,
            tokenizer,
            prompts(20, seed=0),
            is_right,
            critic=critic,
            settings={"keep": 4, "critiques": 4, "refinements": 2},
            rounds=args.rounds,
            samples=4,
            budget=800,  # completions a round, critiques included: eight a prompt
            held_out=prompts(8, seed=1),
            templates={"refine": columns.REFINE},  # this model knows no English; leave it out for one that does
            max_new_tokens=16,
            sft={"learning_rate": 2e-5, "use_cpu": True, "bf16": False, "disable_tqdm": True, "logging_steps": 1000},
            watch={"every": 1000, "sinks": [], "metrics": ["tfidf_distance", "tail_share"]},
            out=args.out / name,
        )
        runs.append(training.run())
        print(f"\n{runs[-1].table()}", flush=True)
    print(f"\n{beside(*runs)}\n\nAccepted answers, their lineage and divmon's histories: {args.out}")


if __name__ == "__main__":
    main()
