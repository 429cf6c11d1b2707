"""Which prompts get extra samples, and how many: those that need them, the hardest first, within a budget.

Source: Ding et al. (2024), arXiv:2411.00750 (only prompts short of correct completions are sampled again, which is what
counters tail narrowing), and Xi et al. (2024), arXiv:2411.16579 (only wrong completions are criticised). The budget,
and that it is spent on the hardest prompts first, are this project's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from divmon.mitigations.diversity import clusters
from divmon.mitigations.resample import ResampleSettings
from divmon.records import Probe
from divmon.resampling.base import Attempt
from divmon.resampling.filters import distinct


@dataclass(frozen=True, slots=True)
class Need:
    """A prompt that gets extra samples.

    Attributes:
        probe: The prompt.
        targets: Attempts to criticise, no two the same text, the first first; at least one.
        texts: Of all its attempts, without repeats; with a mode, of those not known to be bad.
        rate: Share of correct ones among its judged attempts; with a mode, clusters an attempt. Lower is harder.
        samples: Refinements it may have in this pass.
    """

    probe: Probe
    targets: tuple[Attempt, ...]
    texts: tuple[str, ...]
    rate: float
    samples: int = 0


def grouped(attempts: Iterable[Attempt]) -> list[list[Attempt]]:
    """The attempts of each prompt (by id), prompts and attempts in the order they come."""
    groups: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        groups.setdefault(attempt.probe.id, []).append(attempt)
    return list(groups.values())


def needy(
    attempts: Iterable[Attempt],
    settings: ResampleSettings,
    *,
    guided: Callable[[Probe], bool] = lambda probe: True,
    served: Mapping[str, int] | None = None,
) -> list[Need]:
    """The prompts that need extra samples, hardest first: lowest rate, then highest difficulty.

    Of those that are equally hard, the least often served come first, then those of the first id: else the same few
    unsolvable ones would spend every budget.

    Without a mode: fewer than `min_correct` correct attempts, and at least one that is known to be wrong (an attempt of
    unknown quality is neither). With one: at least two attempts that are not known to be bad, in fewer than
    `min_correct` clusters, and fewer clusters than attempts.

    Args:
        attempts: Of any prompts, in any order.
        settings: See `ResampleSettings`.
        guided: Whether a prompt has what the variant shows (a gold answer, a worked solution).
        served: In how many passes each prompt, by its id, has been served before.

    >>> from divmon.records import Probe
    >>> marks = {"easy": (1, 1, 1, 0), "half": (1, 0, 0, 0), "hard": (0, 0, 0, 0), "done": (1, 1, 1, 1)}
    >>> tries = [Attempt(Probe(id, "?"), f"try {i}", q) for id, row in marks.items() for i, q in enumerate(row)]
    >>> [(need.probe.id, need.rate, len(need.targets)) for need in needy(tries, ResampleSettings(min_correct=3))]
    [('hard', 0.0, 4), ('half', 0.25, 3)]
    """
    find = _wrong if settings.mode is None else _redundant
    found = [find(group, settings) for group in grouped(attempts)]
    needs = [need for need in found if need is not None and guided(need.probe)]
    before = served or {}
    return sorted(
        needs, key=lambda need: (need.rate, -_difficulty(need.probe), before.get(need.probe.id, 0), need.probe.id)
    )


def _difficulty(probe: Probe) -> float:
    return -math.inf if probe.difficulty is None else probe.difficulty


def _wrong(group: Sequence[Attempt], settings: ResampleSettings) -> Need | None:
    judged = [attempt for attempt in group if math.isfinite(attempt.quality)]
    wrong = [attempt for attempt in judged if attempt.quality < settings.threshold]
    correct = len(judged) - len(wrong)
    if not wrong or correct >= settings.min_correct:
        return None
    wrong.sort(key=lambda attempt: not attempt.text.strip())  # there is little to say of an empty completion
    return _need(group, wrong, correct / len(judged))


def _redundant(group: Sequence[Attempt], settings: ResampleSettings) -> Need | None:
    group = [attempt for attempt in group if not attempt.quality < settings.threshold]
    if len(group) < 2:
        return None
    labels = clusters([attempt.text for attempt in group], "tfidf", similarity=1 - settings.least_novelty).tolist()
    sizes = Counter(labels)
    if len(sizes) >= min(settings.min_correct, len(group)):
        return None
    order = sorted(range(len(group)), key=lambda i: (-sizes[labels[i]], labels[i], i))  # the largest cluster first
    return _need(group, [group[i] for i in order], len(sizes) / len(group))


def _need(group: Sequence[Attempt], targets: Sequence[Attempt], rate: float) -> Need:
    texts = distinct(attempt.text for attempt in group)
    first = {attempt.text: attempt for attempt in reversed(targets)}
    return Need(group[0].probe, tuple(first[text] for text in distinct(a.text for a in targets)), tuple(texts), rate)


def allotted(needs: Iterable[Need], settings: ResampleSettings) -> list[Need]:
    """`needs` with their samples, as far as the budget goes: each its full share, in order, the last what is left.

    A prompt's share is `refinements` for each attempt that is criticised, and at most `most`; where nothing is
    criticised, or in rounds, every attempt can be refined again, and its share does not depend on how many there are.

    >>> from divmon.records import Probe
    >>> need = Need(Probe("a", "?"), (Attempt(Probe("a", "?"), "5", 0.0),), ("5",), 0.0)
    >>> [got.samples for got in allotted([need] * 4, ResampleSettings(budget=10))]
    [4, 4, 2]
    """
    left, served = settings.budget, []
    for need in needs:
        attempts = len(need.targets) if settings.kind not in ("answer", "rationale", "interactive") else math.inf
        share = min(settings.most, settings.refinements * min(settings.critiques, attempts), left)
        if share <= 0:
            break
        left -= int(share)
        served.append(replace(need, samples=int(share)))
    return served


def split(need: Need, settings: ResampleSettings) -> list[tuple[Attempt, int]]:
    """The attempts of `need` that are worked on, each with its refinements: as even as can be.

    >>> from divmon.records import Probe
    >>> tries = tuple(Attempt(Probe("a", "?"), text, 0.0) for text in ("5", "6", "7"))
    >>> need = Need(Probe("a", "?"), tries, ("5", "6", "7"), 0.0, samples=5)
    >>> [(attempt.text, number) for attempt, number in split(need, ResampleSettings())]
    [('5', 3), ('6', 2)]
    """
    number = max(1, min(settings.critiques, len(need.targets), need.samples))
    each, more = divmod(need.samples, number)
    return [(attempt, each + (i < more)) for i, attempt in enumerate(need.targets[:number])]
