"""One probe set over a lineage of checkpoints: which stage lost the diversity, and of what kind the loss is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from divmon.config import Plan, plan
from divmon.errors import ConfigError, DivmonError, HistoryError, unknown
from divmon.metrics import METRICS
from divmon.metrics.base import Metric, MetricContext, Result, evaluate, missing
from divmon.metrics.quality import judge
from divmon.probes import ProbeSet
from divmon.reasoning import answers, way_named
from divmon.records import Measurement, SampleBatch
from divmon.samplers.ranks import Ranks
from divmon.settings import LENGTH_CAP, Settings
from divmon.sinks.base import DEFAULT_METRICS
from divmon.tracing.attribution import aggregator_named, ancestors, branches
from divmon.tracing.drawing import Draw, Drawing, Sampled
from divmon.tracing.lineage import Lineage
from divmon.tracing.numbers import measurements, numbers
from divmon.tracing.percentages import Shape, percentages
from divmon.tracing.results import Seen, Series, Split, Trace
from divmon.tracing.sampling import Asked
from divmon.tracing.splitting import DISTANCES, Distances, distances, split

log = logging.getLogger("divmon")
ALLOWED = (
    "k", "max_new_tokens", "temperature", "top_p", "seed", "metrics", "quality", "correct_at", "formats", "encoder",
    "nli", "equivalence", "chat", "batch_size", "references", "others", "attributes",
)  # fmt: skip
PER = ("task", "prompt")


def trace(
    lineage: Any,
    probes: Any,
    *,
    out: str | Path,
    aggregator: str = "mean of ratios",
    per: str = "task",
    reasoning: str = "strip",
    draw: Draw | None = None,
    progress: bool = False,
    **settings: Any,
) -> Trace:
    """Sample every checkpoint of a lineage on the same prompts, and say which stage lost the diversity.

    Checkpoints are loaded one at a time. Completions are kept under `out`, in blocks: an interrupted trace goes on
    where it stopped and gives the same numbers. A checkpoint that fails is named, and the others go on. On several
    processes (``accelerate launch``) each draws a share, and all get the result.

    What moves the numbers besides the training of a stage: another tokenizer or chat template (noted), the length cap,
    and other prompts. Intervals are over prompts; they say nothing about another training run.

    Args:
        lineage: A mapping from names to folders or Hub names, a YAML file, a list: whatever `Lineage.of` takes. The
            first is the base; the parent of each is the one before it unless it names another.
        probes: Prompts, in any form `ProbeSet.of` takes. Their domains are the tasks.
        out: A folder for completions and results.
        aggregator: "mean of ratios" (over tasks, of percentages of the base) or "ratio of means". Both are in the
            result; this one is shown first.
        per: "task": percentages are taken of the means of domains. "prompt": of single prompts, for metrics that have
            such values.
        reasoning: "strip": measure what comes after ``</think>``. "keep": all of it. "empty": suppress reasoning, by
            an empty block at the beginning of each answer.
        draw: Opens a checkpoint in another way than by Transformers: called with it, gives a function
            ``(probes, *, step) -> SampleBatch``.
        progress: Say on the log what goes on.
        **settings: As in `divmon.Settings`: k, max_new_tokens, temperature, top_p, seed, metrics, quality, correct_at,
            formats, encoder, nli, equivalence, chat, batch_size. And dtype, of the weights.

    Raises:
        ConfigError: A lineage, metric or setting that cannot work.
        ProbeError: Prompts that cannot be used; the message names the line.
        HistoryError: No checkpoint could be measured, or `out` cannot be written.
    """
    found = Lineage.of(lineage)
    prompts = ProbeSet.of(probes)
    chosen, dtype = _chosen(settings, prompts)
    if per not in PER:
        raise unknown("per", str(per), PER)
    way_named(reasoning)
    aggregator = aggregator_named(aggregator)
    asked = Asked(
        k=chosen.settings.k,
        decoding=replace(chosen.settings.decoding(LENGTH_CAP), reasoning="keep"),  # each checkpoint has its way
        chat=bool(chosen.settings.chat),
        batch_size=chosen.settings.batch_size,
        dtype=dtype,
    )
    ranks = _ranks()
    folder = _folder(out, ranks)
    say = log.warning if progress else log.info
    drawing = Drawing(
        found,
        prompts,
        asked,
        root=folder / "completions",
        ranks=ranks,
        draw=draw,
        say=lambda line: say("divmon: %s", line),
    )
    ways = {checkpoint.name: checkpoint.reasoning or reasoning for checkpoint in found}
    sampled = {c.name: drawing.sample(c, suppress=ways[c.name] == "empty") for c in found}
    result, error = None, None
    if ranks.main:
        try:
            result = Tracing(found, prompts, chosen, ways=ways, asked=asked).result(sampled, aggregator, per)
        except DivmonError as raised:
            error = raised
    result, error = ranks.broadcast((result, error))
    if result is None:
        raise error or HistoryError("The first process failed.")
    return result


def _chosen(settings: Mapping[str, Any], probes: ProbeSet) -> tuple[Plan, Any]:
    rest = dict(settings)
    dtype = dtype_named(rest.pop("dtype", "auto"))
    for name in rest:
        if name not in ALLOWED and name in Settings.__dataclass_fields__:
            raise ConfigError(f"{name} is for a trainer; a lineage is traced with {', '.join(ALLOWED)}.")
    if rest.get("quality") == "rewards":
        raise ConfigError("quality='rewards' needs a trainer; pass a function (probe, completion) -> float.")
    return plan(Settings.make({**rest, "probes": probes, "alarms": []})), dtype


def dtype_named(dtype: Any) -> Any:
    """ "auto", or a type of PyTorch or its name.

    Raises:
        ConfigError: No such type; said at once, before anything is loaded.
    """
    import torch

    if dtype == "auto" or isinstance(getattr(torch, str(dtype).removeprefix("torch."), None), torch.dtype):
        return dtype
    raise ConfigError(f"dtype must be 'auto' or one of PyTorch's, such as 'bfloat16', not {str(dtype)[:80]!r}.")


def _ranks() -> Ranks:
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Ranks()
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    # the slowest share of a large checkpoint may be hours behind the fastest
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(hours=24))
    return Ranks(state.process_index, state.num_processes)


def _folder(out: str | Path, ranks: Ranks) -> Path:
    folder = Path(out).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HistoryError(f"Cannot write to {folder}: {error.strerror}.") from error
    return folder


class Tracing:
    """Measures what the checkpoints gave.

    Args:
        lineage: The checkpoints.
        probes: The prompts.
        chosen: Metrics, and what they look through.
        ways: What is done with the reasoning of each checkpoint.
        asked: How they were sampled.
    """

    def __init__(
        self, lineage: Lineage, probes: ProbeSet, chosen: Plan, *, ways: Mapping[str, str], asked: Asked
    ) -> None:
        self.lineage = lineage
        self.probes = probes
        self.chosen = chosen
        self.ways = ways
        self.asked = asked
        self.notes: list[str] = []
        self.cut: dict[str, int] = {}

    def result(self, sampled: Mapping[str, Sampled], aggregator: str, per: str) -> Trace:
        """Everything, measured.

        Raises:
            HistoryError: No checkpoint gave anything.
        """
        batches = {n: self._measured(n, s) for n, s in sampled.items() if s.batch is not None}
        if not batches:
            name, first = next(iter(sampled.items()))
            raise HistoryError(f"No checkpoint could be sampled. {name}: {first.failure}")
        names, base = list(batches), self.lineage.base.name
        if base not in batches:
            self.notes.append(f"the base {base} failed, so there is nothing to take percentages of")
        contexts = self._contexts(batches)
        shape = self._shape(names, per)
        values: dict[str, list[Measurement]] = {name: [] for name in names}
        series: list[Series] = []
        domains = [(domain, contexts[0].batch.rows(domain)) for domain in self.probes.domains]
        for metric in self._ordered():
            results = [self._evaluate(metric, context) for context in contexts]
            by_domain = {domain: numbers(results, rows, i) for i, (domain, rows) in enumerate(domains)}
            signed = self.chosen.lenses.signature(metric)
            for name, row in zip(names, measurements(metric, by_domain, list(batches.values()), signed), strict=True):
                values[name] += row
            if shape is not None:
                series += percentages(metric, by_domain, shape)
        return Trace(
            checkpoints=tuple(self._seen(name, sampled[name], batches.get(name)) for name in self.lineage.names),
            groups={group: tuple(members) for group, members in self.lineage.groups.items()},
            branches=tuple(self.lineage.branches),
            aggregator=aggregator,
            per=per,
            metrics=tuple(metric.name for metric in self._ordered()),
            values={name: tuple(row) for name, row in values.items()},
            series=tuple(series),
            splits=tuple(self._splits(names, contexts, shape, domains)),
            prompts=len(self.probes),
            k=self.asked.k,
            domains=self.probes.domains,
            decoding=self.asked.decoding.signature,
            fingerprint=self.probes.fingerprint,
            notes=tuple(dict.fromkeys([*self.notes, *self._confounds(sampled)])),
        )

    def _measured(self, name: str, sampled: Sampled) -> SampleBatch:
        """Its completions as they are measured: without reasoning, where it is to be stripped."""
        batch = sampled.batch
        if batch is None:
            raise ValueError(name)
        self.cut[name] = 0
        if self.ways[name] != "keep":
            batch, self.cut[name] = answers(batch, inside=bool(sampled.facts.get("inside")))
        return batch

    def _contexts(self, batches: Mapping[str, SampleBatch]) -> list[MetricContext]:
        """The first is everyone's baseline: the base, or where that failed the first that did not."""
        lenses = self.chosen.lenses
        found: list[MetricContext] = []
        for name, batch in batches.items():
            quality, errors = judge(batch, lenses.quality)
            if errors:
                self.notes.append(f"quality failed on completions of {name}, first with {errors[0]!r}")
            found.append(lenses.context(batch, quality=quality, baseline=found[0] if found else None))
        return found

    def _ordered(self) -> list[Metric]:
        """The most telling first, then a user's own, then the rest."""
        place = {name: i for i, name in enumerate(DEFAULT_METRICS)}
        own = len(place)
        return sorted(self.chosen.metrics, key=lambda m: place.get(m.name, own + (m.name in METRICS)))

    def _evaluate(self, metric: Metric, context: MetricContext) -> Result:
        try:
            with np.errstate(divide="ignore", invalid="ignore"):
                return evaluate(metric, context)
        except Exception as error:
            self.notes.append(f"{metric.name} failed with {type(error).__name__}: {error}")
            return missing(context.batch, f"the metric failed with {type(error).__name__}")

    def _shape(self, names: Sequence[str], per: str) -> Shape | None:
        lineage = self.lineage
        if lineage.base.name not in names:
            return None
        parents = {
            name: next((above for above in ancestors(name, lineage.parents) if above in names), None) for name in names
        }
        kept = {group: [name for name in members if name in names] for group, members in lineage.groups.items()}
        groups = {group: members for group, members in kept.items() if members}
        return Shape(names, parents, groups, branches(names, parents), per)

    def _splits(
        self,
        names: Sequence[str],
        contexts: Sequence[MetricContext],
        shape: Shape | None,
        domains: Sequence[tuple[str, np.ndarray]],
    ) -> list[Split]:
        measured = {metric.name: metric for metric in self.chosen.metrics}
        metric = next((measured[name] for name in DISTANCES if name in measured), None)
        if metric is None or shape is None:
            return []
        sides: dict[str, Distances] = {}
        for name, context in zip(names, contexts, strict=True):
            one = distances(metric, context, reference=contexts[0])
            if one is not None:
                sides[name] = one
        found: list[Split] = []
        for name in names[1:]:
            for since in dict.fromkeys((shape.parents[name], names[0])):
                if since in sides and name in sides:
                    found += split(metric.name, ((since, sides[since]), (name, sides[name])), domains)
        return found

    def _seen(self, name: str, sampled: Sampled, batch: SampleBatch | None) -> Seen:
        checkpoint, cut = self.lineage.named(name), self.cut.get(name, 0)
        notes = list(sampled.facts.get("notes", ()))
        if cut:
            drawn = cut + (0 if batch is None else sum(map(len, batch.texts)))
            notes.append(f"{cut} of {drawn} completions were cut while reasoning and left out: raise max_new_tokens")
        return Seen(
            name=name,
            source=checkpoint.source,
            parent=checkpoint.parent,
            reasoning=self.ways[name],
            completions=0 if batch is None else sum(map(len, batch.texts)),
            cut=cut,
            failure=sampled.failure,
            notes=tuple(notes),
        )

    def _confounds(self, sampled: Mapping[str, Sampled]) -> list[str]:
        """What else differs between a checkpoint and its parent."""
        notes = []
        for checkpoint in self.lineage:
            mine = sampled[checkpoint.name].facts
            theirs = sampled[checkpoint.parent].facts if checkpoint.parent else {}
            if not mine or not theirs:
                continue
            pair = f"{checkpoint.name} and its parent {checkpoint.parent}"
            if mine.get("tokenizer") != theirs.get("tokenizer"):
                notes.append(f"{pair} have different tokenizers: tokens and entropies are in different units")
            if mine.get("prompts") != theirs.get("prompts"):
                notes.append(
                    f"{pair} are shown their prompts in different forms (chat template, reasoning): what changed is "
                    "the weights and the form together"
                )
        return notes
