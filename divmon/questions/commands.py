"""``divmon human``, ``divmon hivemind`` and ``divmon voice``: a question, its numbers in a table, and a sentence."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from divmon.errors import HistoryError
from divmon.measuring.results import aligned
from divmon.metrics.human import DIMENSIONS
from divmon.plain import to_json
from divmon.questions import away
from divmon.questions import hivemind as ask_hivemind
from divmon.questions import human_gap as ask_human_gap
from divmon.questions import voice as ask_voice
from divmon.sinks.base import strip_controls
from divmon.uncertainty import MIN_PROMPTS, mean_interval
from divmon.yardsticks.reading import SHIPPED


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _ends(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:.3g} to {high:.3g}"


def _told(args: argparse.Namespace, found: Any, head: Iterable[str], rows: list[list[str]], said: Sequence[str]) -> int:
    """Print, and write the numbers."""
    shown = [[strip_controls(cell, limit=40) for cell in row] for row in rows]
    lines = [*(strip_controls(line, limit=300) for line in head), "", *(aligned(shown) if rows else ()), "", *said]
    encoding = sys.stdout.encoding or "utf-8"
    print("\n".join(lines).encode(encoding, "backslashreplace").decode(encoding))
    if args.json is not None:
        try:
            args.json.write_text(json.dumps(to_json(found), indent=2) + "\n", "utf-8")
        except OSError as error:
            raise HistoryError(f"Cannot write {args.json}: {error.strerror}.") from error
    return 0


def human(args: argparse.Namespace) -> int:
    """Run ``divmon human``."""
    found = ask_human_gap(args.file, args.references, words=args.words)
    head = [f"{args.file} against {args.references}: {found.n[0]:,} texts against {found.n[1]:,}, {found.length} words"]
    if any(found.left_out):
        left = f"{found.left_out[0]:,} texts, {found.left_out[1]:,} of people"
        head.append(f"left out, too short or with no word twice: {left}")
    if found.reason is not None:
        return _told(args, found, head, [], [f"not measured: {found.reason}"])
    rows = [["dimension", "gap in SD of people", "95% interval"]]
    values = zip(DIMENSIONS, found.gaps, found.low, found.high, strict=True)
    rows += [[name, f"{gap:+.2f}" if math.isfinite(gap) else "-", _ends(low, high)] for name, gap, low, high in values]
    rows.append(["all (Mahalanobis)", _number(found.distance), _ends(found.distance_low, found.distance_high)])
    apart = [name for name, out in zip(DIMENSIONS, away(found.low, found.high, 0.0), strict=True) if out]
    named = f": {', '.join(apart)}" if apart else ""
    said = [f"Away from people in {len(apart)} of {len(DIMENSIONS)} dimensions{named}."]
    if min(found.n) < MIN_PROMPTS:
        said = [
            f"Fewer than {MIN_PROMPTS} texts on a side: no intervals, and no saying whether it is away from people."
        ]
    if args.references == SHIPPED:
        said.append("The shipped references are old and literary: for your users' writing, pass --references FILE.")
    return _told(args, found, head, rows, said)


def hivemind(args: argparse.Namespace) -> int:
    """Run ``divmon hivemind``."""
    found = ask_hivemind(*args.files, encoder=args.encoder, nearest=args.nearest)
    m, space = len(found.models), args.encoder or "surface"
    head = [f"{m} models on {len(found.prompts):,} prompts; mean cosine ({space}); within a model: over its pairs"]
    n = (~np.isnan(found.similarity)).sum(axis=0)
    mean = np.where(n > 0, np.nansum(found.similarity, axis=0) / np.maximum(n, 1), math.nan)
    rows = [["", *found.models]]
    rows += [[name, *map(_number, line)] for name, line in zip(found.models, mean, strict=True)]
    between = found.similarity[:, ~np.eye(m, dtype=bool)].mean(axis=1)
    ends = _ends(*mean_interval(between))
    apart = np.where(np.eye(m, dtype=bool), -math.inf, mean)
    i, j = np.unravel_index(int(np.nanargmax(apart)), apart.shape)
    sources = found.sources[~np.isnan(found.sources)]
    count = _number(float(sources.mean())) if sources.size else "-"
    pair = " and ".join(strip_controls(found.models[index]) for index in (i, j))
    said = [
        f"Between models: {_number(float(between.mean()))} ({ends}). Most alike: {pair} ({_number(apart[i, j])}).",
        f"Of {m} models, {count} are the source of the {found.nearest} nearest neighbours of a completion (1: each "
        "model keeps to itself).",
    ]
    return _told(args, found, head, rows, said)


def voice(args: argparse.Namespace) -> int:
    """Run ``divmon voice``."""
    found = ask_voice(args.file, args.attribute)
    n = max((one.n for one in found.attributes), default=0)
    rows = [["attribute", "writers", "model", "shift", "95% interval", "in SD", "spread ratio", "95% interval"]]
    for one in found.attributes:
        cells = map(_number, (one.writer, one.model, one.shift, one.shift_sd, one.spread))
        writer, model, shift, in_sd, spread = cells
        ends = _ends(*one.shift_interval), _ends(*one.spread_interval)
        rows.append([one.name, writer, model, shift, ends[0], in_sd, spread, ends[1]])
    alike = [one.name for one in found.attributes if one.spread_interval[1] < 1]
    wider = [one.name for one in found.attributes if one.spread_interval[0] > 1]
    none = "The spread of voices is not measured: it needs three writers who differ in an attribute."
    said = (
        [none]
        if math.isnan(found.spread)
        else [
            f"Spread of voices over all attributes: {_number(found.spread)} of the writers' own "
            f"({_ends(*found.spread_interval)}); under 1, voices became more alike.",
            f"More alike: {', '.join(alike) or 'none'}. Wider: {', '.join(wider) or 'none'}.",
        ]
    )
    said += _accepted(found.acceptance or {})
    return _told(args, found, [f"{args.file}: {n:,} writers"], rows, said)


def _accepted(acceptance: Any) -> list[str]:
    """What readers or a reward said, which is no evidence that a voice was kept."""
    said = []
    shares = [f"{name} {100 * acceptance[name]:.1f} %" for name in ("ai", "equal", "own") if name in acceptance]
    if shares:
        said.append(f"Preferred: {', '.join(shares)}.")
    if "score" in acceptance:
        ends = _ends(acceptance["score_low"], acceptance["score_high"])
        said.append(f"Score of the rewrites: {_number(acceptance['score'])} ({ends}).")
    return said
