"""Toy completions, an encoder and judges for tests of metrics: everything known, nothing loaded."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from divmon.bank import Block
from divmon.metrics import METRICS, MetricContext, PerPrompt, Pooled, evaluate
from divmon.metrics.base import Judges
from divmon.plain import to_json
from divmon.records import Probe, SampleBatch

P, K = 6, 5
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


def written_by_a_person(i):
    words = np.random.default_rng(100 + i).choice(VOCABULARY[:10], 20 + i)
    return f"A person wrote, {'! ' * i}{' '.join(words)}."


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
            reference=written_by_a_person(i),
            difficulty=1 + i % 3,
            columns={"others": {"one": ["the cat runs and sleeps", f"maybe {i}"], "two": ["a blue dog"] * 3}},
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


def seen(metric, ctx):
    """`ctx` as `metric` looks at it: scored, where it wants scores of a bank."""
    if not {"bank", "block"} & metric.needs or ctx.batch.logprobs is None:
        return ctx
    batch = replace(ctx.batch, source="score")
    bank = replace(ctx.batch, logprobs=tuple(tuple(-(np.abs(lp) ** 1.02) for lp in row) for row in batch.logprobs))
    other = MetricContext(batch, baseline=MetricContext(bank, classifier=ctx.classifier), classifier=ctx.classifier)
    rows = [i for i, row in enumerate(batch.logprobs) if row]
    sums = np.array([np.mean([float(lp.sum()) for lp in batch.logprobs[i]]) for i in rows])
    other.block = Block(tuple(batch.probes[i].id for i in rows), sums[None] - 1.0 + np.eye(len(sums)))
    return other


def numbers(metric, ctx):
    """The values of a metric: one a prompt, or the pooled one."""
    result = evaluate(metric, seen(metric, ctx))
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
