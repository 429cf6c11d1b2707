"""Two batches of the same prompts, before and now, put to the exact test for one rule.

Both are measured in one go, as one batch of twice as many prompts, against what the first evaluation froze. So the
metric cannot know which side is which, and a swap of two sets of completions is a swap of their values. A metric in
which one prompt's value depends on other prompts has no such test; `is_local` finds it out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from divmon.alarms import Rule
from divmon.alarms.evidence import SwapTest, beyond_margin, confirm_mean, confirm_pooled
from divmon.alarms.sentences import NO_ENCODER
from divmon.metrics.base import Metric, MetricContext, PerPrompt, Result, evaluate
from divmon.plain import to_json
from divmon.records import SampleBatch, Verdict

EXAMPLES, TEXTS = 3, 2  # prompts shown, and completions of each on either side
PROMPT, CUT = 300, 400  # characters of a prompt and of a completion
_SURFACE = ("lexical", "compression", "syntax")
_NEAR = 1e-3  # an encoder rounds a little differently in another batch
_COLUMNS = ("texts", "token_ids", "finished", "logprobs", "entropies", "rewards")


def chosen(batch: SampleBatch, rows: np.ndarray) -> SampleBatch:
    """The prompts `rows` of a batch."""
    columns: dict[str, Any] = {name: getattr(batch, name) for name in ("probes", *_COLUMNS)}
    columns = {name: None if column is None else tuple(column[i] for i in rows) for name, column in columns.items()}
    return replace(batch, **columns)


def joined(before: SampleBatch, now: SampleBatch) -> SampleBatch:
    """Both as one batch of twice as many prompts, in the order of `before`."""
    where = {probe.id: i for i, probe in enumerate(now.probes)}
    now = chosen(now, np.array([where[probe.id] for probe in before.probes]))
    columns = {name: (getattr(before, name), getattr(now, name)) for name in _COLUMNS}
    both: dict[str, Any] = {n: None if a is None or b is None else a + b for n, (a, b) in columns.items()}
    return replace(now, probes=before.probes * 2, **both)


def swap_test(
    verdict: Verdict,
    rule: Rule,
    metric: Metric,
    context: MetricContext,
    sides: tuple[SampleBatch, SampleBatch],
    *,
    seed: int,
) -> Verdict:
    """`verdict` with what the test at its level says.

    Args:
        verdict: Says the cell, the attempt and the level.
        rule: Its rule.
        metric: What the rule watches.
        context: Of `joined(*sides)`.
        sides: Completions from the bank, and fresh ones of the same prompts.
        seed: Of random relabellings.
    """
    before, now = sides
    result, p = evaluate(metric, context), len(before.probes)
    beyond = True
    with np.errstate(divide="ignore", invalid="ignore"):
        if isinstance(result, PerPrompt):
            values = result.values[:p], result.values[p:]
            found = confirm_mean(rule, *values, alpha=verdict.level, seed=seed)
        else:
            parts = result.parts[:p], result.parts[p:]
            found = confirm_pooled(rule, *parts, result.combine, alpha=verdict.level, seed=seed)
            beyond = beyond_margin(rule, found)
    reason = found.reason
    if isinstance(result, PerPrompt) and reason is not None and not found.n:
        reason = next((why for why in result.reasons if why), reason)
    told = {
        **verdict.details,
        "scope": "per_prompt" if isinstance(result, PerPrompt) else "pooled",
        "notes": _notes(metric),
        "examples": _examples(found, before, now),
    }
    names = ("p", "estimate", "low", "high", "n", "informative", "draws", "exact")
    return replace(
        verdict,
        outcome=found.outcome(verdict.level, beyond=beyond),
        reason=reason,
        completions=before.size,
        details=json.loads(json.dumps(to_json(told))),
        **{name: getattr(found, name) for name in names},
    )


def is_local(metric: Metric, context: Callable[[SampleBatch], MetricContext], batch: SampleBatch) -> bool:
    """Whether half of the prompts of `batch` have the same values alone as among all of them."""
    half = np.arange(0, len(batch.probes), 2)
    return _same(evaluate(metric, context(batch)), evaluate(metric, context(chosen(batch, half))), half)


def _same(whole: Result, alone: Result, rows: np.ndarray) -> bool:
    if isinstance(whole, PerPrompt) or isinstance(alone, PerPrompt):
        if not (isinstance(whole, PerPrompt) and isinstance(alone, PerPrompt)):
            return False
        return bool(np.allclose(whole.values[rows], alone.values, rtol=_NEAR, atol=_NEAR, equal_nan=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = float(whole.combine(whole.parts[rows])), float(alone.combine(alone.parts))
    return math.isclose(*values, rel_tol=_NEAR, abs_tol=_NEAR) or all(map(math.isnan, values))


def _notes(metric: Metric) -> list[str]:
    """What a reader must know about the lens."""
    notes = []
    if (metric.family in _SURFACE or metric.name == "tfidf_distance") and "encoder" not in metric.needs:
        notes.append(NO_ENCODER)
    if "quality" in metric.needs:
        notes.append("Prompts are selected: only those with enough judged or good completions on both sides count.")
    return notes


def _examples(found: SwapTest, before: SampleBatch, now: SampleBatch) -> list[Mapping[str, Any]]:
    """The prompts that speak most for the change, with completions side by side."""
    order = sorted(range(len(found.moved)), key=lambda i: -found.moved[i])
    where = {probe.id: i for i, probe in enumerate(now.probes)}
    examples: list[Mapping[str, Any]] = []
    for i in [i for i in order if found.moved[i] > 0][:EXAMPLES]:
        row = found.kept[i]
        probe = before.probes[row]
        sides = before.texts[row][:TEXTS], now.texts[where[probe.id]][:TEXTS]
        baseline, current = ([_cut(text, CUT) for text in side] for side in sides)
        examples.append(
            {
                "id": probe.id,
                "prompt": _cut(probe.text, PROMPT),
                "moved": found.moved[i],
                "baseline": baseline,
                "now": current,
            }
        )
    return examples


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
