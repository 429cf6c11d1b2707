"""What ``divmon trace`` does."""

from __future__ import annotations

import argparse
import json
import logging
import os
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from divmon.errors import ConfigError, HistoryError
from divmon.tracing.engine import trace
from divmon.tracing.lineage import SUFFIXES, Lineage

_SETTINGS = (
    "k", "max_new_tokens", "temperature", "top_p", "seed", "quality", "encoder", "nli", "equivalence", "batch_size",
    "chat", "dtype",
)  # fmt: skip


def run(args: argparse.Namespace, say: Callable[[str], object] = print) -> int:
    """Trace, write, and print once.

    Args:
        args: Of the command line.
        say: Prints.

    Returns:
        1 when a checkpoint failed, else 0.
    """
    _quiet()
    lineage = read(args.lineage)
    found = trace(
        lineage,
        args.probes,
        out=args.out,
        aggregator=args.aggregator,
        per=args.per,
        reasoning=args.reasoning,
        progress=True,
        metrics=args.metric,
        formats=_formats(args.formats),
        **{name: getattr(args, name) for name in _SETTINGS},
    )
    if int(os.environ.get("RANK", "0")) == 0:
        data, page = found.save(args.out)
        text = json.dumps(found.to_json(), indent=2)
        if args.json is not None and args.json != "-":
            _write(Path(args.json), text + "\n")
        say(text if args.json == "-" else f"{found.table()}\n\n{page}\n{data}")
        if args.wandb:
            found.to_wandb()
    return 1 if found.failed else 0


def read(items: list[str]) -> Lineage:
    """The lineage of the command line.

    Raises:
        ConfigError: It is neither one YAML file nor a list of ``name=source``.
    """
    if len(items) == 1 and items[0].endswith(SUFFIXES):
        return Lineage.of(items[0])
    names = [item.partition("=")[0] for item in items]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"Two checkpoints are called {name!r}.")
    return Lineage.of(items)


def _formats(name: str | None) -> Any:
    if name is None or ":" not in name:
        return name
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--formats {name!r} cannot be imported: {error}. Write package.module:function.") from error


def _quiet() -> None:
    """No bars of single files; what goes on is said on standard error."""
    from transformers.utils import logging as chatter

    chatter.disable_progress_bar()
    log = logging.getLogger("divmon")
    if not log.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise HistoryError(f"Cannot write {path}: {error.strerror}.") from error
