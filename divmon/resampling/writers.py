"""Who writes: a language model in this process, sampled with keyed noise, and what it thinks of a text."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from divmon.compat import policy_of, stop_tokens, window_of
from divmon.errors import SamplingError
from divmon.models.encoder import printable
from divmon.probes import ProbeSet
from divmon.records import Decoding, Probe, Prompt
from divmon.samplers.generate import GenerateSampler
from divmon.samplers.guard import undisturbed

log = logging.getLogger("divmon")
SCORED_TOGETHER = 16  # rows of one forward pass tried first; memory decides
_POSITIONS = 512  # whose log-softmax is taken at a time: 0.3 GB with 150,000 tokens


class ModelWriter:
    """A live language model as a `Writer`; it is left bitwise as found, also when something fails (`undisturbed`).

    Sampling is that of `GenerateSampler`: exact, deaf to the model's generation config, the same text for the same
    prompt, key and weights whatever else is in the batch. Temperature 0 always takes the likeliest token.

    A prompt that does not fit into the model's window beside `max_new_tokens` gets the empty text: written without its
    beginning, a refinement would answer another question. That is said in the log, once.

    Args:
        model: The policy, wrapped or not.
        tokenizer: Its tokenizer or processor.
        max_new_tokens: The length cap.
        chat_options: Passed to `apply_chat_template`.
        batch_size: Rows in one pass; found by trying when None. An out-of-memory error halves it and goes on.
        name: For the lineage.

    Raises:
        ConfigError: The model cannot generate, or its window has no room for a prompt.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_new_tokens: int,
        chat_options: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        name: str = "policy",
    ) -> None:
        self.name = name
        self._sampler = GenerateSampler(
            model, tokenizer, 1, Decoding(max_new_tokens=max_new_tokens), dict(chat_options or {}), batch_size
        )
        self._sampler.check(ProbeSet.of(["?"]))
        self._together = batch_size or SCORED_TOGETHER
        self._warned = False

    def write(self, prompts: Sequence[Prompt], *, temperature: float, keys: Sequence[int]) -> list[str]:
        """One completion a prompt, in order; "" for a prompt that does not fit.

        Args:
            prompts: N texts or chats.
            temperature: At least 0.
            keys: N integers that name the noise; two prompts may share one. Only the lowest 64 bits count.

        Raises:
            SamplingError: Chat messages the template refuses, not even one row fits into memory, or the policy's
                probabilities are not numbers.
        """
        if not (math.isfinite(temperature) and temperature >= 0):
            raise SamplingError(f"A temperature of {temperature!r}: it must be 0 or more.")
        sampler = self._sampler
        with undisturbed(sampler.model, sampler.tokenizer):
            tokens = [self._tokens(prompt) for prompt in prompts]
        window = window_of(policy_of(sampler.model))
        room = math.inf if window is None else window - sampler.decoding.max_new_tokens
        rows = [(ids, _int64(key)) for ids, key in zip(tokens, keys, strict=True) if len(ids) <= room]
        if len(rows) < len(prompts) and not self._warned:
            self._warned = True
            log.warning(
                "divmon: %d of %d prompts of resampling are longer than the %.0f tokens that the model's window leaves "
                "beside max_new_tokens=%d; nothing is written for such prompts. Lower max_new_tokens.",
                len(prompts) - len(rows), len(prompts), room, sampler.decoding.max_new_tokens,
            )  # fmt: skip
        sampler.decoding = replace(sampler.decoding, temperature=float(temperature))
        written = iter(sampler.complete([Probe("", "", token_ids=tuple(ids)) for ids, _ in rows], [k for _, k in rows]))
        return [next(written) if len(ids) <= room else "" for ids in tokens]

    def logprob(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
        """Mean log p a token of each text right after its prompt, at temperature 1.

        The prompt is tokenised as the trainer does it. The text is tokenised by itself and closed with the tokenizer's
        end-of-sequence token, where there is one: a text the policy would not end there is an unlikely one.

        What moves it besides likelihood: length, as an average over few tokens varies more; and texts whose words
        another tokenisation, the one the policy sampled, would make likelier.

        Returns:
            float64[N], at most 0; NaN for a text without tokens, one that does not fit into the model's window with
            its prompt, and where the policy's probabilities are not numbers.

        Raises:
            SamplingError: Chat messages the template refuses, or not even one row fits into memory.

        Source: the filter of refinements by their likelihood without the hint is a convention of divmon.
        """
        sampler = self._sampler
        found = np.full(len(prompts), np.nan)
        with undisturbed(sampler.model, sampler.tokenizer):
            policy = policy_of(sampler.model)
            window = window_of(policy) or math.inf
            own = sampler.tokenizer.eos_token_id
            end = stop_tokens(policy, sampler.tokenizer)[:1] if own is None else [own]
            rows: list[tuple[int, list[int], list[int]]] = []
            for n, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
                body = sampler.tokenizer(printable(text), add_special_tokens=False)["input_ids"]
                row = n, self._tokens(prompt), [*body, *end]
                if row[2] and len(row[1]) + len(row[2]) <= window:
                    rows.append(row)
            rows.sort(key=lambda row: len(row[1]) + len(row[2]))  # equal lengths together: less padding
            done = 0
            while done < len(rows):
                part = rows[done : done + self._together]
                means = self._means(policy, part)
                found[[n for n, _, _ in part[: len(means)]]] = means
                done += len(means)
        return found

    def _tokens(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt, however many."""
        clean: Prompt
        if isinstance(prompt, str):
            clean = printable(prompt)
        else:
            clean = tuple({**m, "content": printable(str(m.get("content") or ""))} for m in prompt)
        try:
            return self._sampler.tokens(Probe("", clean))
        except Exception as error:
            raise SamplingError(f"A prompt of resampling could not be tokenised: {error}") from error

    def _means(self, policy: Any, rows: Sequence[tuple[int, list[int], list[int]]]) -> list[float]:
        """Mean log p of each row's completion; none, and half as many rows from now on, where memory runs out."""
        try:
            return _score(policy, [(prompt, text) for _, prompt, text in rows])
        except Exception as error:
            if not should_reduce_batch_size(error):
                raise
            if len(rows) == 1:
                raise SamplingError("Out of memory while scoring one completion. Lower max_new_tokens.") from error
        # Only here is the traceback gone, and with it the tensors that filled the memory.
        self._together = len(rows) // 2
        clear_device_cache(garbage_collection=True)
        return []


def _score(policy: Any, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Mean log p of each completion after its prompt, both token ids; padded on the right, where no token looks."""
    length = max(len(prompt) + len(text) for prompt, text in rows)
    ids = torch.tensor([[*p, *t] + [0] * (length - len(p) - len(t)) for p, t in rows], device=policy.device)
    ends = torch.tensor([len(p) + len(t) for p, t in rows], device=policy.device)
    mask = (torch.arange(length, device=policy.device)[None] < ends[:, None]).long()
    logits = policy(input_ids=ids, attention_mask=mask, use_cache=False).logits
    means = []
    for i, (prompt, text) in enumerate(rows):
        spots = logits[i, len(prompt) - 1 : len(prompt) + len(text) - 1]  # the logits before each token of the text
        targets = ids[i, len(prompt) : len(prompt) + len(text)]
        total = 0.0
        for part, token in zip(torch.split(spots, _POSITIONS), torch.split(targets, _POSITIONS), strict=True):
            picked = torch.log_softmax(part.float(), dim=-1).gather(1, token[:, None])
            total += picked.cpu().double().sum().item()
        means.append(total / len(text))
    return means


def _int64(key: int) -> int:
    """Any integer as one of 64 bits with a sign."""
    return (int(key) + 2**63) % 2**64 - 2**63
