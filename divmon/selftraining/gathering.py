"""The first half of a round: plain completions, critiques of wrong ones, refinements; and what of it is kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from divmon.mitigations.resample import ResampleSettings
from divmon.records import Probe
from divmon.resampling.base import Attempt, Quality, Refinement
from divmon.resampling.dialogue import noise
from divmon.resampling.filters import distinct, normalised
from divmon.resampling.resampler import Resampler
from divmon.resampling.sieve import finite
from divmon.samplers.keyed import row_key
from divmon.selftraining.budget import affordable, shared

PASSES = 8  # over the prompts that are still in need


class Sampler(Protocol):
    """What draws plain completions (`divmon.samplers.generate.GenerateSampler`)."""

    def complete(self, probes: Sequence[Probe], keys: Sequence[int]) -> list[str]:
        """One completion a probe, with the noise of its key."""


@dataclass(frozen=True)
class Kept:
    """An accepted completion of a prompt."""

    probe: Probe
    text: str
    refined: bool


@dataclass
class Gathered:
    """What a round drew.

    Attributes:
        attempts: Plain completions, prompt by prompt, with their quality.
        refinements: Accepted ones, in order.
        counts: Of all passes of resampling together.
        events: What failed.
    """

    attempts: list[Attempt] = field(default_factory=list)
    refinements: list[Refinement] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    events: list[str] = field(default_factory=list)

    @property
    def guided(self) -> int:
        """Critiques and refinements drawn."""
        return self.counts["critiques"] + self.counts["refinements"]


@dataclass(frozen=True)
class Gatherer:
    """Draws a round's completions.

    Attributes:
        probes: The prompts.
        quality: Of a completion.
        samples: Plain completions a prompt before anything is criticised.
        budget: Completions of all kinds.
        settings: Of resampling.
        seed: Names the noise.
    """

    probes: Sequence[Probe]
    quality: Quality
    samples: int
    budget: int
    settings: ResampleSettings
    seed: int

    def gather(self, sampler: Sampler, resampler: Resampler | None, *, number: int) -> Gathered:
        """Draw round `number`: plain if `resampler` is None.

        Whatever guidance does not spend is spent on plain completions, the very ones that a plain round would have
        drawn: where every critique fails, both rounds are equal.
        """
        found, key = Gathered(), noise(self.seed, "round", number)
        plain: dict[str, list[Attempt]] = {probe.id: [] for probe in self.probes}
        if resampler is not None:
            self._draw(plain, dict.fromkeys(plain, self.samples), sampler, key, found.events)
            self._guide(plain, resampler, found, number=number)
            found.events += _unsaid(found.counts, resampler)
        self._draw(plain, shared(self.probes, self.budget - found.guided, key=key), sampler, key, found.events)
        found.attempts = [attempt for row in plain.values() for attempt in row]
        return found

    def _draw(
        self, plain: dict[str, list[Attempt]], wanted: Mapping[str, int], sampler: Sampler, key: int, events: list[str]
    ) -> None:
        """Draw until each prompt has as many as are wanted; the n-th of a prompt is always the same."""
        rows = [(probe, n) for probe in self.probes for n in range(len(plain[probe.id]), wanted[probe.id])]
        texts = sampler.complete([probe for probe, _ in rows], [row_key(key, probe.id, n) for probe, n in rows])
        for (probe, _), text in zip(rows, texts, strict=True):
            plain[probe.id].append(Attempt(probe, text, self._judged(probe, text, events)))

    def _judged(self, probe: Probe, text: str, events: list[str]) -> float:
        try:
            return finite(self.quality(probe, text))
        except Exception as error:
            event = f"The quality of a completion failed ({type(error).__name__}: {error}); it counts as unknown."
            if event not in events:
                events.append(event)
            return math.nan

    def _guide(self, plain: Mapping[str, list[Attempt]], resampler: Resampler, found: Gathered, *, number: int) -> None:
        """Pass after pass over the prompts that are still in need, hardest first, while the budget lasts."""
        attempts = [attempt for row in plain.values() for attempt in row]
        room = self.budget - len(attempts)
        for turn in range(PASSES):
            served = resampler.state()["served"]
            settings = affordable(attempts, self.settings, room - found.guided, served=served)
            if settings is None:
                return
            resampler.settings = settings
            made = resampler.resample(attempts, step=number, key=noise(self.seed, number, turn))
            found.counts.update(made.counts)
            found.refinements += made.accepted
            found.events += [event for event in made.failures if event not in found.events]
            if not made.counts.get("critiques", 0) + made.counts.get("refinements", 0):
                return  # nobody answers: the rest is drawn as in a plain round
            attempts += [Attempt(one.probe, str(one.text), one.quality) for one in made.accepted]


def _unsaid(counts: Mapping[str, int], resampler: Resampler) -> list[str]:
    """One sentence on critiques that could not be had, with the reasons that the critic gives."""
    missing, whole = counts.get("uncriticised", 0), counts.get("uncriticised", 0) + counts.get("critiques", 0)
    if not missing:
        return []
    reasons = getattr(resampler.critic, "failures", None) or {}
    why = "; ".join(f"{reason} ({times})" for reason, times in reasons.items())
    return [f"{missing} of {whole} critiques could not be had{': ' + why if why else ''}."]


def kept(gathered: Gathered, settings: ResampleSettings, *, keep: int) -> list[Kept]:
    """The accepted completions, prompt by prompt, at most `keep` of each: correct plain ones first, no two the same.

    Args:
        gathered: What the round drew.
        settings: Say what is correct.
        keep: Cap a prompt.
    """
    rows: dict[str, list[Kept]] = {}
    for attempt in gathered.attempts:
        row = rows.setdefault(attempt.probe.id, [])
        if attempt.quality >= settings.threshold and attempt.text.strip():
            row.append(Kept(attempt.probe, attempt.text, refined=False))
    for made in gathered.refinements:
        rows.setdefault(made.probe.id, []).append(Kept(made.probe, str(made.text), refined=True))
    return [one for row in rows.values() for one in _distinct(row)[:keep]]


def _distinct(row: Sequence[Kept]) -> list[Kept]:
    first: dict[str, Kept] = {}
    for one in row:
        first.setdefault(normalised(one.text), one)
    return [first[normalised(text)] for text in distinct(one.text for one in row)]


def by_level(found: Sequence[Any], level: Mapping[str, int], levels: Sequence[int]) -> tuple[int, ...]:
    """int[L]: how many of `found`, which have a probe each, are of each level."""
    counts = Counter(level[one.probe.id] for one in found)
    return tuple(counts[name] for name in levels)


def made_levels(attempts: Sequence[Attempt], threshold: float, *, bins: int = 5) -> dict[str, int]:
    """Levels by prompt where nobody gave any: 1 for a pass rate above 80 %, 5 for one of at most 20 %.

    They are made once, of the first round's first completions, before anything was trained.

    What moves it besides difficulty: chance; a prompt that was unlucky counts as hard and does better later.

    >>> one = Probe("a", "?")
    >>> made_levels([Attempt(one, "x", 1.0), Attempt(one, "y", 0.0)], 0.5)
    {'a': 3}
    """
    right, judged = Counter[str](), Counter[str]()
    for attempt in attempts:
        if math.isfinite(attempt.quality):
            judged[attempt.probe.id] += 1
            right[attempt.probe.id] += attempt.quality >= threshold
    return {
        id: 1 + min(bins - 1, bins * (judged[id] - right[id]) // judged[id]) if judged[id] else bins
        for id in dict.fromkeys(attempt.probe.id for attempt in attempts)
    }
