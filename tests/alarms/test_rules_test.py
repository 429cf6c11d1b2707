"""`divmon rules test`: the notation, the states at each point, confirmations, and errors that name the line."""

import json
import math
from pathlib import Path

import pytest

from divmon.alarms import Alarms, load_ruleset
from divmon.alarms.spending import level
from divmon.cli import main
from divmon.errors import ConfigError
from divmon.history import Evaluation, History
from divmon.monitor import replay
from divmon.records import Measurement
from divmon.rulebook.notation import points, states
from divmon.rulebook.testing import run_tests

SUPPORT = Path(__file__).parents[2].parent / "shared" / "oracles" / "tables" / "support.json"
# published pass@256 on Olympiad problems in the course of RL: arXiv:2507.14843
STEPS, COVERAGE = [0, 30, 90, 180, 300], [88.0, 86.7, 86.1, 84.0, 79.7]
OLYMPIAD = "{name: shrinking, metric: pass_at_256, rule: drop, by: 5%, evidence: screen, for: 1}"
GOOD = """\
alarms:
  - {name: narrow, metric: tfidf_distance, rule: drop, by: 20%, for: 2}
  - {name: collapse, metric: tfidf_distance, domain: creative, rule: drop, by: 20%, severity: critical}
every: 10
tests:
  - name: a collapse
    series:
      - {metric: tfidf_distance, domain: creative, values: 0.8x4 0.4x6 _ 0.4}
    confirmations:
      - {alarm: collapse, domain: creative, at: 40, p: 0.2}
      - {alarm: collapse, domain: creative, at: 70, p: 0.001}
    expect:
      - {alarm: narrow, domain: creative, states: inactive x4 pending firing x7}
      - {alarm: collapse, at: {30: inactive, 40: pending, 60: pending, 70: firing}}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.8x4 0.4x6 _ 0.4", [0.8] * 4 + [0.4] * 6 + [math.nan, 0.4]),
        ("1 2 3", [1, 2, 3]),
        ("0.8 x3 _x2", [0.8] * 3 + [math.nan] * 2),
        ("0.8-0.1x4 1+.5x2", [0.8, 0.7, 0.6, 0.5, 1, 1.5]),
        ("-1e-3x2 1e3 -2+1x3", [-1e-3, -1e-3, 1000, -2, -1, 0]),
        ([0.5, None, "1x2"], [0.5, math.nan, 1, 1]),
        (0.25, [0.25]),
    ],
)
def test_the_notation(text, expected):
    assert points(text) == pytest.approx(expected, nan_ok=True, abs=1e-12)


@pytest.mark.parametrize("text", ["0.8y3", "x3", "0.8x0", "1+2", "_+1x3", "0.8x1000000000", True, {"a": 1}, "nan"])
def test_what_is_not_the_notation(text):
    with pytest.raises(ConfigError):
        points(text)


def test_states():
    assert states("inactive x2 pending _ firingx2") == ["inactive", "inactive", "pending", "_", "firing", "firing"]
    with pytest.raises(ConfigError, match=r"'fireing' is no state\. Did you mean 'firing'"):
        states("fireing")


def test_the_example():
    [outcome] = run_tests(GOOD)
    assert (outcome.test, outcome.compared, outcome.mismatches) == ("a collapse", 16, ())


def test_a_wrong_state_is_named_with_its_point():
    wrong = GOOD.replace("inactive x4 pending firing x7", "inactive x4 firing x8").replace("70: firing", "70: pending")
    [outcome] = run_tests(wrong)
    assert [str(mismatch) for mismatch in outcome.mismatches] == [
        "test 'a collapse', alarm 'narrow' in creative, point 5 (step 40): expected firing, got pending",
        "test 'a collapse', alarm 'collapse' in creative, point 8 (step 70): expected pending, got firing",
    ]
    assert [mismatch.line for mismatch in outcome.mismatches] == [13, 14]


def test_the_engine_is_the_one_of_a_run():
    """Every state of a long test equals that of `Alarms` fed by hand."""
    text = "0.8x3 0.6 0.5x2 _ 0.9x4 0.1 0.8-0.05x9"
    alarms, seen = Alarms(load_ruleset(GOOD.split("every")[0])), []
    for i, value in enumerate(points(text)):
        alarms.observe(i, [Measurement(i, "creative", "tfidf_distance", value)])
        seen.append(alarms.states)
    rows = [
        f"      - {{alarm: {name}, domain: creative, states: {' '.join(s[f'{name}/creative'] for s in seen)}}}"
        for name in ("narrow", "collapse")
    ]
    head = GOOD.split("    confirmations")[0].replace("0.8x4 0.4x6 _ 0.4", text)
    [outcome] = run_tests(head + "    expect:\n" + "\n".join(rows))
    assert (outcome.compared, outcome.mismatches) == (2 * len(seen), ())
    assert {s["narrow/creative"] for s in seen} >= {"inactive", "pending", "firing"}


@pytest.mark.parametrize(("factor", "state"), [(0.999, "firing"), (1.001, "pending")])
@pytest.mark.parametrize("attempt", [1, 2])
def test_a_confirmation_is_held_against_the_level_of_its_cell(factor, state, attempt):
    p = factor * level(0.05, attempt)
    rows = [f"      - {{alarm: collapse, at: 40, p: {'0.9' if attempt == 2 else repr(p)}}}"]
    rows += [f"      - {{alarm: collapse, at: 70, p: {p!r}}}"] if attempt == 2 else []
    step = 70 if attempt == 2 else 40
    head, _, _ = GOOD.partition("      - {alarm: collapse, domain")
    text = head + "\n".join(rows) + f"\n    expect: [{{alarm: collapse, at: {{{step}: {state}}}}}]"
    assert run_tests(text)[0].mismatches == ()


def test_a_confirmation_nobody_asks_for_is_a_mismatch():
    text = GOOD.replace("at: 40, p: 0.2", "at: 50, p: 0.2")
    mismatches = run_tests(text)[0].mismatches
    assert "point 8 (step 70): expected firing, got pending" not in [str(m) for m in mismatches]
    text = GOOD.replace("at: 70, p: 0.001", "at: 50, p: 0.001")
    said = [str(mismatch) for mismatch in run_tests(text)[0].mismatches]
    assert said[0].endswith("point 6 (step 50): expected a confirmation, got none asked for")
    assert said[1].endswith("point 8 (step 70): expected firing, got pending")


def test_an_outcome_said_outright():
    text = GOOD.replace("at: 40, p: 0.2", "at: 40, outcome: unknown").replace("40: pending, 60: pending", "40: unknown")
    assert run_tests(text)[0].mismatches == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("expect:", "expects:", "line 12: Unknown key 'expects'. Did you mean 'expect'?"),
        ("values:", "vals:", "line 8: Unknown key 'vals'. Did you mean 'values'?"),
        ("every:", "ever:", "line 4: Unknown key 'ever'. Did you mean 'every'?"),
        ("outcome", "outcome", None),
        ("p: 0.2", "p: 2", "line 10: `p` is a number from 0 to 1"),
        ("at: 40", "at: 45", "line 10: `at` is the step of a point"),
        (
            "{alarm: collapse, domain: creative, at: 40",
            "{alarm: narrow, domain: creative, at: 40",
            "nothing confirms it",
        ),
        ("alarm: narrow,", "alarm: narow,", "line 13: Unknown alarm 'narow'. Did you mean 'narrow'?"),
        ("domain: creative, states", "domain: creativ, states", "line 13: 'narrow' has no cell in 'creativ'"),
        ("firing x7", "firing x6", "line 13: There are 11 states for 12 points."),
        ("pending firing", "pendin firing", "line 13: 'pendin' is no state. Did you mean 'pending'?"),
        ("{30: inactive", "{35: inactive", "line 14: No point is at step 35"),
        ("0.8x4", "0.8+x4", "line 8: '0.8+x4' is no value"),
        ("by: 20%, for: 2", "by: 20%, fro: 2", "line 2, alarm 'narrow': Unknown key 'fro'"),
        ("every: 10", "every: 0", "`every` is a whole number"),
    ],
)
def test_errors_name_the_line(old, new, message, tmp_path):
    path = tmp_path / "rules.test.yaml"
    path.write_text(GOOD.replace(old, new), "utf-8")
    if message is None:
        assert run_tests(path)
        return
    with pytest.raises(ConfigError) as caught:
        run_tests(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_the_command_and_rules_in_a_file_beside_it(tmp_path, capsys):
    rules, tests = GOOD.split("every")
    (tmp_path / "rules.yaml").write_text(rules, "utf-8")
    path = tmp_path / "rules.test.yaml"
    path.write_text(f"rules: rules.yaml\nevery{tests}", "utf-8")
    assert main(["rules", "test", str(path)]) == 0
    assert "test 'a collapse': 16 states as expected" in capsys.readouterr().out
    path.write_text(f"rules: rules.yaml\nevery{tests}".replace("70: firing", "70: inactive"), "utf-8")
    assert main(["rules", "test", str(path)]) == 1
    assert capsys.readouterr().out.startswith(
        f"{path}, line 12: test 'a collapse', alarm 'collapse' in creative, point 8"
    )
    path.write_text("rules: defaults\ntests: []", "utf-8")
    assert main(["rules", "test", str(path)]) == 2
    assert "`tests` is a list" in capsys.readouterr().err
    path.write_text(
        "rules: defaults\ntests:\n- series: [{metric: length, values: 100x2 250x2}]\n"
        "  expect: [{alarm: length-explosion, states: inactive x2 pending firing}]",
        "utf-8",
    )
    assert main(["rules", "test", str(path)]) == 0


def test_a_rule_without_a_domain_has_no_cell_over_all():
    text = "alarms: [{name: a, metric: m, rule: below, level: 2}]\ntests:\n- series:\n  - {metric: m, values: 1 3}\n"
    text += "  - {metric: m, domain: all, values: 3 3}\n  expect: [{alarm: a, states: pending inactive}]"
    assert run_tests(text)[0].mismatches == ()
    with pytest.raises(ConfigError, match="'a' has no cell in 'all'"):
        run_tests(text.replace("alarm: a,", "alarm: a, domain: all,"))


def test_a_rule_file_may_hold_its_tests(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(GOOD.replace("every: 10\n", "").replace("    series", "    every: 10\n    series"), "utf-8")
    assert main(["rules", "check", str(path), "--strict"]) == 0
    assert main(["rules", "test", str(path)]) == 0


def test_the_published_shrinking_of_coverage_through_a_test_file():
    text = f"""\
