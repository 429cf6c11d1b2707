"""The options of ``divmon rules check|test|plan`` and ``divmon replay``. What they do is imported when one is run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEFAULTS = "defaults"  # instead of a file: the rules of a run that configured none
Commands = Any  # argparse's own class of subparsers is private
_HAVE = "what is configured besides completions, of: quality, difficulty, encoder, nli, equivalence"


def _run(name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        from divmon.rulebook import commands

        status: int = getattr(commands, name)(args)
        return status

    return run


def add_rules(commands: Commands) -> None:
    """Add ``rules check``, ``rules test`` and ``rules plan``."""
    rules = commands.add_parser("rules", help="check alarm rules, test them on made-up series, plan a run with them")
    kinds = rules.add_subparsers(required=True, metavar="check|test|plan")
    _add_check(kinds)
    test = kinds.add_parser(
        "test",
        help="run the tests in a file: made-up series, and the states expected of each alarm",
        description="Exit status: 0 when every state is as expected, 1 when one is not, 2 when a file makes no sense.",
    )
    test.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a YAML file with `rules:` and `tests:`")
    test.set_defaults(run=_run("test"))
    plan = kinds.add_parser(
        "plan", help="from completions of step 0: false alarms, smallest change found, what it costs"
    )
    plan.add_argument("rules", metavar="FILE", help=f"a rule file, or {DEFAULTS!r}")
    plan.add_argument("--pilot", type=Path, required=True, help="a recorded run, or a JSON Lines file of completions")
    plan.add_argument("--evaluations", type=int, metavar="N", help="after the baseline")
    plan.add_argument("--alpha", type=float, help="instead of the file's: the chance of a false confirmed alarm a run")
    plan.add_argument("--json", action="store_true", help="as JSON")
    plan.set_defaults(run=_run("plan"))


def _add_check(kinds: Commands) -> None:
    check = kinds.add_parser(
        "check",
        help="everything that is wrong with a rule file, and rules that could never fire",
        description="Exit status: 0 without errors, 1 with warnings and --strict, 2 with errors.",
    )
    check.add_argument("file", metavar="FILE", help=f"a rule file, or {DEFAULTS!r}")
    check.add_argument("--domains", type=_words, metavar="A,B", help="the domains of the probes")
    check.add_argument("--metrics", type=_words, metavar="A,B", help="what is measured, your own metrics among them")
    check.add_argument("--have", type=_words, metavar="A,B", help=_HAVE)
    check.add_argument("--probes", type=int, metavar="N", help="prompts in each domain")
    check.add_argument("--k", type=int, metavar="K", help="completions a prompt")
    check.add_argument("--alpha", type=float, metavar="A", help="instead of the file's")
    check.add_argument("--evaluations", type=int, metavar="N", help="after the baseline")
    check.add_argument("--every", type=int, metavar="N", default=1, help="steps between evaluations")
    check.add_argument("--strict", action="store_true", help="exit with 1 when there are warnings")
    check.set_defaults(run=_run("check"))


def add_replay(commands: Commands) -> None:
    """Add ``replay``."""
    replay = commands.add_parser(
        "replay",
        help="what alarms would have said about a recorded run, TRL's completions_*.parquet, or a JSON Lines file",
    )
    replay.add_argument("path", type=Path, metavar="RUN", help="a run's folder, a folder of Parquet files, or a file")
    replay.add_argument("--rules", metavar="FILE", help=f"other rules than those of the run; {DEFAULTS!r} for divmon's")
    replay.add_argument("--json", action="store_true", help="one JSON object: events, states, rules")
    replay.set_defaults(run=_run("replay"))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
