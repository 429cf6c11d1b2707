"""One pass of critique-guided resampling: needy prompts, critiques, refinements, filters, lineage.

Every pass makes one call of the critic and one of the writer for all prompts together (with the variant "interactive",
one of each a round), because both are models. Nothing that fails in there reaches training: a pass that cannot go on
keeps nothing more, and says why.

Sources: Xi et al. (2024), arXiv:2411.16579; Ding et al. (2024), arXiv:2411.00750; see `ResampleSettings`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from divmon.errors import ConfigError
from divmon.health import Health
from divmon.mitigations.resample import ResampleSettings
from divmon.records import Probe
from divmon.resampling.base import Attempt, Critic, Quality, Refinement, Resampled, Writer
from divmon.resampling.dialogue import Dialogue, Job, noise, uncritical
from divmon.resampling.faults import Faults
from divmon.resampling.filters import FILTERS, Feasible, answer, normalised, solution
from divmon.resampling.lineage import Lineage
from divmon.resampling.needs import Need, allotted, grouped, needy, split
from divmon.resampling.prompts import Templates
from divmon.resampling.sieve import Known, Sieve, finite

COUNTED = (
    *("attempts", "prompts", "needy", "served", "critiques", "uncriticised", "refinements", "unfinished"),
    *(f"not_{name}" for name in FILTERS),
    "surplus",
)
"""What `Resampled.counts` has, always all of it."""


class Resampler:
    """Finds needy prompts among attempts, has them criticised and refined, and keeps what passes every filter.

    What it kept is remembered over passes, so that nothing is kept twice; and so is whom it served, so that equally
    hard prompts take turns.

    Args:
        writer: Writes refinements, the policy as a rule.
        critic: Writes critiques; None with the variants "answer" and "rationale", which need none.
        settings: See `ResampleSettings`.
        quality: ``(probe, completion) -> float``, NaN or None where it cannot say; None only with a mode.
        lineage: Where what was accepted is written down.
        health: Counts failures as those of a mitigation; when it is strict, they are raised.
        feasible: ``(probe, completion) -> bool``, asked first, where there is any text.
        templates: Your own words to the critic and the policy, by name.

    Raises:
        ConfigError: Something is missing that the settings ask for.
    """

    def __init__(
        self,
        writer: Writer,
        critic: Critic | None,
        settings: ResampleSettings,
        *,
        quality: Quality | None,
        lineage: Lineage | None = None,
        health: Health | None = None,
        feasible: Feasible | None = None,
        templates: Templates | Mapping[str, str] | None = None,
    ) -> None:
        self.writer, self.critic, self.settings = writer, critic, settings
        self.lineage = lineage
        self._quality, self._health = quality, health
        self._check(feasible)
        self._dialogue = Dialogue(writer, critic, settings, Templates.of(templates))
        self._sieve = Sieve(settings, quality, feasible)
        self._kept: dict[str, list[str]] = {}
        self._served: Counter[str] = Counter()

    def _check(self, feasible: Feasible | None) -> None:
        if self.critic is None and not uncritical(self.settings):
            kind = self.settings.kind
            raise ConfigError(f"Resampling by {kind!r} needs a critic. Only the variants answer and rationale do not.")
        if self._quality is None and self.settings.mode is None:
            raise ConfigError("Resampling must know which completions are correct: pass quality=, or set a `mode`.")
        for name, function in (("quality", self._quality), ("feasible", feasible)):
            if function is not None and not callable(function):
                raise ConfigError(f"{name} must be a function of a probe and a completion, not {function!r}.")

    def resample(self, attempts: Sequence[Attempt], *, step: int, key: int) -> Resampled:
        """One pass over `attempts`. It never raises, unless `health` is strict.

        Args:
            attempts: Completions of bare prompts, any number of each; those of unknown quality are judged first.
            step: The trainer's step, or the round of self-training.
            key: Names the noise: equal key, step, attempts and weights give an equal pass.
        """
        faults, counts = Faults(self._health), Counter(dict.fromkeys(COUNTED, 0))
        accepted: list[Refinement] = []
        try:
            accepted = self._pass(list(attempts), step, key, counts=counts, faults=faults)
        except Exception as error:
            if self._health is not None and self._health.strict:
                raise
            faults.add("the pass", error)
        for made in accepted:
            self._kept.setdefault(made.probe.id, []).append(str(made.text))
        if self.lineage is not None:
            try:  # also where nothing is new: an earlier pass may have found the disk full
                self.lineage.append(accepted)
            except Exception as error:
                faults.add("writing the lineage", error)
        return Resampled(tuple(accepted), dict(counts), faults.sentences())

    def _pass(
        self, attempts: list[Attempt], step: int, key: int, *, counts: Counter[str], faults: Faults
    ) -> list[Refinement]:
        attempts = [self._judged(attempt, faults) for attempt in attempts]
        groups = grouped(attempts)
        needs = needy(attempts, self.settings, guided=self._guided, served=self._served)
        served = allotted(needs, self.settings)
        counts.update(attempts=len(attempts), prompts=len(groups), needy=len(needs), served=len(served))
        known = self._known(served, groups)
        accepted: list[Refinement] = []
        for number, jobs in enumerate(self._rounds(served)):
            jobs = [job for job in jobs if known.accepted[job.need.probe.id] < self.settings.keep]
            if not jobs:
                break
            found = self._dialogue.candidates(jobs, noise(key, step, number), counts=counts, faults=faults)
            if found is None:
                break
            if number == 0:
                self._served.update(need.probe.id for need in served)
            accepted += self._sieve.sift(found, known, writer=self.writer, step=step, counts=counts, faults=faults)
        return accepted

    def _judged(self, attempt: Attempt, faults: Faults) -> Attempt:
        if math.isfinite(attempt.quality):
            return attempt
        quality = math.nan
        if self._quality is not None:
            try:
                quality = finite(self._quality(attempt.probe, attempt.text))
            except Exception as error:
                faults.add("the quality of an attempt", error)
        return replace(attempt, quality=quality)

    def _guided(self, probe: Probe) -> bool:
        """Whether the prompt has what the variant shows."""
        if self.settings.variant == "rationale":
            return solution(probe) is not None
        return self.settings.variant == "critique" or answer(probe) is not None

    def _known(self, served: Iterable[Need], groups: Iterable[list[Attempt]]) -> Known:
        tried = {group[0].probe.id: [attempt.text for attempt in group] for group in groups}
        seen, compared = {}, {}
        for key in (need.probe.id for need in served):
            kept = self._kept.get(key, [])
            seen[key] = {normalised(text) for text in (*tried[key], *kept)}
            compared[key] = kept + (tried[key] if self.settings.mode is not None else [])
        return Known(seen, compared, Counter())

    def _rounds(self, served: Sequence[Need]) -> list[list[Job]]:
        if self.settings.variant != "interactive":
            return [[Job(need, *part) for need in served for part in split(need, self.settings)]]
        rounds = range(max((need.samples for need in served), default=0))
        return [
            [Job(n, n.targets[i % len(n.targets)], 1, first=i // len(n.targets)) for n in served if i < n.samples]
            for i in rounds
        ]

    def state(self) -> dict[str, Any]:
        """What was kept so far, and how often prompts were served, in plain JSON types, for a checkpoint."""
        return {"kept": {key: list(texts) for key, texts in self._kept.items()}, "served": dict(self._served)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, as if training had not been interrupted."""
        self._kept = {str(key): [str(text) for text in texts] for key, texts in dict(state.get("kept", {})).items()}
        self._served = Counter({str(key): int(n) for key, n in dict(state.get("served", {})).items()})
