"""Probes from whatever a user has: what becomes a prompt, a gold answer, a level, and what is refused."""

import json
import math
import re
from dataclasses import replace
from fractions import Fraction

import datasets
import numpy as np
import pytest

from divmon.errors import ProbeError
from divmon.metrics.answers import gold_match, parse_number
from divmon.probes import PACKS, ProbeSet, probes_from_rows
from divmon.probes.probeset import spread
from divmon.records import Probe

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
ROWS = [{"prompt": "one", "gold": 1, "level": "Level 3"}, {"prompt": "two", "domain": "y"}]


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def only(row, **kwargs):
    [probe] = probes_from_rows([row], **kwargs)
    return probe


def test_texts_messages_mappings_and_probes():
    probes = ProbeSet.of(["a", CHAT, {"prompt": "b", "domain": "z"}, Probe("mine", "c")], domain="d")
    assert [p.id for p in probes] == ["d-0000", "d-0001", "d-0002", "mine"]
    assert [p.domain for p in probes] == ["d", "d", "z", "default"]
    assert [p.prompt for p in probes] == ["a", tuple(CHAT), "b", "c"]
    assert len(probes) == 4
    assert probes.domains == ("d", "z", "default")


@pytest.mark.parametrize("as_path", [str, lambda path: path])
def test_a_file(tmp_path, as_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt": "one\xe2\x80\xa8two"}\r\n\n  \n"three"\n[{"role": "user", "content": "x"}]'
    )
    probes = ProbeSet.of(as_path(path))
    assert [p.text for p in probes] == ["one\u2028two", "three", "x"]
    path.rename(tmp_path / "mine.txt")
    assert ProbeSet.of(as_path(tmp_path / "mine.txt")) == probes


def test_data_sets():
    data = datasets.Dataset.from_list([{"prompt": f"p{i}", "answer": str(i)} for i in range(10)])
    probes = ProbeSet.of(data, limit=4)
    assert [p.text for p in probes] == ["p0", "p2", "p5", "p7"]
    assert [p.gold for p in probes] == ["0", "2", "5", "7"]
    assert [p.text for p in ProbeSet.of(data["prompt"], limit=2)] == ["p0", "p5"]
    assert len(ProbeSet.of(data)) == 10
    streamed = ProbeSet.of(data.to_iterable_dataset(), limit=4)
    assert streamed == probes
    chats = datasets.Dataset.from_list([{"messages": [*CHAT, {"role": "assistant", "content": "hello"}]}])
    assert ProbeSet.of(chats).probes[0].prompt == tuple(CHAT)


def test_endless_sources_are_cut():
    def forever():
        i = 0
        while True:
            yield f"p{i}"
            i += 1

    assert [p.text for p in ProbeSet.of(forever(), limit=2)] == ["p0", "p1024"]
    assert len(ProbeSet.of(forever())) == 2048


def test_a_probe_set_and_its_limit():
    probes = ProbeSet.of([f"p{i}" for i in range(8)])
    assert ProbeSet.of(probes) == probes
    assert [p.text for p in ProbeSet.of(probes, limit=2)] == ["p0", "p4"]


def test_packs():
    math_, creative = ProbeSet.of("math"), ProbeSet.of("creative")
    both = ProbeSet.of("math+creative", domain="ignored")
    assert both.probes == (*math_.probes, *creative.probes)
    assert both.domains == ("math", "creative")
    assert [p.domain for p in ProbeSet.of("creative+math", limit=8)].count("math") in (3, 4, 5)


@pytest.mark.parametrize("name", PACKS)
def test_a_pack_is_fit_to_probe_with(name):
    probes = ProbeSet.of(name).probes
    assert len(probes) >= 48
    assert {p.domain for p in probes} == {name}
    assert len({p.id for p in probes}) == len(probes)
    folded = [re.sub(r"\W+", " ", p.text).strip().casefold() for p in probes]
    assert len(set(folded)) == len(probes)
    assert all(p.text.strip() and p.text.replace("\n", "").isprintable() for p in probes)


def test_the_math_pack_has_levels_and_numbers():
    probes = ProbeSet.of("math").probes
    assert {p.difficulty for p in probes} == {1, 2, 3, 4, 5}
    for probe in probes:
        value = parse_number(probe.gold)
        assert isinstance(value, Fraction), probe
        assert gold_match(f"So the answer is {probe.gold}.", probe.gold)
        assert not gold_match(f"So the answer is {float(value) + 1}.", probe.gold)


