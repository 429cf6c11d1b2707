"""Confirmations through the whole monitor, with a policy whose diversity is known."""

from dataclasses import replace

import numpy as np
import pytest
from policies import FALL, NOISY, PROBES, RIGHT, UNIQUE, WARN, Policy, noise, plain, started, step

from divmon.alarms import Rule, RuleSet, Silence, restore_rules
from divmon.alarms.evidence import MIN_PAIRS
from divmon.alarms.spending import level
from divmon.confirming import NO_BANK
from divmon.errors import HistoryError
from divmon.health import Health
from divmon.history import History
from divmon.metrics import from_function
from divmon.metrics.base import Metric, PerPrompt
from divmon.monitor import recheck, replay


def test_a_real_fall_is_confirmed_and_acts(tmp_path):
    monitor, policy = started(tmp_path), Policy()
    first = step(monitor, policy, 0)
    assert policy.asked[1][:2] == (32, 32)  # the bank: every watched prompt, 4 K completions
    assert first.verdicts == ()
    assert first.health["confirmations"] == 0
    seen = step(monitor, policy, 10, words=4)
    assert [v.key for v in seen.verdicts] == ["fall/x", "fall/y", "taken/all"]
    assert len({key for _, _, key in policy.asked}) == 5  # the evaluations', the bank's, and one for each confirmation
    assert [action.kind for action in seen.actions] == ["save", "warn", "stop"]  # "taken" warns
    assert {key: state for key, state in seen.states.items() if not key.startswith("warn")} == {
        "fall/x": "firing",
        "fall/y": "firing",
        "taken/all": "firing",
    }
    verdict, event = seen.verdicts[0], seen.events[0]
    assert (verdict.outcome, verdict.attempt, verdict.n, verdict.completions, verdict.exact) == (
        "confirmed",
        1,
        16,
        32,
        True,
    )
    assert verdict.level == pytest.approx(level(0.05 / 4, 1))
    assert verdict.p == 2**-16 <= verdict.level
    assert 0.5 < verdict.low < verdict.estimate < verdict.high < 1
    assert event.evidence == "confirm"
    assert event.message.startswith("unique_fraction in x fell")
    assert event.message.endswith("confirmed (p = 2e-05).")
    assert seen.health["confirmations"] == 3
    assert seen.health["confirm_seconds"] > 0
    told = event.details
    assert told["promise"] == (
        "At most 5 % of runs would confirm any alarm at any evaluation, had training changed nothing (with many "
        "prompts: nothing by more than 10 %)."
    )
    assert told["convergence"] == "unknown: add narrowing_share to metrics="
    assert told["notes"] == ["No encoder looked: this is the surface of the texts, not their meaning."]
    assert told["recommended"].startswith("Read the examples.")
    assert told["spent"] + told["left"] == pytest.approx(0.05)
    assert [len(example["baseline"]) for example in told["examples"]] == [2, 2, 2]
    assert all(example["id"] in {p.id for p in PROBES[::2]} for example in told["examples"])
    pooled = next(e for e in seen.events if e.alarm == "taken").details
    assert pooled["scope"] == "pooled"
    assert "with many prompts" not in pooled["promise"]
    assert [e.alarm for e in seen.events] == ["fall", "fall", "taken"]  # the critical inhibits the warning
    kept = sorted(path.name for path in (tmp_path / "confirmations").iterdir())
    assert [name.split("-")[0] for name in kept] == ["00000010"] * 3 + ["bank.jsonl", "spent.jsonl"]


def test_replay_and_recheck_agree_with_what_was_raised(tmp_path):
    monitor, policy, live = started(tmp_path), Policy(), []
    for i, words in enumerate([40, 40, 4, 4, 40, 40, 40, 40, 30, 4]):
        live += step(monitor, policy, i, words=words).events
    history = History.read(tmp_path)
    assert plain(history.events()) == plain(live)
    assert plain(replay(history, restore_rules(history.info["rules"]))) == plain(live)
    assert {e.state for e in live if e.alarm == "fall"} == {"firing", "resolved"}
    pairs = recheck(history, metrics=monitor.metrics)
    assert len(pairs) == sum(len(e.verdicts) for e in history.evaluations) >= 4
    for recorded, now in pairs:
        assert plain([recorded]) == plain([now])
    (tmp_path / "confirmations" / f"{pairs[0][0].details['file']}.jsonl").unlink()
    with pytest.raises(HistoryError):
        recheck(History.read(tmp_path), metrics=monitor.metrics)


