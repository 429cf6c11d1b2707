"""Text from models, data sets and users on a page: nothing of it invisible, nothing of it endless."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path

from divmon.metrics import METRICS
from divmon.records import OVERALL

KEPT = "\n\t\u200c\u200d"  # joiners are part of ordinary writing (emoji, Persian)
NAMES = {
    "tfidf_distance": "surface distance",
    "semantic_distance": "semantic distance",
    "effective_formats": "effective number of formats",
    "effective_correct_formats": "effective number of correct formats",
    "format_dominance": "share of the commonest format",
    "pass_at_1": "pass@1",
    "winner_gap": "winner's quality gap",
    "tail_kl": "tail KL",
    "self_bleu": "self-BLEU",
    "human_gap": "distance from human texts",
    "hivemind_similarity": "likeness to other models",
    "source_models": "models among the nearest completions",
    "voice_spread": "spread of voices",
}

MEANING = {
    "tfidf_distance": "How differently completions of one prompt are worded. Lower: more alike.",
    "semantic_distance": "How different they are in meaning, as an encoder sees it. Lower: more alike.",
    "effective_formats": "How many formats are really in use. Lower: fewer.",
    "format_dominance": "How much of everything the commonest format takes. Higher: it takes over.",
    "pass_at_1": "Share of completions that are right. Not diversity, but what it may be traded for.",
    "coverage": "Share of prompts with at least one right completion. Lower: problems drop out of reach.",
    "token_entropy": "How unsure the next token is. Can rise while answers become alike: weigh it little.",
    "length": "How long completions are.",
    "human_gap": "How far the vocabulary is from that of people, in their standard deviations. Higher: further.",
    "hivemind_similarity": "How like other models' completions they are. Higher: more like everyone else's.",
    "source_models": "How many models wrote the completions nearest to one. 1: each keeps to itself.",
    "voice_spread": "How much rewrites differ, beside the writers' own texts. Lower: one voice for all.",
}


def visible(text: str) -> str:
    """`text` with control, direction, invisible, unassigned and lone surrogate characters spelled out.

    >>> print(visible("a\\0b\\u202ec\\ud800"))
    a\\x00b\\u202ec\\ud800
    """
    return "".join(map(_shown, text))


def _shown(char: str) -> str:
    if char.isprintable() or char in KEPT:
        return char
    if unicodedata.category(char) == "Zs":  # spaces of other widths
        return char
    return char.encode("unicode_escape").decode("ascii")


def short(text: str, limit: int = 80) -> str:
    """The first `limit` characters of `text` on one line, made visible.

    >>> short("abc\\ndef", 5)
    'abc d…'
    """
    line = visible(" ".join(text[: 4 * limit].split(" ")).replace("\n", " ").replace("\t", " "))
    return line if len(line) <= limit and len(text) <= 4 * limit else line[:limit] + "…"


def number(value: float) -> str:
    """Three significant digits, or a dash for NaN.

    >>> number(0.86764), number(25.55), number(12345.6), number(float("nan"))
    ('0.868', '25.6', '12,346', '–')
    """
    if math.isnan(value):
        return "–"
    if abs(value) < 1e-9:  # what rounding left of a zero
        return "0"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.3g}"


def signed(value: float) -> str:
    """`number` with its sign.

    >>> signed(-0.25), signed(0.5), signed(0.0)
    ('−0.25', '+0.5', '±0')
    """
    if math.isnan(value):
        return "–"
    return "±0" if abs(value) < 1e-9 else ("+" if value > 0 else "−") + number(abs(value))


def percent(share: float) -> str:
    """A relative change with its sign, in percent.

    >>> percent(-0.4583), percent(0.0004)
    ('−46 %', '+0 %')
    """
    if not math.isfinite(share):
        return "–"
    return ("−" if share < 0 else "+") + f"{abs(share):.0%}".replace("%", " %")


def interval(low: float, high: float, *, sign: bool = False) -> str:
    """``low to high``, or an empty text where there is no interval."""
    if math.isnan(low) or math.isnan(high):
        return ""
    show = signed if sign else number
    return f"{show(low)} to {show(high)}"


def named(metric: str) -> str:
    """What a metric is called in a sentence."""
    return NAMES.get(metric) or short(metric.replace("_", " "), 48)


def placed(domain: str) -> str:
    """Where, in a sentence."""
    return "over all domains" if domain == OVERALL else f"in {short(domain, 40)}"


def run_name(path: Path) -> str:
    """What a run in a folder is called: the folder, or the trainer's own folder above ``divmon``.

    >>> run_name(Path("runs/plain-3/divmon")), run_name(Path("runs/plain-3"))
    ('plain-3', 'plain-3')
    """
    path = path.absolute()
    return path.parent.name if path.name == "divmon" and path.parent.name else path.name


def summary(metric: str) -> str:
    """The one sentence of the metrics table; empty for a user's own metric."""
    return METRICS[metric].summary if metric in METRICS else ""


def meaning(metric: str) -> str:
    """How to read a metric, in a sentence or two for a stranger."""
    return MEANING.get(metric) or summary(metric) or "A metric of this run's own."


def joined(items: list[str]) -> str:
    """A list in a sentence.

    >>> joined(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
