"""The options of ``divmon doctor``. What it does is imported when it is run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

Commands = Any  # argparse's own class of subparsers is private


def add_doctor(commands: Commands) -> None:
    """Add ``doctor``."""
    doctor = commands.add_parser(
        "doctor",
        help="is this environment fit, and what will watching cost; or what it has cost a recorded run",
        description="Exit status: 0 when all is well, 1 when something is not, 2 when an option makes no sense.",
    )
    doctor.add_argument("run_folder", type=Path, nargs="?", metavar="RUN", help="a recorded run: planned and real cost")
    doctor.add_argument("--settings", type=Path, metavar="FILE", help="a YAML file of settings to check")
    doctor.add_argument("--model", metavar="PATH", help="measure a sampling and a score of this model, here and now")
    doctor.add_argument("--steps", type=int, metavar="N", help="of the run that is planned")
    doctor.add_argument("--step-seconds", type=float, metavar="S", help="what one training step takes")
    doctor.add_argument("--setups", action="store_true", help="which set-ups are tested, unverified, refused")
    doctor.add_argument("--markdown", action="store_true", help="that table for a page, with what to know")
    doctor.add_argument("--json", action="store_true", help="one JSON object")
    doctor.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from divmon.doctor.commands import doctor

    return doctor(args)
