"""Metrics on fixed windows: what is cut, what is left out, what is passed on, and that length stops to matter."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.errors import ConfigError
from divmon.metrics import METRICS, MetricContext, Pooled, evaluate
from divmon.metrics.base import Metric, PerPrompt, per_prompt
from divmon.metrics.text import word_spans, words
from divmon.metrics.windows import window, window_context, windowed
from divmon.records import Probe, SampleBatch

ANY = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="ab .,\n\t\u3000\u2003\x1c森の\ud800\U00020001é", max_size=40),
)
WHERE = ["opening", "closing"]


def batch(*rows, **more):
    return SampleBatch(0, tuple(Probe(str(i), "?") for i in range(len(rows))), tuple(map(tuple, rows)), **more)


def prose(seed, k=6, low=4, high=40):
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{i}," for i in rng.integers(0, 60, rng.integers(low, high))) for _ in range(k)]


@settings(max_examples=500, deadline=None)
@given(ANY)
def test_spans_are_where_the_words_are(text):
    assert [text[a:b] for a, b in word_spans(text)] == words(text)


@settings(max_examples=300, deadline=None)
@given(ANY, st.integers(1, 6))
@pytest.mark.parametrize("where", WHERE)
def test_a_window_has_the_first_or_last_words_and_is_a_piece_of_the_text(where, text, n):
    found, all_words = window(text, n, where=where), words(text)
    if len(all_words) < n:
        assert found is None
        return
    assert found in text
    assert words(found) == (all_words[:n] if where == "opening" else all_words[-n:])


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    "name", ["tfidf_distance", "self_bleu", "jaccard_distance_1", "distinct_2", "bigram_collision"]
)
def test_it_equals_the_metric_on_texts_cut_by_hand(name, where):
    def cut(rows):
        kept = [[text for text in row if len(text.split()) >= 12] for row in rows]
        part = slice(None, 12) if where == "opening" else slice(-12, None)
        return [[" ".join(text.split()[part]) for text in row] for row in kept]

    rows, before = [prose(1), prose(2), prose(3)], [prose(4), prose(5)]
    found = evaluate(
        windowed(METRICS[name], words=12, where=where),
        MetricContext(batch(*rows), baseline=MetricContext(batch(*before))),
    )
    by_hand = MetricContext(batch(*cut(rows)), baseline=MetricContext(batch(*cut(before))))
    expected = evaluate(METRICS[name], by_hand)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-12)
    assert found.n.tolist() == expected.n.tolist() == [len(row) for row in cut(rows)]


def test_what_the_baseline_gives_comes_from_its_same_windows():
    same = batch(prose(1), prose(2))
    head, tail = ([" ".join(["zzz"] * n) for n in (3, 30)] for _ in range(2))
    plain = MetricContext(same, baseline=MetricContext(batch(prose(4), head)))
    longer = MetricContext(same, baseline=MetricContext(batch([t + " more words" * 9 for t in prose(4, low=12)], tail)))
    cut = window_context(plain, 12, where="opening")
    assert cut.reference is window_context(plain.reference, 12, where="opening") is not cut
    assert window_context(plain, 12, where="opening") is cut
    assert cut.reference.reference is cut.reference
    assert evaluate(METRICS["opening_distance"], longer).values.shape == (2,)


def test_length_moves_the_distance_and_not_its_opening():
    openings = prose(1, low=16, high=20)
    rng = np.random.default_rng(0)
    longer = [text + " " + " ".join(f"x{i}" for i in rng.integers(0, 9999, 60)) for text in openings]
    short, long = (MetricContext(batch(row)) for row in (openings, longer))
    metric = windowed(METRICS["jaccard_distance_1"], words=16)
    assert evaluate(metric, long).values == evaluate(metric, short).values
    plain = METRICS["jaccard_distance_1"]
    assert evaluate(plain, long).values[0] > evaluate(plain, short).values[0] + 0.05


def test_the_opening_and_the_closing_are_two_stories():
    starts = ["Certainly! Here is what I think about it, as short as I can possibly put it:"] * 6
    row = [f"{start} {text}" for start, text in zip(starts, prose(2, low=20), strict=True)]
    context = MetricContext(batch(row))
    assert evaluate(METRICS["opening_distance"], context).values == [pytest.approx(0.0, abs=1e-12)]
    assert evaluate(METRICS["closing_distance"], context).values[0] > 0.3
    assert evaluate(METRICS["opening_collision"], context).values == [pytest.approx(1 / 15)]


def test_short_completions_are_left_out_and_too_few_are_missing():
    result = evaluate(
        windowed(METRICS["distinct_1"], words=3), MetricContext(batch(["a b c", "a", "a b c d"], ["a b c", "d"]))
    )
    assert result.values[0] == 0.5
    assert math.isnan(result.values[1])
    assert result.n.tolist() == [2, 0]
    assert result.reasons == (None, "fewer than 2 completions have 3 words")


def mean_quality(batch, context):
    return per_prompt(batch, lambda i: float(np.mean(context.quality[i])))


def test_quality_rewards_the_encoder_and_judges_are_passed_on_aligned():
    metric = Metric("q", mean_quality, "Mean quality.", "user", "neutral", needs=frozenset({"quality"}))
    rows = batch(["a b c", "a", "a b c d"], rewards=((1.0, 2.0, 4.0),), finished=((True, True, False),))
    context = MetricContext(rows, quality=[[0.25, 9.0, 0.75]], correct_at=0.7, encoder=len, encoder_name="toy")
    assert evaluate(windowed(metric, words=3), context).values.tolist() == [0.5]
    cut = window_context(context, 3, where="opening")
    assert cut.batch.rewards == ((1.0, 4.0),)
    assert cut.batch.finished is cut.batch.token_ids is None
    assert cut.correct[0].tolist() == [False, True]
    assert (cut.encoder, cut.encoder_name, cut.judges) == (len, "toy", context.judges)
    nothing = evaluate(windowed(metric, words=3), MetricContext(rows))
    assert "no quality" in nothing.reasons[0]


def test_pooled_metrics_stay_pooled():
    metric = windowed(METRICS["format_dominance"], words=3)
    result = evaluate(metric, MetricContext(batch(["- a\n- b", "one two three four"], ["x y z", "x y z"])))
    assert isinstance(result, Pooled)
    assert not isinstance(result, PerPrompt)
    assert (metric.scope, metric.min_k) == ("pooled", METRICS["format_dominance"].min_k)


@pytest.mark.parametrize("name", ["token_entropy", "truncated_fraction"])
def test_what_belongs_to_whole_completions_is_refused(name):
    with pytest.raises(ConfigError, match="whole completions"):
        windowed(METRICS[name])


@pytest.mark.parametrize("more", [{"words": 0}, {"words": 2.5}, {"where": "middle"}])
def test_windows_that_make_no_sense_are_refused(more):
    with pytest.raises(ConfigError, match=next(iter(more))):
        windowed(METRICS["distinct_1"], **more)


def test_a_windowed_metric_says_what_it_is():
    metric = windowed(METRICS["distinct_1"], words=9, where="closing")
    assert metric.name == "closing_distinct_1_9"
    assert metric.signature == METRICS["distinct_1"].signature + "|window:closing:9"
    assert metric.summary.startswith("On the last 9 words of each completion: distinct")
    plain = {"name", "fn", "summary", "signature", "standard"}
    for field in {field.name for field in dataclasses.fields(Metric)} - plain:
        assert getattr(metric, field) == getattr(METRICS["distinct_1"], field)
