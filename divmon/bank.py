"""The bank: the baseline's own completions, token by token, to be scored again and again instead of sampling anew.

::

    RUN/bank.npz    one file: arrays (token ids, log-probabilities, entropies, prompts) and a head in JSON

It is written whole or not at all, read without pickle, and carries a checksum: a torn or edited file is an error, and
so is one of other prompts, another model or another tokenizer.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from divmon.errors import HistoryError, SignatureMismatch
from divmon.records import Decoding, Probe, SampleBatch

FORMAT = 1
NAME = "bank.npz"
BLOCK = 8  # prompts of a block
CUT = 16  # tokens of each completion that a block looks at
_ARRAYS = ("prompts", "prompt_lengths", "tokens", "lengths", "counts", "finished", "logprobs", "entropies")


@dataclass(frozen=True)
class Block:
    """Completions of N prompts under one another's prompts.

    Attributes:
        ids: N probe ids.
        logprobs: float[N, N], log p(completion of prompt j | prompt i) in nats; NaN where another rank scores it.
        signature: How it was made, for signatures of numbers.
    """

    ids: tuple[str, ...]
    logprobs: np.ndarray
    signature: str = ""

    @staticmethod
    def merge(parts: Sequence[Block]) -> Block:
        """One block from those of all ranks.

        >>> a, b = (Block(("x", "y"), np.full((2, 2), np.nan)) for _ in range(2))
        >>> a.logprobs[0], b.logprobs[1] = -1.0, -2.0
        >>> Block.merge([a, b]).logprobs.tolist()
        [[-1.0, -1.0], [-2.0, -2.0]]
        """
        return replace(parts[0], logprobs=np.fmax.reduce([part.logprobs for part in parts]))


@dataclass(frozen=True)
class Bank:
    """P prompts x K completions of the baseline with everything that scoring needs.

    Attributes:
        batch: The completions. Token ids and log-probabilities are known.
        prompts: P tuples of prompt token ids, exactly as they were sampled from.
        identity: What model and tokenizer they belong to, as plain words (see `divmon.samplers.score.identify`).
        anchored: The log-probabilities come from scoring the baseline itself (at the temperature of the draw), not from
            sampling: then the same weights give a KL of exactly 0, in half precision too.
    """

    batch: SampleBatch
    prompts: tuple[tuple[int, ...], ...]
    identity: Mapping[str, str] = field(default_factory=dict)
    anchored: bool = False

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.batch.probes):
            raise ValueError(f"{len(self.prompts)} prompts for {len(self.batch.probes)} rows of completions")
        if self.batch.token_ids is None or self.batch.logprobs is None:
            raise ValueError("a bank needs the token ids and log-probabilities of its completions")
        for row, values in zip(self.batch.token_ids, self.batch.logprobs, strict=True):
            if [len(ids) for ids in row] != [len(v) for v in values]:
                raise ValueError("a bank needs one log-probability a token")

    @property
    def tokens(self) -> int:
        """Banked completion tokens."""
        return sum(len(ids) for row in self.batch.token_ids or () for ids in row)

    @property
    def digest(self) -> str:
        """Eight hex digits of its prompts and completions: part of the signature of every number made from it."""
        sha = hashlib.sha256()
        for prompt, row in zip(self.prompts, self.batch.token_ids or (), strict=True):
            sha.update(repr((prompt, row)).encode("ascii"))
        return sha.hexdigest()[:8]

    @property
    def refusal(self) -> str | None:
        """Why nothing can be estimated from it; None when it can."""
        decoding = self.batch.decoding or Decoding()
        if decoding.top_p < 1.0:
            return f"the bank was drawn with top_p={decoding.top_p:g}, which cuts off the tail; draw it with top_p=1"
        if decoding.temperature != 1.0 and not self.anchored:
            return f"the bank was drawn at temperature {decoding.temperature:g} and has not been scored at the baseline"
        return None

    def share(self, index: int, count: int) -> Bank | None:
        """The part that rank `index` of `count` scores (as `Ranks.share` deals); None where nothing is left for it."""
        return self.part(range(index, len(self.prompts), count))

    def part(self, rows: Sequence[int]) -> Bank | None:
        """The bank of the prompts `rows` only; None without any."""
        if not len(rows):
            return None
        batch = self.batch

        def chosen(name: str) -> Any:
            values = getattr(batch, name)
            return None if values is None else tuple(values[i] for i in rows)

        names = ("probes", "texts", "token_ids", "finished", "logprobs", "entropies", "rewards")
        part = replace(batch, **{name: chosen(name) for name in names})
        return replace(self, batch=part, prompts=tuple(self.prompts[i] for i in rows))

    def crossing(self, size: int = BLOCK) -> tuple[Bank, tuple[tuple[int, ...], ...]] | None:
        """For a block: at most `size` of the prompts, evenly spaced, and the beginning of each one's first completion.

        None where fewer than two prompts have a completion with a token.
        """
        ids = self.batch.token_ids or ()
        usable = [i for i, row in enumerate(ids) if row and row[0]]
        n = min(size, len(usable))
        rows = [usable[i * len(usable) // n] for i in range(n)]
        part = self.part(rows) if n > 1 else None
        return None if part is None else (part, tuple(ids[i][0][:CUT] for i in rows))

    def scored(
        self, logprobs: Sequence[Sequence[np.ndarray]], entropies: Sequence[Sequence[np.ndarray]], *, step: int
    ) -> SampleBatch:
        """The bank's completions as the policy of `step` sees them: a batch of source "score"."""
        columns = {
            "logprobs": tuple(tuple(row) for row in logprobs),
            "entropies": tuple(tuple(row) for row in entropies),
        }
        return replace(self.batch, step=step, source="score", rewards=None, **columns)  # type: ignore[arg-type]

    def anchor(self, scored: SampleBatch) -> Bank:
        """The same bank with the log-probabilities and entropies that scoring the baseline gave."""
        batch = replace(self.batch, logprobs=scored.logprobs, entropies=scored.entropies)
        return replace(self, batch=batch, anchored=True)

    def disagreement(self, scored: SampleBatch) -> float:
        """Mean absolute difference in nats a token between these log-probabilities and `scored` ones.

        Of the same weights it says how far sampling and scoring are apart: about 1e-6 in single precision, 1e-2 in
        half. More than 0.1 means that scoring does not see what sampling saw. Sampling records log-probabilities at
        temperature 1; where the bank was drawn at another one, entropies are compared instead.
        """
        warm = (self.batch.decoding or Decoding()).temperature != 1.0 and not self.anchored
        name = "entropies" if warm else "logprobs"
        pairs = zip(_flat(getattr(self.batch, name)), _flat(getattr(scored, name)), strict=True)
        gaps = [np.abs(np.asarray(a, float) - np.asarray(b, float)) for a, b in pairs if len(a)]
        return float(np.concatenate(gaps).mean()) if gaps else 0.0

    def write(self, path: str | Path) -> None:
        """Write it whole: a process killed at any byte leaves the old file, or none.

        Raises:
            OSError: The disk refused.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        arrays = _arrays(self)
        head = np.frombuffer(json.dumps(_head(self, arrays), ensure_ascii=True).encode("ascii"), dtype=np.uint8)
        with partial.open("wb") as file:
            np.savez(file, head=head, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        probes: Sequence[Probe],
        fingerprint: str | None = None,
        identity: Mapping[str, str] | None = None,
    ) -> Bank:
        """The bank at `path`.

        Args:
            path: The file.
            probes: The prompts of the run.
            fingerprint: Of the probe set; None: do not ask.
            identity: Of the live model and tokenizer; None: do not ask.

        Raises:
            HistoryError: It is not there, torn or damaged.
            SignatureMismatch: It belongs to other prompts, another model or another tokenizer.
        """
        path = Path(path)
        try:
            # whole into memory first: numpy reads members late, when the file may be gone
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
                head = json.loads(bytes(found["head"]))
                arrays = {name: found[name] for name in _ARRAYS}
            if int(head["format"]) > FORMAT:
                raise HistoryError(f"{path} has format {head['format']}, newer than this divmon reads. Upgrade divmon.")
            if head["checksum"] != _checksum(head, arrays):
                raise ValueError("its checksum is wrong")
            if why := _differs(head, probes, fingerprint, identity):
                raise SignatureMismatch(
                    f"{path} does not belong to this run: {why}. A run that starts anew draws its own."
                )
            return _restored(head, arrays, probes)
        except HistoryError:
            raise
        except OSError as error:
            raise HistoryError(f"Cannot read {path}: {error.strerror or error}.") from error
        except Exception as error:  # a damaged archive fails in many ways: by its version, its codec, its numbers
            raise HistoryError(f"{path} is damaged ({type(error).__name__}: {error}).") from error


def _flat(rows: Any) -> list[Any]:
    return [cell for row in rows or () for cell in row]


def _joined(cells: Sequence[Any], kind: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, kind), *(np.asarray(cell, kind) for cell in cells)])


def _arrays(bank: Bank) -> dict[str, np.ndarray]:
    batch = bank.batch
    ids = _flat(batch.token_ids)
    return {
        "prompts": _joined(bank.prompts, np.int64),
        "prompt_lengths": np.array([len(prompt) for prompt in bank.prompts], dtype=np.int64),
        "tokens": _joined(ids, np.int64),
        "lengths": np.array([len(cell) for cell in ids], dtype=np.int64),
        "counts": np.array([len(row) for row in batch.texts], dtype=np.int64),
        "finished": np.array(_flat(batch.finished), dtype=bool),
        "logprobs": _joined(_flat(batch.logprobs), np.float32),
        "entropies": _joined(_flat(batch.entropies), np.float32),
    }


def _head(bank: Bank, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    batch = bank.batch
    head = {
        "format": FORMAT,
        "step": batch.step,
        "source": batch.source,
        "fingerprint": batch.fingerprint,
        "decoding": None if batch.decoding is None else asdict(batch.decoding),
        "ids": [probe.id for probe in batch.probes],
        "texts": [list(row) for row in batch.texts],
        "identity": dict(bank.identity),
        "anchored": bank.anchored,
    }
    return {**head, "checksum": _checksum(head, arrays)}


def _checksum(head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    plain = {name: value for name, value in head.items() if name != "checksum"}
    sha = hashlib.sha256(json.dumps(plain, ensure_ascii=True, sort_keys=True).encode("ascii"))
    for name in _ARRAYS:
        sha.update(np.ascontiguousarray(arrays[name]).tobytes())
    return sha.hexdigest()


def _differs(
    head: Mapping[str, Any], probes: Sequence[Probe], fingerprint: str | None, identity: Mapping[str, str] | None
) -> str | None:
    missing = set(head["ids"]) - {probe.id for probe in probes}
    if missing:
        return f"it has completions of {min(missing)!r}, which is not among the probes"
    if fingerprint is not None and head["fingerprint"] != fingerprint:
        return f"its prompts have the fingerprint {head['fingerprint']}, this run's {fingerprint}"
    for name, value in (identity or {}).items():
        if (was := head["identity"].get(name, value)) != value:
            return f"its {name} is {was}, this one's {value}"
    return None


def _restored(head: Mapping[str, Any], arrays: Mapping[str, np.ndarray], probes: Sequence[Probe]) -> Bank:
    by_id = {probe.id: probe for probe in probes}
    ends = np.cumsum(arrays["lengths"])[:-1]
    rows = np.cumsum(arrays["counts"])[:-1]

    def grid(cells: Sequence[Any]) -> Any:
        starts = [0, *rows.tolist(), len(cells)]
        return tuple(tuple(cells[a:b]) for a, b in itertools.pairwise(starts))

    def ragged(name: str) -> Any:
        return grid(np.split(arrays[name], ends)) if len(arrays[name]) == len(arrays["tokens"]) else None

    tokens = grid([tuple(cell.tolist()) for cell in np.split(arrays["tokens"], ends)])
    finished = arrays["finished"].tolist()
    batch = SampleBatch(
        step=int(head["step"]),
        probes=tuple(by_id[name] for name in head["ids"]),
        texts=tuple(tuple(row) for row in head["texts"]),
        token_ids=tokens,
        finished=grid(finished) if len(finished) == len(arrays["lengths"]) else None,
        logprobs=ragged("logprobs"),
        entropies=ragged("entropies"),
        decoding=Decoding(**head["decoding"]) if head["decoding"] else None,
        source=head["source"],
        fingerprint=head["fingerprint"],
    )
    prompts = tuple(tuple(p.tolist()) for p in np.split(arrays["prompts"], np.cumsum(arrays["prompt_lengths"])[:-1]))
    return Bank(batch, prompts, head["identity"], bool(head["anchored"]))
