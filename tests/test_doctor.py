"""divmon doctor: without a trainer, before a run and after one; what only reads loads no GPU stack."""

import json
import subprocess
import sys

import pytest

from divmon.cli import main
from divmon.demo.training import MODEL_DIR
from divmon.doctor.environment import judged
from divmon.doctor.runs import decisions
from divmon.history import Evaluation, History
from divmon.plain import to_json
from divmon.records import Measurement, Probe
from divmon.schedule import Pace

ROWS = [
    {"step": 5, "score": "tenth", "sample": "", "over": True, "total": 50.0, "spent": 0.5, "costs": [0.5, 2.0]},
    {"step": 5, "score": "", "sample": "moved", "total": 51.0, "spent": 1.0, "costs": [0.5, 2.0]},
    {"step": 9, "score": "", "sample": "", "waits": "gap", "total": 100.0, "spent": 3.0, "costs": [0.4, None],
     "baseline": 7.0},
]  # fmt: skip


def recorded(path, *, budget, failures=0.0):
    pace = Pace(steps=50, budget=budget)
    history = History.create(path, probes=[Probe("a", "?")], info={"schedule": to_json(pace)})
    health = {"sink_failures": failures, "sample_seconds": 1.5, "measure_seconds": 0.5}
    known = Measurement(0, "default", "vendi", 2.0)
    missing = Measurement(0, "default", "coverage", float("nan"), reason="nothing judges these completions")
    history.append(Evaluation(0, (known, missing), health=health))
    scores = History.create(path / "scores", probes=[Probe("a", "?")])
    scores.append(Evaluation(5, (Measurement(5, "default", "retained_mass", 0.9),)))
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (path / "schedule.jsonl").write_text(lines + '{"torn": ')
    return path


def test_a_recorded_run_planned_and_real(tmp_path, capsys):
    path = recorded(tmp_path / "run", budget=0.02, failures=2.0)
    assert main(["doctor", str(path)]) == 1
    told = capsys.readouterr().out
    for text in (
        "budget 2 % of process time",
        "3 % of process time, of 2 % allowed; the baseline took 7 s besides",
        "1 samplings (the baseline among them), 1 scores",
        "1 scores went beyond the budget",
        "a sampling was wanted at the end (gap)",
        "2 failures of the sink",
        "default/coverage: nothing judges these completions",
    ):
        assert text in told, told
    assert len(decisions(path)) == 3
    with (path / "schedule.jsonl").open("a") as file:  # what came after step 5 is of a branch that was given up
        file.write("\n" + json.dumps({"step": 5, "resumed": True}) + "\n")
    assert [row["step"] for row in decisions(path)] == [5, 5]
    (path / "schedule.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert main(["doctor", str(path), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kept"], facts["used"], facts["failures"]) == (False, 0.03, {"sink": 2})


def test_a_run_that_kept_its_budget_is_well(tmp_path, capsys):
    assert main(["doctor", str(recorded(tmp_path / "run", budget=0.05))]) == 0
    assert "nothing failed" in capsys.readouterr().out


def test_a_run_without_a_schedule_and_no_run(tmp_path, capsys):
    history = History.create(tmp_path / "run", probes=[Probe("a", "?")])
    history.append(Evaluation(0, (Measurement(0, "default", "vendi", 2.0),)))
    assert main(["doctor", str(tmp_path / "run")]) == 0
    assert "no scores, no budget" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "nothing")]) == 2


def test_examining_a_run_loads_no_gpu_stack(tmp_path):
    path = recorded(tmp_path / "run", budget=0.5)
    code = (
        f"import sys; from divmon.cli import main; main(['doctor', {str(path)!r}])\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_before_a_run_costs_are_measured_and_the_schedule_is_told(tmp_path, capsys):
    settings = tmp_path / "divmon.yaml"
    settings.write_text("probes: ['1+1=', '2+3=']\nk: 2\nmax_new_tokens: 8\nbudget: 2%\nmoved: 0.3\n")
    asked = ["doctor", "--settings", str(settings), "--model", str(MODEL_DIR), "--steps", "500"]
    assert main([*asked, "--step-seconds", "10"]) == 0
    told = capsys.readouterr().out
    assert "2 prompts x 2" in told
    assert "4 completions" in told
    assert "scores about every 1 steps" in told
    assert "over 500 steps" in told
    assert "KL moves by 0.3 a token" in told
    assert main([*asked, "--step-seconds", "0.0001", "--json"]) == 1  # a budget that cannot be kept
    assert json.loads(capsys.readouterr().out)["forecast"]["holds"] is False


@pytest.mark.parametrize(
    "arguments",
    [["--steps", "0"], ["--step-seconds", "-1"], ["--model", "/no/such/folder"], ["--settings", "/no/such/file"]],
)
def test_what_makes_no_sense_exits_with_2(arguments, capsys):
    assert main(["doctor", *arguments]) == 2
    assert capsys.readouterr().err


def test_versions_are_judged():
    assert judged("trl", "1.16.0", "1.0", "2").level == "ok"
    assert judged("trl", "0.29", "1.0", "2").level == judged("trl", "2.0", "1.0", "2").level == "problem"
    assert "pip install" in judged("trl", None, "1.0", "2").text
