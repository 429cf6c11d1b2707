"""Reasoning blocks: what stands in ``<think>...</think>`` is how an answer was found, not the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from divmon.errors import unknown
from divmon.records import SampleBatch

WAYS = ("strip", "keep", "empty")
OPEN, CLOSE = "<think>", "</think>"
EMPTY = "<think>\n</think>\n"  # what is put at the beginning of the answer where reasoning is suppressed
_BLOCK = re.compile(r"<think>.*?</think>", re.DOTALL)


def strip_think(text: str) -> str:
    """`text` without its reasoning: what stands in ``<think>...</think>``, or before a lone closing tag.

    >>> strip_think("<think>Seven?</think>\\n7"), strip_think("Seven?</think> 7"), strip_think("<think>cut")
    ('\\n7', ' 7', '<think>cut')

    Source: Karouzos et al. (2026), arXiv:2604.16027.
    """
    text = _BLOCK.sub("", text)
    return text.rpartition(CLOSE)[2] if CLOSE in text else text


def way_named(name: str) -> str:
    """One of `WAYS`.

    Raises:
        ConfigError: Another name.
    """
    if name not in WAYS:
        raise unknown("way with reasoning", str(name), WAYS)
    return name


def begins_inside(prompt: str) -> bool:
    """Whether a prompt ends inside a reasoning block, as some chat templates do.

    >>> begins_inside("user: 3+4? assistant: <think>"), begins_inside("<think></think> 3+4?")
    (True, False)
    """
    return prompt.rfind(OPEN) > prompt.rfind(CLOSE)


def answer(text: str, *, inside: bool = False) -> str | None:
    """The answer in a completion, without the reasoning before it; None where the reasoning was cut off.

    A completion that was cut while reasoning has no answer. Taken as an empty one it would equal all others of its
    kind, and a length cap would look like a collapse.

    Args:
        text: The completion.
        inside: The prompt had opened the block already.

    >>> answer("<think>3+4</think>7"), answer("3+4</think>7", inside=True), answer("<think>3+"), answer("7")
    ('7', '7', None, '7')
    """
    head, close, tail = text.rpartition(CLOSE)
    if OPEN in tail or (inside and not close):
        return None
    return (strip_think(head + close) + tail).lstrip() if close else text


def suppressed(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Prompt tokens with an empty reasoning block after them, so that the answer begins at once.

    A block that the prompt has opened is closed; one that it has closed already (as chat templates do where they are
    told not to let the model think) is left alone.
    """
    prompt = str(tokenizer.decode(list(ids)))
    if prompt.rstrip().endswith(CLOSE):
        return list(ids)
    closing = f"\n{CLOSE}\n" if begins_inside(prompt) else EMPTY
    return [*ids, *(int(i) for i in tokenizer(closing, add_special_tokens=False)["input_ids"])]


def decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Turns tokens into text without special tokens, but with the marks of reasoning, which are special in some."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {*getattr(tokenizer, "all_special_tokens", ()), *(str(token) for token in added if token.special)}
    dropped = sorted(special - {OPEN, CLOSE}, key=len, reverse=True)
    hidden = bool({OPEN, CLOSE} & special)

    def decode(ids: Sequence[int]) -> str:
        text = str(tokenizer.decode(list(ids), skip_special_tokens=not hidden))
        for token in dropped if hidden else ():
            text = text.replace(token, "")
        return text

    return decode


def answer_start(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int:
    """How many tokens of a completion belong to its reasoning: up to the last closing mark, with it.

    Args:
        ids: Its tokens.
        decode: What turns tokens into its text.

    >>> answer_start([5, 6, 7, 8], lambda ids: "".join({5: "hm", 6: "</th", 7: "ink>", 8: "7"}[i] for i in ids))
    3
    """
    blocks = decode(ids).count(CLOSE)
    low, high = 0, len(ids)
    while blocks and low < high:  # the first prefix that has them all
        middle = (low + high) // 2
        if decode(ids[:middle]).count(CLOSE) < blocks:
            low = middle + 1
        else:
            high = middle
    return low


def answers(
    batch: SampleBatch, *, inside: bool | Collection[str], decode: Callable[[Sequence[int]], str] | None = None
) -> tuple[SampleBatch, int]:
    """The batch with answers only, and how many completions were left out for being cut while reasoning.

    Left out as well is one that the length cap has cut before its answer had a character. Tokens of an answer, and
    what is known about each of them, are those after its last block. Where they cannot be told apart, they are dropped
    from the batch. Its signature goes on naming the K that was drawn, since what is left out is missing.

    Args:
        batch: Completions.
        inside: The prompts have opened the block already: all of them, or those of these probe ids.
        decode: Turns tokens into the texts of the batch; None: tokens and texts cannot be matched.
    """
    opened = [inside if isinstance(inside, bool) else probe.id in inside for probe in batch.probes]
    rows = [[answer(text, inside=there) for text in row] for row, there in zip(batch.texts, opened, strict=True)]
    if batch.finished is not None:  # cut between the block and the first character of the answer
        rows = [
            [a if done or a == text or (a and a.strip()) else None for a, text, done in zip(*row, strict=True)]
            for row in zip(rows, batch.texts, batch.finished, strict=True)
        ]
    texts = tuple(tuple(text for text in row if text is not None) for row in rows)
    if texts == batch.texts:
        return batch, 0
    kept = [[j for j, text in enumerate(row) if text is not None] for row in rows]
    cut = sum(map(len, batch.texts)) - sum(map(len, texts))

    def chosen(name: str) -> Any:
        values = getattr(batch, name)
        return None if values is None else tuple(tuple(v[j] for j in js) for v, js in zip(values, kept, strict=True))

    found = {name: chosen(name) for name in ("finished", "rewards", "token_ids", "logprobs", "entropies")}
    found |= {"texts": texts, "drawn": batch.size}
    ids, tokens = found["token_ids"], ("token_ids", "logprobs", "entropies")
    if ids is None or decode is None:
        return replace(batch, **{**found, **dict.fromkeys(tokens)}), cut
    starts = [[answer_start(cell, decode) for cell in row] for row in ids]
    for name in tokens:
        if found[name] is not None:
            pairs = zip(found[name], starts, strict=True)
            found[name] = tuple(tuple(v[n:] for v, n in zip(row, line, strict=True)) for row, line in pairs)
    return replace(batch, **found), cut
