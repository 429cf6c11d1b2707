"""Resampling without a model: sums, a critic who names the wrong digit, a writer who does what it is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from divmon.records import Probe
from divmon.resampling.base import Attempt, Request

SUM = re.compile(r"(\d+) \+ (\d+) = (\d+)")


def probe(i: int, *, level: int | None = None) -> Probe:
    a, b = 10 + i, 20 + 3 * i
    worked = f"{a} + {b}: take {a}, add {b // 2} and {b - b // 2} to get {a + b}. #### {a + b}"
    return Probe(f"sum-{i:03d}", f"What is {a} + {b}?", gold=worked, difficulty=level)


def right(p: Probe, way: int = 0) -> str:
    a, b = terms(p)
    ways = [
        f"I count on from {a}: {a} + {b} = {a + b}",
        f"Tens ({a // 10}, {b // 10}) first, so that {a} + {b} = {a + b}",
    ]
    return ways[way % 2] + "!" * (way // 2)


def wrong(p: Probe, off: int = 1) -> str:
    a, b = terms(p)
    return f"{a} and {b // 2} and {b - b // 2}, so that {a} + {b} = {a + b + off}"


def terms(p: Probe) -> tuple[int, int]:
    a, b = re.findall(r"\d+", p.text)[:2]
    return int(a), int(b)


def quality(p: Probe, text: str) -> float:
    found = SUM.findall(text)
    return float(bool(found) and int(found[-1][2]) == sum(terms(p)))


def tries(p: Probe, correct: int, wrong_ones: int) -> list[Attempt]:
    texts = [right(p, i) for i in range(correct)] + [wrong(p, i + 1) for i in range(wrong_ones)]
    return [Attempt(p, text, quality(p, text)) for text in texts]


class DigitCritic:
    """Says by how much the sum that is criticised is off."""

    name = "digits"

    def __init__(self) -> None:
        self.calls: list[tuple[list[Request], int]] = []

    def __call__(self, requests: Sequence[Request], *, key: int) -> list[str | None]:
        self.calls.append((list(requests), key))
        return [self.says(request) for request in requests]

    def says(self, request: Request) -> str | None:
        found = SUM.findall(request.attempt.text)
        return f"It is off by {int(found[-1][2]) - sum(terms(request.attempt.probe))}." if found else None


class Obeys:
    """Takes off what the critique says; one refinement in four, by its key, misses, and one in four is the bare sum."""

    name = "obeys"

    def __init__(self, logprob: float = -0.5) -> None:
        self.calls: list[tuple[list[Any], float, list[int]]] = []
        self.scored: list[tuple[list[Any], list[str]]] = []
        self._logprob = logprob

    def write(self, prompts: Sequence[Any], *, temperature: float, keys: Sequence[int]) -> list[str | None]:
        self.calls.append((list(prompts), temperature, list(keys)))
        return [self.writes(prompt, key) for prompt, key in zip(prompts, keys, strict=True)]

    def writes(self, prompt: str, key: int) -> str | None:
        a, b, said = (int(part) for part in SUM.findall(prompt)[0])
        off = re.search(r"off by (-?\d+)", prompt)
        answer = said - int(off[1]) if off else said
        if key % 4 == 0:
            answer += 1
        return f"{a} + {b} = {answer}" if key % 4 == 1 else f"Way {key % 97}: first {a}, then {b}; {a} + {b} = {answer}"

    def logprob(self, prompts: Sequence[Any], texts: Sequence[str]) -> np.ndarray:
        self.scored.append((list(prompts), list(texts)))
        return np.full(len(texts), self._logprob)


def pairwise(function: Callable[[Any], Any]) -> Callable[..., list[Any]]:
    """A critic that asks `function` about each request."""

    def critic(requests: Sequence[Request], *, key: int) -> list[Any]:
        return [function(request) for request in requests]

    return critic
