"""`divmon replay`: recorded runs bit for bit, new rules unconfirmed, TRL's Parquet and JSON Lines step by step."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from divmon.alarms import RuleSet, dump_rules, load_ruleset
from divmon.cli import main
from divmon.errors import ConfigError, ProbeError
from divmon.history import Evaluation, History
from divmon.metrics import METRICS
from divmon.monitor import Monitor
from divmon.records import Decoding, Measurement, Probe, SampleBatch
from divmon.rulebook.reading import DIFFER, read_steps
from divmon.rulebook.replaying import UNCONFIRMED, replay_history, replay_path

pq = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")

HEAVY = ("torch", "transformers", "trl", "wandb", "sentence_transformers", "accelerate", "datasets", "peft")
WORDS = [f"word{i}" for i in range(300)]
RULES = """\
alarms:
  - {name: fall, metric: tfidf_distance, rule: drop, by: 30%, for: 1}
  - {name: crash, metric: tfidf_distance, domain: all, rule: drop, by: 20%, severity: critical}
"""
PROBES = tuple(Probe(f"p{i}", f"Say {i}", "xy"[i % 2]) for i in range(16))


def texts(step, k=6, p=16, seed=0):
    """Completions that become alike from step 30 on."""
    rng = np.random.default_rng([step, seed])
    some = WORDS if step < 30 else WORDS[:8]
    return tuple(tuple(" ".join(rng.choice(some, 12)) for _ in range(k)) for _ in range(p))


def batch(step, k=6):
    return SampleBatch(step, PROBES, texts(step, k))


def recorded(path, rules=RULES, *, confirmed=False):
    book = load_ruleset(rules)
    history = History.create(path, probes=PROBES, info={"rules": dump_rules(book), "alarms": book.shared})
    monitor = Monitor([METRICS["tfidf_distance"], METRICS["length"]], rules=book, history=history)
    events = []
    for step in range(0, 60, 10):

        def draw(probes, *, k, key, step=step):
            found = SampleBatch(0, PROBES, texts(step, k, seed=key % 2**32), decoding=Decoding(key=key))
            return replace(found, probes=tuple(probes), texts=found.texts[: len(probes)])

        events += monitor.observe(batch(step), draw=draw if confirmed else None).events
    return history, events


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def rows(step, k=6):
    return [
        {"step": step, "prompt": probe.text, "domain": probe.domain, "completions": row}
        for probe, row in zip(PROBES, texts(step, k), strict=True)
    ]


def test_recorded_rules_come_back_bit_for_bit(tmp_path, capsys):
    _, events = recorded(tmp_path / "run")
    found = replay_path(tmp_path / "run")
    assert found.same is True
    assert [repr(event) for event in found.events] == [repr(event) for event in events]
    assert found.cells["fall/x"].state == "firing"
    assert found.state("crash/all") == UNCONFIRMED
    assert main(["replay", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "The recorded events came back bit for bit." in out
    assert "step 30  warning firing  fall: tfidf_distance in x fell" in out
    assert "  crash/all  screened, unconfirmed since step 30" in out


def test_recorded_confirmations_count(tmp_path):
    _, events = recorded(tmp_path / "run", confirmed=True)
    found = replay_path(tmp_path / "run")
    assert found.same is True
    assert [e.step for e in events if (e.alarm, e.state) == ("crash", "firing")] == [30]
    assert found.state("crash/all") == "firing"
    other = load_ruleset(RULES.replace("domain: all, rule: drop, by: 20%", "domain: all, rule: drop, by: 24%"))
    assert replay_path(tmp_path / "run", rules=other).state("crash/all") == UNCONFIRMED  # it answers another question


def test_a_history_that_was_edited_is_not_the_same(tmp_path, capsys):
    recorded(tmp_path / "run")
    path = tmp_path / "run" / "history.jsonl"
    path.write_text(path.read_text("utf-8").replace('"state":"firing"', '"state":"pending"', 1), "utf-8")
    assert replay_path(tmp_path / "run").same is False
    assert main(["replay", str(tmp_path / "run")]) == 0
    assert "These are NOT the recorded events" in capsys.readouterr().out


def test_new_rules_on_a_recorded_run_are_unconfirmed(tmp_path, capsys):
    recorded(tmp_path / "run")
    rules = tmp_path / "new.yaml"
    rules.write_text(RULES.replace("domain: all, rule: drop, by: 20%", "rule: drop, by: 25%, for: 2"), "utf-8")
    found = replay_path(tmp_path / "run", rules=load_ruleset(rules))
    assert found.same is None
    assert (found.state("crash/x"), found.cells["crash/x"].state) == (UNCONFIRMED, "pending")
    assert not any(event.state == "firing" for event in found.events if event.alarm == "crash")
    assert main(["replay", str(tmp_path / "run"), "--rules", str(rules), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["cells"]["crash/y"]["state"] == UNCONFIRMED
    assert said["same_as_recorded"] is None
    assert said["evaluations"] == 6
    assert [event["step"] for event in said["events"] if event["alarm"] == "fall"] == [30, 30]
    assert main(["replay", str(tmp_path / "run"), "--rules", "defaults"]) == 0
    out = capsys.readouterr().out
    assert "This run has no series of effective_formats: what watches it stays unknown." in out
    rules.write_text("alarms: [{name: a, metric: lenth, rule: drop, by: 10%}]", "utf-8")
    assert main(["replay", str(tmp_path / "run"), "--rules", str(rules)]) == 2
    assert "no series of 'lenth'. Did you mean 'length'?" in capsys.readouterr().err


def test_a_metric_that_divmon_does_not_compute(tmp_path):
    history = History.create(tmp_path / "run", probes=())
    for step, value in zip([0, 30, 90, 180, 300], [88.0, 86.7, 86.1, 84.0, 79.7], strict=True):
        history.append(Evaluation(step, (Measurement(step, "olympiad", "pass_at_256", value),)))
    text = "alarms: [{name: a, metric: pass_at_256, rule: drop, by: 5%, evidence: screen, for: 1}]"
    found = replay_history(history, rules=load_ruleset(text))
    assert [(event.step, event.state) for event in found.events] == [(300, "firing")]
    with pytest.raises(ConfigError, match="Did you mean 'pass_at_256'"):
        replay_history(history, rules=load_ruleset(text.replace("_256", "_265")))


def test_json_lines_give_what_a_monitor_gives(tmp_path, capsys):
    path = jsonl(tmp_path / "c.jsonl", [row for step in (20, 0, 10, 30, 40) for row in rows(step)])
    found = replay_path(path, rules=load_ruleset(RULES))
    monitor = Monitor([METRICS["tfidf_distance"]], rules=load_ruleset(RULES))
    expected = [event for step in range(0, 50, 10) for event in monitor.observe(batch(step)).events]
    assert [(e.step, e.alarm, e.domain, e.state, e.value) for e in found.events] == [
        (e.step, e.alarm, e.domain, e.state, e.value) for e in expected
    ]
    assert expected
    assert found.remarks == ()
    assert main(["replay", str(path)]) == 0  # the default rules
    assert "  surface-diversity/x firing since step 40" in re.sub(r"(?<=\S) +", " ", capsys.readouterr().out)


def test_lines_in_any_order_are_the_same_prompts(tmp_path):
    shuffled = [row for step in (0, 10) for row in np.random.default_rng(step).permutation(rows(step))]
    found = read_steps(jsonl(tmp_path / "c.jsonl", shuffled))
    assert [b.step for b in found] == [0, 10]
    assert found[0].probes == found[1].probes
    assert found[0].signature == found[1].signature
    by_prompt = {row["prompt"]: row["completions"] for row in rows(10)}
    assert [by_prompt[probe.text] for probe in found[1].probes] == list(found[1].texts)


def test_one_completion_a_line_and_uneven_numbers(tmp_path):
    lines = [
        {"step": row["step"], "question": row["prompt"], "response": text}
        for step in (0, 10)
        for row in rows(step, k=5)
        for text in row["completions"]
    ]
    lines += [{"step": 10, "question": "Say 3", "response": "one more"}]
    lines += [{"step": 10, "question": "Say 99", "response": "a prompt with one only"}]
    first, second = read_steps(jsonl(tmp_path / "c.jsonl", lines))
    assert {len(row) for b in (first, second) for row in b.texts} == {5}
    assert first.signature == second.signature
    assert len(second.probes) == 16


def trl_table(path, step, prompts, k=4, chat=False):
    """As TRL writes it: https://huggingface.co/docs/trl, `log_completions`."""
    rng = np.random.default_rng(step)
    some = WORDS if step < 30 else WORDS[:8]
    said = [" ".join(rng.choice(some, 12)) for _ in range(len(prompts) * k)]
    asked = [prompt for prompt in prompts for _ in range(k)]
    table = {
        "step": [step] * len(said),
        "prompt": [[{"role": "user", "content": p}] for p in asked] if chat else asked,
        "completion": [[{"role": "assistant", "content": text}] for text in said] if chat else said,
        "correct": [float(i % 2) for i in range(len(said))],
        "shape_reward": [0.5 if i % 3 else None for i in range(len(said))],
        "advantage": [0.1] * len(said),
    }
    pq.write_table(pa.table(table), path)


