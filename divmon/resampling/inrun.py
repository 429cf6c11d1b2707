"""The lever `resample`: a pass of resampling at each evaluation while an alarm asks for it, served to later batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from divmon.errors import DivmonError
from divmon.health import Health
from divmon.metrics.answers import gold_match
from divmon.mitigations import Lever
from divmon.records import OVERALL, LeverEvent, Observation, Probe
from divmon.resampling.base import Attempt, Quality, Resampled
from divmon.resampling.resampler import Resampler
from divmon.resampling.rows import Learnt, Row, prepare
from divmon.resampling.serving import Serving
from divmon.samplers.keyed import row_key
from divmon.samplers.ranks import Ranks

Kept = tuple[Learnt, Row]
SHOWN = ("needy", "critiques", "refinements", "accepted")  # curves from the first pass on; others when there are any
MENTIONED = 3  # filters, by what they turned away
PATIENCE = 3  # steps within which the trainer must have read a batch


class InRun:
    """Resampling inside one run of supervised fine-tuning or DPO.

    At each evaluation while it acts, rank 0 runs one pass over the completions of the domains whose alarm fires; every
    rank gets what was accepted and serves the same rows. Training goes on as it was where a pass fails.

    Args:
        serving: Attached to the trainer's loader.
        probes: The prompts of the run.
        resampler: Of rank 0; None elsewhere.
        health: Where failures are counted.
        ranks: This process among the others.
        key: Names the noise of refinements.
    """

    name = "resample"

    def __init__(
        self,
        serving: Serving,
        probes: Iterable[Probe],
        *,
        resampler: Resampler | None,
        health: Health,
        ranks: Ranks,
        key: int = 0,
    ) -> None:
        self.serving, self.resampler, self.health, self.ranks, self.key = serving, resampler, health, ranks, key
        self.probes = {probe.id: probe for probe in probes}
        self.strength = 0.0
        self.learnt: list[Learnt] = []  # in the order of the rows of `serving`
        self.totals: dict[str, float] = {}
        self._domains: tuple[str, ...] = ()
        self._since = (0, 0)  # batches read when the lever was set, and steps since
        self._kept: dict[str, Any] = {}

    def set(self, strength: float) -> None:
        """Serve what was accepted with this share of the full strength; 0 serves the plain rows again."""
        self.strength = strength
        self.serving.offer(strength=strength)
        self._since = self.serving.batches, 0

    def tick(self) -> None:
        """A training step is over."""
        self._since = self._since[0], self._since[1] + 1
        if self.serving.served:
            self.health.counts["resample_rows"] = float(self.serving.served)

    def verdict(self) -> bool | None:
        """Whether refinements were read on this rank; no, where the trainer reads no batch through the lever."""
        if self.serving.now.empty:
            return None
        if self.serving.batches == self._since[0]:
            return False if self._since[1] > PATIENCE else None
        return True if self.serving.served else None

    def evaluate(self, observation: Observation, lever: Lever) -> LeverEvent | None:
        """One pass, on every rank, where the lever acts; what came of it."""
        if self.strength <= 0:
            return None
        firing = [cell.partition("/") for cell, state in observation.states.items() if state == "firing"]
        self._domains = tuple(domain for name, _, domain in firing if name in lever.alarms) or self._domains
        found: tuple[Resampled, list[Kept]] | None = None
        if self.ranks.main:
            with self.health.shield("mitigation", "resample"):
                found = self._pass(observation)
        found = self.ranks.broadcast(found)
        if found is None:
            return None
        resampled, kept = found
        self._add(kept)
        self._count(resampled, len(kept))
        self.serving.offer(strength=self.strength)
        return replace(lever.event(_sentence(resampled, len(kept))), step=observation.step)

    def _pass(self, observation: Observation) -> tuple[Resampled, list[Kept]] | None:
        if self.resampler is None or observation.batch is None:
            return None
        attempts = _attempts(observation, self._domains)
        key, before = row_key(self.key, "resample", observation.step), _refusals(self.resampler)
        found = self.resampler.resample(attempts, step=observation.step, key=key)
        fresh = {why: n - before.get(why, 0) for why, n in _refusals(self.resampler).items()}
        for why in [why for why, n in fresh.items() if n > 0]:  # critics that fail give no critique, and say why
            told = f"{fresh[why]} critiques could not be had: {why}"
            found = replace(found, failures=(*found.failures, told))
            self.health.failed("mitigation", f"resample: the critic: {why}", told)
        step = observation.step
        learnt = [Learnt(r.probe.id, str(r.text), str(r.candidate.attempt.text), step) for r in found.accepted]
        kept, unfit = self._prepared(learnt, "resample (rows)")
        return replace(found, counts={**found.counts, "not_fitting": unfit}), kept

    def _prepared(self, learnt: Sequence[Learnt], name: str) -> tuple[list[Kept], int]:
        """What the trainer can learn, with its rows, and how many it cannot; nothing where rows cannot be made."""
        rows: Sequence[Row | None] = []
        if learnt:
            with self.health.shield("mitigation", name):
                rows = prepare(self.serving.trainer, learnt, self.probes)
        kept = [(item, row) for item, row in zip(learnt, rows, strict=False) if row is not None]
        return kept, len(rows) - len(kept)

    def _add(self, kept: Sequence[Kept]) -> None:
        self.learnt += [item for item, _ in kept]
        self.serving.add([row for _, row in kept])

    def _count(self, found: Resampled, accepted: int) -> None:
        counts = {**{name: n for name, n in found.counts.items() if name != "accepted"}, "accepted": accepted}
        for name, n in counts.items():
            if n or name in SHOWN:
                self.totals[name] = self.totals.get(name, 0.0) + float(n)
        self.health.counts.update({f"resample_{name}": n for name, n in self.totals.items()})

    def state(self) -> dict[str, Any]:
        """What was accepted, and what is served, in plain JSON types."""
        if len(self.learnt) != len(self._kept.get("learnt", ())) or not self._kept:
            self._kept = {"learnt": [item.to_json() for item in self.learnt]}
        found = {**self._kept, "serving": self.serving.state(), "totals": dict(self.totals)}
        found |= {"domains": list(self._domains), "served": self.serving.served}
        return found if self.resampler is None else {**found, "resampler": self.resampler.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; every rank must be here."""
        saved = [Learnt(**item) for item in state.get("learnt", ())]
        kept = self.ranks.broadcast(self._prepared(saved, "resample (resume)")[0] if self.ranks.main else [])
        self._add(kept)
        self.serving.restore(state.get("serving", {}))
        self.serving.served = int(state.get("served", 0))
        self.strength = self.serving.now.strength
        self.totals = {str(name): float(n) for name, n in state.get("totals", {}).items()}
        self.health.counts.update({f"resample_{name}": n for name, n in self.totals.items()})
        self._domains = tuple(state.get("domains", ()))
        if self.resampler is not None and "resampler" in state:
            self.resampler.restore(state["resampler"])
        if len(kept) < len(saved):
            raise DivmonError("some refinements of the run that resumes cannot be made into rows any more")

    def detach(self) -> None:
        """Leave the data set as it was found, and write what the disk has refused."""
        self.serving.detach()
        if self.resampler is not None and self.resampler.lineage is not None:
            with self.health.shield("disk", str(self.resampler.lineage.path)):
                self.resampler.lineage.flush()


