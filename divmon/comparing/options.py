"""The options of ``divmon compare``, apart from what it does, which is imported when it is run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

ABOUT = """\
Reads recorded runs where they are equally good: at the highest pass@1 (or mean quality) that all of them reach, in a
straight line between evaluations. The last step that all have is shown second. The first run is the reference. Seeds
of one method make a group: --group plain='runs/plain-*' --group lever='runs/lever-*'. Positional runs come first."""


def add_compare(commands: Any) -> argparse.ArgumentParser:
    """Add ``compare``."""
    compare: argparse.ArgumentParser = commands.add_parser(
        "compare", help="recorded runs side by side, at equal quality", description=ABOUT
    )
    compare.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="the folder of a run")
    compare.add_argument(
        "--group", action="append", default=[], metavar="NAME=GLOB", help="folders that are seeds of one method; repeat"
    )
    compare.add_argument("--at", type=float, metavar="Q", help="this quality instead of the highest that all reach")
    compare.add_argument("--quality", metavar="NAME", help="match by this (default: pass_at_1, else mean_quality)")
    compare.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="only this metric; repeat; 'all' for every one"
    )
    compare.add_argument("--json", metavar="FILE", help="write every number there; - for standard output")
    compare.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page there")
    return compare
