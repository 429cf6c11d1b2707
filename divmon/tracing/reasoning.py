"""Reasoning blocks: what stands in ``<think>...</think>`` is how an answer was found, not the answer."""

from __future__ import annotations

from dataclasses import replace

from divmon.errors import unknown
from divmon.protocols import strip_think
from divmon.records import SampleBatch

WAYS = ("strip", "keep", "empty")
OPEN, CLOSE = "<think>", "</think>"
EMPTY = "<think>\n</think>\n"  # what is put at the beginning of the answer where reasoning is suppressed


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


def answers(batch: SampleBatch, *, inside: bool) -> tuple[SampleBatch, int]:
    """The batch with answers only, and how many completions were left out for being cut while reasoning.

    Where any text is changed, tokens and what is known about each of them are dropped: they belong to the whole text.
    """
    rows = [[answer(text, inside=inside) for text in row] for row in batch.texts]
    kept = [[j for j, text in enumerate(row) if text is not None] for row in rows]
    texts = tuple(tuple(text for text in row if text is not None) for row in rows)
    if texts == batch.texts:
        return batch, 0
    finished = batch.finished
    if finished is not None:
        finished = tuple(tuple(line[j] for j in row) for line, row in zip(finished, kept, strict=True))
    cut = sum(map(len, batch.texts)) - sum(map(len, texts))
    bare = replace(batch, token_ids=None, logprobs=None, entropies=None, rewards=None, finished=None, texts=texts)
    return replace(bare, finished=finished), cut
