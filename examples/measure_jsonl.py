"""Measure completions that are already in a file, without any training.

The file is JSON Lines in the shape of GSM8K's example_model_solutions.jsonl: a question, its ground truth, and one
column a model with {"is_correct", "solution"}. All models' solutions of a question are measured together: do they
differ, in which formats are they written, how many are right? Without a file, a small one is written and measured.

    python examples/measure_jsonl.py        # a second
    python examples/measure_jsonl.py example_model_solutions.jsonl --out runs/gsm8k
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

from divmon import METRICS, History, Monitor
from divmon.samplers.file import batch_from_rows

THINGS = ("apples", "boats", "cats", "doors", "eggs", "flags", "goats", "hats", "inks", "jars", "kites", "lamps")
SAMPLES = {  # three models, each with a way of writing and a share of right answers
    "careful": ("Start with {a}.\nAdd {b}: {a} + {b} = <<{a}+{b}={x}>>{x}.\nA: {x}", 0.9),
    "terse": ("{a} + {b} = {x}\nA: {x}", 0.7),
    "listing": ("- there were {a}\n- {b} more came\n- so there are {x}", 0.5),
}


def write_sample(path: Path) -> Path:
    """Twelve problems of our own making, answered by three imagined models."""
    rng = random.Random(0)
    lines = []
    for thing in THINGS:
        a, b = rng.randint(2, 40), rng.randint(2, 40)
        row = {"question": f"{a} {thing} are here and {b} come. How many {thing} are here now?"}
        row["ground_truth"] = f"A: {a + b}"
        for model, (style, skill) in SAMPLES.items():
            x = a + b + (rng.random() > skill) * rng.randint(1, 9)
            row[model] = {"is_correct": x == a + b, "solution": style.format(a=a, b=b, x=x)}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), "utf-8")
    return path


def read_rows(path: Path) -> list[dict]:
    """One row a question, as divmon reads them: a prompt, its completions, and a reward for each of these."""
    rows = []
    for line in path.read_text("utf-8").splitlines():
        problem = json.loads(line)
        solutions = [value for value in problem.values() if isinstance(value, dict)]
        rows.append(
            {
                "prompt": problem["question"],
                "completions": [s["solution"] for s in solutions],
                "rewards": [s["is_correct"] for s in solutions],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="default: a small file of our own")
    parser.add_argument("--out", type=Path, default=Path("runs/measure_jsonl"))
    args = parser.parse_args()
    path = args.file or write_sample(Path(tempfile.mkdtemp()) / "sample.jsonl")

    batch = batch_from_rows(read_rows(path))
    metrics = [m for m in METRICS.values() if "encoder" not in m.needs]
    observation = Monitor(metrics, history=History.create(args.out, probes=batch.probes)).observe(batch)

    print(f"{len(batch.probes)} questions x {batch.k} solutions from {path}\n")
    for m in observation.measurements:
        if m.reason is None:
            print(f"{m.metric:<26} {m.value:7.3f}  [{m.low:6.3f}, {m.high:6.3f}]  {METRICS[m.metric].summary}")
        else:
            print(f"{m.metric:<26}       -  {m.reason}")
    print(f"\nEvery number, for each question too: {args.out}")


if __name__ == "__main__":
    main()
