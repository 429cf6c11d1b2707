"""The metric contract: what a metric is given, what it returns, and the checks done once for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from divmon.bank import Block
from divmon.errors import ConfigError
from divmon.records import SampleBatch

T = TypeVar("T")
Direction = Literal["higher", "lower", "neutral"]
Need = Literal[
    "token_ids",
    "entropies",
    "logprobs",
    "quality",
    "difficulty",
    "encoder",
    "finished",
    "nli",
    "equivalence",
    "bank",
    "block",
]
Encoder = Callable[[Sequence[str]], np.ndarray]
PairJudge = Callable[[Sequence[tuple[str, str]]], np.ndarray]
Classifier = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Judges:
    """What looks at two texts together; injected, never loaded by a metric.

    Attributes:
        nli: N (premise, hypothesis) pairs to float[N, 3]: probabilities of entailment, neutral, contradiction.
        nli_name: Goes into signatures.
        equivalence: N pairs to float[N]: at least 0.5 where the two texts say the same to a reader.
        equivalence_name: Goes into signatures.
    """

    nli: PairJudge | None = None
    nli_name: str = ""
    equivalence: PairJudge | None = None
    equivalence_name: str = ""


@dataclass(frozen=True)
class PerPrompt:
    """One value a prompt; the mean over prompts is the metric.

    Attributes:
        values: float[P], NaN where missing.
        n: int[P], completions that contributed.
        reasons: P reasons for missing values (None where there is one).
        details: What stands behind the number, for reports.
    """

    values: np.ndarray
    n: np.ndarray
    reasons: tuple[str | None, ...]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pooled:
    """One value for a set of prompts, with what is needed to recompute it on any subset or swap of prompts.

    Attributes:
        parts: float[P, D], what each prompt contributes (counts, usually). Baseline quantities a statistic compares
            with are columns of `parts` too, so that a subset of prompts is a subset on both sides.
        combine: float[..., P, D] -> float[...], the statistic; vectorised over leading axes, NaN where undefined.
        details: float[P, D] -> the vector behind the number, for reports (shares by format, ...).
        reason: Why `combine` gives NaN, when it may.
        additive: `combine` and `details` see `parts` only through their sum over prompts, and batches measured with
            the same fixed columns (or with columns added on the right) may be added up: what lets it be streamed.
    """

    parts: np.ndarray
    combine: Callable[[np.ndarray], np.ndarray]
    details: Callable[[np.ndarray], Mapping[str, Any]] | None = None
    reason: str = "undefined on these completions"
    additive: bool = False


Result = PerPrompt | Pooled
Fn = Callable[[SampleBatch, "MetricContext"], Result]


class MetricContext:
    """What metrics share about one batch, each computed once.

    Args:
        batch: The completions.
        quality: float[P][K], NaN where unknown; None when nothing judges completions.
        correct_at: A completion is correct (good enough) when its quality is at least this.
        encoder: Texts to float[N, D]; only semantic metrics ask for it. `encoder_name` goes into signatures.
        classifier: Text to structural labels, the most important first (see `divmon.metrics.formats`).
        baseline: The context of the baseline batch; None while measuring the baseline itself.
        judges: What looks at two texts together.

    Attributes:
        block: Some prompts' completions scored under one another's prompts, when there is such a block.
    """

    def __init__(
        self,
        batch: SampleBatch,
        *,
        quality: Sequence[Sequence[float] | np.ndarray] | None = None,
        correct_at: float = 0.5,
        encoder: Encoder | None = None,
        encoder_name: str = "",
        classifier: Classifier | None = None,
        baseline: MetricContext | None = None,
        judges: Judges | None = None,
    ) -> None:
        self.batch = batch
        self.quality = None if quality is None else [np.asarray(row, dtype=float) for row in quality]
        self.correct_at = correct_at
        self.encoder = encoder
        self.encoder_name = encoder_name
        self.classifier = classifier
        self.judges = judges or Judges()
        self.block: Block | None = None
        self._baseline = baseline
        self._cache: dict[Hashable, Any] = {}

    @property
    def reference(self) -> MetricContext:
        """The baseline's context; this one itself at the baseline. Frozen quantities (idf, shares) live there."""
        return self._baseline if self._baseline is not None else self

    def cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """`compute()`, once a batch for each `key`."""
        if key not in self._cache:
            self._cache[key] = compute()
        value: T = self._cache[key]
        return value

    @property
    def correct(self) -> list[np.ndarray] | None:
        """bool[P][K]: quality at least `correct_at` (unknown quality counts as not correct); None without quality."""
        if self.quality is None:
            return None
        quality = self.quality
        return self.cached("correct", lambda: [np.nan_to_num(row, nan=-math.inf) >= self.correct_at for row in quality])

    @property
    def baseline_rows(self) -> np.ndarray:
        """int[P]: where each prompt stands in the reference's batch, matched by probe id; -1 where it is not there."""

        def match() -> np.ndarray:
            where = {probe.id: i for i, probe in enumerate(self.reference.batch.probes)}
            return np.array([where.get(probe.id, -1) for probe in self.batch.probes], dtype=np.intp)

        return self.cached("baseline_rows", match)

    def has(self, need: Need) -> bool:
        """Whether `need` is available for this batch."""
        if need == "quality":
            return self.quality is not None
        if need == "encoder":
            return self.encoder is not None
        if need == "nli" or need == "equivalence":
            return getattr(self.judges, need) is not None
        if need == "block":
            return self.block is not None
        if need == "bank":
            return self.batch.source == "score" and self.reference.batch.logprobs is not None
        if need == "difficulty":
            return any(probe.difficulty is not None for probe in self.batch.probes)
        return getattr(self.batch, need) is not None


