import json
from pathlib import Path

import pytest

from divmon.alarms import Alarms, Rule, default_rules, dump_rules, load_rules, restore_rules
from divmon.errors import ConfigError
from divmon.records import Measurement

GOOD = """\
alarms:
  - name: collapse
    metric: tfidf_distance
    domain: creative
    rule: drop
    by: 20%
    tolerate: 10%
    for: 1
    clear_for: 3
    severity: critical
    evidence: screen
    then: [save, stop]
  - {name: tiny, metric: vendi, rule: below, level: 1e-3}
tests: anything
"""
METRICS = ("tfidf_distance", "vendi", "length")


def test_text_file_list_and_rules_give_the_same(tmp_path):
    rules = load_rules(GOOD, known_metrics=METRICS, known_domains=["creative"])
    path = tmp_path / "alarms.yaml"
    path.write_text(GOOD, "utf-8")
    assert [rule.name for rule in rules] == ["collapse", "tiny"]
    assert rules[0].then == ("save", "stop")
    assert rules[1].level == 1e-3
    assert load_rules(path) == load_rules(str(path)) == rules
    assert load_rules(rules) == load_rules({"alarms": list(rules)}) == load_rules(iter(rules)) == rules
    assert load_rules([rule.to_mapping() for rule in rules]) == rules


def test_none_at_all():
    assert load_rules("alarms: []") == load_rules("alarms:\n") == load_rules([]) == ()


def test_anchors_and_merges():
    text = """\
alarms:
  - &first {name: a, metric: vendi, rule: drop, by: 20%}
  - <<: *first
    name: b
    by: 30%
"""
    assert [(rule.name, rule.by.amount) for rule in load_rules(text)] == [("a", 0.2), ("b", 0.3)]
    with pytest.raises(ConfigError, match="line 5, alarm 'b': `by` must be a number"):
        load_rules(text.replace("30%", "lots"))


def edited(old, new):
    assert old in GOOD
    return GOOD.replace(old, new, 1)


ERRORS = [
    (
        edited("metric: tfidf_distance", "metric: tfidf_distanse"),
        "line 3, alarm 'collapse': Unknown metric",
        "distance'?",
    ),
    (edited("domain: creative", "domain: creativ"), "line 4, alarm 'collapse': Unknown domain", "mean 'creative'?"),
    (edited("rule: drop", "rule: dropp"), "line 5, alarm 'collapse': Unknown rule 'dropp'", "mean 'drop'?"),
    (edited("    by: 20%\n    tolerate: 10%\n", ""), "line 5, alarm 'collapse': rule: drop needs `by`", "`by: 20%`"),
    (edited("by: 20%", "by: 120%"), "line 6, alarm 'collapse': by: 120% can never fire", "`by: 50%`"),
    (edited("tolerate: 10%", "tolerate: 30%"), "line 7, alarm 'collapse': `tolerate`", "at most `by`"),
    (edited("for: 1", "for: 0"), "line 8, alarm 'collapse': `for` counts", "`for: 1`"),
    (edited("clear_for: 3", "clearfor: 3"), "line 9, alarm 'collapse': Unknown key 'clearfor'", "mean 'clear_for'?"),
    (edited("severity: critical", "severity: criticl"), "line 10, alarm 'collapse'", "mean 'critical'?"),
    (edited("evidence: screen", "evidence: confrm"), "line 11, alarm 'collapse': Unknown evidence", "mean 'confirm'?"),
    (edited("[save, stop]", "[save, stopp]"), "line 12, alarm 'collapse': Unknown action 'stopp'", "mean 'stop'?"),
    (edited("name: tiny, ", ""), "line 13: An alarm needs `name`", "`name: creative-collapse`"),
    (edited("name: tiny", "name: collapse"), "line 13, alarm 'collapse': Another alarm has this name", "line 2"),
    (edited("name: tiny", "name: 7"), "line 13, alarm '7': `name` must be a word", "quotes"),
    (edited("name: tiny", "on: 1, name: tiny"), "line 13, alarm 'tiny': Unknown key 'True'", ""),
    (edited(", level: 1e-3", ", level: 1, level: 2"), "line 13: `level` is written twice", "keep one"),
    (edited("    for: 1\n", "    for: 1\n    by: 30%\n"), "line 9: `by` is written twice (first in line 6)", ""),
    (edited("  - {name: tiny", "  - vendi\n  - {name: tiny"), "line 13: An alarm is a mapping such as", "'vendi'"),
    (edited("alarms:", "alarm:"), "line 1: Unknown key 'alarm'", "mean 'alarms'?"),
    (edited("tests: anything", "metrics: anything"), "line 14: Unknown key 'metrics'", "alarms"),
    (edited("by: 20%", "by: [20%"), "line 7: This is not YAML", ""),
    (edited("by: 20%", "by: !!python/name:os.system"), "line 6: This is not YAML: could not determine", ""),
    (edited("by: 20%", "{a: 1}: 2"), "line 6: This is not YAML: found unhashable key", ""),
    ("tests: 1\n", "line 1: There is no `alarms:` here", "`alarms: []`"),
    ("alarms:\n  name: a\n", "line 1: `alarms` is a list", "put `- `"),
    ("\n- name: a\n", "line 2: The list of alarms needs `alarms:`", "above it"),
    ("\n", "Rules are a list under the key `alarms:`", "`alarms: []`"),
]


