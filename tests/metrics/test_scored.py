"""Scored metrics against exact values: a policy whose every completion is listed, trained by real steps."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import enumerable as toy
import numpy as np
import pytest
from scipy.special import logsumexp

from divmon.bank import Bank, Block
from divmon.errors import SignatureMismatch
from divmon.history import Evaluation, History
from divmon.metrics import MetricContext, evaluate, inputs
from divmon.metrics.crossed import INFORMATION_BOUND, RETRIEVAL_ACCURACY
from divmon.metrics.scored import KL_PER_TOKEN, RETAINED_HEAD, RETAINED_TAIL, halves
from divmon.metrics.scores import bank_context, measure_scores, stale
from divmon.records import Decoding, Probe, SampleBatch
from divmon.samplers.score import Scorer

MEANS = ("kl_per_token", "retained_mass", "retained_head", "retained_tail", "scored_entropy")


def estimates(bank: Any, scored: SampleBatch, baseline: MetricContext) -> dict[str, tuple[float, float]]:
    """(estimate, standard error) of everything that has an exact value; shares only while they are not missing."""
    found = {m.metric: m for m in measure_scores(bank, scored, baseline=baseline, intervals=False)}
    known = {name: (found[name].value, found[name].details["standard_error"]) for name in MEANS}
    shares = found["scored_format_dominance"]
    if not math.isnan(shares.value):
        errors = shares.details["standard_errors"]
        known |= {f"share:{name}": (value, errors[name]) for name, value in shares.details["shares"].items()}
    return known | {"stale": (float(stale(list(found.values())) is not None), 0.0)}


@pytest.fixture(scope="module")
def trained() -> Any:
    """Checkpoints of one run, each with its exact law and the scores of three banks of the baseline."""
    model = toy.close(toy.policy(0))
    base = toy.law(model)
    banks = [toy.bank(base, k=48, seed=seed) for seed in range(3)]
    contexts = [bank_context(bank, classifier=toy.label) for bank in banks]
    rows = []
    for step in range(0, 16, 2):
        if step:
            toy.train(model, 2, seed=step, lr=8e-4)
        now, scorer = toy.law(model), Scorer(model)
        scored = [scorer(bank, step=step) for bank in banks]
        found = [estimates(b, s, c) for b, s, c in zip(banks, scored, contexts, strict=True)]
        rows.append(SimpleNamespace(law=now, exact=toy.exact(base, now, k=48), found=found, scored=scored))
    return SimpleNamespace(base=base, banks=banks, contexts=contexts, rows=rows)


def test_estimates_are_within_three_standard_errors_of_the_exact_values(trained: Any) -> None:
    pairs = {
        (row.scored[0].step, i, name): (value - row.exact[name]) / max(error, 1e-5)  # at the baseline only rounding
        for row in trained.rows
        for i, found in enumerate(row.found)
        for name, (value, error) in found.items()
        if name != "stale"
    }
    z = np.abs(list(pairs.values()))
    assert len(z) > 250
    assert np.mean(z <= 3.0) >= 0.99, {name: value for name, value in pairs.items() if abs(value) > 3.0}
    assert trained.rows[-1].exact["kl_per_token"] > 0.1  # it has moved a long way
    assert trained.rows[-1].exact["retained_tail"] < trained.rows[-1].exact["retained_head"] < 0.9


def test_the_standard_errors_are_those_of_drawing_other_banks(trained: Any) -> None:
    now = trained.rows[4].law
    kl, errors = [], []
    for seed in range(80):
        bank = toy.bank(trained.base, k=48, seed=1000 + seed)
        scored = seen_by(bank, now)
        value, error = scored_kl(bank, scored)
        kl.append(value)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(kl), rel=0.25)
    assert np.mean(kl) == pytest.approx(trained.rows[4].exact["kl_per_token"], abs=4 * np.std(kl) / math.sqrt(80))


def seen_by(bank: Any, law: toy.Law) -> SampleBatch:
    """The bank under an exact law, without a model."""
    place = {tokens: n for n, tokens in enumerate(toy.TREE)}
    cells = [[(i, place[tokens]) for tokens in row] for i, row in enumerate(bank.batch.token_ids)]
    columns = ([[v[i, n, : toy.LENGTHS[n]] for i, n in row] for row in cells] for v in (law.logprobs, law.entropies))
    return bank.scored(*columns, step=1)


def scored_kl(bank: Any, scored: SampleBatch) -> tuple[float, float]:
    (m,) = measure_scores(bank, scored, metrics=(KL_PER_TOKEN,), intervals=False)
    return m.value, m.details["standard_error"]


def test_shares_are_within_five_points_until_fresh_completions_are_asked_for(trained: Any) -> None:
    """A bank of 1,536, whose own error is small beside five points."""
    bank = toy.bank(trained.base, k=192, seed=5)
    context = bank_context(bank, classifier=toy.label)
    asked = False
    for row in trained.rows:
        found = estimates(bank, seen_by(bank, row.law), context)
        asked = asked or bool(found.pop("stale")[0])
        off = max([abs(v - row.exact[name]) for name, (v, _) in found.items() if name.startswith("share:")] or [0.0])
        assert asked or off <= 0.05
    assert asked


def test_one_minus_total_variation_is_retained(trained: Any) -> None:
    """At the first token of one prompt, by the definition of total variation."""
    now = trained.rows[-1].law
    one = np.array([i for i, tokens in enumerate(toy.TREE) if len(tokens) == toy.LONGEST or tokens == (toy.EOS,)])
    first = {toy.TREE[i][0]: i for i in one}
    p, q = (np.exp(law.logprobs[0, list(first.values()), 0]) for law in (trained.base, now))
    assert p.sum() == pytest.approx(1.0)
    drawn = np.random.default_rng(0).choice(len(p), p=p, size=200_000)
    assert np.minimum(1, q / p)[drawn].mean() == pytest.approx(1 - np.abs(p - q).sum() / 2, abs=3e-3)


def test_the_same_weights_have_moved_nowhere(trained: Any) -> None:
    bank = trained.banks[0].anchor(trained.rows[0].scored[0])
    found = {m.metric: m for m in measure_scores(bank, trained.rows[0].scored[0], classifier=toy.label)}
    assert found["kl_per_token"].value == 0.0
    assert [found[f"retained_{part}"].value for part in ("mass", "head", "tail")] == [1.0, 1.0, 1.0]
    assert found["scored_format_shift"].value == 0.0
    assert found["bank_ess"].value == 1.0
    assert found["bank_ess"].details == {"mean_weight": 1.0, "completions": 48 * toy.PROMPTS, "late_shift": 0.0}
    assert stale(list(found.values())) is None
    shares = found["scored_format_dominance"].details
    assert shares["shares"] == pytest.approx(shares["baseline_shares"])
    assert len(found["kl_per_token"].values) == toy.PROMPTS


def one(*rows: list[list[float]], source: str = "probe", **more: Any) -> SampleBatch:
    """A batch of one prompt a row, each completion by the log-probabilities of its tokens."""
    logprobs = tuple(tuple(np.array(cell, dtype=float) for cell in row) for row in rows)
    ids = tuple(tuple(tuple(range(len(cell))) for cell in row) for row in logprobs)
    texts = tuple(tuple("x" for _ in row) for row in rows)
    probes = tuple(Probe(f"p{i}", "?") for i in range(len(rows)))
    return SampleBatch(0, probes, texts, token_ids=ids, logprobs=logprobs, source=source, **more)


def test_the_tail_is_the_less_likely_half_whatever_the_length() -> None:
    base = tuple(np.array(cell) for cell in ([-1.0] * 9, [-2.0], [], [-3.0, -3.0], [-1.5]))
    assert halves(base, "tail").tolist() == [3, 1]
    assert halves(base, "head").tolist() == [4, 0]
    assert halves(base[:1], "tail").tolist() == []
    assert halves(base[:2] + base[3:4], "tail").tolist() == [3 - 1]  # the middle one is in neither half


def test_a_tail_that_loses_all_and_a_head_that_keeps_all() -> None:
    before = one([[-1.0, -1.0], [-4.0]], [[-1.0], [-3.0, -3.0]])
    now = one([[-0.9, -1.0], [-60.0]], [[-0.5], [-70.0, -80.0]], source="score")
    context = MetricContext(now, baseline=MetricContext(before))
    assert evaluate(RETAINED_HEAD, context).values.tolist() == [1.0, 1.0]
    np.testing.assert_allclose(evaluate(RETAINED_TAIL, context).values, 0.0, atol=1e-20)


def test_what_cannot_be_compared_is_missing_with_a_reason() -> None:
    before, now = one([[-1.0, -1.0], []], [[]], [[-1.0]]), one([[-1.0, -2.0], []], [[]], [[-1.0]], source="score")
    other = replace(now, token_ids=(((7, 8), ()), ((),), ((0,),)))
    result = evaluate(KL_PER_TOKEN, MetricContext(other, baseline=MetricContext(before)))
    assert np.isnan(result.values[:2]).all()
    assert result.reasons[:2] == ("the tokens of this prompt are not those of the bank", "no completion has a token")
    tail = evaluate(RETAINED_TAIL, MetricContext(now, baseline=MetricContext(before)))
    assert tail.reasons[0] == tail.reasons[2] == "one completion has no halves: bank at least two a prompt"
    fresh = evaluate(KL_PER_TOKEN, MetricContext(one([[-1.0]]), baseline=MetricContext(before)))
    assert "no bank" in (fresh.reasons[0] or "")


def test_a_bank_without_its_tail_is_refused(trained: Any) -> None:
    bank, scored = trained.banks[0], trained.rows[0].scored[0]
    cut = replace(bank, batch=replace(bank.batch, decoding=Decoding(top_p=0.9)))
    assert {m.reason for m in measure_scores(cut, scored)} == {cut.refusal}
    warm = replace(bank, batch=replace(bank.batch, decoding=Decoding(temperature=0.7)))
    assert "not been scored" in (warm.refusal or "")
    assert warm.anchor(scored).refusal is None


def test_scores_are_no_samples_and_banks_are_not_mixed(trained: Any, tmp_path: Any) -> None:
    first, second = (
        measure_scores(bank, scored, classifier=toy.label, intervals=False)
        for bank, scored in zip(trained.banks, trained.rows[1].scored, strict=False)
        if bank is not trained.banks[2]
    )
    assert all("|score|" in m.signature for m in first)
    history = History.create(tmp_path, probes=())
    history.append(Evaluation(1, first))
    with pytest.raises(SignatureMismatch):
        history.append(Evaluation(2, tuple(replace(m, step=2) for m in second)))
    again = History.read(tmp_path).evaluations[0].measurements
    assert [m.value for m in again if not math.isnan(m.value)] == [m.value for m in first if not math.isnan(m.value)]


def test_mass_that_left_the_bank_is_noticed(trained: Any) -> None:
    """Everything banked is half as likely: weights are even, so the sample size sees nothing; their mean does."""
    bank = trained.banks[0]
    first = [[lp - np.log(2) * (np.arange(len(lp)) == 0) for lp in row] for row in bank.batch.logprobs]
    found = measure_scores(bank, bank.scored(first, bank.batch.entropies, step=1), classifier=toy.label)
    by_name = {m.metric: m for m in found}
    assert by_name["bank_ess"].value == pytest.approx(1.0)
    assert by_name["bank_ess"].details["mean_weight"] == pytest.approx(0.5)
    assert math.isnan(by_name["scored_format_dominance"].value)
    assert "0.50 of the mass" in (stale(found) or "")


def test_blocks_say_what_the_textbook_functions_say() -> None:
    scores = np.random.default_rng(1).normal(-20, 6, size=(7, 7))
    scores[:, 3] = scores[0, 3]  # a tie of all
    batch = one(*[[[-1.0]]] * 8)
    context = MetricContext(batch)
    context.block = Block(tuple(f"p{i}" for i in range(7)), scores)
    owner = np.arange(7)
    right, bound = (evaluate(metric, context) for metric in (RETRIEVAL_ACCURACY, INFORMATION_BOUND))
    assert np.nanmean(right.values) == pytest.approx(inputs.retrieval_accuracy(scores, owner), abs=1e-12)
    assert np.nanmean(bound.values) == pytest.approx(inputs.mutual_information_bound(scores, owner), abs=1e-12)
    expected = np.diag(scores) - logsumexp(scores, axis=0) + np.log(7)
    np.testing.assert_allclose(bound.values[:7], expected, atol=1e-12)
    assert math.isnan(right.values[7])
    assert right.reasons[7] == "not one of the prompts of the block"


def test_a_format_that_is_decided_late_goes_missing_and_asks_for_fresh_completions() -> None:
    """Token 20 alone decides: 0.5 becomes 0.85 at 0.011 nats a token, and the first 16 tokens say nothing of it."""
    rng = np.random.default_rng(0)
    for later, expected in ((0.85, True), (0.5, False)):
        bullet = rng.random((8, 16)) < 0.5
        rest = rng.normal(0.0, 0.05, (8, 16, 30))  # other tokens have moved a little, whatever the format
        base = np.full((8, 16, 30), -1.0)
        now = base + rest
        now[:, :, 20] = base[:, :, 20] + np.log(np.where(bullet, later, 1 - later) / 0.5)
        now[:, :, :16] = base[:, :, :16]
        probes = tuple(Probe(str(i), str(i)) for i in range(8))
        texts = tuple(tuple("- a\n- b" if b else "words" for b in row) for row in bullet)
        ids = tuple(tuple((1,) * 30 for _ in row) for row in bullet)
        batch = SampleBatch(0, probes, texts, token_ids=ids, logprobs=tuple(map(tuple, base)))
        bank = Bank(batch, tuple((1,) for _ in probes), anchored=True)
        found = measure_scores(bank, bank.scored(tuple(map(tuple, now)), tuple(map(tuple, -base)), step=1))
        values = {m.metric: m.value for m in found}
        assert values["bank_ess"] == 1.0
        assert values["kl_per_token"] < 0.02
        assert math.isnan(values["scored_format_dominance"]) is expected
        assert (stale(found) is not None) is expected
