"""Metrics over files larger than memory: block by block, each quantity that spans blocks fixed beforehand.

What spans blocks: inverse document frequencies (fitted once, on the baseline where there is one), the labels that
columns of format counts stand for, and the levels of difficulty. A metric's number is then what `Monitor.observe` would
give for the whole file; only metrics that compare with a baseline say nothing where there is none.

Two kinds of metrics cannot be had that way: pooled ones whose parts do not add up (`divmon.metrics.base.Pooled`), and
those whose numbers for a prompt change with the prompts beside it, here or at the baseline, which is tried out on a few
prompts. They are measured on the first `SAMPLE` prompts in hash order, a random sample, where a group has more; their
signature says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from divmon.measuring.fold import Estimate, Parts, Values, change_of
from divmon.measuring.results import Change, Row
from divmon.measuring.side import Side
from divmon.measuring.store import Entry, Group, blocks
from divmon.metrics.base import Metric, MetricContext, PerPrompt, Pooled, Result, evaluate, missing
from divmon.metrics.formats import fix_names
from divmon.metrics.semantic import fix_idf
from divmon.metrics.tails import fix_levels
from divmon.records import OVERALL, Measurement
from divmon.uncertainty import MIN_PROMPTS

BLOCK = 256  # prompts measured at once
SAMPLE = 512  # prompts for metrics that need all of theirs at once
TRIED, FEW = 16, 5  # prompts on which it is tried whether the others matter
_SAME = 1e-4  # relative: encoders of single precision are a little different in each batch

Found = tuple[Result, Result | None, MetricContext, np.ndarray]


@dataclass
class Tally:
    """What has been gathered of one metric in one domain of one group."""

    now: Values | Parts
    before: Values | Parts  # the same prompts at the baseline; for per-prompt metrics the differences
    reason: str | None = None
    details: dict[str, object] = field(default_factory=dict)
    sampled: bool = False

    def add(self, result: Result, rows: np.ndarray) -> None:
        """The prompts `rows` of a block."""
        if isinstance(result, PerPrompt):
            if self.reason is None:
                self.reason = next((result.reasons[i] for i in rows if result.reasons[i]), None)
            self.details.update(result.details)
            if isinstance(self.now, Values):
                self.now.add(result.values[rows])
        elif isinstance(self.now, Parts):
            self.now.add(result, rows)


class Engine:
    """Measures groups of one file, against a baseline where there is one.

    Args:
        metrics: What to measure.
        now: The file.
        before: The baseline; None without one.
        block: Prompts measured at once.
        sample: Prompts for metrics that need all at once.
        protocol: Goes into signatures.
        tick: Called with the number of prompts after each block.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        now: Side,
        before: Side | None = None,
        *,
        block: int = BLOCK,
        sample: int = SAMPLE,
        protocol: str = "",
        tick: Callable[[int], object] = lambda n: None,
    ) -> None:
        self.metrics = tuple(metrics)
        self.now = now
        self.before = before
        self.block = block
        self.sample = sample
        self.protocol = protocol
        self.tick = tick
        self.failures: dict[str, str] = {}
        self.common = False  # whether any prompt is at the baseline, too
        self._names: tuple[str, ...] = ()
        self._levels = tuple(sorted({d for side in self._sides for d in side.store.summary.difficulties}))
        self._formats = any(metric.family == "formats" for metric in self.metrics)
        self._baseline: dict[tuple[str, str], Tally] = {}
        self._tried: dict[str, set[str]] = {}

    @property
    def _sides(self) -> list[Side]:
        return [side for side in (self.before, self.now) if side is not None]

    @property
    def reference(self) -> Side:
        """The side that frozen quantities come from."""
        return self.before or self.now

    def rows(self) -> list[Row]:
        """Every number: metric by metric, within one group by group and domain by domain."""
        if self.before is not None:
            [(group, domains, prompts)] = self.before.store.groups()
            self._baseline = self._group(self.before, group, domains, prompts)
        found: dict[str, list[Row]] = {metric.name: [] for metric in self.metrics}
        for group, domains, prompts in self.now.store.groups():
            tallies = self._group(self.now, group, domains, prompts)
            for metric, domain in itertools.product(self.metrics, _domains(domains)):
                found[metric.name].append(self._row(metric, group, domain, tallies[metric.name, domain], prompts))
        return [row for metric in self.metrics for row in found[metric.name]]

    def _group(self, side: Side, group: Group, domains: Sequence[str], prompts: int) -> dict[tuple[str, str], Tally]:
        tallies = {(m.name, domain): _tally(m) for m in self.metrics for domain in _domains(domains)}
        alone = prompts <= self.block and (self.before is None or side is self.before)  # one block has all there is
        whole = set() if alone else self._entangled(side, group)
        for entries in blocks(side.store.entries(group), self.block):
            for metric, results in self._block(side, entries, [m for m in self.metrics if m.name not in whole]):
                if isinstance(results[0], Pooled) and not results[0].additive:
                    whole.add(metric.name)
                else:
                    self._add(tallies, metric, results)
            self.tick(len(entries))
        first = list(itertools.islice(side.store.entries(group), self.sample)) if whole else []
        for metric, results in self._sampled(side, first, [m for m in self.metrics if m.name in whole]):
            for domain in _domains(domains):
                tallies[metric.name, domain] = _tally(metric, sampled=True)
            self._add(tallies, metric, results)
        return tallies

    def _entangled(self, side: Side, group: Group) -> set[str]:
        """Metrics whose numbers for a few prompts are others when more prompts stand beside them."""
        if side.name not in self._tried:
            entries = list(itertools.islice(side.store.entries(group), TRIED))
            some, few = (self._context(side, part, self._reference(side, part)) for part in (entries, entries[:FEW]))
            self._tried[side.name] = {m.name for m in self.metrics if not self._agree(m, some, few)}
        return set(self._tried[side.name])

    def _agree(self, metric: Metric, some: MetricContext, few: MetricContext) -> bool:
        a, b = (self._evaluate(metric, context) for context in (some, few))
        if isinstance(a, PerPrompt) and isinstance(b, PerPrompt):
            return np.allclose(a.values[: len(b.values)], b.values, rtol=_SAME, atol=1e-9, equal_nan=True)
        if isinstance(a, Pooled) and isinstance(b, Pooled) and a.additive and b.additive:
            wide, narrow = a.parts[: len(b.parts)], b.parts
            columns = min(wide.shape[1], narrow.shape[1])
            rest = (wide[:, columns:], narrow[:, columns:])
            return np.allclose(wide[:, :columns], narrow[:, :columns], rtol=_SAME) and not any(map(np.any, rest))
        return True  # found out block by block

    def _reference(self, side: Side, entries: Sequence[Entry], *, more: int = 0) -> MetricContext | None:
        """The baseline of these prompts (and its first `more` ones); None without one."""
        if self.before is None or side is self.before:
            return None
        there = self.before.store.matching([entry.probe.id for entry in entries])
        self.common |= bool(there)
        known = {entry.probe.id for entry in there}
        others = itertools.islice(self.before.store.entries(()), more)
        return self._context(self.before, [*there, *(entry for entry in others if entry.probe.id not in known)])

    def _block(self, side: Side, entries: list[Entry], metrics: Sequence[Metric]) -> Iterator[tuple[Metric, Found]]:
        """For each metric: its result, the baseline's, and where the prompts stand there."""
        ids = [entry.probe.id for entry in entries]
        reference = self._reference(side, entries)
        context = self._context(side, entries, reference)
        kept = np.full((len(entries), len(self.metrics)), math.nan)
        known = self.before.store.recall(ids, len(self.metrics)) if self.before and reference else kept
        for metric in metrics:
            result = self._evaluate(metric, context)
            before: Result | None = None
            if isinstance(result, PerPrompt):
                column = self.metrics.index(metric)
                kept[:, column] = result.values
                before = PerPrompt(known[:, column], result.n, result.reasons) if reference else None
            elif reference is not None and result.additive:
                before = self._evaluate(metric, reference)
            yield metric, (result, before, context, context.baseline_rows)
        if side is self.before:
            side.store.keep(ids, kept)

    def _sampled(self, side: Side, entries: list[Entry], metrics: Sequence[Metric]) -> Iterator[tuple[Metric, Found]]:
        """The same for metrics that look at several prompts together, on a sample."""
        if not metrics:
            return
        reference = self._reference(side, entries, more=self.sample)
        context = self._context(side, entries, reference)
        there = context.baseline_rows
        for metric in metrics:
            result = self._evaluate(metric, context)
            before = self._evaluate(metric, reference) if reference is not None else None
            if isinstance(before, PerPrompt):
                values = np.append(before.values, math.nan)[there]  # -1 where a prompt is not there
                before = PerPrompt(values, np.zeros(len(values), dtype=int), (None,) * len(values))
            yield metric, (result, before, context, there)

    def _context(self, side: Side, entries: Sequence[Entry], reference: MetricContext | None = None) -> MetricContext:
        context = side.context(entries, reference)
        fix_idf(context, self.reference.idf)
        fix_levels(context, self._levels)
        if self._formats:
            try:
                self._names = fix_names(context, self._names)
            except Exception as error:  # a user's classifier; the metrics will fail and say so
                self.failures.setdefault("formats", repr(error))
        return context

    def _evaluate(self, metric: Metric, context: MetricContext) -> Result:
        if metric.compares and self.before is None:
            return missing(context.batch, "it compares with a baseline: pass against=")
        try:
            with np.errstate(divide="ignore", invalid="ignore"):
                return evaluate(metric, context)
        except Exception as error:
            self.failures.setdefault(metric.name, repr(error))
            return missing(context.batch, f"the metric failed with {error!r}")

    def _add(
        self,
        tallies: dict[tuple[str, str], Tally],
        metric: Metric,
        results: Found,
    ) -> None:
        result, before, context, there = results
        for (name, domain), tally in tallies.items():
            if name != metric.name:
                continue
            rows = context.batch.rows(domain)
            tally.add(result, rows)
            if isinstance(tally.before, Values) and isinstance(result, PerPrompt) and isinstance(before, PerPrompt):
                tally.before.add((result.values - before.values)[rows])
            elif isinstance(tally.before, _Pairs) and isinstance(result, Pooled) and isinstance(before, Pooled):
                both = rows[there[rows] >= 0]
                tally.before.here.add(result, both)
                tally.before.add(before, there[both])

    def _row(self, metric: Metric, group: Group, domain: str, tally: Tally, prompts: int) -> Row:
        estimate = tally.now.estimate()
        pooled = isinstance(tally.now, Parts)
        more = tally.now.details() if isinstance(tally.now, Parts) else {"sd": tally.now.sd}
        details = {**tally.details, **more}
        gone = math.isnan(estimate.value)
        reason = tally.reason or (tally.now.reason if isinstance(tally.now, Parts) else "")
        measurement = Measurement(
            step=0,
            domain=domain,
            metric=metric.name,
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            n=estimate.n,
            signature=self._signature(metric, group, pooled=pooled, sampled=tally.sampled and prompts > self.sample),
            reason=(reason or "undefined on these completions") if gone else None,
            details=details,
        )
        change = self._change(metric, domain, tally, estimate) if self.before is not None else None
        return Row(group, measurement, estimate.interval, change)

    def _change(self, metric: Metric, domain: str, tally: Tally, now: Estimate) -> Change:
        base = self._baseline.get((metric.name, domain))
        if base is None:
            return Change(math.nan, math.nan, reason=f"the baseline has no domain {domain!r}")
        before = base.now.estimate()
        if math.isnan(now.value) or math.isnan(before.value):
            reason = base.reason or "undefined at the baseline"
            return Change(before.value, math.nan, reason=reason if math.isnan(before.value) else None)
        pairs = tally.before.n
        if pairs >= min(MIN_PROMPTS, now.n, before.n) and pairs:
            both = tally.before
            moved = both.estimate() if isinstance(both, Values) else change_of(_here(both), both, paired=True)
            pairing = "paired"
        else:
            moved, pairing = change_of(tally.now, base.now, paired=False), "unpaired"
        undefined = "undefined on the common prompts" if math.isnan(moved.value) else None
        return Change(before.value, *moved[:4], pairing=pairing, interval=moved.interval, reason=undefined)

    def _signature(self, metric: Metric, group: Group, *, pooled: bool, sampled: bool) -> str:
        parts = [metric.signature, self.now.lenses.signature(metric), "agg:pooled" if pooled else "agg:mean"]
        if "idf:" in metric.signature:
            parts.append(self.reference.idf_signature)
        if sampled:
            parts.append(f"prompts:first {self.sample} by hash")
        if self.protocol:
            parts.append(f"protocol:{self.protocol}")
        return "|".join(filter(None, (*parts, self.now.signature(group))))


class _Pairs(Parts):
    """Parts of the baseline on common prompts, and beside them those of the file on the same."""

    def __init__(self) -> None:
        super().__init__()
        self.here = Parts()


def _here(pairs: Values | Parts) -> Parts:
    return pairs.here if isinstance(pairs, _Pairs) else Parts()


def _tally(metric: Metric, *, sampled: bool = False) -> Tally:
    if metric.scope == "pooled":
        return Tally(Parts(), _Pairs(), sampled=sampled)
    return Tally(Values(), Values(), sampled=sampled)


def _domains(domains: Sequence[str]) -> tuple[str, ...]:
    return (*domains, OVERALL) if len(domains) > 1 else tuple(domains)
