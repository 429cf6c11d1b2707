"""The page: what a run recorded, laid out for the template. Everything a model, user or file wrote goes in as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from divmon.errors import HistoryError, SignatureMismatch
from divmon.history import History
from divmon.records import OVERALL
from divmon.report import text
from divmon.report.acted import deeds
from divmon.report.charts import DomainCharts, domain_charts
from divmon.report.samples import examples
from divmon.report.tables import Change, changes, cost, differing, domains, gaps
from divmon.report.verdict import verdict

CHARTED = 12  # domains that get charts and completions; more of them get tables only
EVENTS = 100
LETTERS = "AB"
COMPARED = ("tfidf_distance", "semantic_distance", "effective_formats", "pass_at_1", "coverage")


def render(run: History, other: History | None = None) -> str:
    """The report as HTML.

    Raises:
        HistoryError: A run has no evaluation.
        SignatureMismatch: The two runs share no series that was measured in the same way.
    """
    runs = [run] if other is None else [run, other]
    for history in runs:
        if not history.evaluations:
            raise HistoryError(f"No evaluation was recorded in {history.path} yet: there is nothing to report on.")
    found = [changes(history) for history in runs]
    mixed = _mixed(runs, found)
    names = domains(runs)
    return environment().get_template("page.html.j2").render(
        runs=[_run(history, letter) for history, letter in zip(runs, LETTERS, strict=False)],
        two=len(runs) == 2,
        domains=[_domain(runs, found, name, set(mixed), full=name in names[:CHARTED]) for name in names],
        charted=CHARTED,
        beside=_beside(found, names[:CHARTED], set(mixed)) if len(runs) == 2 else [],
        mixed=mixed,
    )  # fmt: skip


def environment(*folders: Path) -> Environment:
    """Templates of reports, and those in `folders`: everything is escaped, and nothing of it invisible."""

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else text.visible(str(value))

    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, *folders], encoding="utf-8"),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (text.number, text.signed, text.percent, text.interval, text.named, text.short, text.summary):
        environment.filters[function.__name__] = function
    return environment


def _mixed(runs: Sequence[History], found: Sequence[dict[str, Change]]) -> dict[str, str]:
    """Series both runs have but measured differently, with what differs; an error when that is all of them."""
    if len(runs) < 2:
        return {}
    shared = [key for key in found[0] if key in found[1]]
    signatures = {key: (found[0][key].first.signature, found[1][key].first.signature) for key in shared}
    mixed = {key: differing(*pair) for key, pair in signatures.items() if pair[0] != pair[1]}
    if len(mixed) == len(shared):
        where = f"{runs[0].path} and {runs[1].path}"
        if not shared:
            raise SignatureMismatch(f"{where} share no series: they cannot be compared.")
        key, how = next(iter(mixed.items()))
        raise SignatureMismatch(
            f"{where} were measured differently ({key}: {how}): they cannot be compared. Report on each, or measure "
            "the second as the first."
        )
    return mixed


def _beside(
    found: Sequence[dict[str, Change]], names: Sequence[str], mixed: set[str]
) -> list[tuple[str, str, list[Change]]]:
    """The main numbers of two runs, where both have them and measured them in the same way."""
    keys = [(f"{domain}/{metric}", domain, metric) for domain in names for metric in COMPARED]
    both = [(*k, [row[k[0]] for row in found]) for k in keys if k[0] not in mixed and all(k[0] in row for row in found)]
    return [(text.named(metric), text.placed(domain), pair) for _, domain, metric, pair in both]


def _run(history: History, letter: str) -> dict[str, Any]:
    events = list(history.events())
    return {
        "letter": letter,
        "name": text.run_name(history.path),
        "path": str(history.path),
        "verdict": verdict(history),
        "events": events[:EVENTS],
        "more_events": max(0, len(events) - EVENTS),
        "deeds": deeds(history),
        "more_deeds": max(0, len(history.mitigations) - len(deeds(history))),
        "steps": (history.evaluations[0].step, history.last_step),
        "evaluations": len(history.evaluations),
        "prompts": len(history.probes),
        "fingerprint": str(history.info.get("fingerprint", "unknown")),
        "cost": cost(history),
        "gaps": gaps(history),
    }


def _row(metric: str, pair: list[Change | None], mixed: bool) -> dict[str, Any]:
    signatures = list(dict.fromkeys(c.first.signature for c in pair if c is not None))
    return {"metric": metric, "changes": pair, "mixed": mixed, "signatures": signatures}


def _domain(
    runs: Sequence[History], found: Sequence[dict[str, Change]], domain: str, mixed: set[str], *, full: bool
) -> dict[str, Any]:
    keys = dict.fromkeys(key for row in found for key, change in row.items() if change.domain == domain)
    rows = [_row(key.removeprefix(f"{domain}/"), [row.get(key) for row in found], key in mixed) for key in keys]
    charts = domain_charts(runs, found, domain, mixed) if full else DomainCharts()
    # numbers over every domain have no prompts of their own to show
    shown = [examples(history, domain) if full and domain != OVERALL else None for history in runs]
    title = "All domains together" if domain == OVERALL else text.short(domain, 60)
    return {"title": title, "charts": charts, "rows": rows, "examples": shown, "full": full}
