"""Preference pairs that ask for diversity: the most diverse good completion against the least diverse bad one.

Ordinary preference data sets the best against the worst, and the best are alike. Taking the good one that differs most
from its siblings, and the bad one that differs least, teaches the same quality and widens the policy.

Source: Lanchantin et al. (2025), Diverse Preference Optimization, arXiv:2501.18101. There, diversity is a low
likelihood, rare words, or a judge's word; all but the judge are here, besides the rarity of a completion's format.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from divmon.errors import ConfigError, unknown
from divmon.metrics.quality import Quality, judge
from divmon.metrics.structure import build_classifier
from divmon.metrics.text import char_ngrams, words
from divmon.records import SampleBatch

BY = ("tfidf", "formats", "words", "logprobs")
Score = Callable[[SampleBatch, int], np.ndarray]


def divpo_pairs(
    batch: SampleBatch,
    *,
    quality: Quality | None = None,
    good: float = 0.5,
    bad: float | None = None,
    share: float | None = None,
    by: str = "tfidf",
    formats: Any = None,
) -> list[dict[str, Any]]:
    """Pairs for DPO, at most one a prompt: rows for ``datasets.Dataset.from_list``.

    A prompt without a good or without a bad completion gives none, and so does one whose two are the same text.

    Args:
        batch: Several completions a prompt, for example `divmon.read_completions("completions.jsonl")`, or
            `History.batch(step)`.
        quality: ``(probe, completion) -> float``; else the batch's rewards, else gold answers.
        good: A completion of at least this quality is good.
        bad: A completion below this is bad; `good` when it is not given.
        share: Instead of both: the best and the worst share of a prompt's completions by quality (0.25 takes a
            quarter), for rewards on no particular scale.
        by: What differs: "tfidf" (mean surface distance to the prompt's other completions), "formats" (how few of them
            have its format), "words" (how few of them have its words), "logprobs" (how unlikely its mean token is).
        formats: Your own formats, as for `divmon.DiversityCallback`.

    Returns:
        Rows with ``prompt``, ``chosen``, ``rejected`` (in the form TRL wants: texts, or messages where the prompt is a
        chat), and ``chosen_diversity``, ``rejected_diversity``, ``chosen_quality``, ``rejected_quality``.

    Raises:
        ConfigError: Nothing judges the completions, or a setting cannot work.

    >>> from divmon.records import Probe
    >>> texts = ("It is 4.", "It is 4!", "two and two make 4", "It is 5.", "I dream of 7")
    >>> batch = SampleBatch(0, (Probe("a", "2+2?", gold="4"),), (texts,))
    >>> row = divpo_pairs(batch)[0]
    >>> row["chosen"], row["rejected"]
    ('two and two make 4', 'It is 5.')
    """
    _check(batch, good=good, bad=bad, share=share, by=by)
    scores, errors = judge(batch, quality)
    if scores is None:
        raise ConfigError("Nothing judges these completions: pass quality=, or rows with rewards or gold answers.")
    if errors and not any(np.isfinite(row).any() for row in scores):
        raise ConfigError(f"quality= failed on every completion; the first time with {errors[0]}.")
    score = _score(by, formats)
    pairs = []
    for i, row in enumerate(scores):
        upper, lower = _sides(row, good=good, bad=good if bad is None else bad, share=share)
        diversity = score(batch, i)
        upper, lower = upper & np.isfinite(diversity), lower & np.isfinite(diversity)
        if not upper.any() or not lower.any():
            continue
        best = int(np.where(upper, diversity, -math.inf).argmax())
        worst = int(np.where(lower, diversity, math.inf).argmin())
        if batch.texts[i][best] != batch.texts[i][worst]:
            pairs.append(_row(batch, i, best, worst, diversity=diversity, quality=row))
    return pairs


def _check(batch: SampleBatch, *, good: float, bad: float | None, share: float | None, by: str) -> None:
    if by not in BY:
        raise unknown("by", by, BY)
    if by == "logprobs" and batch.logprobs is None:
        raise ConfigError("by='logprobs', but these completions come without log-probabilities.")
    if share is not None and not 0 < share <= 0.5:
        raise ConfigError(f"share must be above 0 and at most 0.5, not {share!r}.")
    if bad is not None and bad > good:
        raise ConfigError(f"bad={bad} is above good={good}: a completion would be both.")


def _sides(row: np.ndarray, *, good: float, bad: float, share: float | None) -> tuple[np.ndarray, np.ndarray]:
    """bool[K] of the good and of the bad; a completion of unknown quality is neither."""
    known = np.isfinite(row)
    if share is None:
        return known & (row >= good), known & (row < bad)
    number = int(share * known.sum())
    if not number:
        return np.zeros_like(known), np.zeros_like(known)
    ordered = np.sort(row[known])
    low, high = ordered[number - 1], ordered[-number]
    return (known & (row >= high), known & (row <= low)) if low < high else (known & False, known & False)


def _score(by: str, formats: Any) -> Score:
    if by == "tfidf":
        return lambda batch, i: surface_distances(batch.texts[i])
    if by == "words":
        return lambda batch, i: _rarity([set(words(text)) for text in batch.texts[i]])
    if by == "logprobs":
        return _unlikely
    label = build_classifier(formats)
    return lambda batch, i: _rarity([set(tuple(label(text))[:1]) for text in batch.texts[i]])


def surface_distances(texts: Sequence[str]) -> np.ndarray:
    """float[K]: one minus the mean TF-IDF cosine of each completion with its siblings; NaN for a single one.

    >>> surface_distances(["a fox", "A  fox", "hens!"]).round(3).tolist()
    [0.5, 0.5, 1.0]
    """
    k = len(texts)
    if k < 2:
        return np.full(k, math.nan)
    row = char_ngrams(tuple(texts))
    idf = np.log((1 + k) / (1 + row.documents)) + 1
    weights = row.counts * np.repeat(idf, row.documents)
    unit = weights / np.sqrt(np.bincount(row.owners, weights * weights, minlength=k))[row.owners]
    total = np.repeat(np.add.reduceat(unit, row.starts), row.documents)
    own = np.bincount(row.owners, unit * unit, minlength=k)
    cosine = (np.bincount(row.owners, unit * total, minlength=k) - own) / (k - 1)
    return np.asarray(np.clip(1.0 - cosine, 0.0, 1.0))


def _rarity(features: Sequence[set[str]]) -> np.ndarray:
    """float[K]: the mean, over a completion's features, of the share of its siblings without them."""
    k = len(features)
    if k < 2:
        return np.full(k, math.nan)
    counts = Counter(feature for found in features for feature in found)
    rare = [sum((k - counts[f]) / (k - 1) for f in found) / len(found) if found else math.nan for found in features]
    return np.array(rare, dtype=float)


