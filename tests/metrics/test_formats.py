"""Format dominance and its kin: hand counts, scikit-bio, and what must hold for any batch."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skbio.diversity.alpha import inv_simpson, simpson

from divmon.metrics.base import MetricContext, Pooled, evaluate
from divmon.metrics.formats import (
    EFFECTIVE_CORRECT_FORMATS,
    EFFECTIVE_FORMATS,
    FORMAT_DOMINANCE,
    FORMAT_SHIFT,
    WINNER_GAP,
)
from divmon.metrics.spectrum import hill
from divmon.metrics.structure import build_classifier
from divmon.plain import to_json
from divmon.records import Probe, SampleBatch

ALL = (FORMAT_DOMINANCE, EFFECTIVE_FORMATS, FORMAT_SHIFT, WINNER_GAP, EFFECTIVE_CORRECT_FORMATS)


def first_letter(text):
    return list(text) or None


def context_of(texts, *, quality=None, baseline=None, classifier=first_letter):
    """Texts whose letters are their labels: "ab" is of format a and also carries the label b."""
    probes = tuple(Probe(f"p{i}", "?") for i in range(len(texts)))
    batch = SampleBatch(0, probes, tuple(map(tuple, texts)))
    rule = build_classifier(classifier)
    return MetricContext(batch, quality=quality, baseline=baseline, classifier=rule)


def measure(metric, context, rows=slice(None)):
    result = evaluate(metric, context)
    assert isinstance(result, Pooled)
    return float(result.combine(result.parts[rows]))


def details(metric, context, rows=slice(None)):
    result = evaluate(metric, context)
    return result.details(result.parts[rows])


def test_dominance_by_hand():
    context = context_of([["ax", "a", "b"], ["a", "c", "a"]])
    assert measure(FORMAT_DOMINANCE, context) == pytest.approx(4 / 6)
    found = details(FORMAT_DOMINANCE, context)
    assert list(found["shares"].items()) == [("a", 4 / 6), ("b", 1 / 6), ("c", 1 / 6)]
    assert found["label_shares"] == pytest.approx({"a": 4 / 6, "b": 1 / 6, "c": 1 / 6, "x": 1 / 6})
    assert (found["dominant"], found["unclassified"]) == ("a", 0)
    assert "quality" not in found


def test_quality_by_format_by_hand():
    context = context_of([["a", "a", "b"], ["b", "c"]], quality=[[1, 0, 1], [0.5, math.nan]])
    found = details(FORMAT_DOMINANCE, context)
    assert found["quality"] == {"a": 0.5, "b": 0.75}
    assert found["judged"] == {"a": 2, "b": 2}
    assert json.loads(json.dumps(to_json(found))) == found


def test_effective_formats_against_scikit_bio():
    context = context_of([["a"] * 5 + ["b"] * 3, ["c"] * 4 + ["d"]])
    counts = np.array([5, 3, 4, 1])
    n = counts.sum()
    unbiased = 1 - simpson(counts) * n / (n - 1)
    assert measure(EFFECTIVE_FORMATS, context) == pytest.approx(1 / unbiased)
    assert float(hill(counts, q=2)) == pytest.approx(inv_simpson(counts))
    many = context_of([["a"] * 5000 + ["b"] * 3000, ["c"] * 4000 + ["d"] * 1000])
    assert measure(EFFECTIVE_FORMATS, many) == pytest.approx(inv_simpson(counts), rel=1e-3)


def test_no_two_alike_is_missing_with_a_reason():
    context = context_of([["a", "b"]])
    assert math.isnan(measure(EFFECTIVE_FORMATS, context))
    assert evaluate(EFFECTIVE_FORMATS, context).reason == "no two completions share a format"


def test_effective_correct_formats_by_hand():
    texts, quality = [["a", "a", "b", "b"]], [[1, 1, 1, 0]]
    assert measure(EFFECTIVE_CORRECT_FORMATS, context_of(texts, quality=quality)) == pytest.approx(3.0)
    same = context_of(texts, quality=[[1, 1, 0, 0]])
    assert measure(EFFECTIVE_CORRECT_FORMATS, same) == 1.0
    assert math.isnan(measure(EFFECTIVE_CORRECT_FORMATS, context_of(texts, quality=[[0, 0, 0, 0]])))


def test_shift_by_hand_and_with_labels_unseen_at_the_baseline():
    base = context_of([["a", "a", "b", "b"]])
    now = context_of([["a", "a", "a", "z"]], baseline=base)
    assert measure(FORMAT_SHIFT, base) == 0.0
    assert measure(FORMAT_SHIFT, now) == pytest.approx(0.5)
    found = details(FORMAT_SHIFT, now)
    assert found["shares"] == {"a": 0.75, "z": 0.25}
    assert found["baseline_shares"] == {"a": 0.5, "b": 0.5}


def test_baseline_parts_line_up_with_later_ones_when_padded():
    base = context_of([["m", "m"], ["b", "m"]])
    now = context_of([["a", "m"], ["z", "m"]], baseline=base)
    for metric in (FORMAT_DOMINANCE, FORMAT_SHIFT, EFFECTIVE_FORMATS):
        before, after = evaluate(metric, base), evaluate(metric, now)
        padded = np.pad(before.parts, ((0, 0), (0, after.parts.shape[1] - before.parts.shape[1])))
        assert float(after.combine(padded)) == float(before.combine(before.parts))
    mixed = np.array([True, False])[:, None]
    before, after = evaluate(FORMAT_DOMINANCE, base), evaluate(FORMAT_DOMINANCE, now)
    padded = np.pad(before.parts, ((0, 0), (0, after.parts.shape[1] - before.parts.shape[1])))
    swapped = float(after.combine(np.where(mixed, padded, after.parts)))
    assert swapped == measure(FORMAT_DOMINANCE, context_of([["m", "m"], ["z", "m"]])) == 0.75


def test_swapping_with_itself_changes_nothing():
    context = context_of([["a", "b"], ["a", "c"]], quality=[[1, 0], [1, 1]])
    for metric in ALL:
        result = evaluate(metric, context)
        swapped = np.where(np.array([True, False])[:, None], result.parts, result.parts)
        np.testing.assert_array_equal(result.combine(swapped), result.combine(result.parts))


def test_prompts_are_matched_to_the_baseline_by_id():
    base = context_of([["a", "a"], ["b", "b"]])
    batch = SampleBatch(1, (Probe("p1", "?"), Probe("new", "?")), (("b", "a"), ("c", "c")))
    now = MetricContext(batch, baseline=base, classifier=build_classifier(first_letter))
    found = details(FORMAT_SHIFT, now)
    assert found["baseline_shares"] == {"b": 1.0}
    stranger = MetricContext(
        SampleBatch(1, (Probe("x", "?"),), (("a", "a"),)), baseline=base, classifier=build_classifier(first_letter)
    )
    assert math.isnan(measure(FORMAT_SHIFT, stranger))


def test_winner_gap_by_hand():
    texts = [["a"] * 5 + ["b"] * 3 + ["c"] * 2]
    quality = [[1, 0, 0, 0, 0, 1, 1, 0, 1, 1]]
    assert measure(WINNER_GAP, context_of(texts, quality=quality)) == pytest.approx(2 / 3 - 1 / 5)
    assert measure(WINNER_GAP, context_of(texts, quality=[[1] * 10])) == 0.0
    unjudged = [[math.nan] * 5 + [1] * 5]
    result = evaluate(WINNER_GAP, context_of(texts, quality=unjudged))
    assert math.isnan(float(result.combine(result.parts)))
    assert "fewer than 3" in result.reason
    tie = context_of([["a"] * 3 + ["b"] * 3], quality=[[0, 0, 0, 1, 1, 1]])
    assert measure(WINNER_GAP, tie) == 0.0


def test_what_the_classifier_failed_on_is_in_no_format():
    def fails(text):
        return {"good": "g", "bad": "b"}[text]

    context = context_of([["good", "good", "bad", "?"]], classifier=fails)
    assert measure(FORMAT_DOMINANCE, context) == pytest.approx(2 / 3)
    assert details(FORMAT_DOMINANCE, context)["unclassified"] == 1
    hopeless = context_of([["?", "?"]], classifier=fails)
    result = evaluate(FORMAT_DOMINANCE, hopeless)
    assert math.isnan(float(result.combine(result.parts)))
    assert result.reason == "no completion could be classified; the classifier failed first with KeyError: '?'"
    for metric in (EFFECTIVE_FORMATS, FORMAT_SHIFT):
        assert math.isnan(measure(metric, hopeless))
    assert math.isnan(measure(WINNER_GAP, context_of([["?"] * 4], classifier=fails, quality=[[1] * 4])))


def test_a_bare_function_that_returns_a_string_is_one_label():
    batch = SampleBatch(0, (Probe("a", "?"),), (("x", "y"),))
    context = MetricContext(batch, classifier=lambda text: "long name")
    assert details(FORMAT_DOMINANCE, context)["shares"] == {"long name": 1.0}


def test_labels_are_computed_once_a_batch():
    calls = []

    def counting(text):
        calls.append(text)
        return "a"

    context = context_of([["x", "y"]], classifier=counting, quality=[[1, 0]])
    for metric in ALL:
        evaluate(metric, context)
    assert len(calls) == 2


def test_metrics_that_need_quality_say_so():
    for metric in (WINNER_GAP, EFFECTIVE_CORRECT_FORMATS):
        assert "quality=" in evaluate(metric, context_of([["a", "b"]])).reasons[0]


batches = st.lists(st.lists(st.sampled_from("abcd"), min_size=2, max_size=6), min_size=1, max_size=6)


def judged(texts):
    return [[float(letter in "ac") for letter in row] for row in texts]


def same(a, b):
    assert (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b)


@settings(max_examples=40, deadline=None)
@given(batches, st.randoms())
def test_order_does_not_matter(texts, random):
    shuffled = [random.sample(row, len(row)) for row in random.sample(texts, len(texts))]
    for metric in ALL:
        first = measure(metric, context_of(texts, quality=judged(texts)))
        same(first, measure(metric, context_of(shuffled, quality=judged(shuffled))))


@settings(max_examples=40, deadline=None)
@given(batches, st.data())
def test_a_subset_of_prompts_is_the_subset_batch(texts, data):
    rows = sorted(data.draw(st.sets(st.integers(0, len(texts) - 1), min_size=1)))
    base = context_of([row[::-1][:2] for row in texts], quality=judged([row[::-1][:2] for row in texts]))
    context = context_of(texts, quality=judged(texts), baseline=base)
    part = [texts[i] for i in rows]
    few = context_of([row[::-1][:2] for row in part])
    alone = context_of(part, quality=judged(part), baseline=few)
    for metric in ALL:
        same(measure(metric, context, rows), measure(metric, alone))


@settings(max_examples=40, deadline=None)
@given(batches)
def test_bounds_and_leading_axes(texts):
    context = context_of(texts, quality=judged(texts))
    index = np.random.default_rng(0).integers(0, len(texts), size=(3, 4, len(texts)))
    for metric in ALL:
        result = evaluate(metric, context)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            values = result.combine(result.parts[index])
        assert values.shape == (3, 4)
        known = values[~np.isnan(values)]
        assert ((known >= metric.bounds[0] - 1e-12) & (known <= metric.bounds[1] + 1e-12)).all()
        same(float(values[1, 2]), float(result.combine(result.parts[index[1, 2]])))


def test_default_classifier_needs_no_setting():
    batch = SampleBatch(0, (Probe("a", "?"),), (("- a\n- b", "plain", "- c\n- d"),))
    assert measure(FORMAT_DOMINANCE, MetricContext(batch)) == pytest.approx(2 / 3)
