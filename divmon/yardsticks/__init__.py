"""What a run is compared with besides its own baseline: people, other models, the writers of what it rewrites."""

from divmon.yardsticks.binding import Yardsticks, yardsticks
from divmon.yardsticks.reading import Rewrites, read_bank, read_panel, read_references, read_rewrites

__all__ = [
    "Rewrites",
    "Yardsticks",
    "read_bank",
    "read_panel",
    "read_references",
    "read_rewrites",
    "yardsticks",
]
