"""Vendi scores against the vendi-score package, Hill numbers, an enumerable population and brute force."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from divmon.errors import ConfigError
from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.likeness import intra_repetition_at
from divmon.metrics.semantic import frozen_idf, surface_kernel, surface_kernels
from divmon.metrics.spectrum import hill
from divmon.metrics.vendi import (
    LARGEST,
    squared_likeness,
    vendi,
    vendi_1_log_jackknife,
    vendi_2_unbiased,
    vendi_from_kernel,
)
from divmon.records import Probe, SampleBatch

ORACLES = Path(__file__).parents[2].parent / "shared" / "oracles" / "noveltybench"
ORDERS = [0.1, 0.5, 1, 1.5, 2, 7]


def unit(*shape, seed=0):
    vectors = np.random.default_rng(seed).normal(size=shape) + 0.5
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def reference(kernel, q):
    package = pytest.importorskip("vendi_score.vendi")
    return float(package.score_K(kernel, q="inf" if math.isinf(q) else q))


@pytest.mark.parametrize("q", [*ORDERS, math.inf])
@pytest.mark.parametrize("shape", [(2, 3), (8, 384), (16, 20), (9, 9)])
def test_it_equals_the_vendi_score_package(shape, q):
    vectors = unit(*shape)
    expected = reference(vectors @ vectors.T, q)
    if shape[0] <= shape[1]:  # below full rank the package counts rounding noise at orders under 1
        assert float(vendi_from_kernel(vectors @ vectors.T, q=q)) == pytest.approx(expected, rel=1e-9)
        assert float(vendi(vectors, q=q)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("q", [*ORDERS, math.inf])
def test_more_vectors_than_dimensions_give_what_the_kernel_gives(q):
    vectors = unit(40, 6)
    values = np.linalg.eigvalsh(vectors @ vectors.T)[-6:] / 40  # the others are 0 exactly
    assert float(vendi(vectors, q=q)) == pytest.approx(float(hill(values, q=q)), rel=1e-9)
    assert float(vendi_from_kernel(vectors @ vectors.T, q=q)) == pytest.approx(float(hill(values, q=q)), rel=1e-9)


@pytest.mark.parametrize("q", [*ORDERS, math.inf])
@pytest.mark.parametrize("sizes", [[5], [1, 1, 1], [4, 2, 1], [10, 3, 3, 1]])
def test_blocks_of_equal_texts_give_the_hill_number_of_their_sizes(sizes, q):
    vectors = np.repeat(np.eye(len(sizes)), sizes, axis=0)
    expected = float(hill(np.array(sizes), q=q))
    assert float(vendi(vectors, q=q)) == pytest.approx(expected, rel=1e-9)
    assert float(vendi_from_kernel(vectors @ vectors.T, q=q)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("q", [*ORDERS, math.inf])
def test_all_alike_is_one_and_all_at_right_angles_is_k(q):
    assert float(vendi(np.tile(unit(1, 5), (7, 1)), q=q)) == pytest.approx(1, abs=1e-9)
    assert float(vendi(np.eye(7), q=q)) == pytest.approx(7, abs=1e-9)


@pytest.mark.parametrize("q", [0.5, 1, 2, math.inf])
def test_leading_axes_order_and_length_of_vectors(q):
    vectors = unit(3, 4, 6, 5)
    found = vendi(vectors, q=q)
    expected = [[float(vendi_from_kernel(rows @ rows.T, q=q)) for rows in block] for block in vectors]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    shuffled = vectors[:, :, np.random.default_rng(1).permutation(6)]
    np.testing.assert_allclose(vendi(shuffled * 3, q=q), found, rtol=1e-9)


@pytest.mark.filterwarnings("error")
def test_what_has_no_direction_is_missing():
    vectors = np.ones((4, 3, 2))
    vectors[0, 0], vectors[1, 1], vectors[2, 2] = 0, math.nan, math.inf
    for q in (0.5, 1, 2, math.inf):
        assert np.isnan(vendi(vectors, q=q)).tolist() == [True, True, True, False]
        assert np.isnan(vendi(np.zeros((2, 0, 3)), q=q)).all()
    assert np.isnan(vendi_from_kernel(np.full((2, 2), math.nan), q=1))


def test_bad_arguments_are_refused():
    for q in (0, -1, math.nan):
        with pytest.raises(ValueError, match="order"):
            vendi(np.eye(2), q=q)
    with pytest.raises(ValueError, match="diagonal"):
        vendi_from_kernel(2 * np.eye(2))
    with pytest.raises(ValueError, match="shape"):
        vendi_from_kernel(np.eye(3)[:2])
    with pytest.raises(ValueError, match="positive semi-definite"):
        vendi_from_kernel(np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.9], [0.0, 0.9, 1.0]]))
    with pytest.raises(ConfigError, match="between -1 and 1"):
        intra_repetition_at(80)


def test_order_two_is_unbiased_over_every_sample_of_a_population():
    """All 5^3 equally likely samples of three draws are looked at, so the mean is exact."""
    population = unit(5, 4)
    truth = float(np.square(population @ population.T).mean())
    samples = population[np.array(list(itertools.product(range(5), repeat=3)))]
    kernels = samples @ samples.swapaxes(-1, -2)
    assert squared_likeness(kernels).mean() == pytest.approx(truth, rel=1e-12)
    assert vendi_2_unbiased(list(kernels)) == pytest.approx(1 / truth, rel=1e-12)
    assert float(np.mean(1 / vendi(samples, q=2))) > truth * 1.2, "the plain score is far from it"


def test_the_jackknife_is_what_its_definition_says_and_takes_half_the_bias():
    vectors = unit(7, 5)
    kernel = vectors @ vectors.T
    entropy = [math.log(reference(np.delete(np.delete(kernel, i, 0), i, 1), 1)) for i in range(7)]
    expected = math.exp(7 * math.log(reference(kernel, 1)) - 6 * np.mean(entropy))
    assert float(vendi_1_log_jackknife(kernel)) == pytest.approx(expected, rel=1e-9)
    stack = np.stack([kernel, np.eye(7), np.ones((7, 7))])
    assert vendi_1_log_jackknife(stack)[1:] == pytest.approx([math.exp(7 * math.log(7) - 6 * math.log(6)), 1])

    rng = np.random.default_rng(3)
    centres = rng.normal(size=(5, 32)) * 2
    population = centres[rng.integers(0, 5, 4000)] + rng.normal(size=(4000, 32))
    truth = float(vendi(population))
    draws = unit_rows(population[rng.integers(0, 4000, (300, 16))])
    plain = float(vendi(draws).mean())
    better = float(vendi_1_log_jackknife(draws @ draws.swapaxes(-1, -2)).mean())
    assert truth - better < 0.5 * (truth - plain)


def unit_rows(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def batch(rows):
    return SampleBatch(0, tuple(Probe(str(i), "?") for i in range(len(rows))), tuple(map(tuple, rows)))


def embedded(vectors, **more):
    """A context whose texts have these vectors: float[P][K][D], K may differ."""
    table = {f"{i} {j}": row for i, rows in enumerate(vectors) for j, row in enumerate(rows)}
    texts = [[f"{i} {j}" for j in range(len(rows))] for i, rows in enumerate(vectors)]
    return MetricContext(batch(texts), encoder=lambda asked: np.array([table[text] for text in asked]), **more)


def value(name, context):
    result = evaluate(METRICS[name], context)
    return result.values if METRICS[name].scope == "per_prompt" else float(result.combine(result.parts))


def test_the_metrics_are_these_scores_of_prompts_of_any_size(monkeypatch):
    rows = [unit(4, 6), unit(9, 6, seed=1), unit(4, 6, seed=2), unit(2, 6, seed=3), unit(1, 6, seed=4)]
    kernels = [row @ row.T for row in rows]
    for chunk in (None, 1):
        if chunk:
            monkeypatch.setattr("divmon.metrics.likeness.CHUNK", 1)
            monkeypatch.setattr("divmon.metrics.vendi.CHUNK", 1)
        context = embedded(rows)
        for name, q in {"vendi_0_5": 0.5, "vendi_1": 1, "vendi_inf": math.inf}.items():
            expected = [*(float(vendi(row, q=q)) for row in rows[:4]), math.nan]
            np.testing.assert_allclose(value(name, context), expected, rtol=1e-9)
        jackknife = [*(float(vendi_1_log_jackknife(kernel)) for kernel in kernels[:4]), math.nan]
        np.testing.assert_allclose(value("vendi_1_jackknife", context), jackknife, rtol=1e-9)
        assert value("vendi_2", context) == pytest.approx(vendi_2_unbiased(kernels[:4]), rel=1e-9)


def test_nearest_neighbours_and_repetition_by_brute_force():
    rows = [unit(6, 3), unit(4, 3, seed=1), np.ones((3, 3))]
    nearest = [np.mean([max(a @ b for b in np.delete(rows[i], j, 0)) for j, a in enumerate(rows[i])]) for i in (0, 1)]
    np.testing.assert_allclose(value("nearest_similarity", embedded(rows)), [*nearest, 1], atol=1e-12)
    means = [np.mean([a @ b for a, b in itertools.combinations(row, 2)]) for row in rows[:2]]
    for threshold in (0.2, 0.5, 0.8):
        found = evaluate(intra_repetition_at(threshold), embedded(rows)).values
        assert found.tolist() == [*(float(m > threshold) for m in means), 1.0]
    assert METRICS["intra_repetition"].signature == "threshold:0.8"


@pytest.mark.parametrize("name", ["vendi_1", "vendi_1_jackknife", "nearest_similarity", "intra_repetition"])
def test_a_bad_embedding_is_missing_for_its_prompt_alone(name):
    rows = [unit(3, 4), unit(3, 4, seed=1), unit(3, 4, seed=2)]
    rows[0][1], rows[1][2] = math.nan, 0
    result = evaluate(METRICS[name], embedded(rows, encoder_name="toy"))
    assert np.isnan(result.values).tolist() == [True, True, False]
    assert result.reasons[0] == result.reasons[1] == "an embedding is not finite or has length zero"
    assert result.n.tolist() == [0, 0, 3]
    assert value("vendi_2", embedded(rows)) == pytest.approx(vendi_2_unbiased([rows[2] @ rows[2].T]))
    assert result.details == {"encoder": "toy"}


def test_order_two_has_a_largest_value_and_may_be_missing():
    assert value("vendi_2", embedded([np.eye(3)])) == LARGEST
    assert math.isnan(value("vendi_2", embedded([np.eye(3)[:1]])))


def test_the_surface_kernel_is_that_of_the_surface_distance():
    words = ["one fox", "one  fox!", "two hens and a fox", "", "x", "森の中で静かに", "\ud800", "One Fox"]
    rows = [words, words[:3], words[:1], ["same"] * 40, [f"text {i % 7}" for i in range(40)]]
    context = MetricContext(batch(rows), baseline=MetricContext(batch([["one fox", "a hen"]])))
    kernels = surface_kernels(context)
    distance = evaluate(METRICS["tfidf_distance"], context).values
    for i, (kernel, row) in enumerate(zip(kernels, rows, strict=True)):
        if len(row) < 2:
            assert kernel.shape == (0, 0)
            continue
        assert (np.diagonal(kernel) == 1).all()
        np.testing.assert_array_equal(kernel, kernel.T)
        assert 1 - kernel[np.triu_indices(len(row), 1)].mean() == pytest.approx(distance[i], abs=1e-12)
    scores = value("surface_vendi_1", context)
    for i in (0, 1, 3, 4):
        assert scores[i] == pytest.approx(float(vendi_from_kernel(kernels[i])), rel=1e-9)
    assert scores[3] == pytest.approx(1, abs=1e-9)
    assert value("surface_vendi_2", context) == pytest.approx(vendi_2_unbiased([kernels[i] for i in (0, 1, 3, 4)]))


def test_the_surface_score_ranks_real_prompts_by_their_number_of_classes():
    path = ORACLES / "gemini-1.5-pro_curated_scores.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    classes = [len(set(row["partition"])) for row in rows]
    found = value("surface_vendi_1", MetricContext(batch([row["generations"] for row in rows])))
    assert stats.spearmanr(found, classes).statistic > 0.6


def test_many_completions_are_compared_in_blocks_without_bias():
    texts = tuple(f"the {'fox' if i % 3 else 'hen'} number {i % 40} runs" for i in range(1001))
    context = MetricContext(batch([texts]))
    every_pair = float(squared_likeness(surface_kernel(texts, frozen_idf(context))))
    assert 1 / value("surface_vendi_2", context) == pytest.approx(every_pair, rel=0.02)
    shuffled = MetricContext(batch([texts[::-1]]), baseline=context)
    assert value("surface_vendi_2", shuffled) == pytest.approx(value("surface_vendi_2", context), rel=1e-12)
    assert np.isnan(value("surface_vendi_1", context)).all()


def test_the_jackknife_of_very_many_completions_is_missing_and_says_so():
    rows = (tuple(map(str, range(257))), ("0", "1", "2"))
    batch = SampleBatch(0, (Probe("a", "?"), Probe("b", "?")), rows)
    axes = np.eye(3)
    context = MetricContext(batch, encoder=lambda texts: axes[[int(text) % 3 for text in texts]])
    result = evaluate(METRICS["vendi_1_jackknife"], context)
    assert np.isnan(result.values).tolist() == [True, False]
    assert result.reasons == ("more than 256 completions", None)
