"""The pure part of levers: settings, state machine, formulas."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.feature_extraction.text import TfidfVectorizer

from divmon.alarms import Alarms, Rule, dump_rules, load_rules, restore_rules
from divmon.config import plan
from divmon.errors import ConfigError
from divmon.history import Evaluation, History
from divmon.mitigations import LeverBook, decide, lever_settings
from divmon.mitigations.diversity import clusters, components, factors, shaped
from divmon.mitigations.entropy import EntropyBand
from divmon.mitigations.gate import gate_weights, marginal_value
from divmon.mitigations.settings import SETTINGS, EntropyBandSettings, GateSettings, LeverSettings
from divmon.records import LEVERS, Action, AlarmEvent, LeverEvent, Measurement, Observation
from divmon.settings import Settings
from divmon.sinks.base import curves

FIRING, CALM = {"narrow/poems": "firing"}, {"narrow/poems": "inactive"}
ASK = (Action("gate", "narrow", "vendi fell."),)


def book(**settings: Any) -> LeverBook:
    return LeverBook({"gate": GateSettings(**settings)})


def phases(kept: LeverBook, rows: list[tuple[int, Any, Any, Any]]) -> list[tuple[int, str, float]]:
    """Every change over (step, actions, states, values)."""
    changes = []
    for step, actions, states, values in rows:
        changes += kept.advance(step, actions=actions, states=states, values=values)
    return [(change.step, change.phase, change.strength) for change in changes]


def test_a_lever_is_applied_cools_and_is_released() -> None:
    kept = book(cooling=20)
    rows = [(0, (), CALM, {}), (10, ASK, FIRING, {}), (20, (), FIRING, {}), (30, (), CALM, {}), (40, (), CALM, {})]
    assert phases(kept, rows) == [(10, "applied", 1.0), (30, "cooling", 1.0)]
    assert kept.levels == {"gate": 2.0}
    assert kept.strengths == {"gate": 1.0}
    assert phases(kept, [(50, (), CALM, {}), (60, (), CALM, {})]) == [(50, "armed", 0.0)]
    assert kept.strengths == {"gate": 0.0}
    assert phases(kept, [(70, ASK, FIRING, {})]) == [(70, "applied", 1.0)]


def test_an_alarm_that_comes_back_while_it_cools_applies_it_again() -> None:
    kept = book()
    rows = [(10, ASK, FIRING, {}), (30, (), CALM, {}), (40, (), FIRING, {}), (100, (), FIRING, {})]
    assert [phase for _, phase, _ in phases(kept, rows)] == ["applied", "cooling", "applied"]


def test_it_answers_to_every_alarm_that_asked_and_to_no_other() -> None:
    kept = book()
    both = (*ASK, Action("gate", "other", "it fell too."))
    kept.advance(10, actions=both, states={"narrow/a": "firing", "other/b": "firing"})
    assert kept.advance(20, states={"narrow/a": "inactive", "other/b": "firing", "third/b": "inactive"}) == ()
    assert kept.advance(30, states={"narrow/a": "inactive", "other/b": "unknown", "third/b": "firing"})[0].phase == (
        "cooling"
    )
    assert kept.levers["gate"].alarms == ("narrow", "other")


@pytest.mark.parametrize("metric", ["token_entropy", "length"])
def test_it_backs_off_when_the_run_overshoots_and_tries_again_at_half_the_strength(metric: str) -> None:
    kept, key = book(cooling=20, overshoot=2.0), f"poems/{metric}"
    rows = [(0, (), CALM, {key: 1.0}), (10, ASK, FIRING, {key: 2.0}), (20, (), FIRING, {key: 2.1})]
    assert phases(kept, rows) == [(10, "applied", 1.0), (20, "cooling", 0.0)]
    assert phases(kept, [(30, (), FIRING, {key: 1.0}), (40, (), FIRING, {key: 1.0})]) == [(40, "applied", 0.5)]
    assert phases(kept, [(50, (), FIRING, {key: 9.0}), (70, (), FIRING, {key: 9.0})]) == [(50, "cooling", 0.0)]
    assert phases(kept, [(80, (), FIRING, {key: 1.0}), (90, (), FIRING, {key: 9.0})]) == [
        (80, "applied", 0.25),
        (90, "cooling", 0.0),
    ]
    assert phases(kept, [(110, (), FIRING, {key: 1.0}), (120, (), FIRING, {key: 1.0})]) == [(110, "armed", 0.0)]


def test_an_overshoot_ends_once_the_alarm_has_resolved() -> None:
    kept = book(cooling=20)
    rows = [
        (0, (), CALM, {"p/length": 1.0}),
        (10, ASK, FIRING, {}),
        (20, (), CALM, {}),
        (30, (), CALM, {"p/length": 9}),
    ]
    assert [phase for _, phase, _ in phases(kept, rows)] == ["applied", "cooling", "cooling"]
    assert kept.strengths == {"gate": 0.0}
    assert phases(kept, [(60, (), CALM, {"p/length": 1.0})]) == [(60, "armed", 0.0)]


def test_a_lever_answers_to_every_alarm_that_asks_in_one_evaluation() -> None:
    asked = {"domain": "poems", "metric": "vendi", "severity": "critical", "value": 1.0, "state": "firing"}
    events = [AlarmEvent(step=9, alarm=name, actions=("stop", "gate", "rollback"), **asked) for name in ("one", "two")]
    actions = decide(events)
    assert [(a.kind, a.alarm) for a in actions] == [
        ("stop", "one"), ("gate", "one"), ("rollback", "one"), ("gate", "two"), ("rollback", "two"),
    ]  # fmt: skip
    kept = book(cooling=0)
    both = {"one/poems": "firing", "two/poems": "firing"}
    assert phases(kept, [(9, actions, both, {}), (10, (), {**both, "one/poems": "inactive"}, {})]) == [
        (9, "applied", 1.0)
    ]
    assert kept.levers["gate"].alarms == ("one", "two")


def test_what_is_missing_changes_nothing() -> None:
    kept = book()
    kept.advance(0, states=CALM, values={"p/length": math.nan})
    assert kept.start == {}
    kept.advance(10, actions=ASK, states=FIRING, values={"p/length": 4.0})
    before = kept.to_json()
    assert kept.advance(20, states={}, values={}) == ()  # nothing was evaluated: nothing has resolved
    assert kept.advance(30, states=FIRING, values={"p/length": math.nan, "p/vendi": 99.0}) == ()
    assert kept.to_json() == before


def test_a_refused_lever_stays_off() -> None:
    kept = book()
    kept.advance(10, actions=ASK, states=FIRING)
    assert kept.refuse("gate", 20, "No effect.").phase == "refused"
    assert kept.advance(30, actions=ASK, states=FIRING) == ()
    assert kept.strengths == {"gate": 0.0}


def test_the_book_survives_json_and_then_does_the_same() -> None:
    rows: list[Any] = [(s, ASK if s == 20 else (), FIRING if 20 <= s < 60 else CALM, {"p/length": 1.0 + (s == 40) * 9})
                       for s in range(0, 200, 10)]  # fmt: skip
    for cut in range(len(rows)):
        whole, first, second = book(), book(), book()
        expected = phases(whole, rows)
        before = phases(first, rows[:cut])
        second.restore(json.loads(json.dumps(first.to_json())))
        assert before + phases(second, rows[cut:]) == expected


def test_levers_a_rule_no_longer_names_are_forgotten() -> None:
    old = book()
    old.advance(10, actions=ASK, states=FIRING)
    new = LeverBook({"entropy_band": EntropyBandSettings()})
    new.restore({**old.to_json(), "later": 1})
    assert new.strengths == {"entropy_band": 0.0}


def test_changes_are_on_disk_and_a_resume_takes_those_after_it_back(tmp_path: Any) -> None:
    history = History.create(tmp_path / "run", probes=())
    changes = [LeverEvent(step, "gate", "applied", 0.5, "narrow", f"é {step}") for step in (2, 4, 6)]
    for change in changes:
        history.append(Evaluation(change.step, ()))
        history.note(change)
    with (tmp_path / "run" / "history.jsonl").open("a") as file:
        file.write('{"something_later": {"step": 9}}\n')
    again = History.read(tmp_path / "run")
    assert again.mitigations == changes
    assert [evaluation.step for evaluation in again.evaluations] == [2, 4, 6]
    again.rewind(4)
    assert again.mitigations == changes[:2]
    assert History.read(tmp_path / "run").mitigations == changes[:2]


def test_trackers_get_a_curve_for_each_lever() -> None:
    observation = Observation(3, (), mitigations={"gate": 2.0})
    assert curves(observation) == {"divmon/mitigation/gate": 2.0}


# --- settings ---------------------------------------------------------------------------------------------------------


def rule(*then: Any, name: str = "narrow") -> dict[str, Any]:
    return {"name": name, "metric": "tfidf_distance", "rule": "drop", "by": "20%", "for": 1, "then": list(then)}


def test_rules_name_levers_with_settings() -> None:
    text = """
    alarms:
    - name: narrow
      metric: vendi
      rule: drop
      by: 20%
      then: [save, {diversity_reward: {weight: 0.3, by: tfidf}}, gate]
    """
    rules = load_rules(text)
    assert rules[0].actions == ("save", "diversity_reward", "gate")
    assert rules[0].settings == {"diversity_reward": {"weight": 0.3, "by": "tfidf"}}
    assert restore_rules(json.loads(json.dumps(dump_rules(rules)))) == rules
    found = lever_settings(rules)
    assert set(found) == {"diversity_reward", "gate"}
    assert found["diversity_reward"] == SETTINGS["diversity_reward"](weight=0.3, by="tfidf")  # type: ignore[call-arg]
    events = Alarms([Rule("n", metric="vendi", rule="below", level=2, for_=1, then=({"gate": {}},))]).observe(
        0, [Measurement(0, "poems", "vendi", 1.0)]
    )
    assert [action.kind for action in decide(events)] == ["gate"]


def test_every_lever_has_settings_and_an_action() -> None:
    assert tuple(SETTINGS) == LEVERS
    assert all(issubclass(kind, LeverSettings) for kind in SETTINGS.values())


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ({"diversity_rewards": {}}, "Did you mean 'diversity_reward'"),
        ({"save": {"now": True}}, "'save' takes no settings"),
        ({"gate": {"k": 8}, "save": {}}, "one with its settings"),
        ({"gate": 8}, "one with its settings"),
        ({"gate": {"kk": 8}}, "alarm 'narrow': gate: Unknown setting 'kk'. Did you mean 'k'?"),
        ({"gate": {"k": 1}}, "`k` must be 2 or more"),
        ({"gate": {"k": 8.5}}, "`k` must be a whole number"),
        ({"diversity_reward": {"weight": 0}}, "`weight` must be above 0"),
        ({"diversity_reward": {"by": "format"}}, "Did you mean 'formats'"),
        ({"diversity_reward": {"correct_only": 1}}, "must be true or false"),
        ({"entropy_band": {"low": 2}}, "`low` must be above 0 and below `high`"),
        ({"entropy_band": {"cooling": -1}}, "`cooling` must be a number of steps"),
        ({"entropy_band": {"overshoot": float("nan")}}, "`overshoot` must be a number"),
    ],
)
def test_what_cannot_work_is_said_at_construction(then: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?").replace(".", r"\.")):
        plan(Settings(alarms=[rule(then)]))


def test_one_lever_has_one_setting() -> None:
    rules = [rule({"gate": {"k": 8}}), rule({"gate": {"k": 4}}, name="other")]
    with pytest.raises(ConfigError, match="'narrow' and 'other' set up gate differently"):
        plan(Settings(alarms=rules))
    assert plan(Settings(alarms=[rule("gate"), rule({"gate": {"k": 16}}, name="other")])).levers == {
        "gate": GateSettings()
    }


# --- formulas ---------------------------------------------------------------------------------------------------------


def test_factors_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    for g, floor in itertools.product((2, 3, 8), (0.0, 0.1, 0.5)):
        groups, counted = rng.integers(0, 3, (20, g)), rng.random((20, g)) < 0.7
        found = factors(groups, counted, floor=floor)
        for p, i in itertools.product(range(20), range(g)):
            f = sum(counted[p, j] and groups[p, j] == groups[p, i] for j in range(g))
            expected = max((g - f) / (g - 1), floor) if counted[p, i] else 1.0
            assert found[p, i] == pytest.approx(expected, abs=1e-12)


def test_a_reward_that_is_not_positive_is_left_alone() -> None:
    rewards = np.array([2.0, 0.0, -1.0, math.nan])
    assert shaped(rewards, np.full(4, 0.5), weight=1.0).tolist()[:3] == [1.0, 0.0, -1.0]
    assert math.isnan(shaped(rewards, np.full(4, 0.5), weight=1.0)[3])
    assert shaped(rewards, np.full(4, 0.5), weight=0.5)[0] == 1.5


def test_clusters() -> None:
    texts = ["- a\n- b\n- c", "Plain words.", "- x\n- y\n- z", "The answer is 4.", "so 4", "none here"]
    by_format = clusters(texts, "formats")
    assert by_format[0] == by_format[2] != by_format[1]
    assert clusters(texts, "formats", classifier=lambda text: ("long" if len(text) > 9 else "short",)).tolist() == [
        0, 0, 0, 0, 1, 1,
    ]  # fmt: skip
    answers = clusters(["The answer is 4.", "so: 4", "I do not know", "neither do I", "#### 5"], "answer")
    assert answers[0] == answers[1]
    assert len(set(answers.tolist())) == 4  # two without an answer are not alike
    assert clusters(["a  b", "a b\n", "A b"], "text").tolist() == [0, 0, 1]
    for by in ("formats", "answer", "text", "tfidf"):
        assert len(clusters(["", "\ud800", "x" * 100_000, "森"], by)) == 4


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.8])
def test_components_are_those_of_scikit_learn_and_a_search(similarity: float) -> None:
    rng = np.random.default_rng(1)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    texts = [" ".join(rng.choice(words, 5)) for _ in range(12)]
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(3, 5)).fit_transform(texts)
    close = (vectors @ vectors.T).toarray() >= similarity
    label = list(range(12))
    for _ in texts:
        for i, j in itertools.product(range(12), range(12)):
            if close[i, j]:
                label[i] = label[j] = min(label[i], label[j])
    found = components(texts, similarity=similarity)
    assert [[found[i] == found[j] for j in range(12)] for i in range(12)] == [
        [label[i] == label[j] for j in range(12)] for i in range(12)
    ]


@pytest.mark.parametrize(("n", "k"), [(8, 16), (4, 8), (16, 2), (8, 64)])
def test_the_gate_is_the_expectation_it_stands_for(n: int, k: int) -> None:
    for m in range(n + 1):
        chance = stats.beta(m + 1, n - m + 1)
        expected, _ = integrate.quad(lambda p, c=chance: k * (1 - p) ** (k - 1) * c.pdf(p), 0, 1, epsabs=1e-12)
        assert marginal_value(m, n, k) == pytest.approx(expected, rel=1e-7)
    weights = gate_weights(n, k=k)
    assert weights[0] == weights[1] == 1.0
    assert (np.diff(weights[1:]) <= 0).all()


def test_the_gate_of_the_source() -> None:
    assert gate_weights(8, k=16, tau=0.01).round(3).tolist() == [1, 1, 0.318, 0.091, 0, 0, 0, 0, 0]


def test_the_band_is_calibrated_on_the_first_steps_and_pulls_both_ways() -> None:
    band = EntropyBand(EntropyBandSettings(calibrate=3, low=0.8, high=1.2, step=0.01, most=0.025))
    assert band.move(0.0) == 0.0  # nothing is known yet
    band.calibrate([1.0, 1.0])
    band.calibrate([1.0, 99.0])
    assert band.target == 1.0
    assert [round(band.move(h), 4) for h in (0.7, 0.7, 0.7, 1.0, 1.3, 1.3, 1.0)] == [
        0.01, 0.02, 0.025, 0.025, 0.0, 0.0, 0.005,
    ]  # fmt: skip
    band.reset()
    assert (band.move(1.0), band.target) == (0.0, 1.0)
