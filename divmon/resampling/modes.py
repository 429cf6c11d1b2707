"""Which kind of thinking made a completion, as seen against what is there already: a rule on words, or a judge.

The kinds are Boden's, as Suzuki and Banaei-Kashani (2025), arXiv:2511.20471, give them to language models: join what is
there (combinational), go to its edge (exploratory), or leave it (transformational). What the rule makes of them is this
project's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from divmon.metrics.clusters import average_linkage
from divmon.metrics.human import bare_words
from divmon.metrics.semantic import fit_idf, surface_kernel
from divmon.mitigations.checked import need
from divmon.mitigations.resample import MODES
from divmon.records import Probe, SampleBatch
from divmon.resampling.base import Attempt, Critic, Request
from divmon.resampling.dialogue import noise
from divmon.resampling.prompts import LONGEST, filled, shortened

Thinking = Callable[[str, str, Sequence[str]], str | None]
"""(prompt, completion, the others) to one of `MODES`, or None where it is none of them."""

KINDS = (*MODES, "none")
_SAID = re.compile(rf"\b({'|'.join(KINDS)})\b", re.IGNORECASE)
RUBRIC = (
    "Task:\n{question}\n\nThese answers to it are there already:\n{others}\n\nA further answer:\n{answer}\n\nHow does "
    "the further answer come about, seen from those that are there?\n- combinational: it joins ideas that stand apart "
    "in them, or one of theirs with one from another field.\n- exploratory: it keeps to their rules and goes to a "
    "corner that they leave empty.\n- transformational: it changes or drops something that all of them take for "
    "granted.\n- none: it repeats or varies what is there.\nReply with one of these four words."
)


@dataclass(frozen=True, kw_only=True)
class WordThinking:
    """A rule that looks at words alone, and at nothing but the others: the same on every machine, without a model.

    The others fall into clusters by wording (n-grams, average linkage at a cosine of `alike`). A word belongs to a
    cluster when two or more of its completions have it, and tells something when it belongs to at most one cluster. It
    is new when none of the others has it. Then, in this order:

    1. transformational: at least `new` of the telling words are new.
    2. combinational: at least `joined` of the telling words belong to one cluster, and as many to another.
    3. exploratory: the mean Jaccard distance of its words to the others' is above the quantile `edge` of the others'
       own mean distances to each other.
    4. None: a repeat, a variation, an empty completion, or fewer than two others.

    It is coarse: on made-up tales whose kind is known it named the right one of four for about half, which "None" alone
    beats where most are none. Trust large differences between sets of completions, not the kind of one of them.

    What moves it besides thinking: a completion about something else counts as transformational, as words cannot show
    whether a rule was broken; a paraphrase may count as exploratory; and where the others are all one cluster, nothing
    is combinational. Against a collapsed pool nearly all that differs is transformational: look at it against the base
    model's completions there, with ``lambda prompt, text, others: rule(prompt, text, base[prompt])``. Long completions
    rarely share much, so many of them count as transformational: ask a judge (`thinking_by`), or give `features` that
    name what matters.

    Attributes:
        features: A text to what it is made of; the words, without case and edge punctuation.
        new: Share of telling words, 0 to 1.
        joined: Share of telling words, 0 to 1.
        edge: Quantile, 0 to 1.
        alike: Cosine, 0 to 1; far below that of near-repeats, as a cluster stands for a matter, not for a wording.

    >>> kinds, others = WordThinking(), [*["red fox den"] * 6, "crab sea", "crab sea"]
    >>> [kinds("?", text, others) for text in ("fox sea", "fox red", "time stops", "red fox den")]
    ['combinational', 'exploratory', 'transformational', None]
    """

    features: Callable[[str], Iterable[str]] = bare_words
    new: float = 0.5
    joined: float = 0.2
    edge: float = 0.75
    alike: float = 0.15

    def __post_init__(self) -> None:
        for name in ("new", "joined", "edge", "alike"):
            need(0 < getattr(self, name) <= 1, name, getattr(self, name), "above 0 and at most 1")

    def __call__(self, prompt: str, text: str, others: Sequence[str]) -> str | None:
        """One of `MODES`, or None."""
        own = frozenset(self.features(text))
        if len(others) < 2 or not own:
            return None
        sets = [frozenset(self.features(other)) for other in others]
        labels = _clusters(others, self.alike)
        telling = [homes for word in own if len(homes := _homes(word, sets, labels)) < 2]
        fresh = sum(not any(word in words for words in sets) for word in own)
        if fresh and fresh >= self.new * len(telling):
            return "transformational"
        owned = Counter(home for homes in telling for home in homes)
        if sum(n >= self.joined * len(telling) for n in owned.values()) >= 2:
            return "combinational"
        return "exploratory" if self._at_edge(own, sets) else None

    def _at_edge(self, own: frozenset[str], sets: Sequence[frozenset[str]]) -> bool:
        distances = _jaccard([own, *sets])
        within = distances[1:, 1:].sum(axis=1) / (len(sets) - 1)
        return bool(distances[0, 1:].mean() > np.quantile(within, self.edge) + 1e-9)


def _clusters(texts: Sequence[str], alike: float) -> list[int]:
    idf = fit_idf(SampleBatch(0, (Probe("", ""),), (tuple(texts),)))
    labels: list[int] = average_linkage(surface_kernel(tuple(texts), idf), threshold=alike).tolist()
    return labels


def _homes(word: str, sets: Sequence[frozenset[str]], labels: Sequence[int]) -> list[int]:
    """The clusters that a word belongs to."""
    tally = Counter(label for label, words in zip(labels, sets, strict=True) if word in words)
    return [label for label, n in tally.items() if n >= 2]


def _jaccard(sets: Sequence[frozenset[str]]) -> np.ndarray:
    """float[N, N]: one minus shared over all; 0 for two empty sets."""
    at = {word: i for i, word in enumerate(dict.fromkeys(word for words in sets for word in words))}
    has = np.zeros((len(sets), len(at)), dtype=np.float32)  # counts up to 2^24 stay exact
    for row, words in zip(has, sets, strict=True):
        row[[at[word] for word in words]] = 1
    shared = (has @ has.T).astype(float)
    sizes = np.diag(shared)
    union = sizes[:, None] + sizes[None, :] - shared
    return np.asarray(np.where(union > 0, 1 - shared / np.maximum(union, 1), 0.0))


def thinking_by(critic: Critic, *, rubric: str = RUBRIC, key: int = 0) -> Thinking:
    """The same question put to a model: `critic` is asked by `rubric`, and the first kind it names is taken.

    It asks once a completion. Nobody has checked a judge's kinds against people's.

    Args:
        critic: Whom to ask.
        rubric: With ``{question}``, ``{answer}`` and ``{others}``.
        key: Names the noise of a critic that samples.

    Raises:
        ValueError: When it is asked, and the reply names no kind.

    >>> def judge(requests, *, key):
    ...     return ["Exploratory, I would say." for _ in requests]
    >>> thinking_by(judge)("Write a fable.", "A fox ...", ["A hen ...", "A cat ..."])
    'exploratory'
    """

    def thinking(prompt: str, text: str, others: Sequence[str]) -> str | None:
        listed = "\n\n".join(f"{i}. {shortened(other, LONGEST // 8)}" for i, other in enumerate(others, 1))
        values = {"question": prompt, "answer": shortened(text), "others": shortened(listed)}
        question = Request(Attempt(Probe("", prompt), text), filled(rubric, values), tuple(others))
        replies = list(critic([question], key=noise(key, prompt, text)))
        said = _SAID.search(replies[0]) if len(replies) == 1 and isinstance(replies[0], str) else None
        if said is None:
            raise ValueError("the judge of thinking named none of the kinds")
        kind = said[1].lower()
        return None if kind == "none" else kind

    return thinking
