"""What stands on the terminal, to the letter."""

from __future__ import annotations

import io
import re
import sys
import unicodedata

import pytest

from divmon.records import AlarmEvent, Measurement, Observation
from divmon.sinks import ConsoleSink
from divmon.sinks.console import WIDTH

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


def test_golden():
    firing = observation(40, NOW, states={"formats-collapse/creative": "firing"}, events=(EVENT,))
    assert lines(observation(0, BASE), firing, observation(44, NOW), close=True) == [
        "divmon  step 0  creative: surface .69  formats 3.1  prose 40%  pass@1 .80",
        "divmon  step 40  creative: surface .61 (-12%)  formats 2.1 (-33%)  prose 71% …  ● formats-collapse firing",
        "divmon  CRITICAL formats-collapse (creative, step 40): Formats fell from 3.1 to 2.1 (-33%), confirmed on fresh"
        " draws (p = 0.001). → save, stop",
        "divmon  step 44  creative: surface .61 (-12%)  formats 2.1 (-33%)  prose 71%  pass@1 .82",
        "divmon  metric             domain    baseline  last  change  95% interval  alarms fired",
        "divmon  tfidf_distance     creative  .693      .610  -12%    .560 to .660  -",
        "divmon  effective_formats  creative  3.13      2.10  -33%    2.05 to 2.15  formats-collapse at 40",
        "divmon  pass_at_1          creative  .800      .820  +2%     .770 to .870  -",
        "divmon  format_dominance   creative  .400      .710  +77%    .660 to .760  -",
    ]


def test_a_resolved_alarm_and_one_without_a_message():
    resolved = AlarmEvent(50, "x", "math", "vendi", "resolved", "critical", 2.0, message="Back above the line.")
    bare = AlarmEvent(50, "y", "math", "vendi", "firing", "warning", 2.0, actions=("warn",))
    pending = AlarmEvent(50, "z", "math", "vendi", "pending", "warning", 2.0)
    out = lines(observation(50, NOW, events=(resolved, bare, pending)))
    assert out[1:] == [
        "divmon  RESOLVED x (math, step 50): Back above the line.",
        "divmon  WARNING y (math, step 50): vendi is 2.0 → warn",
    ]


def test_the_only_domain_is_not_named_when_nobody_named_it():
    assert lines(observation(0, {"tfidf_distance": 0.5}, domains=["default"])) == ["divmon  step 0  surface .50"]


def test_every_domain_gets_its_first_item_before_any_gets_its_second():
    many = observation(20, NOW, domains=["creative", "math", "code", "dialogue"])
    (line,) = lines(many)
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
    (line,) = lines(now)
    assert columns(line) <= WIDTH
    assert line.isprintable()
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
    assert len(out) == 2 + 1 + len(NOW) + 1  # no line was broken in two
    assert all(line.isprintable() for line in out)
    assert "Prompt: \\x1b]0;owned\\x07\\x1b[2J\\r\\n\\ud800\\u202eevil" in out[1]
    "\n".join(out).encode("utf-8")


def test_colour_on_a_terminal_only(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    firing = observation(40, NOW, states={"x/creative": "firing", "y/creative": "pending"}, events=(EVENT,))
    plain = lines(firing)
    coloured = lines(firing, stream=Terminal())
    assert not any("\x1b" in line for line in plain)
    assert "\x1b[31m● x firing\x1b[0m  \x1b[33m○ y pending\x1b[0m" in coloured[0]
    assert "\x1b[31mCRITICAL\x1b[0m" in coloured[1]
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in coloured] == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert lines(firing, stream=Terminal()) == plain


def test_a_stream_that_cannot_write_the_marks():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    ConsoleSink(stream).emit(observation(4, NOW, domains=["é"], states={"x/é": "firing"}))
    assert raw.getvalue().decode("ascii").startswith("divmon  step 4  \\xe9: surface")
    assert raw.getvalue().decode("ascii").rstrip().endswith("* x firing")


def test_change_is_not_made_up_where_the_baseline_is_zero_or_this_very_step():
    zero, later = observation(0, {"tail_share": 0.0}), observation(4, {"tail_share": 0.5})
    assert lines(zero, later)[1] == "divmon  step 4  creative: tail .50"
    assert lines(zero, close=True)[-1] == "divmon  tail_share  creative  .000      .000  -       -.050 to .050  -"
    same = lines(observation(0, BASE), observation(4, {"tfidf_distance": 0.6929}))
    assert "surface .69 (0%)" in same[1]


def test_closing_without_any_evaluation():
    assert lines(close=True) == ["divmon  no evaluation took place"]


def test_an_alarm_on_a_series_that_was_never_measured_is_in_the_table():
    event = AlarmEvent(8, "gone", "math", "coverage", "firing", "warning", float("nan"))
    table = lines(observation(8, {"tfidf_distance": 0.5}, events=(event,)), close=True)
    assert table[-1].split() == ["divmon", "coverage", "math", "-", "-", "-", "-", "gone", "at", "8"]


def test_standard_output_goes_through_tqdm_so_that_bars_survive(capsys, monkeypatch):
    from tqdm import tqdm

    written = []
    monkeypatch.setattr(tqdm, "write", lambda text, file=None: written.append((text, file)))
    ConsoleSink().emit(observation(0, {"tfidf_distance": 0.5}))
    ConsoleSink(sys.stderr).emit(observation(0, {"tfidf_distance": 0.5}))
    ConsoleSink(io.StringIO()).emit(observation(0, {"tfidf_distance": 0.5}))
    assert written == [("divmon  step 0  creative: surface .50", stream) for stream in (sys.stdout, sys.stderr)]
    assert capsys.readouterr().out == ""


def test_with_a_real_bar_open(capsys):
    from tqdm import tqdm

    with tqdm(total=2, file=sys.stderr) as bar:
        bar.update(1)
        ConsoleSink().emit(observation(0, {"tfidf_distance": 0.5}))
    assert capsys.readouterr().out == "divmon  step 0  creative: surface .50\n"
