"""Teacher-forced scores: what the policy of now says about completions it need not write. One forward pass, no loop.

Only banked positions are taken to the vocabulary, a few at a time, so that a vocabulary of 150,000 never stands beside
every token at once. This happens inside the model's own forward pass, where its output layer is called: wrappers,
adapters, autocast and sharded weights are as they are in training. What the model does to its logits afterwards (soft
caps, scales) is applied alike, and checked on the spot; a model that does something else is scored through its full
logits, in small batches.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from divmon.bank import BLOCK, CUT, Bank, Block
from divmon.compat import policy_of, text_size, window_of
from divmon.errors import SamplingError
from divmon.records import Decoding, SampleBatch
from divmon.samplers.guard import undisturbed
from divmon.samplers.head import Found, Head, Wanted, head_of, most_logits, probe, whole

log = logging.getLogger("divmon")
TOKENS = {"cpu": 4096}  # tokens of one forward pass that are tried first, padding included; on an accelerator:
_TOKENS_ACCELERATED = 65_536


@dataclass(frozen=True)
class _Row:
    """One completion to score: its place, prompt and tokens."""

    place: int
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)


@dataclass(frozen=True)
class Scores:
    """Of one completion, float32[T] each: log p of its tokens, and the entropy of the next-token distributions."""

    logprobs: np.ndarray
    entropies: np.ndarray


@dataclass
class Scorer:
    """Scores banked completions under a live model, which is left as found (see `undisturbed`).

    Attributes:
        model: The policy, wrapped or not.
        tokenizer: Its tokenizer or processor; only guarded, never called.
        batch_size: Completions in one forward pass; as many as fit 4,096 tokens (65,536 on an accelerator) when None.
            An out-of-memory error halves the tokens and goes on.
    """

    model: Any
    tokenizer: Any = None
    batch_size: int | None = None
    _tokens: int = field(default=0, init=False)
    _head: Head | None = field(default=None, init=False)
    _plain: bool = field(default=False, init=False)  # the output layer cannot be looked into

    def __call__(self, bank: Bank, *, step: int) -> SampleBatch:
        """The bank's completions with the policy's log-probabilities and entropies, as a batch of source "score".

        Log-probabilities are at the temperature of the bank, entropies at 1.

        Raises:
            SamplingError: Not even one completion fits into memory, or the probabilities are not numbers.
        """
        ids = bank.batch.token_ids or ()
        places = [(i, j) for i, row in enumerate(ids) for j in range(len(row))]
        rows = [_Row(n, bank.prompts[i], ids[i][j]) for n, (i, j) in enumerate(places)]
        scores = iter(self._score(rows, temperature=(bank.batch.decoding or Decoding()).temperature))
        grid = [[next(scores) for _ in row] for row in ids]
        logprobs, entropies = ([[getattr(c, n) for c in row] for row in grid] for n in ("logprobs", "entropies"))
        return bank.scored(logprobs, entropies, step=step)

    def cross(self, bank: Bank, *, size: int = BLOCK, index: int = 0, count: int = 1) -> Block | None:
        """The bank's block of `size` prompts, for input dependence; rank `index` of `count` fills its rows only.

        None where the bank has too few prompts, on every rank alike.

        Raises:
            SamplingError: As for a call.
        """
        found = bank.crossing(size)
        if found is None:
            return None
        part, completions = found
        temperature = (bank.batch.decoding or Decoding()).temperature
        scores = np.full((len(part.prompts), len(completions)), np.nan)
        scores[index::count] = self.block(part.prompts[index::count], completions, temperature=temperature)
        ids = tuple(probe.id for probe in part.batch.probes)
        return Block(ids, scores, f"block:{size}|tokens:{CUT}")

    def block(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, temperature: float = 1.0
    ) -> np.ndarray:
        """float[N, M]: log p(completion j | prompt i), summed over tokens.

        Raises:
            SamplingError: As for a call.
        """
        pairs = itertools.product(prompts, completions)
        rows = [_Row(n, tuple(x), tuple(y)) for n, (x, y) in enumerate(pairs)]
        sums = [float(score.logprobs.sum(dtype=float)) for score in self._score(rows, temperature=temperature)]
        return np.array(sums).reshape(len(prompts), len(completions))

    def _score(self, rows: Sequence[_Row], *, temperature: float) -> list[Scores]:
        """In the order of `rows`."""
        policy = policy_of(self.model)
        self._head, self._plain = None, False  # an adapter may have been put on since
        found: dict[int, Scores] = {}
        empty = np.zeros(0, dtype=np.float32)
        # the longest first: if memory runs out, it does so at once
        waiting = sorted((row for row in rows if row.tokens), key=lambda row: -row.length)
        with undisturbed(self.model, self.tokenizer):
            while waiting:
                batch = waiting[: self._fitting(policy, waiting)]
                scores = self._attempt(policy, batch, temperature)
                found.update((row.place, score) for row, score in zip(batch, scores, strict=False))
                waiting = waiting[len(scores) :]
        return [found.get(row.place, Scores(empty, empty)) for row in rows]

    def _fitting(self, policy: Any, rows: Sequence[_Row]) -> int:
        """How many of `rows` go into one forward pass; they are padded to the length of the first."""
        if self.batch_size is not None:
            return min(self.batch_size, len(rows))
        self._tokens = self._tokens or TOKENS.get(policy.device.type, _TOKENS_ACCELERATED)
        tokens = self._tokens
        if self._plain:
            tokens = min(tokens, most_logits(policy.device) // (text_size(policy, "vocab_size") or 1))
        return min(max(1, tokens // rows[0].length), len(rows))

    def _attempt(self, policy: Any, rows: Sequence[_Row], temperature: float) -> list[Scores]:
        """Scores of `rows`; none where they are to be tried again, fewer at a time."""
        try:
            return self._forward(policy, rows, temperature)
        except Exception as error:
            if not should_reduce_batch_size(error):
                raise
            if len(rows) == 1:
                raise SamplingError(
                    "Out of memory while scoring one completion. Lower max_new_tokens, or shorten the probes."
                ) from error
        # Only here is the traceback gone, and with it the tensors that filled the memory.
        self._tokens = len(rows) // 2 * rows[0].length
        self.batch_size = None if self.batch_size is None else len(rows) // 2
        clear_device_cache(garbage_collection=True)
        log.info("divmon: out of memory with %d rows; scoring goes on with %d", len(rows), len(rows) // 2)
        return []

    def _forward(self, policy: Any, rows: Sequence[_Row], temperature: float) -> list[Scores]:
        width = max(row.length for row in rows)
        window = window_of(policy)
        if window is not None and width > window:
            raise SamplingError(
                f"A banked completion with its prompt has {width} tokens; the model's window is {window}."
            )
        device = policy.device
        pad = 0  # masked, and to the right of everything that is read
        ids = torch.tensor([[*r.prompt, *r.tokens, *[pad] * (width - r.length)] for r in rows], device=device)
        mask = torch.tensor([[1] * r.length + [0] * (width - r.length) for r in rows], device=device)
        inputs = {"input_ids": ids, "attention_mask": mask}
        places = [i * width + len(r.prompt) - 1 + t for i, r in enumerate(rows) for t in range(len(r.tokens))]
        targets = [token for row in rows for token in row.tokens]
        wanted = Wanted(torch.tensor(places, device=device), torch.tensor(targets, device=device), temperature)
        found = self._looked(policy, inputs, wanted)
        if found is None:
            return []
        logprobs, entropies = found
        if torch.isnan(logprobs).any() or not torch.isfinite(entropies).all():
            raise SamplingError(
                "The policy's next-token probabilities are not numbers (NaN): its weights or activations overflowed."
            )
        ends = np.cumsum([len(row.tokens) for row in rows])[:-1]
        split = (np.split(values.cpu().numpy(), ends) for values in (logprobs, entropies))
        return [Scores(a.copy(), b.copy()) for a, b in zip(*split, strict=True)]

    def _looked(self, policy: Any, inputs: Mapping[str, torch.Tensor], wanted: Wanted) -> Found | None:
        """Through the output layer where it can be looked into, else the full logits; None: try again, fewer rows."""
        if self._plain:
            return whole(policy, inputs, wanted)
        self._head = self._head or head_of(policy, probe(inputs))
        found = None if self._head is None else self._head(policy, inputs, wanted)
        self._plain = found is None
        return found


def identify(model: Any, tokenizer: Any = None) -> dict[str, str]:
    """Model and tokenizer in plain words: equal for equal kinds and sizes, whatever the weights are.

    Args:
        model: The policy, wrapped or not.
        tokenizer: Its tokenizer or processor.
    """
    policy = policy_of(model)
    base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    sizes = [text_size(policy, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")]
    found = {"model": type(base).__name__, "size": "x".join("?" if n is None else str(n) for n in sizes)}
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if tokenizer is not None and hasattr(tokenizer, "get_vocab"):
        words = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
        text = "\n".join(f"{word}\t{place}" for word, place in words)
        found["tokenizer"] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return found
