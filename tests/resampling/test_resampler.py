"""A pass of resampling on sums: what is kept, what is asked, what is counted."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sums_task import DigitCritic, Obeys, pairwise, probe, quality, right, tries, wrong

from divmon.errors import ConfigError
from divmon.mitigations.resample import ResampleSettings
from divmon.records import Probe
from divmon.resampling.base import Attempt, Resampled, Written
from divmon.resampling.filters import FILTERS, normalised
from divmon.resampling.resampler import COUNTED, Resampler


def run(attempts: list[Attempt], *, step: int = 5, key: int = 3, **options: Any) -> tuple[Resampled, Any, Any]:
    names = {"writer", "critic", "quality", "lineage", "health", "feasible", "templates"}
    given = {name: options.pop(name) for name in names & set(options)}
    critic, writer = given.pop("critic", DigitCritic()), given.pop("writer", Obeys())
    made = Resampler(writer, critic, ResampleSettings(**options), **{"quality": quality, **given})
    return made.resample(attempts, step=step, key=key), critic, writer


def a_class(n: int = 6) -> list[Attempt]:
    """Prompts with 0, 1, 2, ... correct attempts of six."""
    return [attempt for i in range(n) for attempt in tries(probe(i), i, 6 - i)]


def test_what_is_kept_is_correct_capped_new_and_shows_its_working() -> None:
    found, critic, writer = run(a_class(), keep=2, min_correct=4)
    assert found.failures == ()
    assert {made.probe.id for made in found.accepted} == {f"sum-{i:03d}" for i in range(4)}
    assert max(Counter(made.probe.id for made in found.accepted).values()) == 2
    attempted = {normalised(attempt.text) for attempt in a_class()}
    for made in found.accepted:
        assert quality(made.probe, made.text) == made.quality == 1.0
        assert normalised(made.text) not in attempted
        assert made.text.startswith("Way")  # the bare sum is a shortcut
        assert made.candidate.critique.startswith("It is off by ")
        assert (made.candidate.variant, made.candidate.critic, made.candidate.writer) == ("critique", "digits", "obeys")
        assert (made.step, made.logprob) == (5, -0.5)
        assert {"feasible", "correct", "reasoned", "unseen", "probable"} <= set(made.passed)
        assert [name for name in FILTERS if name in made.passed] == list(made.passed)
    assert len({normalised(made.text) for made in found.accepted}) == len(found.accepted)
    assert len(critic.calls) == len(writer.calls) == 1
    assert set(found.counts) == set(COUNTED)
    assert json.loads(json.dumps(found.summary()))["accepted"] == len(found.accepted)


def test_every_refinement_is_accounted_for() -> None:
    found, _, writer = run(a_class(), keep=1, min_correct=6)
    counts = found.counts
    assert counts["attempts"] == 36
    assert counts["prompts"] == 6
    assert counts["needy"] == counts["served"] == 6
    assert counts["critiques"] == 11  # two a prompt, and the last has one wrong attempt
    assert counts["refinements"] == len(writer.calls[0][0]) == 5 * 8 + 4
    turned = sum(counts[f"not_{name}"] for name in FILTERS) + counts["surplus"] + counts["unfinished"]
    assert counts["refinements"] == turned + len(found.accepted)
    assert counts["not_correct"] > 0
    assert writer.calls[0][1] == 0.7


def test_a_small_budget_goes_to_the_hardest() -> None:
    levels = {0: 2, 1: 5, 2: 5, 3: None}
    attempts = [attempt for i, level in levels.items() for attempt in tries(probe(i, level=level), 0, 4)]
    attempts += tries(probe(9, level=5), 1, 3)
    found, critic, writer = run(attempts, budget=20)
    served = Counter(prompt.splitlines()[0] for prompt in writer.calls[0][0])
    assert list(served.items()) == [(probe(1).text, 8), (probe(2).text, 8), (probe(0).text, 4)]
    assert [request.attempt.probe.id for request in critic.calls[0][0]] == ["sum-001"] * 2 + ["sum-002"] * 2 + [
        "sum-000"
    ] * 2
    assert found.counts["served"] == 3
    assert found.counts["needy"] == 5


def test_equally_hard_prompts_take_turns() -> None:
    class Helpless(Obeys):
        def writes(self, prompt: str, key: int) -> str:
            return "I give up"

    writer = Helpless()
    made = Resampler(writer, DigitCritic(), ResampleSettings(budget=16), quality=quality)
    attempts = [attempt for i in range(5) for attempt in tries(probe(i), 0, 4)] + tries(probe(9, level=5), 0, 4)
    for step in range(5):
        made.resample(attempts, step=step, key=0)
    served = [list(dict.fromkeys(prompt.splitlines()[0] for prompt in prompts)) for prompts, _, _ in writer.calls]
    assert served == [[probe(9).text, probe(i).text] for i in range(5)]  # the hardest always, the others by turns
    down = Resampler(writer, pairwise(lambda request: 1 / 0), ResampleSettings(), quality=quality)
    down.resample(attempts, step=0, key=0)
    assert down.state()["served"] == {}


def test_a_shortcut_is_turned_away_and_the_rule_can_be_off() -> None:
    bare = Obeys()
    bare.writes = lambda prompt, key: "11 + 23 = 34"  # type: ignore[method-assign]
    attempts = tries(probe(1), 0, 1)  # 6 numbers, and 7 in the gold solution
    found = run(attempts, writer=bare)[0]
    assert (len(found.accepted), found.counts["not_reasoned"]) == (0, 4)
    assert len(run(attempts, writer=bare, shortcut=False)[0].accepted) == 1
    only = [Attempt(replace(probe(1), gold="34"), attempts[0].text, 0.0)]  # no solution: the rule says nothing
    assert len(run(only, writer=bare)[0].accepted) == 1


def test_gold_is_never_shown_unless_asked_for() -> None:
    p = replace(probe(1), gold="SECRET-34")
    attempts = [Attempt(p, wrong(p, i), 0.0) for i in (1, 2)]
    _, critic, writer = run(attempts)
    assert not any("SECRET" in request.prompt for request in critic.calls[0][0])
    assert not any("SECRET" in prompt for prompt in writer.calls[0][0])
    _, critic, writer = run(attempts, reveal=True)
    assert all("SECRET" in request.prompt for request in critic.calls[0][0])
    assert not any("SECRET" in prompt for prompt in writer.calls[0][0])


@pytest.mark.parametrize("variant", ["answer", "rationale"])
def test_without_a_critic_the_policy_sees_gold(variant: str) -> None:
    p = probe(1)
    writer = Obeys()
    writer.writes = lambda prompt, key: (
        f"{key % 7 + 3} steps: 11 + 23 = {34 if 'take' in prompt or '34' in prompt else 0}"
    )  # type: ignore[method-assign]
    found, _, _ = run(tries(p, 0, 1), critic=None, writer=writer, variant=variant, reveal=True, keep=3, novelty=0.0)
    prompts = writer.calls[0][0]
    assert len(prompts) == 8  # every sample, though there is one attempt
    assert all(("34" in prompt) and ("take 11" in prompt) == (variant == "rationale") for prompt in prompts)
    assert len(found.accepted) == 3
    assert {made.candidate.critique for made in found.accepted} == {""}
    assert found.counts["critiques"] == 0


def test_a_prompt_without_a_worked_solution_has_no_rationale() -> None:
    p = replace(probe(1), gold="34")
    found, _, writer = run(tries(p, 0, 2), critic=None, variant="rationale", reveal=True)
    assert (found.counts["needy"], writer.calls) == (0, [])
    found, _, writer = run(
        tries(replace(p, reference="11 and 20 is 31, and 3"), 0, 2), critic=None, variant="rationale", reveal=True
    )
    assert found.counts["needy"] == 1


@pytest.mark.parametrize(("variant", "needy"), [("answer", 1), ("interactive", 1), ("critique", 2)])
def test_a_prompt_without_gold_gets_no_variant_that_shows_it(variant: str, needy: int) -> None:
    attempts = tries(probe(1), 0, 2) + tries(replace(probe(2), gold=None), 0, 2)
    assert run(attempts, variant=variant, reveal=True)[0].counts["needy"] == needy


def test_interactive_goes_in_rounds_until_one_is_accepted() -> None:
    easy, hard = probe(1), probe(2)
    asked: list[str] = []

    class Slow(Obeys):
        def writes(self, prompt: str, key: int) -> str:
            asked.append(prompt)
            p, patience = (easy, 3) if easy.text in prompt else (hard, 99)
            n = sum(p.text in before for before in asked)
            return right(p, n) if n >= patience else wrong(p, 50 + n)

    attempts = tries(easy, 0, 2) + tries(hard, 0, 2)
    found, critic, writer = run(attempts, writer=Slow(), variant="interactive", reveal=True, most=5)
    assert [made.probe.id for made in found.accepted] == [easy.id]
    assert [len(requests) for requests, _ in critic.calls] == [2, 2, 2, 1, 1]
    assert [len(prompts) for prompts, _, _ in writer.calls] == [2, 2, 2, 1, 1]
    assert len({key for _, key in critic.calls}) == 5
    targets = [
        request.attempt.text for requests, _ in critic.calls for request in requests if request.attempt.probe is hard
    ]
    assert targets == [wrong(hard, i) for i in (1, 2, 1, 2, 1)]  # each round starts from what was first tried
    assert not any(wrong(hard, 51) in prompt for prompt in asked)
    assert found.accepted[0].candidate.variant == "interactive"
    assert (found.accepted[0].candidate.attempt.text, found.accepted[0].candidate.number) == (wrong(easy, 1), 1)


@pytest.mark.parametrize("mode", ["combinational", "exploratory", "transformational"])
def test_creative_prompts_are_criticised_for_what_they_repeat(mode: str) -> None:
    tale, free = Probe("tale", "Tell a tale."), Probe("free", "Say something.")
    same = [f"Once upon a time there was a fox who lived in a wood, tale {i}" for i in range(4)]
    other = ["Rain.", "My grandmother's clock", "seven 7777", "what of whales?"]
    attempts = [Attempt(tale, text) for text in same] + [Attempt(free, text) for text in other]
    critic = DigitCritic()
    critic.says = lambda request: f"All of them have a fox: {len(request.others)}"  # type: ignore[method-assign]
    writer = Obeys()
    texts = iter(
        [
            "",
            "Once upon a time there was a fox who lived in a wood, tale 9",
            "A tax on moonlight",
            "A tax on the moonlight",
        ]
    )
    writer.writes = lambda prompt, key: next(texts, "junk")  # type: ignore[method-assign]
    found, _, _ = run(
        attempts, critic=critic, writer=writer, quality=None, mode=mode, feasible=lambda p, t: t != "junk"
    )
    assert [made.text for made in found.accepted] == ["A tax on moonlight"]
    assert found.accepted[0].candidate.variant == mode
    assert found.accepted[0].novelty >= 0.5
    assert np.isnan(found.accepted[0].quality)
    assert "correct" not in found.accepted[0].passed
    assert all(same[3] in request.prompt and request.others == tuple(same) for request in critic.calls[0][0])
    assert found.counts["needy"] == 1
    assert found.counts["not_feasible"] == 5  # the empty one, and four of junk
    assert found.counts["not_novel"] == 1
    assert found.counts["surplus"] == 1


def test_a_mode_honours_quality_where_it_is_known() -> None:
    tale = Probe("tale", "Tell a tale.")
    attempts = [Attempt(tale, f"Once upon a time there was a fox, {i}", 0.9) for i in range(4)]
    writer = Obeys()
    writer.writes = lambda prompt, key: ["off topic rubbish", "A tax on moonlight"][key % 2]  # type: ignore[method-assign]
    found, _, _ = run(
        attempts,
        writer=writer,
        critic=pairwise(lambda request: "stale"),
        quality=lambda p, text: 0.1 if "off" in text else None,
        mode="exploratory",
    )
    assert [made.text for made in found.accepted] == ["A tax on moonlight"]


def test_chats_stay_chats() -> None:
    p = replace(
        probe(1), prompt=({"role": "system", "content": "Be kind."}, {"role": "user", "content": probe(1).text})
    )
    writer = Obeys()
    writer.writes = lambda prompt, key: right(p, 1)  # type: ignore[method-assign]
    found, critic, _ = run([Attempt(p, wrong(p), 0.0)], writer=writer)
    asked = critic.calls[0][0][0].prompt
    assert [message["role"] for message in asked] == ["user"]
    assert "[system]\nBe kind." in asked[0]["content"]
    prompt = writer.calls[0][0][0]
    assert prompt[0] == {"role": "system", "content": "Be kind."}
    assert [message["role"] for message in prompt] == ["system", "user"]
    assert wrong(p) in prompt[1]["content"]
    assert "It is off by 1." in prompt[1]["content"]
    assert writer.scored[0][0][0] == p.prompt  # the bare prompt
    assert len(found.accepted) == 1


@pytest.mark.parametrize(("value", "kept"), [(-3.5, 0), (-2.9, 1), (float("nan"), 1)])
def test_improbable_refinements_are_turned_away(value: float, kept: int) -> None:
    found, _, _ = run(tries(probe(1), 0, 2), writer=Obeys(value))
    assert len(found.accepted) == kept
    assert (found.counts["not_probable"] > 0) == (kept == 0)
    assert all(("probable" in made.passed) == (value == value) for made in found.accepted)


def test_log_probabilities_are_asked_for_once_and_only_of_what_is_left() -> None:
    _, _, writer = run(a_class())
    assert len(writer.scored) == 1
    assert all(
        quality(p, text) for p, text in zip(map(_probe_of, writer.scored[0][0]), writer.scored[0][1], strict=True)
    )
    _, _, writer = run(a_class(), logprob=None)
    assert writer.scored == []


def _probe_of(prompt: str) -> Probe:
    return Probe("any", prompt)


def test_equal_passes_are_equal_and_keys_tell_noise_apart() -> None:
    first, _, writer = run(a_class())
    assert repr(run(a_class())[0]) == repr(first)
    keys = writer.calls[0][2]
    assert len(set(keys)) == len(keys)
    assert not set(run(a_class(), key=4)[2].calls[0][2]) & set(keys)
    assert not set(run(a_class(), step=6)[2].calls[0][2]) & set(keys)
    alone = run([attempt for attempt in a_class() if attempt.probe.id == "sum-002"])[2].calls[0][2]
    assert set(alone) < set(keys)  # what else there is changes nothing


def test_what_was_kept_is_remembered_and_resuming_is_as_if_never_stopped() -> None:
    def resampler() -> Resampler:
        return Resampler(Obeys(), DigitCritic(), ResampleSettings(novelty=0.0, keep=2), quality=quality)

    whole = resampler()
    passes = [whole.resample(a_class(), step=step, key=1) for step in range(6)]
    texts = [(made.probe.id, normalised(made.text)) for found in passes for made in found.accepted]
    assert len(set(texts)) == len(texts) > 8
    for at in range(6):
        first, second = resampler(), resampler()
        for step in range(at):
            first.resample(a_class(), step=step, key=1)
        second.restore(json.loads(json.dumps(first.state())))
        again = [second.resample(a_class(), step=step, key=1) for step in range(at, 6)]
        assert repr(again) == repr(passes[at:])  # NaN is not equal to itself
        assert second.state() == whole.state()


def test_novelty_is_measured_against_what_was_kept() -> None:
    made = Resampler(Obeys(), DigitCritic(), ResampleSettings(novelty=0.9), quality=quality)
    first = made.resample(a_class(), step=0, key=1)
    second = made.resample(a_class(), step=1, key=1)
    assert first.accepted
    assert all(np.isnan(one.novelty) for one in first.accepted)
    assert second.accepted == ()
    assert second.counts["not_novel"] > 0


def test_tokens_of_the_writer_are_kept() -> None:
    writer = Obeys()
    writer.writes = lambda prompt, key: Written(right(probe(1), 1), (4, 2))  # type: ignore[method-assign]
    found, _, _ = run(tries(probe(1), 0, 1), writer=writer)
    assert found.accepted[0].candidate.token_ids == (4, 2)
    assert type(found.accepted[0].text) is str


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({}, {"critic": None}, "needs a critic"),
        ({}, {"quality": None}, "pass quality="),
        ({}, {"quality": 3}, "quality must be a function"),
        ({}, {"feasible": "yes"}, "feasible must be a function"),
        ({}, {"templates": {"refne": "x"}}, "Unknown template 'refne'. Did you mean 'refine'"),
        ({}, {"templates": {"refine": "{question} {answer}"}}, "lacks {critique}"),
        ({}, {"templates": {"critique": "{question} {answer} {gold}"}}, "does not get {gold}"),
        ({}, {"templates": {"critique": 3}}, "must be a text"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(settings: Any, options: Any, message: str) -> None:
    given = {"critic": DigitCritic(), "quality": quality, **options}
    with pytest.raises(ConfigError, match=message):
        Resampler(Obeys(), given.pop("critic"), ResampleSettings(**settings), **given)
