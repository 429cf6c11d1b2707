"""Classes of completions that say the same, by a judge of pairs: how many, how evenly used, how much they are worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from divmon.metrics.base import Metric, MetricContext, Need, PerPrompt, per_prompt
from divmon.metrics.clusters import canonical
from divmon.metrics.richness import chao_jost_entropy
from divmon.records import SampleBatch

PATIENCE = 0.8  # the chance that a reader looks at one more completion
_UNJUDGED = "the judge of equivalence gave no number for a pair"


def _classes(row: Sequence[str], texts: list[str], same: np.ndarray) -> np.ndarray | None:
    """int64[K]: the class of each completion of `row`; `same` judges all pairs of its different `texts`, in order."""
    if np.isnan(same).any():
        return None
    m = len(texts)
    i, j = (index[same >= 0.5] for index in np.triu_indices(m, 1))
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(m, m))
    label = dict(zip(texts, connected_components(graph, directed=False)[1].tolist(), strict=True)) if m else {}
    return canonical(np.array([label[text] for text in row], dtype=np.int64))


def _judged(context: MetricContext) -> list[np.ndarray | None]:
    judge = context.judges.equivalence
    if judge is None:
        raise ValueError("nothing judges whether two texts say the same: pass equivalence=")
    asked: dict[tuple[str, str], int] = {}
    rows = []
    for row in context.batch.texts:
        texts = sorted(set(row))
        wanted = [asked.setdefault(pair, len(asked)) for pair in combinations(texts, 2)]
        rows.append((row, texts, np.array(wanted, dtype=np.intp)))
    verdicts = np.asarray(judge(list(asked)), dtype=float) if asked else np.zeros(0)
    if verdicts.shape != (len(asked),):
        raise ValueError(f"the judge of equivalence returned shape {verdicts.shape} for {len(asked)} pairs")
    return [_classes(row, texts, verdicts[wanted]) for row, texts, wanted in rows]


def partitions(context: MetricContext) -> list[np.ndarray | None]:
    """Which of a prompt's completions say the same, by the judge of equivalence; made once a batch.

    Every unordered pair of different texts is judged once, all pairs of the batch in one call, each pair in
    alphabetical order; completions joined by a chain of pairs are one class (equal texts always are). So nothing
    depends on the order of completions.

    Returns:
        P arrays int64[K], classes numbered in the order of first appearance; None where a pair could not be judged.

    >>> from divmon.metrics.base import Judges
    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("yes!", "no", "yes"),))
    >>> judge = lambda pairs: np.array([a[0] == b[0] for a, b in pairs], dtype=float)
    >>> partitions(MetricContext(batch, judges=Judges(equivalence=judge)))[0].tolist()
    [0, 1, 0]

    Source: a convention of divmon; classes of meaning after Kuhn et al. (2023), arXiv:2302.09664.
    """
    return context.cached("partitions", lambda: _judged(context))


def _over_classes(
    batch: SampleBatch, context: MetricContext, value: Callable[[int, np.ndarray], float], reason: str
) -> PerPrompt:
    found = partitions(context)

    def one(i: int) -> float:
        labels = found[i]
        return math.nan if labels is None or len(labels) < 2 else value(i, labels)

    return per_prompt(batch, one, reason=reason)


def distinct_k(batch: SampleBatch, context: MetricContext) -> PerPrompt:
    """Number of different answers among a prompt's K completions, 1 to K: classes that say the same to the judge.

    What moves it besides diversity: K (it can only grow), so compare at equal K; the judge; and chains, because
    classes are joined wherever the judge links them. It is not greedy: the published rule compares with the first
    member of each class and depends on the order of completions.

    Returns:
        float[P].

    >>> from divmon.metrics.base import Judges
    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("yes!", "no", "yes"),))
    >>> judge = lambda pairs: np.array([a[0] == b[0] for a, b in pairs], dtype=float)
    >>> distinct_k(batch, MetricContext(batch, judges=Judges(equivalence=judge))).values.tolist()
    [2.0]

    Source: Zhang et al. (2025), NoveltyBench, arXiv:2504.05228.
    """
    return _over_classes(batch, context, lambda i, labels: float(labels.max()) + 1.0, _UNJUDGED)


def semantic_entropy(batch: SampleBatch, context: MetricContext) -> PerPrompt:
    """Entropy of meaning of a prompt's completions, in nats, 0 or more: Shannon's, over classes that say the same.

    What moves it besides diversity: the judge, and K a little: the classes that K draws miss are estimated (Chao, Wang
    and Jost), which takes most of the bias away and adds noise where most completions stand alone.

    Returns:
        float[P].

    >>> from divmon.metrics.base import Judges
    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("yes", "yes!", "yes."),))
    >>> judge = lambda pairs: np.array([a[0] == b[0] for a, b in pairs], dtype=float)
    >>> semantic_entropy(batch, MetricContext(batch, judges=Judges(equivalence=judge))).values.tolist()
    [0.0]

    Source: Kuhn et al. (2023), arXiv:2302.09664, in its discrete form (Farquhar et al. 2024, Nature 630).
    """
    return _over_classes(
        batch, context, lambda i, labels: float(chao_jost_entropy(np.bincount(labels).astype(float))), _UNJUDGED
    )


def _aligned(partition: Sequence[int], scores: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    labels, values = np.asarray(partition), np.asarray(scores, dtype=float)
    if labels.ndim != 1 or labels.shape != values.shape:
        raise ValueError(f"one class and one score a completion are needed, not {labels.shape} and {values.shape}")
    return canonical(labels), values


def utility(partition: Sequence[int], scores: Sequence[float], *, patience: float = PATIENCE) -> float:
    """What completions are worth to a reader who goes through them in order and counts nothing twice.

    Sum of p^(i-1) u_i over the completions i that open a new class, over the sum of p^(i-1); between 0 (or the lowest
    score, if negative) and the highest score. What moves it besides diversity: quality, and the order of completions.

    Args:
        partition: The class of each completion, in order.
        scores: u, the quality of each.
        patience: p, the chance that the reader goes on.

    Returns:
        The utility; NaN without completions.

    >>> round(utility([0, 0, 1], [5.0, 9.0, 7.0]), 6)
    3.885246

    Source: Zhang et al. (2025), NoveltyBench, arXiv:2504.05228.
    """
    labels, values = _aligned(partition, scores)
    if not len(labels):
        return math.nan
    weights = patience ** np.arange(len(labels))
    new = np.diff(np.maximum.accumulate(labels), prepend=-1) > 0
    return float(np.sum(weights * np.where(new, values, 0.0)) / weights.sum())


def expected_utility(partition: Sequence[int], scores: Sequence[float], *, patience: float = PATIENCE) -> float:
    """Mean of `utility` over all orders of the completions, in closed form.

    A completion in a class of m counts at place j when the other m - 1 all come later, which has the probability
    C(K - 1 - j, m - 1) / C(K - 1, m - 1). What moves it besides diversity: quality.

    >>> round(expected_utility([0, 0, 1], [5.0, 9.0, 7.0]), 6)
    5.010929

    Source: divmon, from Zhang et al. (2025), arXiv:2504.05228.
    """
    labels, values = _aligned(partition, scores)
    k = len(labels)
    if not k:
        return math.nan
    sizes = np.bincount(labels)
    weights = patience ** np.arange(k)
    step = np.arange(k - 1)
    first = {m: np.cumprod(np.append(1.0, np.maximum(k - m - step, 0) / (k - 1 - step))) for m in set(sizes.tolist())}
    chance = np.array([float(np.sum(weights * first[m])) / k for m in sizes.tolist()])
    return float(np.sum(values * chance[labels]) / weights.sum())


def utility_k(batch: SampleBatch, context: MetricContext) -> PerPrompt:
    """Mean worth of a prompt's completions to a reader who loses patience and counts no answer twice.

    In the unit of quality. NoveltyBench's utility at patience 0.8, averaged exactly over all orders of the
    completions, because a sample has none. What moves it besides diversity: quality, at least as much; that is its
    point. Compare at equal K.

    Returns:
        float[P]; NaN where a quality is unknown.

    >>> from divmon.metrics.base import Judges
    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("yes", "yes"),))
    >>> judge = lambda pairs: np.ones(len(pairs))
    >>> context = MetricContext(batch, quality=[[1.0, 1.0]], judges=Judges(equivalence=judge))
    >>> utility_k(batch, context).values.round(6).tolist()
    [0.555556]

    Source: Zhang et al. (2025), NoveltyBench, arXiv:2504.05228.
    """
    quality = context.quality or []
    return _over_classes(
        batch,
        context,
        lambda i, labels: expected_utility(labels.tolist(), quality[i].tolist()),
        f"{_UNJUDGED}, or a quality is unknown",
    )


def greedy_partition(texts: Sequence[str], same: Callable[[str, str], bool]) -> list[int]:
    """Classes by comparison with the first member of each, in order: the rule of NoveltyBench's own numbers.

    For that protocol only. What moves it besides diversity: the order of `texts`, whenever `same` is not transitive.

    Args:
        texts: Completions in their order.
        same: Whether a first member and a later completion are equivalent.

    >>> greedy_partition(["a", "ab", "b"], lambda a, b: bool(set(a) & set(b)))
    [0, 0, 1]

    Source: Zhang et al. (2025), NoveltyBench, arXiv:2504.05228.
    """
    first: list[str] = []
    labels = []
    for text in texts:
        found = next((label for label, member in enumerate(first) if same(member, text)), len(first))
        if found == len(first):
            first.append(text)
        labels.append(found)
    return labels


_JUDGE: frozenset[Need] = frozenset({"equivalence"})
DISTINCT_K = Metric(
    name="distinct_k",
    fn=distinct_k,
    summary="How many different answers a prompt's completions hold, by a judge of whether two say the same.",
    family="semantic",
    direction="higher",
    bounds=(1.0, math.inf),
    unit="classes",
    needs=_JUDGE,
    source="Zhang et al. 2025, arXiv:2504.05228",
    signature="classes:components",
)
SEMANTIC_ENTROPY = Metric(
    name="semantic_entropy",
    fn=semantic_entropy,
    summary="Entropy of meaning of a prompt's completions: how evenly they spread over different answers.",
    family="semantic",
    direction="higher",
    bounds=(0.0, math.inf),
    unit="nats",
    needs=_JUDGE,
    source="Kuhn et al. 2023, arXiv:2302.09664; Chao, Wang & Jost 2013",
    signature="classes:components|chao-jost",
)
UTILITY_K = Metric(
    name="utility_k",
    fn=utility_k,
    summary="What a prompt's completions are worth to a reader who counts no answer twice: quality and variety in one.",
    family="semantic",
    direction="neutral",
    bounds=(-math.inf, math.inf),
    needs=_JUDGE | {"quality"},
    source="Zhang et al. 2025, arXiv:2504.05228",
    signature=f"patience:{PATIENCE:g}|orders:all|classes:components",
    standard=False,
)
