"""A trace in Weights & Biases: curves over the checkpoints, a table of the stages, and the page."""

from __future__ import annotations

import math
import sys
from typing import Any

from divmon.errors import MissingDependency
from divmon.records import OVERALL
from divmon.tracing.results import Trace
from divmon.tracing.sentences import shown

STEP = "divmon/trace/checkpoint"
COLUMNS = ["metric", "domain", "aggregator", "checkpoint", "since", "retained", "change", "change_low", "change_high"]


def log_wandb(found: Trace, run: Any = None) -> None:
    """Log to `run`, to the run that is open, or to one that is opened and finished here.

    Raises:
        MissingDependency: W&B is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise MissingDependency("Logging to Weights & Biases needs it: pip install wandb") from error
    own = None
    if run is None:
        run = getattr(sys.modules.get("wandb"), "run", None)
    if run is None:
        own = run = wandb.init(project="divmon", job_type="trace")
    run.define_metric(STEP)
    run.define_metric("divmon/trace/*", step_metric=STEP)
    for i, seen in enumerate(found.checkpoints):
        run.log({**row(found, seen.name), STEP: i})
    run.log({"divmon/trace_stages": wandb.Table(columns=COLUMNS, data=rows(found))})
    run.log({"divmon/trace_page": wandb.Html(found.page(), inject=False)})
    if own is not None:
        own.finish()


def row(found: Trace, name: str) -> dict[str, float]:
    """The curves of one checkpoint: every number by domain, and what is kept of the base over all of them."""
    values = {f"divmon/trace/{m.domain}/{m.metric}": m.value for m in found.values.get(name, ())}
    for metric in shown(found):
        series = found.get(metric, OVERALL)
        if series is not None and any(stage.name == name for stage in series.stages):
            values[f"divmon/trace/retained/{metric}"] = series.stage(name).retained
    return {key: value for key, value in values.items() if not math.isnan(value)}


def rows(found: Trace) -> list[list[Any]]:
    """The table of stages."""
    return [
        [s.metric, s.domain, s.aggregator, *(getattr(stage, name) for name in ("name", "since", *COLUMNS[5:]))]
        for s in found.series
        for stage in s.stages
    ]
