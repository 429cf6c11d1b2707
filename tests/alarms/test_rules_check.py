"""`divmon rules check`: every problem of a file in one reading, with its line; rules that would watch in vain."""

import math
from pathlib import Path

import numpy as np
import pytest

from divmon.alarms import RuleSet, default_rules, load_ruleset
from divmon.alarms.evidence import sign_flip
from divmon.alarms.spending import cell_shares, level
from divmon.cli import main
from divmon.errors import ConfigError
from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.records import Probe, SampleBatch
from divmon.rulebook.checking import check_rules
from divmon.rulebook.vain import FROM_BASELINE, Setting

BROKEN = """\
alpha: 2
alarms:
  - name: narrow
    metric: tfidf_distanse
    rule: drop
    by: lots
    for: 0
    then: [sav]
  - {name: collapse, metric: tfidf_distance, rule: drop, by: 20%, severity: critical, domain: creatve}
  - {name: collapse, metric: length, rule: rise, by: 20%, serverity: info}
  - [vendi]
silences:
  - {alarm: narow, until: 100}
  - {alarm: collapse}
silence: []
"""


def found(text, setting=None, level=None):
    problems, _ = check_rules(text, setting or Setting())
    return [problem for problem in problems if level in (None, problem.level)]


def one(rule, setting=None, level="warning"):
    """The texts about a file with one rule."""
    problems = found(f"alarms:\n- {{name: a, {rule}}}", setting)
    assert {problem.level for problem in problems} <= {level}, problems
    assert {problem.line for problem in problems} <= {2}
    return " ".join(problem.text for problem in problems)


def test_every_error_is_told_with_its_line():
    problems = found(BROKEN, Setting(domains=["creative", "math"]))
    assert [problem.level for problem in problems] == ["error"] * 12
    assert [problem.line for problem in problems] == [1, 4, 6, 7, 8, 9, 10, 10, 11, 13, 14, 15]
    expected = (
        "`alpha` is a probability", "Did you mean 'tfidf_distance'?", "`by` must be a number", "`for` counts",
        "Did you mean 'save'?", "Did you mean 'creative'?", "Did you mean 'severity'?", "the other is in line 9",
        "An alarm is a mapping", "Did you mean 'narrow'?", "A silence needs `until`", "Did you mean 'silences'?",
    )  # fmt: skip
    for text in expected:
        assert any(text in problem.text for problem in problems), text


def test_what_is_not_yaml_is_one_error():
    assert [(p.level, p.line) for p in found("alarms:\n- {name: a, name: b}")] == [("error", 2)]
    assert [(p.level, p.line) for p in found("alarms: [\n")] == [("error", 2)]
    assert [p.text for p in found("rules: []\n")][-1].startswith("There is no `alarms:`")
    with pytest.raises(ConfigError, match="Cannot read"):
        check_rules(Path("none.yaml"))


def test_what_loads_has_no_error_and_the_other_way_round():
    good = "alpha: 0.1\nalarms:\n- {name: a, metric: vendy, rule: drop, by: 20%}\nsilences: [{alarm: a, until: 9}]"
    _, rules = check_rules(good, Setting(metrics=["vendy"]))
    assert rules == load_ruleset(good)
    with pytest.raises(ConfigError):
        load_ruleset(BROKEN)


def test_default_rules_pass_without_a_warning():
    problems, rules = check_rules(RuleSet.of(default_rules()), Setting(domains=["a"], evaluations=20, k=8, probes=32))
    assert problems == []
    assert rules.rules == default_rules()


