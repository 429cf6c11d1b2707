"""Refinements in the batches of a run that goes on: rows of the loader's data set give way to them, as it is read.

Which row gives way is a function of its tokens, the epoch and what was accepted: nothing is drawn, every rank and every
resumed run finds the same, and with nothing to serve each row passes as it is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from divmon import compat
from divmon.errors import DivmonError
from divmon.health import Health
from divmon.resampling.rows import DPO_COLUMNS, MASKS, Row


@dataclass(frozen=True, slots=True)
class Offer:
    """What is served.

    Attributes:
        count: So many of the prepared rows, the first ones.
        strength: 0 serves none.
    """

    count: int = 0
    strength: float = 0.0

    @property
    def empty(self) -> bool:
        """Whether every row passes as it is."""
        return not self.count or self.strength <= 0


class Serving:
    """The transform of the loader's data set: rows of a batch go in, and out, some replaced by refinements.

    A row of a prompt that has refinements gives way to one of them (with strength 1: always; they take turns over the
    epochs). Of the other rows a `share` does, chosen anew each epoch. Where training was interrupted, whoever reads the
    data next finds the plain rows.

    Args:
        trainer: Whose epoch counts.
        columns: That make a row.
        share: Of rows of other prompts.
        health: Where failures are counted; rows then stay as they are.

    Attributes:
        now: What the next batch is served from.
        batches: Read so far, by this rank.
        served: Refinements among their rows.
    """

    def __init__(self, trainer: Any, columns: Sequence[str], *, share: float, health: Health) -> None:
        self.trainer, self.columns, self.share, self.health = trainer, tuple(columns), share, health
        self.now, self.batches, self.served = Offer(), 0, 0
        self._before, self._unread = Offer(), False
        self._first: Offer | None = None  # what the first batch after a resume was read from before
        self._rows: list[Row] = []
        self._own: dict[tuple[int, ...], list[int]] = {}
        self._data: Any = None
        self._format: Mapping[str, Any] = {}
        self._inner: Any = None
        self._within = False  # whether `attach` was called by a training run, which then must be under way

    def attach(self, loader: Any) -> None:
        """Stand in the data set that `loader` reads.

        Raises:
            DivmonError: It reads something else than the trainer's own data.
        """
        from datasets import Dataset

        data = getattr(loader, "dataset", None)
        if not isinstance(data, Dataset) or not set(self.columns) <= set(data.column_names):
            raise DivmonError(f"the trainer's loader reads a {type(data).__name__} without {', '.join(self.columns)}")
        self._data, self._format = data, dict(data.format)
        self._inner = self._format["format_kwargs"].get("transform") if self._format["type"] == "custom" else None
        shown = {name: self._format[name] for name in ("columns", "output_all_columns")}
        self._within = compat.in_training(self.trainer)
        data.set_transform(self, **shown)

    def detach(self) -> None:
        """Leave the data set as it was found."""
        data, self._data = self._data, None
        if data is not None:
            shown = {name: self._format[name] for name in ("type", "columns", "output_all_columns")}
            data.set_format(**shown, **self._format["format_kwargs"])

    def add(self, rows: Sequence[Row]) -> None:
        """Prepared refinements, to be offered from now on or later."""
        for row in rows:
            if prompt := self._prompt(row):
                self._own.setdefault(prompt, []).append(len(self._rows))
            self._rows.append(row)

    def offer(self, *, strength: float) -> None:
        """Serve all rows there are with this strength, from the next batch that is read."""
        offer = Offer(len(self._rows), strength)
        if offer == self.now:
            return
        if not self._unread:
            self._before = self.now
        self.now, self._unread = offer, True

    def state(self) -> dict[str, Any]:
        """What a resumed run must know: also what the batch that is read ahead was served from."""
        return {"now": asdict(self.now), "before": asdict(self._before), "unread": self._unread}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, in the middle of an epoch or at its beginning."""
        if "now" not in state:
            return
        now, before = (Offer(**state[name]) for name in ("now", "before"))  # of rows that may be fewer now
        self.now, self._before = (replace(o, count=min(o.count, len(self._rows))) for o in (now, before))
        epoch = self._epoch
        ahead = epoch > math.floor(epoch) and not getattr(self.trainer.args, "ignore_data_skip", False)
        self._first = self._before if state["unread"] and ahead else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The rows of `batch`, by column; refinements instead of some."""
        batch = batch if self._inner is None else self._inner(batch)
        if not all(name in batch for name in self.columns):
            return batch  # somebody looks at a column
        if self._within and not compat.in_training(self.trainer):
            self.detach()
            return batch
        offer, self._first = self._first or self.now, None
        self.batches, self._unread = self.batches + 1, False
        if offer.empty:
            return batch
        mixed = batch
        with self.health.shield("mitigation", "resample (rows)"):
            mixed = self._mixed(batch, offer)
        return mixed

    def __reduce__(self) -> tuple[Any, ...]:
        return _without, (self._inner,)  # fingerprints pickle a data set's transform, and copies of the data copy it

    @property
    def _epoch(self) -> float:
        return float(self.trainer.state.epoch or 0.0)

    def _mixed(self, batch: dict[str, Any], offer: Offer) -> dict[str, Any]:
        found = {name: list(values) for name, values in batch.items()}
        for i in range(len(batch[self.columns[0]])):
            index = self._choice({name: batch[name][i] for name in self.columns}, offer)
            if index is None:
                continue
            row = self._rows[index]
            for name in found:
                if name in row:
                    found[name][i] = row[name]
            self.served += 1
        return found

    def _choice(self, row: Row, offer: Offer) -> int | None:
        """Which refinement stands in for `row`; None to leave it."""
        sha = hashlib.blake2b(str(math.floor(self._epoch)).encode(), digest_size=16)
        for name in self.columns:
            sha.update(np.asarray(row[name], dtype=np.int64).tobytes())
            sha.update(b"|")
        one, two = (int.from_bytes(sha.digest()[i : i + 8], "little") / 2**64 for i in (0, 8))
        own = [index for index in self._own.get(self._prompt(row), ()) if index < offer.count]
        if own:
            turn = math.floor(self._epoch) + int(two * len(own))
            return own[turn % len(own)] if one < offer.strength else None
        return min(int(two * offer.count), offer.count - 1) if one < offer.strength * self.share else None

    def _prompt(self, row: Row) -> tuple[int, ...]:
        """The tokens of the prompt: what comes before the first one with a loss. Empty where all have one."""
        if self.columns == DPO_COLUMNS:
            return tuple(row["prompt_ids"])
        name = next((name for name in MASKS if name in self.columns), None)
        if name is None:
            return ()
        idle = -100 if name == "labels" else 0
        start = next((i for i, mark in enumerate(row[name]) if mark != idle), 0)
        return tuple(row["input_ids"][:start])


def _without(inner: Any) -> Any:
    return _as_it_is if inner is None else inner


def _as_it_is(batch: Any) -> Any:
    return batch
