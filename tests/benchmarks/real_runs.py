"""The demo's model under real trainers, watched with confirmations; used by bench_real_alarms.py and a test."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import divmon
from divmon.alarms import Rule, restore_rules
from divmon.alarms.rules import breached
from divmon.confirming import BANK, derived_key
from divmon.demo import sums, training
from divmon.metrics import METRICS
from divmon.metrics.base import Metric, MetricContext, PerPrompt, evaluate
from divmon.probes import ProbeSet
from divmon.records import Decoding, SampleBatch, Verdict
from divmon.samplers.generate import GenerateSampler
from divmon.swapping import joined, swap_test

DOMAIN = "sums"
CAP = 40  # tokens; the model's own answers take about 30
BATCH = 16
RATE = 1e-4  # of SFT and DPO here; the demo trains with GRPO at 2.5e-4
LEVEL = 0.05  # of a redraw's test; decides nothing but how long pooled statistics are drawn


def probes(every: int) -> list[dict[str, Any]]:
    """Every so many-th of the hundred sums, as probes."""
    return [
        {"prompt": s.prompt, "gold": str(s.answer), "domain": DOMAIN, "difficulty": s.difficulty}
        for s in sums.prompts()[::every]
    ]


def right(probe: Any, text: str) -> float:
    """Whether a completion is right, in any format."""
    return float(sums.is_correct(text, int(probe.gold)))


def draws(asked: Any, k: int, key: int, *, tokens: int = CAP) -> SampleBatch:
    """`k` completions a probe of the untrained demo model."""
    decoding = Decoding(max_new_tokens=tokens, key=key)
    sampler = GenerateSampler(training.load_model(), training.load_tokenizer(), k, decoding)
    return sampler(ProbeSet.of(asked), step=0)


# The null by redraws.


@dataclass(frozen=True)
class Redraw:
    """One confirmation of an unchanged policy.

    Attributes:
        p: The engine's.
        spread: p, with ties broken at random: exactly uniform where the engine's p is right.
        brute: p, counted over all relabellings here.
        outcome: The engine's, at `LEVEL`.
    """

    p: float
    spread: float
    brute: float
    outcome: str


def redraws(
    names: Sequence[str], *, blocks: range, block: int, p: int = 12, k: int = 4, tokens: int = CAP
) -> dict[str, list[Redraw]]:
    """Confirmations at unchanged weights, by metric: each compares two batches that nothing else has seen.

    Args:
        names: Metrics.
        blocks: Numbers of blocks; each has sampling keys of its own.
        block: Redraws a block, drawn at once.
        p: Prompts.
        k: Completions a prompt on either side.
        tokens: Length cap.
    """
    asked = probes(8)[:p]
    model, tokenizer = training.load_model(), training.load_tokenizer()
    frozen = MetricContext(_slim(draws(asked, k, 10**6, tokens=tokens)), classifier=_classifier())
    found: dict[str, list[Redraw]] = {name: [] for name in names}
    rng = np.random.default_rng(blocks.start)
    for number in blocks:
        sides = []
        for key in (derived_key(number, BANK, 0), derived_key(number, "forced", 1)):
            decoding = Decoding(max_new_tokens=tokens, key=key)
            sides.append(GenerateSampler(model, tokenizer, k * block, decoding)(ProbeSet.of(asked), step=0))
        for j in range(block):
            before, now = (_slim(side, slice(j * k, (j + 1) * k)) for side in sides)
            context = MetricContext(joined(before, now), classifier=_classifier(), baseline=frozen)
            for name in names:
                found[name].append(_redraw(METRICS[name], context, (before, now), rng))
    return found


def _classifier() -> Any:
    from divmon.metrics.structure import build_classifier

    return build_classifier(sums.label)


def _slim(batch: SampleBatch, rows: slice = slice(None)) -> SampleBatch:
    columns = {name: tuple(line[rows] for line in getattr(batch, name)) for name in ("texts", "token_ids", "finished")}
    return replace(batch, **columns, logprobs=None, entropies=None)


def _redraw(metric: Metric, context: MetricContext, sides: Any, rng: np.random.Generator) -> Redraw:
    rule = Rule("null", metric=metric.name, rule="drop", by="20%", tolerate="0%", evidence="confirm")
    blank = Verdict(1, "null", DOMAIN, rule.claim, "unknown", attempt=1, level=LEVEL)
    verdict = swap_test(blank, rule, metric, context, sides, seed=0)
    above, tied = _counted(metric, context, len(sides[0].probes))
    return Redraw(verdict.p, above + rng.random() * tied, above + tied, verdict.outcome)


def _counted(metric: Metric, context: MetricContext, p: int) -> tuple[float, float]:
    """Shares of all 2^p relabellings in which the fall is larger than the one seen, and equal to it."""
    result = evaluate(metric, context)
    if isinstance(result, PerPrompt):
        parts, combine = result.values[:, None], lambda values: values.mean(axis=(-1, -2))
    else:
        parts, combine = result.parts, result.combine
    swap = ((np.arange(2**p)[:, None] >> np.arange(p)) & 1).astype(bool)[..., None]
    before, now = parts[:p], parts[p:]
    fall = combine(np.where(swap, now, before)) - combine(np.where(swap, before, now))
    near = 1e-10
    return float((fall > fall[0] + near).mean()), float((np.abs(fall - fall[0]) <= near).mean())


# Runs of real trainers.


def critical(metric: str, rule: str = "drop", by: str | float = "20%", **more: Any) -> dict[str, Any]:
    """A rule that acts, and so is confirmed; it asks for no action, so that the run goes on to its end."""
    name = f"{metric}-{rule}"
    return {"name": name, "metric": metric, "rule": rule, "by": by, "severity": "critical", "for": 1, **more}


COLLAPSE = [critical("effective_formats"), critical("tfidf_distance")]
EVERYTHING = [  # what the default alarms watch, as alarms that act, and several times tighter
    critical("tfidf_distance", by="5%", tolerate="5%"),
    critical("effective_formats", by="5%", tolerate="5%"),
    critical("format_dominance", "rise", by=0.05, tolerate=0.05),
    critical("token_entropy", "outside", by="5%", tolerate="5%"),
    critical("length", "rise", by="5%", tolerate="5%"),
    critical("length", by="5%", tolerate="5%"),
    critical("coverage", by=0.05, tolerate=0.05),
]


def callback(rules: Any, *, every: int, k: int = 8, step: int = 6) -> Any:
    """What a user would write."""
    return divmon.DiversityCallback(
        probes(step), every=every, k=k, max_new_tokens=CAP, formats=sums.label, quality=right, alarms=rules, sinks=[],
        strict=True, rollouts=False,
    )  # fmt: skip


def _arguments(out: Path, steps: int, seed: int, rate: float) -> dict[str, Any]:
    return {
        "output_dir": str(out), "max_steps": steps, "per_device_train_batch_size": BATCH, "learning_rate": rate,
        "lr_scheduler_type": "constant", "seed": seed, "logging_steps": steps, "save_strategy": "no",
        "report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True,
        "log_level": "error",
        "dataloader_pin_memory": False,
    }  # fmt: skip


def sft(rows: list[dict[str, str]], out: Path, steps: int, seed: int, callbacks: Any, rate: float = RATE) -> Any:
    """Fine-tuning on `rows`."""
    return SFTTrainer(
        model=training.load_model(), args=SFTConfig(**_arguments(out, steps, seed, rate)), callbacks=callbacks,
        train_dataset=Dataset.from_list(rows), processing_class=training.load_tokenizer(),
    )  # fmt: skip


def dpo(rows: list[dict[str, str]], out: Path, steps: int, seed: int, callbacks: Any, rate: float = RATE) -> Any:
    """Preference optimisation on `rows`."""
    return DPOTrainer(
        model=training.load_model(), ref_model=training.load_model(),
        args=DPOConfig(**_arguments(out, steps, seed, rate)),
        train_dataset=Dataset.from_list(rows), processing_class=training.load_tokenizer(), callbacks=callbacks,
    )  # fmt: skip


def grpo(healthy: bool, out: Path, steps: int, seed: int, callbacks: Any) -> Any:
    """The demo's run."""
    return training.grpo_trainer(output_dir=out, healthy=healthy, steps=steps, seed=seed, callbacks=callbacks)


