"""What self-training refuses, and how a budget is shared out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from divmon.demo.columns_model import make_tokenizer
from divmon.errors import ConfigError, DivmonError
from divmon.mitigations.resample import ResampleSettings
from divmon.records import Probe
from divmon.resampling.base import Attempt
from divmon.selftraining import SelfTraining
from divmon.selftraining.budget import affordable, cost, shared
from divmon.selftraining.gathering import Gathered, kept, made_levels
from divmon.selftraining.results import representation

PROMPTS = [{"prompt": f"{i} + 1 = ", "gold": str(i + 1), "difficulty": 1 + i} for i in range(4)]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rounds": 0}, "rounds must be a whole number of at least 1, not 0"),
        ({"budget": 31}, r"budget must be a whole number of at least 32 \(`samples` for each prompt\), not 31"),
        ({"keep": 1.5}, "keep must be a whole number of at least 1, not 1.5"),
        ({"temperature": 0}, "temperature must be above 0, not 0"),
        ({"learner": "bse"}, "learner='bse'. Did you mean 'base'"),
        ({"settings": {"refinement": 2}}, "Unknown setting 'refinement' of resampling. Did you mean 'refinements'"),
        ({"critic": "polcy"}, "Unknown critic 'polcy'"),
        ({"critic": True}, "critic=True, but 'critique' needs one who criticises"),
        ({"critic": "policy", "settings": {"mode": "exploratory"}}, "keeps what is correct"),
        ({"settings": {"variant": "rationale", "reveal": True}}, "no prompt has one"),
        ({"gold_data": [{"prompt": "x"}]}, "gold_data, row 0: a row is a mapping with a 'prompt' and a 'completion'"),
        ({"watch": {"metric": []}}, "Unknown setting 'metric'"),
        ({"templates": {"refine": "{question}"}}, "The template `refine` lacks"),
        ({"prompts": ["no gold"]}, "must know which completions are correct"),
        ({"prompts": []}, "There are no prompts"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(wrong: dict[str, Any], says: str, tmp_path: Path) -> None:
    given = {"model": "nowhere", "tokenizer": make_tokenizer(), "prompts": PROMPTS, "out": tmp_path} | wrong
    with pytest.raises(DivmonError, match=says):
        SelfTraining(**given)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot load the model '/nowhere/at/all'"):
        SelfTraining("/nowhere/at/all", make_tokenizer(), PROMPTS, out=tmp_path).run()


def tries(n: int, right: int, wrong: int) -> list[Attempt]:
    one = Probe(f"p{n}", "?", difficulty=n)
    return [Attempt(one, f"{n} right {i}", 1.0) for i in range(right)] + [
        Attempt(one, f"{n} wrong {i}", 0.0) for i in range(wrong)
    ]


@pytest.mark.parametrize("variant", ["critique", "answer", "interactive"])
@pytest.mark.parametrize("left", [1, 2, 3, 7, 12, 39])
def test_guidance_never_costs_more_than_is_left_and_leaves_nothing_useful(variant: str, left: int) -> None:
    settings = ResampleSettings(variant=variant, reveal=variant != "critique", critiques=2, refinements=3, budget=1000)
    attempts = [replace(one, probe=replace(one.probe, gold="1")) for n in range(4) for one in tries(n, n % 2, n + 1)]
    chosen = affordable(attempts, settings, left)
    from divmon.resampling.needs import needy

    needs = needy(attempts, settings)
    costs = [cost(needs, replace(settings, budget=budget)) for budget in range(1, 60)]
    best = max((budget for budget, price in zip(range(1, 60), costs, strict=True) if price <= left), default=0)
    assert costs == sorted(costs)
    assert chosen is None if best == 0 else chosen is not None
    if chosen is not None:
        assert cost(needs, chosen) == costs[best - 1] <= left


def test_plain_completions_are_shared_out_evenly() -> None:
    probes = [Probe(str(i), "?") for i in range(7)]
    for budget in range(50):
        found = shared(probes, budget, key=3)
        assert sum(found.values()) == budget
        assert max(found.values()) - min(found.values()) <= 1
    lucky = [sum(shared(probes, 1, key=key)[probe.id] for key in range(140)) for probe in probes]
    assert min(lucky) > 5


def test_right_plain_ones_are_kept_first_and_none_twice() -> None:
    found = Gathered(attempts=[*tries(1, 3, 1), *tries(1, 2, 0), *tries(2, 0, 2)])
    assert [one.text for one in kept(found, ResampleSettings(), keep=2)] == ["1 right 0", "1 right 1"]
    assert len(kept(found, ResampleSettings(), keep=9)) == 3


def test_levels_without_difficulties_are_pass_rates() -> None:
    attempts = [one for n, right in enumerate((8, 6, 4, 2, 0)) for one in tries(n, right, 8 - right)]
    assert made_levels(attempts, 0.5) == {"p0": 1, "p1": 2, "p2": 3, "p3": 4, "p4": 5}


def test_the_tail_is_what_a_table_of_math_levels_says() -> None:
    sft, own = [75, 179, 212, 224, 307], [228, 321, 231, 139, 79]  # per mille; arXiv:2411.00750, difficulty panel
    assert representation(own, sft) == pytest.approx((218 / 998) / (531 / 997))
