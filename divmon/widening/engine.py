"""`widen`: which kinds of thinking do a model's completions use, and does resampling widen them?

Each mode of resampling runs on the same completions, and beside them a control that spends as many draws on the bare
prompt. What both draw goes through one and the same gate: feasible, good enough, not there yet. So what is left between
them is what the critique and the mode are worth.

Source: the modes, Suzuki and Banaei-Kashani (2025), arXiv:2511.20471; that the gain is taken over as many plain draws,
and measured by counts and distances rather than by a judge, is this project's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from divmon.config import plan
from divmon.errors import ConfigError, ProbeError, unknown
from divmon.metrics.answers import gold_match
from divmon.metrics.base import Encoder, Metric
from divmon.metrics.quality import judge
from divmon.mitigations.resample import MODES, ResampleSettings
from divmon.monitor import Lenses
from divmon.records import Probe, SampleBatch
from divmon.resampling.base import Attempt, Critic, Quality, Writer
from divmon.resampling.critics import as_critic
from divmon.resampling.dialogue import feasible_by
from divmon.resampling.filters import Feasible
from divmon.resampling.modes import Thinking, WordThinking, thinking_by
from divmon.resampling.needs import allotted, grouped, needy
from divmon.resampling.prompts import Templates
from divmon.samplers.file import batch_from_rows, read_completions
from divmon.settings import Settings
from divmon.widening.arms import Gate, Pools, guided, plain
from divmon.widening.gains import gains
from divmon.widening.results import Widened

__all__ = ["Widened", "widen"]

METRICS = ("surface_vendi_1", "surface_vendi_2", "tfidf_distance", "mean_quality")
SEMANTIC = ("vendi_1", "vendi_2", "semantic_distance")
_ALL = 10**9
_FIXED = ("mode", "variant", "reveal", "budget", "k", "shortcut", "cooling", "overshoot")  # make no sense here
Rows = str | Path | SampleBatch | Sequence[Attempt] | Iterable[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Besides those of `ResampleSettings`."""

    modes: Sequence[str] = MODES
    metrics: Sequence[str] | None = None
    max_new_tokens: int = 128
    key: int = 0
    templates: Mapping[str, str] | None = None
    resample: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> _Options:
        own = {one.name for one in fields(cls)} - {"resample"}
        more = {one.name for one in fields(ResampleSettings)} - set(_FIXED)
        for name in given:
            if name not in own | more:
                raise unknown("option", name, own | more)
        options = cls(
            **{name: value for name, value in given.items() if name in own},
            resample={name: value for name, value in given.items() if name in more},
        )
        if isinstance(options.modes, str) or not options.modes:
            raise ConfigError(f"modes must be a list of some of {', '.join(MODES)}, not {options.modes!r}.")
        for mode in options.modes:
            if mode not in MODES:
                raise unknown("mode", mode, MODES)
            options.settings(mode)  # what is wrong with them is known before any model is loaded
        _ = options.words  # as are templates that lack something
        if not isinstance(options.key, int):
            raise ConfigError(f"`key` must be a whole number, not {options.key!r}.")
        return options

    @property
    def words(self) -> Templates:
        """What critics and the model are asked."""
        return Templates.of(self.templates)

    def settings(self, mode: str) -> ResampleSettings:
        """Of one mode: every prompt that repeats itself is needy, and nothing good is left out for being too many."""
        base = {"min_correct": _ALL, "keep": _ALL, "temperature": 1.0, **self.resample}
        return ResampleSettings(mode=mode, budget=_ALL, **base)


