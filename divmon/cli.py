"""The command line. Each command imports what it needs, so that listing metrics loads no GPU stack."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from divmon.comparing.options import add_compare
from divmon.doctor.options import add_doctor
from divmon.errors import ConfigError, DivmonError, HistoryError
from divmon.questions.options import add_questions
from divmon.rulebook.options import add_replay, add_rules
from divmon.tracing.options import add_trace
from divmon.widening.options import add_widen


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0; 1 when what was asked for is not so (`rules test`, `rules check --strict`); 2 when the
        user has to change something.
    """
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except DivmonError as error:
        print(f"divmon: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads (`| head`) has seen enough; nothing is left to flush at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("divmon: interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="divmon", description="Watch the diversity of a language model's outputs while it is post-trained."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="a real GRPO run that collapses into one format, and is stopped in time")
    twin = demo.add_mutually_exclusive_group()
    twin.add_argument("--healthy", action="store_true", help="the twin whose reward pays every format: stays silent")
    twin.add_argument("--mitigate", action="store_true", help="two runs: one collapses, in one the alarm pulls a lever")
    demo.add_argument("--steps", type=int, default=60, help="GRPO steps at most (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--out", type=Path, default=None, help="folder (default: divmon-demo, divmon-demo-healthy, ...)")
    demo.set_defaults(run=_demo)

    _measure_parser(commands)

    pairs = commands.add_parser("pairs", help="preference pairs for DPO that ask for diversity, from completions")
    pairs.add_argument("file", type=Path, help="as for measure, with 'rewards' or 'gold'")
    pairs.add_argument("--out", type=Path, required=True, help="JSON Lines with prompt, chosen, rejected")
    pairs.add_argument("--good", type=float, default=0.5, help="quality from which one is good (default: %(default)s)")
    pairs.add_argument("--bad", type=float, help="quality below which one is bad (default: the same)")
    pairs.add_argument("--share", type=float, help="instead: the best and worst share of a prompt's completions")
    pairs.add_argument("--by", default="tfidf", help="tfidf, formats or words (default: %(default)s)")
    pairs.set_defaults(run=_pairs)

    report = commands.add_parser("report", help="one HTML page about a recorded run: what collapsed, when, how sure")
    report.add_argument("folder", type=Path, metavar="RUN", help="the folder of the run")
    report.add_argument("other", type=Path, metavar="RUN2", nargs="?", help="a second run to set beside it")
    report.add_argument("--out", type=Path, help="the file to write (default: report.html in RUN)")
    report.set_defaults(run=_report)

    add_compare(commands).set_defaults(run=_compare)
    add_trace(commands).set_defaults(run=_trace)
    add_questions(commands)
    add_rules(commands)
    add_replay(commands)
    add_widen(commands)
    add_doctor(commands)

    protocols = commands.add_parser("protocols", help="list the protocols of the literature that measure knows")
    protocols.add_argument("name", nargs="?", help="all about this one, and what it cannot give exactly")
    protocols.set_defaults(run=_protocols)

    metrics = commands.add_parser("metrics", help="list the metrics")
    metrics.add_argument("--markdown", action="store_true", help="as a Markdown table")
    metrics.add_argument("--standard", action="store_true", help="only those measured when none are named")
    metrics.set_defaults(run=_metrics)
    return parser


def _measure_parser(commands: Any) -> None:
    measure = commands.add_parser("measure", help="measure completions in a file of any size, without a trainer")
    measure.add_argument(
        "file", help="JSON Lines, a JSON list or Parquet, a folder or a pattern; rows with 'prompt' and 'completions'"
    )
    measure.add_argument("--protocol", metavar="NAME", help="measure as a study did; see divmon protocols")
    measure.add_argument("--against", metavar="BASELINE", help="also give the change from this file, with intervals")
    measure.add_argument("--group-by", action="append", metavar="COLUMN", help="a row for each value; repeat for more")
    measure.add_argument("--metric", action="append", metavar="NAME", help="only this metric; repeat for more")
    measure.add_argument("--encoder", help="'offline', or a sentence-transformers model: adds semantic_distance")
    measure.add_argument("--nli", metavar="NAME", help="a model of entailment, for metrics that need one")
    measure.add_argument("--equivalence", metavar="NAME", help="what judges whether two completions say the same")
    measure.add_argument("--references", metavar="FILE", help="texts by people, or 'shipped': adds human_gap")
    measure.add_argument("--others", action="append", metavar="FILE", help="other models' completions; repeat for more")
    measure.add_argument("--attribute", action="append", metavar="NAME", help="what voices are compared by")
    measure.add_argument("--reward", action="append", metavar="COLUMN", help="judges completions; several are summed")
    measure.add_argument("--json", metavar="FILE", help="write every number there; - for standard output")
    measure.add_argument("--out", type=Path, help="also record a run there (reads the whole file into memory)")
    measure.set_defaults(run=_measure)


