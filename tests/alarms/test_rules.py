"""Every kind of rule, point by point, on series written as ``0.8x4 _ 0.4`` (``0.8`` four times, ``_`` for missing)."""

import math

import pytest

from divmon.alarms import Alarms, Rule
from divmon.alarms.checks import Amount, RuleError
from divmon.alarms.rules import breached, unusable
from divmon.errors import ConfigError
from divmon.records import Measurement

LETTERS = {"unknown": "u", "inactive": "i", "pending": "p", "firing": "f"}


def series(text):
    for item in text.split():
        value, _, times = item.partition("x")
        yield from [math.nan if value == "_" else float(value)] * int(times or 1)


def states(rule, text):
    """The state after each point, one letter a point."""
    alarms, letters = Alarms([rule]), []
    for step, value in enumerate(series(text)):
        alarms.observe(step, [Measurement(step, "poems", rule.metric, value, signature="s")])
        letters.append(LETTERS[alarms.states[f"{rule.name}/poems"]])
    return "".join(letters)


def rule(kind, **settings):
    return Rule("r", metric="vendi", rule=kind, **settings)


def test_the_notation():
    assert [*series("0.8x2 _ 1")][:2] == [0.8, 0.8]
    assert len([*series("0.8x4 0.4x6 _ 0.4")]) == 12


TABLE = [
    # the baseline is not compared with itself; two evaluations in a row; three clear ones to resolve
    ("drop", {"by": "20%"}, "0.8x4 0.4x6 _ 0.4", "iiiipfffffff"),
    ("drop", {"by": "20%"}, "1 0.7 1 0.7x2 1x2 0.7 1x3", "ipipffffffi"),
    ("drop", {"by": "20%"}, "1 0.8x3", "iiii"),
    ("drop", {"by": "20%", "for_": 1}, "1 0.79", "if"),
    ("drop", {"by": "20%", "for_": 3}, "1 0.7x3 1", "ippff"),
    ("drop", {"by": "20%", "for_": 1, "clear_for": 1}, "1 0.7 1 0.7 1", "ififi"),
    ("drop", {"by": "20%", "severity": "critical"}, "1 0.7", "ip"),  # nobody draws, so nothing confirms it
    ("drop", {"by": "20%", "severity": "critical", "evidence": "screen"}, "1 0.7", "if"),
    ("below", {"level": 2.0, "severity": "critical"}, "2 1", "if"),
    ("drop", {"by": "20%", "severity": "info"}, "1 0.7x2", "ipf"),
    ("drop", {"by": 0.1}, "-1 -1.05 -1.2x2", "iipf"),
    ("drop", {"by": 0.3}, "1 0.7x3", "iiii"),
    ("drop", {"by": "30%"}, "1 0.7x3", "iiii"),
    ("drop", {"by": "0%", "for_": 1}, "1 1 0.999", "iif"),
    ("drop", {"by": 0, "for_": 1}, "0 0 -1", "iif"),
    ("drop", {"by": "20%"}, "0 -1x4", "uuuuu"),
    ("drop", {"by": "20%"}, "-2 -4x4", "uuuuu"),
    ("drop", {"by": "99%", "for_": 1}, "1 0.02 0", "iif"),
    ("rise", {"by": "20%"}, "1 1.2 1.3x2 0.5", "iipff"),
    ("rise", {"by": "100%", "for_": 1}, "100 200 201", "iif"),
    ("rise", {"by": 0.3}, "0 0.3 0.31x2", "iipf"),
    ("rise", {"by": "20%"}, "0 9x3", "uuuu"),
    ("rise", {"by": 1, "for_": 1}, "1 inf", "if"),
    ("rise", {"by": 1, "for_": 1}, "inf 1 inf", "uuu"),
    ("below", {"level": 2.0}, "1x2 2x3", "pfffi"),
    ("below", {"level": 2.0, "for_": 1}, "2 1.9 3x3", "ifffi"),
    ("above", {"level": 0.5}, "0.6 0.5 0.6x2", "pipf"),
    ("above", {"level": -1, "for_": 1}, "-2 -0.5", "if"),
    ("outside", {"by": "50%"}, "2 1 3 0.9x2 2x3", "iiipfffi"),
    ("outside", {"by": "50%"}, "2 3.1 0.9 2", "ipff"),
    ("outside", {"by": 0.5, "for_": 1}, "-1 -1.5 -0.4", "iif"),
    ("outside", {"by": "50%"}, "0 5x2", "uuu"),
    ("outside", {"low": 1, "high": 2, "for_": 1, "clear_for": 1}, "0 1 2 2.1 1.5", "fiifi"),
    ("absent", {}, "1 _x3 1x3", "ipffffi"),
    ("absent", {}, "_x2 1", "pff"),
    ("absent", {"for_": 1, "clear_for": 1}, "_ 1 _", "fif"),
    # missing is missing: it never fires, clears or resets
    ("drop", {"by": "20%"}, "_ 1 _ 0.7 _x3 0.7 _ 1x2 _ 1 _", "uiippppfffffii"),
    ("drop", {"by": "20%"}, "_x5", "uuuuu"),
    ("below", {"level": 2.0}, "_ 1 _ 1", "uppf"),
]


