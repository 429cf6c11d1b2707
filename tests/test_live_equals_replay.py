"""Law 2, live equals replay, bit for bit; and a run resumed from disk goes on as if it had never been interrupted."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.alarms import Rule, dump_rules, restore_rules
from divmon.errors import HistoryError
from divmon.history import Evaluation, History
from divmon.metrics import METRICS, from_function
from divmon.monitor import Lenses, Monitor, replay
from divmon.plain import to_json
from divmon.records import Measurement, Probe, SampleBatch

PROBES = tuple(Probe(f"p{i}", f"{i}+1?", "xy"[i % 2], gold=str(i + 1), difficulty=1 + i % 3) for i in range(9))


def made(step, *, probes=PROBES):
    """Completions that become alike, half of them right."""
    rng, spread = np.random.default_rng(step), max(2, 8 - step)

    def text(i):
        words = [f"word{j}" for j in rng.integers(0, spread, 5)]
        answer = f"The answer is {i + rng.integers(1, 3)}."
        return [" ".join([*words, answer]), "- " + "\n- ".join([*words, answer])][int(rng.integers(0, spread) > 1)]

    return SampleBatch(
        step,
        probes,
        tuple(tuple(text(i) for _ in range(4)) for i in range(len(probes))),
        entropies=tuple(tuple(rng.random(3) for _ in range(4)) for _ in probes),
    )


def plain(records):
    """As text, where NaN equals NaN."""
    return [repr(to_json(record)) for record in records]


RULES = (
    Rule("fall", metric="a", rule="drop", by="30%"),
    Rule(
        "crash",
        metric="a",
        rule="drop",
        by="50%",
        severity="critical",
        evidence="screen",
        clear_for=2,
        then=("save", "stop"),
    ),
    Rule("band", metric="b", rule="outside", by=0.5, for_=1),
    Rule("gone", metric="b", domain="all", rule="absent", then=("save",)),
)
numbers = st.sampled_from([math.nan, 0.0, 0.4, 0.6, 1.0, 1.2, 2.0]) | st.floats(-3, 3) | st.floats()


def fake(name):
    """A metric that reads its values, one a prompt, from the completions; it fails where they say so."""

    def value(texts):
        word = texts[0].split()[0 if name == "a" else 1]
        if word == "nan" and name == "b":
            raise ValueError("asked to")
        return float(word)

    return from_function(value, name=name)


@given(st.lists(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=3), max_size=8), st.sets(st.integers(0, 7)))
@settings(deadline=None, max_examples=60)
def test_live_equals_replay_and_a_resumed_run_the_uninterrupted_one(tmp_path_factory, series, missed):
    path, cut = tmp_path_factory.mktemp("runs"), len(series) // 2
    probes = tuple(Probe(str(i), "?", domain=d) for i, d in enumerate("xxy"))

    def step(monitor, i):
        texts = tuple((f"{a!r} {b!r}",) for a, b in series[i])
        return monitor.missed(i) if i in missed else monitor.observe(SampleBatch(i, probes, texts))

    def started(name):
        history = History.create(path / name, probes=probes, info={"rules": dump_rules(RULES)})
        return Monitor((fake("a"), fake("b")), rules=RULES, history=history)

    whole, part = started("whole"), started("part")
    live = [step(whole, i) for i in range(len(series))]
    events = [event for seen in live for event in seen.events]
    read = History.read(path / "whole")
    assert plain(read.events()) == plain(events)
    assert plain(replay(read, RULES)) == plain(events)
    assert plain(replay(read, restore_rules(read.info["rules"]))) == plain(events)

    for i in range(cut):
        step(part, i)
    resumed = Monitor((fake("a"), fake("b")), rules=RULES)
    resumed.resume(History.read(path / "part"))
    for i in range(cut, len(series)):
        seen = step(resumed, i)
        assert plain(seen.measurements) == plain(live[i].measurements)
        assert plain(seen.events) == plain(live[i].events)
        assert seen.actions == live[i].actions
        assert seen.states == live[i].states
    again, first = History.read(path / "part"), History.read(path / "whole")
    for a, b in zip(again.evaluations, first.evaluations, strict=True):
        assert plain([*a.measurements, *a.events]) == plain([*b.measurements, *b.events])


LENSES = Lenses(encoder=lambda texts: np.array([[len(t), t.count("e"), 1.0] for t in texts]), encoder_name="toy")
LIVE_RULES = (
    Rule("surface", metric="tfidf_distance", rule="drop", by="5%", for_=2, clear_for=1),
    Rule("formats", metric="format_shift", rule="rise", by=0.1, severity="critical", evidence="screen", then=("stop",)),
    Rule("tail", metric="tail_share", rule="outside", by=0.05, for_=1),
)


@pytest.mark.parametrize("missed", [(), (0,), (0, 4), (3,)])
@pytest.mark.parametrize("probes", ["with difficulty", "binned by the baseline"])
def test_resuming_brings_back_what_the_baseline_froze(tmp_path, missed, probes):
    """Idf, format shares and difficulty bins come from the first batch on disk, also when it came late."""
    chosen = PROBES if probes == "with difficulty" else tuple(replace(p, difficulty=None) for p in PROBES)

    def started(name):
        history = History.create(tmp_path / name, probes=chosen) if name else None
        every = tuple(METRICS.values())
        return Monitor(every, rules=LIVE_RULES, lenses=LENSES, history=history, intervals=False)

    def steps(monitor, numbers):
        return [monitor.missed(s) if s in missed else monitor.observe(made(s, probes=chosen)) for s in numbers]

    live = steps(started("whole"), range(8))
    steps(started("part"), range(5))
    resumed = started(None)
    resumed.resume(History.read(tmp_path / "part"))
    for one, two in zip(steps(resumed, range(5, 8)), live[5:], strict=True):
        assert plain(one.measurements) == plain(two.measurements)
        assert plain(one.events) == plain(two.events)
        assert one.states == two.states
        assert one.baseline.texts == two.baseline.texts
    assert any(event.state == "firing" for seen in live[5:] for event in seen.events) or missed
    assert plain(History.read(tmp_path / "part").events()) == plain(History.read(tmp_path / "whole").events())


def test_resuming_needs_the_completions_of_the_baseline_and_no_others(tmp_path):
    history = History.create(tmp_path, probes=PROBES)
    first = Monitor((METRICS["tfidf_distance"],), history=history, keep_completions=False)
    live = [first.observe(made(s)) for s in range(2)]
    monitor = Monitor((METRICS["tfidf_distance"],), keep_completions=False)
    monitor.resume(History.read(tmp_path))
    assert plain(monitor.observe(made(2)).measurements) == plain(first.observe(made(2)).measurements)
    assert live[1].baseline.texts == monitor.observe(made(3)).baseline.texts
    [kept] = (tmp_path / "completions").iterdir()
    assert kept.name == "00000000.jsonl"
    kept.unlink()
    monitor = Monitor((METRICS["tfidf_distance"],), rules=LIVE_RULES[:1])
    with pytest.raises(HistoryError, match="No completions were recorded at step 0"):
        monitor.resume(History.read(tmp_path))
    assert monitor.history is None
    assert monitor.alarms.cells == {}


def test_resuming_a_run_without_evaluations(tmp_path):
    History.create(tmp_path, probes=PROBES)
    monitor = Monitor((METRICS["length"],))
    monitor.resume(History.read(tmp_path))
    seen = monitor.observe(made(0))
    assert seen.baseline is seen.batch
    assert [e.step for e in History.read(tmp_path).evaluations] == [0]


def test_a_missing_number_moves_no_alarm(tmp_path):
    """Law 4, through the whole monitor: the same events with and without gaps."""
    rule = Rule("fall", metric="a", rule="drop", by="30%", for_=2, clear_for=2)
    values = [1.0, 0.5, math.nan, 0.5, math.nan, math.nan, 1.0, math.nan, 1.0]
    told = []
    for kept in (values, [v for v in values if not math.isnan(v)]):
        monitor, found = Monitor([fake("a")], rules=[rule]), []
        for i, value in enumerate(kept):
            seen = monitor.observe(SampleBatch(i, (Probe("p", "?"),), ((f"{value!r} 0",),)))
            found += [(e.state, e.value, e.baseline) for e in seen.events]
        told.append(found)
    assert told[0] == told[1] == [("pending", 0.5, 1.0), ("firing", 0.5, 1.0), ("resolved", 1.0, 1.0)]


def test_replay_of_other_rules():
    history = History(Path("nowhere"), info={}, probes=())
    history.evaluations = [Evaluation(s, (Measurement(s, "x", "a", v),)) for s, v in enumerate((1.0, 0.2, 0.1))]
    assert [e.step for e in replay(history, [Rule("low", metric="a", rule="below", level=0.15, for_=1)])] == [2]
    assert replay(history, []) == []
