"""Alpha and the numbers of confirmations are spent on disk first and never come back."""

import json
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divmon.alarms import Rule, RuleSet, Silence, dump_rules, load_ruleset, restore_rules
from divmon.alarms.spending import Journal, cell_shares, level, next_wait
from divmon.errors import ConfigError, HistoryError
from divmon.plain import to_json


def rule(name, **more):
    return Rule(name, metric="m", rule="drop", by="20%", **{"evidence": "confirm", **more})


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9), st.floats(0.001, 0.5))
def test_the_shares_of_all_cells_and_all_attempts_make_alpha(weights, alpha):
    rules = [rule(f"r{i}", weight=w, domain="x" if i % 2 else None) for i, w in enumerate(weights)]
    shares = cell_shares(rules, ["x", "y"], alpha)
    assert math.fsum(shares.values()) == pytest.approx(alpha)
    spent = sum(level(1.0, j) for j in range(1, 20_000))
    assert 0.9999 < spent < 1


def test_warnings_spend_nothing():
    assert cell_shares([rule("a"), rule("b", evidence="screen")], ["x"], 0.05) == {"a/x": 0.05}
    assert cell_shares([], ["x"]) == {}


def test_the_wait_doubles():
    waits = [0]
    for _ in range(4):
        waits.append(next_wait(waits[-1]))
    assert waits == [0, 3, 6, 12, 24]


def test_the_journal_is_read_back_and_goes_on(tmp_path):
    path = tmp_path / "confirmations" / "spent.jsonl"
    first = Journal(path)
    assert [first.spend("a/x", step=s, share=0.04).attempt for s in (4, 8)] == [1, 2]
    assert first.spend("b/x", step=8, share=0.01).attempt == 1
    again = Journal(path)
    assert again.entries == first.entries
    assert again.spend("a/x", step=12, share=0.04).attempt == 3
    assert again.spent == pytest.approx(sum(level(0.04, j) for j in (1, 2, 3)) + level(0.01, 1))


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_line_is_not_spent_and_does_not_spoil_the_next(tmp_path, cut):
    path = tmp_path / "spent.jsonl"
    Journal(path).spend("a/x", step=4, share=0.04)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: min(cut, len(whole) - 1)])
    torn = Journal(path)
    assert torn.attempts("a/x") == 1
    assert torn.spend("a/x", step=5, share=0.04).attempt == 2
    assert [entry.attempt for entry in Journal(path).entries] == [1, 2]


def test_a_damaged_journal_is_an_error_not_a_refill(tmp_path):
    path = tmp_path / "spent.jsonl"
    Journal(path).spend("a/x", step=4, share=0.04)
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(HistoryError, match="is damaged"):
        Journal(path)


def test_it_is_on_disk_before_spend_returns(tmp_path):
    path = tmp_path / "spent.jsonl"
    code = (
        "import os, sys; from pathlib import Path; from divmon.alarms.spending import Journal\n"
        "Journal(Path(sys.argv[1])).spend('a/x', step=1, share=0.05); os._exit(9)"
    )
    for attempts in (1, 2):
        assert subprocess.run([sys.executable, "-c", code, str(path)], env={**os.environ}, check=False).returncode == 9
        assert Journal(path).attempts("a/x") == attempts


def test_a_disk_that_refuses_spends_nothing(tmp_path):
    (tmp_path / "spent.jsonl").mkdir()
    journal = Journal(None)
    journal.path = tmp_path / "spent.jsonl"
    with pytest.raises(OSError):
        journal.spend("a/x", step=1, share=0.05)
    assert journal.attempts("a/x") == 0


FILE = """\
alpha: 0.01
confirmations: 3
alarms:
  - {name: a, metric: m, rule: drop, by: 20%, severity: critical, weight: 2}
  - {name: b, metric: m, rule: rise, by: 20%}
silences:
  - alarm: a
    domain: x
    until: 200
"""


def test_a_rule_file_says_what_its_rules_share():
    found = load_ruleset(FILE)
    assert (found.alpha, found.confirmations, found.silences) == (0.01, 3, (Silence("a", until=200, domain="x"),))
    a, b = found
    assert (a.evidence, a.weight, a.tolerate, b.evidence, b.tolerate) == ("confirm", 2.0, (0.1, True), "screen", None)
    assert found.confirms
    kept = json.loads(json.dumps(to_json({"rules": dump_rules(found), "alarms": found.shared})))
    assert RuleSet.restore(restore_rules(kept["rules"]), kept["alarms"]) == found
    assert RuleSet.restore(restore_rules(kept["rules"]), None).alpha == 0.05


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("alpha: 0.01", "alpha: 5%", "line 1: `alpha` must be a number"),
        ("alpha: 0.01", "alpha: 5", "line 1: `alpha` is a probability"),
        ("alpha: 0.01", "alhpa: 0.01", "line 1: Unknown key 'alhpa'. Did you mean 'alpha'?"),
        ("confirmations: 3", "confirmations: many", "line 2: `confirmations` is a whole number from 0, not 'many'"),
        ("  - alarm: a", "  - alarm: c", "line 7: Unknown alarm 'c'"),
        ("    until: 200", "    untli: 200", "line 9: Unknown key 'untli'. Did you mean 'until'?"),
        ("    until: 200", "    until: never", "line 9: `until` is the step at which a silence ends, not 'never'"),
        ("\n    until: 200", "", "line 7: A silence needs `until`, for example `until: 200`. A silence without an end"),
        ("silences:\n  - alarm: a", "silences:\n    alarm: a", "line 6: `silences` is a list"),
    ],
)
def test_errors_name_their_line(old, new, message):
    with pytest.raises(ConfigError) as caught:
        load_ruleset(FILE.replace(old, new, 1))
    assert message in str(caught.value)
