"""Likeness to other models as metrics of a run: is the policy becoming the same as everyone else's?

Other models' completions are banked beforehand: given by the user for the same prompts (`Bank`), or a column ``others``
of the probes ({model: completions}). Texts are compared through the encoder where one is given, else by their surface
(TF-IDF of character 3-5-grams, as `tfidf_distance`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from divmon.metrics.base import Encoder, Metric, MetricContext, PerPrompt, Result, missing
from divmon.metrics.hivemind import NEAREST, OWN, distinct_models
from divmon.metrics.semantic import Idf, embeddings, fit_idf, frozen_idf, surface_kernel
from divmon.records import Probe, SampleBatch

COLUMN = "others"
_NO_BANK = "no completions of other models: pass others="
_UNASKED = "no other model has answered this prompt"
MAX_POOL = 4096  # completions of one prompt, of all models, whose cosines are held at once
Texts = tuple[str, ...]
Answers = Callable[[Probe], Mapping[str, Texts]]


@dataclass(frozen=True)
class Bank:
    """Completions of other models.

    Attributes:
        answers: Text of a prompt to model to completions.
    """

    answers: Mapping[str, Mapping[str, Texts]]

    @property
    def models(self) -> tuple[str, ...]:
        """Their names, in the order they first appear."""
        return tuple(dict.fromkeys(model for row in self.answers.values() for model in row))

    @property
    def digest(self) -> str:
        """Eight hex digits that change with any completion."""
        body = json.dumps([self.answers], sort_keys=True, default=list)
        return hashlib.sha256(body.encode("ascii")).hexdigest()[:8]

    def of(self, probe: Probe) -> Mapping[str, Texts]:
        """What other models answered; empty when none did."""
        return self.answers.get(probe.text, {})


def _column(probe: Probe) -> Mapping[str, Texts]:
    """The probe's own column of other models' completions; what has another shape counts as absent."""
    found = probe.columns.get(COLUMN)
    if not isinstance(found, Mapping):
        return {}
    rows = {str(model): tuple(map(str, row)) for model, row in found.items() if isinstance(row, (list, tuple))}
    return {model: row for model, row in rows.items() if row}


def block_means(kernel: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """float[M, M]: mean cosine between the completions of each two models; within one, over its different pairs.

    NaN within a model of fewer than two completions. What moves it besides agreement: what the cosines are made from.

    Args:
        kernel: float[N, N], cosines of all completions of one prompt, model after model.
        sizes: How many completions each model has.

    >>> block_means(np.array([[1, 0.5, 0], [0.5, 1, 1], [0, 1, 1]]), [2, 1]).tolist()
    [[0.5, 0.5], [0.5, nan]]

    Source: Jiang et al. (2025), arXiv:2510.22954 (inter- and intra-model similarity).
    """
    n = np.asarray(sizes, dtype=float)
    member = np.repeat(np.eye(len(n)), np.asarray(sizes, dtype=int), axis=0)
    sums = member.T @ kernel @ member
    own = np.arange(len(n))
    sums[own, own] -= member.T @ np.diag(kernel)
    pairs = np.outer(n, n)
    pairs[own, own] -= n
    return np.asarray(np.divide(sums, pairs, out=np.full_like(sums, math.nan), where=pairs > 0))


def source_counts(kernel: np.ndarray, sizes: Sequence[int], *, nearest: int) -> float:
    """Distinct models among the `nearest` neighbours of a completion, averaged over the pool; NaN for fewer than two.

    As `divmon.metrics.hivemind.source_models`, from cosines. Between 1 and the number of models.

    >>> source_counts(np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]]), [2, 1], nearest=1)
    1.0

    Source: Jiang et al. (2025), arXiv:2510.22954.
    """
    total = len(kernel)
    if total < 2 or not np.isfinite(kernel).all():
        return math.nan
    near = np.array(kernel)
    np.fill_diagonal(near, -math.inf)
    member = np.repeat(np.eye(len(sizes)), sizes, axis=0)
    return float(distinct_models(near, member, min(nearest, total - 1)).mean())


class _Vectors:
    """Unit vectors of banked completions, each encoded once in a process."""

    def __init__(self) -> None:
        self._at: dict[str, np.ndarray] = {}

    def of(self, texts: Sequence[str], encoder: Encoder) -> np.ndarray:
        new = list(dict.fromkeys(text for text in texts if text not in self._at))
        if new:
            found = np.asarray(encoder(new), dtype=float)
            if found.ndim != 2 or len(found) != len(new):
                raise ValueError(f"the encoder returned shape {found.shape} for {len(new)} texts")
            norms = np.linalg.norm(found, axis=1, keepdims=True)
            with np.errstate(invalid="ignore"):
                self._at.update(zip(new, found / np.where(norms == 0, 1.0, norms), strict=True))
        return np.stack([self._at[text] for text in texts]) if texts else np.zeros((0, 1))


@dataclass(frozen=True)
class Company:
    """The policy among the other models at one prompt.

    Attributes:
        similarity: Mean cosine with the other models' completions, all models counting alike.
        repetition: Mean cosine over the pairs of own completions.
        sources: Distinct models among the neighbours of a completion.
    """

    similarity: float = math.nan
    repetition: float = math.nan
    sources: float = math.nan


def _company(kernel: np.ndarray, sizes: Sequence[int]) -> Company:
    """As many completions of each model as of the policy, and as many neighbours, count for the sources."""
    means = np.clip(block_means(kernel, sizes), -1.0, 1.0)
    k, starts = sizes[0], np.cumsum([0, *sizes[:-1]])
    kept = [min(k, size) for size in sizes]
    chosen = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, kept, strict=True)])
    sources = source_counts(kernel[np.ix_(chosen, chosen)], kept, nearest=k)
    return Company(float(means[0, 1:].mean()), float(means[0, 0]), sources)


def _companies(
    batch: SampleBatch, context: MetricContext, answers: Answers, vectors: _Vectors | None
) -> list[Company | None]:
    """One a prompt; None where no other model has answered, or the policy has not. Surfaces without `vectors`."""
    rows = [answers(probe) for probe in batch.probes]
    idf = frozen_idf(context) if vectors is None else None
    own = [] if vectors is None else embeddings(context)
    if vectors is not None and context.encoder is not None:  # one call for all prompts
        vectors.of([text for row in rows for texts in row.values() for text in texts], context.encoder)
    found: list[Company | None] = []
    for i, (row, texts) in enumerate(zip(rows, batch.texts, strict=True)):
        pool = [text for other in row.values() for text in other]
        if not pool or not texts or len(pool) + len(texts) > MAX_POOL:
            found.append(None)
            continue
        if idf is not None:
            kernel = surface_kernel((*texts, *pool), idf)
        elif vectors is not None and context.encoder is not None:
            unit = np.concatenate((own[i], vectors.of(pool, context.encoder)))
            kernel = unit @ unit.T
        found.append(_company(kernel, [len(texts), *map(len, row.values())]))
    return found


def _metric(name: str, field: str, summary: str, **more: Any) -> Metric:
    metric = Metric(
        name=name,
        fn=lambda batch, context: _value(batch, context, field, _column, None, "column"),
        summary=summary,
        family="hivemind",
        min_k=1,
        source="Jiang et al. 2025, arXiv:2510.22954",
        signature="space:char:3-5|idf:baseline",
        standard=False,
        **{"direction": "neutral", "bounds": (-1.0, 1.0), **more},
    )
    return metric


def _value(
    batch: SampleBatch,
    context: MetricContext,
    field: str,
    answers: Answers,
    vectors: _Vectors | None,
    key: str,
) -> Result:
    """One number of `Company` for each prompt, the rest cached for the other metrics of the family."""
    if not any(answers(probe) for probe in batch.probes):
        return missing(batch, _NO_BANK if key == "column" else f"{_UNASKED}; texts of prompts must be the same")
    found = context.cached(("company", key), lambda: _companies(batch, context, answers, vectors))
    values = np.array([math.nan if one is None else getattr(one, field) for one in found], dtype=float)
    n = np.array([len(row) for row in batch.texts], dtype=int)
    asked = [bool(answers(probe)) for probe in batch.probes]
    large = f"no completions of its own, or more than {MAX_POOL} of all models"
    odd = "too few completions, or an embedding is not finite"
    why = [odd if one else large if any_ else _UNASKED for one, any_ in zip(found, asked, strict=True)]
    reasons = tuple(reason if math.isnan(v) else None for v, reason in zip(values, why, strict=True))
    return PerPrompt(values, np.where(np.isnan(values), 0, n), reasons)


HIVEMIND = (
    _metric(
        "hivemind_similarity",
        "similarity",
        "How like other models' completions of the same prompts the policy's are: mean cosine over the pairs, averaged "
        "over models.",
    ),
    _metric(
        "source_models",
        "sources",
        "Distinct models among the K nearest neighbours of a completion, K completions of each model pooled: 1 when "
        "each model keeps to itself.",
        bounds=(1.0, math.inf),
        unit="models",
    ),
    _metric(
        "hivemind_repetition",
        "repetition",
        "How like each other the policy's own completions are, in the space of `hivemind_similarity`: mean cosine "
        "over the pairs.",
        direction="lower",
    ),
)
_FIELDS = {"hivemind_similarity": "similarity", "source_models": "sources", "hivemind_repetition": "repetition"}


def hivemind_metrics(bank: Bank, *, encoder: bool = False) -> tuple[Metric, ...]:
    """`HIVEMIND` measured against `bank` instead of a column of the probes.

    Args:
        bank: Completions of other models.
        encoder: Whether texts are compared through the encoder of the run, or by their surface.

    >>> [metric.name for metric in hivemind_metrics(Bank({"?": {"other": ("yes",)}}))]
    ['hivemind_similarity', 'source_models', 'hivemind_repetition']

    Source: Jiang et al. (2025), arXiv:2510.22954.
    """
    vectors, name = _Vectors() if encoder else None, f"others:{len(bank.models)}@{bank.digest}"

    def bound(metric: Metric) -> Metric:
        field = _FIELDS[metric.name]
        return replace(
            metric,
            fn=lambda batch, context: _value(batch, context, field, bank.of, vectors, bank.digest),
            signature=f"space:encoder|{name}" if encoder else f"{metric.signature}|{name}",
            needs=frozenset({"encoder"}) if encoder else metric.needs,
        )

    return tuple(map(bound, HIVEMIND))


@dataclass(frozen=True)
class Alike:
    """Several models on the prompts that all of them answered.

    Attributes:
        models: Their names.
        similarity: float[P, M, M], as `block_means` gives it for each prompt.
        sources: float[P], distinct models among the nearest neighbours of a completion.
        nearest: How many neighbours that is.
        prompts: Texts of the prompts.
    """

    models: tuple[str, ...]
    similarity: np.ndarray
    sources: np.ndarray
    nearest: int
    prompts: tuple[str, ...]


def alike(bank: Bank, encoder: Encoder | None = None, *, nearest: int | None = None) -> Alike:
    """How alike several models are, each with each, on the prompts that all of them answered.

    As many completions of each model count as the one with the fewest has.

    Args:
        bank: Completions of at least two models.
        encoder: Texts to float[N, D]; None compares surfaces, idf fitted on all of them.
        nearest: Neighbours for the sources; None takes that number of completions.

    >>> two = Bank({"?": {"a": ("up", "down"), "b": ("down", "down")}})
    >>> alike(two).similarity[0].round(3).tolist()
    [[0.0, 0.5], [0.5, 1.0]]

    Source: Jiang et al. (2025), arXiv:2510.22954.

    Raises:
        ValueError: No prompt was answered by all, or a model is called as the policy's own completions are.
    """
    models = bank.models
    common = [prompt for prompt, row in bank.answers.items() if all(row.get(model) for model in models)]
    if not common:
        raise ValueError("no prompt was answered by all of them; texts of prompts must be the same")
    k = min(len(bank.answers[prompt][model]) for prompt in common for model in models)
    pools = [tuple(text for model in models for text in bank.answers[prompt][model][:k]) for prompt in common]
    idf: Idf | None = None
    if encoder is None:
        idf = fit_idf(SampleBatch(0, (Probe(OWN, "?"),), (tuple(text for pool in pools for text in pool),)))
    vectors, sizes = _Vectors(), [k] * len(models)
    near = min(nearest or min(NEAREST, k), k * len(models) - 1)  # a completion has no more neighbours than that
    similarity, sources = [], []
    if encoder is not None:
        vectors.of([text for pool in pools for text in pool], encoder)
    for pool in pools:
        if idf is not None:
            kernel = surface_kernel(pool, idf)
        elif encoder is not None:
            unit = vectors.of(pool, encoder)
            kernel = unit @ unit.T
        similarity.append(np.clip(block_means(kernel, sizes), -1.0, 1.0))
        sources.append(source_counts(kernel, sizes, nearest=near))
    return Alike(models, np.stack(similarity), np.array(sources), near, tuple(common))
