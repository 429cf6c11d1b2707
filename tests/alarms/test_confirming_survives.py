"""What confirmations have spent survives: replay, resuming, branches that were given up, kills at any point."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import FALL, NOISY, WARN, Policy, noise, plain, started, step

from divmon.alarms import RuleSet, Silence, restore_rules
from divmon.alarms.spending import Journal, level
from divmon.confirming import NO_BANK
from divmon.history import History
from divmon.monitor import recheck, replay

series = st.lists(st.sampled_from([40, 40, 30, 12, 4]), min_size=1, max_size=9)


@given(series, st.sets(st.integers(1, 8)), st.integers(0, 8), st.sampled_from([1, 3, 8]))
@settings(deadline=None, max_examples=25)
def test_live_equals_replay_and_a_resumed_run_the_uninterrupted_one(tmp_path_factory, words, failing, cut, cap):
    path, cut = tmp_path_factory.mktemp("runs"), min(cut, len(words))
    rules = RuleSet((FALL, NOISY, WARN), confirmations=cap, silences=(Silence("fall", until=2, domain="y"),))

    def run(monitor, numbers):
        seen = []
        for i in numbers:
            policy = Policy(words[i], seed=i)
            batch = policy.batch(i)
            policy.fails = i in failing
            seen.append(monitor.observe(batch, draw=policy.draw))
        return seen

    live = run(started(path / "whole", rules), range(len(words)))
    whole = History.read(path / "whole")
    assert plain(whole.events()) == plain(e for s in live for e in s.events)
    again = RuleSet.restore(restore_rules(whole.info["rules"]), whole.info["alarms"])
    assert again == rules
    assert plain(replay(whole, again)) == plain(whole.events())
    assert plain(replay(whole, again.rules)) == plain(whole.events())

    run(started(path / "part", rules), range(cut))
    resumed = started(None, rules)
    resumed.resume(History.read(path / "part"))
    rest = run(resumed, range(cut, len(words)))
    for one, two in zip(rest, live[cut:], strict=True):
        assert plain(one.verdicts) == plain(two.verdicts)
        assert plain(one.events) == plain(two.events)
        assert one.states == two.states
        assert one.actions == two.actions
    assert Journal(path / "part" / "confirmations" / "spent.jsonl").spent <= 0.05


def test_a_branch_that_was_given_up_has_spent_what_it_spent(tmp_path):
    monitor, policy = started(tmp_path, [NOISY]), Policy()
    noise(monitor, policy, range(6))
    assert monitor.confirming.journal.attempts("noisy/x") == 2
    history = History.read(tmp_path)
    history.rewind(0)
    resumed = started(None, [NOISY])
    resumed.resume(history)
    seen = noise(resumed, policy, range(1, 3))
    assert [v.attempt for s in seen for v in s.verdicts] == [3]
    assert seen[0].verdicts[0].spent == pytest.approx(sum(level(0.05, j) for j in (1, 2, 3)))
    assert len({key for _, _, key in policy.asked}) == 1 + 1 + 3  # no key is ever used twice
    assert len(recheck(History.read(tmp_path), metrics=monitor.metrics)) == 3


def test_without_its_bank_a_resumed_run_confirms_nothing(tmp_path):
    monitor, policy = started(tmp_path), Policy()
    step(monitor, policy, 0)
    (tmp_path / "confirmations" / "bank.jsonl").unlink()
    resumed = started(None)
    resumed.resume(History.read(tmp_path))
    seen = step(resumed, policy, 1, words=4)
    assert {v.reason for v in seen.verdicts} == {NO_BANK}
    assert resumed.confirming.journal.entries == []


def test_another_name_does_not_refill_alpha(tmp_path):
    monitor, policy = started(tmp_path, [NOISY]), Policy()
    noise(monitor, policy, range(2))
    for entry in range(12):
        resumed = started(None, RuleSet((replace(NOISY, name=f"other{entry}"),), confirmations=99))
        resumed.resume(History.read(tmp_path))
        noise(resumed, policy, [2 + entry])
    journal = Journal(tmp_path / "confirmations" / "spent.jsonl")
    assert journal.spent <= 0.05
    assert len(journal.entries) == 1  # a first confirmation costs more than what is left
    assert "out of alpha" in [v.reason for e in History.read(tmp_path).evaluations for v in e.verdicts][-1]


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import policies
policies.killed(Path(sys.argv[2]), sys.argv[3])
"""


@pytest.mark.parametrize(("where", "spent"), [("before", 1), ("after", 4), ("draw", 4), ("record", 4)])
def test_a_confirmation_that_is_killed_is_neither_lost_nor_spent_twice(tmp_path, where, spent):
    """Three deaths at the same evaluation, then one that goes well."""
    path = tmp_path / "run"
    for ending in (where, where, where, "nowhere"):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(path), ending], check=False
        )
        assert done.returncode == (0 if ending == "nowhere" else 9)
    entries = Journal(path / "confirmations" / "spent.jsonl").entries
    assert [entry.attempt for entry in entries] == list(range(1, spent + 1))
    history = History.read(path)
    [verdict] = history.evaluations[-1].verdicts
    assert verdict.attempt == spent
    assert verdict.level == pytest.approx(level(0.05, spent))
    assert plain(replay(history, [NOISY])) == plain(history.events())
    assert not math.isnan(verdict.p)