def widen(
    completions: Rows,
    writer: Writer | tuple[Any, Any] | str | Path,
    critic: Any = "policy",
    *,
    quality: Quality | str | None = None,
    feasible: Feasible | str | None = None,
    thinking: Thinking | str | None = None,
    encoder: Encoder | str | None = None,
    **options: Any,
) -> Widened:
    """Resample completions in each creative mode, and measure what it gains over as many plain draws.

    A prompt takes part when two of its completions are alike (less than `novelty` apart) and not known to be bad. For
    each it is asked how it repeats itself (`critiques` of its completions), and rewritten in the mode (`refinements`
    of each critique, `most` in all). Critiques count as draws, whoever writes them: the control draws as many from the
    bare prompt, at the same temperature, and what it draws goes through the same filters, that of novelty included.

    Args:
        completions: A file as for `divmon.read_completions`, a batch, attempts, or rows.
        writer: The model that wrote them: (model, tokenizer), its folder or Hub name, or a `Writer`.
        critic: As `divmon.resampling.critics.as_critic` has it.
        quality: Of a prompt and a completion, or "MODULE:NAME"; by gold answers when None.
        feasible: Of a prompt and a completion: the gate. Or whom to ask, as `critic`; when None, any text passes.
        thinking: Of (prompt text, completion, others): one of the modes, or None. Or whom to ask, as `critic`;
            `divmon.resampling.modes.WordThinking` when None.
        encoder: As in `divmon.Settings`: adds metrics of meaning.
        **options: ``modes``, ``metrics`` (names of `divmon.METRICS`), ``max_new_tokens``, ``key``, ``templates``, and
            of `ResampleSettings`: ``critiques``, ``refinements``, ``most``, ``keep``, ``novelty``, ``overlap``,
            ``logprob``, ``good``, ``min_correct``, ``temperature`` (1 here, of both arms).

    Returns:
        Kinds of thinking before and after, what each arm drew, what passed, and the gains with paired 95 % intervals
        over prompts. ``print(widened.table())`` shows it.

    Raises:
        ProbeError: A row that cannot be used; the message names it.
        ConfigError: A mode, metric or option that does not exist, a model that cannot be loaded.
        SamplingError: The writer failed on bare prompts, so that there is nothing to compare with.
    """
    chosen = _Options.of(options)
    batch = _batch(completions)
    lenses, metrics = _lenses(batch, chosen, quality=quality, encoder=encoder)
    told = {"critic": critic, "feasible": feasible, "thinking": thinking}
    told = {name: _who(who) if name == "critic" or isinstance(who, str) else who for name, who in told.items()}
    author = _writer(writer, chosen.max_new_tokens)
    told = {name: as_critic(who, policy=author) if who == "policy" else who for name, who in told.items()}
    if isinstance(feasible, str):
        told["feasible"] = feasible_by(told["feasible"])
    if isinstance(thinking, str):
        told["thinking"] = thinking_by(told["thinking"])
    gate = Gate(author, _judge(batch, lenses.quality), told["feasible"], key=chosen.key)
    lenses = replace(lenses, correct_at=chosen.settings(chosen.modes[0]).threshold)
    return _compared(
        batch, metrics, lenses, chosen, gate=gate, critic=told["critic"], kinds=told["thinking"] or WordThinking()
    )


def _compared(
    batch: SampleBatch,
    metrics: Sequence[Metric],
    lenses: Lenses,
    chosen: _Options,
    *,
    gate: Gate,
    critic: Critic,
    kinds: Thinking,
) -> Widened:
    """All arms on the completions of `batch`, and what each gains."""
    first = chosen.settings(chosen.modes[0])
    judged, errors = judge(batch, lenses.quality)
    attempts = [
        Attempt(probe, text, math.nan if judged is None else float(judged[i][j]))
        for i, (probe, row) in enumerate(zip(batch.probes, batch.texts, strict=True))
        for j, text in enumerate(row)
    ]
    served = allotted(needy(attempts, first), first)
    pools = Pools.of(batch, attempts, served)
    arms = {"plain": plain(served, pools, gate, first)}
    for mode in chosen.modes:
        settings = chosen.settings(mode)
        arms[mode] = guided(served, pools, gate, settings, critic=critic, templates=chosen.words)
    return Widened(
        prompts=len(batch.probes),
        served=len(served),
        arms={name: arm.told(pools, kinds) for name, arm in arms.items()},
        thinking=pools.thinking(kinds),
        gains=gains(metrics, pools, arms, replace(lenses, quality=gate.quality)),
        notes=pools.notes(arms, known=judged is not None, quality=gate.quality, errors=errors),
    )


def _who(spec: Any) -> Any:
    """A critic; "policy" stays so until there is one."""
    return spec if spec == "policy" else as_critic(spec)


def _batch(completions: Rows) -> SampleBatch:
    if isinstance(completions, SampleBatch):
        return completions
    if isinstance(completions, (str, Path)):
        return read_completions(completions)
    rows: list[Any] = list(completions)
    if not rows:
        raise ProbeError("There are no completions to widen.")
    if not all(isinstance(row, Attempt) for row in rows):
        return batch_from_rows(rows)
    found = grouped(rows)
    return SampleBatch(
        step=0,
        probes=tuple(group[0].probe for group in found),
        texts=tuple(tuple(one.text for one in group) for group in found),
        rewards=tuple(tuple(one.quality for one in group) for group in found),
        source="file",
    )


def _lenses(batch: SampleBatch, chosen: _Options, *, quality: Any, encoder: Any) -> tuple[Lenses, Sequence[Metric]]:
    names = list(chosen.metrics or (*METRICS, *(SEMANTIC if encoder is not None else ())))
    given = {"quality": quality, "encoder": encoder, "metrics": names, "k": max(2, batch.k), "alarms": []}
    found = plan(Settings.make(given))
    return found.lenses, found.metrics


def _writer(writer: Any, max_new_tokens: int) -> Writer:
    if all(hasattr(writer, name) for name in ("name", "write", "logprob")):
        return writer  # type: ignore[no-any-return]
    from divmon.resampling.local import load_writer

    return load_writer(writer, max_new_tokens=max_new_tokens)


def _judge(batch: SampleBatch, quality: Callable[[Probe, str], Any] | None) -> Quality | None:
    """What can judge completions that are yet to be written: not the rewards of a file."""
    if quality is not None or all(probe.gold is None for probe in batch.probes):
        return quality
    return lambda probe, text: None if probe.gold is None else float(gold_match(text, probe.gold))