def test_new_rules_on_an_old_run_are_screened_unconfirmed(tmp_path):
    monitor, policy = started(tmp_path), Policy()
    for i, words in enumerate([40, 4, 4]):
        step(monitor, policy, i, words=words)
    new = Rule("fall", metric="unique_fraction", rule="drop", by="20%", tolerate="5%", severity="critical")
    [event, _] = replay(History.read(tmp_path), [new])
    assert event.state == "pending"
    assert event.message.endswith("(unconfirmed); screened, unconfirmed: nothing was drawn to confirm it.")
    assert event.details == {}
    same = replace(FALL, name="fall", clear_for=9)  # asks the same question
    assert [e.state for e in replay(History.read(tmp_path), [same])] == ["firing", "firing"]


def test_noise_is_not_confirmed_and_the_cell_waits_longer_each_time(tmp_path):
    monitor = started(tmp_path, RuleSet((NOISY,), confirmations=3))
    seen = noise(monitor, Policy(), range(34))
    asked = [i for i, observation in enumerate(seen) if observation.verdicts]
    assert asked == [1, 4, 10, 22]
    verdicts = [observation.verdicts[0] for observation in seen if observation.verdicts]
    assert [v.outcome for v in verdicts] == ["refuted"] * 3 + ["unknown"]
    assert [v.attempt for v in verdicts] == [1, 2, 3, 0]
    assert [v.level for v in verdicts[:3]] == [pytest.approx(level(0.05, j)) for j in (1, 2, 3)]
    assert verdicts[3].reason == "out of confirmations: all 3 of this run are spent"
    assert [seen[i].states["noisy/x"] for i in (1, 2, 21, 22, 23)] == ["pending"] * 3 + ["unknown"] * 2
    first = seen[1].events[0]
    assert first.state == "pending"
    assert f"screened at step 1, not confirmed: p = {verdicts[0].p:.2g} > 0.03" in first.message
    assert "it asks again after" in monitor.alarms.cells["noisy/x"].reason
    assert not any(observation.actions for observation in seen)
    assert seen[22].events[0].state == "unknown"
    assert "unknown: out of confirmations" in seen[22].events[0].message
    assert plain(replay(History.read(tmp_path), [NOISY])) == plain(e for s in seen for e in s.events)


def test_without_somebody_who_draws_it_stays_unconfirmed():
    monitor, policy = started(None), Policy()
    monitor.observe(policy.batch(0))
    policy.words = 4
    seen = monitor.observe(policy.batch(1))
    assert seen.verdicts == ()
    assert seen.states["fall/x"] == "pending"
    assert monitor.alarms.cells["fall/x"].reason.startswith("screened, unconfirmed")
    assert len(policy.asked) == 2
    late = monitor.observe(policy.batch(2), draw=policy.draw)
    assert {v.reason for v in late.verdicts} == {NO_BANK}
    assert {v.attempt for v in late.verdicts} == {0}
    assert late.states["fall/x"] == "unknown"


def test_a_sampler_that_fails_has_spent_its_confirmation(tmp_path):
    monitor, policy = started(tmp_path), Policy()
    step(monitor, policy, 0)
    policy.words, batch = 4, Policy(4).batch(1)
    policy.fails = True
    seen = monitor.observe(batch, draw=policy.draw)
    assert {v.outcome for v in seen.verdicts} == {"unknown"}
    assert seen.verdicts[0].reason == "the fresh completions could not be drawn (RuntimeError: out of memory)"
    assert [v.attempt for v in seen.verdicts] == [1, 1, 1]
    assert seen.health["sampler_failures"] == 3
    assert seen.states["fall/x"] == "unknown"
    assert not seen.actions
    policy.fails = False
    again = [monitor.observe(replace(batch, step=i), draw=policy.draw) for i in (2, 3, 4)]
    assert [bool(observation.verdicts) for observation in again] == [False, False, True]
    assert [v.attempt for v in again[2].verdicts] == [2, 2, 2]
    assert again[2].states["fall/x"] == "firing"
    history = History.read(tmp_path)
    live = [e for s in [seen, *again] for e in s.events]
    assert plain(replay(history, restore_rules(history.info["rules"]))) == plain(live)


def test_a_bank_that_could_not_be_drawn_is_missing_for_good():
    monitor, policy = started(None), Policy()
    batch, policy.fails = policy.batch(0), True
    assert monitor.observe(batch, draw=policy.draw).health["sampler_failures"] == 1
    policy.fails = False
    seen = step(monitor, policy, 1, words=4)
    assert {v.reason for v in seen.verdicts} == {NO_BANK}


