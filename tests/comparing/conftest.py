"""Small runs on disk whose numbers can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from divmon.history import Evaluation, History
from divmon.records import Measurement, Probe

SIGNATURE = "agg:mean|k:8|T:1|probes:f00d"


def recorded(
    path: Path,
    series: Mapping[str, Sequence[Any]],
    *,
    steps: Sequence[int] = (0, 10, 20),
    domain: str = "sums",
    signatures: Mapping[str, str] | None = None,
) -> History:
    """A run: for each metric one value an evaluation, a number or the numbers of the prompts (their mean counts)."""
    probes = tuple(Probe(f"p{i}", f"{i}+1?", domain=domain) for i in range(6))
    history = History.create(path, probes=probes, info={"fingerprint": "f00d"})
    for i, step in enumerate(steps):
        row = []
        for metric, values in series.items():
            given = values[i]
            by_prompt = tuple(given) if isinstance(given, Sequence) else ()
            value = float(np.nanmean(by_prompt)) if by_prompt else given
            signature = (signatures or {}).get(metric, SIGNATURE)
            reason = "nothing to measure" if math.isnan(value) else None
            row.append(Measurement(step, domain, metric, value, signature=signature, values=by_prompt, reason=reason))
        history.append(Evaluation(step, tuple(row)))
    return history


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    return SimpleNamespace(recorded=recorded, SIGNATURE=SIGNATURE)
