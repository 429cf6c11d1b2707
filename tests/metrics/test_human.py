"""The six lexical dimensions against lexicalrichness, brute force and numbers worked by hand; the gap by definition."""

import math
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.base import PerPrompt
from divmon.metrics.human import (
    DIMENSIONS,
    bare_words,
    dimensions,
    disparity,
    dispersion,
    evenness_sd,
    mattr,
    mtld,
    pielou,
)
from divmon.metrics.human_gap import common_length, human_gap, shrunk_covariance
from divmon.records import Probe, SampleBatch

TOKENS = st.lists(st.sampled_from([*"abcdefgh"]), min_size=1, max_size=120)
FIXTURE = (
    "The cat sat. The dog sat. A bird sang to the cat. The cat ran. A dog ran. "
    "The bird flew. The dog barked. A cat slept. The bird slept. The dog slept."
)


def lexicalrichness(tokens):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("lexicalrichness")
    return package.LexicalRichness(list(tokens), preprocessor=None, tokenizer=None)


@settings(max_examples=200, deadline=None)
@given(TOKENS)
def test_mtld_equals_lexicalrichness(tokens):
    assert mtld(tokens) == pytest.approx(lexicalrichness(tokens).mtld(threshold=0.72), abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(TOKENS, st.integers(1, 60))
def test_mattr_equals_lexicalrichness(tokens, window):
    if window > len(tokens):
        assert math.isnan(mattr(tokens, window=window))
    else:
        assert mattr(tokens, window=window) == pytest.approx(lexicalrichness(tokens).mattr(window), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(TOKENS)
def test_the_others_equal_brute_force(tokens):
    counts = Counter(tokens)
    assert evenness_sd(tokens) == pytest.approx(np.std(list(counts.values())), abs=1e-12)
    gaps = [
        next(j - i for j in range(i + 1, len(tokens)) if tokens[j] == token)
        for i, token in enumerate(tokens)
        if token in tokens[i + 1 :]
    ]
    assert dispersion(tokens) == pytest.approx(np.mean(gaps) if gaps else math.nan, abs=1e-12, nan_ok=True)
    stats = pytest.importorskip("scipy.stats")
    even = stats.entropy(list(counts.values())) / math.log(len(counts)) if len(counts) > 1 else math.nan
    assert pielou(tokens) == pytest.approx(even, abs=1e-9, nan_ok=True)


def test_ten_sentences_worked_by_hand():
    tokens = bare_words(FIXTURE)
    # the 8, cat 4, dog 4, a 3, bird 3, slept 3, sat 2, ran 2, sang, to, flew, barked 1
    assert Counter(tokens) == Counter(
        the=8, a=3, cat=4, sat=2, dog=4, bird=3, sang=1, to=1, ran=2, flew=1, barked=1, slept=3
    )
    volume, abundance, variety, evenness, apart, spread = dimensions([FIXTURE])[0]
    assert (volume, abundance) == (33, 12)
    squares = 64 + 9 + 16 + 4 + 16 + 9 + 1 + 1 + 4 + 1 + 1 + 9
    assert evenness == pytest.approx(math.sqrt(squares / 12 - (33 / 12) ** 2), abs=1e-12)
    # no two of the words share three characters in a row
    assert apart == 1.0
    # distances between uses of a type add up to its last place less its first: the, cat, sat, dog, a, bird, ran, slept
    assert spread == pytest.approx((30 + 24 + 3 + 27 + 18 + 21 + 3 + 6) / (33 - 12), abs=1e-12)
    assert variety == pytest.approx(lexicalrichness(tokens).mtld(threshold=0.72), abs=1e-9)


def test_disparity_equals_sklearn():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    types = ["walk", "walked", "walking", "talk", "森林木", "森林木立", "unbelievable", "believe"]
    vectors = text.CountVectorizer(analyzer="char", ngram_range=(3, 5)).fit_transform(types).toarray().astype(float)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (vectors @ vectors.T)[np.triu_indices(len(types), 1)]
    assert disparity([*types, "walk"]) == pytest.approx(1 - cosines.mean(), abs=1e-9)
    given_vectors = disparity(types, vectors=lambda found: np.array([[len(w), 1.0] for w in found]))
    assert 0 < given_vectors < 0.2
    with pytest.raises(ValueError, match="must be"):
        disparity(types, vectors=lambda found: np.zeros(3))


@pytest.mark.parametrize("text", ["", " \n", "...", "\ud800", "word", "a" * 100_000, "!" * 100_000 + "a", "森" * 50])
def test_odd_texts_give_numbers_or_nothing(text):
    found = dimensions([text, text], length=None)
    assert found.shape == (2, len(DIMENSIONS))
    assert np.isnan(dimensions([text], length=1000)[0, 1:]).all()


def test_words_are_bare():
    assert bare_words("“Don't!” -- (SHE) said: 3.") == ["don't", "she", "said", "3"]
    assert bare_words("森林。") == ["森", "林"]


def test_the_shrunk_covariance_equals_sklearn():
    covariance = pytest.importorskip("sklearn.covariance")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 12, 6)) @ rng.normal(size=(6, 6))
    np.testing.assert_allclose(shrunk_covariance(x), [covariance.ledoit_wolf(y)[0] for y in x], atol=1e-9)
    used = rng.random((5, 12)) < 0.7
    expected = [covariance.ledoit_wolf(y[keep])[0] for y, keep in zip(x, used, strict=True)]
    np.testing.assert_allclose(shrunk_covariance(x, used), expected, atol=1e-9)