def test_prompts_come_from_the_first_column_that_has_them():
    everything = {"prompt": "p", "messages": CHAT, "input_ids": [1, 2], "text": "a b c d"}
    names = list(everything)
    found = []
    for i in range(4):
        probe = only({name: everything[name] for name in names[i:]}, decode=lambda ids: f"decoded {list(ids)}")
        found.append(probe.text)
    assert found == ["p", "be brief\nhi", "decoded [1]", "a b"]
    assert only({"prompt": "", "messages": None, "text": "x y"}).text == "x"
    assert only({"prompt": CHAT}).prompt == tuple(CHAT)


@pytest.mark.parametrize(
    ("roles", "kept"),
    [("user assistant", 1), ("user", 1), ("system user assistant user assistant", 4), ("user assistant user", 1)],
)
def test_messages_up_to_the_last_answer(roles, kept):
    turns = [{"role": role, "content": str(i)} for i, role in enumerate(roles.split())]
    assert only({"messages": turns}).prompt == tuple(turns[:kept])


def test_messages_that_open_with_an_answer_hold_no_prompt():
    with pytest.raises(ProbeError, match="Row 0 has no prompt"):
        only({"messages": [{"role": "assistant", "content": "hi"}]})


def test_tokens_without_labels():
    ids = list(range(100))
    probe = only({"input_ids": ids}, decode=lambda ids: f"{len(ids)} tokens")
    assert (probe.text, probe.token_ids) == ("32 tokens", tuple(range(32)))
    assert only({"input_ids": ids[:20]}, decode=str).token_ids == tuple(range(10))
    assert only({"input_ids": [5]}, decode=str).token_ids == (5,)
    assert only({"input_ids": np.arange(9)}, decode=str).token_ids == (0, 1, 2, 3)
    assert only({"prompt_input_ids": ids}, decode=str).token_ids == tuple(ids)
    assert only({"prompt_ids": ids, "labels": [-100] * 100}, decode=str).token_ids == tuple(ids)
    assert all(type(i) is int for i in only({"input_ids": np.arange(9)}, decode=str).token_ids)


@pytest.mark.parametrize(
    ("labels", "n"),
    [
        ([-100] * 50 + [1] * 50, 50),  # the whole masked prompt
        ([-100] + [1] * 99, 1),
        ([1] * 100, 32),  # everything is trained
        ([1] * 10 + [-100] * 90, 32),
        ([-100] * 100, 32),  # nothing is
        ([], 32),
        (None, 32),
    ],
)
def test_tokens_with_labels(labels, n):
    probe = only({"input_ids": list(range(100)), "labels": labels}, decode=str)
    assert probe.token_ids == tuple(range(n))


def test_tokens_need_somebody_who_can_read_them():
    with pytest.raises(ProbeError, match=r"Row 0 has no prompt: its columns are \['input_ids'\]"):
        only({"input_ids": [1, 2, 3]})
    assert only({"input_ids": None, "text": "a b"}, decode=str).text == "a"
    assert only({"input_ids": [], "text": "a b"}, decode=str).text == "a"


def test_the_first_words_of_a_text():
    words = [f"w{i}" for i in range(100)]
    assert only({"text": " \n".join(words)}).text == " ".join(words[:32])
    assert only({"text": "one two three"}).text == "one"
    assert only({"text": "one"}).text == "one"


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"answer": "She sells 9 eggs.\n9 * 2 = <<9*2=18>>18\n#### 18"}, "18"),
        ({"gold": "7", "answer": "8"}, "7"),
        ({"answer": 7}, "7"),
        ({"target": 0.5}, "0.5"),
        ({"ground_truth": 0}, "0"),
        ({"final_answer": " Paris \n"}, "Paris"),
        ({"answer": "x" * 64}, "x" * 64),
        ({"answer": "x" * 65}, None),
        ({"gold": "long " * 20, "answer": "5"}, "5"),
        ({"answer": ""}, None),
        ({"answer": "####"}, None),
        ({"answer": True}, None),
        ({"answer": None}, None),
        ({"answer": math.nan}, None),
        ({"answer": ["7"]}, None),
        ({}, None),
    ],
)
def test_gold_answers(row, gold):
    assert only({"prompt": "?", **row}).gold == gold


