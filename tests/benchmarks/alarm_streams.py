"""Synthetic and real per-prompt noise, and runs watched through it, for `bench_alarms.py`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from divmon.alarms import Alarms, Rule
from divmon.alarms.evidence import confirm_mean, sign_flip
from divmon.alarms.simulation import BANK, Pilot, approximate_p, noise_factors
from divmon.alarms.spending import CONFIRMATIONS, Journal, level, next_wait
from divmon.metrics import METRICS, MetricContext
from divmon.records import Measurement, Probe, SampleBatch, Verdict

K = 8
T = 100  # evaluations after the baseline
CHANGE_AT = 30
MEAN, SD = 0.6, 0.08  # of a prompt's value, and its noise at K: those of the published comparison of rules
KINDS = ("gaussian", "skewed", "rare", "t2", "real")
_LIBRARY = 16_384  # means over the prompts, kept to draw screens from
_EVENT = 0.03  # the rare event: this share of completions
DOUBTFUL = 4.0  # a p-value approximated at more than this many times the level is not computed exactly


@dataclass
class Noise:
    """One kind of noise on P prompts.

    Attributes:
        kind: One of `KINDS`.
        p: Prompts.
        seed: Of everything drawn.
        distances: float[P, 10, 10], of real completions ("real" only).
    """

    kind: str
    p: int
    seed: int = 0
    distances: np.ndarray | None = None
    rng: np.random.Generator = field(init=False)
    _means: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.means = np.clip(np.random.default_rng(5).normal(MEAN, 0.1, self.p), 0.3, 0.9)

    def values(self, n: int, completions: int, factor: np.ndarray | float = 1.0) -> np.ndarray:
        """float[n, P], values at `completions` a prompt, with every mean times `factor` (float[n] or a number)."""
        scale = np.reshape(factor, (-1, 1))
        drawn = self._real(n, completions) if self.kind == "real" else self.means + self._noise(n, completions)
        return np.maximum(0.0, drawn) * scale

    def _noise(self, n: int, m: int) -> np.ndarray:
        """Mean of `m` contributions of completions, each with standard deviation SD sqrt(K) (t(2): its quartiles)."""
        rng, shape, one = self.rng, (n, self.p), SD * math.sqrt(K)
        if self.kind == "gaussian":
            return rng.normal(0, one / math.sqrt(m), shape)
        if self.kind == "skewed":
            return one * (rng.gamma(m, 1 / m, shape) - 1)
        if self.kind == "rare":
            return one / math.sqrt(_EVENT * (1 - _EVENT)) * (rng.binomial(m, _EVENT, shape) / m - _EVENT)
        return 0.826 * one * sum(rng.standard_t(2, shape) for _ in range(m)) / m

    def _real(self, n: int, m: int) -> np.ndarray:
        """Mean pairwise distance of `m` completions drawn from the ten real ones of each prompt."""
        assert self.distances is not None
        ten = self.distances.shape[1]
        out = np.empty((n, self.p))
        for i in range(self.p):
            counts = self.rng.multinomial(m, np.full(ten, 1 / ten), size=n).astype(float)
            out[:, i] = ((counts @ self.distances[i]) * counts).sum(axis=1) / (m * (m - 1))
        return out

    def screens(self, shape: tuple[int, ...]) -> np.ndarray:
        """Means over the prompts at K."""
        if self._means is None:
            self._means = self.values(_LIBRARY, K).mean(axis=1)
        return self._means[self.rng.integers(0, _LIBRARY, shape)]

    def pilot(self) -> Pilot:
        """One batch at K as `divmon rules plan` sees it."""
        if self.kind == "real":
            return self._real_pilot()
        each = np.stack([self._noise(1, 1)[0] for _ in range(K)], axis=1)
        values = self.means + each.mean(axis=1)
        return Pilot("tfidf_distance", "x", values, each - each.mean(axis=1, keepdims=True), self.p)

    def _real_pilot(self) -> Pilot:
        assert self.distances is not None
        picked = self.rng.integers(0, self.distances.shape[1], (self.p, K))
        d = np.stack([m[np.ix_(row, row)] for m, row in zip(self.distances, picked, strict=True)])
        value = d.sum(axis=(1, 2)) / (K * (K - 1))
        left = (d.sum(axis=(1, 2))[:, None] - 2 * d.sum(axis=2)) / ((K - 1) * (K - 2))
        pseudo = K * value[:, None] - (K - 1) * left
        influence = pseudo - pseudo.mean(axis=1, keepdims=True)
        halves, pairs = [], []
        for order in (self.rng.permutation(K) for _ in range(4)):
            e = d[:, order][:, :, order]
            halves.append([e[:, i : i + 4, i : i + 4].sum(axis=(1, 2)) / 12 for i in (0, 4)])
            pairs.append([e[:, i, i + 1] for i in range(0, K, 2)])
        factors = noise_factors(value, influence, np.array(pairs), np.array(halves))
        return Pilot("tfidf_distance", "x", value, influence, self.p, factors=factors)


def real_distances(folder: Path) -> np.ndarray | str:
    """float[100, 10, 10] of `tfidf_distance` between real completions; why not, where they are not there."""
    path = folder / "noveltybench" / "gemini-1.5-pro_curated_scores.jsonl"
    if not path.exists():
        return f"no {path.name} in {path.parent}"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    pairs = [(i, j) for i in range(10) for j in range(i)]
    out = np.zeros((len(rows), 10, 10))
    probes = tuple(Probe(row["id"], row["prompt"]) for row in rows)
    texts = [row["generations"] for row in rows]
    whole = MetricContext(SampleBatch(0, probes, tuple(map(tuple, texts))))
    metric = METRICS["tfidf_distance"]
    metric.fn(whole.batch, whole)
    for i, j in pairs:  # two completions of every prompt at a time, with the idf of all of them
        batch = SampleBatch(0, probes, tuple((row[i], row[j]) for row in texts))
        out[:, i, j] = out[:, j, i] = metric.fn(batch, MetricContext(batch, baseline=whole)).values
    return out


@dataclass
class Watched:
    """Runs with several cells each.

    Attributes:
        fired: float[runs, cells], the evaluation (from 1) at which each cell fired, inf for never.
        attempts: int[runs, cells], confirmations drawn.
        within: float[runs, cells], the same as `fired` where a run draws 8 confirmations over all of its cells.
    """

    fired: np.ndarray
    attempts: np.ndarray
    within: np.ndarray
    kept: list[Kept] = field(default_factory=list)


@dataclass
class Kept:
    """All that was drawn for one cell: float[T + 1] means, float[P] values of the bank and of each confirmation."""

    series: np.ndarray
    bank: np.ndarray
    fresh: list[np.ndarray]
    seeds: list[int]
    fired: float = math.inf


def watch(
    noise: Noise, rule: Rule, factors: np.ndarray | float, *, runs: int, cells: int, alpha: float, keep: int = 0
) -> Watched:
    """Runs of `cells` equal cells, each with its share of `alpha`, baseline and bank.

    Screens and waits are those of the engine written for all runs at once (`folded` holds them to it); each decision is
    made by the engine's exact test. Where an approximation of p is far above the level, the exact one is not computed.

    Args:
        noise: What is drawn.
        rule: drop, with relative sizes.
        factors: What the mean is multiplied by: a number, float[T], or float[runs * cells, T].
        runs: How many.
        cells: In each.
        alpha: Of a run.
        keep: So many cells of the first runs are kept with all that was drawn for them.
    """
    rows = runs * cells
    factors = np.broadcast_to(np.asarray(factors, dtype=float), (rows, T))
    baseline = noise.screens((rows,))
    values = noise.screens((rows, T)) * factors  # noise shrinks along with the mean, as that of distances does
    by, tolerate = rule.allowed.amount, rule.margin.amount
    hits = baseline[:, None] - values > by * baseline[:, None] * (1 + 1e-9)
    fired, count, log = np.full(rows, math.inf), np.zeros(rows, dtype=int), []
    bank = noise.values(rows, BANK * K)
    allowed, waited = np.zeros(rows, dtype=int), 0
    kept = [Kept(np.r_[baseline[i], values[i]], bank[i], [], []) for i in range(keep)]
    for attempt in range(1, CONFIRMATIONS + 1):
        ready = hits & (np.arange(T) >= allowed[:, None]) & np.isinf(fired)[:, None]
        asking = np.flatnonzero(ready.any(axis=1))
        if not len(asking):
            break
        at = ready[asking].argmax(axis=1)
        fresh = noise.values(len(asking), BANK * K, factors[asking, at])
        seeds = noise.rng.integers(0, 2**31, len(asking))
        for i in np.flatnonzero(asking < keep):
            kept[asking[i]].fresh.append(fresh[i])
            kept[asking[i]].seeds.append(int(seeds[i]))
        d = (1 - tolerate) * bank[asking] - fresh
        limit = level(alpha / cells, attempt)
        likely = np.flatnonzero(approximate_p(d) <= DOUBTFUL * limit)
        sure = np.zeros(len(asking), dtype=bool)
        for i in likely:
            test = sign_flip(d[i], alpha=limit, seed=int(seeds[i]))
            sure[i] = test.outcome(limit) == "confirmed"
        fired[asking[sure]] = at[sure] + 1
        count[asking] += 1
        log.append(np.stack([asking // cells, at, asking, sure], axis=1))
        waited = next_wait(waited)
        allowed[asking] = at + waited
    within = _capped(np.concatenate(log) if log else np.zeros((0, 4), int), rows)
    for i, cell in enumerate(kept):
        cell.fired = fired[i]
    shape = (runs, cells)
    return Watched(fired.reshape(shape), count.reshape(shape), within.reshape(shape), kept)


def folded(cell: Kept, rule: Rule, share: float) -> float:
    """The evaluation at which the engine itself (fold, journal, test) fires on what was drawn for one cell."""
    alarms, journal = Alarms([rule]), Journal(None)
    for step, value in enumerate(cell.series):
        measured = [Measurement(step, "x", rule.metric, float(value))]
        verdicts = []
        for ask in alarms.asks(step, measured):
            if len(journal.entries) == CONFIRMATIONS:
                continue
            paid = journal.spend(ask.key, step=step, share=share)
            i = paid.attempt - 1
            test = confirm_mean(rule, cell.bank, cell.fresh[i], alpha=paid.level, seed=cell.seeds[i])
            outcome = test.outcome(paid.level)
            verdicts.append(Verdict(step, rule.name, "x", rule.claim, outcome, attempt=paid.attempt, level=paid.level))
        if any(event.state == "firing" for event in alarms.observe(step, measured, verdicts)):
            return float(step)
    return math.inf


def _capped(log: np.ndarray, rows: int) -> np.ndarray:
    """When each cell fires if a run has `CONFIRMATIONS` for all of its cells, in the order of time."""
    fired = np.full(rows, math.inf)
    log = log[np.lexsort((log[:, 2], log[:, 1], log[:, 0]))]
    starts = np.r_[True, log[1:, 0] != log[:-1, 0]] if len(log) else np.zeros(0, bool)
    number = np.arange(len(log)) - np.maximum.accumulate(np.where(starts, np.arange(len(log)), 0))
    for _, at, row, sure in log[number < CONFIRMATIONS]:
        if sure:
            fired[row] = at + 1
    return fired


def wandering(rows: int, margin: float, rng: np.random.Generator) -> np.ndarray:
    """float[rows, T]: benign ups and downs (first-order autoregressive, sd 2 %), cut off at the margin."""
    w, out = np.zeros(rows), np.empty((rows, T))
    for t in range(T):
        w = 0.8 * w + rng.normal(0, 0.02 * math.sqrt(1 - 0.8**2), rows)
        out[:, t] = np.clip(w, -margin, margin)
    return 1 + out
