"""Equivalence classes and utility against NoveltyBench's own numbers, scikit-bio and brute force."""

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.base import Judges
from divmon.metrics.classes import expected_utility, greedy_partition, partitions, utility
from divmon.metrics.richness import chao_jost_entropy
from divmon.records import Probe, SampleBatch

ORACLES = Path(__file__).parents[2].parent / "shared" / "oracles" / "noveltybench"


def published():
    path = ORACLES / "gemini-1.5-pro_curated_scores.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def batch(rows):
    return SampleBatch(0, tuple(Probe(str(i), "?") for i in range(len(rows))), tuple(map(tuple, rows)))


def first_word(pairs):
    return np.array([float(a.split()[:1] == b.split()[:1]) for a, b in pairs])


def context(rows, *, judge=first_word, quality=None):
    return MetricContext(batch(rows), quality=quality, judges=Judges(equivalence=judge, equivalence_name="toy"))


def values(name, *args, **more):
    return evaluate(METRICS[name], context(*args, **more)).values


def test_published_utilities_come_back():
    rows = published()
    found = [utility(row["partition"], row["generation_scores"]) for row in rows]
    assert np.mean(found) == pytest.approx(2.8658255953362, abs=1e-12)
    np.testing.assert_allclose(found, [row["utility"] for row in rows], atol=1e-12)


def test_published_classes_come_back_through_the_metric():
    rows = published()
    texts = [[f"{c} {i} {j}" for j, c in enumerate(row["partition"])] for i, row in enumerate(rows)]
    found = values("distinct_k", texts)
    assert found.mean() == pytest.approx(1.83)
    assert Counter(found.astype(int).tolist()) == {1: 62, 2: 17, 3: 8, 4: 8, 5: 2, 7: 3}


def test_the_mean_over_orders_is_close_to_the_published_order():
    rows = published()
    texts = [[f"{c} {i} {j}" for j, c in enumerate(row["partition"])] for i, row in enumerate(rows)]
    scores = [[row["partition_scores"][c] for c in row["partition"]] for row in rows]  # repeats are stored as 0
    found = values("utility_k", texts, quality=scores)
    assert found.mean() == pytest.approx(2.8658255953362, rel=0.03)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 10)), min_size=1, max_size=6), st.floats(0.1, 1))
@settings(deadline=None, max_examples=40)
def test_expected_utility_is_the_mean_over_every_order(drawn, patience):
    labels, scores = zip(*drawn, strict=True)
    every = [
        utility([labels[i] for i in order], [scores[i] for i in order], patience=patience)
        for order in itertools.permutations(range(len(drawn)))
    ]
    assert expected_utility(labels, scores, patience=patience) == pytest.approx(np.mean(every), abs=1e-9)


def test_utility_by_hand():
    assert utility([0, 0, 1], [5, 9, 7], patience=0.5) == pytest.approx((5 + 0.25 * 7) / 1.75)
    assert utility([3, 1, 3, 1], [1, 1, 1, 1], patience=1) == 0.5
    assert math.isnan(utility([], []))
    assert math.isnan(expected_utility([], []))
    assert expected_utility([7], [4.0]) == 4
    for bad in (([0, 1], [1.0]), ([[0]], [[1.0]])):
        for fn in (utility, expected_utility):
            with pytest.raises(ValueError, match="one class and one score"):
                fn(*bad)


def test_greedy_classes_depend_on_the_order_and_components_do_not():
    def near(a, b):
        return abs(len(a) - len(b)) <= 1

    texts = ["a", "aa", "aaa"]
    assert greedy_partition(texts, near) == [0, 0, 1]
    assert greedy_partition([texts[i] for i in (1, 0, 2)], near) == [0, 0, 0]
    assert greedy_partition([], near) == []

    def judge(pairs):
        return np.array([float(near(a, b)) for a, b in pairs])

    for order in itertools.permutations(texts):
        assert values("distinct_k", [order], judge=judge).tolist() == [1]


def test_every_unordered_pair_of_different_texts_is_asked_once_in_one_call():
    calls = []

    def judge(pairs):
        calls.append(list(pairs))
        return first_word(pairs)

    ctx = context([["b x", "a x", "b x", "a y"], ["a y", "a x"], ["c", "c"], ["d"], []], judge=judge)
    for name in ("distinct_k", "semantic_entropy", "utility_k"):
        evaluate(METRICS[name], ctx)
    assert calls == [[("a x", "a y"), ("a x", "b x"), ("a y", "b x")]]
    assert [labels.tolist() for labels in partitions(ctx)] == [[0, 1, 0, 1], [0, 0], [0, 0], [0], []]


def test_nothing_to_ask_asks_nothing():
    def judge(pairs):
        raise AssertionError("asked about nothing")

    assert values("distinct_k", [["same", "same"], ["one"]], judge=judge).tolist()[0] == 1


def test_a_judge_that_cannot_say_is_missing_for_its_prompt_alone():
    def judge(pairs):
        return np.array([math.nan if "bad" in a + b else 0.0 for a, b in pairs])

    for name in ("distinct_k", "semantic_entropy"):
        result = evaluate(METRICS[name], context([["bad", "x"], ["y", "x"]], judge=judge))
        assert np.isnan(result.values).tolist() == [True, False]
        assert result.reasons == ("the judge of equivalence gave no number for a pair", None)
    for shape in ((3,), (1, 2)):
        with pytest.raises(ValueError, match="the judge of equivalence returned shape"):
            values("distinct_k", [["a", "b"]], judge=lambda pairs, shape=shape: np.zeros(shape))
    with pytest.raises(ValueError, match="pass equivalence="):
        partitions(MetricContext(batch([["a", "b"]])))


def test_a_quality_that_is_unknown_makes_utility_missing():
    found = values("utility_k", [["a", "b"], ["a", "b"]], quality=[[1.0, math.nan], [1.0, 3.0]])
    assert np.isnan(found).tolist() == [True, False]
    assert found[1] == 2


def test_entropy_is_chao_josts_of_the_class_counts():
    rows = [["a 1", "a 2", "b", "b 2", "c"], ["a", "b", "c", "d", "e"], ["a", "a 1", "a 2", "a 3", "a 4"]]
    counts = ([2, 2, 1], [1, 1, 1, 1, 1], [5])
    expected = [float(chao_jost_entropy(np.array(row, dtype=float))) for row in counts]
    np.testing.assert_allclose(values("semantic_entropy", rows), expected, rtol=1e-12)
    assert expected[2] == 0


def test_entropy_of_many_draws_is_shannons():
    alpha = pytest.importorskip("skbio.diversity.alpha")
    counts = np.array([150, 100, 50])
    row = [f"{word} {i}" for word, n in zip("abc", counts, strict=True) for i in range(n)]
    expected = float(alpha.shannon(counts, base=math.e))
    assert values("semantic_entropy", [row]) == pytest.approx([expected], abs=0.005)


def test_a_chain_of_pairs_is_one_class_in_a_large_row():
    row = [f"t{i:03}" for i in range(120)]

    def judge(pairs):
        return np.array([float(abs(int(a[1:]) - int(b[1:])) == 1) for a, b in pairs])

    assert values("distinct_k", [row, row[::2]], judge=judge).tolist() == [1, 60]
