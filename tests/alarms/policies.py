"""A policy whose diversity is known, and runs that watch it; not a test."""

import os
from dataclasses import replace

import numpy as np

from divmon.alarms import Rule, RuleSet, dump_rules
from divmon.alarms.spending import Journal
from divmon.history import History
from divmon.metrics import METRICS, from_function
from divmon.monitor import Monitor
from divmon.plain import to_json
from divmon.records import Decoding, Probe, SampleBatch

PROBES = tuple(Probe(f"p{i}", f"Write {i}.", "xy"[i % 2], gold=str(i)) for i in range(32))
UNIQUE, FORMATS, RIGHT = METRICS["unique_fraction"], METRICS["format_dominance"], METRICS["pass_at_1"]


def spread(texts):
    """How many different texts there are."""
    return float(len(set(texts)))


WORDS = from_function(spread)
FALL = Rule("fall", metric="unique_fraction", rule="drop", by="20%", severity="critical", then=("save", "stop"))
TAKEN = Rule("taken", metric="format_dominance", domain="all", rule="rise", by=0.2, severity="critical", weight=2.0)
WARN = Rule("warn", metric="unique_fraction", rule="drop", by="15%")


class Policy:
    """Writes one of `words` words, more often as a list the fewer there are."""

    def __init__(self, words=40, seed=0):
        self.words, self.seed, self.asked, self.fails = words, seed, [], False

    def draw(self, probes, *, k, key):
        self.asked.append((len(probes), k, key))
        if self.fails:
            raise RuntimeError("out of memory")
        texts = []
        for probe in probes:
            rng = np.random.default_rng([key % 2**32, int(probe.id[1:]), self.words, self.seed])
            listed = rng.random(k) > self.words / 80
            words = rng.integers(0, self.words, k)
            texts.append(tuple(f"- w{w}\n- b" if flag else f"w{w}" for w, flag in zip(words, listed, strict=True)))
        return SampleBatch(0, tuple(probes), tuple(texts), decoding=Decoding(key=key))

    def batch(self, step, probes=PROBES, k=8):
        """The batch of an evaluation: its key is always the same."""
        return replace(self.draw(probes, k=k, key=0), step=step)


def started(path, rules=(FALL, TAKEN, WARN), metrics=(UNIQUE, FORMATS, RIGHT), **more):
    rules = RuleSet.of(rules)
    history = None
    if path is not None:
        info = {"rules": dump_rules(rules), "alarms": rules.shared}
        history = History.create(path, probes=PROBES, info=info)
    return Monitor(metrics, rules=rules, history=history, intervals=False, **more)


def step(monitor, policy, i, words=None, probes=PROBES):
    policy.words = words or policy.words
    return monitor.observe(policy.batch(i, probes), draw=policy.draw)


def plain(records):
    return [repr(to_json(record)) for record in records]


NOISY = Rule(
    "noisy", metric="unique_fraction", domain="x", rule="drop", by=1e-9, tolerate=0.0, severity="critical", clear_for=1
)


def noise(monitor, policy, steps, *, words=40):
    """The policy of the baseline, each time with other noise in the evaluation."""
    seen = []
    for i in steps:
        policy.seed = i
        batch = policy.batch(i)
        if i:  # a little below the baseline, so that the screen is always hit
            texts = tuple(tuple("same" if j < 2 else text for j, text in enumerate(row)) for row in batch.texts)
            batch = replace(batch, texts=texts)
        policy.seed = 0
        seen.append(monitor.observe(batch, draw=policy.draw))
    return seen


def killed(path, where):
    """A child: resumes or starts the run at `path`, and dies at `where`."""
    policy = Policy()
    if (path / "run.json").exists():
        history = History.read(path)
        monitor = started(None, [NOISY])
        monitor.resume(history)
    else:
        monitor, history = started(path, [NOISY]), None
        noise(monitor, policy, [0])
    draw, spend = policy.draw, Journal.spend

    def dying(*args, **kwargs):
        if where == "draw" and kwargs.get("k", 0) > 8:
            os._exit(9)
        return draw(*args, **kwargs)

    policy.draw = dying
    if where == "before":
        Journal.spend = lambda *args, **kwargs: os._exit(9)
    if where == "after":
        Journal.spend = lambda *args, **kwargs: (spend(*args, **kwargs), os._exit(9))
    if where == "record":
        History.append = lambda *args: os._exit(9)
    noise(monitor, policy, [(history.last_step if history else 0) + 1])
    os._exit(0)
