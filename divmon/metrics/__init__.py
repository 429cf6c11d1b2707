"""The one table of metrics, and how a name becomes one."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any

from divmon.errors import ConfigError, unknown
from divmon.metrics.base import (
    Metric,
    MetricContext,
    PerPrompt,
    Pooled,
    evaluate,
    from_function,
)
from divmon.metrics.classes import DISTINCT_K, SEMANTIC_ENTROPY, UTILITY_K
from divmon.metrics.clusters import SEMANTIC_CLUSTERS
from divmon.metrics.compression import COMPRESSION_RATIO
from divmon.metrics.conditioned import BENIGN_SHARE, CORRECT_DISTANCE, NARROWING_SHARE
from divmon.metrics.coverage import HARD_COVERAGE, PASS_AT, SUPPORT_NET, SUPPORT_NEW, SUPPORT_RETAINED, SUPPORT_SCORE
from divmon.metrics.crossed import CROSSED
from divmon.metrics.effective import EFFECTIVE_PAIR_DIVERSITY, EFFECTIVE_SEMANTIC_DIVERSITY, MAJORITY_GAIN
from divmon.metrics.entropy import LENGTH, TOKEN_ENTROPY, TRUNCATED_FRACTION
from divmon.metrics.formats import (
    EFFECTIVE_CORRECT_FORMATS,
    EFFECTIVE_FORMATS,
    FORMAT_DOMINANCE,
    FORMAT_SHIFT,
    WINNER_GAP,
)
from divmon.metrics.human_gap import HUMAN_GAP
from divmon.metrics.inputs import ACROSS_DISTANCE, SEMANTIC_ACROSS_DISTANCE
from divmon.metrics.lexical import DISTINCT, EAD, OPENING_DOMINANCE, SELF_BLEU, UNIQUE_FRACTION
from divmon.metrics.likeness import LIKENESS
from divmon.metrics.nli import NLI_DIVERSITY, NLI_DIVERSITY_WHOLE
from divmon.metrics.openings import OPENINGS
from divmon.metrics.others import HIVEMIND
from divmon.metrics.outputs import ANSWER_ENTROPY, EFFECTIVE_ANSWERS, RARE_RETAINED, UNSEEN_MASS
from divmon.metrics.overlap import BIGRAM_COLLISION, JACCARD, ROUGE_L, SELF_REPETITION
from divmon.metrics.people import HUMAN_GAPS
from divmon.metrics.quality import ALL_CORRECT, ALL_WRONG, COVERAGE, MEAN_QUALITY, PASS_AT_1
from divmon.metrics.rarefied import RAREFIED
from divmon.metrics.rewrites import VOICE_SHIFT, VOICE_SPREAD
from divmon.metrics.scored import SCORED
from divmon.metrics.semantic import SEMANTIC_DISTANCE, TFIDF_DISTANCE
from divmon.metrics.syntax import AST
from divmon.metrics.tails import TAIL_KL, TAIL_RATIO, TAIL_SHARE, TAIL_SHIFT
from divmon.metrics.upper_tails import LONG_TAIL, SURPRISAL_TAIL
from divmon.metrics.weighted import WEIGHTED
from divmon.metrics.windows import CLOSING_DISTANCE, OPENING_COLLISION, OPENING_DISTANCE

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        TFIDF_DISTANCE,
        SEMANTIC_DISTANCE,
        *LIKENESS,
        SEMANTIC_CLUSTERS,
        NLI_DIVERSITY,
        NLI_DIVERSITY_WHOLE,
        DISTINCT_K,
        SEMANTIC_ENTROPY,
        UTILITY_K,
        *DISTINCT,
        SELF_BLEU,
        UNIQUE_FRACTION,
        OPENING_DOMINANCE,
        COMPRESSION_RATIO,
        TOKEN_ENTROPY,
        LENGTH,
        TRUNCATED_FRACTION,
        FORMAT_DOMINANCE,
        EFFECTIVE_FORMATS,
        EFFECTIVE_CORRECT_FORMATS,
        FORMAT_SHIFT,
        WINNER_GAP,
        PASS_AT_1,
        ALL_CORRECT,
        ALL_WRONG,
        COVERAGE,
        MEAN_QUALITY,
        TAIL_SHARE,
        TAIL_RATIO,
        TAIL_SHIFT,
        TAIL_KL,
        HARD_COVERAGE,
        *PASS_AT,
        SUPPORT_RETAINED,
        SUPPORT_NEW,
        SUPPORT_SCORE,
        SUPPORT_NET,
        ANSWER_ENTROPY,
        EFFECTIVE_ANSWERS,
        UNSEEN_MASS,
        RARE_RETAINED,
        LONG_TAIL,
        SURPRISAL_TAIL,
        EAD,
        *JACCARD,
        BIGRAM_COLLISION,
        ROUGE_L,
        SELF_REPETITION,
        *RAREFIED,
        OPENING_DISTANCE,
        CLOSING_DISTANCE,
        OPENING_COLLISION,
        *AST,
        CORRECT_DISTANCE,
        NARROWING_SHARE,
        BENIGN_SHARE,
        EFFECTIVE_SEMANTIC_DIVERSITY,
        EFFECTIVE_PAIR_DIVERSITY,
        MAJORITY_GAIN,
        ACROSS_DISTANCE,
        SEMANTIC_ACROSS_DISTANCE,
        HUMAN_GAP,
        *HUMAN_GAPS,
        *HIVEMIND,
        VOICE_SPREAD,
        VOICE_SHIFT,
        *SCORED,
        *OPENINGS,
        *WEIGHTED,
        *CROSSED,
    )
}

__all__ = [
    "METRICS",
    "Metric",
    "MetricContext",
    "PerPrompt",
    "Pooled",
    "default_metrics",
    "evaluate",
    "from_function",
    "resolve",
]


def default_metrics(*, encoder: bool = False, nli: bool = False, equivalence: bool = False) -> tuple[Metric, ...]:
    """The standard metrics of the table; those that need an encoder or a judge of pairs only where there is one."""
    given = {"encoder": encoder, "nli": nli, "equivalence": equivalence}
    absent = {need for need, there in given.items() if not there}
    return tuple(metric for metric in METRICS.values() if metric.standard and not absent & metric.needs)


def _imported(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"Cannot import the metric {path!r}: {error}.") from error


def resolve(spec: str | Metric | Callable[..., Any]) -> Metric:
    """A `Metric` from its name in the table, from ``"package.module:attribute"``, from a function, or from itself.

    What a function must be: a named one that takes one prompt's list of completions and returns a number; it becomes
    a neutral metric without bounds (see `from_function`).

    >>> resolve("self_bleu").direction
    'lower'
    >>> resolve("divmon.metrics.lexical:SELF_BLEU") is resolve("self_bleu")
    True
    >>> resolve("self_blue")
    Traceback (most recent call last):
    ...
    divmon.errors.ConfigError: Unknown metric 'self_blue'. Did you mean 'self_bleu'?

    Source: the plug-in point of divmon.

    Raises:
        ConfigError: The name is in no table, the import fails, or the object is neither a metric nor a function.
    """
    if isinstance(spec, Metric):
        return spec
    if not isinstance(spec, str):
        return from_function(spec)
    if spec in METRICS:
        return METRICS[spec]
    if ":" not in spec:
        raise unknown("metric", spec, METRICS)
    found = _imported(spec)
    return found if isinstance(found, Metric) else from_function(found)
