"""Streamed numbers are those of the monitor on the whole batch, whatever the blocks and the order of the lines."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from divmon.config import plan
from divmon.errors import ConfigError, ProbeError
from divmon.measuring import engine, measure
from divmon.metrics import METRICS
from divmon.metrics.base import Metric, Pooled
from divmon.monitor import Monitor
from divmon.samplers.file import batch_from_rows
from divmon.settings import Settings
from divmon.uncertainty import mean_interval


def encoder(texts):
    return np.array([[len(t), t.count("e"), t.count("a"), 1.0] for t in texts])


def nli(pairs):
    raw = np.array([[1 + len(a), 2 + len(b), 1 + abs(len(a) - len(b))] for a, b in pairs], dtype=float).reshape(-1, 3)
    return raw / raw.sum(axis=1, keepdims=True)


NAMES = [name for name, metric in METRICS.items() if not {"nli", "equivalence", "bank", "block"} & metric.needs]
SETTINGS = {"metrics": NAMES, "encoder": encoder}


def observed(*batches, names=NAMES):
    """What the monitor measures on the last of `batches`; the first is its baseline."""
    chosen = plan(Settings.make({"metrics": names, "encoder": encoder, "k": 1 << 20, "alarms": []}))
    monitor = Monitor(chosen.metrics, lenses=chosen.lenses)
    for step, found in enumerate(batches):
        last = monitor.observe(batch_from_rows(found, step=step))
    return {(m.metric, m.domain): m for m in last.measurements}


def agree(results, expected):
    assert {(row.measurement.metric, row.measurement.domain) for row in results.rows} == set(expected)
    for row in results.rows:
        m = row.measurement
        whole = expected[m.metric, m.domain]
        if results.against is None and METRICS[m.metric].compares:
            assert "compares with a baseline" in m.reason  # where the monitor finds its own baseline unchanged
            continue
        assert m.value == pytest.approx(whole.value, abs=1e-12, nan_ok=True), (m.metric, m.domain)
        assert (m.n, math.isnan(m.value)) == (whole.n, whole.reason is not None), (m.metric, m.domain)
        bounded = m.metric in METRICS and math.isfinite(METRICS[m.metric].bounds[1])
        if bounded and math.isfinite(whole.low):  # the bootstrap draws prompts in another order
            width = whole.high - whole.low
            assert abs(m.low - whole.low) <= 0.35 * width + 1e-9, (m.metric, m.domain)
            assert abs(m.high - whole.high) <= 0.35 * width + 1e-9, (m.metric, m.domain)


@pytest.mark.parametrize(("block", "prompts"), [(1, 20), (7, 40), (64, 75)])
def test_blocks_give_what_the_monitor_gives_on_the_whole(make, block, prompts, monkeypatch):
    monkeypatch.setitem(engine.Engine.__init__.__kwdefaults__, "block", block)
    found = make(prompts)
    results = measure(found, **SETTINGS)
    assert results.notes == ()
    agree(results, observed(found))


@pytest.mark.parametrize(("block", "prompts"), [(1, 20), (7, 40), (64, 75), (256, 30)])
def test_blocks_against_a_baseline_give_what_the_monitor_gives(make, block, prompts, monkeypatch):
    monkeypatch.setitem(engine.Engine.__init__.__kwdefaults__, "block", block)
    before, now = make(prompts, seed=1), make(prompts, seed=2, first=5)
    results = measure(now, against=before, **SETTINGS)
    agree(results, observed(before, now))
    assert results.get("format_shift").measurement.value > 0


def test_the_order_of_lines_does_not_matter(make, lines):
    found = lines(make(40))
    shuffled = random.Random(3).sample(found, len(found))
    first, second = (measure(rows, **SETTINGS) for rows in (found, shuffled))
    assert first.source == second.source
    for a, b in zip(first.rows, second.rows, strict=True):
        assert a.measurement.signature == b.measurement.signature
        for name in ("value", "low", "high"):
            assert getattr(a.measurement, name) == pytest.approx(getattr(b.measurement, name), abs=1e-12, nan_ok=True)


def test_many_prompts_have_exact_values_and_like_intervals(make):
    found = make(1500, k=2)
    names = ["unique_fraction", "pass_at_1", "effective_formats", "tail_share", "tfidf_distance"]
    results = measure(found, metrics=names)
    expected = observed(found, names=names)
    agree(results, expected)
    kinds = {row.measurement.metric: row.interval for row in results.rows}
    assert kinds["pass_at_1"] == "normal"
    assert kinds["effective_formats"] == "bootstrap"
    for row in results.rows:  # 512 bundles of prompts say as much as the prompts
        whole = expected[row.measurement.metric, row.measurement.domain]
        width = whole.high - whole.low
        assert row.measurement.high - row.measurement.low == pytest.approx(width, rel=0.15)


def test_changes_are_paired_by_prompt_where_both_have_it(make):
    before, now = make(60, seed=1), make(60, seed=2, first=20)
    names = ["self_bleu", "effective_formats"]
    results = measure(now, against=before, metrics=names)
    base, later = batch_from_rows(before), batch_from_rows(now)
    chosen = plan(Settings.make({"metrics": names, "k": 9, "alarms": []}))
    [values] = [
        np.array(m.values)
        for m in Monitor(chosen.metrics).observe(later).measurements
        if (m.metric, m.domain) == ("self_bleu", "all")
    ]
    [earlier] = [
        np.array(m.values)
        for m in Monitor(chosen.metrics).observe(base).measurements
        if (m.metric, m.domain) == ("self_bleu", "all")
    ]
    moved = values[:40] - earlier[20:]
    change = results.get("self_bleu").change
    assert change.value == pytest.approx(moved.mean(), abs=1e-12)
    assert change.baseline == pytest.approx(earlier.mean(), abs=1e-12)
    assert (change.n, change.pairing, change.interval) == (40, "paired", "bootstrap")
    low, high = mean_interval(moved)
    assert change.low == pytest.approx(low, abs=0.2 * (high - low))
    common = observed(before[20:], names=names), observed(now[:40], names=names)
    formats = results.get("effective_formats").change
    expected = common[1]["effective_formats", "all"].value - common[0]["effective_formats", "all"].value
    assert formats.value == pytest.approx(expected, abs=1e-12)
    assert (formats.n, formats.pairing) == (40, "paired")
    assert formats.low < formats.value < formats.high


def test_a_file_against_itself_has_not_changed(make):
    results = measure(make(30), against=make(30), **SETTINGS)
    for row in results.rows:
        if not math.isnan(row.measurement.value):
            assert (row.change.value, row.change.pairing) == (0.0, "paired"), row
            if math.isfinite(row.change.low):
                assert (row.change.low, row.change.high) == (0.0, 0.0)


def test_other_prompts_are_compared_unpaired(make):
    before, now = make(40, seed=1), make(60, seed=2, first=1000)
    names = ["self_bleu", "effective_formats"]
    results = measure(now, against=before, metrics=names)
    old, new = observed(before, names=names), observed(now, names=names)
    for name in names:
        change = results.get(name).change
        expected = new[name, "all"].value - old[name, "all"].value
        assert change.value == pytest.approx(expected, abs=1e-12)
        assert (change.pairing, change.n) == ("unpaired", 40)
        assert change.low < change.value < change.high
    ends = old["self_bleu", "all"], new["self_bleu", "all"]
    width = math.hypot(*(m.high - m.low for m in ends))  # independent errors add in squares
    change = results.get("self_bleu").change
    assert change.high - change.low == pytest.approx(width, rel=0.15)
    assert "unpaired" in results.table()


def test_a_domain_the_baseline_does_not_have(make):
    now = [{**row, "domain": "new"} for row in make(8)]
    [row] = measure(now, against=make(8), metrics=["self_bleu"]).rows
    assert math.isnan(row.change.value)
    assert row.change.reason == "the baseline has no domain 'new'"


def test_groups_are_measured_each_by_itself_in_the_order_of_their_numbers(make, lines):
    steps = {step: make(12, seed=step) for step in (100, 9, 20)}
    found = [{**row, "step": step} for step, group in steps.items() for row in lines(group)]
    random.Random(0).shuffle(found)
    names = ["self_bleu", "effective_formats", "pass_at_1"]
    results = measure(found, group_by=["step"], metrics=names)
    bleu = [r.group for r in results.rows if (r.measurement.metric, r.measurement.domain) == ("self_bleu", "all")]
    assert bleu == [("9",), ("20",), ("100",)]
    for step, group in steps.items():
        for (name, domain), whole in observed(group, names=names).items():
            m = results.get(name, domain, (str(step),)).measurement
            assert m.value == pytest.approx(whole.value, abs=1e-12)
            assert m.n == whole.n
    assert results.source.prompts == 12
    assert [line.split()[1] for line in results.table().splitlines() if line.startswith("self_bleu")][::3] == [
        "9", "20", "100",
    ]  # fmt: skip


def test_groups_share_one_idf_and_one_baseline(make):
    found = [{**row, "step": step} for step in (1, 2) for row in make(10)]
    alone = measure(make(10), metrics=["tfidf_distance"]).get("tfidf_distance").measurement
    for row in measure(found, group_by=["step"], against=make(10), metrics=["tfidf_distance"]).rows:
        assert row.change.value == 0
        assert "idf_from:baseline" in row.measurement.signature
    assert "idf_from:file" in alone.signature


def longest(batch, context):
    """Pooled, and not a function of the sum of its parts."""
    parts = np.array([[max(map(len, row))] for row in batch.texts], dtype=float)
    return Pooled(parts, lambda columns: columns[..., 0].max(axis=-1))


def test_a_statistic_whose_parts_do_not_add_up_is_measured_on_a_named_sample(make):
    metric = Metric("longest", longest, "x.", "user", "neutral", (0, math.inf), scope="pooled", min_k=1)
    for prompts in (200, 700):
        found = [{**row, "domain": "one"} for row in make(prompts)]
        [row] = measure(found, metrics=[metric], against=found).rows
        whole = max(len(text) for row in found for text in row["completions"])
        sampled = "prompts:first 512 by hash" in row.measurement.signature
        assert (sampled, row.measurement.n) == (prompts > 512, min(prompts, 512))
        assert row.measurement.value == whole if not sampled else row.measurement.value <= whole
        assert row.change.value == 0


def test_a_metric_that_fails_is_missing_and_said(make):
    def broken(texts):
        raise RuntimeError("no luck")

    results = measure(make(6), metrics=[broken, "length"])
    row = results.get("broken")
    assert row.measurement.reason == "the metric failed with RuntimeError('no luck')"
    assert results.notes == ("broken failed with RuntimeError('no luck')",)
    assert results.get("length").measurement.value > 0


def test_two_judges_are_said(make):
    before = [{k: v for k, v in row.items() if k != "rewards"} | {"gold": "3"} for row in make(6)]
    results = measure(make(6), against=before, metrics=["pass_at_1"])
    assert results.notes == (
        "file and baseline are judged by 'rewards' and 'gold': changes of quality compare two judges",
    )


def test_reward_columns_that_are_named_judge(make):
    found = [{"prompt": str(i), "completion": "x", "a": 0.25, "b": 1.0, "reward": 9.0} for i in range(5)]
    results = measure(found, metrics=["mean_quality"], reward_columns=["a", "b"])
    assert results.get("mean_quality").measurement.value == 1.25
    assert results.source.quality == "a+b"
    assert "quality:a+b@0.5" in results.get("mean_quality").measurement.signature


def test_everything_is_json(make):
    import json

    results = measure(make(6), against=make(6, seed=1), metrics=["self_bleu", "token_entropy"], group_by=["difficulty"])
    found = json.loads(json.dumps(results.to_json(), allow_nan=False))
    assert found["group_by"] == ["difficulty"]
    first, last = found["measurements"][0], found["measurements"][-1]
    assert first["group"] == {"difficulty": "1"}
    assert {"value", "low", "high", "n", "signature", "reason", "interval", "change", "domain", "metric"} <= set(first)
    assert last["value"] is None
    assert last["reason"] == "token entropies are unknown for these completions"
    assert "not measured: token_entropy (token entropies are unknown" in results.table()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"group_by": "step"}, ConfigError, r"group_by must be a list"),
        (
            {"group_by": ["stepp"]},
            ProbeError,
            r"rows, line 1: no column 'stepp' to group by; there are \['completions'",
        ),
        ({"reward_columns": ["won"]}, ProbeError, r"rows, line 1: no column 'won' to read rewards from"),
        ({"metrics": ["self_blue"]}, ConfigError, "Did you mean 'self_bleu'"),
        ({"every": 3}, ConfigError, "every is for a trainer"),
        ({"metric": ["x"]}, ConfigError, "Unknown setting 'metric'. Did you mean 'metrics'"),
    ],
)
def test_what_cannot_work_is_said(make, options, error, message):
    with pytest.raises(error, match=message):
        measure(make(3), **options)
    with pytest.raises(ProbeError, match="no completions: the file or list is empty"):
        measure([])


def test_parts_that_claim_to_add_up_do(make):
    from divmon.metrics.base import MetricContext, evaluate

    base = batch_from_rows(make(24, seed=1))
    now = batch_from_rows(make(24, seed=2))
    reference = MetricContext(base, quality=base.rewards, encoder=encoder)
    context = MetricContext(now, quality=now.rewards, encoder=encoder, baseline=reference)
    additive = 0
    for name in NAMES:
        result = evaluate(METRICS[name], context)
        if not isinstance(result, Pooled) or not result.additive:
            continue
        additive += 1
        bundles = result.parts.reshape(8, 3, -1).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            assert float(result.combine(bundles)) == pytest.approx(float(result.combine(result.parts)), nan_ok=True), (
                name
            )
    assert additive >= 8


def test_formats_are_discovered_once_on_the_reference(make, monkeypatch):
    monkeypatch.setitem(engine.Engine.__init__.__kwdefaults__, "block", 7)
    found = [{**row, "completions": [f"Verdict -> {text}" for text in row["completions"]]} for row in make(30)]
    names = ["format_dominance", "format_shift", "effective_formats"]
    for before in (None, make(30)):
        results = measure(found, against=before, metrics=names, formats="discover")
        chosen = plan(Settings.make({"metrics": names, "formats": "discover", "k": 9, "alarms": []}))
        monitor = Monitor(chosen.metrics, lenses=chosen.lenses)
        for rows in (before, found) if before else (found,):
            last = monitor.observe(batch_from_rows(rows))
        agree(results, {(m.metric, m.domain): m for m in last.measurements})


def test_a_user_s_formats_may_come_to_light_block_by_block(make, monkeypatch):
    monkeypatch.setitem(engine.Engine.__init__.__kwdefaults__, "block", 3)
    found = make(30)

    def initial(text):
        return text.strip()[:2] or "none"

    names = ["format_dominance", "effective_formats", "winner_gap"]
    chosen = plan(Settings.make({"metrics": names, "formats": initial, "k": 9, "alarms": []}))
    last = Monitor(chosen.metrics, lenses=chosen.lenses).observe(batch_from_rows(found))
    results = measure(found, metrics=names, formats=initial)
    agree(results, {(m.metric, m.domain): m for m in last.measurements})
    whole = {(m.metric, m.domain): m for m in last.measurements}["format_dominance", "all"]
    assert results.get("format_dominance").measurement.details["shares"] == pytest.approx(whole.details["shares"])


def test_what_compares_with_a_baseline_says_nothing_without_one(make):
    named = ["format_shift", "tail_shift", "tail_kl", "tail_ratio", "support_net", "rare_retained", "long_tail"]
    for row in measure(make(6), metrics=named).rows:
        assert math.isnan(row.measurement.value)
        assert "compares with a baseline" in row.measurement.reason
    assert measure(make(6), against=make(6), metrics=["format_shift"]).get("format_shift").measurement.value == 0


def test_no_common_prompt_fails_nothing_and_is_said(make):
    results = measure(make(6), against=make(6, first=6), metrics=["format_dominance", "effective_formats"])
    assert results.get("format_dominance").change.pairing == "unpaired"
    [note] = results.notes
    assert note.startswith("no prompt (domain and text) of the file is in the baseline")


def test_a_different_k_is_said_and_stands_in_the_signature_of_its_group(make):
    few, many = make(4, k=2), make(4, k=5)
    [note] = measure(few, against=many, metrics=["distinct_1"]).notes
    assert "K differs between file and baseline (2, 5)" in note
    steps = [{**row, "step": step} for step, found in enumerate((few, many)) for row in found]
    results = measure(steps, group_by=["step"], metrics=["distinct_1"])
    assert "K differs between groups (2, 5)" in results.notes[0]
    signatures = [results.get("distinct_1", group=(step,)).measurement.signature for step in "01"]
    assert "|k:2|" in signatures[0]
    assert "|k:5|" in signatures[1]
    assert not measure(few, against=few, metrics=["distinct_1"]).notes


def test_disputed_gold_answers_are_said():
    rows = [{"prompt": "2 + 2?", "completion": "4", "gold": gold} for gold in ("4", "5")]
    assert "1 of the prompts of the file have another gold answer" in measure(rows, metrics=["pass_at_1"]).notes[0]
    assert not measure(rows[:1] * 2, metrics=["pass_at_1"]).notes


def test_nothing_stays_behind_when_the_process_is_killed(tmp_path, make):
    code = "import itertools, sys, divmon; row = {'prompt': 'p', 'completions': ['a', 'b']}\n"
    code += "divmon.measure(print('reading', flush=True) or row if i == 9999 else row for i in itertools.count())"
    there = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=there, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"reading\n"
        process.kill()
    assert os.name != "posix" or not list(tmp_path.iterdir())
