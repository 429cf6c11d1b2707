"""The built-in classifier on texts as models write them, users' rules, and text made to be slow."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from divmon.errors import ConfigError
from divmon.metrics.structure import ERROR, INSPECTED, LABELS, OTHER, FunctionClassifier, build_classifier, classify

ORACLES = Path(__file__).parents[2].parent / "shared" / "oracles"

TINYGSM = '''def simple_math_problem() -> int:
    """
    Ten people each eat 2 apples. How many apples is that?
    """
    people = 10
    result = people * 2
    return result'''
LLM_CODE = "Let's use Python:\n<llm-code>\npeople = 10\npeople * 2\n</llm-code>\n<llm-code-output>20</llm-code-output>"
GSM8K = "He has 3 * 4 = <<3*4=12>>12 eggs\nHe sells 12 - 2 = $<<12-2=10>>10\n#### 10"
POEM = "Roses are red,\nViolets are blue,\nSugar is sweet,\nAnd so are you."
LONG = (
    "The committee met in the old hall and talked until the lamps were lit, "
    "and even then nobody wanted to be the first to leave."
)
TABLE = "| city | people |\n|------|-------:|\n| Rome | 2.8 M |"

PRIMARY = [
    ("empty", ""),
    ("empty", " \n\t \u200b"),
    ("refusal", "I'm sorry, but I can't help with that."),
    ("refusal", "I’m sorry, but I cannot assist with this request."),
    ("refusal", "I am unable to provide medical advice."),
    ("refusal", "As an AI language model, I don't have personal opinions."),
    ("refusal", "I must respectfully decline."),
    ("json", '{"name": "Ada", "age": 36}'),
    ("json", '{"name": "Ada", "tags": ["a", "b'),
    ("json", "[1, 2, 3]"),
    ("json", '[\n  {"answer": 4}\n]'),
    ("tool_call", '<tool_call>\n{"name": "search", "arguments": {}}\n</tool_call>'),
    ("tool_call", LLM_CODE),
    ("tool_call", "Thought: look it up\nAction: search\nAction Input: divmon"),
    ("tool_call", "<function=get_weather>{}</function>"),
    ("xml", "<answer>42</answer>"),
    ("xml", "<think>\nThree and four.\n</think>\nSeven."),
    ("xml", "Here it is:\n<story>\nOnce.\n</story>"),
    ("xml", "<!DOCTYPE html>\n<html></html>"),
    ("fenced_code", "Use this:\n```python\nprint(1)\n```"),
    ("fenced_code", "```\nhello"),
    ("bare_code", TINYGSM),
    ("bare_code", "def add(): return 3+4  # 7"),
    ("bare_code", "import numpy as np\nx = np.zeros(3)\nprint(x)"),
    ("bare_code", "#include <stdio.h>\nint main() {\n  return 0;\n}"),
    ("bare_code", "function add(a, b) {\n  return a + b;\n}"),
    ("bare_code", "# adds numbers\ndef f(x):\n    # - one\n    # - two\n    return x"),
    ("latex_boxed", "We have $3+4=7$, so the answer is $\\boxed{7}$."),
    ("latex_boxed", "${a}+{b}=\\boxed{7}$"),
    ("calculator", GSM8K),
    ("table", TABLE),
    ("headings", "# Title\n\nSome text."),
    ("headings", "**Plot**\nA man walks.\n**Ending**\nHe stops."),
    ("numbered", "1. Boil water.\n2. Add salt."),
    ("numbered", "Step 1: Boil water.\nStep 2: Add salt."),
    ("numbered", "First read (1).\n(1) Boil.\n(2) Salt."),
    ("bullets", "- 3\n- plus 4\n- gives 7"),
    ("bullets", "Ideas:\n\n* Buddy\n* Lucky\n* Max"),
    ("bullets", "• one\n• two"),
    ("dialogue", "Ann: Hello.\nBob: Hi.\nAnn: Tea?"),
    ("latex", "The area is \\(\\pi r^2\\)."),
    ("latex", "So $x^2 = 4$ has two roots."),
    ("latex", "Let $n$ be even."),
    ("marked_answer", "Three and four make seven.\nThe answer is 7."),
    ("marked_answer", "Three and four.\nA: 7"),
    ("marked_answer", "Three and four.\n#### 7"),
    ("short_lines", POEM),
    ("paragraphs", LONG + "\n\n" + LONG),
    ("paragraphs", "What do you call a fish with no eyes?\n\nFsh."),
    ("single_paragraph", LONG),
    ("one_line", "The sum of 3 and 4 is 7."),
    ("one_line", "It costs $5 and sells for $10."),
    ("one_line", "I can't believe it is not butter!"),
    ("one_line", "I can't give up."),
    ("paragraphs", "- only one bullet\n" + LONG),
    ("paragraphs", "\n".join(["Ann: Hello.", "Bob: Hi.", "Ann: Tea?", *[LONG] * 4])),
    ("paragraphs", "\n".join([*[LONG] * 3, "I cannot help you, said the clerk."])),
    ("one_line", "Use a < b and c > d, or 1. and 2."),
]


@pytest.mark.parametrize(("label", "text"), PRIMARY, ids=[f"{label}-{i}" for i, (label, _) in enumerate(PRIMARY)])
def test_primary_label(label, text):
    assert classify(text)[0] == label


def test_every_label_has_an_example():
    assert {label for label, _ in PRIMARY} == set(LABELS)


def test_labels_come_in_order_of_priority_and_once():
    order = list(LABELS)
    for _, text in PRIMARY:
        places = [order.index(label) for label in classify(text)]
        assert places == sorted(set(places))


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("# T\n\n1. a\n2. b\n\n- c\n- d\n\n" + TABLE, ("table", "headings", "numbered", "bullets")),
        ("```\n- a\n- b\n# c\n```\nDone.", ("fenced_code",)),
        ("I cannot help with that.\n- a\n- b", ("refusal", "bullets")),
        (GSM8K, ("calculator", "marked_answer")),
    ],
)
def test_all_labels(text, labels):
    assert classify(text) == labels


def test_surrounding_blank_space_changes_nothing():
    for _, text in PRIMARY:
        assert classify(f"\n\n  {text.strip()}\n ") == classify(text)


def test_only_the_beginning_is_read():
    text = "word " * (INSPECTED // 5)
    assert classify(text + "\\boxed{1}") == classify(text)


ATOMS = [
    *("a", " ", "\n", "<", "<a ", "<<", "<<1", "$", "$a", "\\", "|", "|-\n", "*", "**a", "# ", "{", "[{", '{"'),
    *("1.\n", "- ", "`", "```\n", "A:\n", "A B.", "I can't ", "i'm unable ", "</a>", "def f(", "SELECT ", "if ", "so "),
]


def test_hostile_text_costs_linear_time():
    n = 100_000
    texts = [((a + b) * n)[:n] for a, b in itertools.product(ATOMS, ATOMS[::6])]
    start = time.perf_counter()
    slowest = 0.0
    for text in texts:
        before = time.perf_counter()
        classify(text)
        slowest = max(slowest, time.perf_counter() - before)
    assert slowest < 1.0, f"{slowest:.2f} s for one text"
    assert time.perf_counter() - start < 60.0


def test_builtin_is_the_default():
    assert build_classifier(None) is classify


def test_rules_by_regex():
    rule = build_classifier({"eager": "^Sure", "steps": re.compile("^step 1", re.IGNORECASE | re.MULTILINE)})
    assert rule("Sure.\nStep 1: go") == ("eager", "steps")
    assert rule("step 1") == ("steps",)
    assert rule("no") == (OTHER,)
    assert rule("x" * INSPECTED + "\nStep 1") == (OTHER,)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"bad": "(unclosed"}, ["'bad'", "missing ), unterminated subpattern"]),
        ({"bad": 3}, ["'bad'"]),
        ({}, ["empty"]),
        ({"": "a"}, ["label"]),
        ({ERROR: "a"}, ["label"]),
        (3, ["function", "mapping"]),
        ("markdown", ["function", "mapping"]),
    ],
)
def test_bad_rules_fail_at_construction(spec, words):
    with pytest.raises(ConfigError) as caught:
        build_classifier(spec)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("answer", "labels"),
    [("a", ("a",)), (["a", "b", "a"], ("a", "b")), (("a",), ("a",)), (None, (OTHER,)), ([], (OTHER,))],
)
def test_function_labels(answer, labels):
    rule = build_classifier(lambda text: answer)
    assert rule("x") == labels
    assert rule.failures == 0


@pytest.mark.parametrize("answer", [3, "", [3], {"a": 1}, float("nan"), [""]])
def test_junk_from_a_function_is_an_error_label(answer):
    rule = build_classifier(lambda text: answer)
    assert rule("x") == (ERROR,)
    assert (rule.failures, rule("y")) == (1, (ERROR,))
    assert "expected a label" in rule.first_error


def test_a_raising_function_is_counted_and_stops_nothing():
    rule = build_classifier(lambda text: {"a": "A"}[text])
    assert isinstance(rule, FunctionClassifier)
    assert [rule(text) for text in ("b", "a", "c")] == [(ERROR,), ("A",), (ERROR,)]
    assert (rule.failures, rule.first_error) == (2, "KeyError: 'b'")


def test_real_generations_are_a_plausible_mixture():
    path = ORACLES / "noveltybench" / "gemini-1.5-pro_curated_scores.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = Counter(classify(text)[0] for row in rows for text in row["generations"])
    assert found.total() == 1000
    assert set(found) <= set(LABELS)
    assert len(found) >= 6
    assert found.most_common(1)[0][1] < 600
    assert found["bullets"] > 50
    assert found["refusal"] < 50


def test_real_solutions_keep_the_layout_they_were_trained_on():
    path = ORACLES / "gsm8k" / "example_model_solutions.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = Counter(classify(row["175b_finetuning"]["solution"])[0] for row in rows)
    assert found["calculator"] / found.total() > 0.95
