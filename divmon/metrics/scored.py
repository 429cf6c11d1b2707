"""What the baseline's own tokens are worth to the policy of now: measured by scoring them, without writing any.

The batch holds the bank's completions, with the log-probabilities and entropies of the policy as it is; the baseline's
context holds the same completions with those of the baseline. Every mean is over the bank's tokens, that is, over the
prefixes that the baseline visits: the policy's own new habits are not looked at, only what has become of the old ones.

A value a prompt is a sum over tokens divided by the number of tokens. Both vary with the draw of the bank, so it is off
by about 1/K of the difference between long and short completions, the same at every evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from divmon.metrics.base import Metric, MetricContext, PerPrompt, Result
from divmon.records import SampleBatch

Half = Literal["all", "head", "tail"]
_OTHER = "the tokens of this prompt are not those of the bank"
_NONE = "no completion has a token"
_ONE = "one completion has no halves: bank at least two a prompt"
_SOURCE = "divmon; total variation by importance ratios, textbook"


def ratios(context: MetricContext) -> list[list[np.ndarray] | None]:
    """log p(token) now minus at the baseline, float[T] for every completion; None for prompts that are not the bank's.

    >>> from divmon.records import Probe
    >>> now, base = (
    ...     SampleBatch(0, (Probe("a", "?"),), (("x",),), token_ids=(((7,),),), logprobs=((np.array([lp]),),))
    ...     for lp in (-3.0, -1.0)
    ... )
    >>> ratios(MetricContext(now, baseline=MetricContext(base)))[0][0].tolist()
    [-2.0]

    Source: textbook.
    """

    def compute() -> list[list[np.ndarray] | None]:
        batch, base = context.batch, context.reference.batch
        return [
            None
            if there < 0 or not _same(batch, base, i, int(there))
            else [_minus(now, was) for now, was in zip(_row(batch, i), _row(base, int(there)), strict=True)]
            for i, there in enumerate(context.baseline_rows)
        ]

    return context.cached("score_ratios", compute)


def _row(batch: SampleBatch, i: int) -> tuple[np.ndarray, ...]:
    return batch.logprobs[i] if batch.logprobs is not None else ()


def _same(batch: SampleBatch, base: SampleBatch, i: int, there: int) -> bool:
    """Whether the completions of prompt i are those of the baseline's prompt `there`."""
    known = batch.token_ids is not None and base.token_ids is not None
    if known and (batch.token_ids or ())[i] != (base.token_ids or ())[there]:
        return False
    return [len(x) for x in _row(batch, i)] == [len(x) for x in _row(base, there)]


def _minus(now: np.ndarray, was: np.ndarray) -> np.ndarray:
    return np.asarray(np.subtract(now, was, dtype=float))


def halves(base: tuple[np.ndarray, ...], half: Half) -> np.ndarray:
    """Which completions of a prompt make up a half, by mean token log-probability at the baseline.

    Args:
        base: The baseline's log-probabilities, float[T] for each of K completions.
        half: "tail", the K // 2 least likely; "head", the K // 2 likeliest; "all".

    Returns:
        Their indices; those without a token are in no half. Of equal ones the earlier is the less likely.

    >>> rows = tuple(np.array([lp]) for lp in (-1.0, -5.0, -2.0, -3.0))
    >>> halves(rows, "tail").tolist(), halves(rows, "head").tolist()
    ([1, 3], [2, 0])

    Source: this project.
    """
    kept = np.array([k for k, row in enumerate(base) if len(row)], dtype=np.intp)
    if half == "all":
        return kept
    means = np.array([float(np.mean(base[k])) for k in kept])
    order, size = kept[np.argsort(means, kind="stable")], len(kept) // 2
    return order[:size] if half == "tail" else order[len(kept) - size :]


