"""Every trainer with W&B offline: the file read back holds every curve at the right step, the table and the alert."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import divmon

pytestmark = pytest.mark.trainer
ALARM = {"name": "long", "metric": "length", "rule": "above", "level": 0.5, "for": 1, "severity": "critical"}


def trainer_rows(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the trainer's own, without clocks and without what W&B adds."""
    clocks = ("runtime", "per_second", "_timestamp", "_runtime", "_step", "time", "profiling/")
    rows = [{k: v for k, v in row.items() if not k.startswith("divmon/")} for row in history]
    rows = [{k: v for k, v in row.items() if not any(clock in k for clock in clocks)} for row in rows]
    return [row for row in rows if set(row) - {"train/global_step"}]


@pytest.mark.parametrize("name", ["trainer", "sft", "dpo", "grpo", "kto", "rloo", "online_dpo"])
def test_curves_table_and_alert_are_in_the_offline_run(
    tiny: Any, name: str, tmp_path: Path, offline_wandb: Callable[[Path], None], read_wandb: Callable[..., Any]
) -> None:
    import wandb

    make, found = {**tiny.TRAINERS, **tiny.MORE_TRAINERS}[name], {}
    for kind in ("plain", "watched"):
        out = tmp_path / kind
        out.mkdir()
        offline_wandb(out)
        settings = {"every": 2, "k": 3, "max_new_tokens": 8, "alarms": [ALARM], "strict": True}
        callbacks = [divmon.DiversityCallback(**settings)] if kind == "watched" else []
        make(out, callbacks=callbacks, report_to="wandb").train()
        wandb.finish()
        [found[kind]] = read_wandb(out)

    assert trainer_rows(found["watched"].history) == trainer_rows(found["plain"].history)
    recorded = divmon.History.read(tmp_path / "watched")
    domain = recorded.probes[0].domain
    for metric in ("tfidf_distance", "effective_formats", "format_dominance", "token_entropy"):
        series = recorded.series(metric, domain)
        expected = [(s, v) for s, v in zip(series.steps, series.values, strict=True) if math.isfinite(v)]
        assert found["watched"].series(f"divmon/{domain}/{metric}") == expected, metric
        assert [step for step, _ in expected] == [0, 2, 4, 6]
    [alert] = found["watched"].alerts
    assert "long" in alert["title"]
    assert "ERROR" in str(alert["level"])
    tables = [row["divmon/samples"] for row in found["watched"].history if "divmon/samples" in row]
    table = found["watched"].table(tables[-1])
    assert table["data"]
    assert all(len(row) == len(table["columns"]) for row in table["data"])
    health = found["watched"].series("divmon/health/sampler_failures")
    assert [value for _, value in health] == [0, 0, 0, 0]
