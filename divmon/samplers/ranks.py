"""Several processes: every rank samples its share, rank 0 measures, one broadcast carries the decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from divmon.probes import ProbeSet
from divmon.records import SampleBatch

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        index: Its rank.
        count: How many there are.
        together: Every rank does all of the work, in the same order: where weights are sharded, a forward pass needs
            all ranks, and unequal shares would wait for each other for ever.
    """

    index: int = 0
    count: int = 1
    together: bool = False

    @property
    def main(self) -> bool:
        """Whether this rank measures, writes and shows."""
        return self.index == 0

    def share(self, probes: ProbeSet) -> ProbeSet | None:
        """The probes this rank samples; None where there are more ranks than probes."""
        mine = probes.probes if self.together else probes.probes[self.index :: self.count]
        return ProbeSet(mine) if mine else None

    def gather(self, item: T) -> list[T]:
        """Every rank's `item`, by rank. Each rank must call it, also one that failed."""
        if self.count == 1:
            return [item]
        from accelerate.utils import gather_object

        return list(gather_object([item]))

    def broadcast(self, item: T) -> T:
        """Rank 0's `item`, on every rank."""
        if self.count == 1:
            return item
        from accelerate.utils import broadcast_object_list

        value: T = broadcast_object_list([item])[0]
        return value


def merge(batches: Sequence[SampleBatch], probes: ProbeSet) -> SampleBatch:
    """The shares of all ranks as one batch, in the order of `probes`: the batch a single process would have drawn."""
    where = {probe.id: (b, i) for b in batches for i, probe in enumerate(b.probes)}
    order = [where[probe.id] for probe in probes]

    def column(name: str) -> Any:
        if any(getattr(batch, name) is None for batch in batches):
            return None
        return tuple(getattr(batch, name)[i] for batch, i in order)

    names = ("texts", "token_ids", "finished", "logprobs", "entropies", "rewards")
    columns = {name: column(name) for name in names}
    return replace(batches[0], probes=probes.probes, fingerprint=probes.fingerprint, **columns)
