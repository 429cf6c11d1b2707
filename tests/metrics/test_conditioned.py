"""Quality-conditioned statistics against a published table, brute force and identities."""

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
from divmon.metrics.base import Judges
from divmon.metrics.conditioned import correct_distance, decompose
from divmon.records import Probe, SampleBatch

TABLES = Path(__file__).parents[2].parent / "shared" / "oracles" / "tables"
GSM8K = TABLES.parent / "gsm8k" / "example_model_solutions.jsonl"
WORDS = ["red fox", "a fox ran", "grey hens", "hens and a fox", "an old owl", "owls"]
# narrowing shares, in percent, recomputed from the rounded Table 14 (arXiv:2604.16027); not the in-text figures
SHARES = {
    "Think": {
        "IFEval": 95.4,
        "MBPP": 65.3,
        "HumanEval": 4.4,
        "GSM8K": 70.2,
        "MATH-Algebra": 71.4,
        "MATH-Geometry": 71.1,
    },
    "Instruct": {
        "IFEval": 91.3,
        "MBPP": 62.2,
        "HumanEval": 10.1,
        "GSM8K": 64.9,
        "MATH-Algebra": 69.7,
        "MATH-Geometry": 59.8,
    },
}


def table14():
    path = TABLES / "olmo3_quality_filtered.json"
    if not path.exists():
        pytest.skip("the published table is not here")
    return json.loads(path.read_text())["values"]


def batch(rows, **probe):
    return SampleBatch(0, tuple(Probe(str(i), "?", **probe) for i in range(len(rows))), tuple(map(tuple, rows)))


def context(rows, quality, *, baseline=None, **more):
    return MetricContext(batch(rows), quality=quality, baseline=baseline, **more)


def pooled(name, ctx):
    result = evaluate(METRICS[name], ctx)
    return float(result.combine(result.parts)), result


@pytest.mark.parametrize("lineage", SHARES)
@pytest.mark.parametrize("task", SHARES["Think"])
def test_the_decomposition_gives_the_shares_of_table_14(lineage, task):
    values = table14()
    base, now = values["Base"][task], values[lineage][task]
    narrowing, benign = decompose(base["d_all"], base["d_correct"], now["d_all"], now["d_correct"])
    assert round(100 * float(narrowing), 1) == SHARES[lineage][task]
    assert narrowing + benign == pytest.approx(1, abs=1e-12)


def test_pooled_over_six_checkpoints_of_table_14():
    """Mean distances of Think and Instruct, SFT, DPO and final: restated where the oracle file has only the last."""
    rows = {  # d_all and d_correct of the six checkpoints
        "MBPP": ([0.111, 0.073, 0.069, 0.081, 0.084, 0.089], [0.098, 0.059, 0.058, 0.058, 0.067, 0.064], 62.3),
        "HumanEval": ([0.112, 0.095, 0.093, 0.109, 0.081, 0.117], [0.109, 0.095, 0.091, 0.101, 0.072, 0.110], 8.6),
        "GSM8K": ([0.105, 0.141, 0.078, 0.061, 0.052, 0.051], [0.098, 0.137, 0.074, 0.060, 0.049, 0.050], 62.9),
    }
    base = {"MBPP": (0.291, 0.196), "HumanEval": (0.411, 0.123), "GSM8K": (0.172, 0.135)}
    for task, (everything, good, expected) in rows.items():
        narrowing, _ = decompose(*base[task], np.mean(everything), np.mean(good))
        assert round(100 * float(narrowing), 1) == expected


@pytest.mark.parametrize(
    ("four", "expected"),
    [
        ((0.5, 0.4, 0.5, 0.4), math.nan),  # nothing fell
        ((0.5, 0.4, 0.49, 0.3), math.nan),  # it fell by 2 %: too little
        ((0.5, 0.4, 0.6, 0.3), math.nan),  # it rose
        ((0.5, 0.4, 0.3, 0.4), 0.0),
        ((0.5, 0.4, 0.3, 0.2), 1.0),
        ((0.5, 0.4, 0.3, 0.5), -0.5),
        ((0.0, 0.0, 0.0, 0.0), math.nan),
        ((math.nan, 0.4, 0.3, 0.2), math.nan),
    ],
)
def test_decompose_on_small_numbers(four, expected):
    narrowing, benign = decompose(*four)
    assert float(narrowing) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert float(benign) == pytest.approx(1 - expected, abs=1e-12, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from([0.0, 1.0, math.nan])), min_size=2, max_size=9))
