"""The command line: what reads needs no GPU stack, errors exit with 2 and one line, and a measured file is a run."""

import json
import math
import os
import re
import subprocess
import sys

import pytest

from divmon.cli import main
from divmon.history import History
from divmon.metrics import METRICS
from divmon.protocols import PROTOCOLS

HEAVY = ("torch", "transformers", "trl", "wandb", "sentence_transformers", "accelerate", "datasets", "peft")
ROWS = [
    {"prompt": f"{i}+1?", "completions": [f"The answer is {i + 1}.", f"- it is\n- {i}", "no idea"], "gold": str(i + 1),
     "domain": "sums" if i < 5 else "talk"}
    for i in range(7)
]  # fmt: skip


def run(*arguments, **kwargs):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, **kwargs)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path):
    return jsonl(tmp_path / "completions.jsonl", ROWS)


@pytest.mark.parametrize(
    "statement",
    [
        "import divmon",
        "from divmon.cli import main; assert main(['metrics']) == 0",
        "from divmon.cli import main; assert main(['measure', sys.argv[1]]) == 0",
        "import divmon; divmon.History, divmon.Monitor, divmon.ProbeSet, divmon.Settings, divmon.Rule, divmon.replay",
    ],
)
def test_what_only_reads_loads_no_gpu_stack(statement, file):
    code = f"import sys\n{statement}\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = run("-c", code, file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_pairs_for_dpo(file, tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
    assert main(["pairs", file, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in ROWS]
    assert all(row["chosen"].startswith("The answer is") for row in rows)
    assert capsys.readouterr().out.startswith("7 pairs from 7 prompts; mean diversity of the chosen")
    assert main(["pairs", file, "--out", str(tmp_path / "nowhere" / "pairs.jsonl")]) == 2
    assert main(["pairs", file, "--out", str(out), "--by", "tfdf"]) == 2
    assert "Did you mean 'tfidf'" in capsys.readouterr().err


def test_the_metrics_command():
    done = run("-m", "divmon", "metrics")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(METRICS)
    for line, metric in zip(lines, METRICS.values(), strict=True):
        assert line.split(maxsplit=3)[1:] == [metric.family, metric.direction, metric.summary]


def test_the_protocols_command():
    about = run("-m", "divmon", "protocols", "jarvis2013").stdout
    assert "metrics: volume, abundance" in about
    assert "not exactly:" in about
    done = run("-m", "divmon", "protocols")
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(PROTOCOLS)


def test_help():
    done = run("-m", "divmon", "--help")
    assert done.returncode == 0
    for command in ("demo", "measure", "protocols", "metrics"):
        assert re.search(rf"^    {command}\s", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], ["mesure"], ["measure"], ["metrics", "--all"]])
def test_what_is_no_command_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: divmon" in capsys.readouterr().err


def test_measure(file, tmp_path, capsys):
    assert main(["measure", file]) == 0
    out, err = capsys.readouterr()
    head, blank, titles, first, *_ = out.splitlines()
    assert head == f"{file}: 21 completions of 7 prompts, K 3, quality: gold"
    assert blank == ""
    assert titles.split() == ["metric", "domain", "value", "95%", "interval", "prompts"]
    assert first.split()[:2] == ["tfidf_distance", "sums"]
    assert "\npass_at_1 " in out
    assert "\nnot measured: token_entropy (token entropies are unknown for these completions)\n" in out
    assert err == ""
    assert not [p for p in tmp_path.iterdir() if p.name != "completions.jsonl"]


