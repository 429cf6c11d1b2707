"""Completions an RL trainer draws anyway: a free series every step, kept apart from the probes.

Rollouts are not a clean sample of the policy: they use the training decoding, are drawn in train mode (dropout on) and
on different prompts every step. They show trends early and for nothing; probes are what is compared over a run.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from divmon.compat import is_async
from divmon.health import Health
from divmon.probes import probes_from_rows
from divmon.records import Decoding, SampleBatch

DOMAIN = "rollouts"


@dataclass
class Rollout:
    """One completion drawn by the trainer (plain data, so that ranks can exchange it).

    Attributes:
        prompt: Text or chat messages.
        text: The completion.
        rewards: By reward function, in the trainer's order; None where one abstained.
        columns: Difficulty and gold, when the data has them.
    """

    prompt: Any
    text: str
    rewards: list[float | None] = field(default_factory=list)
    columns: Mapping[str, Any] = field(default_factory=dict)


class RolloutTap:
    """Keeps what the trainer generates since the last `take`. Training is bit for bit the same.

    Reward functions are wrapped in place (they see every completion; their arguments are public). A trainer without
    them whose policy generates (PPO) has that call wrapped instead.

    Args:
        trainer: The trainer.
        decode: Token ids to text, for the wrapped generate.
        health: Where failures of the tap are counted.
    """

    def __init__(self, trainer: Any, *, decode: Callable[[Sequence[int]], str], health: Health) -> None:
        self.trainer = trainer
        self.decode = decode
        self.health = health
        self.step = -1
        self._rows: list[Rollout] = []
        self._open: list[Rollout] = []
        self._called = 0
        self._functions = 0
        self._undo: list[Callable[[], None]] = []
        functions = getattr(trainer, "reward_funcs", None)
        if isinstance(functions, list):
            self._wrap_rewards(functions)
        elif hasattr(trainer, "policy_model") and hasattr(trainer, "reward_model"):
            self._wrap_generate(trainer.policy_model)

    @property
    def attached(self) -> bool:
        """Whether there was anything to wrap."""
        return bool(self._undo)

    def take(self) -> tuple[int, list[Rollout]]:
        """The step whose policy drew them, and every completion since the last call."""
        rows, self._rows = self._rows, []
        return self.step, rows

    def detach(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()

    def _wrap_rewards(self, functions: list[Any]) -> None:
        plain = [i for i, function in enumerate(functions) if not hasattr(function, "parameters")]
        self._functions = len(plain)
        for place, i in enumerate(plain):
            original, wrapper = functions[i], self._wrapped(functions[i], place)
            functions[i] = wrapper
            self._undo.append(functools.partial(_put_back, functions, i, wrapper, original))

    def _wrapped(self, function: Any, place: int) -> Any:
        if is_async(function):

            @functools.wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                self._begin(kwargs)
                return self._record(await function(*args, **kwargs), place)

            return awaited

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            self._begin(kwargs)
            return self._record(function(*args, **kwargs), place)

        return called

    @property
    def _listening(self) -> bool:
        return self.attached and bool(self.trainer.model.training)  # else detached, or the trainer's evaluation

    def _begin(self, arguments: Mapping[str, Any]) -> None:
        """Copy the completions of a generation batch, before a reward function can change them in place."""
        if self._listening and self._called == 0:
            with self.health.shield("sampler", "rollouts"):
                self.step = int(self.trainer.state.global_step)
                self._open = _rows_of(arguments, rewards=self._functions)

    def _record(self, out: Any, place: int) -> Any:
        """Keep the rewards `out` of the function at `place`, which need not be called in that order; return them."""
        if not self._listening:
            return out
        if isinstance(out, Iterator):
            out = list(out)  # it can be read once only, and the trainer wants to read it too
        with self.health.shield("sampler", "rollouts"):
            for row, reward in zip(self._open, out, strict=True):
                row.rewards[place] = None if reward is None else float(reward)
        self._called += 1
        if self._called == self._functions:
            self._rows += self._open
            self._open, self._called = [], 0
        return out

    def _wrap_generate(self, policy: Any) -> None:
        original = policy.generate

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            with self.health.shield("sampler", "rollouts"):
                self._record_tokens(policy, kwargs, out)
            return out

        policy.generate = generate
        self._undo.append(lambda: policy.__dict__.pop("generate", None))

    def _record_tokens(self, policy: Any, arguments: Mapping[str, Any], out: Any) -> None:
        temperature = getattr(arguments.get("generation_config"), "temperature", None)
        if not policy.training or abs((temperature or 0.0) - self.trainer.args.temperature) > 1e-3:
            return  # divmon's own probes, or the trainer's sample table
        self.step = int(self.trainer.state.global_step)
        prompts, width = arguments["input_ids"], arguments["input_ids"].shape[1]
        masks = arguments["attention_mask"]
        for prompt, mask, row in zip(prompts, masks, getattr(out, "sequences", out), strict=True):
            kept = [int(token) for token, keep in zip(prompt, mask, strict=True) if keep]
            self._rows.append(Rollout(self.decode(kept), self.decode(row[width:].tolist())))


def _put_back(functions: list[Any], i: int, wrapper: Any, original: Any) -> None:
    """Unwrap, unless somebody has wrapped the wrapper since; then it stays, and passes everything on."""
    if functions[i] is wrapper:
        functions[i] = original


def _rows_of(arguments: Mapping[str, Any], *, rewards: int) -> list[Rollout]:
    prompts, completions = arguments["prompts"], arguments["completions"]
    names = [name for name in ("difficulty", "level", "gold", "answer") if isinstance(arguments.get(name), list)]
    return [
        Rollout(prompt, _text(completion), [None] * rewards, columns={name: arguments[name][i] for name in names})
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


def _text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)


def rollout_batch(
    rows: Sequence[Rollout], *, step: int, group: int, weights: Sequence[float], decoding: Decoding
) -> SampleBatch:
    """Rollouts of all ranks as one batch, grouped by prompt.

    Args:
        rows: In the trainer's order.
        step: The step whose policy drew them.
        group: Completions a prompt. Where `group` consecutive rows do not share their prompt, equal prompts are
            brought together.
        weights: Of the reward functions; rewards are unknown where they do not fit.
        decoding: The training decoding.
    """
    chunks = [list(rows[i : i + group]) for i in range(0, len(rows), group)]
    if any(len(chunk) != group or any(row.prompt != chunk[0].prompt for row in chunk) for chunk in chunks):
        found: dict[str, list[Rollout]] = {}
        for row in rows:
            found.setdefault(repr(row.prompt), []).append(row)
        chunks = [same[i : i + group] for same in found.values() for i in range(0, len(same) - group + 1, group)]
    probes = []
    for i, chunk in enumerate(chunks):
        first = chunk[0]
        name = hashlib.sha256(repr(first.prompt).encode("utf-8", "surrogatepass")).hexdigest()[:12]
        found_row = {**first.columns, "prompt": first.prompt or "(empty)", "id": f"{i}-{name}"}
        probes += probes_from_rows([found_row], domain=DOMAIN)
    rewards = tuple(tuple(_total(row.rewards, weights) for row in chunk) for chunk in chunks)
    known = any(not math.isnan(reward) for line in rewards for reward in line)
    return SampleBatch(
        step=step,
        probes=tuple(probes),
        texts=tuple(tuple(row.text for row in chunk) for chunk in chunks),
        rewards=rewards if known else None,
        decoding=decoding,
        source="rollout",
    )


def _total(rewards: Sequence[float | None], weights: Sequence[float]) -> float:
    if len(rewards) != len(weights) or all(reward is None for reward in rewards):
        return math.nan
    return sum(w * r for w, r in zip(weights, rewards, strict=True) if r is not None)
