"""Fail open, visibly: what breaks inside divmon is counted, reported once, and never reaches the training loop."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Literal

from divmon.errors import ConfigError, DivmonError

Part = Literal["sampler", "scorer", "metric", "quality", "sink", "disk", "mitigation", "monitor"]
PARTS: tuple[Part, ...] = ("sampler", "scorer", "metric", "quality", "sink", "disk", "mitigation", "monitor")
log = logging.getLogger("divmon")


class Health:
    """Counts of what failed and seconds spent, for `divmon/health/*`.

    Args:
        strict: Let failures through, for tests and debugging.

    Attributes:
        opening: Before the first training step: what the user asked for and cannot be had (a `ConfigError`) passes.
        counts: Other numbers that belong beside the failures: what mitigations have done so far.
        clock: What a budget is counted in: process time, so that other work on the machine does not count; wall time
            where an accelerator does the work.

    >>> health = Health()
    >>> with health.shield("sink", "wandb"):
    ...     raise RuntimeError("the disk is full")
    >>> health.row()["sink_failures"]
    1.0
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.opening = True
        self.failures: dict[str, int] = dict.fromkeys(PARTS, 0)
        self.counts: dict[str, float] = {}
        self.clock: Callable[[], float] = time.process_time
        self._wall, self._busy = 0.0, 0.0
        self._opened: tuple[float, float] | None = None  # wall and `clock`, while inside the outermost timed block
        self._reported: set[tuple[str, str]] = set()

    @contextlib.contextmanager
    def shield(self, part: Part, name: str = "") -> Iterator[None]:
        """Swallow, count and report (once for each `part` and `name`) whatever the block raises.

        A `ConfigError` passes while `opening`: it says that the user asked for something impossible. Once training has
        begun it is a failure like any other. `strict` lets everything pass.
        """
        try:
            yield
        except Exception as error:
            if self.opening and isinstance(error, ConfigError):
                raise
            self.failed(part, name, error)

    def failed(self, part: Part, name: str, error: BaseException | str) -> None:
        """Count a failure; report it the first time. `strict` raises it instead."""
        if self.strict:
            raise error if isinstance(error, BaseException) else DivmonError(f"{part} {name!r}: {error}")
        self.failures[part] += 1
        if (part, name) not in self._reported:
            self._reported.add((part, name))
            kind = type(error).__name__ + ": " if isinstance(error, BaseException) else ""
            log.warning(
                "divmon: %s%s failed and was skipped; training goes on (%s%s). Counted in divmon/health/%s_failures, "
                "not reported again.",
                part,
                f" {name!r}" if name else "",
                kind,
                error,
                part,
                exc_info=error if isinstance(error, BaseException) and log.isEnabledFor(logging.DEBUG) else None,
            )

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Add the block's time to `seconds` and `spent`; what is timed inside it counts once."""
        if self._opened is not None:
            yield
            return
        self._opened = (time.perf_counter(), self.clock())
        try:
            yield
        finally:
            self._wall, self._busy, self._opened = self.seconds, self.spent, None

    @property
    def seconds(self) -> float:
        """Wall time inside timed blocks, up to now."""
        return self._wall + (0.0 if self._opened is None else time.perf_counter() - self._opened[0])

    @property
    def spent(self) -> float:
        """Time inside timed blocks by `clock`, up to now."""
        return self._busy + (0.0 if self._opened is None else self.clock() - self._opened[1])

    def row(self) -> dict[str, float]:
        """Every counter, as floats."""
        return {**{f"{part}_failures": float(n) for part, n in self.failures.items()}, **self.counts}
