"""Scores in real runs: undisturbed, on schedule, replayed, resumed; alarms on them; a budget; what fails is counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import divmon
from divmon.alarms import restore_rules
from divmon.doctor.runs import decisions, examine_run
from divmon.errors import ConfigError
from divmon.monitor import replay
from divmon.plain import to_json
from divmon.samplers.score import Scorer

pytestmark = pytest.mark.trainer
BASE: dict[str, Any] = {"k": 3, "max_new_tokens": 8, "sinks": [], "strict": True}
# loose: the first score breaks it
BROKEN = {"name": "moved-at-all", "metric": "retained_mass", "rule": "drop", "by": 1e-6, "for": 1, "then": ["save"]}
SCHEDULED = {**BASE, "score_every": 2, "every": 5, "moved": 0.05, "alarms": [BROKEN]}


def run(make: Any, out: Path, settings: dict[str, Any] | None, *, resume: bool = False, **more: Any) -> Any:
    callbacks = [] if settings is None else [divmon.DiversityCallback(**settings)]
    trainer = make(out, callbacks=callbacks, **more)
    trainer.train(resume_from_checkpoint=str(out / "checkpoint-4") if resume else None)
    return trainer


def steps(history: divmon.History) -> list[int]:
    return [evaluation.step for evaluation in history.evaluations]


def text(records: Any) -> str:
    return json.dumps(to_json(records))


@pytest.fixture(scope="module")
def runs(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By trainer: a run without divmon, and one with scores, samplings and (GRPO) rollouts."""
    found = {}
    for name in ("sft", "grpo"):
        out = tmp_path_factory.mktemp(name)
        more = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
        found[name] = (
            run(tiny.TRAINERS[name], out / "plain", None, **more),
            run(tiny.TRAINERS[name], out / "watched", SCHEDULED, **more),
            divmon.History.read(out / "watched"),
        )
    return found


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_a_run_that_is_scored_sampled_and_tapped_is_bitwise_undisturbed(tiny: Any, runs: Any, name: str) -> None:
    plain, watched, history = runs[name]
    assert tiny.digest(watched.model) == tiny.digest(plain.model)
    assert tiny.rows(watched) == tiny.rows(plain)
    assert steps(history.scores()) == [0, 2, 4, 6, 8]
    if name == "grpo":
        assert len(history.rollouts().evaluations) == 8


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_scores_are_a_series_of_their_own_and_begin_at_exactly_nothing_lost(runs: Any, name: str) -> None:
    _, _, history = runs[name]
    scores = history.scores()
    first = {m.metric: m.value for m in scores.evaluations[0].measurements}
    assert first["retained_mass"] == first["retained_tail"] == first["bank_ess"] == 1.0
    assert first["kl_per_token"] == 0.0
    assert not {m.metric for e in history.evaluations for m in e.measurements} & set(first)
    signatures = {m.signature for e in scores.evaluations for m in e.measurements if m.metric == "retained_mass"}
    assert len(signatures) == 1
    assert "|score|" in signatures.pop()
    crossed = [e.step for e in scores.evaluations if any(m.metric == "retrieval_accuracy" for m in e.measurements)]
    assert crossed == [0]  # the baseline, and then every fifth score
    last = {m.metric: m.value for m in scores.evaluations[-1].measurements}
    assert 0 < last["retained_mass"] < 1
    assert last["kl_per_token"] > 0


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_an_alarm_on_scores_fires_asks_for_a_sampling_and_replays(runs: Any, name: str) -> None:
    _, watched, history = runs[name]
    scores = history.scores()
    fired = scores.fired()
    assert [(e.step, e.alarm, e.actions) for e in fired] == [(2, "moved-at-all", ("save",))]
    assert (Path(watched.args.output_dir) / "checkpoint-2").is_dir()
    rules = restore_rules(scores.info["rules"])
    assert text(list(scores.events())) == text(replay(scores, rules))
    first = next(row for row in decisions(history.path) if row["sample"])
    assert (first["step"], first["sample"]) == (2, "alarm")
    assert 2 in steps(history)


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_a_sampling_comes_when_the_policy_has_moved_and_at_the_latest_after_the_gap(runs: Any, name: str) -> None:
    _, _, history = runs[name]
    scores = history.scores()
    drift = {e.step: next(m.value for m in e.measurements if m.metric == "kl_per_token") for e in scores.evaluations}
    why = {row["step"]: row["sample"] for row in decisions(history.path) if row["sample"]}
    sampled = steps(history)
    assert list(why) == sampled[1:]
    at, last = 0.0, 0
    for step in range(1, 9):
        now = drift[step - step % 2]
        moved = step % 2 == 0 and abs(now - at) >= 0.05
        reasons = {"moved": moved, "gap": step - last == 5, "alarm": step == 2, "end": step == 8}
        if step not in sampled:
            assert not moved
            assert step - last < 5
            continue
        assert reasons.get(why[step], why[step] == "stale"), (step, why[step])
        at, last = now, step


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(tiny: Any, runs: Any, name: str, tmp_path: Path) -> None:
    more = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    make = tiny.TRAINERS[name]

    class Killed(Exception):
        pass

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 6:
                raise Killed

    trainer = make(tmp_path, callbacks=[divmon.DiversityCallback(**SCHEDULED), Kill()], **more)
    with pytest.raises(Killed):
        trainer.train()
    run(make, tmp_path, SCHEDULED, resume=True, **more)
    whole, resumed = runs[name][2], divmon.History.read(tmp_path)
    assert steps(resumed) == steps(whole)
    assert steps(resumed.scores()) == steps(whole.scores())
    for part in ("measurements", "events"):
        for mine, other in ((resumed, whole), (resumed.scores(), whole.scores())):
            assert text([getattr(e, part) for e in mine.evaluations]) == text(
                [getattr(e, part) for e in other.evaluations]
            )


