"""What goes wrong in a pass of resampling: counted, told in one sentence each, and kept away from training."""

from __future__ import annotations

from divmon.health import Health

_MOST = 300  # characters of an error's message


class Faults:
    """Failures of one pass, by what failed.

    Args:
        health: Counts each as a failed mitigation, and raises it when it is strict.

    >>> faults = Faults()
    >>> for _ in range(3):
    ...     faults.add("the critic", RuntimeError("connection refused"))
    >>> faults.sentences()
    ('the critic failed 3 times; at first with RuntimeError: connection refused',)
    """

    def __init__(self, health: Health | None = None) -> None:
        self._health = health
        self._first: dict[str, str] = {}
        self._times: dict[str, int] = {}

    def add(self, what: str, error: Exception | str) -> None:
        """Note that `what` failed.

        Raises:
            Exception: `error`, with strict health.
        """
        self._times[what] = self._times.get(what, 0) + 1
        self._first.setdefault(what, _told(error))
        if self._health is not None:
            self._health.failed("mitigation", f"resample: {what}", error)

    def sentences(self) -> tuple[str, ...]:
        """One a thing that failed."""
        times = {what: f" {n} times; at first" if n > 1 else "" for what, n in self._times.items()}
        return tuple(f"{what} failed{times[what]} with {error}" for what, error in self._first.items())


def _told(error: Exception | str) -> str:
    if isinstance(error, str):
        return error[:_MOST]
    try:
        message = str(error)
    except Exception:  # an error whose own message cannot be had
        message = ""
    return f"{type(error).__name__}: {message}"[:_MOST].rstrip(": ")
