"""Formats that nobody has named: skeletons that recur among texts the built-in classifier calls the same.

A skeleton is what is left of a text when its content goes: the signs and short labels that open its lines, each once,
in the order they first appear. "Q: 3 + 4?" over "A: 7" and "Q: 1 + 1?" over "A: 2" both have the skeleton
``Q: … A: …``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from divmon.errors import ConfigError, suggest
from divmon.metrics.base import Classifier, MetricContext
from divmon.metrics.structure import INSPECTED, OTHER, classify

BROAD = frozenset({"dialogue", "marked_answer", "short_lines", "paragraphs", "single_paragraph", "one_line", OTHER})
"""Primary labels that say little; only texts of these are looked at again."""

MIN_SHARE = 0.05
MIN_COUNT = 3
_HEAD = 48  # characters of a line that are looked at
_WORD = 16
_LABEL = 3  # words a label may have
_MARKERS = 6
_LINES = 400
_GAP = " … "
_EXAMPLES = 5
_JOINTS = ("->", "=>", "::", ">>", "...", ":", "=", "→", "⇒", "—", "–", "|", "…", ")", "]", "}", ">")
_SPACED = ("- ", "~ ")  # signs that are part of words unless spaces stand around them
_CALL = "!"  # closes a label of one or two words on the first line only: "Sure!"
_NUMBERS = frozenset(
    {
        *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
        *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"),
    }
)
_ITEM = re.compile(r"\(?(?:[a-zA-Z]|[ivx]{1,5}|[IVX]{1,5})[.)](?=\s)")  # a) (b) iii. C.
_SUM = frozenset("0123456789+-*/=.,()$%x×÷· \t")


def _counted(word: str) -> str:
    """`word`, or # where it is a number, also one in letters."""
    return (
        "#" if word.casefold() in _NUMBERS or word.isdecimal() else "".join("#" if c.isdecimal() else c for c in word)
    )


def _words(head: str) -> tuple[list[str], int]:
    """Up to three short words that open `head`, and where they end."""
    found: list[str] = []
    at = 0
    while len(found) < _LABEL:
        end = at
        while end < len(head) and (head[end].isalnum() or head[end] in "_'") and end - at <= _WORD:
            end += 1
        if end == at or end - at > _WORD:
            break
        found.append(head[at:end])
        at = end
        if head[at : at + 1] != " ":
            break
        at += 1
    return found, at


def _signs(head: str) -> str:
    """The run of one punctuation sign that opens `head`, at most three long."""
    sign = head[0]
    if sign.isalnum() or not sign.isprintable() or sign in "\"'“”‘’$":
        return ""
    return sign * min(3, len(head) - len(head.lstrip(sign)))


def _marker(line: str, *, first: bool) -> str:
    """What marks a stripped line from its opening: signs, and a label with what joins it to the rest; "" for prose."""
    head = line[:_HEAD]
    if _ITEM.match(head):
        return "x)"
    signs = _signs(head)
    words, at = _words(head[len(signs) :].lstrip(" "))
    rest = head[len(signs) :].lstrip(" ")[at:].lstrip(" *")
    joint = next((j for j in _JOINTS if rest.startswith(j)), "") or next((j for j in _SPACED if rest.startswith(j)), "")
    if first and not joint and len(words) < _LABEL and rest.startswith(_CALL):
        joint = _CALL
    if words and joint:
        label = list(map(_counted, words))
        sums = label[-1] == "#" and joint in ("=", *_SPACED)  # "12 = 3 * 4" and "the 12 - 3" are no labels
        if not sums:
            glue = "" if joint in (":", ")", "]", "}", ">", "...", _CALL) else " "
            return f"{signs}{' '.join(label)}{glue}{joint.strip()}"
    if "=" in head and not set(head) - _SUM:
        return "#=#"
    return signs


def skeleton(text: str) -> str | None:
    """A text's skeleton, readable and stable: the markers of its lines, each once, in order; None for plain prose.

    A marker is up to three repeats of the sign that opens a line and/or a label of up to three words with what joins it
    to the rest (``:``, ``=``, ``->``, ...); numbers, also in letters, become ``#``, and a line that is only arithmetic
    is ``#=#``. On the first line an exclamation mark closes a label too ("Sure!"). At most six markers, of 400 lines;
    time is linear in the text.

    What moves it besides format: labels that are content ("Rome: ...") give skeletons of their own, which do not recur.

    >>> skeleton("Q: 3 + 4?\\nA: 7"), skeleton("Step one -> add\\nStep two -> stop\\nAnswer = 7"), skeleton("It is 7.")
    ('Q: … A: …', 'Step # -> … Answer = …', None)

    Source: this project.
    """
    lines = text.strip()[:INSPECTED].split("\n", _LINES)[:_LINES]
    bare = (line.strip() for line in lines)
    found = dict.fromkeys(_marker(line, first=i == 0) for i, line in enumerate(line for line in bare if line))
    markers = list(itertools.islice(filter(None, found), _MARKERS))
    return _GAP.join(markers) + _GAP.rstrip() if markers else None


@dataclass(frozen=True)
class Discovered:
    """A recurring skeleton.

    Attributes:
        share: Of all texts, those that have it.
        count: How many those are.
        examples: Indexes of the first few.
        within: What the known classifier calls them, with how many; more than one label means it tells them apart.
    """

    share: float
    count: int
    examples: tuple[int, ...]
    within: Mapping[str, int]


