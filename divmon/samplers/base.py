"""What a sampler is."""

from __future__ import annotations

from typing import Protocol

from divmon.probes import ProbeSet
from divmon.records import SampleBatch


class Sampler(Protocol):
    """Anything that draws K completions for each probe: the live policy, a server, a file."""

    def __call__(self, probes: ProbeSet, *, step: int) -> SampleBatch:
        """Draw completions of the policy as it is at `step`."""
        ...

    def fresh(self, *, k: int, key: int) -> Sampler:
        """The same sampler with another number of completions and other noise."""
        ...
