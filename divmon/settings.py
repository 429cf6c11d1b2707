"""Settings: everything a user can say about a run, checked before training starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypedDict

import yaml

from divmon.errors import ConfigError, suggest
from divmon.reasoning import way_named
from divmon.records import Decoding
from divmon.schedule import MOVED

OWN_PROBES = 32  # prompts taken from the trainer's data when none are named
OWN_DOMAIN = "train"
EVALUATIONS = 20  # over a run, when no cadence is named
LENGTH_CAP = 128


class SettingsKwargs(TypedDict, total=False):
    """The keyword arguments of `DiversityCallback` and `watch`; see `Settings` for what they mean."""

    k: int
    every: int | None
    score_every: int | None
    budget: str | float | None
    moved: float | None
    max_new_tokens: int | None
    temperature: float
    top_p: float
    seed: int
    reasoning: str
    metrics: Sequence[Any] | None
    alarms: Any
    alpha: float | None
    confirmations: int | None
    confirm_k: int | None
    quality: Any
    correct_at: float
    critic: Any
    writer: Any
    formats: Any
    encoder: Any
    nli: Any
    equivalence: Any
    references: Any
    others: Any
    attributes: Any
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
        every: Steps between evaluations. None: 20 evaluations over the run. With scores, the most steps between two
            samplings, and None is a fifth of the run.
        score_every: Steps between scores of the baseline's own completions, which takes one forward pass and no
            sampling. None: as often as `budget` allows; without a budget no scores are taken.
        budget: Share of process time that divmon may take, the baseline apart: "2%" or 0.02. It makes scores and
            samplings rarer and changes nothing else. None: no limit.
        moved: Change of KL per token, in nats by the scores, at which the policy is sampled anew. None: 0.02.
        max_new_tokens: Length cap of a completion. None: the trainer's own cap, at most 128 and half of the model's
            window. A prompt that does not fit into the window beside it loses its beginning, never its end, and a
            warning counts such prompts; scores read it exactly as it was sampled from.
        temperature: 1.0 samples the policy as it is.
        top_p: 1.0 keeps the tail.
        seed: Names the noise; equal seeds and weights give equal completions.
        reasoning: What is done with ``<think>...</think>``. "strip": what comes after it is measured, and a completion
            that was cut while reasoning is left out and counted. "keep": all of it is measured. "empty": an empty
            block ends every prompt, so that the answer begins at once. Rewards and scores see whole completions.
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
        critic: Who criticises where an alarm asks for `resample`: a function, "policy", "model:NAME", the address of an
            endpoint, or "package.module:function". None: whom the alarm names, else the policy.
        writer: Who refines there: an object with `name`, `write` and `logprob` (`divmon.resampling.base.Writer`).
            None: the policy.
        formats: Your own formats: a function of a text, or a mapping from label to regular expression; or
            ``"discover"`` to add forms that recur at the baseline, or ``"echo-chamber"`` for the rule of that study.
        encoder: A sentence-transformers name, ``"offline"`` for the packaged MiniLM, or a function of a list of texts.
            Adds `semantic_distance` and Vendi scores.
        nli: A model of entailment, by its Transformers name (``"roberta-large-mnli"``), or a function of pairs. Adds
            `nli_diversity`. It reads every pair of a prompt's completions, both ways, which takes its time.
        equivalence: What judges whether two completions say the same: ``"rouge1"`` (no model), ``"nli:NAME"``,
            ``"noveltybench"``, ``"pair:NAME@0.5"`` or a function of pairs. Adds `distinct_k` and `semantic_entropy`.
            None: entailment both ways, where `nli` is given and a metric asks.
        references: Texts by people: a file of rows with a ``text``, a list, a column of a data set, or ``"shipped"``.
            Adds `human_gap` and a curve for each of its six dimensions.
        others: Completions of other models on the same prompts: a file of rows with ``prompt``, ``model`` and
            ``completions``. Adds `hivemind_similarity`, `source_models` and `hivemind_repetition`.
        attributes: What voices are compared by, in the place of the shipped counts: a mapping from name to a function
            of one text, or a list in which ``"default"`` keeps the shipped ones. Adds curves for yours.
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
    score_every: int | None = None
    budget: str | float | None = None
    moved: float | None = None
    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    reasoning: str = "strip"
    metrics: Sequence[Any] | None = None
    alarms: Any = None
    alpha: float | None = None
    confirmations: int | None = None
    confirm_k: int | None = None
    quality: Any = None
    correct_at: float = 0.5
    critic: Any = None
    writer: Any = None
    formats: Any = None
    encoder: Any = None
    nli: Any = None
    equivalence: Any = None
    references: Any = None
    others: Any = None
    attributes: Any = None
    sinks: Sequence[Any] | None = None
    run_dir: str | Path | None = None
    chat: bool | None = None
    batch_size: int | None = None
    rollouts: bool = True
    keep_logprobs: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        _positive_integers(self, ("k", "every", "score_every", "max_new_tokens", "batch_size"))
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
        way_named(self.reasoning)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ConfigError(f"seed must be an integer, not {self.seed!r}.")
        if self.run_dir is not None and not isinstance(self.run_dir, (str, Path)):
            raise ConfigError(f"run_dir must be the path of a folder, not {self.run_dir!r}.")

        _check_schedule(self)

    @property
    def scores(self) -> bool:
        """Whether the baseline's completions are scored."""
        return self.score_every is not None or self.budget is not None

    @property
    def share(self) -> float | None:
        """`budget` as a share of 1."""
        return None if self.budget is None else _share(self.budget)

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
        for name in ("references", "others"):  # beside the settings, where a file of that name is there
            if isinstance(values.get(name), str) and (path.parent / values[name]).exists():
                values = {**values, name: path.parent / values[name]}
        return cls.make(values, where=f"{path}: ")

    def decoding(self, cap: int) -> Decoding:
        """How probes are sampled, with `cap` tokens where the user named no cap."""
        return Decoding(self.temperature, self.top_p, self.max_new_tokens or cap, self.seed, self.reasoning)


def _check_schedule(settings: Settings) -> None:
    if settings.budget is not None:
        _share(settings.budget)
    if settings.scores and settings.top_p < 1:
        raise ConfigError(
            f"Scores need completions drawn with top_p=1, not {settings.top_p:g}, which cuts off the tail they are to "
            "watch. Leave top_p at 1, or score_every and budget out."
        )
    if settings.moved is None:
        return
    if not settings.scores:
        raise ConfigError(
            "moved= is judged by scores, and none are taken: add budget='2%' or score_every=10, or leave moved out."
        )
    _numbers(settings, ("moved",))
    if not settings.moved > 0:
        raise ConfigError(f"moved must be above 0 nats a token, for example {MOVED}, not {settings.moved!r}.")


def _share(value: str | float) -> float:
    """A budget as a share of 1.

    >>> _share("2%"), _share(0.02)
    (0.02, 0.02)
    """
    text = str(value).strip()
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not 0 < number < 1:
        hint = f" {value} is more than all of it; did you mean '{value:g}%'?" if _above_one(value) else ""
        raise ConfigError(f"budget is a share of process time, for example '2%' or 0.02, not {value!r}.{hint}")
    return number


def _above_one(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value < 100


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
