"""The filters, asked in order: what passes them all is kept, and each counts what it turned away."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from divmon.mitigations.resample import ResampleSettings
from divmon.resampling.base import Candidate, Quality, Refinement, Writer
from divmon.resampling.faults import Faults
from divmon.resampling.filters import (
    FILTERS,
    Feasible,
    answer,
    copied,
    distance,
    is_shortcut,
    normalised,
    solution,
    written,
)

_ALONE = tuple(name for name in FILTERS if name != "probable")  # those that are asked of one candidate at a time


@dataclass(frozen=True)
class Known:
    """What is there already for each prompt, by its id.

    Attributes:
        seen: `normalised` texts that a refinement must not repeat: attempts, and what was kept.
        compared: Texts that it must differ from: what was kept; with a mode, attempts too.
        accepted: How many were accepted in this pass.
    """

    seen: Mapping[str, set[str]]
    compared: Mapping[str, list[str]]
    accepted: Counter[str]


@dataclass(slots=True)
class _Examined:
    candidate: Candidate
    quality: float = math.nan
    logprob: float = math.nan
    novelty: float = math.nan
    passed: set[str] = field(default_factory=set)


def finite(score: float | None) -> float:
    """What a quality function returned, NaN for None.

    Raises:
        ValueError: It is infinite, or no number.
    """
    value = math.nan if score is None else float(score)
    if math.isinf(value):
        raise ValueError("quality must be finite")
    return value


class Sieve:
    """Tells which candidates may be learned from.

    Args:
        settings: See `ResampleSettings`.
        quality: Of one completion; None with a mode, where nobody judges.
        feasible: Whether a completion with any text in it is a possible answer at all.
    """

    def __init__(self, settings: ResampleSettings, quality: Quality | None, feasible: Feasible | None = None) -> None:
        self._settings = settings
        self._quality = quality
        self._judge = feasible

    def sift(
        self,
        candidates: Sequence[Candidate],
        known: Known,
        *,
        writer: Writer,
        step: int,
        counts: Counter[str],
        faults: Faults,
    ) -> list[Refinement]:
        """Those of `candidates` that pass, in order, at most `keep` a prompt.

        Filters that look at one text come first; then one call for the log-probabilities of all that are left; then
        what passed is taken one by one, since each must differ from those taken before it.

        Args:
            candidates: Of any prompts.
            known: What is there already; gains what is accepted.
            writer: Gives log-probabilities under the bare prompt, where the settings ask for them.
            step: For the refinements.
            counts: Gains ``not_FILTER`` for what each filter turned away, and ``surplus``.
            faults: Gains what failed. What a filter failed on is turned away.
        """
        left = [_Examined(candidate) for candidate in candidates]
        for name in _ALONE:
            left = [one for one in left if self._ask(name, one, known, counts=counts, faults=faults)]
        left = self._probable(left, writer, counts, faults)
        accepted = []
        for one in left:
            if known.accepted[one.candidate.attempt.probe.id] >= self._settings.keep:
                counts["surplus"] += 1
            elif all(self._ask(name, one, known, counts=counts, faults=faults) for name in ("unseen", "novel")):
                accepted.append(_refinement(one, step))
                _learn(known, one.candidate)
        return accepted

    def _ask(self, name: str, one: _Examined, known: Known, *, counts: Counter[str], faults: Faults) -> bool:
        """Whether `one` gets past a filter: it says yes, or has nothing to say (None)."""
        try:
            says: bool | None = getattr(self, f"_{name}")(one, known)
        except Exception as error:
            faults.add(f"the filter {name!r}", error)
            says = False
        if says:
            one.passed.add(name)
        counts[f"not_{name}"] += says is False
        return says is not False

    def _feasible(self, one: _Examined, known: Known) -> bool:
        probe, text = one.candidate.attempt.probe, one.candidate.text
        return written(probe, text) and (self._judge is None or bool(self._judge(probe, text)))

    def _correct(self, one: _Examined, known: Known) -> bool | None:
        if self._quality is not None:
            one.quality = finite(self._quality(one.candidate.attempt.probe, one.candidate.text))
        if math.isnan(one.quality) and self._settings.mode is not None:
            return None
        return one.quality >= self._settings.threshold

    def _reasoned(self, one: _Examined, known: Known) -> bool | None:
        attempt = one.candidate.attempt
        gold = solution(attempt.probe) or attempt.probe.gold
        if not self._settings.shortcut or self._settings.mode is not None or gold is None:
            return None
        return not is_shortcut(one.candidate.text, gold=gold, wrong=attempt.text)

    def _own_words(self, one: _Examined, known: Known) -> bool | None:
        probe = one.candidate.attempt.probe
        shown = [one.candidate.critique]
        if self._settings.reveal and self._settings.mode is None:
            shown += [solution(probe) or "", answer(probe) or ""]
        shown = [text for text in shown if text]
        return copied(one.candidate.text, shown) <= self._settings.overlap if shown else None

    def _unseen(self, one: _Examined, known: Known) -> bool:
        return normalised(one.candidate.text) not in known.seen.get(one.candidate.attempt.probe.id, ())

    def _novel(self, one: _Examined, known: Known) -> bool | None:
        one.novelty = distance(one.candidate.text, known.compared.get(one.candidate.attempt.probe.id, ()))
        return None if math.isnan(one.novelty) else one.novelty >= self._settings.least_novelty

    def _probable(self, left: list[_Examined], writer: Writer, counts: Counter[str], faults: Faults) -> list[_Examined]:
        """Those whose mean log p is high enough, or unknown; none where the writer fails."""
        if not left or self._settings.logprob is None:
            return left
        try:
            values = np.asarray(
                writer.logprob(
                    [one.candidate.attempt.probe.prompt for one in left], [one.candidate.text for one in left]
                ),
                dtype=float,
            )
            if values.shape != (len(left),):
                raise ValueError(f"{len(left)} texts, but log-probabilities of shape {values.shape}")
        except Exception as error:
            faults.add("the writer's logprob", error)
            counts["not_probable"] += len(left)
            return []
        kept = []
        for one, value in zip(left, values.tolist(), strict=True):
            one.logprob = value
            if value < self._settings.logprob:
                counts["not_probable"] += 1
                continue
            if not math.isnan(value):
                one.passed.add("probable")
            kept.append(one)
        return kept


def _refinement(one: _Examined, step: int) -> Refinement:
    return Refinement(
        one.candidate,
        step,
        quality=one.quality,
        logprob=one.logprob,
        novelty=one.novelty,
        passed=tuple(name for name in FILTERS if name in one.passed),
    )


def _learn(known: Known, candidate: Candidate) -> None:
    key = candidate.attempt.probe.id
    known.accepted[key] += 1
    known.seen[key].add(normalised(candidate.text))
    known.compared[key].append(candidate.text)
