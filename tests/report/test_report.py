"""The report: what it says is what was recorded, and nothing a model wrote can do more than be read."""

from __future__ import annotations

import html
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from divmon.alarms import Rule, dump_rules
from divmon.cli import main
from divmon.errors import HistoryError, SignatureMismatch
from divmon.history import Evaluation, History
from divmon.metrics import METRICS
from divmon.monitor import Lenses, Monitor
from divmon.records import AlarmEvent, Decoding, Measurement, Probe, SampleBatch
from divmon.report import write
from divmon.report.tables import changes
from divmon.report.text import interval, number, percent, visible

HOSTILE = (
    "<script>document.documentElement.dataset.pwned = 1</script>",
    '<img src=x onerror="parent.document.documentElement.dataset.pwned = 2">',
    "</style></title></pre></textarea><svg onload=alert(1)><script>top.dataset=3</script>",
    "{{ 7 * 7 }}{% raw %}{{ runs }} ]]> --> <!-- $\\frac{1}{0}$ &lt;b&gt;",
    "left \u202egnp.exe\u2066 right \u200b\ufeff \U000e0041",
    "nul \x00 bell \x07 escape \x1b[31m del \x7f c1 \x9b",
    "lone \ud800 surrogate \udfff and \uffff",
    "x" * 100_000,
    "<a href='javascript:alert(1)' onclick='alert(2)'>y</a>\n" * 500,
)
RULE = Rule("collapse", metric="tfidf_distance", rule="drop", by="30%", for_=1, severity="critical", then=("save",))
WORDS = ("river", "lamp", "orange", "quiet", "seven", "garden", "metal", "cloud", "paper", "winter")


def varied(p: int, k: int, step: int) -> str:
    return " ".join(WORDS[(p + k * j + step) % len(WORDS)] for j in range(1, 6)) + f" {k * 7 + p}"


def alike(p: int, k: int, step: int) -> str:
    return varied(p, k, step) if step < 20 else f"always the same {p}"


class Run:
    """Builds a History on disk by observing synthetic batches."""

    def __init__(self, path: Path, *, domains: Sequence[str] = ("poems",), rules: Sequence[Rule] = (RULE,)) -> None:
        self.probes = tuple(
            Probe(f"{d}-{i}", f"Write about {WORDS[i]}.", domain=d, difficulty=1 + i % 3)
            for d in domains
            for i in range(6)
        )
        info = {"fingerprint": "f00d", "rules": dump_rules(rules), "k": 4}
        self.history = History.create(path, probes=self.probes, info=info)
        self.rules = rules

    def monitor(self, quality: Callable[[Probe, str], float] | None = None, **rest: Any) -> Monitor:
        lenses = Lenses(quality=quality, judge="test" if quality else "auto")
        return Monitor(list(METRICS.values()), rules=self.rules, history=self.history, lenses=lenses, **rest)

    def batch(self, step: int, text: Callable[[int, int, int], str], *, key: int = 0) -> SampleBatch:
        texts = tuple(tuple(text(p, k, step) for k in range(4)) for p in range(len(self.probes)))
        return SampleBatch(step, self.probes, texts, decoding=Decoding(key=key), fingerprint="f00d")


def recorded(
    path: Path, text: Callable[[int, int, int], str] = alike, *, steps: Sequence[int] = (0, 10, 20, 30), **rest: Any
) -> History:
    quality, key, keep = rest.pop("quality", None), rest.pop("key", 0), rest.pop("keep_completions", True)
    run = Run(path, **rest)
    monitor = run.monitor(quality, keep_completions=keep)
    for step in steps:
        monitor.observe(run.batch(step, text, key=key))
    return run.history


