"""Kinds of thinking: the rule on words held to its definition, spelt out with loops; the judge, and hostile text."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from divmon.errors import ConfigError
from divmon.metrics.clusters import average_linkage
from divmon.metrics.semantic import fit_idf, surface_kernel
from divmon.records import Probe, SampleBatch
from divmon.resampling.modes import KINDS, WordThinking, thinking_by

WORDS = ["fox", "owl", "crab", "whale", "moor", "reef", "runs", "digs", "sings", "acorn"]
ODD = ["", " \n", "\ud800", "狐が走る", "x" * 100_000, "{question} {others}", "\x1b[31m", "?!"]


def spelt_out(text: str, others: list[str], *, new: float, joined: float, edge: float, alike: float) -> str | None:
    """The definition, word by word and pair by pair."""
    own = set(text.split())
    if len(others) < 2 or not own:
        return None
    idf = fit_idf(SampleBatch(0, (Probe("", ""),), (tuple(others),)))
    labels = average_linkage(surface_kernel(tuple(others), idf), threshold=alike).tolist()
    homes: dict[str, set[int]] = {w: set() for w in own}
    for w, c in itertools.product(own, set(labels)):
        if sum(1 for label, other in zip(labels, others, strict=True) if label == c and w in other.split()) >= 2:
            homes[w].add(c)
    telling = [w for w in own if len(homes[w]) <= 1]
    new_words = [w for w in own if not any(w in other.split() for other in others)]
    if telling and new_words and len(new_words) / len(telling) >= new - 1e-12:
        return "transformational"
    shares = [sum(1 for w in telling if homes[w] == {c}) / max(1, len(telling)) for c in set(labels)]
    if sum(1 for share in shares if share > 0 and share >= joined - 1e-12) >= 2:
        return "combinational"

    def far(a: str, b: str) -> float:
        left, right = set(a.split()), set(b.split())
        return 1 - len(left & right) / len(left | right) if left | right else 0.0

    mine = sum(far(text, other) for other in others) / len(others)
    within = [
        sum(far(others[i], others[j]) for j in range(len(others)) if j != i) / (len(others) - 1)
        for i in range(len(others))
    ]
    return "exploratory" if mine > np.quantile(within, edge) + 1e-9 else None


@pytest.mark.parametrize(
    "limits", [(0.5, 0.2, 0.75, 0.3), (0.3, 0.4, 0.5, 0.5), (1.0, 0.25, 1.0, 0.2), (0.7, 0.1, 0.9, 0.6)]
)
def test_the_rule_is_its_definition(limits: tuple[float, ...]) -> None:
    rng = random.Random(7)
    settings = dict(zip(("new", "joined", "edge", "alike"), limits, strict=True))
    seen = set()
    for _ in range(250):
        pool = [
            " ".join(rng.choices(WORDS[: rng.randint(3, 9)], k=rng.randint(0, 5))) for _ in range(rng.randint(0, 9))
        ]
        pool += pool[:1] * rng.randint(0, 3)
        text = " ".join(rng.choices([*WORDS, "new", "odd"], k=rng.randint(0, 5)))
        expected = spelt_out(text, pool, **settings)
        assert WordThinking(**settings)("?", text, pool) == expected, (text, pool)
        seen.add(expected)
    assert len(seen) >= 3


def test_two_worlds_are_joined_only_by_words_that_never_met() -> None:
    sea = [f"{a} {b} reef tide" for a, b in itertools.product(("crab", "whale"), ("dives", "swims"))]
    wood = [f"{a} {b} moor hill" for a, b in itertools.product(("fox", "owl"), ("runs", "digs"))]
    rule = WordThinking()
    assert rule("", "crab dives moor hill", sea + wood) == "combinational"
    assert rule("", "crab dives moor hill", [*sea, *wood, *["crab dives moor hill"] * 2]) is None
    assert rule("", "crab dives reef tide", sea + wood) is None
    assert rule("", "time stops", sea + wood) == "transformational"
    assert rule("", "Crab, dives: (reef) TIDE!", sea + wood) is None  # case and edge punctuation say nothing


def test_own_features_take_the_place_of_words() -> None:
    rule = WordThinking(features=lambda text: ["rhymes"] if text.endswith("ay") else ["does not"])
    assert rule("", "it is day", ["a", "b", "c"]) == "transformational"
    assert rule("", "it is", ["a", "b", "c"]) is None


def test_any_text_has_a_kind_or_none_and_order_plays_no_part() -> None:
    rule = WordThinking()
    for i, text in enumerate(ODD):
        others = ODD[:i] + ODD[i + 1 :]
        assert rule("?", text, others) == rule("?", text, others[::-1])
        assert rule("?", text, others) in (None, *KINDS)
        assert rule("?", text, []) is rule("?", text, ["one"]) is None


@pytest.mark.parametrize("name", ["new", "joined", "edge", "alike"])
@pytest.mark.parametrize("value", [0, 1.5, float("nan")])
def test_limits_are_shares(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        WordThinking(**{name: value})


def test_a_judge_is_asked_with_everything_and_its_first_kind_counts() -> None:
    asked: list[Any] = []

    def judge(requests: Any, *, key: int) -> list[str]:
        asked.extend(requests)
        return ["TRANSFORMATIONAL: it drops the rule, though some would say exploratory."]

    assert thinking_by(judge)("Task {others}", "An {answer}", ["first", "second"]) == "transformational"
    prompt = asked[0].prompt
    assert all(part in prompt for part in ("Task {others}", "An {answer}", "1. first", "2. second"))


@pytest.mark.parametrize("replies", [["none"], ["I cannot say"], [None], [], ["combinational"] * 2])
def test_a_judge_that_names_no_kind_is_a_failure_but_none_is_an_answer(replies: list[Any]) -> None:
    thinking = thinking_by(lambda requests, *, key: replies)
    if replies == ["none"]:
        assert thinking("?", "a", ["b"]) is None
    else:
        with pytest.raises(ValueError, match="none of the kinds"):
            thinking("?", "a", ["b"])
