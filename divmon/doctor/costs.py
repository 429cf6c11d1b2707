"""What one sampling and one score of a model cost on this machine, and what a schedule makes of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divmon.config import Plan
from divmon.errors import ConfigError
from divmon.probes import ProbeSet
from divmon.schedule import MOVED, Forecast, Pace, forecast
from divmon.settings import LENGTH_CAP, OWN_PROBES, Settings

ROUNDS = 2  # after one to warm up


@dataclass(frozen=True)
class Costs:
    """Seconds, on this machine, with nothing else in it.

    Attributes:
        clock: "process" or "wall".
        completions: Drawn and scored.
        tokens: That they have together.
        sample: Drawing and measuring them.
        score: Scoring them, with its numbers.
        parameters: Of the model, in millions.
        apart: Nats a token by which sampling and scoring the same weights differ.
    """

    clock: str
    completions: int
    tokens: int
    sample: float
    score: float
    parameters: float
    apart: float


def measure_costs(model: Any, tokenizer: Any, plan: Plan) -> Costs:
    """Sample and score `model` as `plan` would.

    Raises:
        ConfigError: The model cannot be sampled like this.
    """
    from divmon.bank import Bank
    from divmon.metrics.scores import bank_context, measure_scores
    from divmon.monitor import Monitor
    from divmon.samplers.generate import GenerateSampler
    from divmon.samplers.score import Scorer, identify
    from divmon.scores import clock_of

    settings = plan.settings
    probes = plan.probes or ProbeSet.of("creative", limit=OWN_PROBES)
    if settings.chat:
        probes = probes.as_chat()
    sampler = GenerateSampler(
        model, tokenizer, settings.k, settings.decoding(LENGTH_CAP), batch_size=settings.batch_size, progress=True
    )
    sampler.check(probes)
    clock = clock_of(model.device.type)
    monitor = Monitor(plan.metrics, lenses=plan.lenses)
    batch = sampler(probes, step=0)
    monitor.observe(batch)
    sample = _timed(lambda: monitor.observe(sampler(probes, step=0)), clock)
    scorer = Scorer(model, tokenizer, settings.batch_size)
    bank = Bank(batch, sampler.prompt_ids(probes), identify(model, tokenizer))
    base, scored = bank_context(bank), scorer(bank, step=0)
    score = _timed(lambda: measure_scores(bank, scorer(bank, step=0), baseline=base), clock)
    return Costs(
        clock="process" if clock is time.process_time else "wall",
        completions=len(probes) * settings.k,
        tokens=bank.tokens,
        sample=sample,
        score=score,
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        apart=bank.disagreement(scored),
    )


def load(path: str) -> tuple[Any, Any]:
    """The model and tokenizer at `path`, from this machine alone.

    Raises:
        ConfigError: They cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not Path(path).is_dir():
        raise ConfigError(f"--model takes a folder with a model and its tokenizer, and {path!r} is none.")
    try:
        model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot load a causal language model and its tokenizer from {path}: {error}") from error
    return model, tokenizer


def foretell(costs: Costs, plan: Plan, *, steps: int, step_seconds: float) -> tuple[Pace, Forecast]:
    """What the schedule of `plan` comes to over `steps` of `step_seconds`; without one, what evaluations alone cost."""
    pace = pace_of(plan.settings, steps)
    return pace, forecast(pace, step_cost=step_seconds, score_cost=costs.score, sample_cost=costs.sample)


def pace_of(settings: Settings, steps: int) -> Pace:
    """The schedule that a run of `steps` with `settings` would have."""
    moved = MOVED if settings.moved is None else settings.moved
    return Pace(steps, settings.share, settings.score_every, moved, settings.every)


def plain_overhead(costs: Costs, *, steps: int, every: int, step_seconds: float) -> float:
    """Share of the time that samplings every so many steps take.

    >>> costs = Costs("process", 64, 2000, sample=1.0, score=0.1, parameters=1.0, apart=0.0)
    >>> round(plain_overhead(costs, steps=100, every=10, step_seconds=1.0), 3)
    0.091
    """
    spent = math.floor(steps / every) * costs.sample
    return spent / (spent + steps * step_seconds)


def _timed(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(ROUNDS):
        work()
    return (clock() - start) / ROUNDS
