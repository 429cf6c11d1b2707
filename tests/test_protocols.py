"""Protocols give the studies' numbers: stored ones, brute force, and miniatures worked out by hand."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from divmon.errors import ConfigError
from divmon.measuring import measure
from divmon.metrics.human import dimensions
from divmon.protocols import PROTOCOLS, Protocol, get_protocol, noveltybench_score

STORED = (
    Path(__file__).parents[1].parent / "shared" / "oracles" / "noveltybench" / "gemini-1.5-pro_curated_scores.jsonl"
)
STATED = {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 32768}
TEXTS = ["One fox. Two hens.\nThree cows", "One fox  Two hens", "a\tb c d e f g", "a b c d e f g", "One", ""]


def axes(texts):
    """Three unit vectors by the first letter: o and t at 60 degrees, everything else orthogonal to both."""
    table = {"o": [1, 0, 0], "t": [0.5, math.sqrt(0.75), 0]}
    return np.array([table.get(text.strip()[:1].lower(), [0, 0, 1]) for text in texts], dtype=float)


def value(results, metric):
    return results.get(metric).measurement.value


def rows(*prompts, **more):
    return [{"prompt": f"p{i}", "completions": list(texts), **more} for i, texts in enumerate(prompts)]


def brute_ead(texts, split, *, clip):
    """The published formula, with sets and powers."""
    v, total = 50257, []
    for n in range(1, 6):
        grams = [tuple(w[i : i + n]) for w in map(split, texts) for i in range(len(w)) if len(w[i : i + n]) == n]
        value = len(set(grams)) / (v * (1 - ((v - 1) / v) ** len(grams))) if grams else 0.0
        total.append(min(value, 1.0) if clip else value)
    return sum(total) / 5


def deleted(text):
    return "".join(c for c in text if c not in ".\n")


@pytest.mark.parametrize(
    ("protocol", "split", "clip"),
    [
        ("karouzos2026", lambda text: deleted(text).split(), True),
        ("kirk2024", lambda text: [w for w in deleted(text).split(" ") if w], False),
    ],
)
def test_ead_is_the_published_formula_on_the_published_words(protocol, split, clip):
    results = measure(rows(TEXTS, TEXTS[:2], TEXTS[2:4]), protocol=protocol, metrics=["ead"])
    expected = [brute_ead(texts, split, clip=clip) for texts in (TEXTS, TEXTS[:2], TEXTS[2:4])]
    assert value(results, "ead") == pytest.approx(np.mean(expected), abs=1e-9)
    assert results.get("ead").measurement.details["sd"] == pytest.approx(np.std(expected), abs=1e-9)
    other = brute_ead(TEXTS, str.split, clip=clip)
    assert other != pytest.approx(expected[0], abs=1e-3)  # the tokenisation shows in the number


def test_clipping_and_tabs_tell_the_two_apart():
    single = rows(["a", "b"])
    kirk, karouzos = (value(measure(single, protocol=p, metrics=["ead"]), "ead") for p in ("kirk2024", "karouzos2026"))
    assert karouzos == 0.2  # only single words: 1, cut there, over five orders
    assert kirk == pytest.approx(brute_ead(["a", "b"], str.split, clip=False), abs=1e-9)
    assert kirk > 0.2


def test_karouzos_by_hand():
    found = rows(["<think>zzz</think>one", "o</think>two", "three", "x"], rewards=[1, 1, 0, 0], **STATED)
    nli = lambda pairs: np.array([[0.75, 0.0, 0.25]] * len(pairs))  # noqa: E731
    results = measure(found, protocol="karouzos2026", encoder=axes, nli=nli)
    # cosines: one-two, one-three 1/2; two-three 1; x with all 0
    assert value(results, "semantic_distance") == pytest.approx(1 - (0.5 + 0.5 + 1) / 6, abs=1e-12)
    assert value(results, "semantic_distance_correct") == pytest.approx(0.5, abs=1e-12)
    shares = np.array([0.75, 0.25])  # eigenvalues of [[1, .5], [.5, 1]] over 2
    assert value(results, "vendi_1_correct") == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), abs=1e-12)
    gram = axes(["o", "t", "t", "x"]) @ axes(["o", "t", "t", "x"]).T / 4
    eigen = np.clip(np.linalg.eigvalsh(gram), 1e-300, None)
    assert value(results, "vendi_1") == pytest.approx(np.exp(-(eigen * np.log(eigen)).sum()), abs=1e-9)
    assert value(results, "nli_diversity") == pytest.approx(1 - 0.5, abs=1e-12)
    assert results.deviations == (
        "K: 4 instead of 16",
        "prompts: 1 instead of 500",
        "encoder: axes instead of all-mpnet-base-v2",
        "nli: <lambda> instead of roberta-large-mnli",
    )
    signature = results.get("semantic_distance").measurement.signature
    assert "encoder:axes instead of all-mpnet-base-v2" in signature
    assert "protocol:karouzos2026" in signature


def test_code_is_compared_where_it_is_correct():
    program = "def f(x):\n    if x > {0}:\n        return [i for i in range(x + {0})]\n    return None\n"
    found = rows([program.format(1), program.format(2), program.format(1)], rewards=[1, 0, 1])
    results = measure(found, protocol="karouzos2026", metrics=["ast_distance_4_correct"])
    assert value(results, "ast_distance_4_correct") == 0
    found = rows([program.format(1), program.format(2)], rewards=[1, 1])
    assert (
        value(measure(found, protocol="karouzos2026", metrics=["ast_distance_4_correct"]), "ast_distance_4_correct") > 0
    )


def test_kirk_by_hand():
    prompts = (["one", "two", "x"], ["two", "one"], ["x y", "one"])
    verdicts = {("one.", "two."): [0.7, 0.2, 0.1], ("two.", "one."): [0.1, 0.3, 0.6], ("one.", "x."): [0.2, 0.5, 0.3]}
    nli = lambda pairs: np.array([verdicts.get(pair, [0.0, 1.0, 0.0]) for pair in pairs])  # noqa: E731
    results = measure(rows(*prompts), protocol="kirk2024", encoder=axes, nli=nli)
    # first prompt: one-two -.7 + .6, one-x 0, two-x 0; second: two-one the same; third: neutral
    assert value(results, "nli") == pytest.approx(((-0.1 / 3) - 0.1 + 0.0) / 3, abs=1e-12)
    # first completions one, two, x y: cosines 1/2, 0, 0
    assert value(results, "semantic_across") == pytest.approx(1 - 0.5 / 3, abs=1e-12)
    firsts = [texts[0] for texts in prompts]
    across = results.get("ead_across").measurement
    assert across.value == pytest.approx(brute_ead(firsts, str.split, clip=False), abs=1e-9)
    assert math.isnan(across.low)


def test_semantic_distance_across_is_the_mean_over_all_pairs_of_first_completions():
    rng = np.random.default_rng(0)
    vectors = {f"t{i}": vector / np.linalg.norm(vector) for i, vector in enumerate(rng.normal(size=(40, 5)))}
    found = rows(*([text, "t0"] for text in vectors))
    encode = lambda texts: np.array([vectors[text] for text in texts])  # noqa: E731
    results = measure(found, protocol="kirk2024", metrics=["semantic_across"], encoder=encode)
    expected = 1 - np.mean([a @ b for a, b in combinations(vectors.values(), 2)])
    measured = results.get("semantic_across").measurement
    assert measured.value == pytest.approx(expected, abs=1e-12)
    assert measured.low < measured.value < measured.high


def test_noveltybench_gives_the_stored_numbers():
    if not STORED.exists():
        pytest.skip(f"the NoveltyBench oracle is not at {STORED}")
    stored = [json.loads(line) for line in STORED.read_text("utf-8").splitlines()]
    classes = [dict(zip(row["generations"], row["partition"], strict=True)) for row in stored]

    def same(pairs):  # the pairs of one prompt
        [known] = [labels for labels in classes if all(a in labels and b in labels for a, b in pairs)][:1]
        return np.array([known[a] == known[b] for a, b in pairs], dtype=float)

    found = [
        {"prompt": row["prompt"], "generations": row["generations"], "scores": row["generation_scores"]}
        for row in stored
    ]
    results = measure(found, protocol="noveltybench2025", equivalence=same)
    assert value(results, "utility_k") == pytest.approx(2.8658255953362, abs=1e-12)
    assert value(results, "distinct_k") == pytest.approx(1.83, abs=1e-12)
    assert results.source.k == (10, 10)
    assert "prompts: 100 instead of 1100" in results.deviations


def test_noveltybench_classes_hang_on_the_first_member_and_on_the_order():
    near = lambda pairs: np.array([abs(len(a) - len(b)) <= 1 for a, b in pairs], dtype=float)  # noqa: E731
    for texts, classes in ((["aa", "a", "aaa"], 1), (["a", "aa", "aaa"], 2)):
        found = rows(texts, rewards=[4, 8, 2])
        results = measure(found, protocol="noveltybench2025", equivalence=near)
        assert value(results, "distinct_k") == classes
        expected = (4 + (0.64 * 2 if classes == 2 else 0)) / (1 + 0.8 + 0.64)
        assert value(results, "utility_k") == pytest.approx(expected, abs=1e-12)


def test_scores_of_the_reward_model():
    assert [noveltybench_score(x) for x in (-9.0, -7.71875, -7.0, -3.4375, -3.0, -2.046875, -2.0)] == [
        1, 1, 2, 8, 9, 9, 10,
    ]  # fmt: skip


def test_hivemind_counts_prompts_not_pairs():
    found = rows(["one", "one", "one"], ["one", "two", "one"], ["one", "x", "two"])
    results = measure(found, protocol="hivemind2025", encoder=axes)
    assert value(results, "intra_repetition") == pytest.approx(1 / 3)  # means 1, 2/3 and 1/6
    assert value(results, "intra_similarity") == pytest.approx((1 + 2 / 3 + 1 / 6) / 3)
    assert "encoder: axes instead of text-embedding-3-small" in results.deviations


def test_echo_chamber_shares_and_accuracy_by_label():
    texts = ["<llm-code>1</llm-code>", "def f(): ...", "undefined", "It is 7."]
    results = measure(rows(texts, rewards=[1, 0, 1, 1]), protocol="echochamber2025")
    measured = results.get("format_dominance").measurement
    assert measured.value == 0.5
    assert measured.details["shares"] == {"tinygsm-code": 0.5, "llm-code": 0.25, "text": 0.25}
    assert measured.details["quality"] == {"tinygsm-code": 0.5, "llm-code": 1.0, "text": 1.0}
    assert (value(results, "pass_at_1"), value(results, "coverage")) == (0.75, 1.0)


def test_jarvis_is_the_mean_of_single_texts():
    texts = ["to be or not to be", "a hen and a fox and a hen"]
    results = measure(rows(texts, texts[:1]), protocol="jarvis2013")
    one, two = dimensions(texts)
    for name, a, b in zip(
        ("volume", "abundance", "variety", "evenness", "disparity", "dispersion"), one, two, strict=True
    ):
        assert value(results, name) == pytest.approx(((a + b) / 2 + a) / 2, abs=1e-12), name


def test_decoding_that_the_file_states_is_held_against_the_protocol():
    found = rows(["a", "b"], temperature=1.0, top_p=0.95, max_tokens=32768)
    deviations = measure(found, protocol="karouzos2026", metrics=["ead"]).deviations
    assert "temperature: 1 instead of 0.6" in deviations
    assert not any(text.startswith(("top_p", "max_new_tokens")) for text in deviations)
    silent = measure(rows(["a", "b"]), protocol="karouzos2026", metrics=["ead"]).deviations
    assert "top_p: not stated in the file; the protocol has 0.95" in silent


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda p: p.name)
def test_every_protocol_says_what_it_is(protocol: Protocol):
    assert get_protocol(protocol.name) is protocol
    assert protocol.title.endswith(".")
    assert protocol.not_reproducible
    assert protocol.source
    names = [metric.name for metric in protocol.metrics]
    assert len(set(names)) == len(names)
    for kind in ("encoder", "nli", "equivalence"):
        assert bool(getattr(protocol, kind)) == any(kind in metric.needs for metric in protocol.metrics), kind


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda p: p.name)
def test_odd_texts_raise_nothing_and_leave_a_reason(protocol: Protocol):
    found = rows(["", ""], ["\ud800", "x" * 100_000], ["。日本", "a"], [" "], rewards=None)
    models = {"encoder": axes, "nli": lambda pairs: np.full((len(pairs), 3), 1 / 3)}
    models["equivalence"] = lambda pairs: np.array([float(a == b) for a, b in pairs])
    results = measure(found, protocol=protocol.name, **models)
    assert results.notes == ()
    for row in results.rows:
        assert math.isnan(row.measurement.value) == bool(row.measurement.reason), row
        if not math.isnan(row.measurement.value):
            metric = next(m for m in protocol.metrics if m.name == row.measurement.metric)
            assert metric.bounds[0] - 1e-9 <= row.measurement.value <= metric.bounds[1] + 1e-9


def test_what_a_protocol_cannot_do_is_said():
    with pytest.raises(ConfigError, match=r"Unknown protocol 'karouzos'. Did you mean 'karouzos2026'"):
        measure(rows(["a"]), protocol="karouzos")
    with pytest.raises(ConfigError, match=r"Unknown metric of the protocol kirk2024 'eat'. Did you mean 'ead'"):
        measure(rows(["a"]), protocol="kirk2024", metrics=["eat"])
    with pytest.raises(ConfigError, match="'text-embedding-3-small', which cannot be loaded by name"):
        measure(rows(["a"]), protocol="hivemind2025")
