"""What every metric of the table promises, whatever it measures. A new metric is held to this by being in the table."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from divmon.errors import ConfigError
from divmon.metrics import METRICS, MetricContext, PerPrompt, Pooled, evaluate, resolve
from divmon.metrics.base import MISSING, Judges, Metric
from divmon.records import Probe, SampleBatch, to_json

P, K = 6, 5
FAMILIES = {
    *("lexical", "syntax", "compression", "semantic", "spectrum", "entropy", "formats", "tails", "coverage", "inputs"),
    *("quality", "human", "voice", "hivemind", "user"),
}
OF_TEXT = {name for name, metric in METRICS.items() if metric.family in ("lexical", "compression", "semantic")}
VOCABULARY = (
    "the",
    "a",
    "cat",
    "dog",
    "runs",
    "sleeps",
    "and",
    "then",
    "42",
    "blue",
    "maybe",
    "**bold**",
    "-",
    "#",
    "x",
)
SHAPES = (
    "Plain prose number {0} about {1}.",
    "- first {0}\n- second {1}\n- third",
    "1. begin with {0}\n2. end with {1}",
    "```python\nprint({0})\n```\n{1}",
    '{{"answer": {0}, "why": "{1}"}}',
    "# Title {1}\n\nText {0}\n\nMore text.",
    "| a | b |\n|---|---|\n| {0} | {1} |",
    r"Therefore \boxed{{{0}}} holds, {1}",
)
HOSTILE = (
    "",
    " \n\t ",
    "\x00",
    "\ud800",
    "\udfff\ud800 lone",
    "森" * 50,
    "a" * 100_000,
    "`" * 2000,
    "- " * 3000,
    "{[(<" * 500,
    "\\boxed{" * 300,
    "|" * 3000,
    "#### 1e999999",
    "1/0",
    "\u202e\u0000\u2028x",
    "e\u0301" * 40,
)


def encoder(texts):
    """Vectors that depend on the text alone."""
    rows = []
    for text in texts:
        seed = sum((i + 1) * ord(c) for i, c in enumerate(text[:500])) % 2**32
        rows.append(np.random.default_rng(seed).normal(size=8))
    return np.array(rows)


def nli(pairs):
    """Entailment as far as the words of the one are in the other."""
    share = np.array([len({*a.split()} & {*b.split()}) / max(1, len({*b.split()})) for a, b in pairs]).reshape(-1, 1)
    return np.concatenate((share, (1 - share) * 0.75, (1 - share) * 0.25), axis=1)


def equivalence(pairs):
    """Whether two texts begin with the same word."""
    return np.array([float(a.split()[:1] == b.split()[:1]) for a, b in pairs])


JUDGES = Judges(nli=nli, nli_name="toy", equivalence=equivalence, equivalence_name="toy")


def texts_of(seed, *, p=P, k=K, hostile=False):
    rng = np.random.default_rng(seed)
    pool = [" ".join(rng.choice(VOCABULARY, rng.integers(0, 30))) for _ in range(p * k)]
    pool[::3] = [SHAPES[rng.integers(len(SHAPES))].format(rng.integers(99), rng.choice(VOCABULARY)) for _ in pool[::3]]
    if hostile:
        pool = [HOSTILE[i % len(HOSTILE)] for i in range(p * k)]
    return [pool[i * k : (i + 1) * k] for i in range(p)]


def full(texts, *, seed=0, step=1, known=True):
    """A batch of these texts with everything known, and its quality."""
    rng = np.random.default_rng(seed)
    shape = [[max(1, len(text.split())) for text in row] for row in texts]
    probes = tuple(
        Probe(
            f"p{i}",
            f"question {i}",
            domain="ab"[i % 2],
            gold="42",
            reference=f"A person wrote {i} of these lines, with care.",
            difficulty=1 + i % 3,
        )
        for i in range(len(texts))
    )
    batch = SampleBatch(step, probes, tuple(map(tuple, texts)), fingerprint="f")
    if not known:
        return replace(batch, probes=tuple(replace(probe, gold=None, difficulty=None) for probe in probes)), None
    arrays = [[rng.gamma(1.0, 0.5, size=t) for t in row] for row in shape]
    batch = replace(
        batch,
        token_ids=tuple(tuple(tuple(rng.integers(0, 50, size=t).tolist()) for t in row) for row in shape),
        finished=tuple(tuple(bool(x) for x in rng.random(len(row)) < 0.8) for row in shape),
        entropies=tuple(map(tuple, arrays)),
        logprobs=tuple(tuple(-a for a in row) for row in arrays),
    )
    judge = np.random.default_rng(seed)  # of its own: quality must not depend on how long the texts are
    return batch, [[float(judge.random() < 0.5) for _ in row] for row in texts]


def context(texts, *, baseline=None, seed=0, known=True):
    batch, quality = full(texts, seed=seed, known=known)
    extra = {"quality": quality, "encoder": encoder, "encoder_name": "toy", "judges": JUDGES} if known else {}
    return MetricContext(batch, baseline=baseline, **extra)


def numbers(metric, ctx):
    """The values of a metric: one a prompt, or the pooled one."""
    result = evaluate(metric, ctx)
    if isinstance(result, Pooled):
        with np.errstate(all="ignore"):
            return np.atleast_1d(np.asarray(result.combine(result.parts), dtype=float))
    assert isinstance(result, PerPrompt)
    p = len(ctx.batch.probes)
    assert np.shape(result.values) == np.shape(result.n) == (p,)
    assert len(result.reasons) == p
    for value, n, reason in zip(result.values, result.n, result.reasons, strict=True):
        assert math.isnan(value) == (reason is not None), "a missing value has a reason, and no other has one"
        assert n >= 0
        assert n == 0 or not math.isnan(value)
    json.dumps(to_json(result.details), allow_nan=False)
    return np.asarray(result.values, dtype=float)


def mean(values):
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def metrics(chosen=lambda metric: True):
    found = [metric for metric in METRICS.values() if chosen(metric)]
    return pytest.mark.parametrize("metric", found, ids=[metric.name for metric in found])


every = metrics()


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
    values = numbers(metric, context(texts_of(3), baseline=context(texts_of(9), seed=9), seed=3))
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
    result = evaluate(metric, context(texts_of(6), baseline=context(texts_of(9), seed=9)))
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
