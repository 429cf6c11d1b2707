"""How good the alarms are: false alarms, power, what `divmon rules plan` predicts, and rivals on the same streams.

    python tests/benchmarks/bench_alarms.py              # 2,000 runs a cell
    python tests/benchmarks/bench_alarms.py --quick      # 200 runs a cell

Runs have 100 evaluations at K = 8 after a baseline; a confirmation compares 4 K fresh completions a prompt with 4 K
from one bank. Synthetic noise: the mean of a prompt's value is about 0.6, its standard deviation at K 0.08 (13 %); for
t(2), whose variance is infinite, the quartiles are those of the Gaussian. Real noise: ten completions of one model for
each of 100 prompts, drawn with replacement, and the TF-IDF distance between them.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from alarm_rivals import rivals
from alarm_streams import CHANGE_AT, KINDS, Noise, T, folded, real_distances, wandering, watch
from scipy.stats import binomtest

from divmon.alarms import Rule
from divmon.alarms.planning import plan_rules, power
from divmon.alarms.ruleset import RuleSet

ALPHA = 0.05
SIZES = [(p, cells) for p in (16, 24, 64) for cells in (1, 6)]
POWERS = [(64, 1, 0.10, 0.95), (24, 6, 0.15, 0.90)]  # P, shares, lasting drop, required share of runs
PILOTS = 16
FOLDED = 5  # cells of each calibration that go through the engine evaluation by evaluation
ORACLES = Path(__file__).parents[2].parent / "shared" / "oracles"
CASES = ("no change, tolerate: 0", "a drop at the margin", "wander inside the margin")


@dataclass(frozen=True)
class Job:
    """One cell of a table."""

    kind: str
    p: int
    cells: int
    what: str  # one of CASES, "power", "smallest" or "rivals"
    runs: int
    drop: float = 0.0
    start: int = CHANGE_AT


def rule(tolerate: str) -> Rule:
    """The rule of both tables."""
    return Rule(
        "x", metric="tfidf_distance", domain="x", rule="drop", by="5%", tolerate=tolerate, evidence="confirm", for_=1
    )


def made(job: Job, real: np.ndarray | None) -> Noise:
    """The noise of a job, with a seed of its own."""
    seed = zlib.crc32(repr(job).encode())
    distances = None
    if job.kind == "real":
        assert real is not None
        rows = np.random.default_rng(job.p).permutation(len(real))[: job.p]
        distances = real[rows]
    return Noise(job.kind, job.p, seed, distances)


def calibration(job: Job, noise: Noise) -> dict[str, float]:
    """The share of runs with a false alarm, and how many cells the engine itself judged otherwise."""
    rows, tested = job.runs * job.cells, rule("0%" if job.what == CASES[0] else "5%")
    factors: dict[str, np.ndarray | float] = {CASES[0]: 1.0, CASES[1]: 0.95}
    factor = factors[job.what] if job.what in factors else wandering(rows, 0.05, noise.rng)
    seen = watch(noise, tested, factor, runs=job.runs, cells=job.cells, alpha=ALPHA, keep=FOLDED)
    differ = sum(folded(cell, tested, ALPHA / job.cells) != cell.fired for cell in seen.kept)
    return {"false": int(np.isfinite(seen.fired).any(axis=1).sum()), "differ": differ, "attempts": seen.attempts.mean()}


def detection(job: Job, noise: Noise) -> dict[str, float]:
    """The share of runs in which one cell's lasting drop is found, and what plans from several pilots predict."""
    share, tested = ALPHA / job.cells, rule("5%")
    pilots, drop = [noise.pilot() for _ in range(PILOTS)], job.drop
    if job.what == "smallest":  # where the first pilot's plan expects 80 %
        book = RuleSet((tested,), alpha=share)
        drop = plan_rules(book, pilots[:1], evaluations=T).cells[0].smallest
        if math.isnan(drop):
            return {"drop": drop}
    factors = np.where(np.arange(1, T + 1) >= job.start, 1 - drop, 1.0)
    seen = watch(noise, tested, factors, runs=job.runs, cells=1, alpha=share)
    ok = (seen.fired >= job.start) & np.isfinite(seen.fired)
    predicted = [power(tested, pilot, -drop, share=share, evaluations=T, start=job.start) for pilot in pilots]
    # the same cell among others without a change, where eight confirmations are all that a run has
    crowd = np.ones((job.runs, job.cells, T))
    crowd[:, 0] = factors
    among = watch(noise, tested, crowd.reshape(-1, T), runs=job.runs, cells=job.cells, alpha=ALPHA).within[:, 0]
    return {
        "drop": drop,
        "found": float(ok.mean()),
        "delay": float(np.median(seen.fired[ok] - job.start)) if ok.any() else math.nan,
        "predicted": float(np.mean(predicted)),
        "low": float(np.quantile(predicted, 0.1)),
        "high": float(np.quantile(predicted, 0.9)),
        "capped": float(((among >= job.start) & np.isfinite(among)).mean()),
    }


