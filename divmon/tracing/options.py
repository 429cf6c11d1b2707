"""The options of ``divmon trace``, apart from what it does, which is imported when it is run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

ABOUT = """\
Samples every checkpoint of a lineage on the same prompts, one checkpoint in memory at a time, and says which stage
lost the diversity. The first checkpoint is the base, and each comes from the one before it; a YAML file can hold a
tree. Interrupted, it goes on where it stopped. Start it with `accelerate launch -m divmon trace ...` for several
processes."""


def add_trace(commands: Any) -> argparse.ArgumentParser:
    """Add ``trace``."""
    trace: argparse.ArgumentParser = commands.add_parser(
        "trace", help="which checkpoint of a lineage lost the diversity", description=ABOUT
    )
    trace.add_argument(
        "lineage", nargs="+", metavar="NAME=SOURCE",
        help="a folder, a Hub name (NAME=org/model@revision) or an adapter; or one YAML file",
    )  # fmt: skip
    trace.add_argument("--probes", required=True, help="a .jsonl file, a pack, hub:owner/name")
    trace.add_argument("--out", type=Path, required=True, metavar="DIR", help="completions, trace.json, trace.html")
    trace.add_argument("--k", type=int, default=8, help="completions a prompt (default: %(default)s)")
    trace.add_argument("--max-new-tokens", type=int, metavar="N", help="length cap (default: 128)")
    trace.add_argument("--temperature", type=float, default=1.0)
    trace.add_argument("--top-p", type=float, default=1.0)
    trace.add_argument("--seed", type=int, default=0, help="names the noise")
    trace.add_argument("--reasoning", default="strip", choices=("strip", "keep", "empty"))
    trace.add_argument("--chat", action="store_true", help="plain prompts as user messages, where there is a template")
    trace.add_argument("--quality", metavar="MODULE:FUNCTION", help="(probe, completion) -> float")
    trace.add_argument("--metric", action="append", metavar="NAME", help="only this metric; repeat for more")
    trace.add_argument("--formats", metavar="NAME", help="'discover', 'echo-chamber' or module:function")
    trace.add_argument("--encoder", help="'offline', or a sentence-transformers model: adds semantic_distance")
    trace.add_argument("--nli", metavar="NAME", help="a model of entailment")
    trace.add_argument("--equivalence", metavar="NAME", help="what judges whether two completions say the same")
    trace.add_argument("--aggregator", default="mean-of-ratios", choices=("mean-of-ratios", "ratio-of-means"))
    trace.add_argument("--per", default="task", choices=("task", "prompt"), help="what percentages are taken of")
    trace.add_argument("--batch-size", type=int, metavar="N", help="completions at once (default: found by trying)")
    trace.add_argument("--dtype", default="auto", help="of the weights: auto, float32, bfloat16, ...")
    trace.add_argument("--wandb", action="store_true", help="also log to Weights & Biases")
    trace.add_argument("--json", metavar="FILE", help="write every number there too; - for standard output")
    return trace
