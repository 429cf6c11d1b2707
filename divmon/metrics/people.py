"""The gap to texts by people as metrics of a run: one distance, and a curve for each of the six dimensions.

People are the probes' own references, or a set that the user gives (`References`), which need not answer the same
prompts. The arithmetic is that of `divmon.metrics.human_gap`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from divmon.metrics.base import Metric, MetricContext, Pooled, Result, missing
from divmon.metrics.human import DIMENSIONS, bare_words, dimensions
from divmon.metrics.human_gap import (
    HUMAN_GAP,
    MIN_LENGTH,
    MIN_TEXTS,
    common_length,
    compare_parts,
    probe_parts,
    shrunk_covariance,
)
from divmon.records import SampleBatch

_D = len(DIMENSIONS)
_MEANING = {
    "volume": "words of the whole text",
    "abundance": "different words in the window",
    "variety": "MTLD",
    "evenness": "spread of the counts of words; higher is less even",
    "disparity": "how unlike its different words are",
    "dispersion": "words between one use of a word and the next",
}


@dataclass(frozen=True)
class References:
    """Texts by people that a policy is compared with.

    Attributes:
        texts: At least three that fill the window.
        domains: One a text; completions are compared with the texts of their own domain where there are enough of
            them, else with all. None: with all.
        length: The window in words; None takes `common_length` of the texts compared with.
    """

    texts: tuple[str, ...]
    domains: tuple[str | None, ...] | None = None
    length: int | None = None

    @property
    def digest(self) -> str:
        """Eight hex digits that change with any text, domain or the window."""
        body = json.dumps([self.texts, self.domains, self.length])
        return hashlib.sha256(body.encode("ascii")).hexdigest()[:8]

    def of(self, domain: str) -> tuple[str, ...]:
        """The texts of `domain`; empty where none has it."""
        named = self.domains or (None,) * len(self.texts)
        return tuple(text for text, name in zip(self.texts, named, strict=True) if name == domain)


@dataclass(frozen=True)
class _People:
    """The references of one domain: their window, centre and spread, and themselves in standard deviations."""

    length: int
    centre: np.ndarray
    spread: np.ndarray
    live: np.ndarray
    standard: np.ndarray


def _people(texts: Sequence[str], length: int | None) -> _People | str:
    length = common_length([len(bare_words(text)) for text in texts]) if length is None else length
    if length < MIN_LENGTH:
        return f"the references are too short: nine in ten should have {MIN_LENGTH} words"
    found = dimensions(texts, length=length)
    found = found[np.isfinite(found).all(axis=1)]
    if len(found) < MIN_TEXTS:
        return f"fewer than {MIN_TEXTS} references of {length} words in which a word comes twice"
    centre, spread = found.mean(axis=0), found.std(axis=0, ddof=1)
    live = spread > 1e-9 * np.maximum(1.0, np.abs(centre))
    scale = np.where(live, spread, 1.0)
    return _People(length, centre, scale, live, np.where(live, (found - centre) / scale, 0.0))


class _Yardstick:
    """A set of references made ready once: completions come out as standard deviations from people, prompt by prompt.

    Args:
        references: As given.
    """

    def __init__(self, references: References) -> None:
        self.references = references
        self._people: dict[str | None, _People | str] = {None: _people(references.texts, references.length)}

    def people(self, domain: str) -> _People | str:
        """Whom completions of `domain` are compared with."""
        if domain not in self._people:
            own = self.references.of(domain)
            found = _people(own, self.references.length) if len(own) >= MIN_TEXTS else ""
            self._people[domain] = self._people[None] if isinstance(found, str) else found
        return self._people[domain]

    def parts(self, batch: SampleBatch) -> np.ndarray | str:
        """float[P, 8]: 1 where a completion fills the window, its six gaps, completions left out; or why not."""
        parts = np.zeros((len(batch.probes), _D + 2))
        for row, probe, texts in zip(parts, batch.probes, batch.texts, strict=True):
            people = self.people(probe.domain)
            if isinstance(people, str):
                return people
            found = dimensions(texts, length=people.length)
            kept = np.isfinite(found).all(axis=1)
            row[-1] = len(found) - kept.sum()
            if kept.any():
                row[0] = 1.0
                row[1:-1] = np.where(people.live, (found[kept].mean(axis=0) - people.centre) / people.spread, 0.0)
        return parts

    def used(self, batch: SampleBatch) -> list[_People]:
        """The different sets that the domains of `batch` are compared with."""
        found = {id(one): one for one in map(self.people, batch.domains) if not isinstance(one, str)}
        return list(found.values())


def _gaps(columns: np.ndarray) -> np.ndarray:
    """float[..., 6]: mean over the prompts that count; NaN without any."""
    total = columns.sum(axis=-2)
    n = total[..., :1]
    return np.asarray(np.where(n > 0, total[..., 1:-1] / np.maximum(n, 1), math.nan))


def _to_given(yardstick: _Yardstick, batch: SampleBatch, context: MetricContext, dimension: int | None) -> Result:
    digest = yardstick.references.digest
    parts = context.cached(("human-gap", digest), lambda: yardstick.parts(batch))
    if isinstance(parts, str):
        return missing(batch, parts)
    people = yardstick.used(batch)
    live = np.all([one.live for one in people], axis=0) if people else np.zeros(_D, dtype=bool)
    inverse: np.ndarray = np.eye(_D)
    if people:
        covariance = shrunk_covariance(np.concatenate([one.standard for one in people]))
        inverse = np.linalg.inv(covariance + np.eye(_D) * np.where(live, 1e-12, 1.0))

    def combine(columns: np.ndarray) -> np.ndarray:
        gaps = _gaps(columns)
        if dimension is not None:
            return np.asarray(gaps[..., dimension] if live[dimension] else gaps[..., dimension] * math.nan)
        away = np.where(live, gaps, 0.0)
        squared = np.maximum((away @ inverse * away).sum(axis=-1), 0.0)
        return np.asarray(np.where(np.isnan(gaps).all(axis=-1) | ~live.any(), math.nan, np.sqrt(squared)))

    lengths = sorted({one.length for one in people})

    def details(columns: np.ndarray) -> Mapping[str, Any]:
        gaps = {name: float(x) for name, x, on in zip(DIMENSIONS, _gaps(columns), live, strict=True) if on}
        return {
            "gaps": {name: x for name, x in gaps.items() if math.isfinite(x)},
            "length": lengths[0] if len(lengths) == 1 else lengths,
            "left_out": int(columns[:, -1].sum()),
            "references": len(yardstick.references.texts),
        }

    words = " or ".join(map(str, lengths))
    reason = (
        f"no completion has {words} words with one that comes twice: let completions be longer (max_new_tokens), or "
        "compare with less of each text (words=)"
    )
    return Pooled(parts, combine, details if dimension is None else None, reason, additive=True)


def _to_probes(batch: SampleBatch, context: MetricContext, dimension: int) -> Result:
    found = probe_parts(batch, context)
    if isinstance(found, str):
        return missing(batch, found)
    reason = f"fewer than {MIN_TEXTS} references, or no completion, of {found[1]} words in which a word comes twice"
    return Pooled(found[0], lambda columns: compare_parts(columns)[0][..., dimension], None, reason)


def _dimension(d: int) -> Metric:
    """The gap in one dimension: mean of completions minus mean of people, in standard deviations of people. Pooled.

    Neutral, with its sign. What moves it besides vocabulary: topics and genre, and the length of the window.

    Source: after Jarvis (2013), Language Learning 63(s1); Kendro et al. (2025), arXiv:2508.00086.
    """
    name = DIMENSIONS[d]
    return replace(
        HUMAN_GAP,
        name=f"human_gap_{name}",
        fn=lambda batch, context: _to_probes(batch, context, d),
        summary=f"How far completions are from the human references in {name} ({_MEANING[name]}), in standard "
        "deviations of the references, with its sign.",
        bounds=(-math.inf, math.inf),
        unit="SD",
    )


HUMAN_GAPS = tuple(_dimension(d) for d in range(_D))


def human_metrics(references: References) -> tuple[Metric, ...]:
    """`human_gap` and the gap in each dimension, measured against `references` instead of the probes' own.

    Each prompt with a completion that fills the window counts once. The references are the yardstick: their centre and
    spread are fixed, and intervals come from resampling prompts.

    >>> people = References(("the cat saw the dog and ran to the tree in a garden",) * 3)
    >>> [metric.name for metric in human_metrics(people)][:2]
    ['human_gap', 'human_gap_volume']

    Source: after Jarvis (2013), Language Learning 63(s1); Kendro et al. (2025), arXiv:2508.00086.
    """
    yardstick = _Yardstick(references)

    def bound(d: int | None) -> Callable[[SampleBatch, MetricContext], Result]:
        return lambda batch, context: _to_given(yardstick, batch, context, d)

    name = f"references:{len(references.texts)}@{references.digest}"
    table = zip((None, *range(_D)), (HUMAN_GAP, *HUMAN_GAPS), strict=True)
    return tuple(replace(metric, fn=bound(d), signature=f"{metric.signature}|{name}") for d, metric in table)
