"""From settings to a plan: every name that a user gave is looked up before training starts."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from divmon.alarms import Rule, RuleSet, default_rules, load_ruleset
from divmon.errors import ConfigError, suggest
from divmon.metrics import METRICS, default_metrics, resolve
from divmon.metrics.base import Judges, Metric
from divmon.metrics.discovery import named_classifier
from divmon.metrics.structure import build_classifier
from divmon.mitigations import LeverSettings, RollbackSettings, lever_settings, rollback_settings
from divmon.mitigations.inrun import InRunSettings
from divmon.monitor import Lenses
from divmon.probes import PACKS, ProbeSet
from divmon.records import LEVERS, ROLLBACK
from divmon.resampling.critics import as_critic
from divmon.settings import Settings
from divmon.sinks import Sink, as_sink
from divmon.yardsticks import Yardsticks, yardsticks


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
    score_rules: RuleSet = field(default_factory=RuleSet)  # those on what scores measure
    levers: Mapping[str, LeverSettings] = field(default_factory=dict)
    rollback: RollbackSettings | None = None
    critic: Any = None
    given: Yardsticks = field(default_factory=lambda: Yardsticks({}))


def plan(settings: Settings) -> Plan:
    """Look everything up.

    Raises:
        ConfigError: An unknown metric, domain, rule, action or sink; a K too small for a metric.
        ProbeError: Prompts that cannot be read.
    """
    probes = None if settings.probes is None else ProbeSet.of(settings.probes)
    lenses = _lenses(settings)
    compared = {name: getattr(settings, name) for name in ("references", "others", "attributes")}
    given = yardsticks(**compared, encoder=settings.encoder is not None)
    metrics = _metrics(settings, given)
    rules, score_rules = _divided(_rules(settings, metrics, probes))
    named = ["default"] if settings.sinks is None else _listed("sinks", settings.sinks)
    sinks = tuple(as_sink(sink) for sink in named if sink != "default")
    shown = "default" in named
    if probes is not None:
        given.check(probes)
    levers, rollback = lever_settings(rules), rollback_settings(rules)
    acting = {"levers": levers, "rollback": rollback, "critic": _critic(settings, levers), "score_rules": score_rules}
    return Plan(settings, probes, metrics, rules, lenses, sinks, default_sinks=shown, given=given, **acting)


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
        scored = tuple(rule for rule in plan.score_rules if rule.domain in (None, *probes.domains))
        plan = replace(plan, rules=replace(plan.rules, rules=kept))
        plan = replace(plan, score_rules=replace(plan.score_rules, rules=scored))
    for rules in (plan.rules, plan.score_rules):
        check_domains(rules, probes)
    return plan


def _metrics(settings: Settings, given: Yardsticks) -> tuple[Metric, ...]:
    chosen = settings.metrics
    chosen = ["default"] if chosen is None else _listed("metrics", chosen)
    lenses = ("encoder", "nli", "equivalence")
    standard = given.joined(default_metrics(**{name: getattr(settings, name) is not None for name in lenses}))
    groups = [standard if spec == "default" else (_bound(spec, given),) for spec in chosen]
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


def _bound(spec: Any, given: Yardsticks) -> Metric:
    """A metric as it is measured here; one of the user's attributes has a name only here."""
    return given.metrics[spec] if isinstance(spec, str) and spec in given.metrics else given.bound(resolve(spec))


def _check_lenses(metric: Metric, settings: Settings) -> None:
    """What a metric looks through must be given."""
    if is_scored(metric):
        raise ConfigError(
            f"{metric.name} is measured by scores, not on fresh completions: leave it out of metrics=, and set "
            "score_every=10 or budget='2%'. All that scores measure is measured then."
        )
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


def is_scored(metric: Metric) -> bool:
    """Whether it is measured on scores of the baseline's completions."""
    return bool({"bank", "block"} & set(metric.needs))


def _divided(rules: RuleSet) -> tuple[RuleSet, RuleSet]:
    """The rules on fresh completions, and those on scores, which are a series of their own.

    Raises:
        ConfigError: A rule on scores asks for what scores cannot do.
    """
    scored = {name for name, metric in METRICS.items() if is_scored(metric)}
    on_scores = tuple(rule for rule in rules if rule.metric in scored)
    for rule in on_scores:
        if rule.confirms:
            raise ConfigError(
                f"Alarm {rule.name!r} watches {rule.metric}, which scores measure: there are no fresh completions that "
                "could confirm it. Write `evidence: screen`. When it breaks, the policy is sampled at once, and alarms "
                "on those completions can be confirmed."
            )
        if asked := [step for step in rule.actions if step in (ROLLBACK, *LEVERS)]:
            raise ConfigError(
                f"Alarm {rule.name!r} watches {rule.metric}, which scores measure; {asked[0]} needs an alarm on fresh "
                "completions. Use warn, save or stop here."
            )
    names = {rule.name for rule in on_scores}
    silent = [tuple(s for s in rules.silences if (s.alarm in names) == on) for on in (False, True)]
    rest = tuple(rule for rule in rules if rule.metric not in scored)
    return replace(rules, rules=rest, silences=silent[0]), RuleSet(on_scores, silences=silent[1])


def _rules(settings: Settings, metrics: Sequence[Metric], probes: ProbeSet | None) -> RuleSet:
    measured = {metric.name: metric for metric in metrics}
    if settings.scores:
        measured |= {name: metric for name, metric in METRICS.items() if is_scored(metric)}
    given = {key: getattr(settings, key) for key in ("alpha", "confirmations", "confirm_k")}
    given = {key: value for key, value in given.items() if value is not None}
    if settings.alarms is None:
        return RuleSet(default_rules(measured), **given)
    rules = replace(load_ruleset(settings.alarms, known_metrics={*METRICS, *measured}), **given)
    for rule in rules:
        if rule.metric not in measured and rule.metric in METRICS and is_scored(METRICS[rule.metric]):
            raise ConfigError(
                f"Alarm {rule.name!r} watches {rule.metric!r}, which scores measure, and none are taken: set "
                "score_every=10 or budget='2%'."
            )
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


def _critic(settings: Settings, levers: Mapping[str, LeverSettings]) -> Any:
    """What `as_critic` makes a critic of, looked up and tried as far as it can be without a model."""
    lever = levers.get("resample")
    if not isinstance(lever, InRunSettings):
        for name in ("critic", "writer"):
            if getattr(settings, name) is not None:
                raise ConfigError(f"{name}= would have no effect: no alarm lists resample in `then`.")
        return None
    writer = settings.writer
    if writer is not None and not all(hasattr(writer, name) for name in ("name", "write", "logprob")):
        raise ConfigError(f"writer= must have `name`, `write` and `logprob`, which {type(writer).__name__} has not.")
    spec = lever.critic if settings.critic is None else settings.critic
    if isinstance(spec, str) and ":" in spec and "://" not in spec and not spec.startswith("model:"):
        spec = _named_function("critic", spec)
    return spec if spec == "policy" else as_critic(spec)


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
