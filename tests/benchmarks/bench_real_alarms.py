"""Whether confirmed alarms keep their promise on a real model under real trainers, and whether they come in time.

    python tests/benchmarks/bench_real_alarms.py              # 2,000 redraws, 20 healthy runs, 2 runs of each collapse
    python tests/benchmarks/bench_real_alarms.py --quick      # 200 redraws, 3 healthy runs, 1 run of each collapse

The model is the demo's (0.3M parameters; sums in four formats).

- Redraws: two independent batches of the unchanged model, 12 prompts with 4 completions a side, no margin, tested by
  the engine. Its p-value is compared with a count over all relabellings made here; with ties broken at random, that
  count must be uniform. The engine counts ties against the alarm, so its own p-values may be larger, never smaller.
- Own samples: supervised fine-tuning on completions of the model itself, under alarms on all that the default alarms
  watch, but critical and as tight as `by: 5%, tolerate: 5%`.
- Collapses: runs that lose their formats, under alarms of `by: 20%` that only watch, so that the whole fall is seen;
  and twins that have no reason to.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import real_runs as real
from scipy.stats import binomtest, kstest

METRICS = ("tfidf_distance", "effective_formats")
BLOCK = 10  # redraws drawn at once
CHUNK = 5  # blocks a job
LEVELS = (0.01, 0.05)
STEPS, ROWS = 60, 960  # of a healthy run
WRONG = 0.001  # p-value below which a promise counts as broken


def redrawn(first: int) -> Any:
    """One job of redraws."""
    _quiet()
    return real.redraws(METRICS, blocks=range(first, first + CHUNK), block=BLOCK)


def healthy(seed: int) -> real.Seen:
    """One run on the policy's own samples."""
    _quiet()
    rows = real.policy_rows(ROWS, seed)
    with tempfile.TemporaryDirectory() as out:
        make = partial(_own, rows, seed)
        return real.watched(make, real.EVERYTHING, Path(out), every=10)


def _own(rows: list[dict[str, str]], seed: int, out: Path, callbacks: list[Any]) -> Any:
    return real.sft(rows, out, STEPS, seed, callbacks)


def collapse(which: tuple[int, int, bool]) -> tuple[str, real.Seen]:
    """One run of a collapse (number of the scenario, seed, True) or of its twin."""
    _quiet()
    number, seed, sick = which
    found = list(real.scenarios(seed))[number]
    make = found.sick if sick else found.well
    with tempfile.TemporaryDirectory() as out:
        return found.name, real.watched(make, real.COLLAPSE, Path(out), every=found.every, step=found.step)


def _quiet() -> None:
    from datasets import disable_progress_bars
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    real.torch.set_num_threads(1)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def good(met: bool) -> str:
    """A verdict in a table."""
    return "yes" if met else "**no**"


def redraw_table(found: dict[str, list[real.Redraw]]) -> tuple[str, bool]:
    """Uniformity of p-values by metric, and whether all is well."""
    rows, well = [], True
    for name, cases in found.items():
        n = len(cases)
        p, spread, brute = (np.array([getattr(case, key) for case in cases]) for key in ("p", "spread", "brute"))
        equal = int((np.abs(p - brute) < 1e-9).sum())
        above, uniform = kstest(p, "uniform", alternative="greater").pvalue, kstest(spread, "uniform").pvalue
        hits = [int((p <= level).sum()) for level in LEVELS]
        sound = [binomtest(h, n, a, alternative="greater").pvalue for h, a in zip(hits, LEVELS, strict=True)]
        met = min(above, uniform, *sound) > WRONG and equal == n
        well &= met
        shares = [f"{h / n:.2%}" for h in hits]
        plain = kstest(p, "uniform").pvalue
        row = [name, f"{n:,}", f"{equal:,}", f"{uniform:.3f}", f"{plain:.3f}", f"{above:.3f}", *shares, good(met)]
        rows.append(row)
    head = ["redraws", "n", "p as counted here", "KS of p, ties at random", "KS of p", "KS, one-sided (too small)"]
    return table([*head, *(f"p <= {level:g}" for level in LEVELS), "holds"], rows), well


