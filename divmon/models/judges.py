"""Judges of pairs: from a name, or a function, to whether one text follows from another, or says the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from divmon.errors import ConfigError, suggest
from divmon.metrics.base import Judges, PairJudge
from divmon.models.pairs import CachedPairs, Pairs, load_cross_encoder

DEFAULT_NLI = "roberta-large-mnli"
ROUGE1_AT = 0.458  # above it NoveltyBench calls two texts the same
NOVELTYBENCH = "yimingzhang/deberta-v3-large-generation-similarity"
NOVELTYBENCH_TOKENIZER = "microsoft/deberta-v3-large"
NOVELTYBENCH_AT = 0.102
_SIDE_TOKENS = 128  # of each text, for NoveltyBench's classifier
_SHORT_ANSWER = 5  # words up to which it compares words instead
_WORD = re.compile(r"[^\W_]+")
_KINDS = ("rouge1", "noveltybench", "nli:NAME", "pair:NAME", "pair:NAME@THRESHOLD")


def load_nli(name_or_callable: str | PairJudge = DEFAULT_NLI, *, device: str | None = None) -> tuple[PairJudge, str]:
    """A model of entailment and the name under which its numbers are comparable.

    What a model brings besides meaning: the length it was trained on (single sentences, mostly) and where it stops
    reading (512 tokens for both texts together).

    Args:
        name_or_callable: The Hub name or folder of a sequence classifier of Transformers whose labels are entailment,
            neutral and contradiction, in any order; or a function of N (premise, hypothesis) pairs that returns
            float[N, 3], their probabilities in that order, used as it is.
        device: Where the model runs, "cpu" when None. Ignored for functions.

    Returns:
        The judge and its name. Python's, numpy's and torch's random streams are left as they were found.

    >>> judge, name = load_nli(lambda pairs: np.full((len(pairs), 3), 1 / 3))
    >>> name
    '<lambda>'

    Source: Williams et al. (2018), MultiNLI; Liu et al. (2019), RoBERTa.

    Raises:
        MissingDependency: Transformers is absent.
        ConfigError: The model cannot be loaded, has no trained classifier, or labels that say something else.
    """
    if not isinstance(name_or_callable, str):
        return _function(name_or_callable, "nli")
    name = _named(name_or_callable, "nli")
    model = load_cross_encoder(name, device=device)
    columns = _entailment_columns(model.labels, name)
    return CachedPairs(lambda pairs: model(pairs)[:, columns]), name


def load_equivalence(
    name_or_callable: str | PairJudge = "rouge1", *, device: str | None = None
) -> tuple[PairJudge, str]:
    """A judge of whether two texts say the same to a reader, and its name.

    What a judge brings besides meaning: its threshold. Numbers of two judges never belong in one curve.

    Args:
        name_or_callable: "rouge1" needs no model: words in common, F1 above 0.458. "nli:NAME": each text entails the
            other more than anything else. "noveltybench": that benchmark's classifier and rules. "pair:NAME@0.5":
            any classifier of pairs with two classes, or one logit, that gives the second class more than 0.5. Or a
            function of N pairs that returns float[N], at least 0.5 for the same, used as it is.
        device: Where a model runs, "cpu" when None.

    Returns:
        The judge (1.0 for the same, 0.0 for not) and its name.

    >>> judge, name = load_equivalence("rouge1")
    >>> judge([("The cat sat.", "the CAT sat"), ("yes", "no")]).tolist()
    [1.0, 0.0]

    Source: Zhang et al. (2025), NoveltyBench, arXiv:2504.05228; Kuhn et al. (2023), arXiv:2302.09664.

    Raises:
        MissingDependency: Transformers is absent.
        ConfigError: An unknown judge, or a model that cannot be loaded.
    """
    if not isinstance(name_or_callable, str):
        return _function(name_or_callable, "equivalence")
    name = _named(name_or_callable, "equivalence")
    kind, _, model = name.partition(":")
    if name == "rouge1":
        return rouge1_same, name
    if name == "noveltybench":
        return _noveltybench(device), name
    if kind == "nli" and model:
        return entails_both_ways(load_nli(model, device=device)[0]), name
    if kind == "pair" and model:
        return _pair_classifier(model, device), name
    raise ConfigError(f"Unknown judge of equivalence {name!r}.{suggest(name, _KINDS)} A function of pairs works too.")


def load_judges(nli: str | PairJudge | None, equivalence: str | PairJudge | None) -> Judges:
    """Both judges, as metrics are given them; entailment both ways stands in for equivalence where only nli is given.

    >>> load_judges(None, "rouge1").equivalence_name
    'rouge1'

    Source: a convention of divmon.
    """
    entails, nli_name = (None, "") if nli is None else load_nli(nli)
    if equivalence is not None:
        same, name = load_equivalence(equivalence)
        return Judges(entails, nli_name, same, name)
    if entails is not None:
        return Judges(entails, nli_name, entails_both_ways(entails), f"nli:{nli_name}")
    return Judges()


def entails_both_ways(nli: PairJudge) -> PairJudge:
    """Two texts say the same where each entails the other, entailment being the likeliest of the three both times.

    >>> judge = entails_both_ways(lambda pairs: np.array([[float(b in a), 0.0, float(b not in a)] for a, b in pairs]))
    >>> judge([("a dog", "a dog"), ("a dog", "dog")]).tolist()
    [1.0, 0.0]

    Source: Kuhn et al. (2023), arXiv:2302.09664.
    """

    def same(pairs: Pairs) -> np.ndarray:
        if not pairs:
            return np.zeros(0)
        found = np.asarray(nli([*pairs, *((b, a) for a, b in pairs)]), dtype=float).reshape(2, len(pairs), 3)
        known = np.isfinite(found).all(axis=(0, 2))
        return np.where(known, (found.argmax(axis=2) == 0).all(axis=0).astype(float), np.nan)

    return same


def rouge1_same(pairs: Pairs) -> np.ndarray:
    """1.0 where two texts share words enough (ROUGE-1 F1 above 0.458), else 0.0; float[N].

    Words are runs of letters and digits of any script, in lower case; two texts without words are the same if equal.
    Against 100 pairs that people had labelled it is right about 72.

    >>> rouge1_same([("one two", "two three"), ("one two three four", "four")]).tolist()
    [1.0, 0.0]

    Source: Lin (2004), ROUGE; the threshold is NoveltyBench's.
    """
    bags = {text: Counter(_WORD.findall(text.lower())) for pair in pairs for text in pair}

    def same(a: str, b: str) -> bool:
        total = bags[a].total() + bags[b].total()
        return 2 * (bags[a] & bags[b]).total() > ROUGE1_AT * total if total else a == b

    return np.array([same(a, b) for a, b in pairs], dtype=float)


def short_answers_same(a: str, b: str) -> bool | None:
    """Whether two answers of at most five words share half of the longer one's; None where one has more words.

    >>> short_answers_same("Blue", "blue whale"), short_answers_same("a b c d e f", "a")
    (True, None)

    Source: the rule of NoveltyBench for short answers.
    """
    words = a.lower().split(), b.lower().split()
    longest = max(map(len, words))
    return 2 * len({*words[0]} & {*words[1]}) >= longest if longest <= _SHORT_ANSWER else None


def _named(name: str, setting: str) -> str:
    if not name.strip():
        raise ConfigError(f"{setting} must not be empty; name a model, or pass a function of pairs of texts.")
    return name


def _function(given: Any, setting: str) -> tuple[PairJudge, str]:
    if not callable(given):
        raise ConfigError(f"{setting} must be a name or a function of pairs of texts, not {given!r}.")
    return given, str(getattr(given, "name", None) or getattr(given, "__name__", None) or type(given).__name__)


def _entailment_columns(labels: Sequence[str], name: str) -> list[int]:
    """Where entailment, neutral and contradiction stand among a model's labels."""
    wanted = [
        [i for i, label in enumerate(labels) if label.lower().startswith(stem)]
        for stem in ("entail", "neutral", "contradict")
    ]
    if len(labels) != 3 or any(len(found) != 1 for found in wanted):
        raise ConfigError(
            f"The model {name!r} has the labels {', '.join(labels)}; a model of entailment has entailment, neutral and "
            f"contradiction. Name one that has, for example {DEFAULT_NLI!r}, or pass a function of pairs that returns "
            "the three probabilities in that order."
        )
    return [found[0] for found in wanted]


