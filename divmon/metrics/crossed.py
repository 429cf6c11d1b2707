"""Input dependence by cross-scoring: a block of prompts' completions, each scored under every prompt of the block.

The completions are the bank's, so this asks whether the policy of now still tells the prompts apart by what the
baseline answered to them, from the first tokens of each answer. A policy that answers everything with one template
does not: both numbers fall, where token entropy stands still. The bound is one on the information in completions that
the policy writes itself only while these are like the bank's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from divmon.bank import Block
from divmon.metrics.base import Metric, MetricContext, PerPrompt, Result
from divmon.records import SampleBatch

_OUTSIDE = "not one of the prompts of the block"
_ALONE = "a block needs two prompts"


def _by_prompt(batch: SampleBatch, context: MetricContext, value: Callable[[np.ndarray], np.ndarray]) -> PerPrompt:
    """`value` of the block's scores (float[N, N] -> float[N]) for the prompts in it."""
    block = context.block or Block((), np.zeros((0, 0)))
    place = {name: j for j, name in enumerate(block.ids)}
    known = value(block.logprobs) if len(place) > 1 else np.full(len(place), math.nan)
    values = np.array([known[place[p.id]] if p.id in place else math.nan for p in batch.probes], dtype=float)
    why = ["a score is not a number" if p.id in place else _OUTSIDE for p in batch.probes]
    why = why if len(place) > 1 else [_ALONE] * len(why)
    reasons = tuple(w if math.isnan(v) else None for w, v in zip(why, values, strict=True))
    return PerPrompt(values, np.where(np.isnan(values), 0, 1), reasons, {"prompts": len(place)})


def retrieval_accuracy(batch: SampleBatch, context: MetricContext) -> Result:
    """Share of the block's completions that are likelier under their own prompt than under any other; 1/N to 1.

    1/N is chance. A tie for first place among m prompts counts 1/m.

    What moves it besides input dependence: N, and how alike the prompts of the block are.

    Returns:
        float[P]: 1 where the right prompt won, else 0; NaN for prompts outside the block.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"), Probe("b", "?")), (("x",), ("y",)))
    >>> context = MetricContext(batch)
    >>> context.block = Block(("a", "b"), np.log([[0.9, 0.2], [0.1, 0.8]]))
    >>> retrieval_accuracy(batch, context).values.tolist()
    [1.0, 1.0]

    Source: nearest-neighbour retrieval; a proxy of input dependence as in RAGEN-2 (2026), arXiv:2604.06268.
    """

    def right(scores: np.ndarray) -> np.ndarray:
        best = scores == scores.max(axis=0)
        won = np.diagonal(best) / np.maximum(best.sum(axis=0), 1)
        return np.where(_complete(scores), won, math.nan)

    return _by_prompt(batch, context, right)


def mutual_information_bound(batch: SampleBatch, context: MetricContext) -> Result:
    """InfoNCE estimate, in nats, of what a completion tells about its prompt; at most log N, negative by chance only.

    log p(y | own x) minus the log of the mean of p(y | x) over the N prompts of the block. A lower bound on mutual
    information for completions of the policy itself, and for 8 prompts never more than 2.08 nats, whatever the truth.

    What moves it besides input dependence: N, how alike the prompts are, and how many tokens are looked at.

    Returns:
        float[P]: the term of each prompt's completion; NaN for prompts outside the block.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"), Probe("b", "?")), (("x",), ("y",)))
    >>> context = MetricContext(batch)
    >>> context.block = Block(("a", "b"), np.log([[0.9, 1e-9], [1e-9, 0.9]]))
    >>> mutual_information_bound(batch, context).values.round(3).tolist()
    [0.693, 0.693]

    Source: van den Oord et al. (2018), arXiv:1807.03748; Poole et al. (2019), arXiv:1905.06922.
    """

    def terms(scores: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            total = np.logaddexp.reduce(scores, axis=0) - math.log(max(1, len(scores)))
            return np.where(_complete(scores), np.diagonal(scores) - total, math.nan)

    return _by_prompt(batch, context, terms)


def _complete(scores: np.ndarray) -> np.ndarray:
    """bool[N]: completions all of whose scores are known, one of them finite."""
    return np.asarray(~np.isnan(scores).any(axis=0) & np.isfinite(scores).any(axis=0))


def _metric(fn: Callable[..., Result], summary: str, **rest: Any) -> Metric:
    return Metric(
        name=fn.__name__,
        fn=fn,
        summary=summary,
        family="scored",
        direction="higher",
        needs=frozenset({"block"}),
        min_k=1,
        standard=False,
        **rest,
    )


RETRIEVAL_ACCURACY = _metric(
    retrieval_accuracy,
    "How often the policy finds an answer likeliest under its own prompt; falling to chance means templates.",
    source="after RAGEN-2 2026, arXiv:2604.06268",
)
INFORMATION_BOUND = _metric(
    mutual_information_bound,
    "How much an answer still tells the policy about its prompt (a lower bound); falling means templates.",
    bounds=(-math.inf, math.inf),
    unit="nats",
    source="van den Oord et al. 2018, arXiv:1807.03748",
)
CROSSED = (RETRIEVAL_ACCURACY, INFORMATION_BOUND)
