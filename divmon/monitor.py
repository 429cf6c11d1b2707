"""Monitor: completions go in, observations come out. It knows no trainer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from divmon.alarms import Alarms, Rule, RuleSet, restore_rules
from divmon.alarms.planning import RulePlan, plan_rules
from divmon.confirming import Confirmations, Draw
from divmon.errors import DivmonError, HistoryError
from divmon.health import Health
from divmon.history import Evaluation, History
from divmon.metrics import default_metrics
from divmon.metrics.base import (
    Classifier,
    Encoder,
    Judges,
    Metric,
    MetricContext,
    evaluate,
    missing,
)
from divmon.metrics.quality import Quality, judge
from divmon.metrics.summary import summarise
from divmon.mitigations import decide
from divmon.piloting import pilots, seconds
from divmon.records import OVERALL, Action, AlarmEvent, Measurement, Observation, SampleBatch, Verdict


@dataclass(frozen=True)
class Lenses:
    """What metrics may look through: all optional, all injected.

    Attributes:
        quality: ``(probe, completion) -> float``; without it, rewards of the batch or gold answers of the probes.
        judge: Goes into signatures: the name of what judges.
        correct_at: A completion counts as correct (good enough) from this quality on.
        encoder: Texts to float[N, D], for semantic metrics.
        encoder_name: Goes into signatures.
        classifier: Text to structural labels; the built-in one when None.
        classifier_name: Goes into signatures.
        judges: What looks at two texts together: entailment, equivalence.
    """

    quality: Quality | None = None
    judge: str = "auto"
    correct_at: float = 0.5
    encoder: Encoder | None = None
    encoder_name: str = ""
    classifier: Classifier | None = None
    classifier_name: str = "builtin"
    judges: Judges = field(default_factory=Judges)

    def context(
        self, batch: SampleBatch, *, quality: Sequence[np.ndarray] | None, baseline: MetricContext | None = None
    ) -> MetricContext:
        """What metrics look at: `batch` through these lenses, as it was judged."""
        return MetricContext(
            batch,
            quality=quality,
            correct_at=self.correct_at,
            encoder=self.encoder,
            encoder_name=self.encoder_name,
            classifier=self.classifier,
            baseline=baseline,
            judges=self.judges,
        )

    @property
    def given(self) -> dict[str, bool]:
        """Which of the models are there, as `default_metrics` asks."""
        judges = self.judges
        models = {"encoder": self.encoder, "nli": judges.nli, "equivalence": judges.equivalence}
        return {name: model is not None for name, model in models.items()}

    def signature(self, metric: Metric) -> str:
        """What `metric` looks through, for its signature."""
        names = {
            "encoder": self.encoder_name,
            "nli": self.judges.nli_name,
            "equivalence": self.judges.equivalence_name,
        }
        parts = [f"{need}:{name}" for need, name in names.items() if need in metric.needs]
        parts += [f"formats:{self.classifier_name}"] if metric.family == "formats" else []
        if "quality" in metric.needs:
            parts.append(f"quality:{self.judge}@{self.correct_at:g}")
        return "|".join(parts)


FORESEEN = 200  # runs simulated for each alarm before training
AHEAD = 1000  # evaluations of a simulated run, at most


class Monitor:
    """Metrics, alarms and history behind one call.

    Args:
        metrics: What to measure; None measures all that can be.
        rules: What to watch, with its budget when it is a `RuleSet`. Rules on metrics that are not measured stay
            unknown.
        lenses: Quality, encoder and format classifier.
        history: Where to record; None keeps nothing on disk.
        health: Where failures are counted.
        keep_completions: Write completions beside the history (those of the baseline are always kept).
        intervals: Bootstrap every number; that takes most of the measuring time.
        keep_logprobs: Also write log-probabilities and entropies of every token, which take most of the space.

    The first batch observed is the baseline: its quantities (idf, format shares, difficulty bins) are frozen, and
    drops are measured from it.
    """

    def __init__(
        self,
        metrics: Sequence[Metric] | None = None,
        *,
        rules: Iterable[Rule] | RuleSet = (),
        lenses: Lenses | None = None,
        history: History | None = None,
        health: Health | None = None,
        keep_completions: bool = True,
        intervals: bool = True,
        keep_logprobs: bool = False,
    ) -> None:
        self.lenses = lenses or Lenses()
        self.metrics = default_metrics(**self.lenses.given) if metrics is None else tuple(metrics)
        self.rules = RuleSet.of(rules)
        self.history = history
        self.health = health or Health()
        self.keep_completions = keep_completions
        self.intervals = intervals
        self.keep_logprobs = keep_logprobs
        self.alarms = Alarms(self.rules)
        self.confirming: Confirmations | None = None
        if self.rules.confirms:
            self.confirming = Confirmations(self.rules, self.metrics, context=self._context, health=self.health)
        self._baseline: MetricContext | None = None
        self._last: tuple[Measurement, ...] = ()
        self._restored: int | None = None

    def take_back(self, step: int) -> None:
        """Training has gone back to the weights of `step`: alarms are judged afresh from the next evaluation on."""
        self._restored = step
        self.alarms.take_back()

    def observe(
        self, batch: SampleBatch, *, health: Mapping[str, float] | None = None, draw: Draw | None = None
    ) -> Observation:
        """Measure `batch`, advance the alarms, record both.

        A metric that fails gives NaN with the reason; a disk that fails is retried with the next evaluation. Neither
        stops the other numbers.

        Args:
            batch: Completions at one step.
            health: More timings and counters to record with it.
            draw: Draws fresh completions of the policy, for confirmations. Without it, alarms that must be confirmed do
                not fire.
        """
        start, first = time.perf_counter(), self._baseline is None
        context = self._context(batch)
        measurements = tuple(m for metric in self.metrics for m in self._measure(metric, context))
        verdicts, more = self._confirm(batch, measurements, draw, first=first)
        events = tuple(self.alarms.observe(batch.step, measurements, verdicts))
        actions = self._decide(events, measurements)
        spent = time.perf_counter() - start - more.get("confirm_seconds", 0.0)
        row = {**(health or {}), **self.health.row(), **more, "measure_seconds": spent}
        self._last = measurements
        self._record(Evaluation(batch.step, measurements, events, row, verdicts, self._restored), batch)
        states, baseline = dict(self.alarms.states), context.reference.batch
        found = Observation(batch.step, measurements, events, actions, states, row, batch, baseline, verdicts)
        return replace(found, quality=context.quality)

    def _confirm(
        self, batch: SampleBatch, measurements: Sequence[Measurement], draw: Draw | None, *, first: bool
    ) -> tuple[tuple[Verdict, ...], dict[str, float]]:
        """What fresh draws say to the alarms that ask, and the row of it for `divmon/health`."""
        if self.confirming is None:
            return (), {}
        self.confirming.history = self.history
        asked = self.alarms.asks(batch.step, measurements)
        return self.confirming.observe(batch, asked, draw, first=first), self.confirming.row

    def foresee(self, evaluations: int, *, within: float = math.inf) -> RulePlan | None:
        """What the confirmed alarms can promise over so many `evaluations`, from the noise of the baseline.

        None before the baseline, and where nothing is confirmed. It takes some seconds.

        Raises:
            DivmonError: It cannot be said from so few completions, or saying it would take more than `within` seconds.
        """
        rules = [rule for rule in self.rules if rule.confirms]
        if self._baseline is None or not rules:
            return None
        watched = {rule.metric for rule in rules}
        chosen = [metric for metric in self.metrics if metric.name in watched]
        if within < math.inf and (cost := seconds(self._baseline, chosen)) > within:
            raise DivmonError(f"it would take about {cost:.0f} s")
        book = replace(self.rules, rules=tuple(rules))
        return plan_rules(book, pilots(self._baseline, chosen), evaluations=min(evaluations, AHEAD), runs=FORESEEN)

    def missed(self, step: int, *, health: Mapping[str, float] | None = None) -> Observation:
        """Record that there were no completions at `step`: every series gets NaN with the reason."""
        reason = "the sampler failed; see divmon/health/sampler_failures"
        blank = {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0, "values": (), "details": {}}
        measurements = tuple(replace(m, step=step, reason=reason, **blank) for m in self._last)  # type: ignore[arg-type]
        events = tuple(self.alarms.observe(step, measurements))
        row = {**(health or {}), **self.health.row()}
        self._record(Evaluation(step, measurements, events, row, restored=self._restored), None)
        actions = self._decide(events, measurements)
        return Observation(step, measurements, events, actions, dict(self.alarms.states), row)

    def resume(self, history: History) -> None:
        """Continue a recorded run: alarms are refolded from `history`, frozen quantities from its baseline batch.

        Raises:
            HistoryError: The completions of the baseline are not on disk, so nothing can be compared with them.
        """
        measured = [evaluation for evaluation in history.evaluations if evaluation.measurements]
        if measured:  # evaluations before the first batch have none
            self._context(history.batch(measured[0].step))
            self._last = measured[-1].measurements
        for evaluation in history.evaluations:
            self.alarms.fold(evaluation)
        self.history = history

    def _decide(self, events: Sequence[AlarmEvent], measurements: Sequence[Measurement]) -> tuple[Action, ...]:
        context = {"measurements": measurements, "history": self.history}
        failed = partial(self.health.failed, "mitigation")
        return decide(events, functions=self.alarms.functions, context=context, on_error=failed)

    def _context(self, batch: SampleBatch) -> MetricContext:
        lenses = self.lenses
        quality = None
        with self.health.shield("quality"):
            # gold answers do not stand in for rewards that failed: another judge is another series
            if lenses.judge != "rewards" or batch.rewards is not None:
                quality, errors = judge(batch, lenses.quality)
                if errors:
                    self.health.failed("quality", lenses.judge, errors[0])
        context = lenses.context(batch, quality=quality, baseline=self._baseline)
        if self._baseline is None:
            self._baseline = context
        return context

    def _measure(self, metric: Metric, context: MetricContext) -> list[Measurement]:
        batch = context.batch
        domains = [*batch.domains, OVERALL] if len(batch.domains) > 1 else list(batch.domains)
        failed = missing(batch, "the metric failed; see divmon/health/metric_failures")
        found = [summarise(failed, batch.rows(domain), intervals=False) for domain in domains]
        with self.health.shield("metric", metric.name), np.errstate(divide="ignore", invalid="ignore"):
            result = evaluate(metric, context)
            found = [summarise(result, batch.rows(domain), intervals=self.intervals) for domain in domains]
        aggregator = "agg:mean" if metric.scope == "per_prompt" else "agg:pooled"
        signature = "|".join(
            filter(None, (metric.signature, self.lenses.signature(metric), aggregator, batch.signature))
        )
        return [
            replace(m, step=batch.step, domain=domain, metric=metric.name, signature=signature)
            for m, domain in zip(found, domains, strict=True)
        ]

    def _record(self, evaluation: Evaluation, batch: SampleBatch | None) -> None:
        self._restored = None
        if self.history is not None:
            first = self._baseline is not None and batch is self._baseline.batch
            kept = batch if self.keep_completions or first else None
            if kept is not None and not self.keep_logprobs:
                kept = replace(kept, logprobs=None, entropies=None)
            with self.health.shield("disk", str(self.history.path)):
                self.history.append(evaluation, kept)


def replay(history: History, rules: Iterable[Rule] | RuleSet) -> list[AlarmEvent]:
    """The events `rules` give on a recorded run. With the rules of the run they are those raised live, bit for bit.

    Recorded confirmations answer the same questions; where none was recorded, a rule that must be confirmed stays
    pending. Silences are those of `rules`, or of the run when they come without any.
    """
    if not isinstance(rules, RuleSet):
        rules = RuleSet.restore(rules, history.info.get("alarms"))
    alarms = Alarms(rules)
    return [event for evaluation in history.evaluations for event in alarms.fold(evaluation)]


def recheck(
    history: History, *, metrics: Sequence[Metric] | None = None, lenses: Lenses | None = None
) -> list[tuple[Verdict, Verdict]]:
    """Every recorded confirmation beside what its completions on disk say now, those of given-up branches included.

    Args:
        history: A recorded run.
        metrics: As the run was measured; None: the default ones.
        lenses: As in the run: quality, encoder, formats.

    Raises:
        HistoryError: Completions are missing.
    """
    rules = RuleSet.restore(restore_rules(history.info.get("rules", ())), history.info.get("alarms"))
    monitor = Monitor(metrics, rules=rules, lenses=lenses)
    known = {rule.claim + rule.name: rule for rule in rules}
    evaluations = [*history.evaluations, *history.superseded]
    verdicts = [v for e in evaluations for v in e.verdicts if not math.isnan(v.p)]
    if not verdicts or monitor.confirming is None:
        return []
    first = min(evaluation.step for evaluation in evaluations if evaluation.measurements)
    monitor._context(history.batch(first))
    monitor.confirming.history = history
    if lost := [v.key for v in verdicts if v.tested + v.alarm not in known]:
        raise HistoryError(f"The rule of the confirmation of {lost[0]} is not among the recorded ones.")
    return [(v, monitor.confirming.retest(v, known[v.tested + v.alarm])) for v in verdicts]
