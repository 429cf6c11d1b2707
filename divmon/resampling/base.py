"""What flows through critique-guided resampling: attempts, critiques, candidates, and what keeps them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from divmon.records import Probe, Prompt

Quality = Callable[[Probe, str], float | bool | None]  # of one completion; NaN or None where it cannot be judged


@dataclass(frozen=True, slots=True)
class Attempt:
    """A completion that the policy wrote from the bare prompt.

    Attributes:
        probe: The prompt.
        text: The completion.
        quality: As the run judges it; NaN when nobody knows.
    """

    probe: Probe
    text: str
    quality: float = math.nan


@dataclass(frozen=True, slots=True)
class Request:
    """What a critic is asked: to say, step by step, what is wrong with (or redundant in) an attempt.

    Attributes:
        attempt: What it shall criticise.
        prompt: The whole question to the critic, ready to be sent.
        others: Completions that are there already, for critiques of redundancy.
    """

    attempt: Attempt
    prompt: Prompt
    others: tuple[str, ...] = ()


class Critic(Protocol):
    """Writes critiques.

    Attributes:
        name: For the lineage.
    """

    name: str

    def __call__(self, requests: Sequence[Request], *, key: int) -> Sequence[str | None]:
        """One critique a request, in order; None for one that could not be had. May raise: nothing is kept then."""


class Written(str):
    """A completion that knows its tokens: a writer may return these instead of plain strings.

    >>> Written("4", token_ids=(19,)).token_ids, Written("4") == "4"
    ((19,), True)
    """

    __slots__ = ("token_ids",)
    token_ids: tuple[int, ...] | None

    def __new__(cls, text: str, token_ids: tuple[int, ...] | None = None) -> Written:
        """The completion `text`, of the tokens `token_ids`."""
        written = super().__new__(cls, text)
        written.token_ids = token_ids
        return written


class Writer(Protocol):
    """Writes refinements: the policy, as a rule.

    Attributes:
        name: For the lineage.
    """

    name: str

    def write(self, prompts: Sequence[Prompt], *, temperature: float, keys: Sequence[int]) -> Sequence[str | None]:
        """One completion a prompt, in order; None for one that was cut off and is of no use.

        Equal prompts, keys and weights give equal completions.
        """

    def logprob(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
        """float[N], mean log p a token of each text right after its prompt; NaN where it cannot be known."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A refinement before the filters.

    Attributes:
        attempt: What it refines.
        critique: What was said of it; "" where the variant needs none.
        text: The refinement.
        variant: "critique", "answer", "rationale", "interactive", "combinational", "exploratory" or "transformational".
        critic: Who criticised.
        writer: Who wrote.
        number: Its index among those of its attempt.
        token_ids: Of `text`, when the writer gives them.
    """

    attempt: Attempt
    critique: str
    text: str
    variant: str = "critique"
    critic: str = ""
    writer: str = ""
    number: int = 0
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Refinement:
    """A candidate that passed every filter: what training may learn from.

    Attributes:
        candidate: With its whole history.
        step: The trainer's step, or the round of self-training.
        quality: Of the text; NaN when nobody knows.
        logprob: Mean log p a token under the bare prompt; NaN when nobody knows.
        novelty: Distance to the nearest text already kept for the prompt (with a mode: or attempted), 0 to 1; NaN
            without any.
        passed: The filters it went through, in order.
    """

    candidate: Candidate
    step: int
    quality: float = math.nan
    logprob: float = math.nan
    novelty: float = math.nan
    passed: tuple[str, ...] = ()

    @property
    def probe(self) -> Probe:
        """The prompt."""
        return self.candidate.attempt.probe

    @property
    def text(self) -> str:
        """The completion to learn."""
        return self.candidate.text


@dataclass(frozen=True)
class Resampled:
    """What one pass of resampling gave.

    Attributes:
        accepted: In the order they were kept.
        counts: Attempts, needy prompts, critiques, refinements, and refinements each filter turned away.
        failures: What went wrong, one sentence each; training goes on without it.
    """

    accepted: tuple[Refinement, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[str, ...] = ()

    def summary(self) -> Mapping[str, Any]:
        """As the event log keeps it, in plain JSON types."""
        return {"accepted": len(self.accepted), **self.counts, "failures": list(self.failures)}
