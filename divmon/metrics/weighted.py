"""Shares of formats now, from completions of the baseline, each weighted by how much likelier it has become.

The weight of a completion is the product of p now / p at the baseline over its first 16 tokens: weights of whole
completions say nothing (at 200 tokens and a KL of 0.01 a token, 5 % of the sample is all that counts). The label is
that of the whole completion. So the shares are those of a policy that writes the first 16 tokens as the policy of now
and the rest as the baseline: exact where the format shows in the first 16 tokens, or where the rest is what it was.

Weights can only shift mass between completions that are in the bank. How many still count (`bank_ess`), and whether
weights are 1 on average as they must be, say when that is no longer enough; then the shares are missing, and it is time
to draw fresh completions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from divmon.metrics.base import Metric, MetricContext, Pooled, Result
from divmon.metrics.formats import label_names, label_rows
from divmon.metrics.scored import ratios
from divmon.records import SampleBatch

HORIZON = 16  # tokens whose probabilities make the weight
LEAST_ESS = 0.6  # of the bank, below which shares are missing
MASS = 0.1  # by how much the mean weight may miss 1, beyond two standard errors
_LARGEST = 300.0  # of a log weight: its square is still a number
_STALE = "too few of the bank's completions still stand for the policy: draw fresh ones"
LATE = 0.05  # of a share, that the tokens after those may seem to move, beyond two standard errors
_CHANNELS = 5  # weight, squared weight, count; log weight of the later tokens, and its square


def log_weights(context: MetricContext) -> list[np.ndarray | None]:
    """Sum over the first 16 tokens of log p now minus log p at the baseline, float[K]; None for other prompts.

    >>> from divmon.records import Probe
    >>> now, base = (
    ...     SampleBatch(0, (Probe("a", "?"),), (("x",),), logprobs=((np.full(20, lp),),)) for lp in (-0.5, -1.0)
    ... )
    >>> log_weights(MetricContext(now, baseline=MetricContext(base)))[0].tolist()
    [8.0]

    Source: importance sampling, textbook.
    """

    def compute() -> list[np.ndarray | None]:
        rows = ratios(context)
        sums = [None if row is None else np.array([r[:HORIZON].sum() for r in row], dtype=float) for row in rows]
        return [None if row is None else np.clip(row, -math.inf, _LARGEST) for row in sums]

    return context.cached("log_weights", compute)


def _parts(context: MetricContext) -> np.ndarray:
    """float[P, F * 3]: weights, squared weights and counts by label. Completions without a label are in no column."""

    def compute() -> np.ndarray:
        labels, names = label_rows(context.reference), label_names(context.reference)
        column = {name: j for j, name in enumerate(names)}
        parts = np.zeros((len(context.batch.probes), len(names), _CHANNELS))
        for i, (row, there) in enumerate(zip(log_weights(context), context.baseline_rows, strict=True)):
            if row is not None and len(row) and not np.isnan(row).any():
                later = _later(ratios(context)[i] or [])
                where = [column[found[0]] for found in labels[int(there)]]
                weights = np.exp(row)
                np.add.at(parts[i], where, np.stack((weights, weights**2, np.ones(len(row)), later, later**2), axis=-1))
        return parts.reshape(len(parts), len(names) * _CHANNELS)

    return context.cached("weighted_parts", compute)


def _later(row: list[np.ndarray]) -> np.ndarray:
    """Log weight of what follows the first 16 tokens, float[K]."""
    return np.asarray(np.clip(np.array([r[HORIZON:].sum() for r in row], dtype=float), -_LARGEST, _LARGEST))


def late_shift(parts: np.ndarray) -> np.ndarray:
    """By how much the tokens after the first 16 surely move the share of some label; 0 or more.

    To first order a share moves by the covariance of having the label with the log weight of those tokens: where they
    decide on the label, the two go together. Two standard errors are taken off.
    """
    sums = parts.sum(axis=-2).reshape((*parts.shape[:-2], -1, _CHANNELS))
    n, first, second = sums[..., 2], sums[..., 3], sums[..., 4]
    total = np.maximum(n.sum(axis=-1, keepdims=True), 1)
    share, mean = n / total, first.sum(axis=-1, keepdims=True) / total
    squares = second - 2 * mean * first + mean**2 * n  # around the mean, by label
    rest = squares.sum(axis=-1, keepdims=True) - squares
    moved = np.abs(first / total - share * mean)
    error = np.sqrt(np.maximum(((1 - share) ** 2 * squares + share**2 * rest) / total - moved**2, 0.0) / total)
    return np.asarray(np.maximum(moved - 2 * error, 0.0).max(axis=-1))


def _sums(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, squared weights and counts, float[..., F] each, over prompts."""
    sums = parts.sum(axis=-2).reshape((*parts.shape[:-2], -1, _CHANNELS))
    return sums[..., 0], sums[..., 1], sums[..., 2]


