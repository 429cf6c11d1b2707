"""What is wrong with a lineage and its arguments is said; the page, the command line, W&B."""

from __future__ import annotations

import html
import json
import math
import re
from html.parser import HTMLParser

import pytest

import divmon
from divmon.cli import main
from divmon.errors import ConfigError, ProbeError
from divmon.tracing.attribution import AGGREGATORS
from divmon.tracing.lineage import Lineage

EVIL = "<script>x</script>$\\frac{\x00\u202e\ud800{{ 7 * 7 }}"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "checkpoints:\n  base: b\n  sft: {sauce: s}",
            "line 3: Unknown field of checkpoint 'sft' 'sauce'. Did you mean 'source'",
        ),
        ("checkpoints:\n  base: b\n  sft: {parent: base}", "line 3: checkpoint 'sft' has no field 'source'"),
        ("checkpoints:\n- {name: base, source: b}\n\n- {source: s}", "line 4: a checkpoint has no field 'name'"),
        ("checkpoints:\n  base: b\n  sft: [1]", "line 3: checkpoint 'sft' must be a folder"),
        ("checkpoints:\n  base: b\n  sft: {source: 3}", "line 3: Checkpoint 'sft': 'source' must be a text, not 3"),
        (
            "checkpoints:\n  base: b\n  a: c\ncheckpoints:\n  base: b",
            "line 4: 'checkpoints' is written twice (first in line 1",
        ),
        ("checkpoints:\n  base: b\n  base: c", "line 3: checkpoint 'base' is written twice"),
        (
            "checkpoints:\n  base: b\n  sft: {source: s, parent: bse}",
            "Unknown parent of 'sft' 'bse'. Did you mean 'base'",
        ),
        (
            "checkpoints:\n  base: b\n  sft: {source: s, reasoning: no}",
            "line 3: Checkpoint 'sft': 'reasoning' must be a text",
        ),
        ("stages:\n  base: b", "must hold 'checkpoints:'"),
        ("checkpoints: {a: [", "is not YAML"),
        ("checkpoints:\n  base: b", "at least two checkpoints"),
    ],
)
def test_what_is_wrong_with_a_lineage_is_said_with_its_line(text, wanted, tmp_path):
    path = tmp_path / "lineage.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        Lineage.of(path)


def test_wrong_arguments_name_what_is_wrong(rows, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"text": 3}\n')
    with pytest.raises(ProbeError, match=r"p\.jsonl, line 2 has no prompt"):
        divmon.trace({"a": "a", "b": "b"}, tmp_path / "p.jsonl", out=tmp_path)
    for wrong, wanted in (
        ({"every": 3}, "every is for a trainer"),
        ({"metric": []}, "Did you mean 'metrics'"),
        ({"quality": "rewards"}, "needs a trainer"),
        ({"per": "tasks"}, "Did you mean 'task'"),
        ({"aggregator": "mean"}, "Known: mean of ratios, ratio of means"),
    ):
        with pytest.raises(ConfigError, match=wanted):
            divmon.trace({"a": "a", "b": "b"}, rows, out=tmp_path, **wrong)


class Reader(HTMLParser):
    """Which tags a page has, and what it would load."""

    def __init__(self):
        super().__init__()
        self.tags, self.loaded, self.text = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loaded += [v for k, v in attrs if k in ("src", "href") and not (v or "").startswith("#")]
        assert not [k for k, _ in attrs if k.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)


def test_hostile_names_are_only_ever_read(told, read_number, tmp_path):
    from divmon.metrics.base import Metric, from_function

    rows = {EVIL: {f"p{i}": 0.8 + i / 100 for i in range(12)}, "sft": {f"p{i}": 0.3 + i / 90 for i in range(12)}}
    metric = Metric("score", from_function(read_number, name="score").fn, EVIL, "user", "higher", min_k=1)
    probes = [{"id": f"p{i}", "prompt": f"p{i}", "domain": EVIL if i % 2 else "b"} for i in range(12)]
    lineage = [{"name": EVIL, "source": EVIL, "group": ""}, {"name": "sft", "source": "s", "group": EVIL + "g"}]
    found = divmon.trace(lineage, probes, out=tmp_path, draw=told(rows), metrics=[metric], k=2)
    page = found.page()
    read = Reader()
    read.feed(page)
    assert "script" not in read.tags
    assert not read.loaded
    assert "\\u202e" in "".join(read.text)
    assert "{{ 7 * 7 }}" in html.unescape(page)
    assert "\x00" not in page
    assert "\u202e" not in found.table()
    page.encode("utf-8")
    data, path = found.save(tmp_path)
    assert path.read_text("utf-8") == page
    assert json.loads(data.read_text())["checkpoints"][0]["name"] == EVIL


def test_the_command_line(checkpoints, rows, tmp_path, capsys, monkeypatch, read_wandb, offline_wandb):
    offline_wandb(tmp_path)
    (tmp_path / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "trace", f"base={checkpoints['base']}", f"sft={checkpoints['sft']}", "--probes", str(tmp_path / "probes.jsonl"),
        "--k", "4", "--max-new-tokens", "24", "--metric", "tfidf_distance", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main([*arguments, "--wandb"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("base → sft: sft lost most")
    assert re.search(r"\ntfidf_distance +base +0\.\d+ +100\.0\n +sft +base +0\.\d+ +\d\d\.\d ", out)
    found = json.loads((tmp_path / "out" / "trace.json").read_text())
    assert {series["aggregator"] for series in found["series"]} == set(AGGREGATORS)
    assert (tmp_path / "out" / "trace.html").exists()
    [logged] = read_wandb(tmp_path)
    kept = [
        row["divmon/trace/retained/tfidf_distance"]
        for row in logged.history
        if "divmon/trace/retained/tfidf_distance" in row
    ]
    assert kept == [100.0, pytest.approx(found["series"][-2]["stages"][1]["retained"])]
    lines = ["checkpoints:", f"  base: {checkpoints['base']}", f"  sft: {checkpoints['sft']}", "  gone: ./not/here"]
    (tmp_path / "lineage.yaml").write_text("\n".join(lines))
    assert main(["trace", str(tmp_path / "lineage.yaml"), *arguments[3:], "--json", "-"]) == 1
    again = json.loads(capsys.readouterr().out)
    assert [seen["failure"] != "" for seen in again["checkpoints"]] == [False, False, True]
    assert again["series"][-2]["stages"][1] == found["series"][-2]["stages"][1]
    assert main(["trace", "base=a", "base=b", *arguments[3:]]) == 2
    assert "Two checkpoints are called 'base'" in capsys.readouterr().err
    assert not math.isnan(again["values"]["sft"][0]["value"])
