"""The series of what the trainer generates itself: every step, free, apart from the probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from divmon import compat
from divmon.config import Plan
from divmon.health import Health
from divmon.history import History
from divmon.metrics import METRICS
from divmon.monitor import Lenses, Monitor
from divmon.reasoning import answers
from divmon.records import Decoding
from divmon.samplers.ranks import Ranks
from divmon.samplers.rollouts import RolloutTap, rollout_batch
from divmon.sinks import Sink

# What needs no baseline of the same prompts: rollouts see other prompts every step.
WATCHED = (
    "tfidf_distance",
    "unique_fraction",
    "effective_formats",
    "format_dominance",
    "mean_quality",
    "coverage",
    "all_correct",
    "all_wrong",
    "tail_share",
    "length",
)
CURVES = ("tfidf_distance", "effective_formats", "mean_quality", "all_wrong")  # what trackers get; the rest is on disk


@dataclass
class RolloutWatch:
    """Measures each generation batch of a trainer.

    Attributes:
        tap: Collects completions.
        monitor: Measures them; it has no rules.
        sinks: Receive observations.
        ranks: This process among the others.
        health: Counts failures, sums up time.
        group: Completions a prompt.
        weights: Of the reward functions.
        decoding: The training decoding.
        inside: The prompts end inside a reasoning block.
    """

    tap: RolloutTap
    monitor: Monitor
    sinks: Sequence[Sink]
    ranks: Ranks
    health: Health
    group: int
    weights: Sequence[float]
    decoding: Decoding
    inside: bool = False

    def evaluate(self) -> None:
        """Measure what was generated since the last call, if anything was. Every rank calls it."""
        with self.health.timed():
            step, mine = self.tap.take()
            rows = [row for part in self.ranks.gather(mine) for row in part]
            if not rows or not self.ranks.main:
                return
            with self.health.shield("monitor", "rollouts"):
                decoding = self.decoding
                batch = rollout_batch(rows, step=step, group=self.group, weights=self.weights, decoding=decoding)
                if decoding.reasoning != "keep":
                    batch, _ = answers(batch, inside=self.inside)
                observation = self.monitor.observe(batch)
                if self.monitor.history is not None:
                    self.monitor.history.slim()  # one evaluation a step: a long run would fill the memory
                for sink in self.sinks:
                    with self.health.shield("sink", f"{sink.name} (rollouts)"):
                        sink.emit(replace(observation, health={}))

    def close(self) -> None:
        """Unwrap the trainer and close the sinks."""
        self.tap.detach()
        for sink in self.sinks if self.ranks.main else ():
            with self.health.shield("sink", f"{sink.name} (rollouts)"):
                sink.close()


def start(
    plan: Plan, trainer: Any, *, ranks: Ranks, health: Health, sinks: Sequence[Sink], decode: Callable[..., str]
) -> RolloutWatch | None:
    """Tap `trainer`; None when it generates nothing, or the user said ``rollouts=False``."""
    if not plan.settings.rollouts:
        return None
    tap = RolloutTap(trainer, decode=decode, health=health)
    if not tap.attached:
        return None
    lenses = Lenses(
        judge="rewards",
        correct_at=plan.settings.correct_at,
        classifier=plan.lenses.classifier,
        classifier_name=plan.lenses.classifier_name,
    )
    metrics = tuple(METRICS[name] for name in WATCHED)
    monitor = Monitor(metrics, lenses=lenses, health=health, keep_completions=False, intervals=False)
    group, weights, decoding = compat.rollout_settings(trainer)
    decoding = replace(decoding, reasoning="keep" if plan.settings.reasoning == "keep" else "strip")
    return RolloutWatch(tap, monitor, sinks, ranks, health, group, weights, decoding)


def record(watch: RolloutWatch, run: Path, *, step: int) -> None:
    """Keep the series in ``RUN/rollouts``, continuing it where the run resumes at `step`."""
    path = run / "rollouts"
    if step > 0 and (path / "run.json").exists():
        with watch.health.shield("disk", f"{path} (resume)"):
            history = History.read(path)
            history.rewind(step - 1)  # a rollout's step is that of the policy that drew it
            watch.monitor.resume(history)
    if watch.monitor.history is None:  # History.create keeps what is there, whole or damaged, under another name
        with watch.health.shield("disk", str(path)):
            watch.monitor.history = History.create(path, probes=(), info={"source": "rollout"})
