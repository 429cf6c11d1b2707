"""Plain attributes of a text that a person can check by counting; those in `ENGLISH` rest on English words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from divmon.metrics.human import bare_words, mattr
from divmon.metrics.text import words

ATTRIBUTES = (
    "sentence_length",
    "word_length",
    "variety",
    "long_words",
    "punctuation",
    "capitals",
    "exclamations",
    "questions",
    "first_person",
    "contractions",
    "hedges",
)
ENGLISH = frozenset({"first_person", "contractions", "hedges"})
WINDOW, LONG = 25, 7

Scorer = Callable[[str], float]


class AttributeFailure(ValueError):
    """A user's own attribute failed on a text, or gave no number."""


_ENDS = re.compile(r"[.!?…。！？]+")
_PLAIN = re.compile(r"[\w\s]+")
_FIRST = frozenset(
    {
        *("i", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves"),
        *("i'm", "i've", "i'd", "i'll", "we're", "we've", "we'd", "we'll"),
    }
)
_HEDGES = frozenset(
    {
        *("maybe", "perhaps", "possibly", "probably", "apparently", "likely", "almost", "sometimes", "usually"),
        *("might", "could", "may", "seem", "seems", "seemed", "suppose", "guess", "think"),
        *("somewhat", "rather", "quite", "fairly"),
    }
)


def attributes(texts: Sequence[str]) -> np.ndarray:
    """Plain attributes of each text, in the order of `ATTRIBUTES`; float[N, 11].

    ``sentence_length`` words per sentence; ``word_length`` characters per word, without punctuation at its edges;
    ``variety`` types over words in windows of 25 (`mattr`); ``long_words`` share of words of 7 characters or more;
    ``punctuation`` marks per word; ``capitals`` share of words in capitals, of 2 letters or more; ``exclamations`` and
    ``questions`` share of sentences that end in ``!`` or ``?``; and, for English, ``first_person`` pronouns,
    ``contractions`` and ``hedges`` per word.

    What moves them besides voice: genre, and for short texts chance.

    Returns:
        float[N, 11]; NaN for a text without words, and in ``variety`` for one under 25 words.

    >>> found = dict(zip(ATTRIBUTES, attributes(["I think it's FINE! Perhaps."])[0].round(2).tolist()))
    >>> found["sentence_length"], found["exclamations"], found["hedges"], found["capitals"]
    (2.5, 0.5, 0.4, 0.2)

    Source: a set of divmon, in the place of the ratings of Röttger et al. (2026), arXiv:2604.22503.
    """
    return np.array([_attributes(text) for text in texts], dtype=float).reshape(len(texts), len(ATTRIBUTES))


@dataclass(frozen=True)
class Panel:
    """Which attributes of a text are looked at: of those above, and of the user's own.

    Attributes:
        shipped: Names out of `ATTRIBUTES`.
        own: Name to a function of one text that returns a number: a count, a classifier, a reward model.

    >>> panel = Panel((), {"length": len})
    >>> panel.names, panel.score(["abc", ""]).tolist()
    (('length',), [[3.0], [0.0]])
    """

    shipped: tuple[str, ...] = ATTRIBUTES
    own: Mapping[str, Scorer] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, those that are shipped first."""
        return (*self.shipped, *self.own)

    @property
    def signature(self) -> str:
        """What goes into signatures: the number of attributes where they are the shipped ones, else their names."""
        shipped = self == Panel()
        return f"attributes:{len(ATTRIBUTES) if shipped else ','.join(self.names)}|window:{WINDOW}"

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """float[N, A], in the order of `names`; NaN where an attribute is undefined.

        Raises:
            AttributeFailure: A function of the user's fails, or returns something else than a number.
        """
        found = np.full((len(texts), len(self.names)), math.nan)
        if self.shipped:
            found[:, : len(self.shipped)] = attributes(texts)[:, [ATTRIBUTES.index(name) for name in self.shipped]]
        for column, (name, scorer) in enumerate(self.own.items(), len(self.shipped)):
            for i, text in enumerate(texts):
                try:
                    value = scorer(text)
                except Exception as error:
                    told = f"{type(error).__name__}: {str(error)[:80]}"
                    raise AttributeFailure(
                        f"the attribute {name!r} failed on the text {text[:40]!r}: {told}"
                    ) from error
                try:
                    found[i, column] = float(value)
                except (TypeError, ValueError) as error:
                    told = f"the attribute {name!r} returned {repr(value)[:80]} for a text, not a number"
                    raise AttributeFailure(told) from error
        return found


def _attributes(text: str) -> list[float]:
    bare = bare_words(text.replace("’", "'"))
    n = len(bare)
    if not n:
        return [math.nan] * len(ATTRIBUTES)
    ends = _ENDS.findall(text)
    sentences = max(1, len(ends))
    sizes = np.fromiter(map(len, bare), dtype=float, count=n)
    return [
        n / sentences,
        float(sizes.mean()),
        mattr(bare, window=WINDOW),
        float((sizes >= LONG).mean()),
        len(_PLAIN.sub("", text)) / n,
        sum(len(word) >= 2 and word.isupper() for word in words(text)) / n,
        sum("!" in end or "！" in end for end in ends) / sentences,
        sum("?" in end or "？" in end for end in ends) / sentences,
        sum(word in _FIRST for word in bare) / n,
        sum("'" in word for word in bare) / n,
        sum(word in _HEDGES for word in bare) / n,
    ]
