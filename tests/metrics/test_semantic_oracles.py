"""Surface and semantic distance against scikit-learn, brute force and human judgements."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.semantic import fit_idf
from divmon.metrics.text import char_ngrams
from divmon.records import Probe, SampleBatch

ORACLES = Path(__file__).parents[2].parent / "shared" / "oracles" / "noveltybench"
BASELINE = [
    ["The cat  sat on the mat.", "the cat sat on\n\nthe mat.", "A dog\nran\toff!", "The cat sat on the mat."],
    ["Élan vital, naïve façade — “quoted”", "森の中で\u3000\u3000静かに", "emoji 😀😀 and 👍🏽", "tab\t\ttab"],
    ["one two three", "\ud800 lone \udfff surrogate", "\x00\x00\x00", "one two three four"],
]
LATER = [
    ["The cat sat on the mat.", "Quarks flip wildly!", "zzzzzz", "A dog ran off, again and again and again."],
    ["entirely new words here", "entirely new words there", "Élan", "😀😀😀😀"],
    ["one two three", "one two three", "xyz", "\ud800\ud800\ud800"],
]
TEXT = st.text(alphabet="aAbc \n\tß森😀\ud800", max_size=12)


def batch(rows, step=0):
    return SampleBatch(step, tuple(Probe(str(i), "?") for i in range(len(rows))), tuple(map(tuple, rows)))


def surface(rows, baseline=None):
    reference = None if baseline is None else MetricContext(batch(baseline))
    return evaluate(METRICS["tfidf_distance"], MetricContext(batch(rows, 1), baseline=reference)).values


def mean_pair_distance(vectors, texts):
    """1 - mean cosine over pairs, by looking at every pair. Vectors of length zero follow the documented rule."""
    vectors = vectors.toarray()
    cosines = []
    for i in range(len(texts)):
        for j in range(i):
            both_empty = not vectors[i].any() and not vectors[j].any()
            cosines.append(float(texts[i] == texts[j]) if both_empty else float(vectors[i] @ vectors[j]))
    return 1 - float(np.mean(cosines))


def vectorizer(**more):
    text = pytest.importorskip("sklearn.feature_extraction.text")
    return text.TfidfVectorizer(analyzer="char", ngram_range=(3, 5), lowercase=True, norm="l2", smooth_idf=True, **more)


def sklearn_baseline(rows):
    texts = [text for row in rows for text in row]
    vectors = vectorizer().fit_transform(texts)
    k = len(rows[0])
    return [mean_pair_distance(vectors[i * k : (i + 1) * k], row) for i, row in enumerate(rows)]


def sklearn_later(rows, baseline):
    """The same vectors made by hand: the joint vocabulary, with df counted on the baseline only."""
    old, new = ([text for row in texts for text in row] for texts in (baseline, rows))
    joint = vectorizer().fit(old + new)
    term = vectorizer(vocabulary=joint.vocabulary_)
    term.use_idf, term.norm = False, None
    df = (term.fit_transform(old).toarray() > 0).sum(axis=0)
    weights = term.transform(new).toarray() * (np.log((1 + len(old)) / (1 + df)) + 1)
    norms = np.linalg.norm(weights, axis=1, keepdims=True)
    unit = weights / np.where(norms > 0, norms, 1)
    scipy_sparse = pytest.importorskip("scipy.sparse")
    k = len(rows[0])
    return [mean_pair_distance(scipy_sparse.csr_matrix(unit[i * k : (i + 1) * k]), row) for i, row in enumerate(rows)]


def test_baseline_equals_scikit_learn():
    np.testing.assert_allclose(surface(BASELINE), sklearn_baseline(BASELINE), atol=1e-9)


def test_later_batches_equal_scikit_learn_with_unseen_ngrams_added():
    np.testing.assert_allclose(surface(LATER, BASELINE), sklearn_later(LATER, BASELINE), atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.lists(TEXT, min_size=2, max_size=6), st.lists(TEXT, min_size=2, max_size=6))
def test_any_text_equals_scikit_learn(row, other):
    # One long word keeps scikit-learn from refusing an empty vocabulary.
    rows, baseline = [[*row, "anchor"]], [[*other, "anchor"]]
    assert surface(rows)[0] == pytest.approx(sklearn_baseline([[clean(t) for t in rows[0]]])[0], abs=1e-9)
    expected = sklearn_later([[clean(t) for t in rows[0]]], baseline)[0]
    assert surface(rows, baseline)[0] == pytest.approx(expected, abs=1e-9)


def clean(text):
    """What the rule for texts under three characters compares: case and runs of white space aside."""
    return re.sub(r"\s\s+", " ", text.lower())


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (["", ""], 0),
        (["", "", "some words"], 2 / 3),
        (["7", "7"], 0),
        (["7", "8"], 1),
        (["yes", "no"], 1),
        (["No", "no"], 0),
        (["abc", "xyz"], 1),
        (["same text"] * 5, 0),
        (["\ud800"] * 2, 0),
    ],
)
def test_edges(row, expected):
    assert surface([row])[0] == pytest.approx(expected, abs=1e-12)


def test_one_completion_is_missing_with_a_reason():
    result = evaluate(METRICS["tfidf_distance"], MetricContext(batch([["alone"], ["a b c", "a b d"]])))
    assert math.isnan(result.values[0])
    assert "at least 2" in result.reasons[0]
    assert result.reasons[1] is None


def test_idf_is_frozen_at_the_baseline():
    reference = MetricContext(batch(BASELINE))
    first = MetricContext(batch(LATER, 1), baseline=reference)
    evaluate(METRICS["tfidf_distance"], first)
    frozen = reference.cached("char-idf", lambda: pytest.fail("not fitted on the baseline"))
    evaluate(METRICS["tfidf_distance"], MetricContext(batch(BASELINE[::-1], 2), baseline=reference))
    assert reference.cached("char-idf", lambda: None) is frozen
    assert frozen.unseen == pytest.approx(math.log(1 + 12) + 1)


def test_a_set_of_many_parts_fits_as_one(monkeypatch):
    whole = fit_idf(batch(BASELINE))
    monkeypatch.setattr("divmon.metrics.semantic._PART", 2)
    monkeypatch.setattr("divmon.metrics.semantic._PENDING", 10)
    parts = fit_idf(batch(BASELINE))
    np.testing.assert_array_equal(parts.grams, whole.grams)
    np.testing.assert_array_equal(parts.weights, whole.weights)


def test_char_ngrams_count_what_a_dictionary_counts():
    texts = ["Banana banana", "an  an", "", "ab"]
    row = char_ngrams(texts)
    clean_texts = ["banana banana", "an an"]
    expected = {t[i : i + n] for t in clean_texts for n in (3, 4, 5) for i in range(len(t) - n + 1)}
    assert len(row.grams) == len(expected) + 2  # two texts too short for an n-gram stand for themselves
    assert (np.diff(row.grams.astype(object)) > 0).all()
    totals = np.bincount(row.owners, row.counts, minlength=4)
    assert totals.tolist() == [11 + 10 + 9, 3 + 2 + 1, 1, 1]


@settings(deadline=None, max_examples=60)
@given(st.lists(TEXT, min_size=2, max_size=6), st.randoms())
def test_bounds_order_and_saying_everything_twice(row, random):
    shuffled = list(row)
    random.shuffle(shuffled)
    once = surface([row], [row])[0]
    assert 0 <= once <= 1
    assert surface([shuffled], [row])[0] == pytest.approx(once, abs=1e-12)
    assert surface([row * 2], [row])[0] <= once + 1e-12


def test_it_does_not_drift_with_k():
    pool = [f"answer number {i % 7} with words {i % 5} of {i % 3}" for i in range(60)]
    rng = np.random.default_rng(0)
    by_k = {
        k: surface([[pool[j] for j in rng.choice(60, k, replace=False)] for _ in range(300)], [pool]).mean()
        for k in (3, 12)
    }
    assert by_k[3] == pytest.approx(by_k[12], rel=0.03)


def axes(texts):
    return np.array([[len(t), t.count("a"), 1.0] for t in texts], dtype=float) * 7


def test_semantic_distance_equals_brute_force_and_encodes_each_text_once():
    calls = []

    def encoder(texts):
        calls.append(list(texts))
        return axes(texts)

    rows = [["aa", "b", "aa", "cccc"], ["b", "ab", "", "aaa"]]
    context = MetricContext(batch(rows), encoder=encoder, encoder_name="axes")
    result = evaluate(METRICS["semantic_distance"], context)
    assert evaluate(METRICS["semantic_distance"], context).values.tolist() == result.values.tolist()
    assert calls == [["aa", "b", "cccc", "ab", "", "aaa"]]
    for row, value in zip(rows, result.values, strict=True):
        unit = axes(row) / np.linalg.norm(axes(row), axis=1, keepdims=True)
        assert value == pytest.approx(1 - np.mean((unit @ unit.T)[np.triu_indices(4, 1)]), abs=1e-12)
    assert result.details == {"encoder": "axes"}


def test_semantic_distance_without_an_encoder_or_with_a_bad_one():
    b = batch([["a", "b"], ["c", "d"]])
    assert evaluate(METRICS["semantic_distance"], MetricContext(b)).reasons[0] == "no encoder: pass encoder="
    nan = MetricContext(b, encoder=lambda texts: np.array([[math.nan if t == "a" else 1.0, 0] for t in texts]))
    result = evaluate(METRICS["semantic_distance"], nan)
    assert result.reasons == ("an embedding is not finite", None)
    assert result.values[1] == 0
    with pytest.raises(ValueError, match="shape"):
        evaluate(METRICS["semantic_distance"], MetricContext(b, encoder=lambda texts: np.zeros(3)))


def lines(name):
    path = ORACLES / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_it_ranks_real_prompts_by_their_number_of_classes():
    rows = lines("gemini-1.5-pro_curated_scores.jsonl")
    generations = [row["generations"] for row in rows]
    classes = [len(set(row["partition"])) for row in rows]
    assert np.mean(classes) == pytest.approx(1.83)
    distance = surface(generations)
    np.testing.assert_allclose(distance, sklearn_baseline(generations), atol=1e-9)
    assert stats.spearmanr(distance, classes).statistic > 0.6  # measured: .700


def test_it_separates_pairs_that_people_call_different():
    pairs = lines("pairs_val.jsonl")
    distance = surface([[pair["generation_0"], pair["generation_1"]] for pair in pairs])
    same = np.array([bool(pair["similar"]) for pair in pairs])
    above = distance[~same][:, None] - distance[same][None, :]
    assert np.mean((above > 0) + 0.5 * (above == 0)) > 0.7  # area under the curve, measured: .737
