"""Completions in, observations out: the numbers are right, and what fails stops nothing else (law 7)."""

import errno
import math
import os
from dataclasses import replace

import numpy as np
import pytest

from divmon.alarms import Rule
from divmon.errors import HistoryError, SignatureMismatch
from divmon.health import Health
from divmon.history import History
from divmon.metrics import METRICS, Metric, PerPrompt, Pooled, from_function, resolve
from divmon.monitor import Lenses, Monitor, replay, summarise
from divmon.plain import to_json
from divmon.records import Action, Decoding, Probe, SampleBatch
from divmon.uncertainty import mean_interval

PROBES = tuple(
    Probe(
        f"p{i}", f"{i}+1?", domain="sums" if i < 6 else "talk", gold=str(i + 1) if i < 6 else None, difficulty=1 + i % 3
    )
    for i in range(9)
)
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def made(step, *, k=4, spread=8, probes=PROBES):
    """Completions of at most `spread` different words; half of the gold answers are right."""
    rng = np.random.default_rng([step, spread])

    def text(i):
        shape = rng.integers(0, min(3, spread))
        words = [WORDS[j] for j in rng.integers(0, spread, 5)]
        answer = f"The answer is {i + rng.integers(1, 3)}."
        return [" ".join([*words, answer]), "- " + "\n- ".join([*words, answer]), f"# {words[0]}\n{answer}"][shape]

    return SampleBatch(
        step,
        probes,
        tuple(tuple(text(i) for _ in range(k)) for i in range(len(probes))),
        entropies=tuple(tuple(rng.random(3) for _ in range(k)) for _ in probes),
        decoding=Decoding(),
        fingerprint="f00",
    )


def words(texts):
    return float(np.mean([len(text.split()) for text in texts]))


def broken(texts):
    raise ZeroDivisionError("my metric broke")


def plain(records):
    """As text, where NaN equals NaN, and without the timings."""
    return [repr(to_json(record)) for record in records]


def names(*found):
    return tuple(resolve(name) for name in found)


def total(parts):
    return parts[..., 0].sum(axis=-1) / parts[..., 1].sum(axis=-1)


POOLED = Metric(
    "chars", lambda batch, _: Pooled(np.array([[sum(map(len, row)), len(row)] for row in batch.texts], float), total),
    "Mean length.", "user", "neutral", scope="pooled", signature="unit:chars",
)  # fmt: skip


def test_numbers_by_hand():
    batch = made(5)
    seen = Monitor((from_function(words), POOLED)).observe(batch, health={"sample_seconds": 2.0})
    assert [(m.metric, m.domain, m.n) for m in seen.measurements] == [
        ("words", "sums", 6), ("words", "talk", 3), ("words", "all", 9),
        ("chars", "sums", 6), ("chars", "talk", 3), ("chars", "all", 9),
    ]  # fmt: skip
    for domain, rows in (("sums", range(6)), ("talk", range(6, 9)), ("all", range(9))):
        one, two = seen.get("words", domain), seen.get("chars", domain)
        each = [words(batch.texts[i]) for i in rows]
        assert one.value == pytest.approx(sum(each) / len(each), rel=1e-15)
        assert one.values == tuple(each)
        assert two.value == np.mean([len(text) for i in rows for text in batch.texts[i]])
        assert two.values == ()
        expected = mean_interval(np.array(each))
        assert (one.low, one.high) == expected or (domain == "talk" and math.isnan(one.low))
        assert math.isnan(two.low) == (domain == "talk")
        assert domain == "talk" or two.low < two.value < two.high
        assert one.reason is two.reason is None
    assert seen.get("words", "sums").signature == f"agg:mean|{batch.signature}"
    assert seen.get("chars", "sums").signature == f"unit:chars|agg:pooled|{batch.signature}"
    assert (seen.step, seen.batch, seen.baseline) == (5, batch, batch)
    assert seen.health["sample_seconds"] == 2.0
    assert seen.health["measure_seconds"] > 0
    assert seen.health["metric_failures"] == 0


def test_intervals_may_be_left_out():
    with_, without = (Monitor((from_function(words), POOLED), intervals=on).observe(made(0)) for on in (True, False))
    assert all(math.isnan(m.low) and math.isnan(m.high) for m in without.measurements)
    blank = {"low": math.nan, "high": math.nan}
    assert plain(replace(m, **blank) for m in with_.measurements) == plain(without.measurements)