def _per_token(
    context: MetricContext, value: Callable[[int, int], np.ndarray], *, half: Half = "all", least: float = -math.inf
) -> PerPrompt:
    """Sum of `value(prompt, completion)` (float[T]) over the tokens of a half, divided by their number.

    ``details["errors"]`` has each prompt's standard error, by the scatter of its completions.
    """
    p = len(context.batch.probes)
    values, errors, n = np.full(p, math.nan), np.full(p, math.nan), np.zeros(p, dtype=int)
    reasons: list[str | None] = [None] * p
    known = ratios(context)
    for i, there in enumerate(context.baseline_rows):
        if known[i] is None:
            reasons[i] = _OTHER
            continue
        base = _row(context.reference.batch, int(there))
        chosen = halves(base, half)
        if not len(chosen):
            reasons[i] = _NONE if half == "all" or not any(map(len, base)) else _ONE
            continue
        sums = np.array([float(np.sum(value(i, int(k)))) for k in chosen])
        tokens = np.array([len(base[k]) for k in chosen], dtype=float)
        values[i], n[i] = max(least, sums.sum() / tokens.sum()), len(chosen)
        if len(chosen) > 1:
            rest = sums - values[i] * tokens
            errors[i] = math.sqrt(float((rest**2).sum()) * len(chosen) / (len(chosen) - 1)) / tokens.sum()
    reasons = [
        "a score is not a number" if math.isnan(v) and r is None else r for v, r in zip(values, reasons, strict=True)
    ]
    return PerPrompt(values, np.where(np.isnan(values), 0, n), tuple(reasons), {"errors": errors})


def kl_per_token(batch: SampleBatch, context: MetricContext) -> Result:
    """KL(baseline || now) a token, in nats: how far the policy has moved, seen from the baseline's own completions.

    The mean over banked tokens of log p at the baseline minus log p now. 0 when nothing has moved; an unbiased estimate
    for each prefix, so it may be slightly negative. It says how far, not whereto.

    What moves it besides narrowing: any training at all, towards more variety too.

    Returns:
        float[P] in nats.

    >>> from divmon.records import Probe
    >>> now, base = (
    ...     SampleBatch(0, (Probe("a", "?"),), (("x",),), logprobs=((np.array([lp, -1.0]),),), source=source)
    ...     for lp, source in ((-3.0, "score"), (-1.0, "probe"))
    ... )
    >>> kl_per_token(now, MetricContext(now, baseline=MetricContext(base))).values.tolist()
    [1.0]

    Source: Kullback and Leibler (1951), by the baseline's own samples.
    """
    known = ratios(context)
    return _per_token(context, lambda i, k: -(known[i] or ())[k])


def _retained(context: MetricContext, half: Half) -> PerPrompt:
    known = ratios(context)
    return _per_token(context, lambda i, k: np.exp(np.minimum((known[i] or ())[k], 0.0)), half=half)


def retained_mass(batch: SampleBatch, context: MetricContext) -> Result:
    """The share of the baseline's next-token probability that the policy still gives to the same tokens; 0 to 1.

    The mean over banked tokens of min(1, p now / p at the baseline): an unbiased estimate of 1 - total variation at
    each prefix, from nothing but the log-probabilities of the sampled tokens. 1 when nothing has moved.

    What moves it besides narrowing: any change of the policy; what the tail loses and the head does not
    (`retained_tail`, `retained_head`) is narrowing.

    >>> from divmon.records import Probe
    >>> now, base = (
    ...     SampleBatch(0, (Probe("a", "?"),), (("x",),), logprobs=((np.log([p, 0.5]),),), source=source)
    ...     for p, source in ((0.2, "score"), (0.4, "probe"))
    ... )
    >>> retained_mass(now, MetricContext(now, baseline=MetricContext(base))).values.round(3).tolist()
    [0.75]

    Source: 1 - TV(p, q) = E_p min(1, q / p), textbook.
    """
    return _retained(context, "all")


def retained_head(batch: SampleBatch, context: MetricContext) -> Result:
    """`retained_mass` over each prompt's likelier half of banked completions (by mean token log-probability); 0 to 1.

    What moves it besides narrowing: any change of the policy. Beside `retained_tail` it says where the change is.

    >>> from divmon.records import Probe
    >>> now, base = (
    ...     SampleBatch(0, (Probe("a", "?"),), (("x", "y"),), logprobs=((np.log([a]), np.log([b])),), source=source)
    ...     for a, b, source in ((0.6, 0.1, "score"), (0.5, 0.2, "probe"))
    ... )
    >>> retained_head(now, MetricContext(now, baseline=MetricContext(base))).values.tolist()
    [1.0]

    Source: this project.
    """
    return _retained(context, "head")


