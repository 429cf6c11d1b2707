"""The form all studies share: a claim, numbers that are measured, and a verdict that is computed from them.

A study is a script with `STUDY`, `measure(args)` -> numbers and `judge(numbers)` -> `Outcome`. It ends with
``run(STUDY, measure, judge)``. What it prints, writes with ``--json`` and gives to `table.py` comes from here. The
verdict is a function of the numbers alone, so a result that has turned round says so.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from divmon.plain import to_json

QUESTIONS = "| study | question | what divmon gives |\n|---|---|---|"
HEADER = "| study | question | what divmon gives | number | verdict | seconds |\n|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Study:
    """What a study asks; written with literals, as `table.py` reads it without running the script.

    Attributes:
        name: A few words.
        question: What a user asks of a model of their own.
        claim: The finding, as a sentence that numbers can contradict.
        feature: The commands and settings of divmon that answer it, in Markdown.
        source: Where the claim comes from.
    """

    name: str
    question: str
    claim: str
    feature: str
    source: str


@dataclass(frozen=True)
class Outcome:
    """What the numbers say.

    Attributes:
        number: The number that decides, with its unit and interval, in a few words.
        verdict: One sentence.
        holds: Whether the claim was found here; None where the numbers do not tell.
    """

    number: str
    verdict: str
    holds: bool | None

    @property
    def word(self) -> str:
        """The outcome in a word or two."""
        return {True: "found", False: "not found", None: "open"}[self.holds]


def run(
    study: Study,
    measure: Callable[[argparse.Namespace], Mapping[str, Any]],
    judge: Callable[[Mapping[str, Any]], Outcome],
    *,
    options: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> Outcome:
    """Parse the command line, measure, judge, and tell; `options` adds arguments of the study's own."""
    parser = argparse.ArgumentParser(description=study.claim)
    parser.add_argument("--quick", action="store_true", help="smaller, under a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write everything there")
    options(parser)
    args = parser.parse_args()
    started = time.perf_counter()
    numbers = measure(args)
    outcome, seconds = judge(numbers), time.perf_counter() - started
    print(f"\n{study.name}: {study.question}\nClaim:   {study.claim} ({study.source})")
    for name, value in numbers.items():
        print(f"  {name:<32} {shown(value)}")
    print(f"Number:  {outcome.number}\nVerdict: {outcome.word}. {outcome.verdict}\n({seconds:.0f} s, seed {args.seed})")
    if args.json is not None:
        found = {**asdict(study), "quick": args.quick, "seed": args.seed, "numbers": dict(numbers)}
        found |= {**asdict(outcome), "word": outcome.word, "seconds": seconds}
        args.json.write_text(json.dumps(to_json(found), indent=2) + "\n", "utf-8")
    return outcome


def shown(value: Any) -> str:
    """A number, or a list of them, in a few digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, float) or hasattr(value, "dtype"):
        return "unknown" if math.isnan(value) else f"{float(value):.4g}"
    return str(value)


def asked(script: str, study: Mapping[str, Any]) -> str:
    """What a study asks, as a line of the table."""
    return f"| [{study['name']}](examples/studies/{script}) | {study['question']} | {study['feature']} |"


def row(script: str, found: Mapping[str, Any]) -> str:
    """What a study asks and what it found, from what ``--json`` wrote; blank where it failed or has not been run."""
    if "number" not in found:
        return f"{asked(script, found)} | | |"
    return f"{asked(script, found)} {found['number']} | {found['word']}: {found['verdict']} | {found['seconds']:.0f} |"