@dataclass(frozen=True)
class Metric:
    """A pure function of completions, and what a reader must know about its number.

    Attributes:
        name: Snake case, the field's name.
        fn: ``(batch, context) -> PerPrompt | Pooled``.
        summary: One sentence, shown in tables.
        family: lexical, syntax, compression, semantic, spectrum, entropy, formats, tails, coverage, inputs, quality,
            human, voice, hivemind, scored or user.
        direction: "higher" when a higher number means more diverse, "lower" the opposite, "neutral" neither.
        bounds: Smallest and largest possible value.
        unit: "", "nats", "tokens", "formats", ...
        scope: "per_prompt" (a mean over prompts) or "pooled" (one number for the set).
        needs: What must be known besides texts; missing needs give NaN with the reason.
        min_k: Fewest completions a prompt must have.
        source: Where the definition comes from.
        signature: Constants of the metric that make two numbers comparable, for example ``n:2|tok:words``.
        standard: Measured when the user names no metrics.
        compares: It says how far something is from the baseline, so without one it says nothing.
    """

    name: str
    fn: Fn
    summary: str
    family: str
    direction: Direction
    bounds: tuple[float, float] = (0.0, 1.0)
    unit: str = ""
    scope: Literal["per_prompt", "pooled"] = "per_prompt"
    needs: frozenset[Need] = frozenset()
    min_k: int = 2
    source: str = ""
    signature: str = ""
    standard: bool = True
    compares: bool = False


MISSING: dict[Need, str] = {
    "quality": "no quality: pass quality=, or probes with gold answers; a file may have a column of rewards",
    "difficulty": "no probe has a difficulty",
    "encoder": "no encoder: pass encoder=",
    "nli": "no model of entailment: pass nli=",
    "equivalence": "nothing judges whether two texts say the same: pass equivalence=",
    "token_ids": "token ids are unknown for these completions",
    "entropies": "token entropies are unknown for these completions",
    "logprobs": "log-probabilities are unknown for these completions",
    "finished": "end-of-sequence flags are unknown for these completions",
    "bank": "these are not completions of the baseline that were scored: there is no bank, or this is a fresh sample",
    "block": "no block of prompts and completions was scored",
}


def missing(batch: SampleBatch, reason: str) -> PerPrompt:
    """A result that says for every prompt why there is no value."""
    p = len(batch.probes)
    return PerPrompt(np.full(p, math.nan), np.zeros(p, dtype=int), (reason,) * p)


def evaluate(metric: Metric, context: MetricContext) -> Result:
    """Run `metric` after the checks that are the same for all: absent needs, prompts with too few completions."""
    for need in sorted(metric.needs):
        if not context.has(need):
            return missing(context.batch, MISSING[need])
    result = metric.fn(context.batch, context)
    if isinstance(result, Pooled) or metric.min_k <= 1:
        return result
    short = np.array([len(row) < metric.min_k for row in context.batch.texts])
    if not short.any():
        return result
    why = f"needs at least {metric.min_k} completions a prompt"
    reasons = tuple(why if s else r for s, r in zip(short, result.reasons, strict=True))
    return PerPrompt(np.where(short, math.nan, result.values), np.where(short, 0, result.n), reasons, result.details)


def per_prompt(
    batch: SampleBatch, value: Callable[[int], float], *, reason: str = "undefined on these completions"
) -> PerPrompt:
    """A `PerPrompt` from a function of the prompt's index that may return NaN."""
    values = np.array([value(i) for i in range(len(batch.probes))], dtype=float)
    n = np.array([len(row) for row in batch.texts], dtype=int)
    reasons = tuple(reason if math.isnan(v) else None for v in values)
    return PerPrompt(values, np.where(np.isnan(values), 0, n), reasons)


def from_function(fn: Callable[[list[str]], float], *, name: str | None = None) -> Metric:
    """A metric from a plain function of one prompt's completions.

    >>> shout = from_function(lambda texts: sum(t.isupper() for t in texts) / len(texts), name="shouting")
    >>> shout.name, shout.family
    ('shouting', 'user')
    """
    label = str(name or getattr(fn, "__name__", ""))
    if not callable(fn) or not label.isidentifier():
        raise ConfigError(
            f"A metric must be a name, a Metric, or a named function of a list of strings, not {fn!r}. "
            "Give a lambda a name with divmon.metrics.from_function(fn, name='...')."
        )

    def run(batch: SampleBatch, context: MetricContext) -> Result:
        return per_prompt(batch, lambda i: float(fn(list(batch.texts[i]))), reason=f"{label} returned NaN")

    summary = (fn.__doc__ or "A user's metric.").strip().splitlines()[0]
    return Metric(
        name=label, fn=run, summary=summary, family="user", direction="neutral", bounds=(-math.inf, math.inf), min_k=1
    )