def compared(job: Job, noise: Noise) -> dict[str, tuple[float, float]]:
    """By rule: the share of healthy runs with an alarm, and the share in which the drop is found (none before it)."""
    out: dict[str, list[float]] = {}
    for drop in (0.0, job.drop):
        fired = dict(rivals(noise, drop, runs=job.runs))
        factors = np.where(np.arange(1, T + 1) >= CHANGE_AT, 1 - drop, 1.0)
        seen = watch(noise, rule("5%"), factors, runs=job.runs, cells=1, alpha=ALPHA)
        fired = {"divmon, confirmed": seen.fired[:, 0], **fired}
        for name, at in fired.items():
            hit = np.isfinite(at) & ((at >= CHANGE_AT) | (drop == 0))
            out.setdefault(name, []).append(float(hit.mean()))
    return {name: (shares[0], shares[1]) for name, shares in out.items()}


def work(job: Job, real: np.ndarray | None) -> tuple[Job, dict]:
    """One job."""
    noise = made(job, real)
    does = {"power": detection, "smallest": detection, "rivals": compared}.get(job.what, calibration)
    return job, does(job, noise)


def jobs(runs: int, kinds: list[str]) -> Iterator[Job]:
    """Every cell of every table, the longest first."""
    for p, cells in sorted(SIZES, reverse=True):
        for kind in reversed(kinds):
            yield from (Job(kind, p, cells, case, runs) for case in CASES)
    for p, cells, drop, _ in POWERS:
        for kind in kinds:
            yield from (Job(kind, p, cells, "power", runs, drop, start) for start in (1, CHANGE_AT))
            yield Job(kind, p, cells, "smallest", runs)
    yield from (Job(kind, 64, 1, "rivals", runs, 0.10) for kind in kinds if kind in ("gaussian", "real"))


def verdict(hits: int, runs: int, case: str) -> str:
    """What the share of false alarms says about calibration."""
    if binomtest(hits, runs, ALPHA, alternative="greater").pvalue <= 0.001:
        return " **above**"
    return " **too few**" if case == CASES[0] and hits < 0.01 * runs else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def calibration_table(found: dict[Job, dict], kinds: list[str]) -> str:
    """Shares of runs with a false alarm, those that fail in bold."""
    rows = []
    for case in CASES:
        for kind in kinds:
            shares = {
                (j.p, j.cells): f"{r['false'] / j.runs:.1%}{verdict(r['false'], j.runs, case)}"
                for j, r in found.items()
                if (j.what, j.kind) == (case, kind)
            }
            rows.append([case, kind, *(shares[size] for size in SIZES)])
    return table(["runs with a false alarm", "noise", *(f"P={p}, {c} cell{'s'[: c > 1]}" for p, c in SIZES)], rows)


