"""From the result of a metric to one number with its interval, over any of the prompts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from divmon.metrics.base import PerPrompt, Result
from divmon.records import Measurement
from divmon.uncertainty import mean_interval, pooled_interval


def summarise(result: Result, rows: np.ndarray, *, intervals: bool = True) -> Measurement:
    """The value, interval and reason of `result` over the prompts `rows` (step, domain and metric left empty).

    >>> summarise(PerPrompt(np.array([1.0, 3.0]), np.ones(2), (None, None)), np.arange(2)).value
    2.0

    Source: intervals are those of `divmon.uncertainty`.
    """
    if not isinstance(result, PerPrompt):
        parts = result.parts[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(result.combine(parts)) if len(rows) else math.nan
        low, high = math.nan, math.nan
        if intervals and not math.isnan(value):
            low, high = pooled_interval(parts, result.combine)
        details = result.details(parts) if result.details is not None else {}
        reason = result.reason if math.isnan(value) else None
        return Measurement(0, "", "", value, low, high, n=len(rows), reason=reason, details=details)
    values = result.values[rows]
    known = values[~np.isnan(values)]
    reasons = [*(result.reasons[i] for i in rows if result.reasons[i]), "undefined on these completions"]
    low, high = mean_interval(values) if intervals else (math.nan, math.nan)
    mean = float(known.mean()) if known.size else math.nan
    reason = reasons[0] if math.isnan(mean) else None
    measured = Measurement(0, "", "", mean, low, high, int(known.size), reason=reason, details=result.details)
    return replace(measured, values=tuple(map(float, values)))