@pytest.mark.parametrize(("kind", "settings", "text", "expected"), TABLE)
def test_truth_table(kind, settings, text, expected):
    assert states(rule(kind, **settings), text) == expected


def test_a_share_of_a_baseline_that_is_not_positive_is_never_evaluated():
    alarms = Alarms([rule("rise", by="20%", for_=1)])
    for step, value in enumerate([0.0, 5.0]):
        assert alarms.observe(step, [Measurement(step, "poems", "vendi", value)]) == []
    assert "baseline above 0" in alarms.cells["r/poems"].reason
    assert unusable(rule("rise", by=0.2), 0.0) is None
    assert not breached(rule("rise", by="20%"), 5.0, 0.0)


def test_rounding_is_not_a_breach():
    for hundredths in range(1, 100):
        by = hundredths / 100
        assert not breached(rule("drop", by=f"{hundredths}%"), 0.3 * (1 - by), 0.3)
        assert not breached(rule("rise", by=by), 0.3 + by, 0.3)


def test_amounts_are_read_and_written_exactly():
    assert Amount.of("20%") == Amount.of(" 20 % ") == (0.2, True)
    assert Amount.of(0.1) == Amount.of("0.1") == Amount.of("1e-1") == (0.1, False)
    for amount in (Amount(0.07, True), Amount(1 / 3, True), Amount(1 / 3, False), Amount(0.0, True)):
        assert Amount.of(amount.plain) == amount


def test_defaults():
    made = rule("drop", by="20%")
    assert (made.severity, made.hold, made.clear_for, made.evidence, made.then) == (
        "warning",
        2,
        3,
        "screen",
        ("warn",),
    )
    assert rule("drop", by=0.1, severity="critical").for_ == 1
    assert rule("drop", by="20%", then="save").then == ("save",)
    assert rule("drop", by="20%", then=["stop", "save"]).actions == ("stop", "save")
    assert rule("drop", by="20%") == rule("drop", by=(0.2, True))
    assert len({rule("drop", by="20%"), rule("drop", by="20%")}) == 1


def named(event, context):
    return None


def test_functions_are_actions():
    made = rule("drop", by="20%", then=("warn", named))
    assert made.actions == ("warn", "named")
    assert made.functions == {"named": named}
    assert rule("drop", by="20%", then=named).functions == {"named": named}


def one_argument(event):
    return None


