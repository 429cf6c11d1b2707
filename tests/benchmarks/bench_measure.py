"""What `divmon measure` takes for a large file: CPU seconds and peak memory, as the file grows.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_measure.py

Prompts x 8 completions of about 60 words (a Zipf law over 20,000), one completion a line, lines shuffled within windows
of 4,000, with rewards. Each size is measured in a process of its own with the default metrics.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

K, WORDS, WINDOW = 8, 60, 4_000
CODE = """
import resource, sys
from divmon.cli import main

status = main(["measure", *sys.argv[1:]])
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


def write(path: Path, prompts: int) -> None:
    """Invented completions, one a line, scattered."""
    rng = random.Random(0)
    names = [f"w{i:x}" for i in range(20_000)]
    cumulative = [0.0]
    for i in range(20_000):
        cumulative.append(cumulative[-1] + 1 / (i + 2))
    lines: list[str] = []
    with path.open("w", encoding="utf-8") as opened:
        for prompt in range(prompts):
            for _ in range(K):
                words = rng.choices(names, cum_weights=cumulative[1:], k=rng.randint(WORDS - 20, WORDS + 20))
                row = {"prompt": f"prompt {prompt}", "completion": " ".join(words), "reward": rng.randint(0, 1)}
                lines.append(json.dumps(row) + "\n")
            if len(lines) >= WINDOW or prompt == prompts - 1:
                rng.shuffle(lines)
                opened.writelines(lines)
                lines.clear()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[500, 2_500, 12_500])
    print("| completions | file | CPU seconds | completions a CPU second | peak memory |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for prompts in parser.parse_args().prompts:
            path = Path(folder) / f"{prompts}.jsonl"
            write(path, prompts)
            done = subprocess.run([sys.executable, "-c", CODE, str(path)], capture_output=True, text=True, check=True)
            seconds, kilobytes = map(float, done.stderr.split()[-2:])
            n, megabytes = prompts * K, kilobytes / 1024
            size = path.stat().st_size / 1e6
            print(f"| {n:,} | {size:.0f} MB | {seconds:.0f} | {n / seconds:,.0f} | {megabytes:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
