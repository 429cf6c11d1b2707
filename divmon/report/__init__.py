"""A recorded run as one HTML file that a stranger can read: what collapsed, when, how sure, and what to do."""

from __future__ import annotations

from pathlib import Path

from divmon.errors import HistoryError
from divmon.history import History

__all__ = ["write"]


def write(run: str | Path | History, *, other: str | Path | History | None = None, out: str | Path) -> Path:
    """Write the report on `run` to `out`: one file that loads nothing from anywhere and runs no script.

    Args:
        run: A recorded run, or its folder (see `History.read`).
        other: A second run to set beside it. It must share series measured in the same way.
        out: The HTML file; folders above it are made.

    Returns:
        `out`.

    Raises:
        HistoryError: There is no run, it has no evaluation yet, or the file cannot be written.
        SignatureMismatch: No series of the two runs was measured in the same way.
    """
    from divmon.report.page import render  # here, so that the numbers of a report are had without its charts

    out = Path(out)
    runs = [r if isinstance(r, History) else History.read(r) for r in (run, other) if r is not None]
    page = render(*runs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(page.encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        raise HistoryError(f"Cannot write the report to {out}: {error.strerror}.") from error
    return out
