"""The options of ``divmon human|hivemind|voice``. What they do is imported when one is run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _run(name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        from divmon.questions import commands

        status: int = getattr(commands, name)(args)
        return status

    return run


def add_questions(commands: Any) -> None:
    """Add the three commands."""
    human = commands.add_parser("human", help="how far completions are from texts by people, in six dimensions")
    human.add_argument("file", help="completions, as for measure, or rows with a 'text'")
    human.add_argument(
        "--references", default="shipped", metavar="FILE", help="texts by people: rows with a 'text' (default: shipped)"
    )
    human.add_argument("--words", type=int, metavar="N", help="how many words of each text are looked at")
    human.set_defaults(run=_run("human"))

    hivemind = commands.add_parser("hivemind", help="how alike several models are, on the same prompts")
    hivemind.add_argument(
        "files", nargs="+", metavar="FILE", help="rows with 'prompt', 'completions' and 'model', or a file for each"
    )
    hivemind.add_argument("--encoder", help="'offline', or a sentence-transformers model, instead of surfaces")
    hivemind.add_argument("--nearest", type=int, metavar="N", help="neighbours of a completion, for source counts")
    hivemind.set_defaults(run=_run("hivemind"))

    voice = commands.add_parser("voice", help="what rewriting does to writers' voices, attribute by attribute")
    voice.add_argument("file", help="rows with 'original' and 'rewrite'; if known 'author', 'score', 'preferred'")
    voice.add_argument(
        "--attribute", action="append", metavar="NAME",
        help="a shipped attribute, package.module:function of a text, or 'default'; repeat for more",
    )  # fmt: skip
    voice.set_defaults(run=_run("voice"))
    for parser in (human, hivemind, voice):
        parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number there")
