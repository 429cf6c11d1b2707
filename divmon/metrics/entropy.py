"""Token entropy, and the two plain facts about completions that explain many changes: length and truncation."""

from __future__ import annotations

import math

import numpy as np

from divmon.metrics.base import Metric, MetricContext, PerPrompt, Result, per_prompt
from divmon.metrics.text import word_rows
from divmon.records import SampleBatch


def token_entropy(batch: SampleBatch, context: MetricContext) -> Result:
    """Next-token entropy in nats: the mean over a completion's tokens, then over completions. From 0 to log V.

    The trap: it is not diversity of answers. It can rise while answers collapse (published: tokens .44 -> .52 while
    the entropy of answers fell 1.30 -> .66), and templates collapse at constant entropy. It is neutral, and no alarm
    should rest on it alone. It also moves with length, since long completions spend more tokens on easy words.

    Returns:
        float[P] in nats; NaN where no completion has a token. `n` counts completions with at least one.

    >>> from divmon.records import Probe
    >>> entropies = ((np.array([0.0, 1.0]), np.array([0.7])),)
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("x y", "z"),), entropies=entropies)
    >>> token_entropy(batch, MetricContext(batch)).values.round(2).tolist()
    [0.6]

    Source: Shannon (1948).
    """
    rows = batch.entropies
    if rows is None:
        raise ValueError("token_entropy needs entropies")
    means = [[float(np.mean(e)) for e in map(np.asarray, row) if e.size] for row in rows]
    values = np.array([float(np.mean(row)) if row else math.nan for row in means])
    n = np.where(np.isnan(values), 0, [len(row) for row in means])
    why = ["a token's entropy is not a number" if row else "no completion has a token" for row in means]
    return PerPrompt(values, n, tuple(w if math.isnan(v) else None for w, v in zip(why, values, strict=True)))


def length(batch: SampleBatch, context: MetricContext) -> Result:
    """Mean length of a prompt's completions: in tokens when token ids are known, else in words. 0 or more.

    Neither good nor bad, and not diversity: it is here because most other numbers move with it. Tokens include the
    end-of-sequence token; a length cap holds it down (see `truncated_fraction`).

    Returns:
        float[P]; ``details["unit"]`` is "tokens" or "words".

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("one two", "three"),))
    >>> result = length(batch, MetricContext(batch))
    >>> result.values.tolist(), result.details["unit"]
    ([1.5], 'words')

    Source: a plain count.
    """
    if batch.token_ids is not None:
        unit, sizes = "tokens", [[len(ids) for ids in row] for row in batch.token_ids]
    else:
        unit, sizes = "words", [row.lengths.tolist() for row in word_rows(context)]
    result = per_prompt(batch, lambda i: float(np.mean(sizes[i])) if sizes[i] else math.nan, reason="no completions")
    return PerPrompt(result.values, result.n, result.reasons, {"unit": unit})


def truncated_fraction(batch: SampleBatch, context: MetricContext) -> Result:
    """Share of a prompt's completions that the length cap cut; between 0 and 1, neutral.

    Not diversity: when it is high, metrics of whole answers measure beginnings only, and a change of it explains
    changes of theirs.

    Returns:
        float[P].

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("done", "not y"),), finished=((True, False),))
    >>> truncated_fraction(batch, MetricContext(batch)).values.tolist()
    [0.5]

    Source: a plain count.
    """
    rows = batch.finished
    if rows is None:
        raise ValueError("truncated_fraction needs finished")

    def value(i: int) -> float:
        return 1.0 - sum(rows[i]) / len(rows[i]) if rows[i] else math.nan

    return per_prompt(batch, value, reason="no completions")


TOKEN_ENTROPY = Metric(
    name="token_entropy",
    fn=token_entropy,
    summary="Mean next-token entropy along the completions; it can rise while answers collapse.",
    family="entropy",
    direction="neutral",
    bounds=(0.0, math.inf),
    unit="nats",
    needs=frozenset({"entropies"}),
    min_k=1,
    source="Shannon 1948",
    signature="mean:tokens,completions|T:1",
)

LENGTH = Metric(
    name="length",
    fn=length,
    summary="Mean length of completions, in tokens when they are known, else in words.",
    family="entropy",
    direction="neutral",
    bounds=(0.0, math.inf),
    unit="tokens",
    min_k=1,
    source="a plain count",
    signature="unit:tokens-else-words",
)

TRUNCATED_FRACTION = Metric(
    name="truncated_fraction",
    fn=truncated_fraction,
    summary="Share of completions that the length cap cut.",
    family="entropy",
    direction="neutral",
    needs=frozenset({"finished"}),
    min_k=1,
    source="a plain count",
)
