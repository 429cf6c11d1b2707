"""What a round may draw: every completion counts, whether an answer, a critique or a refinement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from divmon.mitigations.resample import ResampleSettings
from divmon.records import Probe
from divmon.resampling.base import Attempt
from divmon.resampling.dialogue import noise, uncritical
from divmon.resampling.filters import answer, solution
from divmon.resampling.needs import Need, allotted, needy, split


def shared(probes: Sequence[Probe], budget: int, *, key: int) -> dict[str, int]:
    """How many of `budget` plain completions each prompt gets, by id: as even as can be.

    Who gets one more is drawn by `key`, so that no level is favoured.

    >>> shared([Probe("a", "?"), Probe("b", "?"), Probe("c", "?")], 7, key=0)
    {'a': 2, 'b': 3, 'c': 2}
    """
    each, more = divmod(budget, len(probes))
    lucky = set(sorted((probe.id for probe in probes), key=lambda id: noise(key, id))[:more])
    return {probe.id: each + (probe.id in lucky) for probe in probes}


def cost(needs: Sequence[Need], settings: ResampleSettings) -> int:
    """Critiques and refinements of one pass over `needs`, at most: all that `settings.budget` allows."""
    total = 0
    for need in allotted(needs, settings):
        total += need.samples
        if settings.variant == "interactive":
            total += need.samples
        elif not uncritical(settings):
            total += len(split(need, settings))
    return total


def affordable(
    attempts: Sequence[Attempt], settings: ResampleSettings, left: int, *, served: Mapping[str, int] | None = None
) -> ResampleSettings | None:
    """`settings` with as many refinements as `left` completions allow, critiques included; None when not even one.

    Args:
        attempts: Judged ones.
        settings: Their own budget stays a cap.
        left: Completions that may still be drawn.
        served: As `needy` has it.
    """
    needs = needy(attempts, settings, guided=lambda probe: guided(probe, settings), served=served)
    low, high = 0, min(settings.budget, left)
    while low < high:  # the cost grows with the budget
        middle = (low + high + 1) // 2
        if cost(needs, replace(settings, budget=middle)) <= left:
            low = middle
        else:
            high = middle - 1
    return replace(settings, budget=low) if low and needs else None


def guided(probe: Probe, settings: ResampleSettings) -> bool:
    """Whether the prompt has what the variant shows."""
    if settings.variant == "rationale":
        return solution(probe) is not None
    return settings.variant == "critique" or answer(probe) is not None