def test_a_test_that_fails_is_counted_and_unknown(tmp_path):
    def moody(texts):
        if len(texts) > 8 and "w1" in texts and moody.broken:
            raise ValueError("cannot")
        return float(len(set(texts)))

    moody.broken = False
    rule = Rule("moody", metric="moody", rule="drop", by="20%", severity="critical")
    monitor, policy = started(tmp_path, [rule], [from_function(moody)]), Policy()
    step(monitor, policy, 0)
    monitor.confirming._local["moody"] = True
    moody.broken = True
    seen = step(monitor, policy, 1, words=3)
    assert {v.reason for v in seen.verdicts} == {"the test failed (ValueError: cannot)"}
    assert seen.health["monitor_failures"] == 2
    strict = started(None, [rule], [from_function(moody)], health=Health(strict=True))
    moody.broken = False
    step(strict, policy, 0, words=40)
    strict.confirming._local["moody"] = moody.broken = True
    with pytest.raises(ValueError, match="cannot"):
        step(strict, policy, 1, words=3)


def test_what_cannot_be_confirmed_spends_nothing(tmp_path):
    def among(batch, context):
        """Depends on the other prompts."""
        counts = np.array([len(set(row)) for row in batch.texts], float)
        return PerPrompt(counts - counts.mean() + 50, np.full(len(counts), 8), (None,) * len(counts))

    other = Metric(
        "among",
        lambda b, c: replace(among(b, c), values=among(b, c).values * len(set(b.texts[0]))),
        "",
        "user",
        "neutral",
    )
    rules = [Rule("among", metric="among", domain="x", rule="drop", by="20%", severity="critical")]
    monitor, policy = started(tmp_path, rules, [other]), Policy()
    step(monitor, policy, 0)
    [verdict] = step(monitor, policy, 1, words=2).verdicts
    assert verdict.reason == "among of a prompt depends on the others, so it cannot be swapped; use evidence: screen"
    few = started(None, [replace(FALL, evidence="confirm")])
    step(few, policy, 0, words=40, probes=PROBES[:22])
    seen = step(few, policy, 1, words=2, probes=PROBES[:22])
    assert {v.reason for v in seen.verdicts} == {f"only 11 prompts; a confirmation needs at least {MIN_PAIRS}"}
    small = started(None, RuleSet((FALL,), alpha=1e-4))
    step(small, policy, 0, words=40, probes=PROBES[:24])
    seen = step(small, policy, 1, words=2, probes=PROBES[:24])
    assert {v.reason for v in seen.verdicts} == {
        "too few informative prompts: with 12 the smallest possible p is 0.000244, above 3.04e-05"
    }
    for tried in (monitor, few, small):
        assert tried.confirming.journal.entries == []


def test_a_silence_says_nothing_and_spends_nothing(tmp_path):
    rules = RuleSet((FALL, WARN), silences=(Silence("fall", until=3, domain="x"),))
    monitor, policy = started(tmp_path, rules), Policy()
    seen = [step(monitor, policy, i, words=words) for i, words in enumerate([40, 4, 4, 4])]
    assert [v.key for s in seen for v in s.verdicts] == ["fall/y", "fall/x"]
    assert [(e.step, e.alarm, e.domain, e.state) for s in seen for e in s.events] == [
        (1, "fall", "y", "firing"),
        (1, "warn", "x", "pending"),
        (2, "warn", "x", "firing"),  # the silenced critical inhibits nothing
        (3, "fall", "x", "firing"),
    ]
    history = History.read(tmp_path)
    assert plain(replay(history, restore_rules(history.info["rules"]))) == plain(e for s in seen for e in s.events)


def test_what_was_silenced_is_told_when_the_silence_ends():
    monitor, policy = started(None, RuleSet((replace(WARN, for_=1),), silences=(Silence("warn", until=2),))), Policy()
    seen = [step(monitor, policy, i, words=words) for i, words in enumerate([40, 4, 4])]
    assert [len(s.events) for s in seen] == [0, 0, 2]
    assert seen[2].events[0].message.endswith("This was held back from step 1 by a silence.")


def test_the_verdict_on_quality_is_in_the_alert():
    monitor, policy = started(None, [FALL], [UNIQUE, RIGHT]), Policy()
    step(monitor, policy, 0)
    told = step(monitor, policy, 1, words=4).events[0].details
    assert told["convergence"] == "unknown: add narrowing_share to metrics="
    share = from_function(lambda texts: 0.9, name="narrowing_share")
    monitor, policy = started(None, [FALL], [UNIQUE, share]), Policy()
    step(monitor, policy, 0)
    assert step(monitor, policy, 1, words=4).events[0].details["convergence"] == "narrowing among good outputs"


def test_a_warning_carries_what_the_fold_knows():
    monitor, policy = started(None, [replace(WARN, for_=1)]), Policy()
    step(monitor, policy, 0)
    told = step(monitor, policy, 1, words=4).events[0].details
    assert told["promise"] == "None: a screen against one noisy baseline, at every evaluation."
    assert told["notes"] == ["No encoder looked: this is the surface of the texts, not their meaning."]
    assert told["prompts"] == 16
    assert "p" not in told
    assert "examples" not in told
