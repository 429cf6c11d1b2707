"""The command line. Each command imports what it needs, so that listing metrics loads no GPU stack."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from divmon.errors import DivmonError, HistoryError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0, or 2 when the user has to change something.
    """
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
    except DivmonError as error:
        print(f"divmon: {error}", file=sys.stderr)
        return 2
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

    measure = commands.add_parser("measure", help="measure completions in a JSON Lines file, without a trainer")
    measure.add_argument("file", type=Path, help="lines with a 'prompt' and 'completions' (or one 'completion')")
    measure.add_argument("--metric", action="append", metavar="NAME", help="only this metric; repeat for more")
    measure.add_argument("--encoder", help="'offline', or a sentence-transformers model: adds semantic_distance")
    measure.add_argument("--out", type=Path, help="also record a run there")
    measure.set_defaults(run=_measure)

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

    metrics = commands.add_parser("metrics", help="list the metrics")
    metrics.add_argument("--markdown", action="store_true", help="as a Markdown table")
    metrics.set_defaults(run=_metrics)
    return parser


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
    from divmon.config import Settings, plan
    from divmon.history import History
    from divmon.monitor import Monitor
    from divmon.samplers.file import read_completions
    from divmon.sinks import as_sink

    batch = read_completions(args.file)
    values = {"metrics": args.metric, "encoder": args.encoder, "k": max(2, batch.k), "alarms": []}
    chosen = plan(Settings.make(values))
    info = {"fingerprint": batch.fingerprint, "source": str(args.file)}
    try:
        history = History.create(args.out, probes=batch.probes, info=info) if args.out else None
    except OSError as error:
        raise HistoryError(f"Cannot record a run in {args.out}: {error.strerror}.") from error
    monitor = Monitor(chosen.metrics, lenses=chosen.lenses, history=history)
    console = as_sink("console")
    console.emit(monitor.observe(batch))
    console.close()
    return 0


def _report(args: argparse.Namespace) -> int:
    from divmon.report import write

    print(write(args.folder, other=args.other, out=args.out or args.folder / "report.html"))
    return 0


def _metrics(args: argparse.Namespace) -> int:
    from divmon.metrics import METRICS

    if args.markdown:
        print("| metric | family | more diverse is | unit | what it is |\n|---|---|---|---|---|")
        for name, metric in METRICS.items():
            print(f"| `{name}` | {metric.family} | {metric.direction} | {metric.unit} | {metric.summary} |")
        return 0
    width = max(map(len, METRICS))
    for name, metric in METRICS.items():
        print(f"{name:<{width}}  {metric.family:<11} {metric.direction:<8} {metric.summary}")
    return 0
