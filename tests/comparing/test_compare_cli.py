"""``divmon compare``: its table, JSON and page, and that nothing a run is called can do more than be read."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from divmon.cli import main
from divmon.comparing.engine import compare
from divmon.comparing.groups import Group
from divmon.comparing.page import render
from divmon.comparing.table import WIDTH, table
from divmon.measuring.results import columns

EVIL = "<script>x</script>$\\frac{\x00\u202e\ud800{{ 7 * 7 }}"
FAST = {"pass_at_1": [0.0, 0.5, 1.0], "effective_formats": [4.0, 3.0, 2.0], "tfidf_distance": [[0.5] * 6] * 3}
SLOW = {"pass_at_1": [0.0, 0.25, 0.5], "effective_formats": [4.0, 3.5, 3.3], "tfidf_distance": [[0.6] * 6] * 3}


@pytest.fixture
def runs(kit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in (1, 2):
        kit.recorded(tmp_path / "runs" / f"fast-{i}", FAST)
        kit.recorded(tmp_path / "runs" / f"slow-{i}", SLOW)
    return tmp_path / "runs"


def test_the_table(runs, capsys):
    assert main(["compare", "runs/fast-1", "runs/slow-1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0] == "Compared at equal quality, never at equal step. Reference: fast-1."
    where = "sums: at pass_at_1 0.5, the highest that all reach (fast-1 at step 10, slow-1 at step 20)"
    assert where in out
    assert re.search(
        r"\ntfidf_distance +fast-1 +0\.5\n +slow-1 +0\.6 +1\.2 +\+0\.1 +\+0\.1 to \+0\.1 +6 prompts\n", out
    )
    assert re.search(r"\n +slow-1 +3\.3 +1\.1 +\+0\.3\n", out)
    assert out.index(where) < out.index("sums: second, at the last common step 20, where quality differs")
    assert "effective_formats of slow-1: no interval: one run a side, and the number is no mean of values by" in out


def test_groups_as_json_and_page(runs, capsys):
    arguments = ["compare", "--group", "fast=runs/fast-*", "--group", "slow=runs/slow-*", "--at", "0.25"]
    assert main([*arguments, "--json", "out.json", "--html", "out.html"]) == 0
    out = capsys.readouterr().out
    assert "as asked for (fast at step 5, slow at step 10)" in out
    assert "paired t, 2 pairs" in out
    found = json.loads((runs.parent / "out.json").read_text())
    assert list(found["groups"]) == ["fast", "slow"]
    [domain] = found["domains"]
    formats = next(row for row in domain["matched"]["rows"] if row["metric"] == "effective_formats")
    assert formats["estimates"][0]["ratio"] is None
    assert formats["estimates"][1]["runs"] == [3.5, 3.5]
    assert "<title>fast, slow · divmon compare</title>" in (runs.parent / "out.html").read_text("utf-8")
    assert main([*arguments, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_the_command_in_the_readme_runs(kit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in (0, 1):
        kit.recorded(tmp_path / "runs" / f"plain-{i}", FAST)
        kit.recorded(tmp_path / "runs" / f"lever-{i}", SLOW)
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    [command] = re.findall(r"^divmon compare .*", readme, re.MULTILINE)
    assert main(shlex.split(command, comments=True)[1:]) == 0
    assert "95 % intervals" in read(Path("compare.html").read_text("utf-8"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "got nothing: name two folders of runs, or two --group NAME=GLOB"),
        (["runs/fast-1"], "got 'fast-1' alone"),
        (["runs/fast-1", "runs"], "No divmon run in runs"),
        (["runs/fast-1", "runs/fast-1"], "is named twice"),
        (["runs/fast-1", "runs/slow-1", "--at", "0.9"], "All share 0 to 0.5 in sums"),
        (["runs/fast-1", "runs/slow-1", "--metric", "tfdf_distance"], "Did you mean 'tfidf_distance'"),
        (["runs/fast-1", "--group", "slow"], "must be NAME=GLOB"),
        (["runs/fast-1", "--group", "slow=nowhere/*"], "no folder matches 'nowhere/*'"),
        (["runs/fast-1", "runs/slow-1", "--json", "runs/fast-1"], "Cannot write runs/fast-1"),
    ],
)
def test_what_is_wrong_exits_with_2_and_says_what_to_do(runs, arguments, said, capsys):
    assert main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("divmon: ")
    assert said in err
    assert out == ""


def test_it_loads_no_gpu_stack_and_prints_on_a_poor_terminal(runs):
    shown = "[name for name in ('torch', 'trl', 'matplotlib') if name in sys.modules]"
    code = f"import sys; from divmon.cli import main; main(sys.argv[1:]); print({shown})"
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", "runs/fast-1", "--group", "lent\u00e9\u202e=runs/slow-*"],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout.isascii()


class Reader(HTMLParser):
    """Refuses what could run or load, and collects what is read."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "form", "img", "a"), tag
        for name, value in attrs:
            assert not name.startswith("on")
            assert name != "src"
            assert not name.endswith("href") or (value or "").startswith("#")
        if tag not in ("meta", "br", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", page)
    assert "nan" not in re.findall(r"[a-z]+", reader.text)
    return re.sub(r"\s+", " ", reader.text)


def hostile(kit, tmp_path, name):
    series = {"pass_at_1": [0.0, 0.5, 1.0], EVIL: [1.0, math.nan, 2.0], "tfidf_distance": [[0.5] * 6] * 3}
    signatures = {EVIL: EVIL}
    run = kit.recorded(
        tmp_path / f"<img src=x onerror=alert(1)>{len(name)}", series, domain=EVIL, signatures=signatures
    )
    return Group(name, (run,))


def test_hostile_names_are_only_ever_read(kit, tmp_path):
    found = compare([hostile(kit, tmp_path, name) for name in (EVIL, EVIL + "</style>", "比" * 90, "long-" * 40 + "7")])
    page = render(found)
    text = read(page)
    assert "<script>x" in text
    assert "{{ 7 * 7 }}" in text
    assert "\\u202e" in text
    printed = table(found)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e\ud800]", printed)
    assert max(map(columns, printed.splitlines())) <= WIDTH
    assert re.search(r"\n +long-[long…-]+-7 +0\.5 ", printed)


def test_pages_without_quality_or_a_common_step(kit, tmp_path):
    a = kit.recorded(tmp_path / "a", {"tfidf_distance": [0.9, 0.8]}, steps=(0, 10))
    b = kit.recorded(tmp_path / "b", {"tfidf_distance": [0.9, 0.6]}, steps=(0, 11))
    c = kit.recorded(tmp_path / "c", {"tfidf_distance": [0.9, 0.6]}, steps=(1, 12))
    found = compare([Group("a", (a,)), Group("b", (b,))])
    assert "Not at equal quality" in read(render(found))
    assert "sums: NOT at equal quality. no quality was measured in a, b" in table(found)
    assert "sums: only at the last common step 0, where quality may differ" in table(found)
    found = compare([Group("a", (a,)), Group("c", (c,))])
    assert "no step was evaluated in every run" in table(found)
    read(render(found))
