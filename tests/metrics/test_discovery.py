"""Unnamed formats are found where they are and only there; the rule of the Echo Chamber study is what its code does."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.config import plan
from divmon.errors import ConfigError
from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.discovery import (
    BROAD,
    Discovery,
    discover,
    discovered_classifier,
    echo_chamber_label,
    named_classifier,
    skeleton,
)
from divmon.metrics.structure import classify
from divmon.records import Probe, SampleBatch
from divmon.settings import Settings

GSM8K = Path(__file__).parents[2].parent / "shared" / "oracles" / "gsm8k" / "example_model_solutions.jsonl"
TEMPLATES = {
    "Q: … A: …": "Q: what is {0} and {1}?\nA: {2}",
    "Step # -> … Answer = …": "Step one -> take {0}\nStep two -> add {1}\nAnswer = {2}",
    "[Thought] … [Reply] …": "[Thought] {0} with {1} it is\n[Reply] {2}",
    "Sure! …": "Sure! It comes to {2} when {0} joins {1}",
    "> … >>> …": "> {0} plus {1}\n>>> {2}",
    "Given: … Sought: … Solution => …": "Given: {0}, {1}\nSought: the sum\nSolution => {2}",
    "#=# …": "{0} + {1} = {2}",
}
PROSE = "We take {0} and put {1} to it, which makes {2} in the end."


def solved(template, n, seed=0):
    pairs = np.random.default_rng(seed).integers(0, 99, size=(n, 2))
    return [template.format(a, b, a + b) for a, b in pairs]


@pytest.mark.parametrize(("name", "template"), TEMPLATES.items())
def test_skeletons_of_templates(name, template):
    assert {skeleton(text) for text in solved(template, 20)} == {name}


@pytest.mark.parametrize(
    "text",
    ["", " \n\t", PROSE, "It is 7.", "She said that the answer, all in all, was 7: no more.", "\ud800", "森が燃える"],
)
def test_prose_has_no_skeleton(text):
    assert skeleton(text) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a) one\nb) two", "x) …"),
        ("iv. one", "x) …"),
        ("I. one", "x) …"),
        ("Part 3: x\nPart 17: y", "Part #: …"),
        ("First: a\nSecond: b", "#: …"),
        ("---\nDone - it is 3", "--- … Done - …"),
        ("12 = 3 * 4", "#=# …"),
        ("There are 12 - 3 = 9 of them", None),
        ("well-known facts", None),
        ("x = 4\ny = 5", "x = … y = …"),
    ],
)
def test_skeletons_by_hand(text, name):
    assert skeleton(text) == name


def test_discovery_recovers_a_mixture_and_its_shares():
    mixture = {name: solved(template, 10 * (i + 1), seed=i) for i, (name, template) in enumerate(TEMPLATES.items())}
    texts = [text for rows in mixture.values() for text in rows] + solved(PROSE, 60)
    order = np.random.default_rng(1).permutation(len(texts))
    texts = [texts[i] for i in order]
    found = discover(texts, min_share=0.01)
    assert {name: one.count for name, one in found.items()} == {name: len(rows) for name, rows in mixture.items()}
    assert list(found) == sorted(found, key=lambda name: -found[name].count)
    for name, one in found.items():
        assert one.share == one.count / len(texts)
        assert {skeleton(texts[i]) for i in one.examples} == {name}
        assert set(one.within) <= BROAD
        assert sum(one.within.values()) == one.count
    assert sum(one.share for one in discover(texts, min_share=0.2).values()) == pytest.approx(70 / len(texts))


def test_what_is_rare_or_has_a_name_already_is_not_discovered():
    assert discover(solved(TEMPLATES["Q: … A: …"], 2)) == {}
    assert discover(solved(TEMPLATES["Q: … A: …"], 3) + solved(PROSE, 97)) == {}
    assert discover([f"- Note: {i}\n- Sum: {i}" for i in range(9)]) == {}
    assert discover([]) == {}


def test_the_frozen_classifier_tells_apart_what_the_built_in_one_does_not():
    q, a = solved(TEMPLATES["Q: … A: …"], 8), solved(TEMPLATES["Step # -> … Answer = …"], 8)
    assert {classify(text)[0] for text in q + a} == {"marked_answer"}
    label = discovered_classifier(q + a)
    assert {label(text)[0] for text in q} == {"Q: … A: …"}
    assert {label(text)[0] for text in a} == {"Step # -> … Answer = …"}
    assert label(q[0])[1:] == classify(q[0])
    later = "Sure! It is 7"  # not there when it was frozen
    assert label(later) == classify(later)
    with pytest.raises(TypeError):
        label.formats["more"] = None


def test_real_solutions_laid_out_in_three_ways():
    if not GSM8K.exists():
        pytest.skip(f"{GSM8K} is not there")
    rows = [json.loads(line) for line in GSM8K.read_text("utf-8").splitlines()]
    texts, truth = [], []
    for i, row in enumerate(rows):
        text = re.sub(r"<<[^>]*>>", "", row["175b_verification"]["solution"])
        work, _, answer = text.rpartition("\nA: ")
        flat = " ".join(work.split())
        forms = {
            "A: …": text,
            "Reasoning: … Result = …": f"Reasoning: {flat}\nResult = {answer}",
            "[work] … [answer] …": f"[work] {flat}\n[answer] {answer}",
        }
        name = list(forms)[i % 3]
        texts.append(forms[name])
        truth.append(name)
    label = discovered_classifier(texts)
    assert set(label.formats) == set(truth)
    right = [label(text)[0] == name for text, name in zip(texts, truth, strict=True)]
    assert np.mean(right) > 0.95  # a few solutions open lines with signs or sums of their own


def test_discovery_as_a_setting_is_frozen_on_the_baseline():
    made = plan(Settings(formats="discover", metrics=["effective_formats", "format_dominance"]))
    assert made.lenses.classifier_name == "discover"
    rows = solved(TEMPLATES["Q: … A: …"], 6), solved(TEMPLATES["Step # -> … Answer = …"], 6)
    first = SampleBatch(0, (Probe("a", "?"), Probe("b", "?")), tuple(map(tuple, rows)))
    base = MetricContext(first, classifier=made.lenses.classifier)
    result = evaluate(METRICS["format_dominance"], base)
    assert float(result.combine(result.parts)) == 0.5
    later = SampleBatch(1, first.probes, (tuple(rows[0]), tuple(solved(TEMPLATES["Sure! …"], 6))))
    result = evaluate(METRICS["format_dominance"], MetricContext(later, classifier=Discovery(), baseline=base))
    shares = result.details(result.parts)["shares"]
    assert shares["Q: … A: …"] == 0.5
    assert "Sure! …" not in shares
    assert Discovery()("- a\n- b") == classify("- a\n- b")


def test_names_in_settings():
    assert plan(Settings(formats="echo-chamber")).lenses.classifier("def f(): pass") == ("tinygsm-code",)
    assert named_classifier(None) is None
    with pytest.raises(ConfigError, match="Did you mean 'echo-chamber'"):
        plan(Settings(formats="echo-chambre"))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_a_short_printable_skeleton_or_none(text):
    name = skeleton(text)
    assert skeleton(text) == name
    assert name is None or (name.endswith(" …") and len(name) < 400 and "\n" not in name)
    assert skeleton(f"  {text}\n") == name


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        " ",
        "\n",
        "a\n",
        "- \n",
        "a b c ",
        ":",
        "=",
        "1 = ",
        "((((",
        "a:\n",
        "**",
        "->",
        "\ud800",
        "#\n",
        "x)\n",
        "-",
    ],
)
def test_a_megabyte_of_hostile_text_ends(piece):
    """A pattern that backtracks would take years, not seconds."""
    skeleton(piece * (1_000_000 // len(piece)))


def published_rule(text, run_tagged, run_function):
    """`get_llm_answer` of the published code, restated: the label is set before each run."""
    label = "text"
    if "<llm-code>" in text:
        label = "llm-code"
        if run_tagged(text) is not None:
            return "llm-code"
    if "def" in text:
        label = "tinygsm-code"
        if run_function(text) is not None:
            return "tinygsm-code"
    return label


@pytest.mark.parametrize("function", [None, "7"])
@pytest.mark.parametrize("tagged", [None, "7"])
@pytest.mark.parametrize(
    "text",
    [
        "It is 7.",
        "It is definite.",
        "\ndef simple_math_problem():\n    return 7",
        "<llm-code>\n3 + 4\n</llm-code>",
        "<llm-code>\ndef f():\n    return 7\nf()\n</llm-code>",
        "<llm-code>\n3 + 4\n</llm-code> is undefined",
        "",
    ],
)
def test_echo_chamber_rule_equals_the_published_one(text, tagged, function):
    expected = published_rule(text, lambda _: tagged, lambda _: function)
    assert echo_chamber_label(text, run=lambda code: tagged) == expected
    if tagged:
        assert echo_chamber_label(text) == expected


def test_echo_chamber_runs_only_what_can_change_the_label():
    ran = []

    def run(code):
        ran.append(code)
        raise RuntimeError("boom")

    assert echo_chamber_label("<llm-code>1</llm-code>", run=run) == "llm-code"
    assert echo_chamber_label("def f(): pass", run=run) == "tinygsm-code"
    assert ran == []
    assert echo_chamber_label("<llm-code>\n1 + 1\n</llm-code>\ndef", run=run) == "tinygsm-code"
    assert ran == ["1 + 1"]
    assert echo_chamber_label("<llm-code> def f()") == "tinygsm-code"  # tagged code that is cut never runs
