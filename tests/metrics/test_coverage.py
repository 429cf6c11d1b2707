"""Reach and tails from samples: published tables, brute force, and simulations in which nothing has changed."""

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.coverage import pass_at_k, support_rates
from divmon.records import Probe, SampleBatch

ORACLES = Path(__file__).parents[2].parent / "shared" / "oracles"

# arXiv:2507.14843, Table 1: prompts preserved, expanded, shrunk; SRR, NDR, SDS, NSCR as printed.
SUPPORT = {
    "ProRL-1.5B-v1": ((2400, 36, 163), (0.94, 0.01, 0.03, -0.05)),  # NDR is printed as .02; 36/2436 = .0148
    "ProRL-1.5B-v2": ((2388, 48, 175), (0.93, 0.02, 0.04, -0.05)),
    "Nemotron-7B": ((2715, 28, 56), (0.98, 0.01, 0.02, -0.01)),
    "Skywork-7B": ((2685, 26, 86), (0.97, 0.01, 0.02, -0.02)),
    "Nemotron-14B": ((2418, 8, 23), (0.99, 0.00, 0.01, -0.01)),
    "Phi4-14B": ((2474, 16, 23), (0.99, 0.01, 0.01, -0.00)),
    "OLMo-2-1B-math": ((761, 83, 104), (0.88, 0.10, 0.18, -0.02)),
}
# The same source, pass@256 of Qwen2.5-Math-7B: preserved, expanded, shrunk; NSCR.
NET = [
    ((154, 28, 18), 0.050), ((138, 12, 34), -0.120), ((503, 49, 25), 0.042),
    ((467, 25, 61), -0.065), ((480, 15, 2), 0.026), ((470, 6, 12), -0.012),
]  # fmt: skip


def context_of(quality, *, texts=None, difficulty=None, baseline=None, domains=None, **known):
    p = len(quality)
    probes = tuple(
        Probe(f"p{i}", "?", domain=domains[i] if domains else "d", difficulty=difficulty[i] if difficulty else None)
        for i in range(p)
    )
    texts = texts or [["text"] * len(row) for row in quality]
    batch = SampleBatch(0, probes, tuple(map(tuple, texts)), **known)
    return MetricContext(batch, quality=quality, baseline=baseline)


def measured(name, context, rows=None):
    result = evaluate(METRICS[name], context)
    if hasattr(result, "combine"):
        parts = result.parts if rows is None else result.parts[rows]
        with np.errstate(all="ignore"):
            return float(result.combine(parts))
    return result.values.tolist()


def shown(name, context):
    result = evaluate(METRICS[name], context)
    return result.details(result.parts)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        draws = [1] * c + [0] * (n - c)
        expected = np.mean([any(subset) for subset in itertools.combinations(draws, k)])
        assert float(pass_at_k(n, c, k=k)) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(st.integers(1, 10_000), st.data())
def test_pass_at_k_equals_binomials(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, min(n, 60)))
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert float(pass_at_k(n, c, k=k)) == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_pass_at_k_is_unbiased_and_refuses_nonsense():
    correct = np.random.default_rng(0).binomial(8, 0.2, size=200_000)
    assert pass_at_k(8, correct, k=4).mean() == pytest.approx(1 - 0.8**4, abs=0.003)
    assert np.isnan(pass_at_k(3, 1, k=4))
    with pytest.raises(ValueError, match="1 or more"):
        pass_at_k(3, 1, k=0)
    with pytest.raises(ValueError, match="between none and all"):
        pass_at_k(3, 4, k=1)


def test_pass_at_4_needs_four_judged_completions():
    context = context_of([[1, 0, 0, 0, 0], [1, 0, 0, math.nan, 0], [1, 0, 0, math.nan], [0, 0, 0]])
    result = evaluate(METRICS["pass_at_4"], context)
    np.testing.assert_allclose(result.values, [0.8, 1.0, math.nan, math.nan])
    assert result.reasons[2] == "fewer than 4 judged completions of this prompt"
    assert result.reasons[3] == "needs at least 4 completions a prompt"