def _unlikely(batch: SampleBatch, i: int) -> np.ndarray:
    rows = batch.logprobs[i] if batch.logprobs is not None else ()
    return np.array([-float(np.mean(row)) if len(row) else math.nan for row in rows], dtype=float)


def _row(
    batch: SampleBatch, i: int, best: int, worst: int, *, diversity: np.ndarray, quality: np.ndarray
) -> dict[str, Any]:
    prompt = batch.probes[i].prompt
    chat = not isinstance(prompt, str)
    row: dict[str, Any] = {"prompt": [dict(message) for message in prompt] if chat else prompt}  # type: ignore[arg-type]
    for side, j in (("chosen", best), ("rejected", worst)):
        text = batch.texts[i][j]
        row[side] = [{"role": "assistant", "content": text}] if chat else text
        row[f"{side}_diversity"], row[f"{side}_quality"] = float(diversity[j]), float(quality[j])
    return row


def summary(rows: Sequence[Mapping[str, Any]], prompts: int) -> str:
    """One line about pairs, for people.

    >>> summary([{"chosen_diversity": 0.9, "rejected_diversity": 0.2}], 4)
    '1 pair from 4 prompts; mean diversity of the chosen 0.90, of the rejected 0.20'
    """
    pairs, of = "pair" if len(rows) == 1 else "pairs", "prompt" if prompts == 1 else "prompts"
    count = f"{len(rows)} {pairs} from {prompts} {of}"
    if not rows:
        return f"{count}: every prompt lacks a good or a bad completion"
    chosen, rejected = (
        sum(float(row[f"{side}_diversity"]) for row in rows) / len(rows) for side in ("chosen", "rejected")
    )
    return f"{count}; mean diversity of the chosen {chosen:.2f}, of the rejected {rejected:.2f}"