BAD = [
    ({"rule": "drop"}, "needs `by`"),
    ({"rule": "rise"}, "write `by: 20%`"),
    ({"rule": "below"}, "needs `level`"),
    ({"rule": "above", "by": "20%"}, "`by` means nothing to rule: above; remove it, or write `rule: drop`"),
    ({"rule": "drop", "by": "20%", "level": 1}, "write `rule: below`"),
    ({"rule": "drop", "by": "20%", "low": 1}, "write `rule: outside`"),
    ({"rule": "absent", "by": "20%"}, "`by` means nothing"),
    ({"rule": "outside"}, "either `by: 50%`"),
    ({"rule": "outside", "by": "20%", "low": 0, "high": 1}, "either `by: 50%`"),
    ({"rule": "outside", "low": 0}, "write `rule: below` with `level`"),
    ({"rule": "outside", "high": 0}, "write `rule: above` with `level`"),
    ({"rule": "outside", "low": 2, "high": 1}, "`low` (2) must be less than `high` (1)"),
    ({"rule": "outside", "by": "100%"}, "can never fire on the way down"),
    ({"rule": "drop", "by": "120%"}, "by: 120% can never fire"),
    ({"rule": "drop", "by": "100%"}, "can never fire"),
    ({"rule": "drop", "by": "-20%"}, "cannot be negative"),
    ({"rule": "drop", "by": "lots"}, "must be a number, not 'lots'"),
    ({"rule": "drop", "by": "x%"}, "Write for example `by: 20% or 0.1`"),
    ({"rule": "drop", "by": True}, "must be a number"),
    ({"rule": "drop", "by": math.nan}, "must be a number"),
    ({"rule": "below", "level": "20%"}, "`level` must be a number"),
    ({"rule": "drop", "by": "20%", "for_": 0}, "`for` counts evaluations"),
    ({"rule": "drop", "by": "20%", "for_": 1.5}, "write `for: 1` to fire at the first one"),
    ({"rule": "drop", "by": "20%", "for_": True}, "`for` counts"),
    ({"rule": "drop", "by": "20%", "clear_for": 0}, "`clear_for: 1` to resolve"),
    ({"rule": "drop", "by": "20%", "tolerate": "30%"}, "at most `by`"),
    ({"rule": "drop", "by": "20%", "tolerate": 0.1}, "the same way"),
    ({"rule": "below", "level": 1, "tolerate": 0.1}, "`tolerate`"),
    ({"rule": "dorp", "by": "20%"}, "Unknown rule 'dorp'. Did you mean 'drop'?"),
    ({"rule": ["drop"], "by": "20%"}, "`rule` must be a word"),
    ({"rule": "drop", "by": "20%", "severity": "critcal"}, "Did you mean 'critical'?"),
    ({"rule": "below", "level": 1, "evidence": "confirm"}, "rule: below is none (a fixed limit has no baseline"),
    ({"rule": "outside", "low": 1, "high": 2, "evidence": "confirm"}, "Use evidence: screen, or rule: drop"),
    ({"rule": "absent", "evidence": "confirm"}, "rule: absent is none (nothing can be drawn)"),
    ({"rule": "drop", "by": "20%", "weight": 0}, "`weight` is this alarm's share of alpha, so it is above 0"),
    ({"rule": "drop", "by": "20%", "weight": "much"}, "`weight` must be a number"),
    ({"rule": "drop", "by": "20%", "evidence": "scren"}, "Did you mean 'screen'?"),
    ({"rule": "drop", "by": "20%", "then": ["stopp"]}, "Unknown action 'stopp'. Did you mean 'stop'?"),
    ({"rule": "drop", "by": "20%", "then": ["save", "save"]}, "lists 'save' twice"),
    ({"rule": "drop", "by": "20%", "then": 3}, "`then` is a list"),
    ({"rule": "drop", "by": "20%", "then": [3]}, "names of actions"),
    ({"rule": "drop", "by": "20%", "then": [lambda event, context: None]}, "a name of its own"),
    ({"rule": "drop", "by": "20%", "then": [one_argument]}, "def one_argument(event, context)"),
    ({"rule": "drop", "by": "20%", "domain": 3}, "`domain` must be a word"),
    ({"rule": "drop", "by": "20%", "name": "a/b c"}, "write 'a-b-c'"),
    ({"rule": "drop", "by": "20%", "name": ""}, "`name` must be a word"),
    ({"rule": "drop", "by": "20%", "metric": None}, "`metric` must be a word"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_rules_that_cannot_work_say_what_to_write(settings, message):
    with pytest.raises(ConfigError) as caught:
        Rule(**{"name": "r", "metric": "vendi", **settings})
    assert message in str(caught.value)


def test_from_mapping_is_strict():
    good = {"name": "r", "metric": "vendi", "rule": "drop", "by": "20%", "for": 3, "domain": None}
    made = Rule.from_mapping(good, known_metrics=["vendi"])
    assert made.for_ == 3
    assert made == Rule.from_mapping(made.to_mapping(), known_metrics=None)
    for change, message in (
        ({"for_": 3}, "Unknown key 'for_'. Did you mean 'for'?"),
        ({"sevrity": None}, "Did you mean 'severity'?"),
        ({"metric": "vendy"}, "Unknown metric 'vendy'. Did you mean 'vendi'?"),
        ({"domain": "poem"}, "Unknown domain 'poem'. Did you mean 'poems'?"),
        ({"rule": None}, "An alarm needs `rule`, for example `rule: drop`"),
    ):
        with pytest.raises(RuleError) as caught:
            Rule.from_mapping({**good, **change}, known_metrics=["vendi"], known_domains=["poems"], line=7)
        assert str(caught.value).startswith("line 7, alarm 'r': ")
        assert message in str(caught.value)
    assert Rule.from_mapping({**good, "domain": "all"}, known_metrics=None, known_domains=["poems"]).domain == "all"
