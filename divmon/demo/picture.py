"""The shares of formats over training, as text and as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from divmon.history import History

WIDTH = 60  # characters of a full bar
FILLS = "█▒·░▓╳"  # neighbours differ in weight, so that bars read without colour


@dataclass(frozen=True)
class Shares:
    """Format shares over training.

    Attributes:
        steps: S steps.
        labels: F labels, the largest mean share first.
        values: S x F shares, each row summing to 1.
    """

    steps: tuple[int, ...]
    labels: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


def shares(history: History, domain: str) -> Shares:
    """The recorded format shares of `domain`."""
    rows = [
        (m.step, m.details["shares"])
        for evaluation in history.evaluations
        for m in evaluation.measurements
        if m.metric == "format_dominance" and m.domain == domain and m.details.get("shares")
    ]
    totals: dict[str, float] = {}
    for _, row in rows:
        for label, share in row.items():
            totals[label] = totals.get(label, 0.0) + share
    labels = tuple(sorted(totals, key=lambda label: (-totals[label], label)))
    values = tuple(tuple(float(row.get(label, 0.0)) for label in labels) for _, row in rows)
    return Shares(tuple(step for step, _ in rows), labels, values)


def in_terminal(found: Shares) -> str:
    """One stacked bar a step.

    >>> print(in_terminal(Shares((0, 9), ("a", "b"), ((0.5, 0.5), (0.9, 0.1)))))
    █ a   ▒ b
    step    0  ██████████████████████████████▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒  a 50%
    step    9  ██████████████████████████████████████████████████████▒▒▒▒▒▒  a 90%
    """
    fills = {label: FILLS[i % len(FILLS)] for i, label in enumerate(found.labels)}
    lines = ["   ".join(f"{fill} {label}" for label, fill in fills.items())]
    for step, row in zip(found.steps, found.values, strict=True):
        ends = _cumulative(row)
        bar = "".join(
            fills[label] * (round(end * WIDTH) - round(start * WIDTH))
            for label, start, end in zip(found.labels, (0.0, *ends), ends, strict=False)
        )
        top = max(range(len(row)), key=row.__getitem__)
        lines.append(f"step {step:>4}  {bar:<{WIDTH}}  {found.labels[top]} {row[top]:.0%}")
    return "\n".join(lines)


def _cumulative(row: Sequence[float]) -> tuple[float, ...]:
    ends, total = [], 0.0
    for share in row:
        total += share
        ends.append(total)
    return tuple(ends)


def as_png(history: History, domain: str, path: Path) -> Path:
    """Stacked shares above, the effective number of formats and pass@1 below, alarms marked; returns `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = shares(history, domain)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 2), layout="constrained")
    top.stackplot(found.steps, *zip(*found.values, strict=True), labels=found.labels, alpha=0.85)
    top.set(ylabel="share of completions", ylim=(0, 1), title=f"How the {domain} are answered")
    top.legend(loc="lower left", ncols=len(found.labels), framealpha=0.9)
    effective, passed = history.series("effective_formats", domain), history.series("pass_at_1", domain)
    bottom.plot(effective.steps, effective.values, marker="o", label="effective number of formats")
    bottom.fill_between(effective.steps, effective.low, effective.high, alpha=0.2)
    bottom.set(xlabel="training step", ylim=(0, None))
    bottom.plot(passed.steps, passed.values, marker=".", linestyle="--", label="pass@1")
    for event in history.events():
        if event.state == "firing":
            for axes in (top, bottom):
                axes.axvline(event.step, color="crimson", linewidth=2)
            bottom.annotate(
                f"alarm, saved, stopped at {event.step}", (event.step, 0.1), ha="right", color="crimson", rotation=0,
                xytext=(-6, 0), textcoords="offset points",
            )  # fmt: skip
    bottom.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