def healthy_table(runs: list[real.Seen]) -> tuple[str, bool]:
    """Screens and confirmations of healthy runs, by alarm, and whether none was confirmed."""
    names = [rule["name"] for rule in real.EVERYTHING]
    tested = Counter(v.alarm for run in runs for v in run.verdicts)
    confirmed = Counter(v.alarm for run in runs for v in run.confirmed)
    screens: Counter[str] = sum((Counter(run.screens) for run in runs), Counter())
    rows = []
    for rule, name in zip(real.EVERYTHING, names, strict=True):
        changes = [100 * max(map(abs, run.changes(rule["metric"]))) for run in runs]
        least = min((v.p for run in runs for v in run.verdicts if v.alarm == name), default=float("nan"))
        numbers = [str(screens[name]), str(tested[name]), str(confirmed[name]), f"{least:.3g}"]
        rows.append([name, *numbers, f"{np.median(changes):.1f}%", f"{max(changes):.1f}%"])
    total = [str(sum(c.values())) for c in (screens, tested, confirmed)]
    rows.append(["all", *total, "", "", ""])
    head = [f"{len(runs)} runs on own samples", "screens", "confirmations", "confirmed", "least p"]
    largest = ["largest change, as a share of the first value: median run", "largest of all"]
    return table([*head, *largest], rows), not confirmed


def collapse_table(found: list[tuple[tuple[int, int, bool], tuple[str, real.Seen]]]) -> tuple[str, bool]:
    """Collapses and twins, and whether each is caught before half of its fall."""
    rows, well = [], True
    for (_, seed, sick), (name, run) in found:
        who = [name if sick else f"{name}: twin", str(seed)]
        tested = str(len(run.verdicts))
        if not sick or not run.confirmed:
            met = sick == bool(run.confirmed)
            falls = [f"{run.total(metric):.0%}" for metric in METRICS]
            rows.append([*who, "silent" if not run.confirmed else "**fired**", "", "", "", *falls, tested, good(met)])
            well &= met
            continue
        first = run.confirmed[0]
        at, total = (
            [run.fall(metric, first.step) for metric in METRICS],
            [run.total(metric) for metric in METRICS],
        )
        # in time for the one that fired, and for the formats in any case
        met = all(
            2 * fall < whole
            for metric, fall, whole in zip(METRICS, at, total, strict=True)
            if metric in ("effective_formats", first.alarm.removesuffix("-drop"))
        )
        well &= met
        shown = [f"{fall:.0%} of {whole:.0%}" for fall, whole in zip(at, total, strict=True)]
        step = f"{first.step} of {run.steps[-1]}"
        rows.append([*who, first.alarm, step, f"{first.p:.2g}", f"{first.level:.2g}", *shown, tested, good(met)])
    head = ["run", "seed", "first confirmed alarm", "at step", "p", "level", "distance fell", "formats fell"]
    return table([*head, "confirmations", "as it should"], rows), well


def jobs(args: argparse.Namespace) -> Iterator[tuple[int, int, bool]]:
    """Collapses and twins."""
    for number in range(3):
        for seed in range(args.collapses):
            yield from ((number, seed, sick) for sick in (True, False))


def main() -> int:
    """Print the tables, and a verdict on each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redraws", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=20, help="healthy runs on own samples")
    parser.add_argument("--collapses", type=int, default=2, help="runs of each collapse and of each twin")
    parser.add_argument("--quick", action="store_true", help="200 redraws, 3 healthy runs, 1 of each collapse")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.quick:
        args.redraws, args.seeds, args.collapses = 200, 3, 1
    start, told = time.perf_counter(), []

    def say(what: str, begun: float, result: tuple[str, bool]) -> None:
        print(result[0], flush=True)
        told.append((what, result[1], time.perf_counter() - begun))

    with ProcessPoolExecutor(args.workers) as pool:
        if args.collapses:
            begun, tasks = time.perf_counter(), list(jobs(args))
            runs = list(pool.map(collapse, tasks))
            verdict = collapse_table(list(zip(tasks, runs, strict=True)))
            say("Collapses are confirmed before half of their fall; twins are silent", begun, verdict)
        if args.seeds:
            begun = time.perf_counter()
            say("Nothing is confirmed on own samples", begun, healthy_table(list(pool.map(healthy, range(args.seeds)))))
        if args.redraws:
            begun, found = time.perf_counter(), {name: [] for name in METRICS}
            for part in pool.map(redrawn, range(0, -(-args.redraws // BLOCK), CHUNK)):
                for name in METRICS:
                    found[name] += part[name]
            say("p-values of an unchanged policy are uniform, or larger", begun, redraw_table(found))
    for what, well, seconds in told:
        print(f"- {what}: {good(well)} ({seconds:.0f} s).")
    used = sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"- {time.perf_counter() - start:.0f} s with {args.workers} processes; {used:.0f} s of CPU time.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