def _pair_classifier(spec: str, device: str | None) -> PairJudge:
    name, _, at = spec.rpartition("@") if "@" in spec else (spec, "", "0.5")
    try:
        threshold = float(at)
    except ValueError:
        threshold = -1.0
    if not 0 <= threshold < 1:
        raise ConfigError(f"equivalence='pair:{spec}': write a threshold from 0 to 1 after the @, as in pair:NAME@0.5.")
    judge = CachedPairs(partial(_second_class, load_cross_encoder(name, device=device), name))
    return lambda pairs: _above(judge(pairs), threshold)


def _noveltybench(device: str | None) -> PairJudge:
    model = load_cross_encoder(NOVELTYBENCH, tokenizer=NOVELTYBENCH_TOKENIZER, side_tokens=_SIDE_TOKENS, device=device)
    judge = CachedPairs(partial(_second_class, model, NOVELTYBENCH))

    def same(pairs: Pairs) -> np.ndarray:
        short = [short_answers_same(a, b) for a, b in pairs]
        found = np.array([bool(verdict) for verdict in short], dtype=float)
        long = [i for i, verdict in enumerate(short) if verdict is None]
        if long:
            found[long] = _above(judge([pairs[i] for i in long]), NOVELTYBENCH_AT)
        return found

    return same


def _second_class(model: Callable[[Pairs], np.ndarray], name: str, pairs: Pairs) -> np.ndarray:
    return model(pairs)[:, 1]


def _above(chances: np.ndarray, threshold: float) -> np.ndarray:
    return np.where(np.isnan(chances), np.nan, chances > threshold)
