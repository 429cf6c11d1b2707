"""What the demo that mitigates says of two runs, from histories made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from divmon.history import Evaluation, History
from divmon.records import LeverEvent, Measurement


def recorded(path: Path, right: list[float], formats: list[float]) -> History:
    history = History.create(path, probes=())
    for i, (quality, value) in enumerate(zip(right, formats, strict=True)):
        rows = (("pass_at_1", quality), ("effective_correct_formats", value))
        history.append(Evaluation(4 * i, tuple(Measurement(4 * i, "sums", name, v) for name, v in rows)))
    return history


def test_both_runs_are_judged_at_equal_quality(tmp_path: Path) -> None:
    told = pytest.importorskip("divmon.demo.mitigate").told
    alone = recorded(tmp_path / "alone", [0.5, 0.7, 0.9], [4.0, 3.0, 2.0])
    mitigated = recorded(tmp_path / "mitigated", [0.5, 0.6, 0.8], [4.0, 3.8, 3.5])
    text, better = told(alone, mitigated)
    said = "(0.80; step 6 and step 8), 2.50 formats are in use alone, and 3.50 with the lever: 1.4 times as many."
    assert f"At the highest pass@1 that both reach {said}" in text
    assert "The alarm never fired" in text
    assert not better
    mitigated.note(LeverEvent(4, "diversity_reward", "applied", 1.0))
    text, better = told(alone, mitigated)
    assert "diversity_reward applied" in text
    assert better
