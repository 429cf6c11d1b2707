"""The demo's two GRPO runs, watched by samplings and by scores side by side: when each alarm fires, and what it cost.

    python tests/benchmarks/bench_schedule.py            # three minutes on one quiet core
    python tests/benchmarks/bench_schedule.py --seeds 3

Both look every four steps at the same policy, and both alarms are screens over two evaluations in a row. On samplings:
the demo's own alarm, 35 % fewer effective formats. On scores: the default alarm, a tail that has lost a quarter more
than the head. Cost is process time, the baseline apart: drawing and measuring, against scoring and its numbers.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from divmon.demo.run import EVERY, quiet

SAMPLED = {"name": "sampled", "metric": "effective_formats", "rule": "drop", "by": "35%", "for": 2}
SCORED = {"name": "scored", "metric": "tail_to_head", "rule": "drop", "by": "25%", "for": 2}


def watched(out: Path, *, healthy: bool, seed: int, steps: int) -> Any:
    """The history of one run."""
    import divmon
    from divmon.demo import sums, training
    from divmon.demo.run import printer

    chosen = sums.prompts()[::6]
    probes = [{"prompt": s.prompt, "gold": str(s.answer), "domain": "sums"} for s in chosen]
    callback = divmon.DiversityCallback(
        probes,
        every=EVERY,
        score_every=EVERY,
        moved=1e9,  # only the gap asks for samplings, so that both series have the same steps
        k=8,
        formats=sums.label,
        quality=lambda probe, text: float(sums.is_correct(text, int(probe.gold))),
        alarms=[SAMPLED, SCORED],
        rollouts=False,
        sinks=[],
    )
    trainer = training.grpo_trainer(output_dir=out, healthy=healthy, steps=steps, seed=seed, callbacks=[callback])
    trainer.remove_callback(printer())
    trainer.train()
    return divmon.History.read(out)


def spent(history: Any, name: str, step: int) -> float:
    """Process seconds of scores or samplings up to `step`."""
    from divmon.doctor.runs import decisions

    rows = decisions(history.path)
    # what was decided at a step is paid by the next line; a score comes first, so its own step has two
    later = [row for row in rows if row["step"] > step]
    until = [row for row in rows if row["step"] <= step]
    return float(((later or rows[-1:])[0] if name == "samplings" else until[-1])[f"{name}_spent"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    print("| run | alarm | fires at step | process s until then | in the whole run | of that on samplings |")
    print("|---|---|---|---|---|---|", flush=True)
    for seed in range(args.seeds):
        for healthy in (False, True):
            name = f"{'healthy' if healthy else 'collapsing'}, seed {seed}"
            with tempfile.TemporaryDirectory() as folder:
                quiet(Path(folder))
                history = watched(Path(folder), healthy=healthy, seed=seed, steps=args.steps)
                scores = history.scores()
                whole = spent(history, "samplings", args.steps)
                for kind, found in (("samplings", history), ("scores", scores)):
                    fired = [event.step for event in found.fired()]
                    at = spent(history, kind, fired[0]) if fired else float("nan")
                    total = spent(history, kind, args.steps)
                    when = str(fired[0]) if fired else "never"
                    print(f"| {name} | on {kind} | {when} | {at:.2f} | {total:.2f} | {total / whole:.2f} |", flush=True)


if __name__ == "__main__":
    main()
