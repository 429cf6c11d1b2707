"""Likeness of models to each other: closed forms against brute force over every pair."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.metrics.hivemind import (
    hivemind,
    inter_similarity,
    intra_repetition_share,
    intra_similarity,
    source_models,
)


def vectors(rng, sizes, *, width=5):
    return [rng.normal(size=(k, width)) * rng.choice([0.5, 3.0]) for k in sizes]


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_similarities_equal_the_mean_over_pairs(seed):
    rng = np.random.default_rng(seed)
    a, b = vectors(rng, rng.integers(1, 6, 4)), vectors(rng, rng.integers(1, 6, 4))
    inter = [np.mean([cosine(x, y) for x in rows for y in others]) for rows, others in zip(a, b, strict=True)]
    np.testing.assert_allclose(inter_similarity(a, b), inter, atol=1e-9)
    intra = [
        np.mean([cosine(x, y) for i, x in enumerate(rows) for y in rows[:i]]) if len(rows) > 1 else math.nan
        for rows in a
    ]
    np.testing.assert_allclose(intra_similarity(a), intra, atol=1e-9)


def brute_sources(pool, nearest):
    rows = [(name, vector) for name, found in pool.items() for vector in found]
    counts = []
    for i, (_, mine) in enumerate(rows):
        others = [(cosine(mine, vector), name) for j, (name, vector) in enumerate(rows) if j != i]
        counts.append(len({name for _, name in sorted(others, key=lambda pair: -pair[0])[:nearest]}))
    return np.mean(counts)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_source_models_equal_brute_force(seed, nearest):
    rng = np.random.default_rng(seed)
    pools = {name: vectors(rng, rng.integers(1, 5, 3)) for name in "abcd"}
    expected = [brute_sources({name: rows[p] for name, rows in pools.items()}, nearest) for p in range(3)]
    np.testing.assert_allclose(source_models(pools, nearest=nearest), expected, atol=1e-12)


def test_blocks_of_a_large_pool_agree(monkeypatch):
    rng = np.random.default_rng(0)
    pools = {name: vectors(rng, [40]) for name in "abc"}
    whole = source_models(pools, nearest=7)
    monkeypatch.setattr("divmon.metrics.hivemind._SOURCE_BLOCK", 11)
    np.testing.assert_array_equal(source_models(pools, nearest=7), whole)


def test_models_apart_and_models_alike():
    rng = np.random.default_rng(1)
    apart = {name: [np.eye(4)[i] + 0.01 * rng.normal(size=(12, 4))] for i, name in enumerate("abcd")}
    assert source_models(apart, nearest=11).tolist() == [1.0]  # each keeps to itself: its 11 others are nearest
    assert 1.9 <= source_models(apart, nearest=12)[0] <= 2.0
    alike = {name: [rng.normal(size=(12, 4))] for name in "abcd"}
    assert source_models(alike, nearest=12)[0] > 3.5
    assert inter_similarity(apart["a"], apart["b"])[0] < 0.1
    assert inter_similarity(apart["a"], apart["a"])[0] > 0.99


def test_share_of_prompts_above_a_threshold():
    assert intra_repetition_share(np.array([0.81, 0.8, 0.9, math.nan, 0.1]), 0.8) == 0.5
    assert math.isnan(intra_repetition_share(np.array([math.nan]), 0.8))


def test_missing_and_odd_vectors():
    none, one, bad = np.zeros((0, 2)), np.ones((1, 2)), np.array([[math.nan, 1.0], [1.0, 1.0]])
    assert np.isnan(inter_similarity([none, one, bad], [one, none, one])).all()
    assert np.isnan(intra_similarity([none, one, bad])).all()
    assert np.isnan(source_models({"a": [none, one, bad], "b": [none, none, one]}, nearest=3)).all()
    assert source_models({}, nearest=3).tolist() == []
    assert inter_similarity([np.zeros((2, 2))], [one]).tolist() == [0.0]
    with pytest.raises(ValueError, match="at least one"):
        source_models({"a": [one]}, nearest=0)
    with pytest.raises(ValueError, match="completions x width"):
        inter_similarity([np.zeros(3)], [one])


def test_texts_are_encoded_once_and_give_the_same_numbers():
    rng = np.random.default_rng(2)
    calls, table = [], {}

    def encoder(texts):
        calls.append(list(texts))
        return np.array([table.setdefault(text, rng.normal(size=6)) for text in texts])

    own = [["one", "two", "one"], ["three", "\ud800"]]
    banked = {"x": [["one", "four"], ["three"]], "y": [["five"], ["six", "two"]]}
    result = hivemind(own, banked, encoder, nearest=2, threshold=-1.0)
    assert len(calls) == 1
    assert sorted(calls[0]) == sorted(set(calls[0]))
    found = {name: [np.array([table[t] for t in row]) for row in rows] for name, rows in {"own": own, **banked}.items()}
    for name in banked:
        np.testing.assert_allclose(result.inter[name], inter_similarity(found["own"], found[name]), atol=1e-12)
    np.testing.assert_allclose(result.intra, intra_similarity(found["own"]), atol=1e-12)
    np.testing.assert_allclose(result.sources, source_models(found, nearest=2), atol=1e-12)
    assert result.repetition == 1.0
    assert math.isnan(hivemind(own, banked, encoder).repetition)
    with pytest.raises(ValueError, match="call the banked model"):
        hivemind(own, {"own": own}, encoder)
    with pytest.raises(ValueError, match="2 prompts, but 'x' has 1"):
        hivemind(own, {"x": own[:1]}, encoder)
    with pytest.raises(ValueError, match="the encoder returned"):
        hivemind(own, banked, lambda texts: np.zeros(3))
