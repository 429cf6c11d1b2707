"""The laws of the table on completions that hypothesis invents: any alphabet, any length, empty, broken, repeated."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import JUDGES, context, encoder, full, metrics, numbers

from divmon.metrics import METRICS, MetricContext

ALPHABETS = (
    st.characters(codec="utf-8"),
    st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF, categories=("Cs",)),  # lone surrogates
    st.sampled_from("ab \n\t.#-*`|{}[]()=:;'\"<>/\\0123456789"),
    st.sampled_from("森林木の 한글 שלום مرحبا 👩‍👩‍👧‍👦🇫🇷e\u0301\u202e\u200b"),
)
WORDS = st.sampled_from(
    ["the", "a", "cat", "runs", "Answer:", "42", "-", "def f():\n return 1\n", "#", "\n", "```", "∑"]
)
TEXT = st.one_of(
    *(st.text(alphabet, max_size=60) for alphabet in ALPHABETS),
    st.lists(WORDS, max_size=40).map(" ".join),
    st.sampled_from(["", " ", "x", "a" * 3000, "word " * 700, "\x00"]),
)
ROW = st.lists(TEXT, min_size=2, max_size=5)
BATCH = st.lists(ROW, min_size=1, max_size=3)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
# what a completion said twice must not make look more diverse; the others say of themselves why they are not here
DOUBLED = {"lexical", "compression", "semantic", "spectrum", "syntax"}
CORRECTED = {"vendi_1_jackknife", "semantic_clusters"}  # doubling breaks the independence that the correction assumes


def measured(metric, texts, *, baseline=None):
    return numbers(metric, context(texts, baseline=baseline))


@metrics()
@given(texts=BATCH, other=BATCH)
@QUICK
def test_any_text_gives_a_number_within_bounds_or_a_reason(metric, texts, other):
    for baseline in (None, context(other, seed=1)):
        values = measured(metric, texts, baseline=baseline)
        known = values[~np.isnan(values)]
        assert (known >= metric.bounds[0] - 1e-9).all()
        assert (known <= metric.bounds[1] + 1e-9).all()


@metrics(lambda metric: metric.family in DOUBLED and metric.direction != "neutral" and metric.name not in CORRECTED)
@given(row=ROW)
@QUICK
def test_saying_everything_twice_never_looks_more_diverse(metric, row):
    sign = 1 if metric.direction == "higher" else -1
    baseline = context([row], seed=3)
    once, twice = measured(metric, [row], baseline=baseline), measured(metric, [row + row], baseline=baseline)
    for before, after in zip(once, twice, strict=True):
        if not math.isnan(before) and not math.isnan(after):
            assert sign * after <= sign * before + 1e-9


# compression depends on length more than on anything else, and the different texts are longer
@metrics(lambda metric: metric.family in DOUBLED - {"compression"} and metric.direction != "neutral")
@given(text=TEXT, k=st.integers(2, 6))
@QUICK
def test_identical_completions_are_the_extreme(metric, text, k):
    """Nothing is less diverse than one text said k times."""
    sign = 1 if metric.direction == "higher" else -1
    others = [f"{text} {i} {chr(97 + i) * 7}" for i in range(k)]
    baseline = context([others], seed=5)
    same = measured(metric, [[text] * k], baseline=baseline)
    different = measured(metric, [others], baseline=baseline)
    for low, high in zip(same, different, strict=True):
        if not math.isnan(low) and not math.isnan(high):
            assert sign * low <= sign * high + 1e-9


@metrics(lambda metric: metric.scope == "per_prompt" and "block" not in metric.needs)
@given(texts=st.lists(ROW, min_size=2, max_size=4))
@QUICK
def test_a_prompt_does_not_see_the_others(metric, texts):
    """A value per prompt is the same whatever else is in the batch, once the baseline is fixed."""
    baseline = context(texts, seed=7)
    batch, quality = full(texts, seed=7)
    columns = ("probes", "texts", "token_ids", "finished", "entropies", "logprobs")
    first = replace(batch, **{name: getattr(batch, name)[:1] for name in columns})
    more = {"encoder": encoder, "encoder_name": "toy", "judges": JUDGES, "baseline": baseline}
    together = numbers(metric, MetricContext(batch, quality=quality, **more))
    alone = numbers(metric, MetricContext(first, quality=quality[:1], **more))
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", ["tfidf_distance", "self_bleu", "distinct_2", "compression_ratio"])
def test_a_hundred_thousand_words_are_measured(name):
    values = measured(METRICS[name], [["word " * 100_000, "other words " * 50_000, ""]])
    assert not np.isnan(values).any()