@pytest.mark.parametrize(
    ("row", "level"),
    [
        ({"difficulty": 3}, 3),
        ({"level": "Level 3"}, 3),
        ({"level": " level3 "}, 3),
        ({"difficulty": "4"}, 4),
        ({"difficulty": 2.0}, 2),
        ({"difficulty": np.int64(2)}, 2),
        ({"level": np.array(2)}, 2),  # what set_format("numpy") and set_format("torch") make of a number
        ({"difficulty": 0}, 0),
        ({"difficulty": 2.5}, None),
        ({"difficulty": "hard", "level": 5}, 5),
        ({"level": "Level ?"}, None),
        ({"difficulty": True}, None),
        ({"difficulty": math.nan}, None),
        ({"difficulty": math.inf}, None),
        ({}, None),
    ],
)
def test_levels(row, level):
    assert only({"prompt": "?", **row}).difficulty == level


def test_everything_else_of_a_row():
    row = {"prompt": "?", "id": 7, "domain": "y", "reference": "by a person", "tags": ["t"], "answer": "4", "labels": 1}
    probe = only(row, domain="x")
    assert (probe.id, probe.domain, probe.reference) == ("7", "y", "by a person")
    known = {"id": 7, "domain": "y", "reference": "by a person"}  # reward functions may ask for these too
    assert probe.columns == {"tags": ["t"], "answer": "4", **known}
    plain = only({"prompt": "?", "id": None, "domain": None, "reference": 3}, domain="x")
    assert (plain.id, plain.domain, plain.reference) == ("x-0000", "x", None)
    assert only({"prompt": "?", "id": 0}).id == "0"


def test_repeats_are_dropped_within_a_domain():
    rows = [
        "a",
        "b",
        "a",
        {"prompt": "a", "domain": "y"},
        {"prompt": "a", "gold": 1},
        [{"role": "user", "content": "b"}],
    ]
    assert [(p.id, p.text) for p in ProbeSet.of(rows)] == [
        ("default-0000", "a"),
        ("default-0001", "b"),
        ("default-0003", "a"),
    ]
    same_text = [{"input_ids": [1, 1]}, {"input_ids": [2, 2]}, {"input_ids": [1, 3]}]
    assert [p.token_ids for p in probes_from_rows(same_text, decode=lambda ids: "same")] == [(1,), (2,)]


def test_a_trainers_own_rows():
    rows = [{"prompt": f"p{i // 2}", "answer": str(i)} for i in range(100)]
    probes = ProbeSet.from_rows(rows, domain="own", limit=8)
    assert [p.id for p in probes] == [f"own-{i:04d}" for i in range(8)]
    assert len({p.text for p in probes}) == 8
    few = ProbeSet.from_rows(rows[:6], domain="own", limit=8)
    assert [p.text for p in few] == ["p0", "p1", "p2"]


def test_plain_texts_as_chat():
    tokens = Probe("t", "decoded", token_ids=(1, 2))
    probes = ProbeSet.of(["hi", CHAT, tokens]).as_chat()
    assert [p.prompt for p in probes] == [({"role": "user", "content": "hi"},), tuple(CHAT), "decoded"]
    assert probes.as_chat() == probes


def test_one_fingerprint_for_ever():
    probes = ProbeSet.of([*ROWS, CHAT, Probe("t", "é\u2028", token_ids=(3, 4))])
    assert probes.fingerprint == "d7e4ad407153"
    reordered = [{"content": turn["content"], "role": turn["role"]} for turn in CHAT]
    assert ProbeSet.of([*ROWS, reordered, Probe("t", "é\u2028", token_ids=(3, 4))]).fingerprint == probes.fingerprint
    other = replace(probes.probes[0], columns={"a": 1})
    assert ProbeSet((other, *probes.probes[1:])).fingerprint == probes.fingerprint


def test_the_fingerprint_sees_whatever_changes_a_number():
    first, *rest = ProbeSet.of(ROWS).probes
    changes = [{"id": "x"}, {"prompt": "x"}, {"prompt": tuple(CHAT)}, {"domain": "x"}, {"gold": "2"}, {"gold": None},
               {"difficulty": 4}, {"token_ids": (1,)}, {"reference": "r"}, {"reference": "s"}]  # fmt: skip
    sets = [(first, *rest), (*rest, first), (first,), *((replace(first, **change), *rest) for change in changes)]
    assert len({ProbeSet(tuple(probes)).fingerprint for probes in sets}) == len(sets)