NEVER = [
    ("metric: effective_formats, rule: below, level: 1", "never below 1"),
    ("metric: tfidf_distance, rule: above, level: 1", "never above 1"),
    ("metric: tfidf_distance, rule: outside, low: 0, high: 1", "always between 0 and 1"),
    ("metric: tfidf_distance, rule: drop, by: 1", "no change exceeds 1"),
    ("metric: self_bleu, rule: rise, by: 1.5", "no change exceeds 1.5"),
    ("metric: format_shift, rule: drop, by: 0.1", "a distance from the baseline"),
    ("metric: tail_kl, rule: rise, by: 10%", "a distance from the baseline"),
    ("metric: mean_quality, rule: drop, by: 10%", "0 or negative"),
    ("metric: tfidf_distance, rule: below, level: 2", "always fires"),
    ("metric: tfidf_distance, rule: above, level: -1", "always fires"),
    ("metric: tfidf_distance, rule: outside, low: 2, high: 3", "always fires"),
]


@pytest.mark.parametrize(("rule", "text"), NEVER)
def test_a_rule_outside_the_bounds_of_its_metric(rule, text):
    assert text in one(rule)


def test_just_inside_the_bounds_is_fine():
    for rule in (
        "metric: effective_formats, rule: below, level: 1.01",
        "metric: tfidf_distance, rule: above, level: 0.99",
        "metric: tfidf_distance, rule: drop, by: 0.99",
        "metric: length, rule: drop, by: 500",
        "metric: format_shift, rule: above, level: 0.4",
        "metric: format_shift, rule: rise, by: 0.3",
    ):
        assert one(rule) == ""


def test_the_other_direction_is_only_noted():
    assert "a collapse makes self_bleu rise" in one("metric: self_bleu, rule: drop, by: 20%", level="note")


def test_a_metric_said_to_be_a_distance_from_the_baseline_is_0_there():
    probes = tuple(Probe(str(i), f"{i}?", gold="1", difficulty=i % 3) for i in range(9))
    rng = np.random.default_rng(0)
    texts = tuple(tuple(f"{'- ' * (i % 2)}The answer is {rng.integers(0, 2)}." for _ in range(8)) for i in range(9))
    batch = SampleBatch(0, probes, texts)
    quality = [np.array([float("is 1" in text) for text in row]) for row in texts]
    context = MetricContext(batch, quality=quality)
    for name in FROM_BASELINE:
        result = evaluate(METRICS[name], context)
        assert float(result.combine(result.parts)) == pytest.approx(0, abs=1e-12)


def test_too_few_evaluations_completions_or_needs():
    rule = "metric: tfidf_distance, rule: drop, by: 20%, for: 9"
    assert one(rule, Setting(evaluations=9)) == ""
    assert "longer than the 8 evaluations" in one(rule, Setting(evaluations=8))
    assert "needs 2 completions a prompt" in one(rule, Setting(k=1))
    coverage = "metric: coverage, rule: drop, by: 0.2"
    assert "without quality" in one(coverage, Setting(have=["encoder"]))
    assert one(coverage, Setting(have=["quality"])) == one(coverage) == ""


@pytest.mark.parametrize("n", [12, 13, 16])
@pytest.mark.parametrize("cells", [1, 200])
def test_too_few_prompts_for_a_confirmation_exactly_where_the_test_says_so(n, cells):
    rule = "metric: tfidf_distance, rule: drop, by: 20%, severity: critical"
    text = f"confirmations: {cells}\nalarms:\n- {{name: a, {rule}, domain: x}}"
    text += f"\n- {{name: b, {rule}, domain: y, weight: {cells - 1}}}" if cells > 1 else ""
    first = level(cell_shares(load_ruleset(text), ["x", "y"])["a/x"], 1)
    never = math.isnan(sign_flip(np.ones(n), alpha=first, seed=0).p)
    problems = [p for p in found(text, Setting(probes=n), "warning") if p.alarm == "a"]
    assert never == bool(problems)
    if never:
        assert f"p = {2.0**-n:.3g} at best" in problems[0].text
        needed = int(problems[0].text.split("Use ")[1].split()[0])
        assert 2.0**-needed <= first < 2.0 ** -(needed - 1)


def test_fewer_prompts_than_any_confirmation_takes():
    rule = "metric: tfidf_distance, rule: drop, by: 20%, severity: critical"
    assert "fewer than the 12" in one(rule, Setting(probes=11))
    assert "fewer" not in one(f"{rule}, domain: all", Setting(probes=6, domains=["x", "y"]), level="note")
    assert one(rule, Setting(probes=64)) == ""


