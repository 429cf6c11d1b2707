"""Rounds of self-training: sample, criticise, refine, filter, train from the base.

Sources: Xi et al. (2024), arXiv:2411.16579: every wrong answer is criticised and refined, right ones of both kinds are
trained on, from the base, each round. Ding et al. (2024), arXiv:2411.00750: plain rounds keep ever fewer hard prompts;
guidance goes to prompts with fewer than four right answers. That both arms draw equally many completions, critiques
included, is this project's own rule.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from divmon.compat import policy_of, tokenizer_of, window_of
from divmon.errors import ConfigError, HistoryError, suggest
from divmon.mitigations.resample import ResampleSettings
from divmon.plain import to_json
from divmon.probes import ProbeSet
from divmon.records import Decoding
from divmon.resampling.base import Quality
from divmon.resampling.critics import as_critic
from divmon.resampling.dialogue import noise, uncritical
from divmon.resampling.inrun import judged_by
from divmon.resampling.lineage import Lineage
from divmon.resampling.prompts import Templates
from divmon.resampling.resampler import Resampler
from divmon.resampling.writers import ModelWriter
from divmon.samplers.generate import GenerateSampler
from divmon.selftraining.gathering import Gathered, Gatherer, Kept, by_level, kept, made_levels
from divmon.selftraining.learning import Learner, load, reload, rows_of
from divmon.selftraining.results import RECORD, Round, SelfTrained, write_record

LEARNERS = ("base", "last")
CRITIQUE = 256  # tokens of a critique that the policy writes, at most
LINEAGE = "lineage.jsonl"


@dataclass
class SelfTraining:
    """Self-training of a model on prompts whose answers can be judged, plain or with critiques; see `run`.

    Attributes:
        model: A folder, a Hub name, or a model, which is copied and stays as it is.
        tokenizer: Its tokenizer.
        prompts: In any form `divmon.ProbeSet.of` takes; with `difficulty` where there are levels. Without any, levels
            are made of the base's pass rates (see `made_levels`).
        quality: ``(probe, completion) -> float``. None: gold answers of the prompts.
        critic: None for plain self-training; else whom `divmon.resampling.critics.as_critic` makes of it ("policy", a
            function, ...). True for the variants answer and rationale, which need nobody.
        settings: Of resampling, or a mapping of them. A round's budget is `budget`; theirs caps one pass.
        rounds: So many.
        samples: Plain completions a prompt before anything is criticised.
        budget: Completions a round in all: answers, critiques (whoever writes them) and refinements. None: twice
            `samples` for each prompt. Plain self-training spends all of it on answers.
        keep: Accepted completions a prompt and round, at most.
        held_out: Prompts that divmon watches and that pass rates are measured on. None: `prompts`.
        gold_data: Rows with a prompt and a completion that are mixed into every round's training data.
        previous: Whether earlier rounds' accepted completions are trained on again.
        learner: What a round trains: "base", from the beginning, or "last", what the round before has made.
        sft: Arguments of TRL's `SFTConfig`.
        watch: Settings of `divmon.DiversityCallback`. By default it looks before each round and four times in it.
        templates: Your own words to critic and policy, by name.
        max_new_tokens: Cap of a completion.
        temperature: Of plain completions.
        out: Folder of everything.
        seed: Of sampling and training.

    Raises:
        ConfigError: A setting that cannot work.
        ProbeError: Prompts that cannot be read.
    """

    model: Any
    tokenizer: Any
    prompts: Any
    quality: Quality | None = None
    _: KW_ONLY
    critic: Any = None
    settings: ResampleSettings | Mapping[str, Any] = field(default_factory=ResampleSettings)
    rounds: int = 3
    samples: int = 8
    budget: int | None = None
    keep: int = 4
    held_out: Any = None
    gold_data: Sequence[Mapping[str, Any]] = ()
    previous: bool = False
    learner: str = "base"
    sft: Mapping[str, Any] = field(default_factory=dict)
    watch: Mapping[str, Any] = field(default_factory=dict)
    templates: Templates | Mapping[str, str] | None = None
    max_new_tokens: int = 128
    temperature: float = 0.7
    out: str | Path = "runs/selftraining"
    seed: int = 0

    def __post_init__(self) -> None:
        self.settings = settings_of(self.settings)
        self.templates = Templates.of(self.templates)
        self.prompts = ProbeSet.of(self.prompts)
        self.held_out = self.prompts if self.held_out is None else ProbeSet.of(self.held_out)
        self.tokenizer = tokenizer_of(self.tokenizer)
        for name in ("rounds", "samples", "keep", "max_new_tokens"):
            _whole(name, getattr(self, name), least=1)
        _whole("seed", self.seed, least=0)
        least = self.samples * len(self.prompts)
        self.budget = 2 * least if self.budget is None else self.budget
        _whole("budget", self.budget, least=least)
        if isinstance(self.temperature, bool) or not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature must be above 0, not {self.temperature!r}: at 0 all completions are equal.")
        if self.learner not in LEARNERS:
            raise ConfigError(f"learner={self.learner!r}.{suggest(str(self.learner), LEARNERS)}")
        for i, row in enumerate(self.gold_data):
            if not isinstance(row, Mapping) or not {"prompt", "completion"} <= set(row):
                raise ConfigError(f"gold_data, row {i}: a row is a mapping with a 'prompt' and a 'completion'.")
        self._quality = judged_by(self.quality, self.prompts)
        if self._quality is None or not callable(self._quality):
            raise ConfigError(
                "Self-training must know which completions are correct: pass quality=f(probe, completion), or prompts "
                "with gold answers."
            )
        if self.critic is not None and self.critic is not True and self.critic != "policy":
            self.critic = as_critic(self.critic)
        if self.critic is True and not uncritical(self.settings):
            raise ConfigError(f"critic=True, but {self.settings.kind!r} needs one who criticises, such as 'policy'.")
        if self.settings.variant == "rationale" or (self.critic is not None and self.settings.mode is not None):
            _refuse_odd(self.settings, self.prompts)
        self._learner().watcher(Path(self.out), steps=1)  # what is wrong with `watch` shows now

    def run(self) -> SelfTrained:
        """Go through the rounds, from the first one that is not finished.

        A round draws completions of the prompts (of the base model first, then of what the round before has made),
        has wrong ones criticised and refined, keeps what passes every filter, and trains on pairs of prompt and
        completion. What was finished in `out` before is not done again: with equal settings, a run that was interrupted
        ends as one that was not.

        A critic that fails or says nothing leaves a plain round, completion by completion; `Round.events` says so.

        Raises:
            ConfigError: `out` holds self-training with other settings, or the model cannot be used like this.
        """
        out = Path(self.out)
        out.mkdir(parents=True, exist_ok=True)
        base = load(self.model)
        GenerateSampler(base, self.tokenizer, 1, self._decoding()).check(self.prompts)
        asked = self._asked(base)
        done, level = _before(out, asked)
        policy = base if not done else reload(base, out / f"round-{len(done)}" / "model")
        lineage = Lineage(out / LINEAGE)
        lineage.rewind(len(done))
        for number in range(len(done) + 1, self.rounds + 1):
            found, level = self._round(number, base=base, policy=policy, level=level, lineage=lineage)
            done = (*done, found)
            write_record(out, done, asked, level)
            _log(found)
            policy = reload(base, out / f"round-{number}" / "model")
        return SelfTrained(out, done, asked["critic"], to_json(asked))

    def _round(
        self, number: int, *, base: Any, policy: Any, level: Mapping[str, int], lineage: Lineage
    ) -> tuple[Round, Mapping[str, int]]:
        started, folder = time.perf_counter(), Path(self.out) / f"round-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        sampler = GenerateSampler(policy, self.tokenizer, 1, self._decoding())
        resampler = None if self.critic is None else self._resampler(policy, lineage)
        gathered = self._gatherer().gather(sampler, resampler, number=number)
        level = level or self._levels(gathered)
        accepted = kept(gathered, self._settings, keep=self.keep)
        _write_pairs(folder, accepted, level)
        start = base if self.learner == "base" else policy
        rows, steps = self._rows(number, accepted), 0
        if rows:
            steps = self._learner().train(start, rows, folder, seed=noise(self.seed, "training", number))
        else:
            gathered.events.append("Nothing was accepted, so nothing was trained: the model stays as it was.")
            policy.save_pretrained(folder / "model")
        outcome = self._learner().outcome(folder, level)
        made = self._counted(number, gathered, accepted, level) | {"steps": steps} | outcome
        made["events"] = (*gathered.events, *outcome.get("events", ()))
        return Round(**made, seconds=time.perf_counter() - started), level

    def _counted(
        self, number: int, gathered: Gathered, accepted: Sequence[Kept], level: Mapping[str, int]
    ) -> dict[str, Any]:
        levels = tuple(sorted({level[probe.id] for probe in self.prompts}))
        right = [attempt for attempt in gathered.attempts if attempt.quality >= self._settings.threshold]
        data = tuple(sum(level[probe.id] == name for probe in self.prompts) for name in levels)
        some = {one.probe.id for one in accepted}
        covered = [sum(level[id] == name for id in some) for name in levels]
        tried = zip(by_level(right, level, levels), by_level(gathered.attempts, level, levels), strict=True)
        return {
            "number": number,
            "drawn": len(gathered.attempts),
            "critiques": gathered.counts["critiques"],
            "refinements": gathered.counts["refinements"],
            "levels": levels,
            "data": data,
            "tried": tuple(a / b if b else float("nan") for a, b in tried),
            "direct": by_level([one for one in accepted if not one.refined], level, levels),
            "refined": by_level([one for one in accepted if one.refined], level, levels),
            "covered": tuple(a / b for a, b in zip(covered, data, strict=True)),
            "counts": dict(gathered.counts),
        }

    @property
    def _settings(self) -> ResampleSettings:
        return settings_of(self.settings)

    def _decoding(self) -> Decoding:
        return Decoding(temperature=self.temperature, max_new_tokens=self.max_new_tokens)

    def _gatherer(self) -> Gatherer:
        assert self._quality is not None
        budget = int(self.budget or 0)
        return Gatherer(tuple(self.prompts), self._quality, self.samples, budget, self._settings, self.seed)

    def _learner(self) -> Learner:
        assert self._quality is not None
        threshold = self._settings.threshold
        return Learner(
            self.tokenizer, self.held_out, self._quality, threshold, self.sft, self.watch, self.max_new_tokens
        )

    def _resampler(self, policy: Any, lineage: Lineage) -> Resampler:
        """One for each round: what an earlier round has kept may be kept again, as training begins anew."""
        window = window_of(policy_of(policy))
        longest = CRITIQUE if window is None else max(1, min(CRITIQUE, window // 2))
        writer = ModelWriter(policy, self.tokenizer, max_new_tokens=self.max_new_tokens)
        own = ModelWriter(policy, self.tokenizer, max_new_tokens=longest)
        critic = None if self.critic is True else as_critic(self.critic, policy=own)
        return Resampler(
            writer, critic, self._settings, quality=self._quality, lineage=lineage, templates=self.templates
        )

    def _levels(self, gathered: Gathered) -> Mapping[str, int]:
        """Levels of all prompts: those that are given, else made of what the base can do."""
        both = {probe.id: probe for probe in (*self.held_out, *self.prompts)}
        given = {id: probe.difficulty or 0 for id, probe in both.items()}
        if any(probe.difficulty is not None for probe in self.prompts):
            return given
        tries: dict[str, int] = {}
        first = []
        for attempt in gathered.attempts:  # equally many of each, whoever guides
            tries[attempt.probe.id] = tries.get(attempt.probe.id, 0) + 1
            if tries[attempt.probe.id] <= self.samples:
                first.append(attempt)
        return given | made_levels(first, self._settings.threshold)

    def _rows(self, number: int, accepted: Sequence[Kept]) -> list[Mapping[str, Any]]:
        earlier: list[Mapping[str, Any]] = []
        if self.previous:
            for n in range(1, number):
                earlier += _read_pairs(Path(self.out) / f"round-{n}")
        return [*({"prompt": row["prompt"], "completion": row["completion"]} for row in self.gold_data), *earlier,
                *rows_of(accepted)]  # fmt: skip

    def _asked(self, base: Any) -> dict[str, Any]:
        """What two parts of one run must share."""
        critic = None if self.critic is None else self._settings.variant if self.critic is True else self.critic
        named = critic if critic is None or isinstance(critic, str) else str(getattr(critic, "name", critic))
        weights = sum(float(weight.detach().double().abs().sum()) for weight in base.parameters())
        return {
            "base": f"{type(base).__name__}, sum of magnitudes {weights:.9g}",
            "prompts": self.prompts.fingerprint,
            "held_out": self.held_out.fingerprint,
            "critic": named,
            "settings": None if self.critic is None else asdict(self._settings),
            "templates": None if self.critic is None else asdict(Templates.of(self.templates)),
            "samples": self.samples,
            "budget": self.budget,
            **{name: getattr(self, name) for name in ("keep", "previous", "learner", "max_new_tokens", "temperature")},
            "gold_data": len(self.gold_data),
            "sft": {key: str(value) for key, value in sorted(self.sft.items())},
            "seed": self.seed,
        }


def settings_of(settings: ResampleSettings | Mapping[str, Any]) -> ResampleSettings:
    """Settings of resampling from a mapping of some.

    >>> settings_of({"keep": 2}).keep
    2
    """
    if isinstance(settings, ResampleSettings):
        return settings
    known = list(ResampleSettings.__dataclass_fields__)
    for name in settings:
        if name not in known:
            raise ConfigError(f"Unknown setting {name!r} of resampling.{suggest(str(name), known)}")
    return replace(ResampleSettings(), **settings)


def _refuse_odd(settings: ResampleSettings, prompts: ProbeSet) -> None:
    from divmon.resampling.filters import solution

    if settings.mode is not None:
        raise ConfigError(f"Self-training keeps what is correct; `mode: {settings.mode}` is for prompts without that.")
    if all(solution(probe) is None for probe in prompts):
        raise ConfigError("`variant: rationale` shows worked solutions, and no prompt has one (`reference`).")


def _whole(name: str, value: Any, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        why = " (`samples` for each prompt)" if name == "budget" else ""
        raise ConfigError(f"{name} must be a whole number of at least {least}{why}, not {value!r}.")


def _before(out: Path, asked: Mapping[str, Any]) -> tuple[tuple[Round, ...], Mapping[str, int]]:
    """The rounds that `out` holds already, and the levels they had."""
    if not (out / RECORD).exists():
        return (), {}
    try:
        found = SelfTrained.read(out)
        levels = json.loads((out / RECORD).read_text("ascii"))["levels"]
    except (HistoryError, KeyError) as error:
        raise ConfigError(f"{error} Pass another `out`.") from error
    for name, value in to_json(asked).items():
        if found.settings.get(name) != value:
            was = str(found.settings.get(name))[:200]
            raise ConfigError(
                f"{out} holds self-training with {name}={was}, not {str(value)[:200]}. Pass another `out`."
            )
    return found.rounds, {str(key): int(value) for key, value in levels.items()}


def _write_pairs(folder: Path, accepted: Sequence[Kept], level: Mapping[str, int]) -> None:
    rows = [
        {"id": one.probe.id, "level": level[one.probe.id], "refined": one.refined, **row}
        for one, row in zip(accepted, rows_of(accepted), strict=True)
    ]
    text = "".join(json.dumps(to_json(row), ensure_ascii=True) + "\n" for row in rows)
    (folder / "accepted.jsonl").write_text(text, "ascii")


def _read_pairs(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "accepted.jsonl").read_text("ascii").splitlines()]
    return [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]


def _log(found: Round) -> None:
    """Curves over rounds, where a run of W&B is open."""
    wandb: Any = sys.modules.get("wandb")
    if getattr(wandb, "run", None) is None:
        return
    row: dict[str, float] = {"round": found.number, "tail": found.tail, "spent": found.spent}
    total = max(1, sum(found.accepted))
    row |= {f"accepted/level-{name}": n / total for name, n in zip(found.levels, found.accepted, strict=True)}
    for name, values in (("pass_at_1", found.pass_at_1), ("pass_at_k", found.pass_at_k)):
        row |= {f"{name}/level-{at}": v for at, v in zip(found.held_out_levels, values, strict=True)}
    wandb.define_metric("selftraining/*", step_metric="selftraining/round")
    wandb.log({f"selftraining/{name}": value for name, value in row.items()})