@pytest.mark.parametrize(("counts", "printed"), SUPPORT.values(), ids=SUPPORT)
def test_support_rates_of_the_published_table(counts, printed):
    assert [float(rate) for rate in support_rates(*counts)] == pytest.approx(printed, abs=0.0051)


@pytest.mark.parametrize(("counts", "net"), NET)
def test_net_support_of_the_second_published_table(counts, net):
    assert float(support_rates(*counts).net) == pytest.approx(net, abs=0.00051)


def test_the_restated_table_is_the_stored_one():
    path = ORACLES / "tables" / "support.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    for name, (*counts, srr, ndr, sds, nscr) in json.loads(path.read_text("utf-8"))["rows"].items():
        assert SUPPORT[name] == (tuple(counts), (srr, ndr, sds, nscr))


def test_support_rates_are_missing_where_they_are_undefined():
    nothing = support_rates([0, 0, 0], [0, 5, 0], [0, 0, 5])
    np.testing.assert_array_equal(np.isnan(nothing.retained), [True, True, False])
    np.testing.assert_array_equal(np.isnan(nothing.new), [True, False, True])
    np.testing.assert_allclose(nothing.net, [math.nan, 1, -1])
    assert float(support_rates(5, 0, 0).score) == 0.0


def test_support_from_completions():
    base = context_of([[1, 0], [0, 1], [0, 0], [0, 0], [1, 1], [math.nan, math.nan]])
    now = context_of([[1, 1], [0, 0], [0, 1], [0, 0], [math.nan, math.nan], [1, 1]], baseline=base)
    assert shown("support_net", now) == {"preserved": 1, "expanded": 1, "shrunk": 1, "out_of_reach": 1}
    names = ("support_retained", "support_new", "support_score", "support_net")
    assert [measured(name, now) for name in names] == [0.5, 0.5, 0.5, 0.0]
    assert [measured(name, base) for name in names] == [1.0, 0.0, 0.0, 0.0]
    assert math.isnan(measured("support_retained", now, rows=[2]))


def test_net_support_of_an_unchanged_policy_is_zero_on_average_and_retention_is_not_one():
    rng = np.random.default_rng(5)
    skill = rng.beta(0.5, 1.0, size=3000)[:, None]
    base, now = ((rng.random((3000, 4)) < skill).astype(float).tolist() for _ in range(2))
    later = context_of(now, baseline=context_of(base))
    assert measured("support_net", later) == pytest.approx(0, abs=0.03)
    assert measured("support_retained", later) < 0.9


def test_hard_coverage_by_hand():
    quality = [[1, 1], [0, 0], [0, 1], [0, 0], [math.nan, math.nan]]
    base = context_of([[1, 1], [1, 0], [1, 1], [1, 1], [1, 0]], difficulty=[1, 2, 3, 3, 3])
    now = context_of(quality, difficulty=[1, 2, 3, 3, 3], baseline=base)
    assert measured("hard_coverage", now) == pytest.approx(1 / 3)  # levels 2 and 3 are hard; the last is not judged
    found = shown("hard_coverage", now)
    assert found == {
        "hard_prompts": 3, "hard_levels": ["2", "3"], "baseline": 1.0, "correct_counts": {"0": 2, "1": 1, "2": 1},
    }  # fmt: skip
    assert math.isnan(measured("hard_coverage", now, rows=[0]))
    only = evaluate(METRICS["hard_coverage"], context_of(quality, difficulty=[1] * 5))
    assert set(only.reasons) == {"only one level of difficulty"}