def test_two_alarms_that_say_the_same():
    rule = "metric: tfidf_distance, rule: drop"
    twice = f"alarms:\n- {{name: a, {rule}, by: 20%}}\n- {{name: b, {rule}, by: 30%, domain: x}}"
    assert [(p.line, p.alarm) for p in found(twice)] == [(3, "b")]
    assert "'a' (line 2) watches the same series" in found(twice)[0].text
    assert found(twice.replace("domain: x", "severity: critical")) == []
    assert found(twice.replace("domain: x", "domain: all")) == []


def test_silences_and_the_budget():
    rule = "{name: a, metric: tfidf_distance, rule: drop, by: 20%, severity: critical}"
    text = f"alarms:\n- {rule}\nsilences:\n- {{alarm: a, until: 10}}\n- {{alarm: a, until: 11, domain: y}}"
    problems = found(text, Setting(every=10, domains=["x"]))
    assert [(p.level, p.line) for p in problems] == [("warning", 4), ("error", 5)]
    assert "over before anything could fire" in problems[0].text
    late, _ = found(text, Setting(every=1, evaluations=5, domains=["x", "y"]))
    assert late.text.endswith("lasts longer than the run: it can never fire.")
    budget = found(f"confirmations: 1\nalarms: [{rule}]", Setting(domains=["x", "y"]))
    assert [(p.line, "shared by 2 cells" in p.text) for p in budget] == [(1, True)]


def test_the_command(tmp_path, capsys):
    path = tmp_path / "rules.yaml"
    path.write_text(BROKEN, "utf-8")
    assert main(["rules", "check", str(path), "--domains", "creative,math"]) == 2
    out = capsys.readouterr().out.splitlines()
    assert out[1].startswith(f"{path}:4: error: alarm 'narrow': Unknown metric 'tfidf_distanse'.")
    assert out[-1] == f"{path}: 0 alarms; 12 errors, 0 warnings."
    path.write_text("alarms:\n- {name: a, metric: effective_formats, rule: below, level: 1}", "utf-8")
    assert main(["rules", "check", str(path)]) == 0
    assert main(["rules", "check", str(path), "--strict"]) == 1
    assert "1 alarm; 0 errors, 1 warning." in capsys.readouterr().out
    path.write_text("alarms:\n- {name: a, metric: mine, rule: drop, by: 10%, severity: critical}", "utf-8")
    assert main(["rules", "check", str(path), "--metrics", "mine,length", "--strict"]) == 0
    assert "1 alarm, 1 confirmed within alpha 0.05; 0 errors" in capsys.readouterr().out
    assert main(["rules", "check", str(path), "--metrics", "length"]) == 2
    assert main(["rules", "check", "defaults", "--strict"]) == 0
    assert main(["rules", "check", str(tmp_path / "none.yaml")]) == 2
    assert "Cannot read the alarm rules" in capsys.readouterr().err


def test_exceptions_that_leave_no_cell_or_are_misspelt():
    rule = "metric: tfidf_distance, rule: drop, by: 20%, severity: critical, except: "
    setting = Setting(domains=["math"], probes=24)
    assert "it has no cell" in one(rule + "[math]", setting)
    assert "Did you mean 'math'?" in one(rule + "[mth]", setting)
    assert one(rule + "[code]", setting) == ""  # a pack that this run does not have


def test_settings_of_levers_are_checked():
    rule = "metric: tfidf_distance, rule: drop, by: 20%, then: [{gate: "
    assert "Did you mean 'k'?" in one(rule + "{kk: 8}}]", level="error")
    text = f"alarms:\n- {{name: a, {rule}{{k: 8}}}}]}}\n- {{name: b, {rule}{{k: 4}}}}]}}"
    [problem] = found(text.replace("rule: drop", "rule: rise", 1), level="error")
    assert problem.line == 3
    assert "set up gate differently" in problem.text