alarms: [{OLYMPIAD}]
tests:
  - steps: {STEPS}
    series: [{{metric: pass_at_256, domain: olympiad, values: {" ".join(map(str, COVERAGE))}}}]
    expect: [{{alarm: shrinking, states: inactive x4 firing}}]
"""
    [outcome] = run_tests(text)
    assert (outcome.compared, outcome.mismatches) == (5, ())


def test_the_published_shrinking_of_coverage_through_a_history(tmp_path):
    history = History.create(tmp_path / "run", probes=())
    for step, value in zip(STEPS, COVERAGE, strict=True):
        history.append(Evaluation(step, (Measurement(step, "olympiad", "pass_at_256", value),)))
    [event] = replay(History.read(tmp_path / "run"), load_ruleset(f"alarms: [{OLYMPIAD}]"))
    assert (event.step, event.state, event.value, event.baseline) == (300, "firing", 79.7, 88.0)
    assert "fell 9 %" in event.message


def test_the_published_numbers_are_those_of_the_table():
    if not SUPPORT.exists():
        pytest.skip("no shared/oracles/tables/support.json beside the repository")
    table = json.loads(SUPPORT.read_text("utf-8"))["dapo_trajectory_olympiad"]
    assert (table["step"], table["pass_at_256"]) == (STEPS, COVERAGE)


def test_a_series_over_all_domains_takes_no_share_of_alpha():
    p = 0.9 * level(0.05, 1)
    text = f"""
alarms: [{{name: a, metric: vendi, rule: drop, by: 20%, severity: critical}}]
tests:
  - series: [{{metric: vendi, domain: x, values: 3 1}}, {{metric: vendi, domain: all, values: 3 1}}]
    confirmations: [{{alarm: a, domain: x, at: 1, p: {p}}}]
    expect: [{{alarm: a, domain: x, states: inactive firing}}]
"""
    assert not run_tests(text)[0].mismatches


def test_a_rule_file_without_tests_says_so():
    with pytest.raises(ConfigError, match="no `tests:` here"):
        run_tests("alarms: [{name: a, metric: vendi, rule: drop, by: 20%}]\n")
