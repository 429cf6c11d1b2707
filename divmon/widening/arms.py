"""The arms of the comparison: one for each mode, and the control, on the same prompts through the same gate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from divmon.errors import SamplingError
from divmon.mitigations.resample import ResampleSettings
from divmon.records import Probe, SampleBatch
from divmon.resampling.asking import one_line
from divmon.resampling.base import Attempt, Candidate, Critic, Quality, Refinement, Writer
from divmon.resampling.dialogue import LONGEST, Dialogue, Job, noise
from divmon.resampling.faults import Faults
from divmon.resampling.filters import Feasible, normalised
from divmon.resampling.modes import KINDS, Thinking
from divmon.resampling.needs import Need, split
from divmon.resampling.prompts import Templates
from divmon.resampling.sieve import Known, Sieve
from divmon.uncertainty import MIN_PROMPTS
from divmon.widening.results import Arm


@dataclass(frozen=True)
class Gate:
    """What every arm draws with and is judged by.

    Attributes:
        writer: The model.
        quality: Of new completions; None where nobody can say.
        feasible: Of any text; None lets all pass.
        key: Names the noise.
    """

    writer: Writer
    quality: Quality | None
    feasible: Feasible | None
    key: int


@dataclass(frozen=True)
class Pools:
    """The completions that are there, of the prompts that take part.

    Attributes:
        probes: In their order in the batch.
        attempts: Of each, by id.
        fingerprint: Of the whole probe set.
    """

    probes: tuple[Probe, ...]
    attempts: Mapping[str, tuple[Attempt, ...]]
    fingerprint: str = ""

    @classmethod
    def of(cls, batch: SampleBatch, attempts: Sequence[Attempt], served: Sequence[Need]) -> Pools:
        """Those of `served`."""
        ids = {need.probe.id for need in served}
        found: dict[str, list[Attempt]] = {probe.id: [] for probe in batch.probes if probe.id in ids}
        for attempt in attempts:
            if attempt.probe.id in ids:
                found[attempt.probe.id].append(attempt)
        probes = tuple(probe for probe in batch.probes if probe.id in ids)
        return cls(probes, {id: tuple(row) for id, row in found.items()}, batch.fingerprint)

    def texts(self, probe: Probe) -> tuple[str, ...]:
        """What is there for `probe`."""
        return tuple(attempt.text for attempt in self.attempts[probe.id])

    def known(self) -> Known:
        """What an arm must not repeat and must differ from."""
        texts = {probe.id: self.texts(probe) for probe in self.probes}
        seen = {id: {normalised(text) for text in row} for id, row in texts.items()}
        return Known(seen, {id: list(row) for id, row in texts.items()}, Counter())

    def notes(
        self, arms: Mapping[str, Drawn], *, known: bool, quality: Quality | None, errors: Sequence[Exception]
    ) -> tuple[str, ...]:
        """What a reader of the numbers must know."""
        found = []
        if not self.probes:
            found.append("Nothing was resampled: no prompt has two completions that are alike and not known to be bad.")
        elif len(self.probes) < MIN_PROMPTS:
            found.append(f"Fewer than {MIN_PROMPTS} prompts took part: there are no intervals.")
        if known and quality is None:
            found.append("Nobody can judge new completions (the file's rewards cannot): their quality is unknown.")
        if errors:
            found.append(f"The quality of {len(errors)} completions failed, at first with: {one_line(str(errors[0]))}")
        for name, arm in arms.items():
            short = arm.budget - sum(arm.counts[what] for what in ("refinements", "critiques", "uncriticised"))
            if short:
                found.append(f"{name} made {short} of {arm.budget} draws less than it was given.")
            found += [f"{name}: {failure}" for failure in arm.faults.sentences()]
        return tuple(found)

    def thinking(self, kinds: Thinking) -> dict[str, float]:
        """Share of each kind among the completions, each seen against the others of its prompt."""
        tally: Counter[str] = Counter()
        for probe in self.probes:
            row = self.texts(probe)
            tally.update(_kind(kinds, probe, text, row[:i] + row[i + 1 :]) for i, text in enumerate(row))
        return _shares(tally)


@dataclass
class Drawn:
    """What one arm drew.

    Attributes:
        budget: Draws it was given, critiques included.
        counts: As `divmon.resampling.resampler.COUNTED` has them.
        accepted: What passed every filter.
        faults: What failed.
    """

    budget: int
    counts: Counter[str] = field(default_factory=Counter)
    accepted: list[Refinement] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)

    def told(self, pools: Pools, kinds: Thinking) -> Arm:
        """The arm as results have it; kinds of thinking are seen against what was there before."""
        tally = Counter(_kind(kinds, one.probe, one.text, pools.texts(one.probe)) for one in self.accepted)
        counts = self.counts
        texts = counts["refinements"] - counts["unfinished"]
        return Arm(
            budget=self.budget,
            drawn=counts["refinements"] + counts["critiques"] + counts["uncriticised"],
            texts=texts,
            feasible=(texts - counts["not_feasible"]) / texts if texts else math.nan,
            accepted=tuple(self.accepted),
            thinking=_shares(tally),
            counts=dict(counts),
            failures=self.faults.sentences(),
        )


def _kind(kinds: Thinking, probe: Probe, text: str, others: Sequence[str]) -> str:
    try:
        kind = kinds(probe.text, text, others)
    except Exception:  # a judge who cannot say, or is gone
        return "unknown"
    return "none" if kind is None else kind if kind in KINDS else "unknown"


def _shares(tally: Counter[str]) -> dict[str, float]:
    total = tally.total()
    return {kind: tally[kind] / total for kind in (*KINDS, "unknown")} if total else {}


def cost(need: Need, settings: ResampleSettings) -> int:
    """Draws that a mode may spend on one prompt: critiques and refinements."""
    return need.samples + len(split(need, settings))


def guided(
    served: Sequence[Need],
    pools: Pools,
    gate: Gate,
    settings: ResampleSettings,
    *,
    critic: Critic,
    templates: Templates,
) -> Drawn:
    """Critiques of redundancy, refinements in the mode of `settings`, and the filters."""
    drawn = Drawn(sum(cost(need, settings) for need in served))
    jobs = [Job(need, *part) for need in served for part in split(need, settings)]
    dialogue = Dialogue(gate.writer, critic, settings, templates)
    key = noise(gate.key, settings.mode)
    found = dialogue.candidates(jobs, key, counts=drawn.counts, faults=drawn.faults) if jobs else []
    return _sifted(drawn, found or [], pools, gate, settings)


def plain(served: Sequence[Need], pools: Pools, gate: Gate, settings: ResampleSettings) -> Drawn:
    """As many completions of the bare prompt, and the same filters.

    Raises:
        SamplingError: The writer failed.
    """
    asked = [(need.probe, n) for need in served for n in range(cost(need, settings))]
    drawn = Drawn(len(asked))
    if not asked:
        return drawn
    keys = [noise(gate.key, "plain", probe.id, n) for probe, n in asked]
    try:
        told = gate.writer.write([probe.prompt for probe, _ in asked], temperature=settings.temperature, keys=keys)
        texts = list(told)
        if len(texts) != len(asked):
            raise ValueError(f"it returned {len(texts)} texts for {len(asked)}")
    except Exception as error:
        raise SamplingError(f"The writer failed on bare prompts, so there is no control: {error}") from error
    candidates = [
        Candidate(Attempt(probe, ""), "", str(text), "plain", writer=str(gate.writer.name), number=n)
        for (probe, n), text in zip(asked, texts, strict=True)
        if isinstance(text, str) and len(text) <= LONGEST
    ]
    drawn.counts.update(refinements=len(texts), unfinished=len(texts) - len(candidates))
    return _sifted(drawn, candidates, pools, gate, settings)


def _sifted(
    drawn: Drawn, candidates: Sequence[Candidate], pools: Pools, gate: Gate, settings: ResampleSettings
) -> Drawn:
    sieve = Sieve(settings, gate.quality, gate.feasible)
    drawn.accepted = sieve.sift(
        candidates, pools.known(), writer=gate.writer, step=0, counts=drawn.counts, faults=drawn.faults
    )
    return drawn
