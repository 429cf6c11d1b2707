"""Which completions are good, judged by the user, by rewards or by gold answers, and the metrics of success."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from divmon.errors import ConfigError
from divmon.metrics.answers import extract_answer, gold_match
from divmon.metrics.base import Metric, MetricContext, PerPrompt, Result
from divmon.records import Probe, SampleBatch

__all__ = [
    "ALL_CORRECT",
    "ALL_WRONG",
    "COVERAGE",
    "MEAN_QUALITY",
    "PASS_AT_1",
    "Quality",
    "extract_answer",
    "gold_match",
    "judge",
]

Quality = Callable[[Probe, str], float | bool | None]
_UNJUDGED = "no completion of this prompt was judged"


def _call(quality: Quality, probe: Probe, text: str) -> float:
    """One verdict; None and NaN say "unknown", anything else that is no finite number raises."""
    raw: Any = quality(probe, text)
    score = math.nan if raw is None else float(raw)
    if math.isinf(score):
        raise ValueError("quality must be finite")
    return score


def _by_function(batch: SampleBatch, quality: Quality) -> tuple[list[np.ndarray], list[Exception]]:
    failures = []
    scores = [np.full(len(row), math.nan) for row in batch.texts]
    for probe, texts, row in zip(batch.probes, batch.texts, scores, strict=True):
        for k, text in enumerate(texts):
            try:
                row[k] = _call(quality, probe, text)
            except Exception as error:
                failures.append(error)
    return scores, failures


def judge(batch: SampleBatch, quality: Quality | None = None) -> tuple[list[np.ndarray] | None, list[Exception]]:
    """Quality of each completion: by the user's function, else the batch's rewards, else the probes' gold answers.

    What moves it besides quality: which of the three judges; their scales differ.

    >>> batch = SampleBatch(0, (Probe("a", "3 + 4?", gold="7"),), (("It is 7.", "It is 8."),))
    >>> judge(batch)
    ([array([1., 0.])], [])
    >>> judge(batch, lambda probe, completion: len(completion) / 10)
    ([array([0.8, 0.8])], [])

    Returns:
        Quality, float[P][K] with NaN where unknown, or None when nothing judges completions; and an error for each
        completion on which the function raised or returned no finite number (they count as unknown).

    Raises:
        ConfigError: When `quality` is not callable.

    Source: this project.
    """
    if quality is not None:
        if not callable(quality):
            raise ConfigError(f"quality must be a function of a probe and a completion, not {quality!r}")
        return _by_function(batch, quality)
    if batch.rewards is not None:
        rewards = [np.asarray(row, dtype=float) for row in batch.rewards]
        if any(np.isfinite(row).any() for row in rewards):
            return [np.where(np.isfinite(row), row, math.nan) for row in rewards], []
    if any(probe.gold is not None for probe in batch.probes):
        return [_by_gold(probe, texts) for probe, texts in zip(batch.probes, batch.texts, strict=True)], []
    return None, []


def _by_gold(probe: Probe, texts: tuple[str, ...]) -> np.ndarray:
    if probe.gold is None:
        return np.full(len(texts), math.nan)
    return np.array([gold_match(text, probe.gold) for text in texts], dtype=float)


def _over_judged(context: MetricContext, value: Callable[[np.ndarray, np.ndarray], float]) -> PerPrompt:
    """`value(quality, correct)` of each prompt's judged completions."""
    quality, correct = context.quality, context.correct
    if quality is None or correct is None:
        raise ValueError("quality metrics need quality")
    known = [~np.isnan(row) for row in quality]
    n = np.array([int(mask.sum()) for mask in known], dtype=int)
    values = np.array(
        [
            value(q[mask], c[mask]) if mask.any() else math.nan
            for q, c, mask in zip(quality, correct, known, strict=True)
        ],
        dtype=float,
    )
    return PerPrompt(values, n, tuple(None if judged else _UNJUDGED for judged in n))


def pass_at_1(batch: SampleBatch, context: MetricContext) -> Result:
    """Share of a prompt's judged completions that are correct; between 0 and 1, neutral. float[P].

    Not diversity: it is what a fall in diversity may have bought. What moves it: the sampling temperature, the length
    cap (a cut answer is wrong), and `correct_at` where quality is not yes or no.

    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("1", "2"),))
    >>> pass_at_1(batch, MetricContext(batch, quality=[[1.0, 0.0]])).values.tolist()
    [0.5]

    Source: Chen et al. (2021), arXiv:2107.03374, with k = 1.
    """
    return _over_judged(context, lambda quality, correct: float(correct.mean()))


