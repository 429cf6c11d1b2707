"""The frozen records that flow through divmon, and nothing else.

Shape legend, used in names and docstrings everywhere: P prompts, K completions a prompt, T tokens, D embedding width,
V vocabulary. Rows may be ragged in K only where completions come from a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Message = Mapping[str, str]
Prompt = str | tuple[Message, ...]
Severity = Literal["info", "warning", "critical"]
Source = Literal["probe", "rollout", "file", "score"]
State = Literal["unknown", "inactive", "pending", "firing"]
Outcome = Literal["confirmed", "refuted", "unknown"]
OVERALL = "all"  # the domain name of a number taken over every domain
LEVERS = ("diversity_reward", "gate", "entropy_band", "resample")  # actions that act until their alarm resolves
ROLLBACK = "rollback"  # the action that goes back to a healthy checkpoint
ACTIONS = ("warn", "save", "stop", ROLLBACK, *LEVERS)  # the actions a rule may name; each is one kind of `Action`


@dataclass(frozen=True, slots=True)
class Probe:
    """One fixed prompt.

    Attributes:
        id: Unique within its set.
        prompt: Text, or chat messages (dicts with "role" and "content").
        domain: Curves and alarms are kept per domain.
        gold: The right answer, when there is one.
        reference: A text by a person, when there is one.
        difficulty: 1 (easy) upward, when known.
        token_ids: The exact prompt tokens, when the trainer has already made them.
        columns: Other columns of the row it came from (reward functions may want them).
    """

    id: str
    prompt: Prompt
    domain: str = "default"
    gold: str | None = None
    reference: str | None = None
    difficulty: int | None = None
    token_ids: tuple[int, ...] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The prompt as a person would read it (the contents of chat messages, one under the other)."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(str(message.get("content") or "") for message in self.prompt)


@dataclass(frozen=True, slots=True)
class Decoding:
    """How completions were drawn. Every field is part of the signature of every number made from them.

    Attributes:
        temperature: 1.0 samples the policy as it is; a tail monitor should.
        top_p: 1.0 keeps the tail.
        max_new_tokens: The length cap.
        key: Names the noise: equal key, weights and probes give equal completions.
        reasoning: "keep": texts as they were drawn. "strip": without what stands in ``<think>...</think>``. "empty":
            that too, and an empty block ends every prompt.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    key: int = 0
    reasoning: str = "keep"

    @property
    def signature(self) -> str:
        """For example ``T:1|p:1|len:128|key:0``, with ``|reasoning:strip`` where it is not kept."""
        way = "" if self.reasoning == "keep" else f"|reasoning:{self.reasoning}"
        return f"T:{self.temperature:g}|p:{self.top_p:g}|len:{self.max_new_tokens}|key:{self.key}{way}"


