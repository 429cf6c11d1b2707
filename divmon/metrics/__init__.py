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
from divmon.metrics.compression import COMPRESSION_RATIO
from divmon.metrics.entropy import LENGTH, TOKEN_ENTROPY, TRUNCATED_FRACTION
from divmon.metrics.formats import (
    EFFECTIVE_CORRECT_FORMATS,
    EFFECTIVE_FORMATS,
    FORMAT_DOMINANCE,
    FORMAT_SHIFT,
    WINNER_GAP,
)
from divmon.metrics.lexical import DISTINCT, OPENING_DOMINANCE, SELF_BLEU, UNIQUE_FRACTION
from divmon.metrics.quality import ALL_CORRECT, ALL_WRONG, COVERAGE, MEAN_QUALITY, PASS_AT_1
from divmon.metrics.semantic import SEMANTIC_DISTANCE, TFIDF_DISTANCE
from divmon.metrics.tails import TAIL_KL, TAIL_RATIO, TAIL_SHARE, TAIL_SHIFT

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        TFIDF_DISTANCE,
        SEMANTIC_DISTANCE,
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


def default_metrics(*, encoder: bool = False) -> tuple[Metric, ...]:
    """The standard metrics of the table; those that need an encoder only where there is one."""
    return tuple(
        metric for metric in METRICS.values() if metric.standard and (encoder or "encoder" not in metric.needs)
    )


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