def coverage(batch: SampleBatch, context: MetricContext) -> Result:
    """1 where at least one of a prompt's judged completions is correct, else 0 (over prompts: a share). float[P].

    Higher means that more problems stay within reach. What moves it besides diversity: K (more draws cover more;
    compare at equal K only) and skill (it rises with `pass_at_1`; a fall while `pass_at_1` rises is narrowing).

    >>> batch = SampleBatch(0, (Probe("a", "?"), Probe("b", "?")), (("1", "2"), ("1", "2")))
    >>> coverage(batch, MetricContext(batch, quality=[[1.0, 0.0], [0.0, 0.0]])).values.tolist()
    [1.0, 0.0]

    Source: pass@K at K draws, Chen et al. (2021), arXiv:2107.03374.
    """
    return _over_judged(context, lambda quality, correct: float(correct.any()))


def mean_quality(batch: SampleBatch, context: MetricContext) -> Result:
    """Mean quality of a prompt's judged completions, in the judge's own unit, neutral. float[P].

    Not diversity. What moves it besides quality: a reward that can be gamed, and completions that nobody judged.

    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("1", "2"),))
    >>> mean_quality(batch, MetricContext(batch, quality=[[0.25, 0.75]])).values.tolist()
    [0.5]

    Source: a plain mean.
    """
    return _over_judged(context, lambda quality, correct: float(quality.mean()))


def all_correct(batch: SampleBatch, context: MetricContext) -> Result:
    """1 where every judged completion of a prompt is correct, else 0 (over prompts: a share), neutral. float[P].

    Such a group teaches a group-relative trainer nothing. What moves it: skill, K (more draws make it rarer).

    >>> batch = SampleBatch(0, (Probe("a", "?"), Probe("b", "?")), (("1", "2"), ("1", "2")))
    >>> all_correct(batch, MetricContext(batch, quality=[[1.0, 1.0], [1.0, 0.0]])).values.tolist()
    [1.0, 0.0]

    Source: groups without signal in GRPO, Shao et al. (2024), arXiv:2402.03300.
    """
    return _over_judged(context, lambda quality, correct: float(correct.all()))


def all_wrong(batch: SampleBatch, context: MetricContext) -> Result:
    """1 where no judged completion of a prompt is correct, else 0 (over prompts: a share), neutral. float[P].

    One minus `coverage`: the prompts that produce no signal and no data. What moves it: skill, K.

    >>> batch = SampleBatch(0, (Probe("a", "?"), Probe("b", "?")), (("1", "2"), ("1", "2")))
    >>> all_wrong(batch, MetricContext(batch, quality=[[0.0, 0.0], [1.0, 0.0]])).values.tolist()
    [1.0, 0.0]

    Source: groups without signal in GRPO, Shao et al. (2024), arXiv:2402.03300.
    """
    return _over_judged(context, lambda quality, correct: float(not correct.any()))


PASS_AT_1 = Metric(
    name="pass_at_1",
    fn=pass_at_1,
    summary="Share of judged completions that are correct.",
    family="quality",
    direction="neutral",
    needs=frozenset({"quality"}),
    min_k=1,
    source="Chen et al. 2021, arXiv:2107.03374",
)

COVERAGE = Metric(
    name="coverage",
    fn=coverage,
    summary="Share of prompts with at least one correct completion; grows with K.",
    family="quality",
    direction="higher",
    needs=frozenset({"quality"}),
    min_k=1,
    source="Chen et al. 2021, arXiv:2107.03374",
)

ALL_CORRECT = Metric(
    name="all_correct",
    fn=all_correct,
    summary="Share of prompts all of whose completions are correct: groups without signal.",
    family="quality",
    direction="neutral",
    needs=frozenset({"quality"}),
    min_k=1,
    source="Shao et al. 2024, arXiv:2402.03300",
)

ALL_WRONG = Metric(
    name="all_wrong",
    fn=all_wrong,
    summary="Share of prompts none of whose completions is correct: groups without signal.",
    family="quality",
    direction="neutral",
    needs=frozenset({"quality"}),
    min_k=1,
    source="Shao et al. 2024, arXiv:2402.03300",
)

MEAN_QUALITY = Metric(
    name="mean_quality",
    fn=mean_quality,
    summary="Mean quality of the judged completions.",
    family="quality",
    direction="neutral",
    bounds=(-math.inf, math.inf),
    needs=frozenset({"quality"}),
    min_k=1,
    source="a plain mean",
)