def judged_by(quality: Quality | None, probes: Iterable[Probe]) -> Quality | None:
    """The run's judge of one completion: its own function, else gold answers; None when nothing judges."""
    if quality is not None:
        return quality
    if all(probe.gold is None for probe in probes):
        return None

    def gold(probe: Probe, text: str) -> float:
        return float("nan") if probe.gold is None else float(gold_match(text, probe.gold))

    return gold


def _attempts(observation: Observation, domains: Sequence[str]) -> list[Attempt]:
    """Every completion of `domains` with its quality."""
    batch, quality = observation.batch, observation.quality
    if batch is None:
        return []
    found: list[Attempt] = []
    for i, (probe, texts) in enumerate(zip(batch.probes, batch.texts, strict=True)):
        if probe.domain not in domains and OVERALL not in domains:
            continue
        row = [float("nan")] * len(texts) if quality is None else [float(value) for value in quality[i]]
        found += [Attempt(probe, text, value) for text, value in zip(texts, row, strict=True)]
    return found


def _refusals(resampler: Resampler) -> dict[str, int]:
    """Why a critic had no critique so far, and how often, where it keeps count."""
    return dict(getattr(resampler.critic, "failures", None) or {})


def _sentence(found: Resampled, accepted: int) -> str:
    """What a pass came to, for people."""
    counts = found.counts
    written, needy = counts.get("refinements"), counts.get("needy")
    of = "" if written is None else f" of {written} written"
    whom = "" if needy is None else f" for {needy} needy prompt{'' if needy == 1 else 's'}"
    failed = f" ({len(found.failures)} failures: {found.failures[0]})" if found.failures else ""
    turned = sorted(((n, name) for name, n in counts.items() if name.startswith("not_") and n), reverse=True)
    lost = ", ".join(f"{n} {name}" for n, name in turned[:MENTIONED]).replace("_", " ")
    why = f" Turned away: {lost}." if lost else ""
    if silent := counts.get("uncriticised"):
        why = f" The critic had nothing to say of {silent} attempt{'' if silent == 1 else 's'}.{why}"
    return f"{accepted} refinement{'' if accepted == 1 else 's'} accepted{of}{whom}.{why}{failed}"
