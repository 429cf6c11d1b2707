"""Asks the critic and the writer, all at once, and takes from their replies what is of use."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from divmon.errors import ConfigError
from divmon.mitigations.resample import ResampleSettings
from divmon.records import Probe
from divmon.resampling.base import Attempt, Candidate, Critic, Request, Writer
from divmon.resampling.faults import Faults
from divmon.resampling.filters import Feasible
from divmon.resampling.needs import Need
from divmon.resampling.prompts import Templates, feasibility, refinement, request, shortened

LONGEST = 200_000  # characters; a longer refinement is a runaway and of no use


@dataclass(frozen=True, slots=True)
class Job:
    """An attempt to be criticised and refined.

    Attributes:
        need: Of its prompt.
        attempt: Which.
        samples: Refinements to write.
        first: The number of the first of them among those of the attempt.
    """

    need: Need
    attempt: Attempt
    samples: int
    first: int = 0


def uncritical(settings: ResampleSettings) -> bool:
    """Whether refinements are written without a critique."""
    return settings.kind in ("answer", "rationale")


def noise(*parts: Any) -> int:
    """A key of 63 bits: equal for equal parts on every machine.

    >>> noise(0, "a") == noise(0, "a"), noise(0, "a") == noise(0, "b")
    (True, False)
    """
    text = repr(parts).encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


class Dialogue:
    """A writer and a critic who are asked in one call each.

    Args:
        writer: Writes refinements.
        critic: Writes critiques; None where none are needed.
        settings: See `ResampleSettings`.
        templates: The words.
    """

    def __init__(self, writer: Writer, critic: Critic | None, settings: ResampleSettings, templates: Templates) -> None:
        self._writer, self._critic, self._settings, self._templates = writer, critic, settings, templates

    def candidates(
        self, jobs: Sequence[Job], key: int, *, counts: Counter[str], faults: Faults
    ) -> list[Candidate] | None:
        """What comes of `jobs`, in order; None when the critic or the writer failed as a whole.

        Args:
            jobs: Attempts with how often each is refined.
            key: Names the noise.
            counts: Gains critiques, refinements, and how many of either were of no use.
            faults: Gains what failed.
        """
        critiques: list[str | None] | None = [""] * len(jobs)
        if not uncritical(self._settings):
            critiques = self._critiques(jobs, key, counts=counts, faults=faults)
        if critiques is None:
            return None
        asked = [
            (job.need, self._blank(job, critique, job.first + n))
            for job, critique in zip(jobs, critiques, strict=True)
            if critique is not None
            for n in range(job.samples)
        ]
        return self._written(asked, key, counts=counts, faults=faults) if asked else []

    def _blank(self, job: Job, critique: str, number: int) -> Candidate:
        critic = "" if uncritical(self._settings) else _name(self._critic)
        kind = self._settings.kind
        return Candidate(job.attempt, critique, "", kind, critic=critic, writer=_name(self._writer), number=number)

    def _critiques(
        self, jobs: Sequence[Job], key: int, *, counts: Counter[str], faults: Faults
    ) -> list[str | None] | None:
        """One a job, None for one that cannot be used; None when the critic failed."""
        creative = self._settings.mode is not None
        try:
            if self._critic is None:
                raise ConfigError("there is no critic")
            asked = [
                request(job.attempt, job.need.texts, self._templates, creative=creative, reveal=self._settings.reveal)
                for job in jobs
            ]
            told = _replies(self._critic(asked, key=key), len(asked))
        except Exception as error:
            faults.add("the critic", error)
            return None
        found = [shortened(str(text)) if isinstance(text, str) and text.strip() else None for text in told]
        counts["critiques"] += len(found) - found.count(None)
        counts["uncriticised"] += found.count(None)
        _report_aliens("a critique", told, faults)
        return found

    def _written(
        self, asked: Sequence[tuple[Need, Candidate]], key: int, *, counts: Counter[str], faults: Faults
    ) -> list[Candidate] | None:
        """`asked` with their texts, those that can be used; None when the writer failed."""
        try:
            kind, templates = self._settings.kind, self._templates
            prompts = [refinement(one.attempt, one.critique, need.texts, templates, kind=kind) for need, one in asked]
            keys = [noise(key, need.probe.id, one.attempt.text, one.number) for need, one in asked]
            told = self._writer.write(prompts, temperature=self._settings.temperature, keys=keys)
            texts = _replies(told, len(asked))
        except Exception as error:
            faults.add("the writer", error)
            return None
        usable = [isinstance(text, str) and len(text) <= LONGEST for text in texts]
        counts["refinements"] += len(texts)
        counts["unfinished"] += usable.count(False)
        _report_aliens("a refinement", texts, faults)
        return [
            replace(one, text=str(text), token_ids=getattr(text, "token_ids", None))
            for (_, one), text, of_use in zip(asked, texts, usable, strict=True)
            if of_use
        ]


def feasible_by(critic: Critic, *, templates: Templates | None = None, key: int = 0) -> Feasible:
    """A feasibility filter that asks `critic`, with the template `feasible`, and takes a reply that opens with yes.

    It asks once a refinement: a function that looks at the text itself is faster.

    >>> def critic(requests, *, key):
    ...     return ["Yes." if "fox" in request.prompt else "No." for request in requests]
    >>> feasible_by(critic)(Probe("a", "Write a fable."), "A fox ...")
    True
    """

    def feasible(probe: Probe, text: str) -> bool:
        question = Request(Attempt(probe, text), feasibility(probe, text, templates or Templates()))
        (reply,) = _replies(critic([question], key=noise(key, probe.id, text)), 1)
        if not isinstance(reply, str):
            raise TypeError("the judge of feasibility gave no answer")
        return reply.strip().casefold().startswith("yes")

    return feasible


def _replies(told: Any, number: int) -> list[Any]:
    """The replies of a critic or writer, one for each thing that was asked.

    Raises:
        TypeError: They are no sequence of texts.
        ValueError: They are more, or fewer.
    """
    if isinstance(told, (str, bytes)) or not isinstance(told, Iterable):
        raise TypeError(f"it returned a {type(told).__name__}, not one text for each of {number}")
    found = list(told)
    if len(found) != number:
        raise ValueError(f"it returned {len(found)} texts for {number}")
    return found


def _report_aliens(what: str, told: Iterable[Any], faults: Faults) -> None:
    for reply in told:
        if reply is not None and not isinstance(reply, str):
            faults.add(what, f"a {type(reply).__name__}, which is no text")


def _name(who: Any) -> str:
    return str(getattr(who, "name", None) or type(who).__name__)
