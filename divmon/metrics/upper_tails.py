"""Upper tails: are completions as long, and as surprising, as the longest and most surprising tenth used to be?

The mark is the baseline's 90th percentile over all completions of a domain, so that 0.1 lies above it there. Where many
values equal the mark (completions cut by the length cap) they count in part, so that the baseline gives 0.1 exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from divmon.metrics.base import Metric, MetricContext, Pooled, Result, missing
from divmon.metrics.text import WORDS, word_rows
from divmon.records import SampleBatch

TAIL = 0.1
_NO_BASELINE = "no values at the baseline in this domain, or none now"


def _mark(values: np.ndarray) -> tuple[float, float]:
    """The 90th percentile of `values`, one of them, and what a value equal to it counts."""
    ordered = np.sort(values)
    mark = float(ordered[math.ceil((1 - TAIL) * len(ordered) - 1e-9) - 1])
    above, equal = np.count_nonzero(ordered > mark), np.count_nonzero(ordered == mark)
    return mark, float(np.clip((TAIL * len(ordered) - above) / equal, 0.0, 1.0))


def _marks(batch: SampleBatch, values: Sequence[np.ndarray]) -> dict[str, tuple[float, float]]:
    """The mark of every domain that has a value."""
    found: dict[str, list[np.ndarray]] = {}
    for probe, row in zip(batch.probes, values, strict=True):
        found.setdefault(probe.domain, []).append(row)
    return {domain: _mark(np.concatenate(rows)) for domain, rows in found.items() if any(map(len, rows))}


def _share_above(context: MetricContext, now: Sequence[np.ndarray], before: Sequence[np.ndarray], unit: str) -> Pooled:
    """Share of the values `now` above the marks of `before`; float[K] a prompt each, without NaN."""
    marks = _marks(context.reference.batch, before)
    domains = [probe.domain for probe in context.batch.probes]
    parts = np.zeros((len(domains), 2))
    for p, (domain, row) in enumerate(zip(domains, now, strict=True)):
        if domain in marks:
            mark, tied = marks[domain]
            parts[p] = np.count_nonzero(row > mark) + tied * np.count_nonzero(row == mark), len(row)

    def combine(columns: np.ndarray) -> np.ndarray:
        sums = columns.sum(axis=-2)
        above, n = sums[..., 0], sums[..., 1]
        return np.asarray(np.divide(above, n, out=np.full(np.shape(n), math.nan), where=n > 0))

    def details(columns: np.ndarray) -> Mapping[str, Any]:
        return {"unit": unit, "marks": {domain: mark for domain, (mark, _) in marks.items()}}

    return Pooled(parts, combine, details, _NO_BASELINE)


def _tokens(batch: SampleBatch) -> list[np.ndarray]:
    return [np.array([len(ids) for ids in row]) for row in batch.token_ids or ()]


def long_tail(batch: SampleBatch, context: MetricContext) -> Result:
    """Share of completions longer than nine tenths of the baseline's; 0 to 1, 0.1 at the baseline, neutral. Pooled.

    Lengths are in tokens when token ids are known on both sides, else in words. Below 0.1 the long answers have gone,
    above it they have spread; the mean length may stand still in either case.

    What moves it besides diversity: the length cap (a mark at the cap cannot be passed), and prompts.

    >>> from divmon.records import Probe
    >>> base, now = (SampleBatch(0, (Probe("a", "?"),), (row,)) for row in (("a", "a b", "a b c"), ("a", "a b")))
    >>> at_base, later = MetricContext(base), MetricContext(now, baseline=MetricContext(base))
    >>> [round(float(r.combine(r.parts)), 3) for r in (long_tail(base, at_base), long_tail(now, later))]
    [0.1, 0.0]

    Source: this project.
    """
    reference = context.reference
    if batch.token_ids is not None and reference.batch.token_ids is not None:
        return _share_above(context, _tokens(batch), _tokens(reference.batch), "tokens")
    now, before = ([row.lengths for row in word_rows(side)] for side in (context, reference))
    return _share_above(context, now, before, "words")


def _surprisals(batch: SampleBatch) -> list[np.ndarray]:
    """Mean surprisal in nats of each completion, by prompt; those without tokens, or with an unknown one, left out."""
    rows = [[-float(np.mean(t)) for t in map(np.asarray, row) if t.size] for row in batch.logprobs or ()]
    return [np.array([value for value in row if math.isfinite(value)]) for row in rows]


def surprisal_tail(batch: SampleBatch, context: MetricContext) -> Result:
    """Share of completions more surprising than nine tenths of the baseline's; 0 to 1, 0.1 there, neutral. Pooled.

    A completion's surprisal is minus its mean token log-probability under the policy that wrote it, in nats: below 0.1,
    the policy no longer says what it would have found unlikely.

    What moves it besides diversity: length and domain (long texts average out), and a policy grown more certain of the
    same answers.

    >>> from divmon.records import Probe
    >>> logprobs = (tuple(np.array([-float(x)]) for x in range(10)),)
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("x",) * 10,), logprobs=logprobs)
    >>> result = surprisal_tail(batch, MetricContext(batch))
    >>> round(float(result.combine(result.parts)), 3)
    0.1

    Source: this project.
    """
    before = context.reference.batch
    if before.logprobs is None:
        return missing(batch, "log-probabilities of the baseline are unknown")
    return _share_above(context, _surprisals(batch), _surprisals(before), "nats")


def _metric(fn: Callable[..., Result], summary: str, **rest: Any) -> Metric:
    fixed: dict[str, Any] = {
        "family": "tails",
        "direction": "neutral",
        "scope": "pooled",
        "min_k": 1,
        "source": "divmon",
    }
    return Metric(name=fn.__name__, fn=fn, summary=summary, standard=False, **{**fixed, **rest})


LONG_TAIL = _metric(
    long_tail,
    "Share of completions longer than nine tenths of the baseline's: 0.1 there; below, long answers are going.",
    signature=f"tail:{TAIL:g}|unit:tokens-else-words|{WORDS}",
    compares=True,
)
SURPRISAL_TAIL = _metric(
    surprisal_tail,
    "Share of completions more surprising than nine tenths of the baseline's: 0.1 there; below, unlikely answers are "
    "going.",
    needs=frozenset({"logprobs"}),
    signature=f"tail:{TAIL:g}|mean:tokens|T:1",
    compares=True,
)
