"""One batch of completions by `generate`, in stages: rows that have ended leave it, a shared prompt is read once.

`generate` computes every row until the last one ends. Here it stops when half of its rows have ended, and goes on with
the others from their part of the cache. And the K rows of a prompt do not each read it: the prompts are read once, and
their cache is dealt to the rows. Both use nothing but what `generate` offers (a stopping criterion, a cache to go on
from), so models keep their own preparation of inputs. Where a cache cannot be dealt, all is done in one stage.

Noise is a function of row and position, so that stages change no draw: logits may differ in the last bit, as they do
between batch sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from divmon.records import Decoding
from divmon.samplers.keyed import KeyedSampling

SMALLEST = 8  # rows; in fewer, those that have ended cost next to nothing
LONG = 32  # prompt tokens; fewer are read faster than dealt
DEALT = {"DynamicLayer", "DynamicSlidingWindowLayer"}  # kinds of layers whose cache is rows and nothing else


@dataclass(frozen=True)
class Row:
    """One completion to draw: completion j of prompt i, with the noise of its key."""

    i: int
    j: int
    prompt: tuple[int, ...]
    key: int


@dataclass
class Written:
    """One completion as `generate` left it, with whatever it wrote behind a stop token."""

    tokens: list[int]
    logprobs: np.ndarray
    entropies: np.ndarray


class _Enough(StoppingCriteria):  # type: ignore[misc]
    """Stops all rows when `share` of them have ended."""

    def __init__(self, stops: torch.Tensor, rows: int, share: float) -> None:
        self.stops = stops
        self.ended = torch.zeros(rows, dtype=torch.bool, device=stops.device)
        self.share = share

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self.ended |= torch.isin(input_ids[:, -1], self.stops)
        return (self.ended.float().mean() >= self.share).expand(len(self.ended))


def write(policy: Any, config: GenerationConfig, rows: Sequence[Row], decoding: Decoding) -> list[Written]:
    """A completion of each row; the model is in eval mode, and `config` is all it says about generation."""
    device, length = policy.device, max(len(row.prompt) for row in rows)
    gaps = [length - len(row.prompt) for row in rows]
    pad = config.pad_token_id
    ids = torch.tensor([[pad] * gap + list(row.prompt) for gap, row in zip(gaps, rows, strict=True)], device=device)
    mask = torch.tensor([[0] * gap + [1] * (length - gap) for gap in gaps], device=device)
    keys = torch.tensor([row.key for row in rows], device=device)
    stops = torch.tensor(config.eos_token_id or [], dtype=torch.long, device=device)
    written = [Written([], np.empty(0, np.float32), np.empty(0, np.float32)) for _ in rows]
    alive = torch.arange(len(rows), device=device)
    staged = len(rows) >= SMALLEST and can_be_dealt(policy)
    cache = _read_once(policy, config, rows, ids, mask) if staged else None
    while len(alive):
        keyed = KeyedSampling(keys, prompt_length=length, temperature=decoding.temperature, top_p=decoding.top_p)
        left = decoding.max_new_tokens - (ids.shape[1] - length)
        enough = staged and len(stops) > 0 and len(alive) >= SMALLEST and left > SMALLEST
        out = policy.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=_with(config, max_new_tokens=left, return_dict_in_generate=enough),
            logits_processor=LogitsProcessorList([keyed]),
            stopping_criteria=StoppingCriteriaList([_Enough(stops, len(alive), 0.5)] if enough else []),
            **({} if cache is None else {"past_key_values": cache}),
        )
        whole = out.sequences if enough else out
        new = whole[:, ids.shape[1] :]
        _note(written, alive, new, keyed)
        on = (~torch.isin(new, stops).any(dim=1)).nonzero().squeeze(1) if enough and new.shape[1] < left else alive[:0]
        cache = _dealt(getattr(out, "past_key_values", None), on, whole.shape[1] - 1) if len(on) else None
        staged = cache is not None
        alive, keys, ids = alive[on], keys[on], whole[on]
        mask = torch.cat([mask, mask.new_ones(len(mask), new.shape[1])], dim=1)[on]
    return written


def _note(written: list[Written], alive: torch.Tensor, new: torch.Tensor, keyed: KeyedSampling) -> None:
    """Append a stage, int64[rows alive, T], to what is written."""
    logprobs, entropies = (torch.stack(c, dim=1).cpu().numpy() for c in (keyed.logprobs, keyed.entropies))
    for row, tokens, logp, entropy in zip(alive.tolist(), new.tolist(), logprobs, entropies, strict=True):
        cell = written[row]
        cell.tokens += tokens
        cell.logprobs = np.concatenate([cell.logprobs, logp[: len(tokens)]])
        cell.entropies = np.concatenate([cell.entropies, entropy[: len(tokens)]])


def _with(config: GenerationConfig, **changes: Any) -> GenerationConfig:
    changed = copy.copy(config)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def _read_once(
    policy: Any, config: GenerationConfig, rows: Sequence[Row], ids: torch.Tensor, mask: torch.Tensor
) -> Any | None:
    """The cache of all rows' prompts but their last token, each different prompt read once; None where that saves
    little or cannot be done."""
    first: dict[tuple[int, ...], int] = {}
    for at, row in enumerate(rows):
        first.setdefault(row.prompt, at)
    if 2 * len(first) > len(rows) or ids.shape[1] < LONG or min(len(prompt) for prompt in first) < 2:
        return None
    chosen = list(first.values())
    out = policy.generate(
        input_ids=ids[chosen, :-1],
        attention_mask=mask[chosen, :-1],
        generation_config=_with(config, max_new_tokens=1, return_dict_in_generate=True),
    )
    place = {prompt: at for at, prompt in enumerate(first)}
    deal = torch.tensor([place[row.prompt] for row in rows], device=ids.device)
    return _dealt(getattr(out, "past_key_values", None), deal, ids.shape[1] - 1)


def can_be_dealt(policy: Any) -> bool:
    """Whether the state of `policy` between two tokens surely is a cache whose rows can be repeated and left out."""
    model = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    if getattr(getattr(policy, "active_peft_config", None), "is_prompt_learning", False):
        return False  # its own tokens stand before the prompt
    prepare = getattr(type(model), "prepare_inputs_for_generation", None)
    if not getattr(prepare, "__module__", "").startswith("transformers."):
        return False  # code that came with a checkpoint, or a wrapper
    if getattr(model, "_compiled_call_impl", None) is not None:
        return False  # every number of rows would be compiled anew
    if model.config.get_text_config() is not model.config:
        return False  # multimodal models keep positions of their rows elsewhere
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        return False  # sharded: every rank must call `generate` as often as the others
    return _plain(DynamicCache(config=model.config))


def _plain(cache: Any) -> bool:
    """Whether a cache is keys and values of rows, and nothing else."""
    kinds = {type(layer).__name__ for layer in getattr(cache, "layers", ())}
    return bool(kinds) and kinds <= DEALT


def _dealt(cache: Any, rows: torch.Tensor, length: int) -> Any | None:
    """`cache` with these rows, repeated or left out; None unless it surely is of `length` tokens and can be dealt."""
    if not _plain(cache) or cache.get_seq_length() != length:
        return None
    cache.batch_select_indices(rows)
    return cache
