"""Runs at equal quality: numbers worked out by hand, seeds against scipy, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from divmon.comparing.engine import compare
from divmon.comparing.groups import Group, open_groups
from divmon.errors import ConfigError, HistoryError, SignatureMismatch

NAN = math.nan


def pair(kit, tmp_path, a, b, **rest):
    return [Group("a", (kit.recorded(tmp_path / "a", a, **rest),)), Group("b", (kit.recorded(tmp_path / "b", b),))]


def cells(section):
    return {row.metric: row.estimates for row in section.rows}


def test_two_runs_by_hand(kit, tmp_path):
    # b is slower: at step 20 it has more formats, at equal quality it has no more than a
    a = {"pass_at_1": [0.0, 0.5, 1.0], "effective_formats": [4.0, 3.0, 2.0]}
    b = {"pass_at_1": [0.0, 0.25, 0.5], "effective_formats": [4.0, 3.5, 3.0]}
    [domain] = compare(pair(kit, tmp_path, a, b)).domains
    assert (domain.quality, domain.level, domain.shared) == ("pass_at_1", 0.5, (0.0, 0.5))
    assert domain.matched.steps == ((10.0,), (20.0,))
    [reference, other] = cells(domain.matched)["effective_formats"]
    assert (reference.value, other.value, other.ratio, other.difference) == (3.0, 3.0, 1.0, 0.0)
    assert math.isnan(reference.ratio)
    assert "pass_at_1" not in cells(domain.matched)
    last = cells(domain.last)
    assert list(last) == ["pass_at_1", "effective_formats"]
    assert (last["effective_formats"][1].ratio, last["effective_formats"][1].difference) == (1.5, 1.0)
    [domain] = compare(pair(kit, tmp_path / "at", a, b), level=0.4).domains
    assert domain.matched.steps == ((pytest.approx(8.0),), (pytest.approx(16.0),))
    assert [e.value for e in cells(domain.matched)["effective_formats"]] == pytest.approx([3.2, 3.2])


def seeds(kit, folder, name, values):
    runs = [
        kit.recorded(folder / f"{name}-{i}", {"pass_at_1": [0.0, 0.5, 1.0], "effective_formats": [4.0, 3.0, v]})
        for i, v in enumerate(values)
    ]
    return Group(name, tuple(runs))


def test_seeds_are_paired_in_their_order(kit, tmp_path):
    a, b = [2.0, 2.5, 1.5], [3.0, 3.1, 3.2]
    [domain] = compare([seeds(kit, tmp_path, "a", a), seeds(kit, tmp_path, "b", b)]).domains
    [reference, other] = cells(domain.matched)["effective_formats"]
    assert (reference.value, reference.runs, other.runs) == (2.0, tuple(a), tuple(b))
    assert (other.value, other.ratio, other.difference) == pytest.approx((3.1, 1.55, 1.1))
    assert (other.interval, other.n) == ("paired t", (3,))
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (other.low, other.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_groups_of_different_sizes_get_welch(kit, tmp_path):
    a, b = [2.0, 2.5, 1.5, 2.2], [3.0, 3.4]
    [domain] = compare([seeds(kit, tmp_path, "a", a), seeds(kit, tmp_path, "b", b)]).domains
    other = cells(domain.matched)["effective_formats"][1]
    expected = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert (other.interval, other.n) == ("Welch t", (4, 2))
    assert (other.low, other.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    [domain] = compare([seeds(kit, tmp_path / "c", "a", a), seeds(kit, tmp_path / "c", "b", [3.0])]).domains
    other = cells(domain.matched)["effective_formats"][1]
    assert math.isnan(other.low)
    assert "one run on one side" in other.reason
    [domain] = compare(
        [seeds(kit, tmp_path / "d", "a", [2.0, 2.0]), seeds(kit, tmp_path / "d", "b", [3.0] * 3)]
    ).domains
    other = cells(domain.matched)["effective_formats"][1]
    assert (other.low, other.high) == (1.0, 1.0)


def test_one_seed_each_draws_prompts(kit, tmp_path):
    rng = np.random.default_rng(0)
    before, end = rng.uniform(size=(2, 40))
    b = rng.uniform(size=40)
    b[:4] = NAN  # other prompts than in a have a value
    groups = pair(
        kit, tmp_path,
        {"pass_at_1": [0.0, 0.5, 1.0], "tfidf_distance": [before.tolist()] * 2 + [end.tolist()]},
        {"pass_at_1": [0.0, 0.25, 0.75], "tfidf_distance": [b.tolist()] * 3},
    )  # fmt: skip
    [domain] = compare(groups).domains
    [reference, other] = cells(domain.matched)["tfidf_distance"]
    assert reference.value == pytest.approx((before.mean() + end.mean()) / 2)
    assert other.value == pytest.approx(np.nanmean(b))
    assert (other.interval, other.n) == ("bootstrap over prompts", (40,))
    draws = np.random.default_rng(9).integers(0, 40, size=(20_000, 40))
    changes = np.nanmean(b[draws], axis=1) - (before + end)[draws].mean(axis=1) / 2
    assert (other.low, other.high) == pytest.approx(tuple(np.quantile(changes, [0.025, 0.975])), abs=0.015)
    assert other.low < other.difference < other.high


def test_missing_is_missing(kit, tmp_path):
    groups = pair(
        kit, tmp_path,
        {"pass_at_1": [0.0, 0.5, 1.0], "coverage": [1.0, NAN, 1.0], "length": [1.0, 1.0, 1.0]},
        {"pass_at_1": [0.0, 0.25, 0.75], "coverage": [1.0, 1.0, 1.0], "length": [0.0, 0.0, 0.0]},
    )  # fmt: skip
    [domain] = compare(groups, metrics=["coverage"]).domains
    [reference, other] = cells(domain.matched)["coverage"]
    assert math.isnan(reference.value)
    assert math.isnan(other.difference)
    assert other.value == 1
    assert other.reason == "nothing to measure (step 10 in a)"
    [domain] = compare(list(reversed(groups)), metrics=["length"]).domains
    assert math.isnan(cells(domain.matched)["length"][1].ratio)  # there is no ratio to 0
    assert cells(domain.matched)["length"][1].difference == 1


def test_without_quality_only_the_last_common_step(kit, tmp_path):
    groups = pair(kit, tmp_path, {"tfidf_distance": [0.9, 0.8, 0.7]}, {"tfidf_distance": [0.9, 0.6, 0.5]})
    [domain] = compare(groups).domains
    assert domain.matched is None
    assert domain.reason.startswith("no quality was measured in a, b")
    assert cells(domain.last)["tfidf_distance"][1].difference == pytest.approx(-0.2)
    groups = pair(
        kit, tmp_path / "2", {"tfidf_distance": [0.9, 0.8]}, {"tfidf_distance": [0.9, 0.6, 0.5]}, steps=(0, 15)
    )
    assert compare(groups).domains[0].last.steps == ((0.0,), (0.0,))


def test_quality_of_two_kinds_is_not_matched(kit, tmp_path):
    a = {"pass_at_1": [0.0, 0.5, 1.0], "coverage": [1.0] * 3}
    b = {"mean_quality": [0.0, 0.5, 1.0], "coverage": [1.0] * 3}
    [domain] = compare(pair(kit, tmp_path, a, b)).domains
    assert (domain.quality, domain.matched) == ("", None)
    assert domain.reason.startswith("none of pass_at_1, mean_quality was measured in every run")
    [domain] = compare(pair(kit, tmp_path / "2", a, {"pass_at_1": [NAN] * 3, "coverage": [1.0] * 3})).domains
    assert domain.reason.startswith("no quality was measured in b:")


def test_domains_are_matched_each_by_itself(kit, tmp_path):
    rise = {"pass_at_1": [0.0, 0.4, 0.8], "coverage": [0.2, 0.6, 1.0]}
    groups = []
    for name, other in (("a", rise), ("b", {"pass_at_1": [0.9, 0.95, 1.0], "coverage": [1.0] * 3})):
        history = kit.recorded(tmp_path / name, rise)
        talk = kit.recorded(tmp_path / f"{name}-talk", other, domain="talk")
        for evaluation, more in zip(list(history.evaluations), talk.evaluations, strict=True):
            i = history.evaluations.index(evaluation)
            history.evaluations[i] = replace(evaluation, measurements=evaluation.measurements + more.measurements)
        groups.append(Group(name, (history,)))
    sums, talk = compare(groups).domains
    assert (sums.domain, sums.level) == ("sums", 0.8)
    assert talk.matched is None
    assert talk.reason == "pass_at_1 is 0 to 0.8 in a; 0.9 to 1 in b"
    assert talk.last is not None


def test_mean_quality_where_there_is_no_pass_rate_or_it_is_asked_for(kit, tmp_path):
    both = {"pass_at_1": [0.0, 0.5, 1.0], "mean_quality": [1.0, 2.0, 3.0], "coverage": [1.0, 1.0, 1.0]}
    other = {"mean_quality": [1.0, 1.5, 2.0], "coverage": [1.0, 1.0, 1.0]}
    [domain] = compare(pair(kit, tmp_path, both, other)).domains
    assert (domain.quality, domain.level) == ("mean_quality", 2.0)
    [domain] = compare(pair(kit, tmp_path / "2", both, both), quality="mean_quality").domains
    assert (domain.quality, domain.level) == ("mean_quality", 3.0)


def test_which_metrics(kit, tmp_path):
    series = {"mine/own": [1.0] * 3, "self_bleu": [1.0] * 3, "tfidf_distance": [1.0] * 3, "pass_at_1": [0.1, 0.2, 0.3]}
    groups = pair(kit, tmp_path, series, series)
    rows = [row.metric for row in compare(groups).domains[0].matched.rows]
    assert rows == ["tfidf_distance", "mine/own"]
    rows = [row.metric for row in compare(groups, metrics=["all"]).domains[0].matched.rows]
    assert rows == ["tfidf_distance", "mine/own", "self_bleu"]
    with pytest.raises(ConfigError, match=r"Did you mean 'self_bleu'"):
        compare(groups, metrics=["self_blue"])


def test_series_measured_differently_are_never_mixed(kit, tmp_path):
    series = {"pass_at_1": [0.0, 0.5, 1.0], "coverage": [1.0] * 3}
    for metric, other, said in (
        ("coverage", "agg:mean|k:4|T:1|probes:f00d", r"sums/coverage was measured differently.*k:8 against k:4"),
        ("pass_at_1", "agg:mean|k:8|T:1|probes:beef", "probes:f00d against probes:beef.*the same probes"),
    ):
        folder = tmp_path / metric
        groups = pair(kit, folder, series, series, signatures={metric: kit.SIGNATURE})
        run = kit.recorded(folder / "c", series, signatures={metric: other})
        with pytest.raises(SignatureMismatch, match=said):
            compare([*groups, Group("c", (run,))])
    odd = kit.recorded(tmp_path / "odd", series, signatures={"coverage": "k:4"})
    assert (
        compare([Group("a", groups[0].runs), Group("odd", (odd,))], metrics=["pass_at_1"]).domains[0].matched.rows == ()
    )


def test_what_cannot_be_compared_says_what_to_do(kit, tmp_path):
    low, high = {"pass_at_1": [0.0, 0.1, 0.2]}, {"pass_at_1": [0.5, 0.6, 0.7]}
    groups = pair(kit, tmp_path, low, high)
    with pytest.raises(HistoryError, match=r"0 to 0.2 in a; 0.5 to 0.7 in b\). Train the weaker run longer"):
        compare(groups)
    with pytest.raises(ConfigError, match="name two folders"):
        compare(groups[:1])
    with pytest.raises(ConfigError, match="got nothing"):
        compare([])
    with pytest.raises(HistoryError, match="named twice"):
        compare([groups[0], Group("again", groups[0].runs)])
    with pytest.raises(ConfigError, match=r"All share 0 to 0.2 in sums: choose --at there"):
        compare([groups[0], Group("c", (kit.recorded(tmp_path / "c", low),))], level=0.5)
    other = kit.recorded(tmp_path / "other", low, domain="talk")
    with pytest.raises(SignatureMismatch, match="share no series"):
        compare([groups[0], Group("other", (other,))])
    empty = kit.recorded(tmp_path / "empty", {}, steps=())
    with pytest.raises(HistoryError, match="No evaluation was recorded"):
        compare([groups[0], Group("empty", (empty,))])


def test_groups_are_opened_by_pattern(kit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in (0, 2, 10):
        kit.recorded(tmp_path / f"plain-{i}" / "divmon", {"coverage": [1.0] * 3})
        kit.recorded(tmp_path / f"lever-{i + 1}", {"coverage": [1.0] * 3})
    (tmp_path / "plain-notes.txt").touch()
    kit.recorded(tmp_path / "base", {"coverage": [1.0] * 3})
    groups = open_groups(["base"], ["plain=plain-*", "lever=lever-[0-9]*"])
    assert [group.name for group in groups] == ["base", "plain", "lever"]
    assert [run.path.parent.name for run in groups[1].runs] == ["plain-0", "plain-2", "plain-10"]
    [note] = compare(groups[1:]).notes
    assert note == "lever: runs are paired in their order, though their numbers differ: 0 with 1, 2 with 3, 10 with 11"
    for bad, said in (("plain", "must be NAME=GLOB"), ("x=none-*", "no folder matches 'none-\\*'")):
        with pytest.raises((ConfigError, HistoryError), match=said):
            open_groups([], [bad])
    with pytest.raises(ConfigError, match="Two groups are called 'a'"):
        open_groups([], ["a=plain-0", "a=plain-2"])
    with pytest.raises(HistoryError, match="No divmon run in"):
        open_groups([tmp_path])