def writing(rng, n, *, types, words=(60, 200)):
    vocabulary = [f"{rng.choice([*'bcdfgklmnprst'])}{i}{rng.choice([*'aeiou'])}x" for i in range(types)]
    return [" ".join(rng.choice(vocabulary, rng.integers(*words))) for _ in range(n)]


def test_the_gap_equals_its_definition():
    covariance = pytest.importorskip("sklearn.covariance")
    rng = np.random.default_rng(1)
    human, policy = writing(rng, 30, types=60), writing(rng, 20, types=30)
    result = human_gap(policy, human, length=60, n_boot=200)
    a, b = dimensions(policy, length=60), dimensions(human, length=60)
    sd = b.std(axis=0, ddof=1)
    gaps = (a.mean(axis=0) - b.mean(axis=0)) / sd
    np.testing.assert_allclose(result.gaps, gaps, atol=1e-9)
    shrunk = covariance.ledoit_wolf((b - b.mean(axis=0)) / sd)[0]
    assert result.distance == pytest.approx(math.sqrt(gaps @ np.linalg.inv(shrunk) @ gaps), abs=1e-9)
    assert (result.n, result.left_out, result.length) == ((20, 30), (0, 0), 60)
    assert (result.low <= gaps).all()
    assert (gaps <= result.high).all()
    assert result.distance_low < result.distance_high
    named = dict(zip(DIMENSIONS, result.high, strict=True))
    assert named["abundance"] < 0
    assert named["variety"] < 0


def test_writers_against_writers_have_no_gap():
    rng = np.random.default_rng(2)
    result = human_gap(writing(rng, 60, types=80), writing(rng, 60, types=80), n_boot=300)
    assert (result.low <= 0).sum() >= 5
    assert (result.high >= 0).sum() >= 5
    assert result.distance < 1
    assert 60 <= result.length <= 100


def test_short_texts_are_left_out_and_counted():
    rng = np.random.default_rng(3)
    human = writing(rng, 10, types=40)
    result = human_gap([*human[:4], "far too short", ""], [*human, "so is this"], length=60, n_boot=0)
    assert (result.n, result.left_out) == ((4, 10), (2, 1))
    assert np.isnan(result.low).all()
    nothing = human_gap(["short"], human, length=60)
    assert math.isnan(nothing.distance)
    assert "at least 60 words" in nothing.reason
    assert human_gap([], []).reason


def test_a_dimension_without_spread_has_no_gap_and_breaks_nothing():
    rng = np.random.default_rng(4)
    human = writing(rng, 8, types=50, words=(80, 81))  # all of one volume
    result = human_gap(writing(rng, 8, types=50), human, length=60, n_boot=0)
    assert math.isnan(result.gaps[0])
    assert np.isfinite(result.gaps[1:]).all()
    assert math.isfinite(result.distance)


def test_common_length():
    assert common_length([]) == 0
    assert common_length([5] + [90] * 20) == 90
    assert common_length([500] * 3) == 100


def test_the_metric_is_the_gap_to_the_references():
    rng = np.random.default_rng(5)
    references, rows = writing(rng, 12, types=60), [writing(rng, 3, types=25) for _ in range(12)]
    probes = tuple(Probe(str(i), "?", reference=text) for i, text in enumerate(references))
    batch = SampleBatch(0, probes, tuple(map(tuple, rows)))
    result = evaluate(METRICS["human_gap"], MetricContext(batch))
    details = result.details(result.parts)
    length = details["length"]
    a = np.array([dimensions(row, length=length).mean(axis=0) for row in rows])
    b = dimensions(references, length=length)
    kept = np.isfinite(b).all(axis=1)
    gaps = (np.nanmean(a, axis=0) - b[kept].mean(axis=0)) / b[kept].std(axis=0, ddof=1)
    np.testing.assert_allclose([details["gaps"][name] for name in DIMENSIONS], gaps, atol=1e-9)
    assert float(result.combine(result.parts)) > 1
    assert details["gaps"]["abundance"] < 0


def test_without_usable_references_it_is_missing():
    for reference, why in ((None, "no probe has a reference"), ("", "no probe"), ("two words", "too short")):
        batch = SampleBatch(0, (Probe("a", "?", reference=reference),), (("x", "y"),))
        result = evaluate(METRICS["human_gap"], MetricContext(batch))
        assert isinstance(result, PerPrompt)
        assert why in result.reasons[0]
