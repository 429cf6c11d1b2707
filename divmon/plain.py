"""Records as plain JSON, and back. NaN is null; infinities are strings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from divmon.records import AlarmEvent, Decoding, LeverEvent, Measurement, Probe, SampleBatch, Verdict, as_messages


def to_json(value: Any) -> Any:
    """Turn a record into plain JSON types. NaN becomes null, infinities become strings; arrays become lists."""
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return number if math.isfinite(number) else None if math.isnan(number) else repr(number)
    return value if value is None or isinstance(value, str) else str(value)


def float_from_json(value: Any) -> float:
    """The inverse of `to_json` for a float: null is NaN, and infinities are strings.

    >>> float_from_json(None), float_from_json("-inf")
    (nan, -inf)
    """
    return math.nan if value is None else float(value)


def measurement_from_json(row: Mapping[str, Any]) -> Measurement:
    """The inverse of `to_json` for a `Measurement`, but for `details`, which stay plain JSON (null for NaN, lists)."""
    record = Measurement(**{k: v for k, v in row.items() if k in Measurement.__dataclass_fields__})
    return replace(
        record,
        value=float_from_json(record.value),
        low=float_from_json(record.low),
        high=float_from_json(record.high),
        values=tuple(float_from_json(v) for v in record.values),
    )


def event_from_json(row: Mapping[str, Any]) -> AlarmEvent:
    """The inverse of `to_json` for an `AlarmEvent`."""
    record = AlarmEvent(**{k: v for k, v in row.items() if k in AlarmEvent.__dataclass_fields__})
    return replace(
        record,
        value=float_from_json(record.value),
        baseline=float_from_json(record.baseline),
        actions=tuple(record.actions),
    )


def verdict_from_json(row: Mapping[str, Any]) -> Verdict:
    """The inverse of `to_json` for a `Verdict`."""
    record = Verdict(**{k: v for k, v in row.items() if k in Verdict.__dataclass_fields__})
    numbers = ("level", "p", "estimate", "low", "high", "spent", "left")
    return replace(record, **{name: float_from_json(getattr(record, name)) for name in numbers})  # type: ignore[arg-type]


def lever_event_from_json(row: Mapping[str, Any]) -> LeverEvent:
    """The inverse of `to_json` for a `LeverEvent`."""
    return LeverEvent(**{k: v for k, v in row.items() if k in LeverEvent.__dataclass_fields__})


def probe_from_json(row: Mapping[str, Any]) -> Probe:
    """The inverse of `to_json` for a `Probe`."""
    known = {k: v for k, v in row.items() if k in Probe.__dataclass_fields__}
    if not isinstance(known["prompt"], str):
        known["prompt"] = as_messages(known["prompt"])
    if known.get("token_ids") is not None:
        known["token_ids"] = tuple(known["token_ids"])
    return Probe(**known)


_COLUMNS = ("texts", "token_ids", "finished", "logprobs", "entropies", "rewards")


def _floats(values: Sequence[Any]) -> np.ndarray:
    return np.array([float_from_json(value) for value in values], dtype=float)


def batch_rows(batch: SampleBatch) -> Iterator[Mapping[str, Any]]:
    """The completions as lines: a head, then one a prompt, which is named and not repeated."""
    names = ("step", "source", "fingerprint", "decoding")
    more = {"drawn": batch.drawn} if batch.drawn else {}
    yield {"prompts": len(batch.probes), **{name: getattr(batch, name) for name in names}, **more}
    columns = [c for c in _COLUMNS if getattr(batch, c) is not None]
    for i, probe in enumerate(batch.probes):
        yield {"id": probe.id, **{c: getattr(batch, c)[i] for c in columns}}


def batch_from_rows(rows: Sequence[Mapping[str, Any]], probes: Sequence[Probe]) -> SampleBatch:
    """The inverse of `batch_rows`; `probes` has the prompts."""
    head, *body = rows
    if len(body) != head["prompts"]:
        raise ValueError(f"it holds {len(body)} of {head['prompts']} prompts")
    by_id = {probe.id: probe for probe in probes}

    def column(name: str, convert: Any) -> Any:
        return tuple(tuple(convert(v) for v in row[name]) for row in body) if body and name in body[0] else None

    return SampleBatch(
        step=head["step"],
        probes=tuple(by_id.get(row["id"], Probe(row["id"], "")) for row in body),
        texts=column("texts", str) or (),
        token_ids=column("token_ids", tuple),
        finished=column("finished", bool),
        logprobs=column("logprobs", _floats),
        entropies=column("entropies", _floats),
        rewards=column("rewards", float_from_json),
        decoding=Decoding(**head["decoding"]) if head["decoding"] else None,
        source=head["source"],
        fingerprint=head["fingerprint"],
        drawn=head.get("drawn", 0),
    )
