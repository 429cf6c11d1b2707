"""What a scored bank says: every scored metric in every domain, and whether it is time to draw fresh completions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from divmon.bank import Bank, Block
from divmon.metrics.base import Classifier, Metric, MetricContext, Result, evaluate, missing
from divmon.metrics.crossed import CROSSED
from divmon.metrics.openings import OPENINGS
from divmon.metrics.scored import SCORED
from divmon.metrics.summary import summarise
from divmon.metrics.weighted import HORIZON, LATE, LEAST_ESS, MASS, WEIGHTED
from divmon.records import OVERALL, Measurement, SampleBatch

SCORE_METRICS: tuple[Metric, ...] = (*SCORED, *OPENINGS, *WEIGHTED, *CROSSED)


def bank_context(bank: Bank, *, classifier: Classifier | None = None) -> MetricContext:
    """What metrics compare scores with. Make it once a run: it keeps the labels of the bank's completions.

    Args:
        bank: The bank, anchored where it can be.
        classifier: Text to structural labels; the built-in one when None.

    Source: a convention of divmon.
    """
    return MetricContext(bank.batch, classifier=classifier)


def measure_scores(
    bank: Bank,
    scored: SampleBatch,
    *,
    baseline: MetricContext | None = None,
    classifier: Classifier | None = None,
    classifier_name: str = "builtin",
    block: Block | None = None,
    metrics: Sequence[Metric] = SCORE_METRICS,
    intervals: bool = True,
) -> tuple[Measurement, ...]:
    """Every one of `metrics` in every domain, from the bank as the policy of now scores it.

    Args:
        bank: The bank that was scored.
        scored: What `divmon.samplers.score.Scorer` returned for it.
        baseline: Of `bank_context`, to label completions once a run only.
        classifier: As in `bank_context`; not asked when `baseline` is given.
        classifier_name: Goes into signatures.
        block: Of `Scorer.cross`; without it, metrics that need one are left out.
        metrics: Of `SCORE_METRICS`.
        intervals: Bootstrap every number over prompts.

    Returns:
        Measurements with source "score" in their signatures. ``details["standard_error"]`` of means is that of drawing
        the bank, for its own prompts; ``low`` and ``high`` are over prompts. All are missing where the bank is refused.

    Source: a convention of divmon.
    """
    base = baseline or bank_context(bank, classifier=classifier)
    context = MetricContext(scored, classifier=base.classifier, baseline=base)
    context.block = block
    domains = [*scored.domains, OVERALL] if len(scored.domains) > 1 else list(scored.domains)
    found = []
    for metric in metrics:
        if "block" in metric.needs and block is None:
            continue
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            result = missing(scored, bank.refusal) if bank.refusal else evaluate(metric, context)
            signature = _signature(metric, bank, scored, block, classifier_name)
            for domain in domains:
                rows = scored.rows(domain)
                m = summarise(result, rows, intervals=intervals)
                details = _details(result, rows, m.details)
                found.append(
                    replace(
                        m, step=scored.step, domain=domain, metric=metric.name, signature=signature, details=details
                    )
                )
    return tuple(found)


def _signature(metric: Metric, bank: Bank, scored: SampleBatch, block: Block | None, classifier: str) -> str:
    aggregator = "agg:mean" if metric.scope == "per_prompt" else "agg:pooled"
    parts = [metric.signature, f"formats:{classifier}" if metric in WEIGHTED else ""]
    parts += [block.signature if block is not None and "block" in metric.needs else "", aggregator]
    anchor = "anchored" if bank.anchored else "sampled"
    return "|".join(filter(None, (*parts, scored.signature, f"bank:{bank.digest}:{anchor}")))


def _details(result: Result, rows: np.ndarray, details: Mapping[str, Any]) -> Mapping[str, Any]:
    """Each prompt's standard error as that of their mean."""
    if "errors" not in details:
        return details
    errors = np.asarray(details["errors"], dtype=float)[rows]
    errors = errors[~np.isnan(errors)]
    rest = {name: value for name, value in details.items() if name != "errors"}
    return {**rest, "standard_error": float(np.sqrt((errors**2).sum()) / len(errors)) if len(errors) else math.nan}


def stale(measurements: Sequence[Measurement]) -> str | None:
    """Why fresh completions are due whatever the schedule says; None when the bank still stands for the policy.

    That is so when too few of its completions count, when their weights no longer average to 1 (the policy has mass
    where the bank has nothing), or when the first tokens have moved too far for the rest to be taken as unchanged.

    >>> ess = Measurement(1, "default", "bank_ess", 0.2, details={"mean_weight": 1.0, "completions": 64})
    >>> stale([ess])
    'only 20 % of the bank still counts'

    Source: this project.
    """
    for m in measurements:
        if m.metric != "bank_ess" or math.isnan(m.value):
            continue
        if m.value < LEAST_ESS:
            return f"only {m.value:.0%} of the bank still counts".replace("%", " %")
        if m.details.get("late_shift", 0.0) > LATE:
            return f"a format is decided after the first {HORIZON} tokens, and what decides it has moved"
        mean, n = float(m.details["mean_weight"]), int(m.details["completions"])
        error = math.sqrt(max(0.0, mean**2 * (1 / m.value - 1)) / max(1, n))
        if abs(mean - 1.0) > MASS + 2 * error:
            return f"the bank's completions have {mean:.2f} of the mass they stand for, in {HORIZON} tokens"
    return None
