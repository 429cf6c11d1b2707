"""The lineage on disk."""

from __future__ import annotations


class Lineage:
    """Skeleton."""
