"""What the README says is true: its table is generated, its blocks run, its first command catches the collapse."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import divmon
from divmon.alarms import load_rules
from divmon.cli import main
from divmon.demo.training import MODEL_DIR
from divmon.metrics import METRICS
from divmon.records import Probe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def demo(tmp_path: Path, *options: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-m", "divmon", "demo", *options], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("options", "page"), [(["--standard"], README), ([], (ROOT / "divmon/metrics/METRICS.md").read_text("utf-8"))]
)
def test_the_tables_of_metrics_are_those_the_command_prints(options: list[str], page: str) -> None:
    command = [sys.executable, "-m", "divmon", "metrics", "--markdown", *options]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() in page


def test_the_table_of_set_ups_is_the_one_the_command_prints() -> None:
    command = [sys.executable, "-m", "divmon", "doctor", "--setups", "--markdown"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert re.search(r"<!-- setups -->\n(.*?)\n<!-- /setups -->", README, re.DOTALL)[1] == printed  # type: ignore[index]


def test_python_blocks_run() -> None:
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


def test_its_commands_that_measure_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("completions.jsonl", "base.jsonl"):
        rows = [{"prompt": f"{i}?", "completions": [f"{name} {i}", f"it is {i}"]} for i in range(6)]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    logged = pytest.importorskip("pandas").DataFrame(
        {
            "step": [5, 5],
            "prompt": ["?", "?"],
            "completion": ["a b", "a c"],
            "reward": [0.0, 1.0],
            "advantage": [-1, 1.0],
        }
    )
    Path("out/completions").mkdir(parents=True)
    logged.to_parquet("out/completions/completions_00005.parquet")
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("divmon measure")]
    assert len(commands) >= 3
    for command in commands:
        assert main(shlex.split(command, comments=True)[1:]) == 0, command
        assert "95% interval" in capsys.readouterr().out
    assert Path("by-step.json").exists()


def test_its_commands_that_compare_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = "a quiet morning on the river where nobody spoke of the war and boats went by slowly one after another"
    words = sentence.split()

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    texts = [" ".join(words[i:] + words[:i]) * 4 for i in range(12)]
    write("completions.jsonl", [{"prompt": f"{i}?", "completions": texts[i : i + 4]} for i in range(8)])
    write("people.jsonl", [{"text": text} for text in texts])
    for name in ("mine", "theirs"):
        write(f"{name}.jsonl", [{"prompt": f"{i}?", "model": name, "completions": texts[i : i + 4]} for i in range(8)])
    write("rewrites.jsonl", [{"original": text, "rewrite": text.upper()} for text in texts])
    write("probes.jsonl", [{"prompt": f"What is {i}+{i}?", "gold": str(2 * i)} for i in range(2)])
    Path("divmon.yaml").write_text("budget: 2%\nk: 2\nmax_new_tokens: 8\nprobes: probes.jsonl\n")
    kinds = ("divmon human", "divmon hivemind", "divmon voice", "divmon trace", "divmon doctor")
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith(kinds)]
    assert len(commands) == len(kinds)
    for command in commands:
        arguments = shlex.split(re.sub(r"(?:org|out)/\w+", str(MODEL_DIR), command), comments=True)[1:]
        more = ["--k", "2", "--max-new-tokens", "8"] if arguments[0] == "trace" else []
        assert main([*arguments, *more]) == 0, command


def test_rules_in_yaml_blocks_are_valid() -> None:
    block, _ = blocks("yaml")
    assert load_rules(yaml.safe_load(block)["alarms"], known_metrics=METRICS, known_domains=["creative"])


def test_the_commands_about_rules_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rules.yaml").write_text("".join(blocks("yaml")), "utf-8")
    probes = tuple(Probe(f"p{i}", f"Write story {i}.", domain="creative") for i in range(16))
    history = divmon.History.create("runs/my-run", probes=probes)
    monitor = divmon.Monitor(history=history)
    for step, words in (
        (0, "fox hen owl elk"),
        (50, "fox hen owl elk"),
        (100, "fox fox fox fox"),
        (150, "fox fox fox fox"),
    ):
        texts = tuple(tuple(f"the {word} of story {i}, {j}" for j, word in enumerate(words.split())) for i in range(16))
        monitor.observe(divmon.SampleBatch(step, probes, texts, fingerprint="f"))
    commands = [line for block in blocks("bash") for line in block.splitlines() if "rules.yaml" in line]
    assert len(commands) == 4
    said = []
    for command in commands:
        assert main(shlex.split(command, comments=True)[1:]) == 0, command
        said.append(capsys.readouterr().out)
    assert "story-collapse" in said[2]
    assert "unconfirmed" in said[3]


def test_the_diff_only_adds_lines_that_work() -> None:
    [diff] = blocks("diff")
    added = [line[1:].strip() for line in diff.splitlines() if line.startswith("+")]
    assert added == ["from divmon import DiversityCallback", "callbacks=[DiversityCallback()],"]
    assert divmon.DiversityCallback().plan.rules


def test_files_it_points_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.trainer
def test_the_demo_that_mitigates_shows_both_runs(tmp_path: Path) -> None:
    said = demo(tmp_path, "--mitigate", "--steps", "24")
    out = tmp_path / "divmon-demo-mitigate"
    alone, mitigated = (divmon.History.read(out / name) for name in ("alone", "mitigated"))
    assert alone.mitigations == []
    assert [change.phase for change in mitigated.mitigations][:1] == ["applied"]
    formats = [history.series("effective_correct_formats", "sums").values[-1] for history in (alone, mitigated)]
    assert formats[1] > 1.3 * formats[0]
    assert f"diversity_reward applied (step {mitigated.mitigations[0].step}" in said
    assert "At the highest pass@1 that both reach" in said


@pytest.mark.trainer
def test_the_demo_catches_the_collapse_and_the_readme_shows_its_alert(tmp_path: Path) -> None:
    said = demo(tmp_path)
    [alert] = [line for line in said.splitlines() if "CRITICAL one-format-takes-over" in line]
    shown = blocks("text")[0]
    without_numbers = [re.sub(r"[\d.]+", "#", text) for text in (alert, shown)]
    assert without_numbers[0] in without_numbers[1]  # floating point differs a little between processors
    step = re.search(r"step (\d+)\)", alert)
    assert step
    out = tmp_path / "divmon-demo"
    assert (out / f"checkpoint-{step[1]}").is_dir()
    assert (out / "formats.png").stat().st_size > 10_000
    assert list(out.glob("wandb/offline-run-*/run-*.wandb"))
    series = divmon.History.read(out).series("effective_formats", "sums")
    assert series.values[-1] < 0.65 * series.values[0]


@pytest.mark.trainer
def test_the_healthy_twin_stays_silent(tmp_path: Path) -> None:
    said = demo(tmp_path, "--healthy", "--steps", "40")
    assert "No alarm in 40 steps" in said
    assert not list(divmon.History.read(tmp_path / "divmon-demo-healthy").events())
