"""Files of completions in every shape: gzipped, JSON lists, Parquet, folders, and TRL's own."""

from __future__ import annotations

import gzip
import json

import pytest

from divmon.errors import ProbeError
from divmon.measuring import measure
from divmon.samplers.file import read_completions

pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


def jsonl(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    return path


def numbers(results):
    return [(row.measurement.metric, row.measurement.domain, repr(row.measurement.value)) for row in results.rows]


def test_every_kind_of_file_gives_the_same_numbers(tmp_path, make, lines):
    found = make(12)
    plain = jsonl(tmp_path / "plain.jsonl", found)
    with gzip.open(tmp_path / "packed.jsonl.gz", "wb") as packed:
        packed.write(plain.read_bytes())
    (tmp_path / "listed.json").write_text(json.dumps(found))
    pandas.DataFrame(found).to_parquet(tmp_path / "wide.parquet", row_group_size=5)
    pandas.DataFrame(lines(found)).to_parquet(tmp_path / "long.parquet")
    wanted = measure(found)
    for name in ("plain.jsonl", "packed.jsonl.gz", "listed.json", "wide.parquet", "long.parquet"):
        results = measure(tmp_path / name)
        assert numbers(results) == numbers(wanted), name
        assert results.source.completions == 72
        [(path, sha)] = results.source.sha256.items()
        assert path.endswith(name)
        assert len(sha) == 64
        assert read_completions(tmp_path / name).texts == read_completions(plain).texts


def test_a_folder_or_a_pattern_is_one_file_after_the_other(tmp_path, make):
    found = make(12)
    parts = tmp_path / "parts"
    parts.mkdir()
    jsonl(parts / "a.jsonl", found[:5])
    jsonl(parts / "b.jsonl", found[5:])
    (parts / "notes.txt").write_text("not completions")
    for source in (parts, str(parts / "*.jsonl")):
        results = measure(source)
        assert numbers(results) == numbers(measure(found))
        assert len(results.source.sha256) == 2
    ids = [probe.id for probe in read_completions(parts).probes]
    assert len(set(ids)) == 12


CHAT = [{"role": "user", "content": "Name a colour."}]


def test_chat_messages_are_flattened(tmp_path):
    spoken = [
        {"role": "assistant", "content": "red", "tool_calls": None},
        {"role": "tool", "content": "ignored"},
        {"role": "assistant", "content": [{"type": "text", "text": "blue"}]},
    ]
    path = jsonl(tmp_path / "c.jsonl", [{"prompt": CHAT, "completion": spoken}, {"prompt": CHAT, "completion": "x"}])
    batch = read_completions(path)
    assert batch.texts == (("red\nblue", "x"),)
    assert batch.probes[0].text == "Name a colour."
    both = jsonl(tmp_path / "d.jsonl", [{"prompt": CHAT, "completions": [spoken, [{"role": "user", "content": "y"}]]}])
    assert read_completions(both).texts == (("red\nblue", "y"),)


def trl_table(step, *, chat):
    """What `GRPOTrainer.log` writes with ``log_completions=True``: see the test of the real one below."""
    says = (lambda text: [{"role": "assistant", "content": text}]) if chat else str
    texts = ["one fox", "two hens", "one fox", "three cows"]
    return pandas.DataFrame({
        "step": [step] * 4,
        "prompt": [CHAT if chat else "Count."] * 2 + [[{"role": "user", "content": "More."}] if chat else "More."] * 2,
        "completion": [says(text) for text in texts],
        "right": [1.0, 0.0, 1.0, 1.0],
        "style": [0.5, 0.5, None, 0.0],
        "advantage": [1.0, -1.0, 0.0, 0.0],
    })  # fmt: skip


@pytest.mark.parametrize("chat", [False, True])
def test_the_files_that_trl_writes(tmp_path, chat):
    for step in (10, 5):
        trl_table(step, chat=chat).to_parquet(tmp_path / f"completions_{step:05d}.parquet")
    results = measure(tmp_path, group_by=["step"], metrics=["unique_fraction", "mean_quality"])
    assert [row.group for row in results.rows] == [("5",), ("10",), ("5",), ("10",)]
    assert {row.measurement.value for row in results.rows[:2]} == {1.0}
    assert {row.measurement.value for row in results.rows[2:]} == {1.0}  # mean of (1.5 + .5) / 2 and (1 + 1) / 2
    assert results.source.quality == "right+style"
    [first, _] = measure(tmp_path, group_by=["step"], metrics=["mean_quality"], reward_columns=["style"]).rows
    assert first.measurement.value == 0.25


@pytest.mark.trainer
def test_what_grpo_really_writes_is_read(tiny, tmp_path):
    tiny.grpo(tmp_path, max_steps=2, log_completions=True).train()
    results = measure(tmp_path / "completions", group_by=["step"], metrics=["length", "mean_quality"])
    assert {row.group for row in results.rows} == {("1",), ("2",)}
    assert results.source.completions == 8
    assert results.source.k == (4, 4)
    assert results.source.quality == "shortness"
    assert not any(row.measurement.reason for row in results.rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt"', r"c.jsonl, line 2 is not JSON"),
        ("c.jsonl", b'{"prompt": "a", "completion": "b"}\n{"completion": "b"}', r"c.jsonl, line 2 has no prompt"),
        ("c.jsonl.gz", b"not gzip", r"Cannot read .*c.jsonl.gz: Not a gzipped file"),
        ("c.json", b'{"prompt": "a"}', r"c.json must hold a list of objects; .* must end in .jsonl"),
        ("c.json", b"[", r"c.json is not JSON"),
        ("c.json", b"[]", r"c.json has no rows"),
        ("c.json", b'[{"prompt": "a"}]', r"c.json, item 1: no completions.*; there are \['prompt'\]"),
        ("c.csv", b"prompt,completion\na,b\n", r"c.csv, line 1 is not JSON .* names in .jsonl"),
        ("c.parquet", b"PAR", r"c.parquet is not a Parquet file"),
        ("c.txt", b"\xff", r"c.txt is not UTF-8 \(line 1"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ProbeError, match=message):
        measure(tmp_path / name)


def test_a_row_of_a_parquet_file_is_named(tmp_path):
    pandas.DataFrame([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}]).to_parquet(
        tmp_path / "c.parquet"
    )
    with pytest.raises(ProbeError, match=r"c.parquet, row 2: no completions"):
        measure(tmp_path / "c.parquet")


def test_nothing_there(tmp_path):
    with pytest.raises(ProbeError, match="holds no file of completions"):
        measure(tmp_path)
    with pytest.raises(ProbeError, match="No file fits the pattern"):
        measure(str(tmp_path / "*.jsonl"))
    with pytest.raises(ProbeError, match=r"Cannot read .*none.jsonl: No such file"):
        measure(tmp_path / "none.jsonl")
