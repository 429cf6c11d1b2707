"""The packs that come with divmon: complete, original in shape, and right where that can be checked."""

from __future__ import annotations

import ast
import collections
import itertools
import json
import re
from importlib import resources

import pytest

import divmon
from divmon.probes import PACKS

NEW = ("ideation", "opinion", "code", "rewrite")
FIELDS = {
    "ideation": ["id", "prompt", "domain", "tags"],
    "opinion": ["id", "prompt", "domain", "tags"],
    "code": ["id", "prompt", "domain", "difficulty", "entry_point", "tests", "tags"],
    "rewrite": ["id", "prompt", "reference", "domain", "tags"],
}
# Words that tell a model how to lay out its answer, which is what the packs are there to find out.
FORMAT = re.compile(r"bullet|numbered|markdown|code block|json|(in|as) a table|paragraphs|headings|step by step", re.I)


def rows(pack):
    text = resources.files("divmon.probes").joinpath("packs", f"{pack}.jsonl").read_text("ascii")
    return [json.loads(line) for line in text.splitlines()]


def words(text):
    return re.findall(r"[a-z']+", text.lower())


CODE = rows("code")
REWRITE = rows("rewrite")


@pytest.mark.parametrize("pack", NEW)
def test_a_pack_is_complete(pack):
    found = rows(pack)
    assert pack in PACKS
    assert len(found) >= 48
    assert [row["id"] for row in found] == [f"{pack}-{i:03d}" for i in range(1, len(found) + 1)]
    for row in found:
        assert list(row) == FIELDS[pack], row["id"]
        assert row["domain"] == pack
        assert row["prompt"] == row["prompt"].strip() != ""
        assert row["tags"]
        assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", tag) for tag in row["tags"]), row["id"]
        assert len(set(row["tags"])) == len(row["tags"])


@pytest.mark.parametrize("pack", NEW)
def test_no_two_prompts_are_built_alike(pack):
    prompts = [" ".join(words(row["prompt"])) for row in rows(pack)]
    assert len(set(prompts)) == len(prompts)
    openings = collections.Counter(" ".join(prompt.split()[:3]) for prompt in prompts)
    assert [opening for opening, count in openings.items() if count > 1] == []
    for one, other in itertools.combinations(prompts, 2):
        ours, theirs = set(one.split()), set(other.split())
        assert len(ours & theirs) / len(ours | theirs) < 0.5, (one, other)


@pytest.mark.parametrize("pack", NEW)
def test_prompts_are_short_and_ask_for_no_format(pack):
    for row in rows(pack):
        asked = row["prompt"].replace(row.get("reference", "\0"), "")
        assert len(row["prompt"]) < 600, row["id"]
        assert not FORMAT.search(asked), row["id"]


def test_no_prompt_is_in_two_packs():
    prompts = [" ".join(words(row["prompt"])) for pack in PACKS for row in rows(pack)]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("row", CODE, ids=lambda row: row["id"])
def test_tests_are_expressions_that_call_the_entry_point(row):
    name, tests = row["entry_point"], row["tests"]
    assert name.isidentifier()
    assert re.search(rf"\b{name}\(", row["prompt"])
    assert 1 <= row["difficulty"] <= 5
    assert len(set(tests)) == len(tests) >= 4
    for test in tests:
        tree = ast.parse(test, mode="eval")
        assert isinstance(tree.body, ast.Compare), test
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert name in called, test
        assert called <= {name, "len", "set"}, test
        compile(tree, "<test>", "eval")


def test_entry_points_differ_and_difficulty_covers_the_scale():
    assert len({row["entry_point"] for row in CODE}) == len(CODE)
    counts = collections.Counter(row["difficulty"] for row in CODE)
    assert sorted(counts) == [1, 2, 3, 4, 5]
    assert min(counts.values()) >= 4


@pytest.mark.parametrize("row", CODE, ids=lambda row: row["id"])
@pytest.mark.parametrize("lazy", [None, 0, 1, True, False, "", [], ()], ids=repr)
def test_no_constant_passes_all_tests(row, lazy):
    def constant(*args):
        return lazy

    def passes(test):
        try:
            return eval(test, {row["entry_point"]: constant}) is True
        except TypeError:
            return False

    assert not all(passes(test) for test in row["tests"])


@pytest.mark.parametrize("row", REWRITE, ids=lambda row: row["id"])
def test_the_draft_is_in_the_prompt_beside_a_request(row):
    draft, prompt = row["reference"], row["prompt"]
    assert prompt.count(draft) == 1
    assert words(prompt.replace(draft, ""))
    assert 15 <= len(words(draft)) <= 90
    assert len({row["reference"] for row in REWRITE}) == len(REWRITE)


def test_probes_carry_what_judges_and_metrics_need():
    for probe, row in zip(divmon.ProbeSet.of("code"), CODE, strict=True):
        assert probe.columns["entry_point"] == row["entry_point"]
        assert probe.columns["tests"] == row["tests"]
        assert isinstance(probe.columns["tests"], list)
        assert probe.difficulty == row["difficulty"]
        assert probe.gold is None
    for probe, row in zip(divmon.ProbeSet.of("rewrite"), REWRITE, strict=True):
        assert probe.reference == row["reference"]
    together = divmon.ProbeSet.of("+".join(PACKS))
    assert together.domains == PACKS
    assert len(together) == sum(len(rows(pack)) for pack in PACKS)
