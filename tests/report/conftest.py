"""What the tests of the report share: synthetic runs on disk, and a reader that refuses what could run or load."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from divmon.alarms import Rule, dump_rules
from divmon.history import History
from divmon.metrics import METRICS
from divmon.monitor import Lenses, Monitor
from divmon.records import Decoding, Measurement, Probe, SampleBatch

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
RULE = Rule(
    "collapse",
    metric="tfidf_distance",
    rule="drop",
    by="30%",
    for_=1,
    severity="critical",
    evidence="screen",
    then=("save",),
)
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


def point(step: int, value: float, **rest: Any) -> Measurement:
    given: dict[str, Any] = {"domain": "poems", "metric": "tfidf_distance", "signature": "k:4"}
    return Measurement(step, value=value, **given | rest)


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The names above, for test modules."""
    return SimpleNamespace(
        Run=Run, recorded=recorded, checked=checked, point=point, varied=varied, alike=alike, HOSTILE=HOSTILE
    )