def test_hard_coverage_bins_by_the_baseline_where_no_difficulty_is_given():
    base = context_of([[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
    assert measured("hard_coverage", base) == 0.5
    now = context_of([[1] * 4, [1] * 4, [1] * 4], baseline=base)
    assert measured("hard_coverage", now) == 1.0


def gsm8k():
    path = ORACLES / "gsm8k" / "example_model_solutions.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    names = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    return [[float(row[name]["is_correct"]) for name in names] for row in rows], [
        [row[name]["solution"] for name in names] for row in rows
    ]


def test_real_solutions_of_four_models():
    quality, texts = gsm8k()
    context = context_of(quality, texts=texts)
    correct = np.array(quality).sum(axis=1).astype(int)
    assert np.mean(measured("pass_at_4", context)) == measured_mean("coverage", context) == np.mean(correct > 0)
    hist = Counter(correct.tolist())
    assert shown("hard_coverage", context)["correct_counts"] == {str(i): hist[i] for i in range(5)}
    # pass@2 from all four is the mean over the six pairs of models
    pairs = [np.mean([row[i] or row[j] for row in quality]) for i, j in itertools.combinations(range(4), 2)]
    assert pass_at_k(4, correct, k=2).mean() == pytest.approx(np.mean(pairs), rel=1e-12)


def measured_mean(name, context):
    return float(np.mean(measured(name, context)))


def lengths(*rows, **known):
    return context_of([[0.0] * len(row) for row in rows], texts=[["w " * n for n in row] for row in rows], **known)


def test_long_tail_is_a_tenth_at_the_baseline_whatever_the_ties():
    for rows in ([range(1, 21)], [[3] * 8, [5] * 8], [[7] * 10], [[1, 2, 3]], [[1] * 19 + [9]]):
        assert measured("long_tail", lengths(*rows)) == pytest.approx(0.1)


def test_long_tail_by_hand():
    base = lengths(range(1, 11), [100] * 10, domains=["a", "b"])
    now = lengths([10, 11, 8, 9], [99, 100, 101, 102], domains=["a", "b"], baseline=base)
    assert shown("long_tail", now) == {"unit": "words", "marks": {"a": 9.0, "b": 100.0}}
    assert measured("long_tail", now, rows=[0]) == 0.5
    assert measured("long_tail", now, rows=[1]) == pytest.approx((2 + 0.1) / 4)
    assert measured("long_tail", now) == pytest.approx((2 + 2.1) / 8)
    elsewhere = lengths([1, 2], domains=["new"], baseline=base)
    assert math.isnan(measured("long_tail", elsewhere))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=9), min_size=1, max_size=6))
def test_long_tail_of_any_baseline_is_a_tenth(rows):
    assert measured("long_tail", lengths(*rows)) == pytest.approx(0.1)


def test_long_tail_counts_tokens_where_both_sides_know_them():
    ids = tuple((tuple(range(n)),) for n in range(1, 11))
    base = context_of([[0.0]] * 10, token_ids=ids)
    assert shown("long_tail", base)["unit"] == "tokens"
    assert shown("long_tail", context_of([[0.0]] * 10, baseline=base))["unit"] == "words"


def test_surprisal_tail():
    rng = np.random.default_rng(0)

    def of(scale, baseline=None):
        rows = tuple(tuple(-scale * rng.gamma(2.0, size=rng.integers(1, 30)) for _ in range(10)) for _ in range(200))
        return context_of([[0.0] * 10] * 200, logprobs=rows, baseline=baseline)

    base = of(1.0)
    assert measured("surprisal_tail", base) == pytest.approx(0.1)
    assert measured("surprisal_tail", of(1.0, base)) == pytest.approx(0.1, abs=0.02)
    assert measured("surprisal_tail", of(0.5, base)) < 0.02
    odd = context_of([[0.0] * 3], logprobs=((np.array([]), np.array([math.nan]), np.array([-1.0])),), baseline=base)
    assert measured("surprisal_tail", odd) == 0.0
    blind = evaluate(METRICS["surprisal_tail"], of(1.0, context_of([[0.0]] * 200)))
    assert set(blind.reasons) == {"log-probabilities of the baseline are unknown"}
