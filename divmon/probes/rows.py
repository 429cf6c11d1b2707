"""Rows of a data set, whatever its shape, to probes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from divmon.errors import ProbeError
from divmon.records import Message, Probe, as_messages

PREFIX_TOKENS = 32  # how much of a plain text is taken as its prompt
GOLD_COLUMNS = ("gold", "answer", "ground_truth", "final_answer", "target")
LEVEL_COLUMNS = ("difficulty", "level")
LONGEST_GOLD = 64  # characters; a longer "answer" is a model text, not something to compare with
_PROMPTS = {"prompt", "messages", "token_ids", "input_ids", "labels", "attention_mask"}  # what a prompt may come from
Decode = Callable[[Sequence[int]], str]


def probes_from_rows(
    rows: Iterable[Any],
    *,
    domain: str = "default",
    decode: Decode | None = None,
    places: Sequence[str] | None = None,
) -> list[Probe]:
    """Probes from rows, without repeats.

    The prompt of a row is, in this order: itself, if the row is a text or a list of chat messages; its ``prompt``
    column; its ``messages`` up to the last assistant turn; of its ``input_ids``, what comes before the first trained
    label, or the first 32 tokens where everything is trained (half of them where there are fewer than 64); the first
    words of its ``text``.

    Args:
        rows: Texts, lists of chat messages, or mappings.
        domain: For rows that name none.
        decode: Token ids to text, for rows that only hold token ids.
        places: Where each row comes from, for messages; "Row 0", "Row 1", ... without it.

    Raises:
        ProbeError: A row has no prompt; the message says which row and what it has.
    """
    probes: list[Probe] = []
    seen: set[Any] = set()
    for index, row in enumerate(rows):
        probe = _probe(row, index, domain, decode, f"Row {index}" if places is None else places[index])
        key = (probe.domain, probe.token_ids or probe.text)
        if key not in seen:
            seen.add(key)
            probes.append(probe)
    return probes


def _probe(row: Any, index: int, domain: str, decode: Decode | None, where: str) -> Probe:
    if isinstance(row, Probe):
        return row
    if isinstance(row, str) or (isinstance(row, Sequence) and row and isinstance(row[0], Mapping)):
        row = {"prompt": row}
    if not isinstance(row, Mapping):
        raise ProbeError(
            f"{where} is a {type(row).__name__}; a probe is a text, a list of chat messages, or a mapping with a "
            "'prompt' or 'messages'."
        )
    prompt, token_ids = _prompt(row, where, decode)
    return Probe(
        id=f"{domain}-{index:04d}" if row.get("id") in (None, "") else str(row["id"]),
        prompt=prompt,
        domain=str(row.get("domain") or domain),
        gold=_gold(row),
        reference=_text_or_none(row.get("reference")),
        difficulty=_level(row),
        token_ids=token_ids,
        columns={str(k): v for k, v in row.items() if k not in _PROMPTS},
    )


def _prompt(row: Mapping[str, Any], where: str, decode: Decode | None) -> tuple[Any, tuple[int, ...] | None]:
    if row.get("prompt"):
        prompt = row["prompt"]
        if isinstance(prompt, str) and not prompt.strip():
            raise ProbeError(f"{where} has an empty 'prompt'.")
        return (prompt if isinstance(prompt, str) else _chat(prompt, where)), None
    if row.get("messages"):
        turns = _before_last_answer(_chat(row["messages"], where))
        if turns:
            return turns, None
    for name in ("input_ids", "prompt_ids", "prompt_input_ids"):
        if row.get(name) is not None and decode is not None and len(row[name]):
            ids = _prefix(row[name], row.get("labels") if name == "input_ids" else None, whole=name != "input_ids")
            return decode(ids), ids
    if isinstance(row.get("text"), str) and row["text"].strip():
        words = row["text"].split()
        return " ".join(words[: max(1, min(PREFIX_TOKENS, len(words) // 2))]), None
    raise ProbeError(
        f"{where} has no prompt: its columns are {sorted(map(str, row))}. Name one 'prompt' (a text or chat "
        "messages), 'messages', or 'text'."
    )


def _chat(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or not all(isinstance(turn, Mapping) and turn.get("role") for turn in value):
        raise ProbeError(
            f"{where}: a prompt is a text or a list of chat messages such as {{'role': 'user', 'content': '...'}}, not "
            f"{str(value)[:80]!r}."
        )
    return as_messages(value)


def _before_last_answer(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    last = max((i for i, turn in enumerate(turns) if turn.get("role") == "assistant"), default=len(turns))
    return turns[:last]


def _prefix(ids: Sequence[int], labels: Sequence[int] | None, *, whole: bool) -> tuple[int, ...]:
    if whole:
        return tuple(int(i) for i in ids)
    length = min(PREFIX_TOKENS, max(1, len(ids) // 2))
    if labels is not None and len(labels) and labels[0] == -100:
        trained = next((i for i, label in enumerate(labels) if label != -100), length)
        return tuple(int(i) for i in ids[:trained])
    return tuple(int(i) for i in ids[:length])


def _gold(row: Mapping[str, Any]) -> str | None:
    for name in GOLD_COLUMNS:
        value = _plain(row.get(name))
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value == value:  # not NaN
            gold = str(value).split("####")[-1].strip()
            if 0 < len(gold) <= LONGEST_GOLD:
                return gold
    return None


def _level(row: Mapping[str, Any]) -> int | None:
    for name in LEVEL_COLUMNS:
        value = _plain(row.get(name))
        if isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer():
            return int(value)
        if isinstance(value, str) and (found := re.fullmatch(r"(?:level\s*)?(\d{1,3})", value.strip(), re.IGNORECASE)):
            return int(found[1])
    return None


def _plain(value: Any) -> Any:
    """A number out of the tensor or array of no dimension in which a data set's format has put it."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None
