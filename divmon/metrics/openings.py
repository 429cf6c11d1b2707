"""Whether unlikely completions of the baseline have lost more than likely ones: narrowing apart from mere change.

A completion has kept min(1, w) of its mass, w being the product of p now / p at the baseline over its first 16 tokens.
Per token, as in `retained_tail`, a change of one decisive token among thirty sure ones hardly shows; over an opening it
shows in full.
"""

from __future__ import annotations

import math

import numpy as np

from divmon.metrics.base import Metric, MetricContext, Pooled, Result
from divmon.metrics.scored import halves
from divmon.metrics.weighted import HORIZON, log_weights
from divmon.records import SampleBatch

LEAST_HEAD = 0.2  # of the head's mass, below which the policy is another one and neither half says anything
_GONE = "the baseline's likely completions have lost their mass too: draw fresh ones"


def tail_to_head(batch: SampleBatch, context: MetricContext) -> Result:
    """What the baseline's unlikely completions have kept of their mass over what its likely ones have; from 0. Pooled.

    Halves are made within each prompt, by mean token log-probability at the baseline. 1 when nothing has moved or both
    have lost alike; below 1 the tail goes first, which is narrowing; above 1 the policy has spread.

    What moves it besides narrowing: what training does to surface habits that happen to be rare. Missing once the
    likely half has kept less than a fifth, as in fine-tuning on quite other texts.

    >>> from divmon.records import Probe
    >>> now, base = (
    ...     SampleBatch(0, (Probe("a", "?"),), (("x", "y"),), logprobs=(tuple(np.log(row)),), source=source)
    ...     for row, source in (([[0.8], [0.1]], "score"), ([[0.6], [0.4]], "probe"))
    ... )
    >>> result = tail_to_head(now, MetricContext(now, baseline=MetricContext(base)))
    >>> round(float(result.combine(result.parts)), 3)
    0.25

    Source: this project; 1 - TV(p, q) = E_p min(1, q / p), textbook.
    """
    parts = np.zeros((len(batch.probes), 4))  # mass kept and completions, of the tail and of the head
    for i, (row, there) in enumerate(zip(log_weights(context), context.baseline_rows, strict=True)):
        if row is None or np.isnan(row).any():
            continue
        base = (context.reference.batch.logprobs or ())[int(there)]
        for column, half in ((0, "tail"), (2, "head")):
            chosen = halves(base, "tail" if half == "tail" else "head")
            parts[i, column : column + 2] = np.exp(np.minimum(row[chosen], 0.0)).sum(), len(chosen)
    return Pooled(parts, _ratio, _described, _GONE)


def _means(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sums = parts.sum(axis=-2)
    blank = np.full(sums.shape[:-1], math.nan)
    tail, head = (
        np.divide(sums[..., j], sums[..., j + 1], out=blank.copy(), where=sums[..., j + 1] > 0) for j in (0, 2)
    )
    return np.asarray(tail), np.asarray(head)


def _ratio(parts: np.ndarray) -> np.ndarray:
    tail, head = _means(parts)
    return np.asarray(np.divide(tail, head, out=np.full(np.shape(head), math.nan), where=head >= LEAST_HEAD))


def _described(parts: np.ndarray) -> dict[str, float]:
    tail, head = _means(parts)
    return {"tail": float(tail), "head": float(head)}


TAIL_TO_HEAD = Metric(
    name="tail_to_head",
    fn=tail_to_head,
    summary="Whether the baseline's unlikely completions have lost more than its likely ones: below 1 the tail goes.",
    family="scored",
    direction="neutral",
    bounds=(0.0, math.inf),
    scope="pooled",
    needs=frozenset({"bank"}),
    min_k=2,
    source="this project",
    compares=True,
    standard=False,
    signature=f"tokens:{HORIZON}|half:mean-logprob",
)
OPENINGS = (TAIL_TO_HEAD,)