@pytest.mark.parametrize("chat", [False, True])
def test_parquet_as_trl_writes_it(tmp_path, capsys, chat):
    (tmp_path / "out" / "completions").mkdir(parents=True)
    for step in (10, 20, 30, 40):
        path = tmp_path / "out" / "completions" / f"completions_{step:05d}.parquet"
        trl_table(path, step, [f"prompt {step}-{i}" for i in range(8)], chat=chat)
    for where in (tmp_path / "out", tmp_path / "out" / "completions"):
        assert main(["replay", str(where)]) == 0
        out = capsys.readouterr().out
        assert "step 40  warning firing  surface-diversity" in out
        assert "The prompts differ from step to step" in out
    first = read_steps(tmp_path / "out")[0]
    assert (first.step, len(first.probes), first.k, first.fingerprint) == (10, 8, 4, DIFFER)
    assert first.rewards[0] == (0.0, 1.5, 0.5, 1.0)
    assert first.texts[0][0].startswith("word")
    assert main(["replay", str(path)]) == 0
    assert "1 evaluation, 0 events" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a", "completion": "b"}', "line 1: 'step' must be a whole number, not None"),
        ('{"step": 1.5, "prompt": "a", "completion": "b"}', "not 1.5"),
        ('{"step": 1, "completion": "b"}', "has no prompt"),
        ('{"step": 1, "prompt": "a"}', "step 1, line 1: no completions"),
        ("[1]", "line 1: not an object"),
    ],
)
def test_what_cannot_be_replayed(tmp_path, content, message, capsys):
    path = tmp_path / "c.jsonl"
    path.write_text(content, "utf-8")
    assert main(["replay", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_what_only_reads_loads_no_gpu_stack(tmp_path):
    path = jsonl(tmp_path / "c.jsonl", rows(0))
    for arguments in (
        ["replay", str(path)],
        ["rules", "check", "defaults"],
        ["rules", "plan", "defaults", "--pilot", str(path)],
    ):
        code = f"import sys; from divmon.cli import main; main({arguments})"
        code += f"; print([name for name in {HEAVY} if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_nothing_there(tmp_path, capsys):
    assert main(["replay", str(tmp_path / "none")]) == 2
    assert main(["replay", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "There is nothing at" in err
    assert "No divmon run and no completions_*.parquet" in err
    (tmp_path / "completions_1.parquet").write_bytes(b"no parquet")
    with pytest.raises(ProbeError, match="Cannot read"):
        read_steps(tmp_path)
    path = jsonl(tmp_path / "c.jsonl", rows(0))
    with pytest.raises(ConfigError, match="Unknown metric 'pass_at_256'"):
        replay_path(path, rules=RuleSet(load_ruleset("alarms: [{name: a, metric: pass_at_256, rule: absent}]").rules))