@dataclass(frozen=True)
class SampleBatch:
    """P prompts x K completions of one policy at one step.

    Attributes:
        step: The trainer's global step (0 is the baseline, before any update).
        probes: P probes.
        texts: P x K completions as text, special tokens removed.
        token_ids: P x K token ids (the end-of-sequence token included), when known.
        finished: P x K, whether the completion ended by itself (False: cut by the length cap), when known.
        logprobs: P x K arrays over T of log p(token) under the policy at temperature 1, when known.
        entropies: P x K arrays over T of the policy's next-token entropy in nats at temperature 1, when known.
        rewards: P x K rewards, when known; NaN where one is missing.
        decoding: How they were drawn; None when nobody knows (completions from a file).
        source: "probe", "rollout" (drawn by the trainer, in train mode), "file", or "score" (the baseline's completions
            with what the policy of `step` says about them). Never mixed in one series.
        fingerprint: Of the probe set.
        drawn: Completions drawn a prompt, where some were left out since; 0 where none were.
    """

    step: int
    probes: tuple[Probe, ...]
    texts: tuple[tuple[str, ...], ...]
    token_ids: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    finished: tuple[tuple[bool, ...], ...] | None = None
    logprobs: tuple[tuple[np.ndarray, ...], ...] | None = None
    entropies: tuple[tuple[np.ndarray, ...], ...] | None = None
    rewards: tuple[tuple[float, ...], ...] | None = None
    decoding: Decoding | None = None
    source: Source = "probe"
    fingerprint: str = ""
    drawn: int = 0

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.probes):
            raise ValueError(f"{len(self.probes)} probes but {len(self.texts)} rows of completions")
        for name in ("token_ids", "finished", "logprobs", "entropies", "rewards"):
            rows = getattr(self, name)
            if rows is not None and [len(row) for row in rows] != [len(row) for row in self.texts]:
                raise ValueError(f"{name} does not have the shape of texts (P prompts x K completions)")

    @property
    def k(self) -> int:
        """The smallest number of completions any prompt has."""
        return min((len(row) for row in self.texts), default=0)

    @property
    def size(self) -> int:
        """Completions drawn a prompt: `k`, before any were left out."""
        return self.drawn or self.k

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains in the order they first appear."""
        return tuple(dict.fromkeys(probe.domain for probe in self.probes))

    def rows(self, domain: str) -> np.ndarray:
        """Indices of the prompts of `domain` (every prompt for ``OVERALL``)."""
        return np.array([i for i, p in enumerate(self.probes) if domain in (OVERALL, p.domain)], dtype=np.intp)

    @property
    def signature(self) -> str:
        """K, decoding, source and probe fingerprint: what two batches must share to be compared."""
        sizes = sorted({self.drawn or len(row) for row in self.texts})
        k = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]}" if sizes else "0"
        drawn = self.decoding.signature if self.decoding else "decoding:unknown"
        return f"k:{k}|{drawn}|{self.source}|probes:{self.fingerprint}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number of one metric in one domain at one step, with what is needed to trust and compare it.

    Attributes:
        step: The trainer's global step.
        domain: A probe domain, or "all".
        metric: Name in the metrics table.
        value: The number; NaN when it could not be measured, and then `reason` says why.
        low: Lower end of the 95 % bootstrap interval over prompts (NaN when there is none).
        high: Upper end.
        n: Prompts that contributed.
        signature: How it was measured; two values of different signatures are never compared.
        values: One value a prompt (NaN where missing) for per-prompt metrics; empty for pooled ones.
        reason: Why it is missing.
        details: The vector behind the number (shares by format, solved shares by level, ...).
    """

    step: int
    domain: str
    metric: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    signature: str = ""
    values: tuple[float, ...] = ()
    reason: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """``domain/metric``: the name of the series this value belongs to."""
        return f"{self.domain}/{self.metric}"