def test_correct_distance_is_the_distance_of_the_correct_ones(row):
    texts, quality = [text for text, _ in row], [q for _, q in row]
    ctx = context([texts], [quality])
    value = evaluate(METRICS["correct_distance"], ctx)
    good = [text for text, q in row if q == 1]
    if len(good) < 2:
        assert math.isnan(value.values[0])
        assert value.reasons == ("fewer than two correct completions",)
        assert value.n[0] == 0
        return
    alone = evaluate(METRICS["tfidf_distance"], MetricContext(batch([good]), baseline=ctx))
    assert value.values[0] == pytest.approx(alone.values[0], abs=1e-9)
    assert value.n[0] == len(good)


def test_many_completions_take_the_way_without_a_kernel(monkeypatch):
    rng = np.random.default_rng(0)
    rows = [[" ".join(rng.choice(WORDS, 3)) for _ in range(20)] for _ in range(3)]
    quality = [(rng.random(20) < 0.5).astype(float) for _ in rows]
    base = context(rows[::-1], quality)
    few = correct_distance(None, context(rows, quality, baseline=base)).values
    monkeypatch.setattr("divmon.metrics.conditioned.MAX_KERNEL", 4)
    many = correct_distance(None, context(rows, quality, baseline=base)).values
    np.testing.assert_allclose(many, few, atol=1e-12)


def test_shares_are_taken_over_the_common_prompts_alone():
    first = [["red fox", "hens!", "a very old owl", "???"], ["x yz", "w uv", "hens", "owls"], ["aaa", "bbb", "c", "d"]]
    then = [["red fox", "red fox!", "red fox", "red foxes"], ["x yz", "w uv", "hens", "hens"], ["aaa"] * 4]
    before = context(first, [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]])
    now = context(then, [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]], baseline=before)
    share, result = pooled("narrowing_share", now)
    everything = {side: evaluate(METRICS["tfidf_distance"], ctx).values for side, ctx in (("b", before), ("n", now))}
    good = {side: evaluate(METRICS["correct_distance"], ctx).values for side, ctx in (("b", before), ("n", now))}
    common = [0, 1]  # the third had one correct completion at the baseline
    expected = (good["b"][common].mean() - good["n"][common].mean()) / (
        everything["b"][common].mean() - everything["n"][common].mean()
    )
    assert share == pytest.approx(expected, abs=1e-12)
    assert pooled("benign_share", now)[0] == pytest.approx(1 - expected, abs=1e-12)
    details = result.details(result.parts)
    assert details["common_prompts"] == 2
    assert details["all_now"] == pytest.approx(everything["n"][common].mean(), abs=1e-12)


def test_prompts_are_matched_by_id_not_by_place():
    rows = [["red fox", "hens!", "owl"], ["one two", "three", "four"]]
    base = context(rows, [[1, 1, 0], [1, 1, 1]])
    then = SampleBatch(1, base.batch.probes[::-1], (("one two",) * 3, ("red fox", "hens!", "hens!")))
    ctx = MetricContext(then, quality=[[1, 1, 1], [1, 1, 0]], baseline=base)
    share, result = pooled("narrowing_share", ctx)
    assert result.parts[0, 2] == pytest.approx(evaluate(METRICS["correct_distance"], base).values[1], abs=1e-12)
    assert not math.isnan(share)


def test_no_fall_and_no_common_prompts_are_missing_for_different_reasons():
    rows = [["red fox", "hens!", "owl"]]
    base = context(rows, [[1, 1, 0]])
    share, result = pooled("narrowing_share", base)
    assert math.isnan(share)
    assert "has not fallen by 5%" in result.reason
    share, result = pooled("narrowing_share", context(rows, [[1, 0, 0]], baseline=base))
    assert math.isnan(share)
    assert "no prompt has two correct" in result.reason


def test_losing_errors_alone_is_benign_and_losing_good_ways_is_not():
    ways, errors = ["by sevens", "on paper"], ["oh my", "???", "no idea!", "owl", "0", "森"]
    base = context([ways * 3 + errors], [[1] * 6 + [0] * 6])
    learnt = context([ways * 6], [[1] * 12], baseline=base)
    narrowed = context([ways[:1] * 6 + errors], [[1] * 6 + [0] * 6], baseline=base)
    # pairs of different ways: 9 of 15 correct pairs at the baseline, 36 of 66 when all are right; all else differs
    assert pooled("narrowing_share", learnt)[0] == pytest.approx((9 / 15 - 36 / 66) / (60 / 66 - 36 / 66), abs=1e-9)
    assert pooled("narrowing_share", narrowed)[0] == pytest.approx((9 / 15) / (9 / 66), abs=1e-9)


def same_first_letter(pairs):
    return np.array([float(a[:1] == b[:1]) for a, b in pairs])


ROW = st.lists(st.tuples(st.sampled_from(["a1", "a2", "b1", "b2", "c1"]), st.sampled_from([0.0, 1.0, math.nan])))


