"""Diversity across prompts and dependence on the input, against brute force and closed forms."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.inputs import across, mutual_information_bound, retrieval_accuracy
from divmon.records import Probe, SampleBatch

TEXT = st.lists(st.sampled_from(["red fox", "hens", "森", "owl!", "A fox ran"]), max_size=5).map(" ".join)
ROWS = st.lists(st.lists(TEXT, min_size=1, max_size=4), min_size=2, max_size=5)


def batch(rows):
    return SampleBatch(0, tuple(Probe(str(i), "?") for i in range(len(rows))), tuple(map(tuple, rows)))


def value(name, ctx, index=None):
    result = evaluate(METRICS[name], ctx)
    parts = result.parts if index is None else result.parts[np.asarray(index)]
    return float(result.combine(parts))


def sklearn_across(rows, index=None):
    """Mean over pairs of different prompts of the mean distance of their completions, by the definition."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    vectoriser = text.TfidfVectorizer(analyzer="char", ngram_range=(3, 5))
    vectors = vectoriser.fit_transform([t for row in rows for t in row]).toarray()
    starts = np.cumsum([0, *map(len, rows)])
    pairs = itertools.permutations(range(len(rows)) if index is None else index, 2)
    means = [
        np.mean([1 - vectors[i] @ vectors[j] for i in range(*starts[a : a + 2]) for j in range(*starts[b : b + 2])])
        for a, b in pairs
        if a != b
    ]
    return np.mean(means) if means else math.nan


