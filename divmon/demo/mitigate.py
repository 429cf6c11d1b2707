"""``divmon demo --mitigate``: the run that collapses beside the same run in which the alarm pulls a lever."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from divmon.demo.run import printer, quiet, watching
from divmon.history import History
from divmon.matching import match

LEVER = "diversity_reward"
FORMATS, RIGHT = "effective_correct_formats", "pass_at_1"


def run(out: Path, *, steps: int, seed: int) -> int:
    """Train twice, and compare where both are equally right.

    Args:
        out: Folder of both runs.
        steps: GRPO steps of each.
        seed: Of both.

    Returns:
        Exit status: 0 when the lever was pulled and left more formats in use at equal quality, 1 when not.
    """
    quiet(out)
    from divmon.demo import training

    print(
        "A tiny language model answers sums like 3+4= in four formats. TRL's GRPOTrainer trains it twice for "
        f"{steps} steps; the reward pays right answers.\nIn the first run an alarm warns. In the second one it changes "
        "the reward: a right answer then earns less, the more of its group are written like it.\n",
        flush=True,
    )
    histories = []
    for name, then in (("alone", ["warn"]), ("mitigated", [{LEVER: {"cooling": 20}}])):
        print(f"--- {name}", flush=True)
        folder = out / name
        trainer = training.grpo_trainer(
            output_dir=folder, healthy=False, steps=steps, seed=seed, callbacks=[watching([rule(then)])]
        )
        trainer.remove_callback(printer())
        trainer.train()
        histories.append(History.read(folder))
    alone, mitigated = histories
    text, better = told(alone, mitigated)
    print(f"\n{text}\n\n  histories    {alone.path}, {mitigated.path}")
    print(f"  report       divmon report {out / 'alone'} {out / 'mitigated'}", flush=True)
    return 0 if better else 1


def rule(then: list[Any]) -> dict[str, Any]:
    """The alarm of both runs: early, since nothing brings back a format that is no longer drawn."""
    return {
        "name": "formats-narrow",
        "metric": "effective_formats",
        "rule": "drop",
        "by": "15%",
        "for": 1,
        "clear_for": 2,
        "then": then,
    }


def told(alone: History, mitigated: History) -> tuple[str, bool]:
    """What happened, computed from both histories, and whether the second one has more formats at equal quality."""
    columns = [[history.series(metric, "sums") for metric in (FORMATS, RIGHT)] for history in (alone, mitigated)]
    lines = [
        "               alone               mitigated",
        "  step   formats  pass@1     formats  pass@1   (formats: effective number among right answers)",
    ]
    notes = {change.step: change.phase for change in mitigated.mitigations}
    for i, step in enumerate(columns[0][0].steps):
        cells = [float(series.values[i]) if i < len(series.values) else math.nan for pair in columns for series in pair]
        note = f"   {LEVER} {notes[int(step)]}" if int(step) in notes else ""
        lines.append(f"  {step:>4}   {cells[0]:>7.2f}  {cells[1]:>6.2f}     {cells[2]:>7.2f}  {cells[3]:>6.2f}{note}")
    found = match([right.values for _, right in columns])
    formats = [place.read(series.values) for (series, _), place in zip(columns, found.places, strict=True)]
    steps = [place.read(series.steps) for (series, _), place in zip(columns, found.places, strict=True)]
    lines += [
        "",
        f"At the highest pass@1 that both reach ({found.level:.2f}; step {steps[0]:.0f} and step {steps[1]:.0f}), "
        f"{formats[0]:.2f} formats are in use alone, and {formats[1]:.2f} with the lever: "
        f"{formats[1] / formats[0]:.1f} times as many.",
    ]
    if not any(change.phase == "applied" for change in mitigated.mitigations):
        lines.append("The alarm never fired, so the lever was never pulled.")
    return "\n".join(lines), bool(notes) and formats[1] > formats[0]