def test_a_scorer_that_fails_is_counted_and_training_goes_on(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Scorer.__call__

    def sometimes(self: Any, bank: Any, *, step: int) -> Any:
        if step == 4:
            raise RuntimeError("out of luck")
        return score(self, bank, step=step)

    monkeypatch.setattr(Scorer, "__call__", sometimes)
    trainer = run(tiny.sft, tmp_path, {**SCHEDULED, "strict": False})
    assert trainer.state.global_step == 6
    scores = divmon.History.read(tmp_path).scores()
    assert steps(scores) == [0, 2, 4, 6]
    missed = scores.evaluations[2].measurements
    assert all(math.isnan(m.value) and "scorer_failures" in (m.reason or "") for m in missed)
    assert {m.metric for m in missed} == {m.metric for m in scores.evaluations[1].measurements} >= {"kl_per_token"}
    found = examine_run(tmp_path)
    assert found.failures == {"scorer": 1}
    assert not found.well


def test_a_bank_that_is_lost_stops_the_scores_and_nothing_else(tiny: Any, tmp_path: Path) -> None:
    more = {"save_strategy": "steps", "save_steps": 4}
    run(tiny.sft, tmp_path, {**SCHEDULED, "strict": False}, **more)
    (tmp_path / "divmon" / "bank.npz").unlink()
    trainer = run(tiny.sft, tmp_path, {**SCHEDULED, "strict": False}, resume=True, **more)
    assert trainer.state.global_step == 6
    history = divmon.History.read(tmp_path)
    assert steps(history.scores()) == [0, 2, 4]
    assert steps(history)[-1] == 6
    rows = decisions(history.path)  # no score was decided that nobody could take
    assert [row["step"] for row in rows if row["score"]] == [2, 4]
    assert [row["step"] for row in rows if row["sample"]] == steps(history)[1:]


def test_a_checkpoint_knows_the_sampling_of_the_evaluation_before_it(tiny: Any, tmp_path: Path) -> None:
    settings = {**BASE, "score_every": 2, "every": 50, "alarms": [], "moved": 9.0}
    saving = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    trainer = run(tiny.sft, tmp_path, settings, max_steps=4, **saving)
    saved = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text("utf-8"))
    kept = saved["stateful_callbacks"]["divmon"]["schedule"]
    assert 3 in steps(divmon.History.read(tmp_path))
    assert kept["progress"]["sampled"] == 3
    assert kept["progress"]["samplings"] > 0
    assert trainer.state.global_step == 4