def test_one_domain_has_no_overall_numbers():
    seen = Monitor(names("length")).observe(made(0, probes=PROBES[:3]))
    assert [m.domain for m in seen.measurements] == ["sums"]


def test_what_numbers_were_measured_through_goes_into_their_signature():
    def judge(probe, text):
        return 1.0

    lenses = Lenses(quality=judge, judge="judge", correct_at=0.25, encoder=lambda texts: np.ones((len(texts), 1)),
                    encoder_name="ones", classifier_name="mine")  # fmt: skip
    chosen = names("semantic_distance", "pass_at_1", "format_dominance", "winner_gap")
    seen = Monitor(chosen, lenses=lenses).observe(made(0))
    for metric, part in zip(
        chosen,
        ("|encoder:ones|", "quality:judge@0.25|", "formats:mine|", "formats:mine|quality:judge@0.25|"),
        strict=True,
    ):
        assert part in "|" + seen.get(metric.name).signature
    assert "quality" not in seen.get("format_dominance").signature


def test_the_first_batch_is_the_baseline():
    monitor = Monitor(names("format_shift", "tfidf_distance"))
    first, second = made(0), made(1, spread=2)
    assert monitor.observe(first).get("format_shift", "sums").value == 0
    seen = monitor.observe(second)
    assert seen.baseline is first
    assert seen.get("format_shift", "sums").value > 0
    alone = Monitor(names("tfidf_distance")).observe(second)
    assert seen.get("tfidf_distance", "sums").value != alone.get("tfidf_distance", "sums").value  # another idf


def bad_pooled(**parts):
    fixed = {"parts": np.ones((len(PROBES), 1)), "combine": lambda p: p.mean(axis=(-2, -1)), **parts}
    return Metric("bad", lambda batch, context: Pooled(**fixed), "?", "user", "neutral", scope="pooled")


def bad(result):
    return Metric("bad", lambda batch, context: result, "?", "user", "neutral", min_k=1)


def divide(parts):
    raise ZeroDivisionError("my statistic broke")


NINE = np.ones(len(PROBES))


@pytest.mark.parametrize(
    "metric",
    [
        replace(from_function(broken), name="bad"),
        bad_pooled(combine=divide),
        bad_pooled(combine=lambda parts: "many"),
        bad_pooled(details=divide),
        bad_pooled(parts=np.ones((2, 1))),
        bad(0.5),
        bad(None),
        bad(PerPrompt(NINE[:4], NINE[:4], (None,) * 4)),
        bad(PerPrompt([1.0] * 9, NINE, (None,) * 9)),
        bad(PerPrompt(NINE * math.nan, NINE, ())),
    ],
)
def test_a_metric_that_fails_stops_no_other(metric, caplog):
    monitor = Monitor((METRICS["length"], metric, METRICS["self_bleu"]))
    for step in range(3):
        seen = monitor.observe(made(step))
        for domain in ("sums", "talk", "all"):
            measured = seen.get("bad", domain)
            assert math.isnan(measured.value)
            assert measured.reason == "the metric failed; see divmon/health/metric_failures"
            assert math.isfinite(seen.get("self_bleu", domain).value)
            assert math.isfinite(seen.get("length", domain).value)
        assert seen.health["metric_failures"] == step + 1
    assert [r.getMessage().split(" failed")[0] for r in caplog.records] == ["divmon: metric 'bad'"]


def test_a_metric_that_fails_once_and_works_again_is_one_series(tmp_path):
    def shaky(texts):
        if "fail" in texts[0]:
            raise ValueError("not today")
        return 1.0

    history = History.create(tmp_path, probes=PROBES)
    rule = Rule("low", metric="shaky", rule="below", level=0.5, for_=1)
    monitor = Monitor((from_function(shaky), METRICS["length"]), rules=[rule], history=history)
    for step, word in enumerate(("fail", "fine", "fail", "fine")):
        monitor.observe(replace(made(step), texts=((word,) * 4,) * 9))
    assert np.isnan(history.series("shaky", "sums").values).tolist() == [True, False, True, False]
    assert history.series("shaky", "sums").signature == f"agg:mean|{made(0).signature}"
    assert monitor.health.failures == {**Health().failures, "metric": 2}
    assert same_history(tmp_path, history)


