"""Percentages of the base and stage attribution: the published tables, brute force, and what is missing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import divmon
from divmon.errors import ConfigError
from divmon.metrics.base import Metric, from_function
from divmon.tracing.attribution import AGGREGATORS, attribute, branches, percent_of_base
from divmon.tracing.numbers import drawn_rows
from divmon.tracing.splitting import Distances, split

TABLES = Path(__file__).parents[2].parent / "shared" / "oracles" / "tables"
PARENTS = {
    "Base": None,
    "Think-SFT": "Base",
    "Think-DPO": "Think-SFT",
    "Think": "Think-DPO",
    "Instruct-SFT": "Base",
    "Instruct-DPO": "Instruct-SFT",
    "Instruct": "Instruct-DPO",
}
# percent of the base, to the precision of the publication (mean of ratios) and of the recomputed other aggregator
PUBLISHED = {
    "mean of ratios": {"Think": (-62, -4, 4, 38), "Instruct": (-38, -23, -5, 34)},
    "ratio of means": {"Think": (-62.9, -5.0, 4.1, 36.2), "Instruct": (-41.3, -22.0, -3.4, 33.3)},
}
RL_ZERO = {"mean of ratios": 93, "ratio of means": 93.3}


def table(name):
    path = TABLES / name
    if not path.exists():
        pytest.skip("the published table is not here")
    return json.loads(path.read_text())


def lineage_of(values):
    variants = [name for name in values if name.startswith("RL-Zero")]
    parents = {**PARENTS, **dict.fromkeys(variants, "Base")}
    return parents, variants


def rounded(value, aggregator):
    return round(value) if aggregator == "mean of ratios" else round(value, 1)


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_the_published_stages_come_back(aggregator):
    values = table("olmo3_semantic_distance.json")["values"]
    parents, variants = lineage_of(values)
    rows = {name: values[name] for name in parents}
    found = {s.name: s for s in attribute(rows, parents, aggregator=aggregator, groups={"RL-Zero": variants})}
    check(found, aggregator)


def check(found, aggregator):
    for name, (sft, dpo, rl, retained) in PUBLISHED[aggregator].items():
        stages = [found[f"{name}-SFT"], found[f"{name}-DPO"], found[name]]
        changes = [rounded(stage.change, aggregator) for stage in stages]
        assert changes == [sft, dpo, rl]
        # 34.46 is printed as 34
        assert rounded(found[name].retained, aggregator) == retained or found[name].retained == pytest.approx(
            37.5, abs=0.05
        )
        assert sum(stage.change for stage in stages) == pytest.approx(found[name].retained - 100, abs=1e-9)
    assert rounded(found["RL-Zero"].retained, aggregator) == RL_ZERO[aggregator]


def test_the_published_tables_come_back_through_a_whole_trace(told, read_number, tmp_path):
    """Completions that are the numbers of the table, one task a domain, a metric that reads them, YAML and groups."""
    values = table("olmo3_semantic_distance.json")["values"]
    parents, variants = lineage_of(values)
    lines = ["checkpoints:"]
    for name in parents:
        group = ", group: RL-Zero" if name in variants else ""
        above = f", parent: {parents[name]}" if parents[name] else ""
        lines.append(f"  {name}: {{source: allenai/{name}{above}{group}}}")
    (tmp_path / "lineage.yaml").write_text("\n".join(lines))
    probes = [{"id": task, "prompt": task, "domain": task} for task in values["Base"]]
    metric = from_function(read_number, name="distance")
    found = divmon.trace(
        tmp_path / "lineage.yaml", probes, out=tmp_path / "out", draw=told(values), metrics=[metric], k=2
    )
    assert not found.failed
    for aggregator in AGGREGATORS:
        series = found.get("distance", aggregator=aggregator)
        assert series.tasks == 15
        check({stage.name: stage for stage in series.stages}, aggregator)
    # one task by itself: Table 18's TL;DR row of Think
    stages = {s.name: s for s in found.get("distance", "TLDR").stages}
    assert [round(stages[n].change) for n in ("Think-SFT", "Think-DPO", "Think")] == [-52, -3, 1]
    assert round(stages["Think"].retained) == 46


@pytest.mark.parametrize("lineage", ["Think", "Instruct"])
def test_the_split_of_the_published_distances(lineage):
    """The shares that `tests/metrics/test_conditioned.py` holds `decompose` to, through the split of a stage."""
    values = table("olmo3_quality_filtered.json")["values"]
    wanted = table("olmo3_quality_filtered.json")["expected_narrowing_share_percent"].get(lineage, {})
    for task, share in wanted.items():
        sides = [
            Distances(*(np.full(8, values[name][task][d]) for d in ("d_all", "d_correct")))
            for name in ("Base", lineage)
        ]
        [found] = split("semantic_distance", (("Base", sides[0]), (lineage, sides[1])), [(task, np.arange(8))])
        assert round(100 * found.narrowing, 1) == share
        assert found.narrowing + found.benign == pytest.approx(1, abs=1e-12)
        assert found.low == pytest.approx(found.narrowing, abs=1e-9)


def test_percentages_are_what_their_definitions_say():
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 1, size=(4, 5))
    ratios = [np.mean([100 * values[c, t] / values[0, t] for t in range(5)]) for c in range(4)]
    means = [100 * sum(values[c]) / sum(values[0]) for c in range(4)]
    np.testing.assert_allclose(percent_of_base(values, 0, "mean of ratios"), ratios, rtol=1e-12)
    np.testing.assert_allclose(percent_of_base(values, 0, "ratio of means"), means, rtol=1e-12)
    several = np.stack([values, 2 * values])
    np.testing.assert_allclose(percent_of_base(several, 0, "mean of ratios")[1], ratios, rtol=1e-12)


def test_a_task_without_anything_in_the_base_has_no_ratio_and_a_missing_number_is_missing():
    values = np.array([[0.0, 0.5], [0.4, 0.25], [math.nan, 0.5]])
    np.testing.assert_allclose(percent_of_base(values, 0, "mean of ratios")[:2], [100, 50])
    np.testing.assert_allclose(percent_of_base(values, 0, "ratio of means")[:2], [100, 130])
    assert math.isnan(percent_of_base(values, 0, "ratio of means")[2])
    assert np.isnan(percent_of_base(np.zeros((2, 3)), 0, "mean of ratios")).all()


def test_trees_that_cannot_be():
    table = {"a": {"t": 1.0}, "b": {"t": 0.5}}
    with pytest.raises(ConfigError, match=r"Unknown parent of 'b' 'A'\. Known: a, b"):
        attribute(table, {"a": None, "b": "A"})
    with pytest.raises(ConfigError, match="there are: 'a', 'b'"):
        attribute(table, {"a": None, "b": None})
    with pytest.raises(ConfigError, match="circle"):
        attribute({**table, "c": {"t": 1.0}}, {"a": None, "b": "c", "c": "b"})
    with pytest.raises(ConfigError, match="No task"):
        attribute({"a": {"t": 1.0}, "b": {"u": 0.5}}, {"a": None, "b": "a"})
    with pytest.raises(ConfigError, match="Did you mean 'mean of ratios'"):
        attribute(table, {"a": None, "b": "a"}, aggregator="mean of ratio")


def traced(told, table, tmp_path, read_number, *, direction="higher", lineage=None, **more):
    metric = Metric("score", from_function(read_number, name="score").fn, "A score.", "user", direction, min_k=1)
    names = next(iter(table.values()))
    probes = [{"id": name, "prompt": name, "domain": name[0]} for name in names]
    lineage = lineage or {name: name for name in table}
    return divmon.trace(lineage, probes, out=tmp_path, draw=told(table), metrics=[metric], k=2, **more)


def made(seed, means, n=12):
    """A table of prompts ``a0`` ... and ``b0`` ... with one spread and a mean for each checkpoint."""
    rng = np.random.default_rng(seed)
    ids = [f"{d}{i}" for d in "ab" for i in range(n)]
    spread = rng.normal(0, 0.05, len(ids))
    return {
        name: {p: float(mean + s + e) for p, s, e in zip(ids, spread, rng.normal(0, 0.01, len(ids)), strict=True)}
        for name, mean in means.items()
    }


def test_intervals_are_those_of_the_bootstrap_by_hand(told, read_number, tmp_path):
    rows = made(1, {"base": 0.8, "sft": 0.4, "rl": 0.5})
    found = traced(told, rows, tmp_path, read_number)
    values = np.array([list(row.values()) for row in rows.values()]).reshape(3, 2, 12)
    draws = []
    for r in range(1000):
        means = np.stack([values[:, d, drawn_rows(12, d)[r]].mean(axis=1) for d in range(2)], axis=1)
        draws.append([100 * np.mean(means[c] / means[0]) for c in range(3)])
    draws = np.array(draws)
    rl = found.get("score").stage("rl")
    point = values.mean(axis=2)
    assert rl.retained == pytest.approx(100 * np.mean(point[2] / point[0]), abs=1e-9)
    np.testing.assert_allclose([rl.retained_low, rl.retained_high], np.quantile(draws[:, 2], [0.025, 0.975]), rtol=1e-9)
    change = np.quantile(draws[:, 2] - draws[:, 1], [0.025, 0.975])
    np.testing.assert_allclose([rl.change_low, rl.change_high], change, rtol=1e-9)
    prompts = traced(told, rows, tmp_path, read_number, per="prompt").get("score")
    assert (prompts.per, prompts.tasks) == ("prompt", 24)
    flat = values.reshape(3, 24)
    assert prompts.stage("rl").retained == pytest.approx(100 * np.mean(flat[2] / flat[0]), abs=1e-9)
    assert prompts.stage("rl").retained_low < prompts.stage("rl").retained < prompts.stage("rl").retained_high


def test_the_stage_that_lost_is_named_in_every_branch_and_nothing_where_nothing_was_lost(told, read_number, tmp_path):
    rows = made(2, {"base": 0.8, "sft": 0.4, "dpo": 0.39, "zero": 0.8, "late": 0.2})
    lineage = {"base": "b", "sft": "s", "dpo": "d", "zero": {"source": "z", "parent": "base"}, "late": "l"}
    found = traced(told, rows, tmp_path, read_number, lineage=lineage)
    assert found.branches == (("base", "sft", "dpo"), ("base", "zero", "late"))
    first, second = found.get("score").blames
    assert (first.stage, second.stage) == ("sft", "late")
    assert first.lost == pytest.approx(50, abs=3)
    assert first.share > 0.95
    assert first.sure == second.sure == 1.0
    assert "base → sft → dpo: sft lost most" in found.table()
    flat = traced(told, made(3, {"base": 0.8, "sft": 0.8}), tmp_path / "flat", read_number)
    assert [blame.stage for blame in flat.get("score").blames] == [""]
    assert "no stage clearly lost diversity" in flat.table()
    lower = traced(told, made(4, {"base": 0.4, "sft": 0.9}), tmp_path / "up", read_number, direction="lower")
    assert lower.get("score").blames[0].stage == "sft"
    neutral = traced(told, made(4, {"base": 0.4, "sft": 0.9}), tmp_path / "up", read_number, direction="neutral")
    assert neutral.get("score").blames == ()


def test_numbers_rest_on_the_prompts_that_every_checkpoint_has(told, read_number, tmp_path):
    rows = made(5, {"base": 0.8, "sft": 0.4})
    rows["sft"]["a0"] = math.nan
    rows["base"]["a1"] = 99.0
    rows["sft"]["a1"] = math.nan
    found = traced(told, rows, tmp_path, read_number)
    measured = next(m for m in found.values["base"] if m.domain == "a")
    kept = [rows["base"][p] for p in rows["base"] if p.startswith("a") and p not in ("a0", "a1")]
    assert (measured.n, measured.value) == (10, pytest.approx(np.mean(kept), abs=1e-12))
    for p in rows["sft"]:
        rows["sft"][p] = math.nan
    gone = traced(told, rows, tmp_path / "gone", read_number)
    assert gone.value("base", "score", "a") > 0
    assert math.isnan(gone.get("score").stage("sft").retained)
    assert next(m for m in gone.values["sft"]).reason == "score returned NaN"


def test_branches():
    parents = {"base": None, "a": "base", "b": "a", "c": "base"}
    assert branches(list(parents), parents) == [("base", "a", "b"), ("base", "c")]
