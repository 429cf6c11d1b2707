"""Distinct n-grams at a fixed number of draws, so that neither K nor length decides the number."""

from __future__ import annotations

import math

import numpy as np

from divmon.errors import ConfigError
from divmon.metrics.base import Metric, MetricContext, Result, per_prompt
from divmon.metrics.grams import GramRow, gram_rows
from divmon.metrics.text import WORDS
from divmon.records import SampleBatch

DRAWS = 50  # n-grams that eight completions of nine words have


def expected_distinct(abundances: np.ndarray, *, m: int) -> float:
    """Different kinds to expect among `m` of the items, drawn without replacement; NaN where there are fewer than m.

    The same number as `divmon.metrics.richness.rarefy`, computed for thousands of kinds: kinds of equal abundance are
    taken together, and the chance that all m draws miss one with c of N items, the product over i < m of
    1 - c / (N - i), is added up as logarithms. A difference of log-gammas loses nine digits at a million items.

    Args:
        abundances: int[U], items of each kind, 1 or more.
        m: Draws, 1 or more.

    Returns:
        A number between 1 and m.

    >>> round(expected_distinct(np.array([2, 2]), m=2), 3)
    1.667

    Source: Hurlbert (1971), Ecology 52(4).
    """
    total = int(abundances.sum())
    if total < m:
        return math.nan
    kinds = np.bincount(abundances)
    sizes = np.flatnonzero(kinds)
    shares = np.minimum(sizes[:, None] / (total - np.arange(m)), 1.0)
    with np.errstate(divide="ignore"):  # log 0: the kind cannot be missed
        found = -np.expm1(np.log1p(-shares).sum(axis=1))
    return float(np.sum(kinds[sizes] * found))


def _value(row: GramRow, m: int) -> float:
    abundances = row.summed(row.counts).astype(np.int64)
    return float(np.clip(expected_distinct(abundances, m=m) / m, 0.0, 1.0))


def rarefied_distinct(batch: SampleBatch, context: MetricContext, *, n: int, m: int) -> Result:
    """Distinct n-grams to expect among `m` of a prompt's n-grams, over m; between 1/m and 1, higher is more diverse.

    All completions' n-grams are taken together and m of them drawn without replacement. `distinct_n` depends on how
    many n-grams there are; this does not, since m is fixed.

    What moves it besides diversity: repetition *within* a completion, and with it length; K a little (2 % from 10
    completions to 3), because with few completions more of the pairs drawn are of one completion; and which prompts
    have m n-grams at all. The larger m, the more it hears of rare phrases and the sooner a change stands out, and the
    fewer prompts have enough.

    Returns:
        float[P]; NaN where a prompt has fewer than m n-grams.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("to be", "to be"),))
    >>> rarefied_distinct(batch, MetricContext(batch), n=1, m=2).values.round(3).tolist()
    [0.833]

    Source: Hurlbert (1971), Ecology 52(4), applied to the n-grams of Li et al. (2016), arXiv:1510.03055.
    """
    rows = gram_rows(context, n)
    return per_prompt(batch, lambda i: _value(rows[i], m), reason=f"fewer than {m} {n}-grams of words")


def rarefied_metric(n: int, *, m: int = DRAWS) -> Metric:
    """`rarefied_distinct` of word n-grams of this order among `m` draws, as a metric.

    The default suits eight completions of nine words or more; where completions are long, m = 100 or more tells small
    changes apart better.

    Raises:
        ConfigError: `n` or `m` cannot work.
    """
    if not (isinstance(n, int) and isinstance(m, int) and n >= 1 and m >= 2):
        raise ConfigError(f"n={n!r}, m={m!r}: pass whole numbers, n of at least 1 and m of at least 2.")

    def fn(batch: SampleBatch, context: MetricContext) -> Result:
        return rarefied_distinct(batch, context, n=n, m=m)

    return Metric(
        name=f"rarefied_distinct_{n}",
        fn=fn,
        summary=f"Distinct {n}-grams of words to expect among {m} of a prompt's, over {m}.",
        family="lexical",
        direction="higher",
        source="Hurlbert 1971, Ecology 52(4)",
        signature=f"n:{n}|m:{m}|{WORDS}",
        standard=False,
    )


RAREFIED = tuple(rarefied_metric(n) for n in (1, 2, 3))