@pytest.mark.parametrize(("text", "start", "hint"), ERRORS)
def test_every_error_has_its_line_and_a_suggestion(tmp_path, text, start, hint):
    path = tmp_path / "alarms.yaml"
    path.write_text(text, "utf-8")
    for source, prefix in ((text, ""), (path, f"{path}")):
        with pytest.raises(ConfigError) as caught:
            load_rules(source, known_metrics=METRICS, known_domains=["creative"])
        message = str(caught.value)
        assert message.startswith(
            prefix + (", " if prefix and start.startswith("line") else ": " if prefix else "") + start
        )
        assert hint in message


@pytest.mark.parametrize("source", [3, None, "no-such-file.yaml", Path("no-such-file.yaml"), [3], Path()])
def test_sources_that_are_none(source):
    with pytest.raises(ConfigError):
        load_rules(source)


def test_rules_made_in_python_are_checked_against_the_tables():
    rule = Rule("a", metric="vendy", rule="absent")
    with pytest.raises(ConfigError, match="Did you mean 'vendi'"):
        load_rules([rule], known_metrics=METRICS)
    with pytest.raises(ConfigError, match="alarm 'a': Another alarm has this name"):
        load_rules([rule, rule])


def test_the_default_rules_only_warn():
    rules = default_rules()
    assert {rule.severity for rule in rules} == {"warning"}
    assert {rule.then for rule in rules} == {("warn",)}
    assert {rule.hold for rule in rules} == {2}
    assert {rule.metric for rule in default_rules(["length", "coverage"])} == {"length", "coverage"}
    alarms = Alarms(rules)
    for step in range(5):
        assert alarms.observe(step, [Measurement(step, "poems", "length", 10.0)]) == []
    assert alarms.states["coverage-loss/poems"] == "unknown"


def test_the_critical_example_in_the_default_file_works():
    text = Path(default_rules.__globals__["__file__"]).with_name("defaults.yaml").read_text("utf-8")
    example = text[text.index("#  - name") :].replace("#", "")
    (rule,) = load_rules("alarms:\n" + example, known_metrics=METRICS)
    assert rule.severity == "critical"
    assert rule.then == ("save", "stop")


def cool_down(event, context):
    return None


def test_rules_are_kept_with_a_run_and_read_back():
    rules = (*load_rules(GOOD), *default_rules(), Rule("third", metric="a", rule="drop", by=(1 / 3, True)))
    assert restore_rules(json.loads(json.dumps(dump_rules(rules)))) == rules


def test_functions_are_kept_by_name():
    rules = (Rule("a", metric="vendi", rule="below", level=1, then=("warn", cool_down), for_=1),)
    kept = json.loads(json.dumps(dump_rules(rules)))
    assert restore_rules(kept, functions={"cool_down": cool_down}) == rules
    restored = restore_rules(kept)
    assert restored[0].actions == rules[0].actions
    assert restored[0].functions["cool_down"](None, {}) is None
    assert dump_rules(restored) == kept
    low = [Measurement(0, "poems", "vendi", 0.5)]
    assert repr(Alarms(rules).observe(0, low)) == repr(Alarms(restored).observe(0, low))
    with pytest.raises(ConfigError, match="names of actions"):
        load_rules("alarms:\n- {name: a, metric: vendi, rule: absent, then: [{call: cool_down}]}")


def cells(domain):
    """The metrics that the default rules watch in a domain."""
    return {rule.metric for rule in default_rules() if domain in rule.cells([domain])}


def test_the_default_rules_watch_what_is_harmful_in_each_domain():
    everywhere = {"token_entropy", "length", "coverage", "hard_coverage", "correct_distance"}
    different = {"tfidf_distance", "semantic_distance", "effective_formats", "format_dominance", "tail_to_head"}
    for domain in ("code", "math"):
        assert cells(domain) - {"voice_spread"} == everywhere
    for domain in ("creative", "ideation", "opinion", "train", "my-own"):
        assert cells(domain) - {"voice_spread"} == everywhere | different
    assert {rule.domain for rule in default_rules() if rule.metric == "voice_spread"} == {"rewrite"}


def test_exceptions_have_no_cell_and_survive_a_round_trip():
    rule = Rule("a", metric="vendi_1", rule="drop", by="20%", except_=("code",))
    assert restore_rules(dump_rules([rule])) == (rule,)
    alarms = Alarms([rule])
    for value in (3.0, 1.0, 1.0):
        alarms.observe(0, [Measurement(0, domain, "vendi_1", value) for domain in ("code", "poems")])
    assert set(alarms.states) == {"a/poems"}
    for wrong in ({"except": [1]}, {"except": ["code"], "domain": "math"}):
        with pytest.raises(ConfigError, match="`except`"):
            load_rules([{"name": "a", "metric": "vendi_1", "rule": "drop", "by": 0.1, **wrong}])
