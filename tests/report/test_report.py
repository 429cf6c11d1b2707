"""The report says what was recorded."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest

from divmon.alarms import Rule
from divmon.cli import main
from divmon.errors import HistoryError, SignatureMismatch
from divmon.history import Evaluation
from divmon.report import write
from divmon.report.tables import changes
from divmon.report.text import interval, number, percent, visible


def shown(text: str) -> str:
    return " ".join(text.split())


def test_the_verdict_names_what_fell_by_how_much_when_and_how_sure(kit: Any, tmp_path: Path) -> None:
    history = kit.recorded(tmp_path / "run", quality=lambda probe, text: float("winter" in text))
    _, text = kit.checked(write(tmp_path / "run", out=tmp_path / "r.html"))
    event = next(e for e in history.events() if e.state == "firing")
    series = history.series("tfidf_distance", "poems")
    change = changes(history)["poems/tfidf_distance"]
    assert event.step == 20
    assert "The outputs narrowed: at step 20, in poems, the surface distance fell 100 %" in text
    assert f"from {number(series.values[0])} to {number(series.values[2])}" in text
    assert "It is a screen, not a proof" in text
    assert f"95 % interval {interval(change.low, change.high, sign=True)}" in text
    assert "The alarm “collapse” asked to: save." in text
    assert "Quality fell as well: pass@1 went from" in text
    assert "checkpoint of about step 10 (before step 20)" in text
    assert shown(event.message) in text


def test_numbers_are_those_of_the_history(kit: Any, tmp_path: Path) -> None:
    history = kit.recorded(tmp_path / "run", quality=lambda probe, text: float("winter" in text))
    page, text = kit.checked(write(history, out=tmp_path / "r.html"))
    for key, change in changes(history).items():
        row = page.split(f"<code>{key.removeprefix('poems/')}</code>")[1].split("</tr>")[0]
        for m in (change.first, change.last):
            assert number(m.value) in row, key
            assert interval(m.low, m.high) in row, key
        assert html.escape(change.first.signature) in row
    assert percent(changes(history)["poems/tfidf_distance"].relative) in text
    shares = history.evaluations[-1].measurements
    top = next(m for m in shares if m.metric == "format_dominance")
    assert f"→ {100 * top.value:.0f} %" in text


def test_a_quiet_run_says_so_and_how_small_a_fall_it_could_see(kit: Any, tmp_path: Path) -> None:
    kit.recorded(tmp_path / "run", kit.varied)
    _, text = kit.checked(write(tmp_path / "run", out=tmp_path / "r.html"))
    assert "No alarm fired in 4 evaluations, from step 0 to step 30." in text
    assert "would hide in the noise of 6 prompts × 4 completions" in text
    assert "no quality: pass quality=" in text


def test_no_rules_is_not_an_all_clear(kit: Any, tmp_path: Path) -> None:
    kit.recorded(tmp_path / "run", rules=())
    _, text = kit.checked(write(tmp_path / "run", out=tmp_path / "r.html"))
    assert "but no alarm was set" in text
    assert "Narrower beyond noise" in text
    blind = Rule("solved", metric="coverage", rule="drop", by=0.2)
    kit.recorded(tmp_path / "blind", kit.varied, rules=(blind,))
    _, text = kit.checked(write(tmp_path / "blind", out=tmp_path / "b.html"))
    assert "Could not be judged at all: solved/poems (no quality" in text


def test_one_evaluation_and_none(kit: Any, tmp_path: Path) -> None:
    kit.recorded(tmp_path / "one", steps=(0,))
    _, text = kit.checked(write(tmp_path / "one", out=tmp_path / "r.html"))
    assert "Only one evaluation was recorded (step 0)" in text
    empty = kit.Run(tmp_path / "empty")
    with pytest.raises(HistoryError, match="No evaluation was recorded"):
        write(empty.history, out=tmp_path / "e.html")
    assert not (tmp_path / "e.html").exists()


def test_several_domains_missing_values_and_no_completions(kit: Any, tmp_path: Path) -> None:
    run = kit.Run(tmp_path / "run", domains=("poems", "math"))
    monitor = run.monitor(keep_completions=False)
    monitor.observe(run.batch(0, kit.alike), health={"sample_seconds": 2.0})
    monitor.observe(run.batch(10, kit.alike), health={"sample_seconds": 3.5})
    monitor.missed(20, health={"sampler_failures": 1.0})
    _, text = kit.checked(write(tmp_path / "run", out=tmp_path / "r.html"))
    assert "Domain poems" in text
    assert "Domain math" in text
    assert "All domains together" in text
    assert "No completions were recorded at step" in text
    assert "the sampler failed; see divmon/health/sampler_failures" in text
    assert "5.5 s" in text


def test_failures_are_counted_over_resumed_runs(kit: Any, tmp_path: Path) -> None:
    run = kit.Run(tmp_path / "run")
    for step, failures in ((0, 1.0), (10, 3.0), (20, 0.0), (30, 2.0)):
        run.history.append(Evaluation(step, (kit.point(step, 0.5),), health={"disk_failures": failures}))
    _, text = kit.checked(write(run.history, out=tmp_path / "r.html"))
    assert "disk: 5" in text


def test_two_runs_stand_side_by_side(kit: Any, tmp_path: Path) -> None:
    a = kit.recorded(tmp_path / "a", quality=lambda probe, text: 1.0)
    b = kit.recorded(tmp_path / "b", kit.varied, quality=lambda probe, text: 1.0)
    page, text = kit.checked(write(a, other=b, out=tmp_path / "r.html"))
    assert "Side by side, at the end" in text
    assert "No alarm fired in 4 evaluations" in text
    for history in (a, b):
        assert f"→ {number(history.series('tfidf_distance', 'poems').values[-1])}" in text
    assert page.count('scope="colgroup"') == 2
    assert "var(--b)" in page.split("<svg", 1)[1]


def test_runs_measured_differently_are_refused_or_labelled(kit: Any, tmp_path: Path) -> None:
    a = kit.recorded(tmp_path / "a")
    with pytest.raises(SignatureMismatch, match=r"key:0 against .*key:1"):
        write(a, other=kit.recorded(tmp_path / "b", key=1), out=tmp_path / "r.html")
    left, right = kit.Run(tmp_path / "l").history, kit.Run(tmp_path / "m").history
    for step in (0, 1):
        left.append(Evaluation(step, (kit.point(step, 0.5), kit.point(step, 9.0, metric="length"))))
        right.append(Evaluation(step, (kit.point(step, 0.25, signature="k:8"), kit.point(step, 9.0, metric="length"))))
    _, text = kit.checked(write(left, other=right, out=tmp_path / "r.html"))
    assert "measured differently: not comparable" in text
    assert "k:4 against k:8" in text
    assert "0.25 → 0.25" not in text


@pytest.mark.parametrize("n", [1, 3, 40])
def test_many_formats_keep_their_colours(kit: Any, tmp_path: Path, n: int) -> None:
    history = kit.Run(tmp_path / "run").history
    shares = {f"format{i}": 1 / n for i in range(n)}
    for step in (0, 1):
        history.append(
            Evaluation(step, (kit.point(step, 1 / n, metric="format_dominance", details={"shares": shares}),))
        )
    _, text = kit.checked(write(history, out=tmp_path / "r.html"))
    assert ("others" in text) == (n > 8)


def test_the_command(kit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kit.recorded(tmp_path / "out" / "divmon")
    assert main(["report", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")
    kit.checked(tmp_path / "out" / "report.html")
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "No divmon run in" in capsys.readouterr().err


def test_the_same_run_gives_the_same_page(kit: Any, tmp_path: Path) -> None:
    history = kit.recorded(tmp_path / "run")
    pages = [write(history, out=tmp_path / name).read_bytes() for name in ("1.html", "2.html")]
    assert pages[0] == pages[1]
    assert 20_000 < len(pages[0]) < 500_000


def test_quality_decides_whether_narrowing_may_be_benign(kit: Any, tmp_path: Path) -> None:
    better = kit.recorded(tmp_path / "better", quality=lambda probe, text: float("always" in text))
    _, text = kit.checked(write(better, out=tmp_path / "r.html"))
    assert "Quality rose: pass@1 went from 0 to 1" in text
    assert "This may be benign convergence" in text
    same = kit.recorded(tmp_path / "same", quality=lambda probe, text: 1.0)
    _, text = kit.checked(write(same, out=tmp_path / "s.html"))
    assert "Nothing measurable: pass@1 went from 1 to 1" in text
    _, text = kit.checked(write(kit.recorded(tmp_path / "unjudged"), out=tmp_path / "u.html"))
    assert "Unknown: nothing judged the completions" in text


def test_an_alarm_that_resolved_and_one_that_is_no_narrowing(kit: Any, tmp_path: Path) -> None:
    rules = (
        Rule(
            "collapse",
            metric="tfidf_distance",
            rule="drop",
            by="30%",
            for_=1,
            clear_for=1,
            severity="critical",
            evidence="screen",
        ),
        Rule("long", metric="length", rule="rise", by="20%", for_=1),
    )

    def text(p: int, k: int, step: int) -> str:
        if step == 20:
            return "the very same seven words each time"
        said = kit.varied(p, k, step)
        return said + "".join(f" {(p * 97 + k * 31 + i * 7) ** 3}" for i in range(step // 5))

    history = kit.recorded(tmp_path / "run", text, rules=rules, quality=lambda probe, text: 1.0)
    _, text_ = kit.checked(write(history, out=tmp_path / "r.html"))
    states = [(e.step, e.alarm, e.state) for e in history.events()]
    assert (20, "collapse", "firing") in states
    assert (30, "collapse", "resolved") in states
    assert "Fired at step 20, resolved at step 30" in text_
    assert "1 more alarm fired" in text_
    only = kit.recorded(tmp_path / "long", text, rules=rules[1:], quality=lambda probe, text: 1.0)
    _, text_ = kit.checked(write(only, out=tmp_path / "l.html"))
    assert "An alarm fired: at step 10, in poems, the length rose" in text_
    assert "Narrower without being better" not in text_


def test_visible_leaves_ordinary_writing_alone() -> None:
    for text in ("plain\ttext\n", "日本語　漢字", "مرحبا", "👩‍🚀", "naïve café", "a\u00a0b"):
        assert visible(text) == text