def power_table(found: dict[Job, dict]) -> str:
    """Shares of runs in which a lasting drop is found."""
    needs = {(p, cells): needed for p, cells, _, needed in POWERS}
    rows = []
    for job, r in found.items():
        if job.what not in ("power", "smallest"):
            continue
        name = [f"P={job.p}, alpha/{job.cells}", job.kind, str(job.start)]
        if "found" not in r:
            rows.append([*name, "none planned", *[""] * 6])
            continue
        first = job.what == "power" and job.start == 1
        met = good(r["found"] >= needs[job.p, job.cells] and r["delay"] <= 1) if first else ""
        predicted = f"{r['predicted']:.0%} ({r['low']:.0%} to {r['high']:.0%})"
        near = good(abs(r["found"] - r["predicted"]) <= 0.10)
        numbers = [f"{r['drop']:.1%}", f"{r['found']:.1%}", f"{r['delay']:g}", met, predicted, near]
        rows.append([*name, *numbers, f"{r['capped']:.1%}"])
    head = ["cell", "noise", "from evaluation", "drop", "found", "median delay", "required"]
    return table(
        [
            *head,
            f"planned (mean of {PILOTS} pilots; 80 % of them)",
            "within 10 points",
            "found among equals, 8 confirmations a run",
        ],
        rows,
    )


def good(met: bool) -> str:
    """A verdict in a table."""
    return "yes" if met else "**no**"


def rivals_table(found: dict[Job, dict]) -> str:
    """Rules on the same streams."""
    columns = {job.kind: r for job, r in found.items() if job.what == "rivals"}
    names = list(next(iter(columns.values())))
    head = ["P = 64", *(f"{kind}: {what}" for kind in columns for what in ("false alarms", "10 % drop found"))]
    return table(head, [[name, *(f"{share:.1%}" for r in columns.values() for share in r[name])] for name in names])


def summary(found: dict[Job, dict], kinds: list[str]) -> Iterator[str]:
    """A verdict on each requirement, with what fails it."""
    false = {job: r["false"] for job, r in found.items() if "false" in r}
    above = [j for j, hits in false.items() if "above" in verdict(hits, j.runs, j.what)]
    few = [j for j, hits in false.items() if "few" in verdict(hits, j.runs, j.what)]
    detected = {job: r for job, r in found.items() if "found" in r}
    needs = {(p, cells): needed for p, cells, _, needed in POWERS}
    asked = {j: r for j, r in detected.items() if j.what == "power" and j.start == 1}
    weak = [j for j, r in asked.items() if r["found"] < needs[j.p, j.cells] or r["delay"] > 1]
    far = [j for j, r in detected.items() if abs(r["found"] - r["predicted"]) > 0.10]
    n, differ = FOLDED * len(false), sum(int(found[job]["differ"]) for job in false)
    for text, failed, total in (
        ("False alarms are not significantly above alpha", above, len(false)),
        ("At tolerate: 0 at least 1 % of runs have a false alarm", few, len(kinds) * len(SIZES)),
        ("Power, from the first evaluation", weak, len(asked)),
        ("Plans are within 10 points", far, len(detected)),
    ):
        names = ", ".join(f"{j.kind} P={j.p}/{j.cells}" + (f" from {j.start}" if j.drop else "") for j in failed)
        yield f"- {text}: {total - len(failed)} of {total}." + (f" Not: {names}." if failed else "")
    yield f"- Of {n} cells that also went through the engine evaluation by evaluation, {differ} fired at another one."


def main() -> int:
    """Print the tables, and a verdict on each requirement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="200 runs a cell")
    parser.add_argument("--oracles", type=Path, default=ORACLES, help="folder with noveltybench/")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    start, runs = time.perf_counter(), 200 if args.quick else args.runs
    real = real_distances(args.oracles)
    kinds = [kind for kind in KINDS if kind != "real" or not isinstance(real, str)]
    if isinstance(real, str):
        print(f"Real noise is skipped: {real}.\n")
    with ProcessPoolExecutor(args.workers) as pool:
        do = partial(work, real=None if isinstance(real, str) else real)
        found = dict(pool.map(do, jobs(runs, kinds)))
    print(f"{runs:,} runs of {T} evaluations a cell, alpha = {ALPHA:g} a run.\n")
    print(calibration_table(found, kinds))
    print(power_table(found))
    print(rivals_table(found))
    print("\n".join(summary(found, kinds)))
    used = sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"- {time.perf_counter() - start:.0f} s with {args.workers} processes; {used:.0f} s of CPU time.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