def test_alarms_on_scores_are_judged_afresh_where_training_went_back(tiny: Any, tmp_path: Path) -> None:
    def told(texts: list[str]) -> float:
        return float(clock[0] in (4, 5))

    clock = [0]

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock[0] = int(state.global_step)

    back = {"name": "told", "metric": "told", "rule": "above", "level": 0.5, "for": 1, "then": ["rollback"]}
    seen: list[Any] = []
    settings = {**BASE, "score_every": 1, "every": 2, "moved": 9.0, "metrics": [told], "sinks": [seen.append]}
    callbacks = [Clock(), divmon.DiversityCallback(**settings, alarms=[{**BROKEN, "then": []}, back])]
    tiny.sft(tmp_path, callbacks=callbacks, max_steps=7).train()
    history = divmon.History.read(tmp_path)
    [event] = [change for change in history.mitigations if change.phase == "applied"]
    scores = history.scores()
    marked = [(e.step, e.restored is not None) for e in scores.evaluations if e.restored is not None]
    assert marked == [(event.step + 1, True)]
    fired = [(e.step, e.state) for e in scores.events() if e.alarm == "moved-at-all"]
    assert fired[0] == (1, "firing")
    assert (event.step + 1, "firing") in fired  # told again
    assert text(list(scores.events())) == text(replay(scores, restore_rules(scores.info["rules"])))
    assert scores.evaluations[-1].health["budget_used"] > 0


def test_a_budget_gives_a_score_in_every_tenth_and_what_it_can_pay(tiny: Any, tmp_path: Path, capsys: Any) -> None:
    settings = {**BASE, "budget": "10%", "sinks": ["console"], "alarms": []}
    run(tiny.sft, tmp_path, settings, max_steps=40)
    history = divmon.History.read(tmp_path)
    scored = steps(history.scores())
    assert all(any(4 * i < step <= 4 * (i + 1) for step in scored) for i in range(10))
    found = examine_run(tmp_path)
    assert found.budget == 0.1
    assert sum(found.why.values()) == found.scores - 1 + found.samplings - 1
    assert found.scores == len(scored)
    assert 0 < found.used < 1
    assert found.baseline > 0
    # so small a model cannot pay even for that, and the run says so
    printed = capsys.readouterr().out
    assert "budget 10 % of process time" in printed
    assert "Measured: a step takes" in printed
    assert "budget" in found.planned
    settings = {**BASE, "budget": 0.9, "alarms": []}
    run(tiny.sft, tmp_path / "rich", settings, max_steps=40)
    rich = examine_run(tmp_path / "rich")
    assert rich.scores > found.scores
    assert rich.samplings > 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"moved": 0.1}, "moved= is judged by scores"),
        ({"budget": 2}, "did you mean '2%'"),
        ({"budget": "lots"}, "for example '2%'"),
        ({"score_every": 0}, "score_every must be a whole number"),
        ({"alarms": [BROKEN]}, "set score_every=10 or budget='2%'"),
        ({"score_every": 2, "metrics": ["retained_mass"]}, "is measured by scores"),
        ({"score_every": 2, "alarms": [{**BROKEN, "severity": "critical"}]}, "`evidence: screen`"),
        ({"score_every": 2, "alarms": [{**BROKEN, "then": ["gate"]}]}, "needs an alarm on fresh completions"),
        ({"score_every": 2, "moved": 0}, "moved must be above 0"),
        ({"budget": "2%", "top_p": 0.9}, "Scores need completions drawn with top_p=1"),
    ],
)
def test_what_cannot_work_is_said_at_construction(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        divmon.DiversityCallback(**settings)
