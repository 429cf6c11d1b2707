"""Confirmations: fresh completions on both sides decide whether an alarm that was screened is real.

::

    first evaluation   the confirmation bank: 4K completions a prompt, used by nothing else
    a cell asks        its number is spent on disk, 4K fresh completions are drawn with a sampling key of their own,
                       and an exact test swaps bank and current, prompt by prompt
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from divmon.alarms import Rule, RuleSet
from divmon.alarms.evidence import MIN_PAIRS, too_few
from divmon.alarms.lifecycle import Ask
from divmon.alarms.spending import Journal, cell_shares, level
from divmon.errors import HistoryError, SamplingError
from divmon.health import Health
from divmon.history import History
from divmon.metrics.base import Metric, MetricContext
from divmon.records import OVERALL, Probe, SampleBatch, Verdict
from divmon.swapping import chosen, is_local, joined, swap_test

FACTOR = 4  # completions a prompt on either side, as a multiple of those of an evaluation
BANK = "bank"
JOURNAL = "spent.jsonl"
NO_BANK = "no confirmation bank: it is drawn at the first evaluation only, and it is not there"


class DrawFailed(SamplingError):
    """Fresh completions could not be drawn, and whoever raises this has counted it."""


class Draw(Protocol):
    """Draws fresh completions of the live policy, or raises."""

    def __call__(self, probes: Sequence[Probe], *, k: int, key: int) -> SampleBatch:
        """`k` completions for each of `probes`, with the noise that `key` names."""
        ...


def derived_key(seed: int, name: str, attempt: int) -> int:
    """A sampling key of its own for each confirmation: 63 bits.

    >>> derived_key(0, "bank", 0) == derived_key(0, "bank", 0) != derived_key(0, "bank", 1)
    True
    """
    digest = hashlib.blake2b(
        f"confirm\x1f{seed}\x1f{name}\x1f{attempt}".encode("utf-8", "surrogatepass"), digest_size=8
    )
    return int.from_bytes(digest.digest(), "little") >> 1


class Confirmations:
    """The confirmations of one run: its bank, its journal, its tests.

    Args:
        rules: With their budget.
        metrics: What is measured.
        context: A batch to its `MetricContext`, with everything the first evaluation froze.
        health: Where failures are counted.

    Attributes:
        history: Where bank, completions and journal are kept; None keeps them in memory.
        seconds: Spent on the latest evaluation.
    """

    def __init__(
        self,
        rules: RuleSet,
        metrics: Sequence[Metric],
        *,
        context: Callable[[SampleBatch], MetricContext],
        health: Health,
    ) -> None:
        self.rules = rules
        self.history: History | None = None
        self.seconds = 0.0
        self._metrics = {metric.name: metric for metric in metrics}
        self._context = context
        self._health = health
        self._journal: Journal | None = None
        self._bank: SampleBatch | None = None
        self._local: dict[str, bool] = {}

    @property
    def journal(self) -> Journal:
        """What has been spent, by every branch of this run."""
        if self._journal is None:
            path = None if self.history is None else self.history.confirmations / JOURNAL
            self._journal = Journal(path)
        return self._journal

    @property
    def row(self) -> dict[str, float]:
        """For `divmon/health`."""
        spent = len(self._journal.entries) if self._journal is not None else 0
        return {"confirm_seconds": self.seconds, "confirmations": float(spent)}

    def observe(
        self, batch: SampleBatch, asked: Sequence[Ask], draw: Draw | None, *, first: bool
    ) -> tuple[Verdict, ...]:
        """Draw the bank at the `first` evaluation; answer the cells that ask. Without `draw` there are no answers."""
        start, self.seconds = time.perf_counter(), 0.0
        if draw is None:
            return ()
        try:
            if first:
                self._fill(batch, draw)
            return tuple(self._answer(ask, batch, draw) for ask in asked)
        finally:
            self.seconds = time.perf_counter() - start

    def _fill(self, batch: SampleBatch, draw: Draw) -> None:
        """The bank: fresh completions of every prompt that a confirmed alarm watches."""
        watched = {domain for rule in self.rules if rule.confirms for domain in rule.cells(batch.domains)}
        probes = [probe for probe in batch.probes if OVERALL in watched or probe.domain in watched]
        k, key = self.rules.confirm_k or FACTOR * max(1, batch.size), derived_key(_seed(batch), BANK, 0)
        try:
            bank = draw(probes, k=k, key=key) if probes else None
        except Exception as error:
            self._failed(BANK, error)
            return
        if bank is not None:
            self._bank = self._slim(replace(bank, step=batch.step))
            self._keep(BANK, self._bank)

    def _answer(self, ask: Ask, batch: SampleBatch, draw: Draw) -> Verdict:
        """Spend, draw, test. Whatever fails gives "unknown" with the reason; what was spent stays spent."""
        verdict = Verdict(ask.step, ask.rule.name, ask.domain, ask.rule.claim, "unknown")
        try:
            verdict = self._paid(verdict, ask, batch)
        except (OSError, HistoryError) as error:
            self._health.failed("disk", "the journal of confirmations", error)
            return replace(verdict, reason=f"the journal of confirmations cannot be kept ({_said(error)})")
        except Exception as error:
            self._health.failed("monitor", f"the confirmation of {ask.key}", error)
            return replace(verdict, reason=f"the confirmation could not begin ({_said(error)})")
        bank = self._banked()
        if bank is None or not verdict.attempt:
            return verdict
        before = chosen(bank, bank.rows(ask.domain))
        live = {probe.id: probe for probe in batch.probes}
        try:
            key = derived_key(_seed(batch), ask.key, verdict.attempt)
            fresh = draw([live.get(probe.id, probe) for probe in before.probes], k=before.size, key=key)
            now = self._slim(replace(fresh, step=ask.step))
        except Exception as error:
            self._failed(ask.key, error)
            return replace(verdict, reason=f"the fresh completions could not be drawn ({_said(error)})")
        name = f"{ask.step:08d}-{_slug(ask.key)}-{verdict.attempt}"
        kept = {"file": name} if self._keep(name, now) else {}
        try:
            return self._test(replace(verdict, details=kept), ask.rule, before, now)
        except Exception as error:
            self._health.failed("monitor", f"the confirmation of {ask.key}", error)
            return replace(verdict, reason=f"the test failed ({_said(error)})")

    def _paid(self, verdict: Verdict, ask: Ask, batch: SampleBatch) -> Verdict:
        """`verdict` with its attempt and level once they are spent; without an attempt, the reason why they are not."""
        verdict, bank = self._status(verdict), self._banked()
        if bank is None:
            return replace(verdict, reason=NO_BANK)
        share = cell_shares(self.rules, batch.domains, self.rules.alpha).get(ask.key, 0.0)
        if (why := self._hopeless(ask, bank, share)) is not None:
            return replace(verdict, reason=why)
        spent = self.journal.spend(ask.key, step=ask.step, share=share)
        return replace(self._status(verdict), attempt=spent.attempt, level=spent.level)

    def retest(self, verdict: Verdict, rule: Rule) -> Verdict:
        """What the completions on disk say about a recorded verdict.

        Raises:
            HistoryError: They are not there.
        """
        if self.history is None or not verdict.details.get("file"):
            raise HistoryError(f"The completions of the confirmation of {verdict.key} were not kept.")
        bank, now = self.history.kept(BANK), self.history.kept(verdict.details["file"])
        blank = Verdict(verdict.step, verdict.alarm, verdict.domain, verdict.tested, "unknown")
        kept = {name: getattr(verdict, name) for name in ("attempt", "level", "spent", "left")}
        blank = replace(blank, **kept, details={"file": verdict.details["file"]})
        return self._test(blank, rule, chosen(bank, bank.rows(verdict.domain)), now)

    def _test(self, verdict: Verdict, rule: Rule, before: SampleBatch, now: SampleBatch) -> Verdict:
        context, seed = self._context(joined(before, now)), derived_key(0, verdict.key, verdict.attempt)
        return swap_test(verdict, rule, self._metrics[rule.metric], context, (before, now), seed=seed)

    def _hopeless(self, ask: Ask, bank: SampleBatch, share: float) -> str | None:
        """Why a confirmation would be spent for nothing; None when it would not."""
        rule, rows = ask.rule, bank.rows(ask.domain)
        if not len(rows):
            return "the confirmation bank has no prompts of this domain: the alarm was added after it was drawn"
        if len(self.journal.entries) >= self.rules.confirmations:
            return f"out of confirmations: all {self.rules.confirmations} of this run are spent"
        cost = level(share, self.journal.attempts(ask.key) + 1)
        if not cost or self.journal.spent + cost > self.rules.alpha * (1 + 1e-9):
            return (
                f"out of alpha: {self.journal.spent:.3g} of {self.rules.alpha:g} are spent, the next costs {cost:.2g}"
            )
        if len(rows) < MIN_PAIRS:
            return f"only {len(rows)} prompts; a confirmation needs at least {MIN_PAIRS}"
        if (why := too_few(len(rows), cost, sides=2 if rule.rule == "outside" else 1)) is not None:
            return why
        if rule.metric not in self._local:
            self._local[rule.metric] = is_local(self._metrics[rule.metric], self._context, bank)
        if not self._local[rule.metric]:
            return f"{rule.metric} of a prompt depends on the others, so it cannot be swapped; use evidence: screen"
        return None

    def _banked(self) -> SampleBatch | None:
        if self._bank is None and self.history is not None and (self.history.confirmations / f"{BANK}.jsonl").exists():
            with self._health.shield("disk", "the confirmation bank"):
                self._bank = self.history.kept(BANK)
        return self._bank

    def _status(self, verdict: Verdict) -> Verdict:
        spent = self.journal.spent
        return replace(verdict, spent=spent, left=max(0.0, self.rules.alpha - spent))

    def _slim(self, batch: SampleBatch) -> SampleBatch:
        """Without the numbers of every token that no confirmed metric needs; the others as they will be read back."""
        needs = {need for rule in self.rules if rule.confirms for need in self._metrics[rule.metric].needs}
        columns: dict[str, Any] = {}
        for name in ("logprobs", "entropies"):
            rows = getattr(batch, name) if name in needs else None
            columns[name] = None if rows is None else tuple(tuple(np.asarray(x, float) for x in row) for row in rows)
        return replace(batch, **columns)

    def _keep(self, name: str, batch: SampleBatch) -> bool:
        if self.history is not None:
            with self._health.shield("disk", str(self.history.confirmations)):
                self.history.keep(name, batch)
                return True
        return False

    def _failed(self, name: str, error: Exception) -> None:
        if not isinstance(error, DrawFailed):
            self._health.failed("sampler", f"confirmation of {name}", error)


def _seed(batch: SampleBatch) -> int:
    return batch.decoding.key if batch.decoding is not None else 0


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _slug(cell: str) -> str:
    """A file name for a cell: readable, and different for different cells."""
    short = re.sub(r"[^A-Za-z0-9_-]+", "-", cell).strip("-")[:60]
    return f"{short}-{hashlib.blake2b(cell.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"