@dataclass(frozen=True, slots=True)
class AlarmEvent:
    """A change of an alarm's state.

    Attributes:
        step: When.
        alarm: The rule's name.
        domain: The cell of the rule.
        metric: What it watches.
        state: "pending", "firing", "resolved" (back to inactive), "inactive" (a pending one that cleared) or "unknown"
            (a confirmation could not be had).
        severity: Of the rule.
        value: The value that caused the change.
        baseline: What it was compared with (NaN for absolute rules).
        evidence: "screen" (unconfirmed) or "confirm" (fresh draws confirmed it).
        actions: What the rule asks for, in order; empty unless the state is "firing".
        message: One sentence for people.
        details: What stands behind it, in plain JSON types: the confirmation's numbers, what is promised, examples of
            completions side by side (text of a model: escape it), what to do.
    """

    step: int
    alarm: str
    domain: str
    metric: str
    state: str
    severity: Severity
    value: float
    baseline: float = math.nan
    evidence: str = "screen"
    actions: tuple[str, ...] = ()
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a screened alarm that asked for a confirmation.

    Attributes:
        step: When it was asked.
        alarm: The rule's name.
        domain: The cell of the rule.
        tested: What was tested (`Rule.claim`): the answer to another question is no answer.
        outcome: "confirmed", "refuted" or "unknown".
        reason: Why it is unknown; None when it is not.
        attempt: Which confirmation of its cell it was, from 1; 0 when nothing was drawn and nothing spent.
        level: What the p-value was held against; NaN when there was no attempt.
        p: Of the swap test; NaN when unknown.
        estimate: The change in the rule's direction, by fresh draws on both sides.
        low: Lower end of its 95 % interval.
        high: Upper end.
        n: Prompts with a value on both sides.
        informative: Those whose swap changes anything.
        completions: A prompt, on either side.
        draws: Relabellings looked at.
        exact: Whether these were all.
        spent: Of the run's alpha, so far.
        left: Of it.
        details: Examples, which lens looked, where the completions are: plain JSON types.
    """

    step: int
    alarm: str
    domain: str
    tested: str
    outcome: Outcome
    reason: str | None = None
    attempt: int = 0
    level: float = math.nan
    p: float = math.nan
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    informative: int = 0
    completions: int = 0
    draws: int = 0
    exact: bool = True
    spent: float = 0.0
    left: float = math.nan
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> str:
        """``alarm/domain``: the cell that asked."""
        return f"{self.alarm}/{self.domain}"


@dataclass(frozen=True, slots=True)
class Action:
    """Something the trainer's side should do: one of `ACTIONS`. Only the callback applies it."""

    kind: str
    alarm: str
    reason: str


@dataclass(frozen=True, slots=True)
class LeverEvent:
    """A change of a lever: a mitigation that acts for a while. Or what was done about a rollback.

    Attributes:
        step: When.
        lever: One of `LEVERS`, or `ROLLBACK`.
        phase: "armed" (ready, or released), "applied", "cooling", or "refused" (it had no effect on this trainer). Of
            the rollback: "applied" (the weights were taken back), "cooling" (asked for too soon), "refused", or
            "failed" (a checkpoint could not be written or read).
        strength: What it acts with from now on: 1 in full, 0 not at all. Of the rollback: what the learning rate is
            multiplied by from now on.
        alarm: The alarms it answers to, joined by commas.
        reason: One sentence for people.
    """

    step: int
    lever: str
    phase: str
    strength: float
    alarm: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Observation:
    """What one evaluation produced, as the sinks receive it.

    Attributes:
        step: The trainer's global step.
        measurements: Every metric, domain by domain.
        events: State changes of this evaluation.
        actions: What the events ask for, without repeats, in order.
        states: Current state of every alarm cell, keyed ``name/domain``.
        health: Counters and timings of divmon itself, logged under ``divmon/health/``.
        batch: The completions measured.
        baseline: The completions they are compared with.
        verdicts: What confirmations found.
        mitigations: Where each lever stands (0 armed, 1 applied, 2 cooling), logged under ``divmon/mitigation/``.
        changes: What this evaluation changed about them.
        quality: float[P][K] of the completions, as the run judges them; NaN where unknown, None when nothing judges.
    """

    step: int
    measurements: tuple[Measurement, ...]
    events: tuple[AlarmEvent, ...] = ()
    actions: tuple[Action, ...] = ()
    states: Mapping[str, State] = field(default_factory=dict)
    health: Mapping[str, float] = field(default_factory=dict)
    batch: SampleBatch | None = None
    baseline: SampleBatch | None = None
    verdicts: tuple[Verdict, ...] = ()
    mitigations: Mapping[str, float] = field(default_factory=dict)
    changes: tuple[LeverEvent, ...] = ()
    quality: Sequence[np.ndarray] | None = None

    def get(self, metric: str, domain: str | None = None) -> Measurement | None:
        """The measurement of `metric` in `domain` (in the first domain that has it, without one)."""
        for m in self.measurements:
            if m.metric == metric and domain in (None, m.domain):
                return m
        return None


def as_messages(value: Any) -> tuple[Message, ...]:
    """Chat messages as a tuple of plain dicts."""
    items: Sequence[Any] = value
    return tuple({str(k): v for k, v in dict(m).items()} for m in items)