def test_measure_some_metrics_of_a_file_in_another_shape(tmp_path, capsys):
    rows = [{"question": row["prompt"], "response": text} for row in ROWS for text in row["completions"]]
    path = jsonl(tmp_path / "c.jsonl", rows)
    assert main(["measure", path, "--metric", "self_bleu", "--metric", "tfidf_distance"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[3:]] == ["self_bleu", "tfidf_distance"]


def test_measure_against_a_baseline_by_step_as_json(file, tmp_path, capsys):
    rows = [{**row, "step": step, "completions": row["completions"][:1] * 3} for step in (9, 10) for row in ROWS]
    path = jsonl(tmp_path / "c.jsonl", rows)
    arguments = ["measure", path, "--against", file, "--group-by", "step", "--metric", "tfidf_distance"]
    assert main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert f"against {file}: 21 completions of 7 prompts" in out
    assert out.splitlines()[3].split()[:3] == ["metric", "step", "domain"]
    found = json.loads((tmp_path / "out.json").read_text())
    assert [m["group"]["step"] for m in found["measurements"]] == ["9"] * 3 + ["10"] * 3
    overall = found["measurements"][2]
    assert (overall["domain"], overall["value"]) == ("all", pytest.approx(0, abs=1e-12))
    assert overall["change"]["value"] == pytest.approx(-overall["change"]["baseline"])
    assert (overall["change"]["n"], overall["change"]["pairing"]) == (7, "paired")
    assert main([*arguments, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_measure_by_the_rewards_that_are_named(tmp_path, capsys):
    path = jsonl(tmp_path / "c.jsonl", [{"prompt": "?", "completion": "a", "won": 1, "style": 0.5}] * 2)
    assert main(["measure", path, "--reward", "won", "--reward", "style", "--metric", "mean_quality"]) == 0
    assert capsys.readouterr().out.splitlines()[3].split()[1] == "1.5"


def test_measure_by_a_protocol(file, capsys):
    assert main(["measure", file, "--protocol", "echochamber2025"]) == 0
    out = capsys.readouterr().out
    assert "protocol echochamber2025; deviations:\n  K: 3 instead of 64\n" in out
    assert main(["measure", file, "--protocol", "karouzos2026", "--metric", "ead"]) == 0
    assert "\nead " in capsys.readouterr().out


def test_measure_records_a_run(file, tmp_path):
    out = tmp_path / "deep" / "run"
    assert main(["measure", file, "--out", str(out)]) == 0
    history = History.read(out)
    [evaluation] = history.evaluations
    assert history.batch(0).texts == tuple(tuple(row["completions"]) for row in ROWS)
    assert [probe.gold for probe in history.probes] == [row["gold"] for row in ROWS]
    assert history.info["source"] == file
    assert history.info["fingerprint"] == history.batch(0).fingerprint
    assert {m.domain for m in evaluation.measurements} == {"sums", "talk", "all"}
    solved = history.series("pass_at_1", "all")
    assert solved.values.tolist() == [pytest.approx(1 / 3)]
    assert all(math.isnan(m.value) == bool(m.reason) for m in evaluation.measurements)
    assert main(["measure", file, "--out", str(out)]) == 0
    assert History.read(tmp_path / "deep" / "run.1").last_step == 0


def test_measure_one_completion_a_prompt(tmp_path, capsys):
    path = jsonl(tmp_path / "c.jsonl", [{"prompt": str(i), "completion": f"text {i % 2}"} for i in range(6)])
    assert main(["measure", path, "--out", str(tmp_path / "run")]) == 0
    assert "effective_formats" in capsys.readouterr().out
    found = {m.metric: m for m in History.read(tmp_path / "run").evaluations[0].measurements}
    assert found["self_bleu"].reason == "needs at least 2 completions a prompt"
    assert found["length"].value == 2


def test_measure_hostile_text_on_a_poor_terminal(tmp_path):
    rows = [
        {"prompt": "\u202e\x1b[31m", "domain": "\x1b[31mred\u2028é", "completions": ["\ud800\x00", "\u2028" * 9]}
    ] * 2
    done = run("-m", "divmon", "measure", jsonl(tmp_path / "c.jsonl", rows), "--out", str(tmp_path / "run"),
               env={**os.environ, "PYTHONIOENCODING": "ascii"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert History.read(tmp_path / "run").batch(0).texts[0][0] == "\ud800\x00"


BAD = [
    ([], b"", "completions.jsonl is empty"),
    ([], b"{", "completions.jsonl, line 1 is not JSON"),
    ([], b'\n{"completions": ["a"]}', "completions.jsonl, line 2 has no prompt"),
    ([], b'{"prompt": "a"}', "completions.jsonl, line 1: no completions"),
    ([], b'{"prompt": "a", "completion": "b", "reward": "good"}', "line 1: 'reward' must hold numbers"),
    ([], b'{"prompt": "a", "completion": "\xff"}', "completions.jsonl is not UTF-8"),
    (["--metric", "self_blue"], None, "Unknown metric 'self_blue'. Did you mean 'self_bleu'?"),
    (["--metric", "semantic_distance"], None, "semantic_distance needs an encoder: pass encoder='offline'"),
    (["--out", "{file}"], None, "Cannot record a run in"),
    (["--out", "{file}/deeper"], None, "Cannot record a run in"),
    (["--out", "run", "--group-by", "step"], None, "--out records the file as one evaluation: leave out --group-by"),
    (["--group-by", "stepp"], None, "completions.jsonl, line 1: no column 'stepp' to group by"),
    (["--against", "none.jsonl"], None, "Cannot read none.jsonl: No such file or directory."),
    (["--json", "{file}/deeper"], None, "Cannot write "),
    (["--protocol", "kirk"], None, "Unknown protocol 'kirk'. Did you mean 'kirk2024'?"),
    (["--protocol", "hivemind2025"], None, "hivemind2025 measures through 'text-embedding-3-small', which cannot be"),
]


@pytest.mark.parametrize(("options", "content", "message"), BAD, ids=lambda v: str(v)[:30])
def test_what_cannot_be_measured_exits_with_2_and_says_why(file, options, content, message, capsys):
    if content is not None:
        with open(file, "wb") as opened:
            opened.write(content)
    assert main(["measure", file, *(option.format(file=file) for option in options)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("divmon: ")
    assert message in err
    assert "Traceback" not in err
    assert out == ""


def test_a_file_that_is_not_there(tmp_path):
    done = run("-m", "divmon", "measure", "none.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "divmon: Cannot read none.jsonl: No such file or directory.\n"
