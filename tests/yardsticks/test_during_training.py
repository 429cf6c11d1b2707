"""References, other models and attributes of the user's in a run of a real trainer, and from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

import divmon
from divmon.cli import main
from divmon.metrics.human import DIMENSIONS
from divmon.report import write as write_report
from divmon.sinks.base import curves

PROMPTS = tiny.PROMPTS[:4]
PEOPLE = [f"{'a b ' * i}c d e f a b {'g ' * (i % 4)}h i j k l m n o p q r s t" for i in range(8)]
BANK = [{"prompt": p, "model": m, "completions": [f"the sum is {m}", "a b"]} for p in PROMPTS for m in ("one", "two")]


def size(text: str) -> float:
    """Characters."""
    return len(text)


def spaced(texts: list[str]) -> Any:
    """An encoder: counts of the letters, in the place of a model."""
    import numpy as np

    return np.array([[1.0, *(text.count(c) for c in "abcdefghi1234567890+=-")] for text in texts])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    out, rows = tmp_path_factory.mktemp("run"), []
    probes = [{"prompt": p, "reference": f"{p} {'I think ' * i}so{'!' * (i % 2)}"} for i, p in enumerate(PROMPTS)]
    callback = divmon.DiversityCallback(
        probes, k=3, every=3, max_new_tokens=24, references=PEOPLE, others=BANK, attributes=["default", size],
        encoder=spaced, alarms=[], sinks=[lambda observation: rows.append(curves(observation))], strict=True,
        quality=lambda probe, text: float(len(text) % 2),
    )  # fmt: skip
    tiny.trainer(out, callbacks=[callback], max_steps=3).train()
    return out, rows


@pytest.mark.trainer
def test_each_has_its_curve_and_the_history_its_numbers(run: tuple[Path, list[dict[str, float]]]) -> None:
    out, rows = run
    history = divmon.History.read(out)
    assert [evaluation.step for evaluation in history.evaluations] == [0, 3]
    measured = {m.metric: m for m in history.evaluations[-1].measurements}
    assert {"human_gap", *(f"human_gap_{name}" for name in DIMENSIONS)} <= set(measured)
    assert {"hivemind_similarity", "source_models", "hivemind_repetition", "voice_spread_size"} <= set(measured)
    for name in ("hivemind_similarity", "source_models", "voice_spread_size", "voice_shift_size"):
        assert f"divmon/default/{name}" in rows[-1], name
    again = divmon.hivemind(
        [*BANK, *({"prompt": p.text, "model": "policy", "completions": list(texts)} for p, texts in drawn(history))],
        encoder=spaced,
    )
    assert again.models[-1] == "policy"
    assert 0 <= measured["hivemind_similarity"].value <= 1
    assert history.info["measured"].count("@") >= 3  # the judge, the references, the bank


def drawn(history: divmon.History) -> Any:
    found = history.batch(3)
    return zip(found.probes, found.texts, strict=True)


@pytest.mark.trainer
def test_a_file_of_the_same_completions_has_the_same_numbers(run: tuple[Path, list[dict[str, float]]]) -> None:
    history = divmon.History.read(run[0])
    rows = [{"prompt": p.prompt, "reference": p.reference, "completions": list(texts)} for p, texts in drawn(history)]
    names = [
        "human_gap",
        "human_gap_volume",
        "hivemind_similarity",
        "source_models",
        "voice_spread",
        "voice_spread_size",
    ]
    given = {"references": PEOPLE, "others": BANK, "attributes": ["default", size], "encoder": spaced}
    found = divmon.measure(rows, metrics=names, **given)
    live = {m.metric: m for m in history.evaluations[-1].measurements}
    for name in names:
        assert found.get(name).measurement.value == pytest.approx(live[name].value, abs=1e-9, nan_ok=True), name


@pytest.mark.trainer
def test_the_report_charts_them(run: tuple[Path, list[dict[str, float]]], tmp_path: Path) -> None:
    page = write_report(run[0], out=tmp_path / "report.html")
    text = Path(page or tmp_path / "report.html").read_text("utf-8")
    assert "Likeness to other models" in text or "likeness to other models" in text
    assert "voice_spread" in text


def test_the_commands_answer_and_write_every_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text(
        "".join(json.dumps({"prompt": str(i), "completion": f"{t} a b"}) + "\n" for i, t in enumerate(PEOPLE))
    )
    Path("people.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in PEOPLE))
    Path("bank.jsonl").write_text("".join(json.dumps(row) + "\n" for row in BANK))
    rows = [{"original": f"I think {i}{'!' * (i % 3)}", "rewrite": "One thinks so.", "score": i / 5} for i in range(6)]
    Path("rewrites.jsonl").write_text("".join(json.dumps(row | {"preferred": "ai"}) + "\n" for row in rows))
    for command, said in (
        ("human mine.jsonl --references people.jsonl --json out.json", "Away from people in"),
        ("hivemind bank.jsonl --json out.json", "Between models:"),
        ("voice rewrites.jsonl --json out.json", "Preferred: ai 100.0 %"),
        ("voice rewrites.jsonl --attribute builtins:len --json out.json", "len"),
        ("measure mine.jsonl --references people.jsonl --metric human_gap --json out.json", "human_gap"),
    ):
        assert main(command.split()) == 0, command
        assert said in capsys.readouterr().out
        assert json.loads(Path("out.json").read_text())
    assert main(["voice", "bank.jsonl"]) == 2
    assert "bank.jsonl, line 1: no 'original'" in capsys.readouterr().err
    assert main(["hivemind", "mine.jsonl"]) == 2
    assert "There is one model" in capsys.readouterr().err