def retained_tail(batch: SampleBatch, context: MetricContext) -> Result:
    """`retained_mass` over each prompt's less likely half of banked completions: what is left of the tail; 0 to 1.

    What moves it besides narrowing: any change of the policy; it is lower than `retained_head` when unlikely
    completions lose more, which is what narrowing is.

    >>> from divmon.records import Probe
    >>> now, base = (
    ...     SampleBatch(0, (Probe("a", "?"),), (("x", "y"),), logprobs=((np.log([a]), np.log([b])),), source=source)
    ...     for a, b, source in ((0.6, 0.1, "score"), (0.5, 0.2, "probe"))
    ... )
    >>> retained_tail(now, MetricContext(now, baseline=MetricContext(base))).values.round(3).tolist()
    [0.5]

    Source: this project.
    """
    return _retained(context, "tail")


def scored_entropy(batch: SampleBatch, context: MetricContext) -> Result:
    """Next-token entropy now, in nats, along the baseline's completions: the mean over their tokens; 0 to log V.

    Unlike `token_entropy` it always looks at the same prefixes, so it cannot rise because the policy wanders off to
    uncertain places. The trap of token entropy stays: it is not diversity of answers.

    >>> from divmon.records import Probe
    >>> lp, h = ((np.array([-1.0, -1.0]),),), ((np.array([0.0, 1.0]),),)
    >>> base = SampleBatch(0, (Probe("a", "?"),), (("x",),), logprobs=lp)
    >>> now = SampleBatch(1, base.probes, base.texts, logprobs=lp, entropies=h, source="score")
    >>> scored_entropy(now, MetricContext(now, baseline=MetricContext(base))).values.tolist()
    [0.5]

    Source: Shannon (1948).
    """
    rows = batch.entropies or ()
    return _per_token(context, lambda i, k: np.asarray(rows[i][k], dtype=float), least=0.0)


def _metric(fn: Callable[..., Result], summary: str, **rest: Any) -> Metric:
    fixed: dict[str, Any] = {
        "family": "scored",
        "direction": "neutral",
        "needs": frozenset({"bank"}),
        "min_k": 1,
        "source": _SOURCE,
        "compares": True,
        "standard": False,
        "signature": "mean:tokens",
    }
    return Metric(name=fn.__name__, fn=fn, summary=summary, **{**fixed, **rest})


KL_PER_TOKEN = _metric(
    kl_per_token,
    "How far the policy has moved from the baseline, a token of the baseline's own completions; 0 is not at all.",
    bounds=(-math.inf, math.inf),
    unit="nats",
    source="Kullback and Leibler 1951",
)
RETAINED_MASS = _metric(
    retained_mass,
    "How much of the baseline's next-token probability is still where it was: 1 all of it; falling means change.",
)
RETAINED_HEAD = _metric(
    retained_head,
    "`retained_mass` of the baseline's likelier completions; narrowing leaves it high while the tail's falls.",
    signature="mean:tokens|half:mean-logprob",
)
RETAINED_TAIL = _metric(
    retained_tail,
    "`retained_mass` of the baseline's less likely completions; falling below the head's means that the tail is going.",
    signature="mean:tokens|half:mean-logprob",
)
SCORED_ENTROPY = _metric(
    scored_entropy,
    "Mean next-token entropy now along the baseline's completions, whatever the policy would write itself.",
    bounds=(0.0, math.inf),
    unit="nats",
    needs=frozenset({"bank", "entropies"}),
    compares=False,
    source="Shannon 1948",
)
SCORED = (KL_PER_TOKEN, RETAINED_MASS, RETAINED_HEAD, RETAINED_TAIL, SCORED_ENTROPY)