class Checker(HTMLParser):
    """Collects what a page holds, and refuses whatever could run or load."""

    VOID = frozenset({"meta", "br", "img", "hr", "input", "link"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "form", "img", "a"), tag
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            assert name != "src"
            if name.endswith("href"):
                assert (value or "").startswith("#"), value
            if name == "style":
                assert "url(" not in (value or "") or "url(#" in (value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def checked(path: Path) -> tuple[str, str]:
    """The page and its visible text, after every check that holds for all pages."""
    page = path.read_bytes().decode("utf-8")
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.tags.count("main") == 1
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?\s*(https?:|//)", page)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\u200b]", page)
    assert "nan" not in re.findall(r"[a-z]+", " ".join(checker.texts))
    return page, re.sub(r"\s+", " ", " ".join(checker.texts))


def shown(text: str) -> str:
    return " ".join(text.split())


def test_the_verdict_names_what_fell_by_how_much_when_and_how_sure(tmp_path: Path) -> None:
    history = recorded(tmp_path / "run", quality=lambda probe, text: float("winter" in text))
    _, text = checked(write(tmp_path / "run", out=tmp_path / "r.html"))
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


def test_numbers_are_those_of_the_history(tmp_path: Path) -> None:
    history = recorded(tmp_path / "run", quality=lambda probe, text: float("winter" in text))
    page, text = checked(write(history, out=tmp_path / "r.html"))
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


def test_a_quiet_run_says_so_and_how_small_a_fall_it_could_see(tmp_path: Path) -> None:
    recorded(tmp_path / "run", varied)
    _, text = checked(write(tmp_path / "run", out=tmp_path / "r.html"))
    assert "No alarm fired in 4 evaluations, from step 0 to step 30." in text
    assert "would hide in the noise of 6 prompts × 4 completions" in text
    assert "no quality: pass quality=" in text


def test_no_rules_is_not_an_all_clear(tmp_path: Path) -> None:
    recorded(tmp_path / "run", rules=())
    _, text = checked(write(tmp_path / "run", out=tmp_path / "r.html"))
    assert "but no alarm was set" in text
    assert "Narrower beyond noise" in text
    blind = Rule("solved", metric="coverage", rule="drop", by=0.2)
    recorded(tmp_path / "blind", varied, rules=(blind,))
    _, text = checked(write(tmp_path / "blind", out=tmp_path / "b.html"))
    assert "Could not be judged at all: solved/poems (no quality" in text


def test_one_evaluation_and_none(tmp_path: Path) -> None:
    recorded(tmp_path / "one", steps=(0,))
    _, text = checked(write(tmp_path / "one", out=tmp_path / "r.html"))
    assert "Only one evaluation was recorded (step 0)" in text
    empty = Run(tmp_path / "empty")
    with pytest.raises(HistoryError, match="No evaluation was recorded"):
        write(empty.history, out=tmp_path / "e.html")
    assert not (tmp_path / "e.html").exists()


def test_several_domains_missing_values_and_no_completions(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", domains=("poems", "math"))
    monitor = run.monitor(keep_completions=False)
    monitor.observe(run.batch(0, alike), health={"sample_seconds": 2.0})
    monitor.observe(run.batch(10, alike), health={"sample_seconds": 3.5})
    monitor.missed(20, health={"sampler_failures": 1.0})
    _, text = checked(write(tmp_path / "run", out=tmp_path / "r.html"))
    assert "Domain poems" in text
    assert "Domain math" in text
    assert "All domains together" in text
    assert "No completions were recorded at step" in text
    assert "the sampler failed; see divmon/health/sampler_failures" in text
    assert "5.5 s" in text


def test_failures_are_counted_over_resumed_runs(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    for step, failures in ((0, 1.0), (10, 3.0), (20, 0.0), (30, 2.0)):
        run.history.append(Evaluation(step, (_point(step, 0.5),), health={"disk_failures": failures}))
    _, text = checked(write(run.history, out=tmp_path / "r.html"))
    assert "disk: 5" in text


def _point(step: int, value: float, **rest: Any) -> Measurement:
    given: dict[str, Any] = {"domain": "poems", "metric": "tfidf_distance", "signature": "k:4"}
    return Measurement(step, value=value, **given | rest)


def test_hostile_completions_are_only_ever_read(tmp_path: Path) -> None:
    history = recorded(tmp_path / "run", lambda p, k, s: HOSTILE[(p + k + s) % len(HOSTILE)], steps=(0, 1, 2))
    page, text = checked(write(history, out=tmp_path / "r.html"))
    assert "<script" not in page
    assert len(page) < 3_000_000
    for seen in (
        "<script>document",
        "\\u202egnp.exe",
        "\\x00 bell",
        "\\x1b[31m",
        "\\ud800",
        "\\U000e0041",
        "\\x9b",
        "\\uffff",
        "{{ 7 * 7 }}",
    ):
        assert seen in text, seen
    assert "99,400 more characters" in text


def test_hostile_names_and_messages_are_only_ever_read(tmp_path: Path) -> None:
    evil = "<script>x</script>$\\frac{\x00\u202e\ud800"
    probes = tuple(Probe(f"p{i}", evil, domain=evil) for i in range(6))
    history = History.create(tmp_path / "run", probes=probes, info={"fingerprint": evil, "rules": evil})
    shares = {evil: 0.6, "$x^{": 0.4}
    for step in (0, 1):
        row = (
            _point(step, 0.5, domain=evil, metric=evil, signature=evil, reason=evil),
            _point(step, 0.6, domain=evil, metric="format_dominance", signature="k:1", details={"shares": shares}),
            _point(
                step, 0.6, domain=evil, metric="tail_share",
                details={"shares": shares, "baseline_shares": {evil: math.nan}, "tail_levels": [evil]},
            ),
            _point(step, math.nan, domain=evil, metric="coverage", reason=evil),
        )  # fmt: skip
        told = {"severity": evil, "value": 0.1, "baseline": 0.5, "message": evil * 900, "actions": (evil,)}
        event = AlarmEvent(step, evil, evil, evil, "firing", **told)  # type: ignore[arg-type]
        history.append(Evaluation(step, row, (event,)))
    page, text = checked(write(History.read(tmp_path / "run"), out=tmp_path / "r.html"))
    assert "&lt;script&gt;x&lt;/script&gt;$\\frac{\\x00\\u202e\\ud800" in page
    assert "<script>x</script>" in text


def test_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    a = recorded(tmp_path / "a", quality=lambda probe, text: 1.0)
    b = recorded(tmp_path / "b", varied, quality=lambda probe, text: 1.0)
    page, text = checked(write(a, other=b, out=tmp_path / "r.html"))
    assert "Side by side, at the end" in text
    assert "No alarm fired in 4 evaluations" in text
    for history in (a, b):
        assert f"→ {number(history.series('tfidf_distance', 'poems').values[-1])}" in text
    assert page.count('scope="colgroup"') == 2
    assert "var(--b)" in page.split("<svg", 1)[1]


def test_runs_measured_differently_are_refused_or_labelled(tmp_path: Path) -> None:
    a = recorded(tmp_path / "a")
    with pytest.raises(SignatureMismatch, match=r"key:0 against .*key:1"):
        write(a, other=recorded(tmp_path / "b", key=1), out=tmp_path / "r.html")
    left, right = Run(tmp_path / "l").history, Run(tmp_path / "m").history
    for step in (0, 1):
        left.append(Evaluation(step, (_point(step, 0.5), _point(step, 9.0, metric="length"))))
        right.append(Evaluation(step, (_point(step, 0.25, signature="k:8"), _point(step, 9.0, metric="length"))))
    _, text = checked(write(left, other=right, out=tmp_path / "r.html"))
    assert "measured differently: not comparable" in text
    assert "k:4 against k:8" in text
    assert "0.25 → 0.25" not in text


@pytest.mark.parametrize("n", [1, 3, 40])
def test_many_formats_keep_their_colours(tmp_path: Path, n: int) -> None:
    history = Run(tmp_path / "run").history
    shares = {f"format{i}": 1 / n for i in range(n)}
    for step in (0, 1):
        history.append(Evaluation(step, (_point(step, 1 / n, metric="format_dominance", details={"shares": shares}),)))
    _, text = checked(write(history, out=tmp_path / "r.html"))
    assert ("others" in text) == (n > 8)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(tmp_path / "out" / "divmon")
    assert main(["report", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")
    checked(tmp_path / "out" / "report.html")
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "No divmon run in" in capsys.readouterr().err


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    history = recorded(tmp_path / "run")
    pages = [write(history, out=tmp_path / name).read_bytes() for name in ("1.html", "2.html")]
    assert pages[0] == pages[1]
    assert 20_000 < len(pages[0]) < 500_000


def test_visible_leaves_ordinary_writing_alone() -> None:
    for text in ("plain\ttext\n", "日本語　漢字", "مرحبا", "👩‍🚀", "naïve café", "a\u00a0b"):
        assert visible(text) == text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--virtual-time-budget=2000",
)  # fmt: skip
PROBE = """<!doctype html><body style="margin:0">
<iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe>
<script>addEventListener("load", () => {{
const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
for (const d of page.querySelectorAll("details")) d.open = true;
const facts = {{width: root.clientWidth, needs: root.scrollWidth, scripts: page.scripts.length,
  pwned: root.dataset.pwned || document.documentElement.dataset.pwned || "no"}};
document.body.dataset.facts = Object.entries(facts).map(([k, v]) => k + "=" + v).join(" ");
}})</script>"""


def browse(where: Path, *arguments: str) -> str:
    """What headless Chromium prints."""
    assert CHROMIUM is not None
    profile = where / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on this machine")
def test_in_a_real_browser_it_fits_a_phone_and_runs_nothing(tmp_path: Path) -> None:
    def text(p: int, k: int, s: int) -> str:
        return HOSTILE[(p + k) % len(HOSTILE)] if k < 3 or s < 20 else HOSTILE[7]

    a = recorded(tmp_path / "a", text, domains=("poems", "m" * 300), quality=lambda probe, text: float(len(text) < 99))
    b = recorded(tmp_path / "b", text, domains=("poems", "m" * 300), quality=lambda probe, text: float(len(text) < 99))
    page = write(a, other=b, out=tmp_path / "r.html")
    for width in (360, 1280):
        wrapper = tmp_path / f"{width}.html"
        wrapper.write_text(PROBE.format(width=width, page=html.escape(page.read_text("utf-8"))), "utf-8")
        dom = browse(tmp_path, "--window-size=1400,900", "--dump-dom", wrapper.as_uri())
        facts = dict(pair.split("=") for pair in re.search(r'data-facts="([^"]*)"', dom)[1].split())  # type: ignore[index]
        assert facts["width"] == str(width)
        assert int(facts["needs"]) <= width
        assert (facts["scripts"], facts["pwned"]) == ("0", "no")
        image = tmp_path / f"{width}.png"
        browse(tmp_path, f"--window-size={max(width, 500)},900", f"--screenshot={image}", page.as_uri())
        pixels = _pixels(image)
        assert pixels.shape[1] == max(width, 500)
        assert pixels.std() > 5  # something was drawn


def _pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(path)) * 255
