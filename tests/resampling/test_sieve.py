"""Each filter by itself, at its limit: what is exactly good enough passes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from sums_task import Obeys

from divmon.mitigations.resample import ResampleSettings
from divmon.records import Probe
from divmon.resampling.base import Attempt, Candidate
from divmon.resampling.faults import Faults
from divmon.resampling.filters import FILTERS, distance, normalised
from divmon.resampling.sieve import Known, Sieve


def sift(
    texts: Sequence[str],
    *,
    kept: Sequence[str] = (),
    critique: str = "",
    wrong: str = "5",
    probe: Probe | None = None,
    score: float = 1.0,
    logprob: float = -1.0,
    **settings: Any,
) -> tuple[list[str], Counter[str], list[Any]]:
    attempt = Attempt(probe or Probe("a", "2 + 2?", gold="4"), wrong, 0.0)
    known = Known(
        defaultdict(set, a={normalised(text) for text in (wrong, *kept)}), defaultdict(list, a=list(kept)), Counter()
    )
    counts: Counter[str] = Counter()
    sieve = Sieve(ResampleSettings(**settings), lambda p, text: score)
    candidates = [Candidate(attempt, critique, text) for text in texts]
    made = sieve.sift(candidates, known, writer=Obeys(logprob), step=0, counts=counts, faults=Faults())
    return [one.text for one in made], counts, made


@pytest.mark.parametrize(("score", "passes"), [(0.7, True), (0.69, False), (1.0, True)])
def test_correct_from_the_threshold_on(score: float, passes: bool) -> None:
    assert bool(sift(["it is 4"], score=score, good=0.7)[0]) == passes


@pytest.mark.parametrize(("logprob", "passes"), [(-3.0, True), (-3.01, False)])
def test_probable_from_the_limit_on(logprob: float, passes: bool) -> None:
    assert bool(sift(["it is 4"], logprob=logprob)[0]) == passes


def test_own_words_up_to_the_limit() -> None:
    text, critique = "one two three four five six seven", "say one two three four five and stop"  # 2 of 4 fourgrams
    assert sift([text], critique=critique, overlap=0.5)[0] == [text]
    found, counts, _ = sift([text], critique=critique, overlap=0.49)
    assert (found, counts["not_own_words"]) == ([], 1)
    (made,) = sift([text], critique=critique)[2]
    assert "own_words" in made.passed
    (made,) = sift([text])[2]
    assert "own_words" not in made.passed  # nothing was shown


@pytest.mark.parametrize("variant", ["answer", "rationale", "interactive", "critique"])
def test_a_copy_of_the_solution_that_was_shown_is_turned_away(variant: str) -> None:
    work = "Two and two more are four, which is the answer that we want"
    told = Probe("a", "2 + 2?", gold="4", reference=work)
    assert sift([work], probe=told, variant=variant, reveal=True)[1]["not_own_words"] == 1
    if variant == "critique":
        assert sift([work], probe=told)[0] == [work]  # not shown


def test_the_reference_counts_as_the_gold_solution() -> None:
    told = Probe("a", "2 + 2?", gold="4", reference="1 2 3 4 5 6 7 8")
    assert sift(["it is 4"], probe=told, wrong="1 2 3 4 5 6 7 9")[1]["not_reasoned"] == 1
    assert sift(["it is 4"], wrong="1 2 3 4 5 6 7 9")[0] == ["it is 4"]


def test_what_is_accepted_differs_from_what_was_accepted_just_before() -> None:
    first, close, far, again = (
        "the answer is 4, as I see it",
        "the answer is 4, as we see it",
        "IV!",
        "THE answer is 4,  as I see it",
    )
    near = distance(first, [close])
    found, counts, made = sift([first, close, again, far], keep=3, novelty=near + 0.01)
    assert found == [first, far]
    assert (counts["not_novel"], counts["not_unseen"], counts["surplus"]) == (1, 1, 0)
    assert [one.novelty == one.novelty for one in made] == [False, True]
    assert [("novel" in one.passed) for one in made] == [False, True]
    assert sift([first, close], keep=3, novelty=near)[0] == [first, close]
    assert sift([first, close, far], keep=2, novelty=0)[1]["surplus"] == 1
    assert sift([close], kept=[first], novelty=near + 0.01)[1]["not_novel"] == 1
    assert sift([again], kept=[first], novelty=0)[1]["not_unseen"] == 1


def test_a_refinement_is_counted_by_the_first_filter_that_turns_it_away() -> None:
    _, counts, _ = sift(["", "5", "it is 4"], score=0.0)
    assert {name: counts[f"not_{name}"] for name in FILTERS if counts[f"not_{name}"]} == {"feasible": 1, "correct": 2}
