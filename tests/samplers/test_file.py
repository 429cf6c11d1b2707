"""Completions somebody else made: the shapes a JSON Lines file may have, and what is said about one that has not."""

import json
import math

import pytest

from divmon.errors import ProbeError
from divmon.probes import ProbeSet
from divmon.records import Probe
from divmon.samplers.file import LISTS, REWARDS, SINGLES, batch_from_rows, read_completions


def read(tmp_path, *rows, **kwargs):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return read_completions(path, **kwargs)


def test_a_prompt_a_line(tmp_path):
    batch = read(
        tmp_path,
        {"prompt": "one", "completions": ["a", "b"], "domain": "x", "gold": 7, "difficulty": 2, "id": "first"},
        {"question": "two", "completions": ["c"], "tag": "t"},
        step=12,
    )
    assert batch.texts == (("a", "b"), ("c",))
    columns = {"domain": "x", "gold": 7, "difficulty": 2, "id": "first"}
    assert batch.probes == (
        Probe("first", "one", "x", "7", difficulty=2, columns=columns),
        Probe("line-00002", "two", columns={"question": "two", "tag": "t"}),
    )
    assert (batch.step, batch.source, batch.decoding, batch.rewards) == (12, "file", None, None)
    assert batch.fingerprint == ProbeSet(batch.probes).fingerprint
    assert batch.signature == f"k:1-2|decoding:unknown|file|probes:{batch.fingerprint}"


def test_a_completion_a_line_joined_by_prompt_and_domain(tmp_path):
    rows = [
        {"prompt": "one", "completion": "a", "reward": 1},
        {"prompt": "two", "completion": "b"},
        {"prompt": "one", "completion": "c", "id": "late"},
        {"prompt": "one", "completion": "d", "domain": "y"},
        {"prompt": "one", "completions": ["e", "a"], "rewards": [0, None]},
    ]
    batch = read(tmp_path, *rows)
    assert [(p.id, p.text, p.domain) for p in batch.probes] == [
        ("line-00001", "one", "default"),
        ("line-00002", "two", "default"),
        ("line-00004", "one", "y"),
    ]
    assert batch.texts == (("a", "c", "e", "a"), ("b",), ("d",))
    assert repr(batch.rewards) == "((1.0, nan, 0.0, nan), (nan,), (nan,))"
    assert repr(batch_from_rows(rows)) == repr(batch)


@pytest.mark.parametrize("name", [*LISTS, *SINGLES])
def test_the_names_completions_go_by(tmp_path, name):
    batch = read(tmp_path, {"prompt": "?", name: ["a", "b"] if name in LISTS else "a"})
    assert batch.texts == ((("a", "b") if name in LISTS else ("a",)),)
    assert batch.probes[0].columns == {}


@pytest.mark.parametrize("name", REWARDS)
def test_the_names_rewards_go_by(tmp_path, name):
    batch = read(tmp_path, {"prompt": "?", "completions": ["a", "b"], name: [True, 0.25]})
    assert batch.rewards == ((1.0, 0.25),)
    assert batch.probes[0].columns == {}


def test_rewards_nobody_knows_are_none(tmp_path):
    assert read(tmp_path, {"prompt": "?", "completions": ["a", "b"], "rewards": [None, None]}).rewards is None
    path = tmp_path / "nan.jsonl"
    path.write_text('{"prompt": "?", "completions": ["a", "b"], "rewards": [NaN, 1]}')
    [[nan, one]] = read_completions(path).rewards
    assert math.isnan(nan)
    assert one == 1


def test_chat_prompts_and_hostile_text(tmp_path):
    chat = [{"role": "user", "content": "hi\u2028"}]
    batch = read(tmp_path, {"prompt": chat, "completions": ["\ud800", "\x00\u202e", "</script>", "a\nb", ""]})
    assert batch.probes[0].prompt == tuple(chat)
    assert batch.texts == (("\ud800", "\x00\u202e", "</script>", "a\nb", ""),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": ["a"], "tag": 1}, r" has no prompt: its columns are \['tag'\]"),
        ({"prompt": None, "completion": "a"}, " has no prompt"),
        ({"prompt": " ", "completion": "a"}, " has an empty 'prompt'"),
        ({"prompt": 3, "completion": "a"}, ": a prompt is a text or a list of chat messages"),
        ({"prompt": "?"}, ": no completions. Name them 'completions' .a list of texts. or 'completion'"),
        ({"prompt": "?", "completions": []}, ": 'completions' is empty"),
        ({"prompt": "?", "completions": "a"}, ": 'completions' must hold a list of texts, not 'a'"),
        ({"prompt": "?", "completions": ["a", None]}, ": 'completions' must hold a list of texts"),
        ({"prompt": "?", "completions": {"a": 1}}, ": 'completions' must hold a list of texts"),
        ({"prompt": "?", "completion": ["a"]}, ": 'completion' must hold one text"),
        ({"prompt": "?", "completions": ["a", "b"], "rewards": [1]}, ": 1 rewards for 2 completions"),
        ({"prompt": "?", "completions": ["a", "b"], "reward": 1}, ": 1 reward for 2 completions"),
        ({"prompt": "?", "completion": "a", "correct": "yes"}, ": 'correct' must hold numbers, booleans or null"),
        ({"prompt": "?", "completion": "a", "reward": [[1]]}, ": 'reward' must hold numbers"),
        ({"prompt": "?", "completion": "a", "reward": 10**400}, ": 'reward' must hold numbers"),
        (7, ": not an object with a 'prompt' and 'completions'"),
        ("text", ": not an object"),
        ([{"prompt": "?", "completion": "a"}], ": not an object"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(tmp_path, row, message):
    path = tmp_path / "c.jsonl"
    path.write_text('{"prompt": "?", "completion": "a"}\n\n\n' + json.dumps(row))
    with pytest.raises(ProbeError, match=f"c.jsonl, line 4{message}"):
        read_completions(path)


def test_ids_must_not_clash(tmp_path):
    rows = [{"prompt": p, "completion": "a", "id": "same"} for p in ("one", "two")]
    with pytest.raises(ProbeError, match="Two probes have the id 'same'"):
        read(tmp_path, *rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "c.jsonl is empty"), (b"{", "line 1 is not JSON"), (b'{"prompt": "\xe9"}', "c.jsonl is not UTF-8")],
)
def test_files_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "c.jsonl").write_bytes(content)
    with pytest.raises(ProbeError, match=message):
        read_completions(tmp_path / "c.jsonl")
    with pytest.raises(ProbeError, match=r"Cannot read .*none.jsonl: No such file"):
        read_completions(tmp_path / "none.jsonl")