def answers(formats: Callable[[], str], count: int, seed: int) -> list[dict[str, str]]:
    """Right answers, each in the format that is drawn for it."""
    chosen = random.Random(f"sums {seed}").choices(sums.prompts(), k=count)
    return [{"prompt": s.prompt, "completion": sums.write(formats(), s.a, s.b, s.answer)} for s in chosen]


def preferences(preferred: str | None, count: int, seed: int) -> list[dict[str, str]]:
    """Pairs of right answers in two formats. One format always wins, or (None) a coin says which of two does."""
    rng, rows = random.Random(seed), []
    for s in rng.choices(sums.prompts(), k=count):
        one, two = rng.sample(sums.FORMATS, 2)
        if preferred is not None:
            one, two = preferred, rng.choice([f for f in sums.FORMATS if f != preferred])
        win, lose = (sums.write(name, s.a, s.b, s.answer) for name in (one, two))
        rows.append({"prompt": s.prompt, "chosen": win, "rejected": lose})
    return rows


def policy_rows(count: int, seed: int) -> list[dict[str, str]]:
    """`count` completions of the policy itself, for every sum equally many."""
    batch = draws([{"prompt": s.prompt} for s in sums.prompts()], -(-count // 100), 1000 + seed)
    rows = [
        {"prompt": probe.prompt, "completion": text}
        for probe, texts, ended in zip(batch.probes, batch.texts, batch.finished, strict=True)
        for text, done in zip(texts, ended, strict=True)
        if done
    ]
    random.Random(seed).shuffle(rows)
    return rows[:count]


def mixed(seed: int) -> Callable[[], str]:
    """Formats drawn as the untrained model uses them, roughly."""
    rng = random.Random(f"formats {seed}")
    return lambda: rng.choices(("program", "prose", "latex", "bullets"), (40, 30, 20, 10))[0]


@dataclass(frozen=True)
class Seen:
    """What the alarms of one run did.

    Attributes:
        screens: Evaluations that broke a rule, by rule.
        verdicts: Of confirmations that were drawn.
        confirmed: Of these, the confirmed ones, in order.
        steps: Of the evaluations.
        values: By metric.
    """

    screens: dict[str, int]
    verdicts: tuple[Verdict, ...]
    confirmed: tuple[Verdict, ...]
    steps: tuple[int, ...]
    values: dict[str, np.ndarray]

    def fall(self, metric: str, step: int) -> float:
        """From the first evaluation to that at `step`, a share of the first."""
        values = self.values[metric]
        return float(1 - values[self.steps.index(step)] / values[0])

    def changes(self, metric: str) -> list[float]:
        """From the first evaluation to each, a share of the first."""
        return [-self.fall(metric, step) for step in self.steps]

    def total(self, metric: str) -> float:
        """The fall at the last evaluation."""
        return self.fall(metric, self.steps[-1])


def watched(make: Callable[[Path, list[Any]], Any], rules: Any, out: Path, **settings: Any) -> Seen:
    """Train what `make` returns, under alarms, and say what they did."""
    torch.set_num_threads(1)
    trainer = make(out, [callback(rules, **settings)])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return read(divmon.History.read(out))


def read(history: divmon.History) -> Seen:
    """What a recorded run says."""
    verdicts = tuple(v for e in history.evaluations for v in e.verdicts if v.attempt)
    kept = restore_rules(history.info["rules"])
    series = {rule.metric: history.series(rule.metric, DOMAIN) for rule in kept}
    screens = {}
    for rule in kept:
        values = series[rule.metric].values
        screens[rule.name] = sum(
            bool(breached(rule, float(v), float(values[0]))) for v in values[1:] if not math.isnan(v)
        )
    steps = tuple(int(e.step) for e in history.evaluations)
    confirmed = tuple(v for v in verdicts if v.outcome == "confirmed")
    fired = [(e.step, e.alarm) for e in history.events() if e.state == "firing"]
    assert fired == [(v.step, v.alarm) for v in confirmed], (fired, confirmed)
    return Seen(screens, verdicts, confirmed, steps, {name: np.asarray(s.values) for name, s in series.items()})


@dataclass(frozen=True)
class Scenario:
    """A run that collapses, and its healthy twin.

    Attributes:
        name: What is done.
        sick: The run: (folder, callbacks) to a trainer.
        well: Its twin.
        every: Steps between evaluations.
        step: Every so many-th sum is a probe.
    """

    name: str
    sick: Callable[[Path, list[Any]], Any]
    well: Callable[[Path, list[Any]], Any]
    every: int = 2
    step: int = 6


def scenarios(seed: int) -> Iterator[Scenario]:
    """The three ways to collapse."""
    n, steps = 960, 60
    yield Scenario(
        "SFT on one format",
        lambda out, c: sft(answers(lambda: "prose", n, seed), out, steps, seed, c),
        lambda out, c: sft(answers(mixed(seed), n, seed), out, steps, seed, c),
    )
    yield Scenario(
        "DPO that prefers one format",
        lambda out, c: dpo(preferences("prose", n, seed), out, steps, seed, c),
        lambda out, c: dpo(preferences(None, n, seed), out, steps, seed, c),
    )
    yield Scenario(
        "GRPO, the demo",
        lambda out, c: grpo(False, out, 40, seed, c),
        lambda out, c: grpo(True, out, 40, seed, c),
        step=3,  # this one falls from the first step on, so that its first confirmation must not be in vain
    )
