"""From settings to metrics that are measured against what the user gave."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from divmon.errors import ConfigError
from divmon.metrics import METRICS
from divmon.metrics.base import Metric
from divmon.metrics.others import Bank, hivemind_metrics
from divmon.metrics.people import human_metrics
from divmon.metrics.rewrites import voice_metrics
from divmon.probes import ProbeSet
from divmon.yardsticks.reading import read_bank, read_panel, read_references


@dataclass(frozen=True)
class Yardsticks:
    """Metrics that take the place of those of the same name in the table, or join them.

    Attributes:
        metrics: Name to metric.
        bank: Other models' completions; None without any.
    """

    metrics: dict[str, Metric]
    bank: Bank | None = None

    def bound(self, metric: Metric) -> Metric:
        """`metric` as it is measured here; a metric of the user's own stays what it is."""
        return self.metrics.get(metric.name, metric) if METRICS.get(metric.name) is metric else metric

    def joined(self, metrics: Iterable[Metric]) -> tuple[Metric, ...]:
        """A default set, and what is measured because the user gave something to compare with."""
        return tuple({**{metric.name: self.bound(metric) for metric in metrics}, **self.metrics}.values())

    @property
    def signature(self) -> str:
        """What was given, in short; empty for nothing."""
        parts = (part for metric in self.metrics.values() for part in metric.signature.split("|"))
        return "|".join(dict.fromkeys(p for p in parts if p.startswith(("references:", "others:", "attributes:"))))

    def check(self, probes: ProbeSet) -> None:
        """The bank must have something to say about these probes.

        Raises:
            ConfigError: No prompt of theirs is in it.
        """
        if self.bank is not None and not any(self.bank.of(probe) for probe in probes):
            raise ConfigError(
                f"others= has completions of {len(self.bank.answers)} prompts, and none of them is a probe: texts of "
                f"prompts must be the same. A probe: {probes.probes[0].text[:80]!r}."
            )


def yardsticks(references: Any = None, others: Any = None, attributes: Any = None, *, encoder: bool) -> Yardsticks:
    """Read what was given, and bind the metrics that are measured against it.

    Args:
        references: See `read_references`.
        others: See `read_bank`.
        attributes: See `read_panel`.
        encoder: Whether there is one, to compare with other models through it.

    >>> sorted(yardsticks(attributes={"length": len}, encoder=False).metrics)
    ['voice_shift', 'voice_shift_length', 'voice_spread', 'voice_spread_length']

    Raises:
        ProbeError: A row that cannot be used; the message names the field and the line.
        ConfigError: Something else than a file, a list or a mapping.
    """
    bank = None if others is None else read_bank(others)
    found = () if references is None else human_metrics(read_references(references))
    found += () if bank is None else hivemind_metrics(bank, encoder=encoder)
    found += () if attributes is None else voice_metrics(read_panel(attributes))
    return Yardsticks({metric.name: metric for metric in found}, bank)