def _demo(args: argparse.Namespace) -> int:
    if args.mitigate:
        from divmon.demo.mitigate import run as side_by_side

        return side_by_side(args.out or Path("divmon-demo-mitigate"), steps=args.steps, seed=args.seed)
    from divmon.demo.run import run

    out = args.out or Path("divmon-demo-healthy" if args.healthy else "divmon-demo")
    return run(out, healthy=args.healthy, steps=args.steps, seed=args.seed)


def _pairs(args: argparse.Namespace) -> int:
    import json

    from divmon.mitigations import divpo_pairs
    from divmon.mitigations.pairs import summary
    from divmon.samplers.file import read_completions

    batch = read_completions(args.file)
    rows = divpo_pairs(batch, good=args.good, bad=args.bad, share=args.share, by=args.by)
    try:
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), "ascii")
    except OSError as error:
        raise HistoryError(f"Cannot write {args.out}: {error.strerror}.") from error
    print(f"{summary(rows, len(batch.probes))}; written to {args.out}")
    return 0


def _measure(args: argparse.Namespace) -> int:
    from divmon.measuring import measure

    if args.out is not None and (args.group_by or args.against or args.reward or args.protocol):
        raise ConfigError(
            "--out records the file as one evaluation: leave out --group-by, --against, --reward and --protocol."
        )
    if args.out is not None:
        _record(args)
    found = measure(
        args.file,
        against=args.against,
        group_by=args.group_by or (),
        protocol=args.protocol,
        reward_columns=args.reward or (),
        progress=True,
        **_lenses(args),
    )
    text = json.dumps(found.to_json(), indent=2)
    if args.json is not None and args.json != "-":
        _write(Path(args.json), text + "\n")
    _say(text if args.json == "-" else found.table())
    return 0


def _lenses(args: argparse.Namespace) -> dict[str, Any]:
    given = {"metrics": args.metric, "attributes": args.attribute}
    return given | {name: getattr(args, name) for name in ("encoder", "nli", "equivalence", "references", "others")}


def _record(args: argparse.Namespace) -> None:
    from divmon.config import plan
    from divmon.history import History
    from divmon.monitor import Monitor
    from divmon.samplers.file import read_completions
    from divmon.settings import Settings

    batch = read_completions(args.file)
    chosen = plan(Settings.make({**_lenses(args), "k": max(2, batch.k), "alarms": []}))
    info = {"fingerprint": batch.fingerprint, "source": args.file}
    try:
        history = History.create(args.out, probes=batch.probes, info=info)
    except OSError as error:
        raise HistoryError(f"Cannot record a run in {args.out}: {error.strerror}.") from error
    Monitor(chosen.metrics, lenses=chosen.lenses, history=history).observe(batch)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise HistoryError(f"Cannot write {path}: {error.strerror}.") from error


def _say(text: str) -> None:
    """Print what a terminal of another encoding cannot show as escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def _report(args: argparse.Namespace) -> int:
    from divmon.report import write

    print(write(args.folder, other=args.other, out=args.out or args.folder / "report.html"))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from divmon.comparing.engine import compare
    from divmon.comparing.groups import open_groups
    from divmon.comparing.table import table
    from divmon.plain import to_json

    groups = open_groups(args.runs, args.group)
    found = compare(groups, metrics=args.metric, quality=args.quality, level=args.at)
    text = json.dumps(to_json(found), indent=2)
    if args.json is not None and args.json != "-":
        _write(Path(args.json), text + "\n")
    if args.html is not None:
        from divmon.comparing.page import render

        _write(args.html, render(found))
    _say(text if args.json == "-" else table(found))
    return 0


def _trace(args: argparse.Namespace) -> int:
    from divmon.tracing.command import run

    return run(args, _say)


def _protocols(args: argparse.Namespace) -> int:
    from divmon.protocols import PROTOCOLS, get_protocol

    if args.name is not None:
        print(get_protocol(args.name).page())
        return 0
    width = max(map(len, PROTOCOLS))
    for name, protocol in PROTOCOLS.items():
        print(f"{name:<{width}}  {protocol.title}")
    return 0


def _metrics(args: argparse.Namespace) -> int:
    from divmon.metrics import METRICS

    chosen = {name: metric for name, metric in METRICS.items() if metric.standard or not args.standard}
    if args.markdown:
        print("| metric | family | more diverse is | unit | what it is |\n|---|---|---|---|---|")
        for name, metric in chosen.items():
            print(f"| `{name}` | {metric.family} | {metric.direction} | {metric.unit} | {metric.summary} |")
        return 0
    width = max(map(len, chosen))
    for name, metric in chosen.items():
        print(f"{name:<{width}}  {metric.family:<11} {metric.direction:<8} {metric.summary}")
    return 0