def discover(
    texts: Sequence[str],
    *,
    min_share: float = MIN_SHARE,
    min_count: int = MIN_COUNT,
    classifier: Classifier = classify,
) -> dict[str, Discovered]:
    """Skeletons that recur among the texts of broad labels (`BROAD`), by name, the commonest first.

    What moves it besides formats: prompts that dictate a form, and `min_share`: a format below it stays unnamed.

    Args:
        texts: Completions.
        min_share: Smallest share of all texts.
        min_count: And fewest texts.
        classifier: Text to labels; the first is primary.

    >>> found = discover([f"Q: {i} + 1?\\nA: {i + 1}" for i in range(3)] + ["It is 7."])
    >>> {name: (one.share, one.examples) for name, one in found.items()}
    {'Q: … A: …': (0.75, (0, 1, 2))}

    Source: this project.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for i, text in enumerate(texts):
        primary = next(iter(classifier(text)), OTHER)
        name = skeleton(text) if primary in BROAD else None
        if name is not None:
            groups.setdefault(name, []).append((i, primary))
    found = {}
    for name, members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        n = len(members)
        if n < min_count or n < min_share * len(texts):
            continue
        labels = [label for _, label in members]
        within = {label: labels.count(label) for label in sorted(set(labels))}
        found[name] = Discovered(n / len(texts), n, tuple(i for i, _ in members[:_EXAMPLES]), within)
    return found


class DiscoveredClassifier:
    """The known classifier with discovered skeletons as labels of their own, before those the text had.

    Attributes:
        formats: The skeletons it knows, frozen.
    """

    def __init__(self, formats: Mapping[str, Discovered], *, classifier: Classifier = classify) -> None:
        self.formats = MappingProxyType(dict(formats))
        self._classifier = classifier

    def __call__(self, text: str) -> tuple[str, ...]:
        """The labels of `text`, the most important first."""
        labels = tuple(self._classifier(text)) or (OTHER,)
        name = skeleton(text) if labels[0] in BROAD else None
        return (name, *labels) if name in self.formats and name is not None else labels


def discovered_classifier(
    texts: Sequence[str], *, min_share: float = MIN_SHARE, classifier: Classifier = classify
) -> DiscoveredClassifier:
    """A classifier frozen on `texts` (the baseline's completions): what recurs there is a format from now on.

    What moves it: the texts. A skeleton that first appears later in training is not in it, and is filed as before.

    >>> label = discovered_classifier([f"Answer = {i}" for i in range(5)])
    >>> label("Answer = 99"), label("It is 99.")
    (('Answer = …', 'marked_answer'), ('one_line',))

    Source: this project.
    """
    return DiscoveredClassifier(discover(texts, min_share=min_share, classifier=classifier), classifier=classifier)


class Discovery:
    """What ``formats="discover"`` stands for: a classifier still to be frozen on the baseline's completions.

    Called as it is, it labels as the built-in classifier does.
    """

    def __call__(self, text: str) -> tuple[str, ...]:
        """The built-in labels of `text`."""
        return classify(text)


def frozen(context: MetricContext) -> Classifier:
    """The classifier to label `context`'s batch with: the user's, the built-in one, or one frozen on the baseline."""
    if not isinstance(context.classifier, Discovery):
        return context.classifier or classify
    reference = context.reference
    texts = [text for row in reference.batch.texts for text in row]
    return reference.cached("discovered_classifier", lambda: discovered_classifier(texts))


def echo_chamber_label(text: str, *, run: Callable[[str], Any] | None = None) -> str:
    """The format rule of the Echo Chamber study: "llm-code", "tinygsm-code" or "text".

    A text with ``<llm-code>`` is "llm-code" if its tagged code runs; else a text with the substring ``def`` anywhere
    (a "definite" will do) is "tinygsm-code", whether or not its function runs; else it is what was tried last:
    "llm-code", or "text" when neither sign is there. In the study a label is set *before* the code is run, so running
    can change it in one case only: both signs are there, and the tagged code fails. Nothing else is ever run here.

    Without `run`, tagged code that is complete counts as running, and code without its closing tag as failing.

    What moves it besides format: prose that contains "def".

    Args:
        text: One completion.
        run: Runs Python that a model wrote and returns the answer; None or an exception where it fails. The isolation
            and the time limit (3 seconds in the study) are up to it.

    >>> [echo_chamber_label(text) for text in ("<llm-code>1 + 1</llm-code>", "def f(): ...", "undefined", "Two.")]
    ['llm-code', 'tinygsm-code', 'tinygsm-code', 'text']

    Source: Zhao et al. (2025), arXiv:2504.07912, the rule of the published code.
    """
    tagged = "<llm-code>" in text
    if tagged and ("def" not in text or _runs(text, run)):
        return "llm-code"
    return "tinygsm-code" if "def" in text else "text"


def _runs(text: str, run: Callable[[str], Any] | None) -> bool:
    code, closed, _ = text.partition("<llm-code>")[2].partition("</llm-code>")
    if not closed or run is None:
        return bool(closed)
    try:
        return run(code.strip()) is not None
    except Exception:
        return False


def echo_chamber(text: str) -> tuple[str, ...]:
    """`echo_chamber_label` as a classifier that runs nothing: what ``formats="echo-chamber"`` stands for."""
    return (echo_chamber_label(text),)


NAMED: Mapping[str, Callable[[], Classifier]] = {"discover": Discovery, "echo-chamber": lambda: echo_chamber}
"""Classifiers that go by a name in settings."""


def named_classifier(name: object) -> Classifier | None:
    """The classifier called `name`; None for anything that is no text.

    >>> named_classifier("echo-chamber")("It is 7."), named_classifier({"label": "regex"})
    (('text',), None)

    Raises:
        ConfigError: No classifier has that name.
    """
    if not isinstance(name, str):
        return None
    if name not in NAMED:
        raise ConfigError(
            f"formats must be a function of a text, or a mapping from label to regex, not {name!r}; or one of the "
            f"names {', '.join(map(repr, NAMED))}.{suggest(name, NAMED)}"
        )
    return NAMED[name]()
