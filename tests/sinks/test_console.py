"""What stands on the terminal, to the letter."""

from __future__ import annotations

import io
import re
import sys
import unicodedata
from dataclasses import replace

import pytest

from divmon.records import AlarmEvent, LeverEvent, Measurement, Observation, SampleBatch, Verdict
from divmon.sinks import ConsoleSink
from divmon.sinks.console import LONG, WIDTH, alert_line

BASE = {"tfidf_distance": 0.693, "effective_formats": 3.13, "format_dominance": 0.4, "pass_at_1": 0.8}
NOW = {"tfidf_distance": 0.61, "effective_formats": 2.1, "format_dominance": 0.71, "pass_at_1": 0.82}
EVENT = AlarmEvent(
    step=40,
    alarm="formats-collapse",
    domain="creative",
    metric="effective_formats",
    state="firing",
    severity="critical",
    value=2.1,
    baseline=3.13,
    actions=("save", "stop"),
    message="Formats fell from 3.1 to 2.1 (-33%), confirmed on fresh draws (p = 0.001).",
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def observation(step, values, *, domains=("creative",), states=None, events=(), label="prose"):
    shares = {label: values.get("format_dominance", 0.5), "list": 0.1}
    rows = tuple(
        Measurement(
            step=step,
            domain=domain,
            metric=name,
            value=value,
            low=value - 0.05,
            high=value + 0.05,
            details={"shares": shares} if name == "format_dominance" else {},
        )
        for name, value in values.items()
        for domain in domains
    )
    return Observation(step=step, measurements=rows, states=states or {}, events=events)


def lines(*observations, stream=None, close=False):
    stream = stream or io.StringIO()
    sink = ConsoleSink(stream)
    for one in observations:
        sink.emit(one)
    if close:
        sink.close()
        sink.close()
    return stream.getvalue().splitlines()


def columns(text):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def alerts(*events, **kwargs):
    """The lines after the status line and its legend."""
    return lines(observation(50, {"self_bleu": 0.5}, events=events, **kwargs))[1:]


def breach(alarm="narrowing", *, metric="vendi", domain="math", step=50, actions=("warn",), held=2):
    message = (
        f"{metric} in {domain} fell 43 % (3.15 -> 1.79; allowed: 30 %), {held} evaluations in a row (unconfirmed)."
    )
    return AlarmEvent(step, alarm, domain, metric, "firing", "warning", 1.79, 3.15, actions=actions, message=message)


def test_golden():
    firing = observation(40, NOW, states={"formats-collapse/creative": "firing"}, events=(EVENT,))
    assert lines(observation(0, BASE), firing, observation(44, NOW), close=True) == [
        "divmon  step 0  creative: surface .69  formats 3.1  prose 40%  pass@1 .80",
        "divmon  surface: how different completions are (0 = the same) · formats: effective number · "
        "prose 40%: top format",
        "divmon  step 40  creative: formats 2.1 (-33%)  surface .61 (-12%)  prose 71% …  ● formats-collapse firing",
        "divmon  CRITICAL formats-collapse (creative, step 40): Formats fell from 3.1 to 2.1 (-33%), confirmed on fresh"
        " draws (p = 0.001) → save, stop",
        "divmon  step 44  creative: surface .61 (-12%)  formats 2.1 (-33%)  prose 71%  pass@1 .82",
        "divmon  metric                         domain    step 0  step 44  change  95% interval  alarms fired",
        "divmon  tfidf_distance (surface)       creative  .693    .610     -12%    .560 to .660  -",
        "divmon  effective_formats (formats)    creative  3.13    2.10     -33%    2.05 to 2.15  "
        "formats-collapse at 40",
        "divmon  pass_at_1 (pass@1)             creative  .800    .820     +2%     .770 to .870  -",
        "divmon  format_dominance (top format)  creative  .400    .710     +77%    .660 to .760  -",
    ]


def test_a_resolved_alarm_and_one_without_a_message():
    resolved = AlarmEvent(50, "x", "math", "vendi", "resolved", "critical", 2.0, message="Back above the line.")
    bare = AlarmEvent(50, "y", "math", "vendi", "firing", "warning", 2.0, actions=("warn",))
    pending = AlarmEvent(50, "z", "math", "vendi", "pending", "warning", 2.0)
    assert alerts(resolved, bare, pending) == [
        "divmon  RESOLVED x (math, step 50): Back above the line",
        "divmon  WARNING y (step 50): vendi in math is 2.0",
    ]


def test_an_alert_says_each_thing_once_and_the_caveat_once_a_run():
    first, second = breach("narrowing"), breach("a-longer-name", actions=("warn", "save"))
    assert alerts(first, second) == [
        "divmon  WARNING narrowing (step 50): vendi in math fell 43 % (3.15 -> 1.79; allowed: 30 %), "
        "2 evaluations in a row",
        "divmon  unconfirmed: a screen against one noisy baseline; it promises no false-alarm rate",
        "divmon  WARNING a-longer-name (step 50): vendi in math fell 43 % (3.15 -> 1.79; allowed: 30 %) → save",
    ]
    both = lines(observation(50, NOW, events=(first,)), observation(54, NOW, events=(second,)))
    assert sum("unconfirmed" in line for line in both) == 1
    resolved = AlarmEvent(50, "x", "math", "vendi", "resolved", "critical", 2.0, message="vendi in math is back.")
    assert not any("unconfirmed" in line for line in alerts(resolved, EVENT))


def test_an_alert_has_room_for_the_names_of_the_default_alarms():
    for metric, alarm in (("effective_formats", "formats-narrowing"), ("format_dominance", "format-takeover")):
        line = alert_line(breach(alarm, metric=metric, domain="creative", step=4000))
        assert len(line) <= LONG
        assert line.endswith("allowed: 30 %)")
    short = alert_line(breach("x", metric="vendi", domain="math"))
    assert short.endswith("2 evaluations in a row")


def test_what_was_done_about_an_alarm_has_a_line():
    done = (
        LeverEvent(50, "gate", "cooling", 0.5, "narrow", "Its alarm has resolved; it acts on while it cools."),
        LeverEvent(50, "rollback", "applied", 0.25, "narrow", "Went back to step 40: \x1b[2Jvendi fell (unconfirmed)."),
    )
    assert lines(replace(observation(50, {"vendi": 1.0}), changes=done))[-2:] == [
        "divmon  gate cooling (step 50, strength 0.5): Its alarm has resolved; it acts on while it cools.",
        r"divmon  rollback applied (step 50, learning rate x 0.25): Went back to step 40: \x1b[2Jvendi fell.",
    ]


def test_series_with_pending_or_firing_alarms_come_first():
    names = {"p": "coverage", "f": "self_bleu", "q": "effective_formats"}
    before = observation(0, {**BASE, "coverage": 0.5, "self_bleu": 0.4}, domains=["math", "creative"])
    events = tuple(AlarmEvent(4, name, "creative", metric, "pending", "warning", 0.3) for name, metric in names.items())
    states = {"p/creative": "pending", "f/creative": "firing", "q/creative": "inactive", "r/creative": "firing"}
    now = {**NOW, "coverage": 0.4, "self_bleu": 0.5}
    told = observation(4, now, domains=["math", "creative"], states=states, events=events)
    later = observation(8, now, domains=["math", "creative"], states=states)
    for step, line in zip((4, 8), lines(before, told, later)[-3::2], strict=True):
        assert line.startswith(f"divmon  step {step}  creative: self_bleu .50 (+25%)  coverage .40 (-20%)")
    calm = observation(12, now, domains=["math", "creative"], states=dict.fromkeys(states, "inactive"))
    assert lines(before, told, calm)[-1].startswith("divmon  step 12  math: surface .61 (-12%)")


def test_alarms_do_not_take_the_place_of_every_number():
    states = {"one-alarm-with-a-long-name/d": "firing", "another-long-name-here": "firing"}
    now = observation(123456, {"tfidf_distance": 0.5}, domains=["a-rather-long-domain-name"], states=states)
    assert "surface .50" in lines(now)[0]
    one = {"twenty-two-characters-": "firing", "twenty-one-character-": "firing", "third": "pending"}
    assert lines(observation(4, NOW, states=one, domains=["d"]))[0].endswith(
        "● twenty-two-characters-, twenty-one-character- firing  ○ 1 alarm pending"
    )


def test_the_legend_explains_what_is_shown_once():
    later = observation(8, {"coverage": 0.5, "tail_share": 0.2})
    out = lines(observation(0, {"pass_at_1": 0.5}), observation(4, {"coverage": 0.5, "tail_share": 0.2}), later, later)
    assert out == [
        "divmon  step 0  creative: pass@1 .50",
        "divmon  step 4  creative: tail .20  coverage .50",
        "divmon  tail: how much of what is solved is hard · coverage: prompts solved at least once",
        *["divmon  step 8  creative: tail .20 (0%)  coverage .50"] * 2,
    ]
    everything = observation(0, {**NOW, "coverage": 0.5, "tail_share": 0.2}, label="a-label-of-some-length-x")
    legend = lines(everything)[1:]
    assert len(legend) == 2
    assert all(len(line) <= LONG for line in legend)


def test_columns_of_the_table_name_their_steps():
    late = observation(8, {"tfidf_distance": 0.5})
    both = observation(12, {"tfidf_distance": 0.4, "coverage": 0.5})
    last = observation(16, {"tfidf_distance": 0.4})
    assert lines(late, both, last, close=True)[-3:] == [
        "divmon  metric                    domain    baseline (step 8)  step 16     change  95% interval  alarms fired",
        "divmon  tfidf_distance (surface)  creative  .500               .400        -20%    .350 to .450  -",
        "divmon  coverage                  creative  .500 at 12         .500 at 12  -       .450 to .550  -",
    ]
    resumed = replace(late, baseline=SampleBatch(0, (), ()))
    assert "  step 8  step 16  " in lines(resumed, last, close=True)[-2]


def test_the_only_domain_is_not_named_when_nobody_named_it():
    assert lines(observation(0, {"tfidf_distance": 0.5}, domains=["default"]))[:1] == ["divmon  step 0  surface .50"]


def test_every_domain_gets_its_first_item_before_any_gets_its_second():
    many = observation(20, NOW, domains=["creative", "math", "code", "dialogue"])
    line = lines(many)[0]
    assert len(line) <= WIDTH
    assert re.findall(r"(\w+): surface", line) == ["creative", "math", "code", "dialogue"]
    assert line.endswith("…")


@pytest.mark.parametrize("domains", [1, 2, 3, 7, 30])
@pytest.mark.parametrize(
    "name", ["d", "a-rather-long-domain-name-number", "漢字漢字漢字漢字漢字漢字漢字", "a\x1b\x1b\x1b\x1b\x1b"]
)
@pytest.mark.parametrize("alarms", [0, 1, 9])
def test_never_wider_than_the_limit(domains, name, alarms):
    states = {f"alarm-with-a-long-name-{i}/d": ("firing", "pending")[i % 2] for i in range(alarms)}
    now = observation(123456, NOW, domains=[f"{name}{i}" for i in range(domains)], states=states, label=name * 3)
    line, *legend = lines(now)
    assert columns(line) <= WIDTH
    assert all(text.isprintable() and columns(text) <= LONG for text in (line, *legend))
    if alarms > 2:
        assert f"{alarms // 2 + alarms % 2} alarms firing" in line


def test_what_is_missing_says_why():
    row = Measurement(step=4, domain="d", metric="tfidf_distance", value=float("nan"), reason="no \x1b[2J words " * 20)
    (line,) = lines(Observation(step=4, measurements=(row,)))
    assert line.startswith("divmon  step 4  no values: no \\x1b[2J words")
    assert len(line) <= WIDTH
    assert lines(Observation(step=4, measurements=())) == ["divmon  step 4  no values: nothing was measured"]


def test_nothing_from_a_model_reaches_the_terminal_raw():
    hostile = "\x1b]0;owned\x07\x1b[2J\r\n\ud800\u202eevil"
    event = AlarmEvent(4, "a\x1b[0m", hostile, "vendi", "firing", "info", 0.1, message=f"Prompt: {hostile}")
    now = observation(4, NOW, domains=[hostile], label=hostile, states={f"a\x1b/{hostile}": "firing"}, events=(event,))
    out = lines(now, close=True)
    assert len(out) == 3 + 1 + len(NOW) + 1  # no line was broken in two
    assert all(line.isprintable() for line in out)
    assert "Prompt: \\x1b]0;owned\\x07\\x1b[2J\\r\\n\\ud800\\u202eevil" in out[2]
    "\n".join(out).encode("utf-8")


def test_colour_on_a_terminal_only(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    firing = observation(40, NOW, states={"x/creative": "firing", "y/creative": "pending"}, events=(EVENT,))
    plain = lines(firing)
    coloured = lines(firing, stream=Terminal())
    assert not any("\x1b" in line for line in plain)
    assert "\x1b[31m● x firing\x1b[0m  \x1b[33m○ y pending\x1b[0m" in coloured[0]
    assert "\x1b[31mCRITICAL\x1b[0m" in coloured[2]
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in coloured] == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert lines(firing, stream=Terminal()) == plain


def test_a_stream_that_cannot_write_the_marks():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    ConsoleSink(stream).emit(observation(4, NOW, domains=["é"], states={"x/é": "firing"}))
    line, legend = raw.getvalue().decode("ascii").splitlines()
    assert line.startswith("divmon  step 4  \\xe9: surface")
    assert line.endswith("* x firing")
    assert ") - formats: effective number - prose 71%: top format" in legend


def test_change_is_not_made_up_where_the_baseline_is_zero_or_this_very_step():
    zero, later = observation(0, {"tail_share": 0.0}), observation(4, {"tail_share": 0.5})
    assert lines(zero, later)[2] == "divmon  step 4  creative: tail .50"
    assert lines(zero, close=True)[-2:] == [
        "divmon  metric             domain    step 0  95% interval   alarms fired",
        "divmon  tail_share (tail)  creative  .000    -.050 to .050  -",
    ]
    same = lines(observation(0, BASE), observation(4, {"tfidf_distance": 0.6929}))
    assert "surface .69 (0%)" in same[2]


def test_closing_without_any_evaluation():
    assert lines(close=True) == ["divmon  no evaluation took place"]


def test_an_alarm_on_a_series_that_was_never_measured_is_in_the_table():
    event = AlarmEvent(8, "gone", "math", "coverage", "firing", "warning", float("nan"))
    table = lines(observation(8, {"tfidf_distance": 0.5}, events=(event,)), close=True)
    assert table[-1].split() == ["divmon", "coverage", "math", "-", "-", "gone", "at", "8"]


def test_standard_output_goes_through_tqdm_so_that_bars_survive(capsys, monkeypatch):
    from tqdm import tqdm

    written = []
    monkeypatch.setattr(tqdm, "write", lambda text, file=None: written.append((text, file)))
    ConsoleSink().emit(observation(0, {"pass_at_1": 0.5}))
    ConsoleSink(sys.stderr).emit(observation(0, {"pass_at_1": 0.5}))
    ConsoleSink(io.StringIO()).emit(observation(0, {"pass_at_1": 0.5}))
    assert written == [("divmon  step 0  creative: pass@1 .50", stream) for stream in (sys.stdout, sys.stderr)]
    assert capsys.readouterr().out == ""


def test_with_a_real_bar_open(capsys):
    from tqdm import tqdm

    with tqdm(total=2, file=sys.stderr) as bar:
        bar.update(1)
        ConsoleSink().emit(observation(0, {"pass_at_1": 0.5}))
    assert capsys.readouterr().out == "divmon  step 0  creative: pass@1 .50\n"


def test_a_second_training_with_the_same_sink_is_a_run_of_its_own():
    out = io.StringIO()
    sink = ConsoleSink(out)
    for _ in range(2):
        sink.emit(Observation(0, (Measurement(0, "math", "tfidf_distance", 0.5),)))
        sink.close()
    first, second = out.getvalue()[: len(out.getvalue()) // 2], out.getvalue()[len(out.getvalue()) // 2 :]
    assert first == second
    assert "tfidf_distance" in first


CHECKED = Verdict(50, "fall", "math", "vendi drop beyond 10%", "refuted", attempt=2, level=0.0076, p=0.21, left=0.012)


def test_a_confirmation_that_does_not_confirm_is_said():
    unknown = replace(CHECKED, step=60, outcome="unknown", attempt=0, reason="out of confirmations: all 8 are spent")
    seen = [
        replace(observation(step, {"self_bleu": 0.5}), verdicts=(verdict,))
        for step, verdict in ((50, CHECKED), (60, unknown), (70, replace(unknown, step=70)))
    ]
    assert [line for line in lines(*seen) if "checked" in line] == [
        "divmon  checked fall (math): screened at step 50, not confirmed: p = 0.21 > 0.0076 (0.012 of alpha left)",
        "divmon  checked fall (math): screened at step 60, but unknown: out of confirmations: all 8 are spent",
    ]
    hostile = replace(CHECKED, outcome="unknown", reason="\x1b[31mno\n", attempt=1)
    [line] = [x for x in lines(replace(seen[0], verdicts=(hostile,))) if "checked" in x]
    assert "\x1b" not in line


def test_what_is_confirmed_is_promised_once():
    event = replace(
        EVENT,
        evidence="confirm",
        message="vendi fell 40 %, confirmed (p = 0.002).",
        details={"promise": "At most 5 %."},
    )
    both = alerts(event, replace(event, domain="math"))
    assert sum("confirmed by fresh completions: At most 5 %." in line for line in both) == 1
    assert not any("unconfirmed" in line for line in both)
    assert "(p = 0.002)" in both[0]


def test_the_promise_of_a_confirmed_alarm_is_not_cut():
    promise = "At most 5 % of runs would confirm any alarm at any evaluation, had training changed nothing."
    event = replace(EVENT, evidence="confirm", details={"promise": promise})
    stream = io.StringIO()
    ConsoleSink(stream).emit(observation(40, NOW, events=(event,)))
    assert f"confirmed by fresh completions: {promise}\n" in stream.getvalue()