def same_history(path, history):
    return repr(History.read(path).evaluations) == repr(history.evaluations)


def test_a_metric_whose_needs_come_late_is_one_series(tmp_path):
    monitor = Monitor(names("token_entropy", "pass_at_1"), history=History.create(tmp_path, probes=PROBES))
    for step in range(4):
        monitor.observe(replace(made(step), entropies=None) if step % 2 else made(step))
    curve = History.read(tmp_path).series("token_entropy", "sums")
    assert np.isnan(curve.values).tolist() == [False, True, False, True]
    assert not any(monitor.health.failures.values())


def test_infinite_values_that_have_no_mean_say_so():
    def wild(texts):
        return math.inf if "answer" in texts[0][-20:] and hash(len(texts[0])) % 2 else -math.inf

    values = np.array([math.inf, -math.inf, 1.0])
    with np.errstate(invalid="ignore"):
        found = summarise(PerPrompt(values, np.ones(3), (None,) * 3), np.arange(3))
    assert math.isnan(found.value)
    assert found.reason == "undefined on these completions"
    seen = Monitor([from_function(wild)]).observe(made(0))
    assert all(m.reason or not math.isnan(m.value) for m in seen.measurements)


def test_why_a_value_is_missing():
    reasons = (None, "the first of the domain", "another")
    found = summarise(PerPrompt(np.array([1.0, math.nan, math.nan]), np.ones(3), reasons), np.array([1, 2]))
    assert (found.reason, found.n) == ("the first of the domain", 0)
    found = summarise(PerPrompt(np.array([1.0, math.nan, math.nan]), np.ones(3), reasons), np.arange(3))
    assert (found.value, found.reason, found.n, repr(found.values)) == (1.0, None, 1, "(1.0, nan, nan)")
    nothing = Pooled(np.zeros((3, 2)), total, reason="no words")
    assert summarise(nothing, np.arange(3)).reason == "no words"
    assert math.isnan(summarise(nothing, np.arange(0)).value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("probes", [PROBES, PROBES[:1], PROBES[6:]])
def test_every_metric_gives_a_number_or_a_reason(k, probes):
    monitor = Monitor(tuple(METRICS.values()))
    for step in range(2):
        seen = monitor.observe(made(step, k=k, probes=probes))
        for m in seen.measurements:
            assert math.isnan(m.value) == (m.reason is not None), m
            assert len(m.values) in (0, sum(1 for p in probes if m.domain in ("all", p.domain)))
    assert not any(monitor.health.failures.values())


def test_a_quality_function_that_fails(caplog):
    def judge(probe, text):
        if probe.id == "p0":
            raise KeyError("no key")
        return 1.0

    monitor = Monitor(names("pass_at_1", "length"), lenses=Lenses(quality=judge, judge="judge"))
    for step in range(3):
        seen = monitor.observe(made(step))
        assert seen.get("pass_at_1", "sums").n == 5
        assert math.isnan(seen.get("pass_at_1", "sums").values[0])
    assert monitor.health.failures["quality"] == 3
    assert len([r for r in caplog.records if "quality 'judge' failed" in r.getMessage()]) == 1


def test_rewards_that_failed_are_not_replaced_by_gold_answers():
    monitor = Monitor(names("pass_at_1"), lenses=Lenses(judge="rewards"))
    rewarded = replace(made(0), rewards=((1.0, 0.0, 0.0, 0.0),) * 9)
    assert monitor.observe(rewarded).get("pass_at_1", "sums").value == 0.25
    assert monitor.observe(made(1)).get("pass_at_1", "sums").reason.startswith("no quality")


def test_a_disk_that_fails_is_tried_again(tmp_path, monkeypatch, caplog):
    history = History.create(tmp_path, probes=PROBES)
    monitor, expected = Monitor(names("length"), history=history), Monitor(names("length"))
    real, failing = os.fsync, set()

    def fsync(number):
        if failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr("divmon.history.os.fsync", fsync)
    for step in range(5):
        failing = {1} if step in (1, 2) else set()
        seen = monitor.observe(made(step))
        assert plain(seen.measurements) == plain(expected.observe(made(step)).measurements)
    assert monitor.health.failures["disk"] == 2
    assert len([r for r in caplog.records if "disk" in r.getMessage()]) == 1
    read = History.read(tmp_path)
    assert [e.step for e in read.evaluations] == [0, 1, 2, 3, 4]
    assert [e.health["disk_failures"] for e in read.evaluations] == [0, 0, 1, 2, 2]
    assert read.batch(1).texts == made(1).texts


def critical(*then):
    return Rule("low", metric="words", rule="above", level=0.0, severity="critical", then=then)


def test_a_mitigation_that_fails_stops_no_other(caplog):
    contexts = []

    def explode(event, context):
        raise RuntimeError("my mitigation broke")

    def wrong(event, context):
        return "stop"

    def mine(event, context):
        contexts.append((event, context))
        return Action("save", event.alarm, "because")

    monitor = Monitor([from_function(words)], rules=[critical(explode, wrong, mine, "stop")])
    seen = monitor.observe(made(0))
    assert [a.kind for a in seen.actions] == ["save", "stop"]
    assert monitor.health.failures["mitigation"] == 4  # two of them in two domains
    reported = [r.getMessage() for r in caplog.records]
    assert len([text for text in reported if "'explode'" in text and "my mitigation broke" in text]) == 1
    assert len([text for text in reported if "'wrong'" in text]) == 1
    assert contexts[0][0] == seen.events[0]
    assert contexts[0][1]["measurements"] == seen.measurements


def test_strict_lets_what_fails_through():
    def explode(event, context):
        raise RuntimeError("my mitigation broke")

    def judge(probe, text):
        raise KeyError("no key")

    with pytest.raises(ZeroDivisionError, match="my metric broke"):
        Monitor([from_function(broken)], health=Health(strict=True)).observe(made(0))
    with pytest.raises(RuntimeError, match="my mitigation broke"):
        Monitor([from_function(words)], rules=[critical(explode)], health=Health(strict=True)).observe(made(0))
    with pytest.raises(Exception, match=r"no key|judge"):
        Monitor(names("pass_at_1"), lenses=Lenses(quality=judge, judge="judge"), health=Health(strict=True)).observe(
            made(0)
        )


def test_an_evaluation_without_completions(tmp_path):
    history = History.create(tmp_path, probes=PROBES)
    rules = [Rule("fall", metric="words", rule="drop", by="1%", for_=1, clear_for=1),
             Rule("gone", metric="words", rule="absent", domain="sums", for_=2, then=("save",))]  # fmt: skip
    monitor = Monitor([from_function(words), POOLED], rules=rules, history=history)
    before = monitor.missed(0, health={"sample_seconds": 1.0})
    assert before.measurements == ()
    assert before.states == {"gone/sums": "pending"}
    one = monitor.observe(made(1))
    assert one.states["fall/sums"] == "inactive"
    for step in (2, 3):
        gap = monitor.missed(step)
        assert [(m.key, m.signature) for m in gap.measurements] == [(m.key, m.signature) for m in one.measurements]
        assert all(math.isnan(m.value) and math.isnan(m.low) and not m.values for m in gap.measurements)
        assert {m.reason for m in gap.measurements} == {"the sampler failed; see divmon/health/sampler_failures"}
        assert {m.step for m in gap.measurements} == {step}
        assert gap.states["fall/sums"] == "inactive"  # law 4
        assert gap.batch is None
    assert [a.kind for a in gap.actions] == ["save"]
    assert "gone:firing" in [f"{e.alarm}:{e.state}" for e in gap.events]
    assert monitor.observe(made(4)).states["gone/sums"] == "firing"
    assert same_history(tmp_path, history)
    assert plain(replay(History.read(tmp_path), rules)) == plain(history.events())
    with pytest.raises(HistoryError):
        history.batch(2)


def test_batches_measured_differently_never_share_a_series(tmp_path, caplog):
    history = History.create(tmp_path, probes=PROBES)
    monitor = Monitor(names("length"), rules=[Rule("a", metric="length", rule="drop", by="1%")], history=history)
    monitor.observe(made(0))
    with pytest.raises(SignatureMismatch):
        monitor.observe(made(1, k=3))
    silent = Monitor(names("length"), history=history)
    silent.observe(made(1, k=3))  # no alarm looks: the history refuses, and that is reported
    assert silent.health.failures["disk"] == 1
    assert "was measured as" in caplog.text
    assert [e.step for e in History.read(tmp_path).evaluations] == [0]