@settings(max_examples=100, deadline=None)
@given(ROW.filter(lambda row: len(row) >= 2))
def test_effective_diversity_equals_its_definition(row):
    texts, quality = [text for text, _ in row], [q for _, q in row]
    ctx = context([texts], [quality], judges=Judges(equivalence=same_first_letter))
    fixed = evaluate(METRICS["effective_semantic_diversity"], ctx)
    pair = evaluate(METRICS["effective_pair_diversity"], ctx)
    judged = [(text, q) for text, q in row if not math.isnan(q)]
    if not judged:
        assert math.isnan(fixed.values[0])
    else:
        assert fixed.values[0] == len({text[0] for text, q in judged if q}) / len(judged)
        assert fixed.details["validity"] == np.mean([q for _, q in judged])
    if len(judged) < 2:
        assert math.isnan(pair.values[0])
        return
    both = [q and r and a[0] != b[0] for (a, q), (b, r) in itertools.combinations(judged, 2)]
    assert pair.values[0] == pytest.approx(np.mean(both), abs=1e-12)


def test_a_pair_without_a_verdict_makes_the_prompt_missing():
    """Unknown is not different: it must not look more diverse."""

    def same(pairs):
        return np.array([math.nan if "?" in a + b else 0.0 for a, b in pairs])

    ctx = context([["a", "?"], ["a", "b"], ["?", "b"]], [[1, 1], [1, 1], [0, 1]], judges=Judges(equivalence=same))
    for name, values in {
        "effective_semantic_diversity": [math.nan, 1.0, 0.5],
        "effective_pair_diversity": [math.nan, 1.0, 0.0],
    }.items():
        result = evaluate(METRICS[name], ctx)
        np.testing.assert_array_equal(result.values, values)
        assert "gave no number" in result.reasons[0]
        assert result.n.tolist() == [0, 2, 2]
        assert result.details["validity"] == 5 / 6


def test_meanings_join_in_chains_and_each_pair_is_asked_for_once():
    asked = []

    def near(pairs):
        asked.extend(pairs)
        return np.array([float(abs(int(a) - int(b)) == 1) for a, b in pairs])

    ctx = context([["1", "3", "2", "9", "9"], ["5", "5"]], [[1] * 5, [1, 1]], judges=Judges(equivalence=near))
    assert evaluate(METRICS["effective_semantic_diversity"], ctx).values.tolist() == [2 / 5, 1 / 2]
    evaluate(METRICS["effective_pair_diversity"], ctx)
    assert sorted(asked) == [("1", "2"), ("1", "3"), ("1", "9"), ("2", "3"), ("2", "9"), ("3", "9")]


@pytest.mark.parametrize(
    ("answers", "quality", "expected"),
    [
        (["7", "7", "8", "9"], [1, 1, 0, 0], 0.5),
        (["7", "7", "8", "8"], [1, 1, 0, 0], -0.5),  # a tie for first place is wrong
        (["8", "8", "8", "7"], [0, 0, 0, 1], -0.25),
        (["7", "7.0", "14/2", "8"], [1, 1, 1, 0], 0.25),  # one number
        (["7"] * 4, [1] * 4, 0.0),
        (["hm", "hm", "7", ""], [0, 0, 1, 0], 0.75),  # those without an answer do not vote
        (["hm", "hm"], [0, 0], math.nan),
    ],
)
def test_majority_gain_on_small_cases(answers, quality, expected):
    row = [answer if answer in ("hm", "") else f"The answer is {answer}." for answer in answers]
    value = evaluate(METRICS["majority_gain"], context([row], [quality])).values[0]
    assert value == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_majority_gain_on_real_solutions():
    """Against a plain count of what follows the last A:, on 1,319 problems with four solutions each."""
    if not GSM8K.exists():
        pytest.skip("the published solutions are not here")
    problems = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    keys = [key for key in problems[0] if key.endswith(("finetuning", "verification"))]
    rows = [[problem[key]["solution"] for key in keys] for problem in problems]
    quality = [[float(problem[key]["is_correct"]) for key in keys] for problem in problems]
    found = evaluate(METRICS["majority_gain"], context(rows, quality))
    gains = []
    for row, right in zip(rows, quality, strict=True):
        said = [text.rsplit("A: ", 1)[1].strip().replace(",", "") if "A: " in text else None for text in row]
        ranked = Counter(answer for answer in said if answer).most_common()
        alone = len(ranked) == 1 or (ranked and ranked[0][1] > ranked[1][1])
        gains.append(float(alone and right[said.index(ranked[0][0])] == 1) - np.mean(right) if ranked else math.nan)
    assert np.nanmean(found.values) == pytest.approx(np.nanmean(gains), abs=0.002)
    assert np.mean(np.isclose(found.values, gains, atol=1e-12, equal_nan=True)) > 0.99
