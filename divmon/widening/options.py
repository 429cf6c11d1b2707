"""``divmon widen``: its options, and what it does, which is imported when it is run."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from divmon.errors import ConfigError, HistoryError

ABOUT = """\
Which kinds of thinking do the completions in a file use, and does resampling widen them? Each mode asks a critic how a
prompt's completions repeat themselves, and has the model rewrite them. The control draws as many completions from the
bare prompt; both pass through the same filters. Critics and judges: 'policy' (the model itself),
'model:NAME_OR_FOLDER', or 'http(s)://HOST/v1#MODEL', whose key stands in the environment."""


def add_widen(commands: Any) -> None:
    """Add ``widen``."""
    widen: argparse.ArgumentParser = commands.add_parser(
        "widen", help="kinds of thinking in completions, and what resampling in each gains", description=ABOUT
    )
    widen.add_argument("file", help="as for measure")
    widen.add_argument("--model", required=True, metavar="MODEL", help="the folder of the model that wrote them")
    widen.add_argument("--critic", default="policy", metavar="WHO", help="says what repeats (default: %(default)s)")
    widen.add_argument(
        "--mode", action="append", metavar="MODE", help="combinational, exploratory or transformational; repeat; or all"
    )
    widen.add_argument("--feasible", metavar="WHO", help="judges whether a text is an answer (default: any text is)")
    widen.add_argument("--thinking", metavar="WHO", help="judges the kind of thinking (default: a rule on words)")
    widen.add_argument("--quality", metavar="MODULE:NAME", help="judges completions (default: by 'gold' in the file)")
    widen.add_argument("--good", type=float, metavar="Q", help="quality from which one is kept (default: 0.5)")
    widen.add_argument("--encoder", help="'offline', or a sentence-transformers model: adds metrics of meaning")
    widen.add_argument("--metric", action="append", metavar="NAME", help="only this metric; repeat for more")
    for name, what in (
        ("critiques", "completions of a prompt that are criticised"),
        ("refinements", "texts written from each critique"),
        ("most", "texts a prompt"),
        ("max-new-tokens", "length of a text"),
    ):
        widen.add_argument(f"--{name}", type=int, metavar="N", help=what)
    widen.add_argument("--temperature", type=float, metavar="T", help="of all draws (default: 1)")
    widen.add_argument("--novelty", type=float, metavar="D", help="least distance to what is there (default: 0.5)")
    widen.add_argument("--logprob", type=float, metavar="L", help="least mean log p (default: -3); -inf: none")
    widen.add_argument("--key", type=int, metavar="N", help="names the noise (default: 0)")
    widen.add_argument("--json", metavar="FILE", help="write every number and text there; - for standard output")
    widen.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from divmon.widening.engine import widen

    names = ("critiques", "refinements", "most", "max_new_tokens", "temperature", "novelty", "logprob", "key", "good")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if options.get("logprob") == -math.inf:
        options["logprob"] = None
    if args.mode:
        options["modes"] = list(dict.fromkeys(args.mode))
    if args.metric:
        options["metrics"] = args.metric
    for name in ("feasible", "thinking"):
        if getattr(args, name) == "":
            raise ConfigError(f"--{name} names nobody.")
    found = widen(
        args.file,
        args.model,
        args.critic,
        quality=args.quality,
        feasible=args.feasible,
        thinking=args.thinking,
        encoder=args.encoder,
        **options,
    )
    text = json.dumps(found.to_json(), indent=2)
    if args.json is not None and args.json != "-":
        try:
            Path(args.json).write_text(text + "\n", "utf-8")
        except OSError as error:
            raise HistoryError(f"Cannot write {args.json}: {error.strerror}.") from error
    shown, encoding = text if args.json == "-" else found.table(), sys.stdout.encoding or "utf-8"
    print(shown.encode(encoding, "backslashreplace").decode(encoding))
    return 0