def _ess(parts: np.ndarray) -> np.ndarray:
    w, squares, n = (x.sum(axis=-1) for x in _sums(parts))
    return np.asarray(np.divide(w**2, squares * n, out=np.full(np.shape(w), math.nan), where=squares * n > 0))


def _adrift(parts: np.ndarray) -> np.ndarray:
    """bool[...]: the weights do not average to 1, so the policy has mass where the bank has no completions."""
    w, squares, n = (x.sum(axis=-1) for x in _sums(parts))
    n = np.maximum(n, 1)
    mean = w / n
    error = np.sqrt(np.maximum(squares / n - mean**2, 0.0) / n)
    return np.asarray(np.abs(mean - 1.0) > MASS + 2.0 * error)


def _usable(parts: np.ndarray) -> np.ndarray:
    return np.asarray((_ess(parts) >= LEAST_ESS) & ~_adrift(parts) & (late_shift(parts) <= LATE))


def _shares(values: np.ndarray) -> np.ndarray:
    """Without the first column, which holds completions that a classifier failed on."""
    kept = values[..., 1:]
    total = np.broadcast_to(kept.sum(axis=-1, keepdims=True), kept.shape)
    return np.asarray(np.divide(kept, total, out=np.full(kept.shape, math.nan), where=total > 0))


def _described(names: tuple[str, ...], parts: np.ndarray) -> Mapping[str, Any]:
    w, squares, n = _sums(parts)
    shares, before = _shares(w), _shares(n)
    # of a ratio of sums, completions taken as independent (too wide by what lies between prompts); two completions of
    # mean weight are added, or a format that was hardly drawn would seem to be known best (Agresti and Coull 1998)
    total, added = squares[1:].sum(), 2.0 * squares.sum() / max(1.0, float(n.sum()))
    rest = squares[1:] * (1 - shares) ** 2 + (total - squares[1:]) * shares**2 + added
    errors = np.sqrt(rest) / max(1e-300, float(w[1:].sum()))

    def table(values: np.ndarray) -> dict[str, float]:
        return {name: float(v) for name, v, k in zip(names[1:], values, n[1:], strict=True) if k > 0}

    return {
        "shares": table(shares),
        "standard_errors": table(errors),
        "baseline_shares": table(before),
        "unclassified": int(n[0]),
    }


def _sizes(parts: np.ndarray) -> Mapping[str, Any]:
    w, _, n = (float(x.sum()) for x in _sums(parts))
    late = float(late_shift(parts))
    return {"mean_weight": w / n if n else math.nan, "completions": int(n), "late_shift": late}


def _weighted(context: MetricContext, value: Callable[..., np.ndarray]) -> Pooled:
    names = label_names(context.reference)

    def combine(parts: np.ndarray) -> np.ndarray:
        return np.where(_usable(parts), value(*_sums(parts)), math.nan)

    return Pooled(_parts(context), combine, lambda parts: _described(names, parts), _STALE)


def scored_format_dominance(batch: SampleBatch, context: MetricContext) -> Result:
    """Share of the commonest format now, estimated from the bank by weights; 1/F to 1, lower is more diverse. Pooled.

    ``details`` has every format's share with its standard error, the baseline's shares, and the effective sample size.

    What moves it besides diversity: as `format_dominance`; formats that the baseline never wrote cannot be seen, and
    formats that show only after 16 tokens move late. Missing when the bank no longer stands for the policy.

    >>> from divmon.records import Probe
    >>> now, base = (
    ...     SampleBatch(0, (Probe("a", "?"),), (("- a\\n- b", "words"),), logprobs=(tuple(np.log(row)),), source=source)
    ...     for row, source in (([[0.6], [0.4]], "score"), ([[0.5], [0.5]], "probe"))
    ... )
    >>> result = scored_format_dominance(now, MetricContext(now, baseline=MetricContext(base)))
    >>> round(float(result.combine(result.parts)), 3), result.details(result.parts)["shares"]["bullets"].__round__(3)
    (0.6, 0.6)

    Source: self-normalised importance sampling, textbook; formats after Zhao et al. (2025), arXiv:2504.07912.
    """

    def top(w: np.ndarray, squares: np.ndarray, n: np.ndarray) -> np.ndarray:
        shares = _shares(w)
        return shares.max(axis=-1) if shares.shape[-1] else np.full(shares.shape[:-1], math.nan)

    return _weighted(context, top)


