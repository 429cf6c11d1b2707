"""What every metric of the table promises, whatever it measures. A new metric is held to this by being in the table."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from toys import JUDGES, SHAPES, K, P, context, encoder, full, mean, metrics, numbers, seen, texts_of

from divmon.errors import ConfigError
from divmon.metrics import METRICS, MetricContext, PerPrompt, Pooled, evaluate, resolve
from divmon.metrics.base import MISSING, Metric
from divmon.plain import to_json

FAMILIES = {
    *("lexical", "syntax", "compression", "semantic", "spectrum", "entropy", "formats", "tails", "coverage", "inputs"),
    *("quality", "human", "voice", "hivemind", "scored", "user"),
}
OF_TEXT = {name for name, metric in METRICS.items() if metric.family in ("lexical", "compression", "semantic")}
every = metrics()


def suited(metric, texts):
    """These texts as what a metric looks at: as programs, or long enough for its window or its number of draws."""
    if metric.family == "syntax":
        return [["\n".join(f"print(len({word!r}) + 1)" for word in text.split()) for text in row] for row in texts]
    long = "window:" in metric.signature or "|m:" in metric.signature
    return [[" ".join([text] * 5) for text in row] for row in texts] if long else texts


@every
def test_it_says_what_a_reader_must_know(metric):
    assert METRICS[metric.name] is metric
    assert metric.name.isidentifier()
    assert metric.name == metric.name.lower()
    assert metric.family in FAMILIES
    assert metric.direction in ("higher", "lower", "neutral")
    assert metric.summary.endswith(".")
    assert "\n" not in metric.summary
    assert metric.source
    assert metric.bounds[0] < metric.bounds[1]
    assert metric.needs <= set(MISSING)
    assert metric.min_k >= 1


@every
def test_the_same_completions_give_the_same_number_and_stay_as_they_were(metric):
    baseline = context(texts_of(9), seed=9)
    one, two = (context(texts_of(1), baseline=baseline) for _ in range(2))
    before = copy.deepcopy((one.batch, one.quality))
    first = numbers(metric, one)
    np.testing.assert_array_equal(numbers(metric, one), first)
    np.testing.assert_array_equal(numbers(metric, two), first)
    assert json.dumps(to_json(before)) == json.dumps(to_json((one.batch, one.quality)))


@every
def test_the_order_of_completions_does_not_matter(metric):
    texts = texts_of(2)
    batch, quality = full(texts)
    orders = [np.random.default_rng(i).permutation(K) for i in range(P)]

    def shuffled(rows):
        return tuple(tuple(row[j] for j in order) for row, order in zip(rows, orders, strict=True))

    known = ("texts", "token_ids", "finished", "entropies", "logprobs")
    other = replace(batch, **{name: shuffled(getattr(batch, name)) for name in known})
    more = {"encoder": encoder, "encoder_name": "toy", "judges": JUDGES, "baseline": context(texts_of(9), seed=9)}
    a = numbers(metric, MetricContext(batch, quality=quality, **more))
    b = numbers(metric, MetricContext(other, quality=shuffled(quality), **more))
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)


@every
@pytest.mark.parametrize("seed", range(4))
def test_it_stays_within_its_bounds(metric, seed):
    values = numbers(metric, context(texts_of(seed), baseline=context(texts_of(9), seed=9), seed=seed))
    values = values[~np.isnan(values)]
    low, high = metric.bounds
    assert (values >= low - 1e-12).all()
    assert (values <= high + 1e-12).all()


@every
def test_it_measures_something_when_everything_is_known(metric):
    texts, before = (suited(metric, texts_of(seed)) for seed in (3, 9))
    if "min_fall:" in metric.signature:  # it takes a fall apart, so there must be one
        texts = [row[:1] * len(row) for row in before]
    values = numbers(metric, context(texts, baseline=context(before, seed=9), seed=3))
    assert not np.isnan(values).all()


@metrics(lambda metric: metric.scope == "per_prompt" and metric.min_k > 1)
def test_too_few_completions_are_missing(metric):
    ctx = context([["only one, as it happens"] * (metric.min_k - 1), *texts_of(4)])
    values = numbers(metric, ctx)
    assert math.isnan(values[0])
    assert evaluate(metric, ctx).reasons[0]


@every
def test_no_completions_at_all_raise_nothing(metric):
    for texts in ([], [[], []]):
        batch, quality = full(texts)
        if metric.scope == "per_prompt":
            assert np.isnan(numbers(metric, MetricContext(batch, quality=quality, encoder=encoder))).all()


@metrics(lambda metric: metric.needs)
def test_what_is_not_known_is_missing_with_a_reason(metric):
    result = evaluate(metric, context(texts_of(5), known=False))
    assert isinstance(result, PerPrompt)
    assert np.isnan(result.values).all()
    assert set(result.reasons) <= {MISSING[need] for need in metric.needs}


@metrics(lambda metric: metric.direction != "neutral")
def test_a_collapse_never_looks_more_diverse(metric):
    sign = 1 if metric.direction == "higher" else -1
    text = "the same answer in every single completion"
    same = [[text] * K for _ in range(P)]
    different = [[SHAPES[(i + j) % len(SHAPES)].format(i * K + j, chr(97 + j) * 9) for j in range(K)] for i in range(P)]
    same, different = suited(metric, same), suited(metric, different)
    baseline = context(different, seed=9)
    collapsed = sign * mean(numbers(metric, context(same, baseline=baseline)))
    diverse = sign * mean(numbers(metric, context(different, baseline=baseline)))
    assert collapsed <= diverse + 1e-12
    if metric.name in OF_TEXT:
        assert collapsed < diverse
        for seed in range(3):
            assert collapsed <= sign * mean(numbers(metric, context(texts_of(seed), baseline=baseline))) + 1e-12


@every
def test_hostile_text_raises_nothing(metric):
    hostile = texts_of(0, hostile=True)
    for baseline in (None, context(texts_of(9), seed=9), context(hostile)):
        values = numbers(metric, context(hostile, baseline=baseline))
        assert ((values >= metric.bounds[0] - 1e-12) | np.isnan(values)).all()


@every
def test_pooled_statistics_can_be_resampled(metric):
    result = evaluate(metric, seen(metric, context(texts_of(6), baseline=context(texts_of(9), seed=9))))
    if not isinstance(result, Pooled):
        assert metric.scope == "per_prompt"
        return
    assert metric.scope == "pooled"
    assert result.parts.shape[0] == P
    index = np.random.default_rng(0).integers(0, P, size=(7, P))
    with np.errstate(all="ignore"):
        together = np.asarray(result.combine(result.parts[index]))
        apart = [float(result.combine(result.parts[row])) for row in index]
    np.testing.assert_allclose(together, apart, rtol=1e-12, equal_nan=True)
    if result.details is not None:
        json.dumps(to_json(result.details(result.parts)), allow_nan=False)


def shouting(texts):
    """Share of completions in capitals."""
    return sum(text.isupper() for text in texts) / len(texts)


def test_resolve_takes_names_metrics_paths_and_functions():
    metric = METRICS["self_bleu"]
    assert resolve("self_bleu") is metric
    assert resolve(metric) is metric
    assert resolve("divmon.metrics.lexical:SELF_BLEU") is metric
    mine = resolve(shouting)
    assert isinstance(mine, Metric)
    assert (mine.name, mine.family, mine.summary) == ("shouting", "user", "Share of completions in capitals.")
    assert numbers(mine, context([["A", "b"], ["C", "D"]])).tolist() == [0.5, 1.0]
    assert resolve("statistics:fmean").name == "fmean"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfidf_distanse", "Did you mean 'tfidf_distance'"),
        ("no.such.module:fn", "Cannot import"),
        ("divmon.metrics.lexical:NOTHING", "Cannot import"),
        ("divmon.metrics.lexical:OPENING_WORDS", "A metric must be"),
        (":", "Cannot import"),
        (lambda texts: 0.0, "A metric must be"),
        (3, "A metric must be"),
    ],
)
def test_resolve_fails_at_once_and_says_why(spec, message):
    with pytest.raises(ConfigError, match=message):
        resolve(spec)
