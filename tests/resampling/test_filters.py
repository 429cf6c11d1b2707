"""Filters, needs, prompts and settings of resampling, held to definitions and to any text at all."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics.pairwise import cosine_similarity
from sums_task import probe, tries

from divmon.errors import ConfigError
from divmon.mitigations.resample import ResampleSettings
from divmon.records import Probe
from divmon.resampling.base import Attempt
from divmon.resampling.filters import copied, distance, distinct, is_shortcut, normalised, numbers
from divmon.resampling.needs import Need, allotted, needy, split
from divmon.resampling.prompts import LONGEST, Templates, feasibility, filled, refinement, request, shortened

ANY = st.text(max_size=40) | st.sampled_from(["{gold}", "\ud800", "{0}{}{x!r}", "%s", "終わり", "Ａb", "aB", ""])
few = settings(max_examples=60, deadline=None)


@few
@given(st.lists(ANY, max_size=8), st.randoms(use_true_random=False))
@example(["It is 4.", "it  IS 4."], None)
def test_what_is_distinct_does_not_depend_on_order_and_is_settled_at_once(texts: list[str], random: Any) -> None:
    kept = distinct(texts)
    assert distinct(kept) == kept
    assert len({normalised(text) for text in kept}) == len(kept)
    shuffled = list(texts)
    if random is not None:
        random.shuffle(shuffled)
    assert {normalised(text) for text in distinct(shuffled)} == {normalised(text) for text in kept}


@few
@given(ANY, st.lists(ANY, max_size=5))
def test_distance_is_that_of_the_nearest_within_bounds_and_symmetric(text: str, others: list[str]) -> None:
    found = distance(text, others)
    if not others:
        assert math.isnan(found)
        return
    each = [distance(text, [other]) for other in others]
    assert found == pytest.approx(min(each), abs=1e-9)
    assert 0 <= found <= 1
    assert each == pytest.approx([distance(other, [text]) for other in others], abs=1e-9)
    assert distance(text, [text]) == 0
    assert distance(text, [*others, text]) == 0


def test_distance_is_one_minus_the_cosine_of_character_ngrams() -> None:
    texts = ["a quick brown fox", "the quick brown foxes", "an answer of 42, no more", "a quick brown box"]
    counts = CountVectorizer(analyzer="char", ngram_range=(3, 5)).fit_transform(texts)
    nearest = cosine_similarity(counts[:1], counts[1:]).max()
    assert distance(texts[0], texts[1:]) == pytest.approx(1 - nearest, abs=1e-9)


@few
@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_copied_is_the_share_of_word_fourgrams(own: list[str], source: list[str]) -> None:
    def grams(found: list[str]) -> list[tuple[str, ...]]:
        return [tuple(found[i : i + 4]) for i in range(len(found) - 3)]

    shares = [gram in grams(source) for gram in grams(own)]
    want = float(np.mean(shares)) if shares else 0.0
    assert copied(" ".join(own).upper(), ["x y z", " ".join(source)]) == pytest.approx(want, abs=1e-12)
    assert copied(" ".join(own), []) == 0


@few
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_the_rule_against_shortcuts_counts_numbers(own: int, gold: int, wrong: int) -> None:
    def text(n: int) -> str:
        return " and ".join(["1,234.5"] * n)

    assert numbers(text(own)) == own
    assert is_shortcut(text(own), gold=text(gold), wrong=text(wrong)) == (own < min(gold, wrong) - 2)


# --- needs ------------------------------------------------------------------------------------------------------------

rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 5) | st.none()), max_size=8)


@few
@given(rows, st.integers(1, 6), st.integers(1, 60), st.integers(1, 10), st.randoms(use_true_random=False))
def test_needs_are_short_of_correct_ones_hardest_first_and_within_budget(
    table: list[tuple[int, int, int | None]], least: int, budget: int, most: int, random: Any
) -> None:
    attempts = [one for i, (c, w, level) in enumerate(table) for one in tries(probe(i, level=level), c, w)]
    options = ResampleSettings(min_correct=least, budget=budget, most=most)
    needs = needy(attempts, options)
    assert {need.probe.id for need in needs} == {probe(i).id for i, (c, w, _) in enumerate(table) if w and c < least}
    order = [(need.rate, -(need.probe.difficulty or -math.inf), need.probe.id) for need in needs]
    assert order == sorted(order)
    served = allotted(needs, options)
    assert [need.probe.id for need in served] == [need.probe.id for need in needs][: len(served)]
    assert sum(need.samples for need in served) <= budget
    full = [min(most, 4 * min(2, len(need.targets))) for need in needs]
    assert sum(need.samples for need in served) == min(budget, sum(full))
    assert [need.samples for need in served][:-1] == full[: max(0, len(served) - 1)]
    for need in served:
        parts = split(need, options)
        assert sum(number for _, number in parts) == need.samples
        assert max(number for _, number in parts) - min(number for _, number in parts) <= 1
        assert all(attempt.quality == 0 and number > 0 for attempt, number in parts)
    shuffled = sorted(attempts, key=lambda _: random.random())
    assert [need.probe.id for need in needy(shuffled, options)] == [need.probe.id for need in needs]


def test_attempts_that_nobody_judged_are_neither_right_nor_wrong() -> None:
    p = probe(1)
    assert needy([Attempt(p, "a"), Attempt(p, "b", math.inf)], ResampleSettings()) == []
    assert needy([Attempt(p, "a", 0.5), Attempt(p, "b", 0.7)], ResampleSettings()) == []  # good enough, both
    assert needy([Attempt(p, "a", 0.5), Attempt(p, "b", 0.7)], ResampleSettings(good=0.6))[0].rate == 0.5
    (need,) = needy(
        [Attempt(p, "a"), Attempt(p, " ", 0.0), Attempt(p, "c", 0.0), Attempt(p, "C", 0.0)], ResampleSettings()
    )
    assert [attempt.text for attempt in need.targets] == ["c", " "]  # no repeats, and an empty one last
    assert need.rate == 0


def test_redundant_prompts_are_those_with_few_clusters() -> None:
    fox = "Once upon a time there was a fox in a wood, take "
    texts = {
        "one": [fox + "1", fox + "2", fox + "3"],
        "two": [fox + "1", fox + "2", "Rain!"],
        "three": ["a b", "Rain!", fox],
    }
    attempts = [Attempt(Probe(id, "?"), text) for id, row in texts.items() for text in row]
    attempts += [Attempt(Probe("good", "?"), "Rain!", 0.9), Attempt(Probe("good", "?"), "Rain! ", 0.1)]
    needs = needy(attempts, ResampleSettings(mode="exploratory"))
    assert [need.probe.id for need in needs] == ["one", "two"]
    assert [need.rate for need in needs] == pytest.approx([1 / 3, 2 / 3])
    assert [attempt.text for attempt in needs[1].targets] == [fox + "1", fox + "2", "Rain!"]
    assert [need.probe.id for need in needy(attempts, ResampleSettings(mode="exploratory", min_correct=2))] == ["one"]


# --- prompts ----------------------------------------------------------------------------------------------------------


@few
@given(ANY, ANY, ANY, ANY)
def test_text_of_a_model_goes_into_prompts_as_it_is(question: str, answer: str, critique: str, gold: str) -> None:
    attempt = Attempt(Probe("a", question, gold="GOLD " + gold), answer)
    for name in ("critique", "combinational", "exploratory", "transformational"):
        prompt = refinement(attempt, critique, [answer, "{gold}"], Templates(), kind=name)
        assert question in prompt
        assert answer in prompt
        assert critique in prompt
        assert "GOLD" not in prompt or "GOLD" in question + answer + critique
    for creative in (False, True):
        asked = request(attempt, [answer, "{critique}"], Templates(), creative=creative, reveal=False)
        assert question in asked.prompt
        assert answer in asked.prompt
        assert "GOLD" not in asked.prompt or "GOLD" in question + answer
    assert answer in feasibility(attempt.probe, answer, Templates())


def test_every_template_fills_every_field_it_names() -> None:
    p = Probe("a", "QUESTION", gold="WORK #### 34")
    for kind in ("critique", "interactive", "answer", "rationale", "combinational", "exploratory", "transformational"):
        prompt = refinement(Attempt(p, "TRY"), "CRITIQUE", ["OTHER"], Templates(), kind=kind)
        assert isinstance(prompt, str)
        assert not re.search(r"\{\w+\}", prompt)
        assert "QUESTION" in prompt
        assert ("34" in prompt) == (kind in ("answer", "rationale"))
        assert ("WORK" in prompt) == (kind == "rationale")
    own = Templates.of({"exploratory": "{question} {answer} {critique} {others} \\boxed{x}"})
    assert (
        refinement(Attempt(p, "TRY"), "C", ["OTHER"], own, kind="exploratory") == "QUESTION TRY C 1. OTHER \\boxed{x}"
    )
    assert filled("{a}{b}", {"a": "{b}", "b": "\\1\\g<0>"}) == "{b}\\1\\g<0>"


def test_a_teacher_without_a_gold_answer_is_a_critic() -> None:
    told, untold = (Attempt(Probe("a", "Q", gold=gold), "TRY") for gold in ("34", None))
    plain = request(untold, [], Templates(), creative=False, reveal=False).prompt
    assert request(untold, [], Templates(), creative=False, reveal=True).prompt == plain
    assert request(told, [], Templates(), creative=False, reveal=False).prompt == plain
    assert request(told, [], Templates(), creative=False, reveal=True).prompt != plain
    assert "34" not in request(told, [], Templates(), creative=True, reveal=True).prompt


def test_long_texts_are_cut_in_the_middle_but_never_the_question() -> None:
    long = "x" * 100_000
    attempt = Attempt(Probe("a", "Q" * 50_000), "begin" + long + "end")
    prompt = refinement(attempt, "first" + long + "last", [long] * 50, Templates(), kind="critique")
    assert isinstance(prompt, str)
    assert "Q" * 50_000 in prompt
    assert len(prompt) < 50_000 + 2 * LONGEST + 1_000
    assert all(word in prompt for word in ("begin", "end", "first", "last"))
    asked = request(attempt, [long] * 50, Templates(), creative=True, reveal=False)
    assert len(asked.prompt) < 50_000 + 2 * LONGEST + 2_000
    assert shortened("abc", 3) == "abc"


def test_a_chat_that_does_not_end_with_the_user_keeps_its_system_message() -> None:
    turns = (
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
    )
    prompt = refinement(Attempt(Probe("a", turns), "TRY"), "C", [], Templates(), kind="critique")
    assert [message["role"] for message in prompt] == ["system", "user"]  # type: ignore[index]
    assert "[assistant]\nA" in prompt[1]["content"]  # type: ignore[index]
    empty = refinement(Attempt(Probe("a", ()), "TRY"), "C", [], Templates(), kind="critique")
    assert len(empty) == 1
    odd = refinement(Attempt(Probe("a", ({"role": "user"},)), "TRY"), "C", [], Templates(), kind="critique")
    assert "TRY" in odd[0]["content"]  # type: ignore[index]


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_correct": 0}, "`min_correct` must be 1 or more"),
        ({"k": 0}, "`k`"),
        ({"keep": 0}, "`keep`"),
        ({"budget": 0}, "`budget`"),
        ({"critiques": 1.5}, "`critiques` must be a whole number"),
        ({"variant": "critic"}, "Unknown variant 'critic'. Did you mean 'critique'"),
        ({"mode": "exploratry"}, "Unknown mode 'exploratry'. Did you mean 'exploratory'"),
        ({"mode": 3}, "`mode` must be a word or null"),
        ({"mode": "exploratory", "variant": "answer", "reveal": True}, "goes without `variant: answer`"),
        ({"variant": "answer"}, "shows the policy the gold answer.*reveal: true"),
        ({"variant": "rationale"}, "reveal: true"),
        ({"variant": "interactive"}, "shows a critic the gold answer"),
        ({"temperature": -1}, "`temperature`"),
        ({"novelty": 1.5}, "`novelty`"),
        ({"overlap": 0}, "`overlap`"),
        ({"logprob": 1.0}, "`logprob`"),
        ({"logprob": "low"}, "`logprob` must be a number or null"),
        ({"good": math.nan}, "`good` must be a number or null"),
        ({"reveal": 1}, "`reveal` must be true or false"),
        ({"cooling": -1}, "`cooling`"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ResampleSettings(**values)


def test_settings_default_to_the_sources_constants() -> None:
    plain = ResampleSettings()
    assert (plain.min_correct, plain.k, plain.most, plain.keep, plain.temperature) == (4, 8, 8, 1, 0.7)
    assert (plain.threshold, plain.least_novelty, plain.kind) == (0.5, 0.1, "critique")
    assert ResampleSettings(mode="exploratory").least_novelty == 0.5
    assert ResampleSettings(logprob=None, good=0.9, novelty=0).threshold == 0.9
    need = Need(probe(0), tuple(tries(probe(0), 0, 1)), (), 0.0)
    shown = ResampleSettings(variant="answer", reveal=True)
    assert allotted([need], shown)[0].samples == 8
