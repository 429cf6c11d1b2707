"""What a refinement must be before training may learn from it: pure questions about texts, one function each.

`divmon.resampling.sieve` asks them in order and counts what each turns away.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from divmon.metrics.answers import marked_answer
from divmon.metrics.text import MAX_ROW, char_ngrams, words
from divmon.records import Probe

Feasible = Callable[[Probe, str], bool]
FILTERS = ("feasible", "correct", "reasoned", "own_words", "unseen", "novel", "probable")
"""The filters in order. `reasoned` turns away shortcuts, `own_words` copies of what was shown, `unseen` repeats."""

OVERLAP_N = 4  # words; long enough that two people do not share many by chance, short enough for a line of working
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*", re.ASCII)


def written(probe: Probe, text: str) -> bool:
    """Whether there is any text at all: what is feasible where nobody says more.

    >>> written(Probe("a", "?"), " \\n"), written(Probe("a", "?"), "a fox")
    (False, True)
    """
    return bool(text.strip())


def numbers(text: str) -> int:
    """How many numbers `text` has, repeats included.

    >>> numbers("3 + 4.5 is 7.5, or 1,200")
    4
    """
    return sum(1 for _ in _NUMBER.finditer(text))


def is_shortcut(text: str, *, gold: str, wrong: str) -> bool:
    """Whether `text` has fewer numbers than both a gold solution and the wrong attempt have, less 2.

    What moves it besides shortcuts: a gold answer that is only a number makes the rule empty (fewer than -1).

    >>> is_shortcut("7", gold="3+4: 3, 4, 5, 6, 7. So 7", wrong="3+4 = 3+2+2 = 8, so 8")
    True

    Source: Xi et al. (2024), arXiv:2411.16579, as their code has it.
    """
    return numbers(text) < min(numbers(gold), numbers(wrong)) - 2


def solution(probe: Probe) -> str | None:
    """The worked solution of a prompt: its reference, else a gold answer that ends a solution (``... #### 18``).

    >>> solution(Probe("a", "?", gold="3+4 is 7 #### 7")), solution(Probe("a", "?", gold="7"))
    ('3+4 is 7 #### 7', None)
    """
    if probe.reference is not None and probe.reference.strip():
        return probe.reference
    gold = (probe.gold or "").strip()
    return gold if gold and (marked_answer(gold) or gold) != gold else None


def answer(probe: Probe) -> str | None:
    """The right answer of a prompt, cut out of its solution where it ends one; None when there is none.

    >>> answer(Probe("a", "?", gold="3+4 is 7 #### 7"))
    '7'
    """
    gold = (probe.gold or "").strip()
    return (marked_answer(gold) or gold) or None


def copied(text: str, sources: Iterable[str]) -> float:
    """The largest share of the word 4-grams of `text` that stand in one of `sources`; 0 for shorter texts.

    Words are compared without case.

    >>> copied("so we get three and four", ["First, we get three and four apples"])
    0.6666666666666666
    """
    own = _grams(text)
    return (
        max((sum(gram in found for gram in own) / len(own) for found in map(set, map(_grams, sources))), default=0.0)
        if own
        else 0.0
    )


def _grams(text: str) -> list[tuple[str, ...]]:
    found = words(text.casefold())
    return list(zip(*(found[i:] for i in range(OVERLAP_N)), strict=False))


def normalised(text: str) -> str:
    """What is equal for texts that count as the same: case, width and white space aside.

    >>> normalised("It  is\\n４.") == normalised("it is 4.")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def distinct(texts: Iterable[str]) -> list[str]:
    """The first of each of `texts` that are the same, in order.

    >>> distinct(["It is 4.", "it  is 4.", "four"])
    ['It is 4.', 'four']
    """
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(normalised(text), text)
    return list(first.values())


def distance(text: str, others: Sequence[str]) -> float:
    """Distance of `text` to the nearest of `others`, 0 to 1: one minus the cosine of character 3- to 5-grams.

    Unlike `tfidf_distance` it weighs all n-grams alike: the distance of two texts does not depend on a third. NaN
    without others.

    What moves it besides novelty: length; two long texts share many n-grams by chance.

    >>> distance("a fox", ["hens!", "A  fox"]), round(distance("a fox", ["hens!"]), 3)
    (0.0, 1.0)
    """
    others = others[-(MAX_ROW - 1) :]
    if not others:
        return float("nan")
    row = char_ngrams((text, *others))
    unit = row.counts / np.sqrt(np.bincount(row.owners, row.counts**2, minlength=len(others) + 1))[row.owners]
    grams = np.repeat(np.arange(len(row.grams)), row.documents)
    own = np.zeros(len(row.grams))
    mine = row.owners == 0
    own[grams[mine]] = unit[mine]
    cosines = np.bincount(row.owners, unit * own[grams], minlength=len(others) + 1)[1:]
    nearest = 1.0 - float(cosines.max())
    return min(1.0, nearest) if nearest > 1e-9 else 0.0
