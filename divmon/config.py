"""Settings: everything a user can say, checked before training starts."""

from __future__ import annotations

import inspect
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

import yaml

from divmon.alarms import Rule, RuleSet, default_rules, load_ruleset
from divmon.errors import ConfigError, suggest
from divmon.metrics import METRICS, default_metrics, resolve
from divmon.metrics.base import Judges, Metric
from divmon.metrics.discovery import named_classifier
from divmon.metrics.structure import build_classifier
from divmon.mitigations import LeverSettings, lever_settings
from divmon.monitor import Lenses
from divmon.probes import PACKS, ProbeSet
from divmon.records import Decoding
from divmon.sinks import Sink, as_sink

OWN_PROBES = 32  # prompts taken from the trainer's data when none are named
OWN_DOMAIN = "train"
EVALUATIONS = 20  # over a run, when no cadence is named
LENGTH_CAP = 128


class SettingsKwargs(TypedDict, total=False):
    """The keyword arguments of `DiversityCallback` and `watch`; see `Settings` for what they mean."""

    k: int
    every: int | None
    max_new_tokens: int | None
    temperature: float
    top_p: float
    seed: int
    metrics: Sequence[Any] | None
    alarms: Any
    alpha: float | None
    confirmations: int | None
    confirm_k: int | None
    quality: Any
    correct_at: float
    formats: Any
    encoder: Any
    nli: Any
    equivalence: Any
    sinks: Sequence[Any] | None
    run_dir: str | Path | None
    chat: bool | None
    batch_size: int | None
    rollouts: bool
    keep_logprobs: bool
    strict: bool


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to watch, how often, and what to do about it.

    Attributes:
        probes: Prompts, in any form `ProbeSet.of` takes. None: 32 prompts of the trainer's own data.
        k: Completions a prompt at each evaluation.
        every: Steps between evaluations. None: 20 evaluations over the run.
        max_new_tokens: Length cap of a completion. None: the trainer's own cap, at most 128.
        temperature: 1.0 samples the policy as it is.
        top_p: 1.0 keeps the tail.
        seed: Names the noise; equal seeds and weights give equal completions.
        metrics: Names, functions of one prompt's list of completions, or `Metric` records; ``"default"`` stands for the
            default set. None: that set.
        alarms: A YAML file, a list of rules or mappings, instead of the default rules; ``[]`` for none. None: the
            default rules, which only warn.
        alpha: Chance, for the whole run, that any confirmed alarm is false. None: what the alarm file says, else 0.05.
        confirmations: How many confirmations a run may draw. None: what the alarm file says, else 8.
        confirm_k: Completions a prompt that a confirmation draws. None: four times `k`.
        quality: ``(probe, completion) -> float``, or ``"rewards"`` to call the trainer's reward functions. None: gold
            answers of the probes, where there are any (`probe.gold` is a string, or None).
        correct_at: A completion is correct (good enough) from this quality on.
        formats: Your own formats: a function of a text, or a mapping from label to regular expression; or
            ``"discover"`` to add forms that recur at the baseline, or ``"echo-chamber"`` for the rule of that study.
        encoder: A sentence-transformers name, ``"offline"`` for the packaged MiniLM, or a function of a list of texts.
            Adds `semantic_distance` and Vendi scores.
        nli: A model of entailment, by its Transformers name (``"roberta-large-mnli"``), or a function of pairs. Adds
            `nli_diversity`. It reads every pair of a prompt's completions, both ways, which takes its time.
        equivalence: What judges whether two completions say the same: ``"rouge1"`` (no model), ``"nli:NAME"``,
            ``"noveltybench"``, ``"pair:NAME@0.5"`` or a function of pairs. Adds `distinct_k` and `semantic_entropy`.
            None: entailment both ways, where `nli` is given and a metric asks.
        sinks: ``"console"``, ``"wandb"``, ``"trackio"``, functions of an `Observation`, or objects with `name`,
            `emit` and `close`; ``"default"`` stands for the console and what the trainer reports to. None: those.
        run_dir: Where the history goes. None: ``divmon`` inside the trainer's output folder.
        chat: Wrap plain-text prompts as one user message. None: when the trainer's own data is conversational.
        batch_size: Completions drawn at once. None: found by trying.
        rollouts: Also measure what an RL trainer generates itself, every step, as a series of its own.
        keep_logprobs: Record log-probabilities and entropies of every token with the completions.
        strict: Let divmon's own failures stop training; for tests.

    Raises:
        ConfigError: A value that cannot work; the message says what to write instead.
    """

    probes: Any = None
    k: int = 8
    every: int | None = None
    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    metrics: Sequence[Any] | None = None
    alarms: Any = None
    alpha: float | None = None
    confirmations: int | None = None
    confirm_k: int | None = None
    quality: Any = None
    correct_at: float = 0.5
    formats: Any = None
    encoder: Any = None
    nli: Any = None
    equivalence: Any = None
    sinks: Sequence[Any] | None = None
    run_dir: str | Path | None = None
    chat: bool | None = None
    batch_size: int | None = None
    rollouts: bool = True
    keep_logprobs: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        _positive_integers(self, ("k", "every", "max_new_tokens", "batch_size"))
        _numbers(self, ("temperature", "top_p", "correct_at"))
        _switches(self)
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature must be above 0, not {self.temperature}: at 0 every completion is the same."
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if isinstance(self.quality, str) and self.quality != "rewards" and ":" not in self.quality:
            raise ConfigError(f"quality={self.quality!r}: pass a function, 'package.module:function', or 'rewards'.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ConfigError(f"seed must be an integer, not {self.seed!r}.")
        if self.run_dir is not None and not isinstance(self.run_dir, (str, Path)):
            raise ConfigError(f"run_dir must be the path of a folder, not {self.run_dir!r}.")

    @classmethod
    def make(cls, values: Mapping[str, Any], *, where: str = "") -> Settings:
        """Settings from keyword arguments or a YAML mapping; an unknown name is an error with a suggestion."""
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"{where}Unknown setting {name!r}.{suggest(str(name), known)}")
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> Settings:
        """Settings from a YAML file whose keys are the names above (`alarms` may be a list of rules right there)."""
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"Cannot read settings from {path}: {error.strerror}.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not YAML: {error}") from error
        values = {} if values is None else values
        if not isinstance(values, Mapping):
            raise ConfigError(f"{path} must hold settings, one 'name: value' a line.")
        if isinstance(values.get("alarms"), str):
            values = {**values, "alarms": path.parent / values["alarms"]}
        return cls.make(values, where=f"{path}: ")

    def decoding(self, cap: int) -> Decoding:
        """How probes are sampled, with `cap` tokens where the user named no cap."""
        return Decoding(self.temperature, self.top_p, self.max_new_tokens or cap, self.seed)


@dataclass(frozen=True)
class Plan:
    """Settings with every name looked up. Made at construction, so that errors come early."""

    settings: Settings
    probes: ProbeSet | None
    metrics: tuple[Metric, ...]
    rules: RuleSet
    lenses: Lenses
    sinks: tuple[Sink, ...]
    default_sinks: bool = True
    levers: Mapping[str, LeverSettings] = field(default_factory=dict)


def plan(settings: Settings) -> Plan:
    """Look everything up.

    Raises:
        ConfigError: An unknown metric, domain, rule, action or sink; a K too small for a metric.
        ProbeError: Prompts that cannot be read.
    """
    probes = None if settings.probes is None else ProbeSet.of(settings.probes)
    lenses = _lenses(settings)
    metrics = _metrics(settings)
    rules = _rules(settings, metrics, probes)
    named = ["default"] if settings.sinks is None else _listed("sinks", settings.sinks)
    sinks = tuple(as_sink(sink) for sink in named if sink != "default")
    shown = "default" in named
    return Plan(settings, probes, metrics, rules, lenses, sinks, default_sinks=shown, levers=lever_settings(rules))


def check_domains(rules: Iterable[Rule] | RuleSet, probes: ProbeSet) -> None:
    """Every domain a rule or a silence names must exist.

    Raises:
        ConfigError: One does not; with a suggestion.
    """
    silences = rules.silences if isinstance(rules, RuleSet) else ()
    named = [(f"Alarm {rule.name!r} watches", rule.domain) for rule in rules]
    named += [(f"The silence of {silence.alarm!r} names", silence.domain) for silence in silences]
    for what, domain in named:
        if domain is not None and domain not in (*probes.domains, "all"):
            hint = suggest(domain, probes.domains)
            raise ConfigError(f"{what} the domain {domain!r}, which no probe has.{hint}")
    for rule in rules:
        for name in rule.except_:
            if hint := misspelt_exception(name, probes.domains):
                raise ConfigError(f"Alarm {rule.name!r} leaves out the domain {name!r}, which no probe has.{hint}")


def misspelt_exception(name: str, domains: Iterable[str]) -> str:
    """A suggestion where `name` under `except` looks like a misspelt domain, else "".

    A file may leave out domains that this run does not have, those of the packs above all.

    >>> misspelt_exception("mth", ["math"]), misspelt_exception("code", ["math", "codes"])
    (" Did you mean 'math'?", '')
    """
    known = list(domains)
    hint = "" if name in (*known, *PACKS) else suggest(name, known)
    return hint if "Did you mean" in hint else ""


def fit(plan: Plan, probes: ProbeSet) -> Plan:
    """The plan for these probes: default rules about a domain that no probe has are left out.

    Raises:
        ConfigError: A rule or a silence of the user's names a domain that does not exist; with a suggestion.
    """
    if plan.settings.alarms is None:
        kept = tuple(rule for rule in plan.rules if rule.domain in (None, *probes.domains))
        plan = replace(plan, rules=replace(plan.rules, rules=kept))
    check_domains(plan.rules, probes)
    return plan


def _metrics(settings: Settings) -> tuple[Metric, ...]:
    chosen = settings.metrics
    chosen = ["default"] if chosen is None else _listed("metrics", chosen)
    lenses = ("encoder", "nli", "equivalence")
    standard = default_metrics(**{name: getattr(settings, name) is not None for name in lenses})
    groups = [standard if spec == "default" else (resolve(spec),) for spec in chosen]
    metrics = tuple(metric for group in groups for metric in group)
    names = [metric.name for metric in metrics]
    for metric in metrics:
        if names.count(metric.name) > 1:
            raise ConfigError(f"Two metrics are called {metric.name!r}; a name is a curve, so give one another name.")
        if settings.k < metric.min_k and "default" not in chosen:
            raise ConfigError(
                f"k={settings.k} is too small for {metric.name}, which compares completions of one prompt and needs at "
                f"least {metric.min_k}. Set k={metric.min_k} or more, or drop the metric."
            )
        _check_lenses(metric, settings)
    if settings.k < 2 and "default" in chosen:
        raise ConfigError(
            f"k={settings.k} is too small to see diversity within a prompt. Set k=2 or more (8 is the default)."
        )
    return metrics


def _check_lenses(metric: Metric, settings: Settings) -> None:
    """What a metric looks through must be given."""
    if "encoder" in metric.needs and settings.encoder is None:
        raise ConfigError(
            f"{metric.name} needs an encoder: pass encoder='offline' (pip install 'divmon[offline]') or the name "
            "of a sentence-transformers model."
        )
    if "nli" in metric.needs and settings.nli is None:
        raise ConfigError(
            f"{metric.name} needs a model of entailment: pass nli='roberta-large-mnli', another such model of "
            "Transformers, or a function of pairs of texts."
        )
    if "equivalence" in metric.needs and settings.equivalence is None and settings.nli is None:
        raise ConfigError(
            f"{metric.name} needs a judge of whether two texts say the same: pass equivalence='rouge1' (no model), "
            "'nli:NAME', 'noveltybench', or a function of pairs of texts."
        )


def _rules(settings: Settings, metrics: Sequence[Metric], probes: ProbeSet | None) -> RuleSet:
    measured = {metric.name: metric for metric in metrics}
    given = {key: getattr(settings, key) for key in ("alpha", "confirmations", "confirm_k")}
    given = {key: value for key, value in given.items() if value is not None}
    if settings.alarms is None:
        return RuleSet(default_rules(measured), **given)
    rules = replace(load_ruleset(settings.alarms, known_metrics={*METRICS, *measured}), **given)
    for rule in rules:
        if rule.metric not in measured:
            raise ConfigError(
                f"Alarm {rule.name!r} watches {rule.metric!r}, which is not measured. Add it to metrics= (measured "
                f"now: {', '.join(sorted(measured))})."
            )
        metric = measured[rule.metric]
        if rule.confirms and rule.margin.relative and metric.bounds[0] < 0 and metric.family != "user":
            raise ConfigError(
                f"Alarm {rule.name!r} is confirmed against a share of the baseline, but {rule.metric} can be below 0. "
                "Write `by` and `tolerate` in its own unit (by: 0.1), or evidence: screen."
            )
    if probes is not None:
        check_domains(rules, probes)
    return rules


def _lenses(settings: Settings) -> Lenses:
    quality = settings.quality
    if isinstance(quality, str) and quality != "rewards":
        quality = _named_function("quality", quality)
    if quality is not None and quality != "rewards" and not callable(quality):
        raise ConfigError(f"quality must be a function (probe, completion) -> float, or 'rewards', not {quality!r}.")
    if callable(quality):
        _check_arguments(quality)
    encoder, name = None, ""
    if settings.encoder is not None:
        from divmon.models import load_encoder

        encoder, name = load_encoder(settings.encoder)
    judges = Judges()
    if settings.nli is not None or settings.equivalence is not None:
        from divmon.models import load_judges

        judges = load_judges(settings.nli, settings.equivalence)
    return Lenses(
        quality=None if quality == "rewards" else quality,
        judge=quality if isinstance(quality, str) else getattr(quality, "__name__", "function") if quality else "gold",
        correct_at=settings.correct_at,
        encoder=encoder,
        encoder_name=name,
        classifier=named_classifier(settings.formats) or build_classifier(settings.formats),
        classifier_name=_classifier_name(settings.formats),
        judges=judges,
    )


def _classifier_name(formats: Any) -> str:
    if formats is None:
        return "builtin"
    return formats if isinstance(formats, str) else "user"


def _check_arguments(quality: Callable[..., Any]) -> None:
    """A function that cannot be called with a probe and a completion would fail on every completion."""
    try:
        inspect.signature(quality).bind(None, None)
    except TypeError as error:
        raise ConfigError(
            f"quality must take a probe and a completion, as in quality(probe, completion) -> float ({error}). To call "
            "the trainer's own reward functions, pass quality='rewards'."
        ) from error
    except ValueError:  # a builtin without a signature
        return


def _named_function(kind: str, name: str) -> Callable[..., Any]:
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{kind}={name!r} cannot be imported: {error}. Write 'package.module:function'.") from error
    if not callable(found):
        raise ConfigError(f"{kind}={name!r} is a {type(found).__name__}, not a function.")
    return found  # type: ignore[no-any-return]


def _listed(name: str, value: Any) -> list[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ConfigError(f"{name} must be a list, for example {name}=[{value!r}].")
    return list(value)


def _positive_integers(settings: Settings, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is None and name != "k":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}.")


def _numbers(settings: Settings, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"{name} must be a number, not {value!r}.")


def _switches(settings: Settings) -> None:
    """The word "no" counts as true in Python."""
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        if setting.name == "chat" and value is None:
            continue
        if (setting.name == "chat" or isinstance(setting.default, bool)) and not isinstance(value, bool):
            raise ConfigError(f"{setting.name} must be true or false, not {value!r}.")


__all__ = ["Plan", "Settings", "SettingsKwargs", "check_domains", "fit", "plan"]
