"""What a trace found, as frozen records."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divmon.plain import to_json
from divmon.records import OVERALL, Measurement
from divmon.tracing.attribution import Blame, Stage


@dataclass(frozen=True)
class Series:
    """One metric over the lineage, in one domain or over all of them.

    Attributes:
        metric: Its name.
        domain: A domain (task), or ``all`` for the aggregate over domains.
        aggregator: How percentages were taken over domains (or prompts).
        per: "task" or "prompt": what percentages were taken of.
        stages: One for each checkpoint, then one for each group.
        blames: One for each branch; empty where more is not more (or less) diverse.
        tasks: Domains (or prompts) that the numbers rest on.
    """

    metric: str
    domain: str
    aggregator: str
    per: str
    stages: tuple[Stage, ...]
    blames: tuple[Blame, ...]
    tasks: int

    def stage(self, name: str) -> Stage:
        """The one of a checkpoint or group."""
        return next(stage for stage in self.stages if stage.name == name)


@dataclass(frozen=True)
class Split:
    """How much of a stage's loss good completions show too (narrowing), and how much is only the loss of errors.

    Attributes:
        name: The checkpoint.
        since: The checkpoint it is compared with.
        domain: A domain, or ``all``.
        metric: The distance.
        narrowing: Share of the loss that is found among correct completions too; NaN where there was no loss.
        benign: 1 - `narrowing`.
        low: Lower end of the 95 % interval of `narrowing`, over prompts.
        high: Upper end.
        n: Prompts with two correct completions on both sides, which the shares rest on.
        distances: Over all and over correct completions before, over all and over correct completions now.
        reason: Why there are no shares.
    """

    name: str
    since: str
    domain: str
    metric: str
    narrowing: float
    benign: float
    low: float
    high: float
    n: int
    distances: tuple[float, float, float, float]
    reason: str | None = None


@dataclass(frozen=True)
class Seen:
    """A checkpoint of the trace.

    Attributes:
        name: Its name.
        source: Where it came from.
        parent: The checkpoint it was trained from; None for the base.
        reasoning: How reasoning blocks were dealt with.
        completions: How many were measured.
        cut: Completions left out because they ended while reasoning.
        failure: Why it was not measured; empty when it was.
        notes: What else a reader must know about it.
    """

    name: str
    source: str
    parent: str | None
    reasoning: str
    completions: int = 0
    cut: int = 0
    failure: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trace:
    """A lineage measured with one probe set.

    Attributes:
        checkpoints: In order, parents first, the failed ones too.
        groups: Members of each group.
        branches: Names from the base to a last checkpoint.
        aggregator: The one shown first; `series` has both.
        per: "task" or "prompt".
        metrics: Names, the most telling first.
        values: Every number of every checkpoint: measurements in the order of the checkpoints, by name.
        series: Percentages of the base.
        splits: Of each stage's loss since its parent and since the base.
        prompts: In the probe set.
        k: Completions a prompt.
        domains: Of the probe set.
        decoding: How completions were drawn.
        fingerprint: Of the probe set.
        notes: What a reader must know.
    """

    checkpoints: tuple[Seen, ...]
    groups: Mapping[str, tuple[str, ...]]
    branches: tuple[tuple[str, ...], ...]
    aggregator: str
    per: str
    metrics: tuple[str, ...]
    values: Mapping[str, tuple[Measurement, ...]]
    series: tuple[Series, ...]
    splits: tuple[Split, ...]
    prompts: int
    k: int
    domains: tuple[str, ...]
    decoding: str
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The checkpoint that percentages are of."""
        return next(checkpoint.name for checkpoint in self.checkpoints if checkpoint.parent is None)

    @property
    def failed(self) -> tuple[str, ...]:
        """Checkpoints that could not be measured."""
        return tuple(checkpoint.name for checkpoint in self.checkpoints if checkpoint.failure)

    def get(self, metric: str, domain: str = OVERALL, *, aggregator: str | None = None) -> Series | None:
        """The percentages of a metric; None where there are none."""
        wanted = (metric, domain, aggregator or self.aggregator)
        return next((s for s in self.series if (s.metric, s.domain, s.aggregator) == wanted), None)

    def value(self, checkpoint: str, metric: str, domain: str) -> float:
        """A number; NaN when there is none."""
        rows = self.values.get(checkpoint, ())
        return next((m.value for m in rows if (m.metric, m.domain) == (metric, domain)), math.nan)

    def split(self, checkpoint: str, domain: str = OVERALL, *, since: str | None = None) -> Split | None:
        """The split of a checkpoint's loss since its parent, or since another checkpoint that was compared."""
        rows = [s for s in self.splits if (s.name, s.domain) == (checkpoint, domain) and since in (None, s.since)]
        return rows[0] if rows else None

    def table(self) -> str:
        """Aligned plain text, safe to print whatever names hold."""
        from divmon.tracing.table import table

        return table(self)

    def page(self) -> str:
        """One self-contained HTML page."""
        from divmon.tracing.page import render

        return render(self)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; null for NaN."""
        found: dict[str, Any] = to_json(self)
        return found

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write ``trace.json`` and ``trace.html`` into `folder`, whole or not at all.

        Raises:
            HistoryError: The disk would not.
        """
        from divmon.tracing.store import write_whole

        folder = Path(folder)
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=True, allow_nan=False) + "\n"
        write_whole(folder / "trace.json", text.encode("ascii"))
        write_whole(folder / "trace.html", self.page().encode("utf-8"))
        return folder / "trace.json", folder / "trace.html"

    def to_wandb(self, run: Any = None) -> None:
        """Curves over the checkpoints and a table of the stages, in the open W&B run, `run`, or one of its own."""
        from divmon.tracing.tracking import log_wandb

        log_wandb(self, run)
