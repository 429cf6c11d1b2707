"""Diversity by entailment: how little the completions of a prompt follow from each other."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Callable, Iterable
from itertools import combinations

import numpy as np

from divmon.metrics.base import Metric, MetricContext, PerPrompt, per_prompt
from divmon.records import SampleBatch

POSITIONS = 3  # sentences compared of each pair
SEED = 1234
_ENDS = re.compile(r"(?<=[.!?])\s+|\n+")
Pairs = Iterable[tuple[str, str]]


def sentences(text: str) -> list[str]:
    """Sentences of `text`: cut at full stops, exclamation and question marks before white space, and at newlines.

    The marks at the cuts are dropped. What it does not know: abbreviations ("e.g. this" is two), and languages with
    other marks.

    >>> sentences("One. Two?! Three\\nfour.")
    ['One', 'Two', 'Three', 'four.']

    Source: the rule of Karouzos et al. (2026), arXiv:2604.16027.
    """
    *inner, last = _ENDS.split(text)
    found = [part.strip() for part in (*(part.rstrip(".!?") for part in inner), last)]
    return [part for part in found if part] or ([text.strip()] if text.strip() else [])


def _aligned(row: tuple[str, ...]) -> Pairs:
    """Sentence k beside sentence k, of all pairs of completions; where there are many, three places drawn by the texts.

    The draw hangs on the two texts alone, so neither the order of completions nor other prompts change it.
    """
    split = [sentences(text) for text in row]
    keys = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in row]
    for i, j in combinations(range(len(row)), 2):
        common = min(len(split[i]), len(split[j]))
        places: Iterable[int] = range(common)
        if common > POSITIONS:
            seed = b"".join((str(SEED).encode(), *sorted((keys[i], keys[j]))))
            places = random.Random(seed).sample(range(common), POSITIONS)
        for place in places:
            yield split[i][place], split[j][place]


def _whole(row: tuple[str, ...]) -> Pairs:
    return combinations([text for text in row if text.strip()], 2)


def _diversity(batch: SampleBatch, context: MetricContext, pairs_of: Callable[[tuple[str, ...]], Pairs]) -> PerPrompt:
    judge = context.judges.nli
    if judge is None:
        raise ValueError("no model of entailment: pass nli=")
    asked: dict[tuple[str, str], int] = {}
    wanted = [
        np.array(
            [asked.setdefault(pair, len(asked)) for a, b in pairs_of(row) for pair in ((a, b), (b, a))], dtype=np.intp
        )
        for row in batch.texts
    ]
    found = np.asarray(judge(list(asked)), dtype=float) if asked else np.zeros((0, 3))
    if found.shape != (len(asked), 3):
        raise ValueError(f"the model of entailment returned shape {found.shape} for {len(asked)} pairs; not (pairs, 3)")
    similarity = found[:, 0] - found[:, 2]

    def value(i: int) -> float:
        if not len(wanted[i]):
            return math.nan
        return float(np.clip(1.0 - math.fsum(similarity[wanted[i]].tolist()) / len(wanted[i]), 0.0, 2.0))

    return per_prompt(batch, value, reason="no two completions with words, or entailment gave no number for a pair")


def nli_diversity(batch: SampleBatch, context: MetricContext) -> PerPrompt:
    """How little completions entail each other, sentence by sentence: 0 mutual entailment, 1 neutral, 2 contradiction.

    1 minus the mean of P(entailment) - P(contradiction), both ways, of sentence k of one completion against sentence k
    of another, at three places common to the two (all of them if there are fewer).

    What moves it besides diversity: the model of entailment, length (more sentences, and later ones), and alignment: a
    sentence inserted at the front makes everything after it look unrelated. Contradiction counts as diversity.

    Returns:
        float[P].

    >>> from divmon.metrics.base import Judges
    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("It rains. Go!", "It rains. Stay!"),))
    >>> judge = lambda pairs: np.array([[1.0, 0, 0] if a == b else [0, 0.5, 0.5] for a, b in pairs])
    >>> nli_diversity(batch, MetricContext(batch, judges=Judges(nli=judge))).values.tolist()
    [0.75]

    Source: Karouzos et al. (2026), arXiv:2604.16027, after Stasaski and Hearst (2022), NAACL.
    """
    return _diversity(batch, context, _aligned)


def nli_diversity_whole(batch: SampleBatch, context: MetricContext) -> PerPrompt:
    """How little completions entail each other, whole against whole: 0 mutual entailment, 1 neutral, 2 contradiction.

    What moves it besides diversity: the model of entailment, and where it stops reading (512 tokens for both texts
    together); models trained on single sentences call most long pairs neutral.

    Returns:
        float[P].

    >>> from divmon.metrics.base import Judges
    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("It rains.", "It rains."),))
    >>> judge = lambda pairs: np.array([[1.0, 0, 0] if a == b else [0, 0.5, 0.5] for a, b in pairs])
    >>> nli_diversity_whole(batch, MetricContext(batch, judges=Judges(nli=judge))).values.tolist()
    [0.0]

    Source: Stasaski and Hearst (2022), NAACL, with probabilities for weights.
    """
    return _diversity(batch, context, _whole)


NLI_DIVERSITY = Metric(
    name="nli_diversity",
    fn=nli_diversity,
    summary="How little a prompt's completions entail each other, sentence by sentence; 1 is neutral.",
    family="semantic",
    direction="higher",
    bounds=(0.0, 2.0),
    needs=frozenset({"nli"}),
    source="Karouzos et al. 2026, arXiv:2604.16027",
    signature=f"sentences:{POSITIONS}|seed:{SEED}",
)
NLI_DIVERSITY_WHOLE = Metric(
    name="nli_diversity_whole",
    fn=nli_diversity_whole,
    summary="How little a prompt's completions entail each other, whole against whole; 1 is neutral.",
    family="semantic",
    direction="higher",
    bounds=(0.0, 2.0),
    needs=frozenset({"nli"}),
    source="Stasaski & Hearst 2022, NAACL",
    signature="texts:whole",
    standard=False,
)