@pytest.mark.parametrize("n", [1, 2, 5, 31, 32, 33, 1000])
@pytest.mark.parametrize("limit", [1, 3, 32])
def test_spread_is_even_and_keeps_the_order(n, limit):
    found = list(spread(range(n), limit))
    assert len(found) == min(n, limit)
    assert found[0] == 0
    gaps = np.diff(found)
    assert len(found) == 1 or 0 < gaps.min() <= gaps.max() <= gaps.min() + 1
    assert list(spread(list(range(n)), None)) == list(range(n))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "There are no prompts: pass a list, a .jsonl file, a data set or a pack name"),
        (["a", 5], "Row 1 is a int; a probe is a text, a list of chat messages, or a mapping"),
        ([[]], "Row 0 is a list; a probe is"),
        (5, "Cannot read probes from a int: pass a list, a path, a data set or a pack name"),
        (None, "Cannot read probes from a NoneType"),
        ([{"question": "?"}], r"Row 0 has no prompt: its columns are \['question'\]. Name one 'prompt'"),
        ([""], "Row 0 has no prompt"),
        (["a", "  \n"], "Row 1 has an empty 'prompt'"),
        ([{"prompt": 5}], "Row 0: a prompt is a text or a list of chat messages such as {'role': .*, not '5'"),
        ([{"prompt": {"a": "b"}}], "Row 0: a prompt is a text or a list of chat messages"),
        ([{"messages": [{"from": "human", "value": "hi"}]}], "Row 0: a prompt is a text or .*not .*'from': 'human'"),
        ([[{"prompt": "a"}, {"prompt": "b"}]], "Row 0: a prompt is a text or"),
        ([Probe("a", "x"), Probe("a", "y")], "Two probes have the id 'a'; .* must be unique"),
        ([{"prompt": "?", "domain": "all"}], "The domain 'all' names the numbers over every domain"),
        ({"prompt": "?"}, "This is a mapping with the keys 'prompt': pass one data set"),
        (datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS[:1])), "mapping with the keys 'train': pass one"),
        ({"a", "b"}, "A set has no order"),
        ("creativ", "'creativ' is neither a pack nor a file. Did you mean 'creative'?"),
        ("math+maths", "'maths' is neither a pack nor a file. Did you mean 'math'?"),
        ("Tell me a joke.", "Known: .*creative, .*math.* A file ends in .jsonl; .*prompts are passed in a list"),
        ("x" * 5000, r"'x{80}\.\.\.' is neither a pack nor a file"),
        ("nul\x00", "is neither a pack nor a file"),
        ("", "'' is neither a pack nor a file"),
        ("creative+creative", "Two probes have the id 'creative-001'"),
        ("missing.jsonl", "Cannot read missing.jsonl: No such file or directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_probed(source, message):
    with pytest.raises(ProbeError, match=message):
        ProbeSet.of(source)


def test_a_data_frame_is_told_how_to_come():
    frame = pytest.importorskip("pandas").DataFrame(ROWS)
    with pytest.raises(ProbeError, match=r"pass frame.to_dict\('records'\)"):
        ProbeSet.of(frame)
    assert len(ProbeSet.of(frame.to_dict("records"))) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "p.jsonl is empty: write one JSON object with a 'prompt' a line"),
        (b"\n \n", "p.jsonl is empty"),
        (b'{"prompt": "a"}\n\n{"prompt": \n', r"line 3 is not JSON \(.*\); a line is one object with a 'prompt'"),
        (b'{"prompt": "a"}\n\n{"promt": "b"}\n', r"p.jsonl, line 3 has no prompt: its columns are \['promt'\]"),
        (b"\n7\n", "p.jsonl, line 2 is a int"),
        (b'[{"prompt": "a"}, {"prompt": "b"}]', "p.jsonl, line 1: a prompt is a text or a list of chat messages"),
        (b'{"prompt": "caf\xe9"}', "p.jsonl is not UTF-8"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file(tmp_path, content, message):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(ProbeError, match=message):
        ProbeSet.of(tmp_path / "p.jsonl")


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(ProbeError, match=r"Cannot read .*d.jsonl: Is a directory"):
        ProbeSet.of(tmp_path / "d.jsonl")


@pytest.mark.parametrize(("name", "split"), [("hub:owner/name", "train"), ("hub:owner/name:test[:10]", "test[:10]")])
def test_a_data_set_of_the_hub(monkeypatch, name, split):
    asked = []

    def load(path, *, split):
        asked.append((path, split))
        return datasets.Dataset.from_list([{"prompt": f"p{i}"} for i in range(100)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [p.text for p in ProbeSet.of(name, limit=2, domain="h")] == ["p0", "p50"]
    assert asked == [("owner/name", split)]
    assert len(ProbeSet.of(name)) == 100


def test_a_hub_that_cannot_be_reached(monkeypatch):
    def load(path, *, split):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = (
        "Cannot load the Hub data set 'owner/name', split 'train': no route. Check the name and the network, or save"
    )
    with pytest.raises(ProbeError, match=message):
        ProbeSet.of("hub:owner/name")