def scored_effective_formats(batch: SampleBatch, context: MetricContext) -> Result:
    """Effective number of formats now (order 2), estimated from the bank by weights; 1 or more. Pooled.

    One over the probability that two different completions share a format, both drawn by weight.

    What moves it besides diversity: as `scored_format_dominance`; where weights are uneven it is noisy, and it may
    exceed the number of formats.

    >>> from divmon.records import Probe
    >>> lp = (tuple(np.log([[0.25]] * 4)),)
    >>> base = SampleBatch(0, (Probe("a", "?"),), (("- a\\n- b", "- c\\n- d", "plain", "words"),), logprobs=lp)
    >>> now = SampleBatch(1, base.probes, base.texts, logprobs=lp, source="score")
    >>> result = scored_effective_formats(now, MetricContext(now, baseline=MetricContext(base)))
    >>> round(float(result.combine(result.parts)), 3)
    3.0

    Source: Hill (1973), Ecology 54(2), by weighted pairs.
    """

    def effective(w: np.ndarray, squares: np.ndarray, n: np.ndarray) -> np.ndarray:
        w, squares = w[..., 1:], squares[..., 1:]
        same = (w**2 - squares).sum(axis=-1)
        pairs = w.sum(axis=-1) ** 2 - squares.sum(axis=-1)
        out = np.full(np.shape(same), math.nan)
        return np.asarray(np.divide(pairs, same, out=out, where=same > 1e-12 * np.maximum(pairs, 1e-300)))

    return _weighted(context, effective)


def scored_format_shift(batch: SampleBatch, context: MetricContext) -> Result:
    """Total variation between the weighted shares of formats now and the bank's own; 0 to 1, 0 at the baseline. Pooled.

    Both come from the same completions, so chance hardly moves it, unlike `format_shift`.

    What moves it besides a change: as `scored_format_dominance`.

    >>> from divmon.records import Probe
    >>> now, base = (
    ...     SampleBatch(0, (Probe("a", "?"),), (("- a\\n- b", "words"),), logprobs=(tuple(np.log(row)),), source=source)
    ...     for row, source in (([[0.6], [0.4]], "score"), ([[0.5], [0.5]], "probe"))
    ... )
    >>> result = scored_format_shift(now, MetricContext(now, baseline=MetricContext(base)))
    >>> round(float(result.combine(result.parts)), 3)
    0.1

    Source: self-normalised importance sampling, textbook.
    """
    return _weighted(context, lambda w, squares, n: np.abs(_shares(w) - _shares(n)).sum(axis=-1) / 2)


def bank_ess(batch: SampleBatch, context: MetricContext) -> Result:
    """How much of the bank still counts: effective sample size of the 16-token weights, as a share. 0 to 1. Pooled.

    (sum of weights)^2 / (n x sum of squared weights); 1 at the baseline.

    What moves it: any change of the policy within the first 16 tokens. It cannot see mass that went where the bank has
    nothing: for that look at ``details["mean_weight"]``, which is 1 while all of it is there.

    >>> from divmon.records import Probe
    >>> now, base = (
    ...     SampleBatch(0, (Probe("a", "?"),), (("a", "b"),), logprobs=(tuple(np.log(row)),), source=source)
    ...     for row, source in (([[0.8], [0.2]], "score"), ([[0.5], [0.5]], "probe"))
    ... )
    >>> result = bank_ess(now, MetricContext(now, baseline=MetricContext(base)))
    >>> round(float(result.combine(result.parts)), 3)
    0.735

    Source: Kong (1992), effective sample size of importance weights.
    """
    return Pooled(_parts(context), _ess, _sizes, "no completion of the bank has a score")


def _metric(fn: Callable[..., Result], summary: str, **rest: Any) -> Metric:
    fixed: dict[str, Any] = {
        "family": "scored",
        "scope": "pooled",
        "needs": frozenset({"bank"}),
        "min_k": 1,
        "standard": False,
        "source": "self-normalised importance sampling",
        "signature": f"tokens:{HORIZON}",
    }
    return Metric(name=fn.__name__, fn=fn, summary=summary, **{**fixed, **rest})


SCORED_DOMINANCE = _metric(
    scored_format_dominance,
    "Share of the commonest format, estimated without drawing completions; rising means narrowing.",
    direction="lower",
)
SCORED_FORMATS = _metric(
    scored_effective_formats,
    "How many formats are really in use, estimated without drawing completions; falling means narrowing.",
    direction="higher",
    bounds=(1.0, math.inf),
    unit="formats",
)
SCORED_SHIFT = _metric(
    scored_format_shift,
    "How far the mix of formats has moved from the baseline's, estimated without drawing completions.",
    direction="neutral",
    compares=True,
)
BANK_ESS = _metric(
    bank_ess,
    "How much of the bank of baseline completions still stands for the policy: 1 all of it; low means draw afresh.",
    direction="neutral",
    compares=True,
    source="Kong 1992",
)
WEIGHTED = (SCORED_DOMINANCE, SCORED_FORMATS, SCORED_SHIFT, BANK_ESS)