@settings(max_examples=80, deadline=None)
@given(ROWS, st.data())
def test_across_distance_equals_sklearn_on_any_resample(rows, data):
    rows = [[f"{text} end" for text in row] for row in rows]  # the definition of texts under three characters differs
    ctx = MetricContext(batch(rows))
    assert value("across_distance", ctx) == pytest.approx(sklearn_across(rows), abs=1e-9)
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=7))
    assert value("across_distance", ctx, index) == pytest.approx(sklearn_across(rows, index), abs=1e-9, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_semantic_across_distance_equals_brute_force(seed, p):
    rng = np.random.default_rng(seed)
    table = {}
    rows = [[f"{i}-{j}" for j in range(rng.integers(0, 5))] for i in range(p)]
    for text in itertools.chain(*rows):
        table[text] = rng.normal(size=7) * rng.choice([0.0, 1.0, 5.0])
    ctx = MetricContext(batch(rows), encoder=lambda texts: np.array([table[t] for t in texts]))

    def cosine(a, b):
        scale = np.linalg.norm(table[a]) * np.linalg.norm(table[b])
        return table[a] @ table[b] / scale if scale else 0.0

    def expected(index):
        means = [
            1 - np.mean([cosine(x, y) for x in rows[a] for y in rows[b]])
            for a, b in itertools.permutations(index, 2)
            if a != b and rows[a] and rows[b]
        ]
        return np.mean(means) if means else math.nan

    for index in (range(p), rng.integers(0, p, size=6)):
        found = value("semantic_across_distance", ctx, list(index))
        assert found == pytest.approx(expected(list(index)), abs=1e-9, nan_ok=True)


def test_a_template_is_seen_across_and_hardly_within():
    names = ["fox", "hen", "owl", "cat", "elk", "ant"]
    endings = ["for now, as ever.", "since nobody asked!", "until further notice?"]
    own = [[f"{name * 3} {name.upper() * 4} {name * 5} {end}" for end in endings] for name in names]
    template = [[f"Dear reader, let me say something {end}" for end in endings] for _ in names]
    base = MetricContext(batch(own))
    collapsed = MetricContext(batch(template), baseline=base)
    assert value("across_distance", collapsed) < 0.6 * value("across_distance", base)
    within = [evaluate(METRICS["tfidf_distance"], ctx).values.mean() for ctx in (base, collapsed)]
    assert within[1] > 0.6 * within[0]


def test_batches_of_different_spaces_do_not_mix():
    one, two = (MetricContext(batch([[a, "x y z"], ["owl", b]])) for a, b in (("red fox", "hen"), ("hens", "fox")))
    parts = [evaluate(METRICS["across_distance"], ctx).parts for ctx in (one, two)]
    assert not math.isnan(float(across(parts[0])))
    assert math.isnan(float(across(np.stack((parts[0][0], parts[1][1])))))


def test_one_prompt_and_no_prompt_are_missing():
    for rows in ([["a fox", "hens"]], [], [[], []], [["a fox"], []]):
        assert math.isnan(value("across_distance", MetricContext(batch(rows))))
    vectors = np.array([[1, 0], [math.nan, 1], [0, 1]])
    not_finite = MetricContext(batch([["a"], ["b"], ["c"]]), encoder=lambda texts: vectors)
    assert value("semantic_across_distance", not_finite) == 1.0


def brute(logprobs, owner):
    hits, nats = [], []
    for j, i in enumerate(owner):
        column = [float(x) for x in logprobs[:, j]]
        best = max(column)
        hits.append((column[i] == best) / column.count(best))
        nats.append(column[i] - math.log(sum(math.exp(x) for x in column) / len(column)))
    return np.mean(hits), np.mean(nats)


@given(arrays(float, (4, 7), elements=st.floats(-30, 0)), st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_scores_equal_their_definitions(logprobs, owner):
    accuracy, bound = brute(logprobs, owner)
    assert retrieval_accuracy(logprobs, np.array(owner)) == pytest.approx(accuracy, abs=1e-12)
    assert mutual_information_bound(logprobs, np.array(owner)) == pytest.approx(bound, abs=1e-9)
    assert mutual_information_bound(logprobs, np.array(owner)) <= math.log(4) + 1e-12


@pytest.mark.parametrize("n", [2, 5, 16])
def test_closed_forms(n):
    owner = np.repeat(np.arange(n), 3)
    rng = np.random.default_rng(n)
    independent = np.tile(rng.normal(-800, 100, size=3 * n), (n, 1))
    assert mutual_information_bound(independent, owner) == pytest.approx(0, abs=1e-9)
    assert retrieval_accuracy(independent, owner) == pytest.approx(1 / n, abs=1e-12)
    perfect = np.where(owner == np.arange(n)[:, None], independent, -math.inf)
    assert mutual_information_bound(perfect, owner) == pytest.approx(math.log(n), abs=1e-9)
    assert retrieval_accuracy(perfect, owner) == 1.0


def test_the_bound_stays_under_the_true_information():
    """A channel that copies its input with probability 0.7: the truth is known, the estimate is below it."""
    n, keep = 6, 0.7
    table = np.full((n, n), (1 - keep) / (n - 1))
    np.fill_diagonal(table, keep)
    truth = float((table / n * np.log(table * n)).sum())
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(n), 2000)
    said = np.array([rng.choice(n, p=table[i]) for i in owner])
    bound = mutual_information_bound(np.log(table[:, said]), owner)
    assert bound == pytest.approx(truth, abs=0.03)  # every prompt of the population is in the block: nearly tight
    some = np.arange(3)  # a smaller block can show less
    part = np.isin(owner, some)
    assert mutual_information_bound(np.log(table[:3][:, said[part]]), owner[part]) < math.log(3)


def test_odd_scores():
    scores = np.array([[-1.0, math.nan, -math.inf], [-2.0, -1.0, -math.inf]])
    assert retrieval_accuracy(scores, np.array([0, 0, 1])) == 1.0
    assert math.isnan(retrieval_accuracy(scores[:, 1:], np.array([0, 0])))
    assert math.isnan(mutual_information_bound(np.zeros((3, 0)), np.zeros(0, dtype=int)))
    assert mutual_information_bound(np.array([[-math.inf], [0.0]]), np.array([0])) == -math.inf
    with pytest.raises(ValueError, match="no row"):
        retrieval_accuracy(scores, np.array([0, 0, 5]))
    with pytest.raises(ValueError, match="has an owner"):
        retrieval_accuracy(scores, np.array([0]))
