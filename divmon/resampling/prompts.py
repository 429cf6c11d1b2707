"""What critics and the policy are asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Templates:
    """Skeleton."""
