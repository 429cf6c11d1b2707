"""Nothing that a model wrote can do more than be read, in a real browser too."""

from __future__ import annotations

import html
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from divmon.history import Evaluation, History
from divmon.records import AlarmEvent, Probe
from divmon.report import write


def test_hostile_completions_are_only_ever_read(kit: Any, tmp_path: Path) -> None:
    history = kit.recorded(
        tmp_path / "run", lambda p, k, s: kit.HOSTILE[(p + k + s) % len(kit.HOSTILE)], steps=(0, 1, 2)
    )
    page, text = kit.checked(write(history, out=tmp_path / "r.html"))
    assert "<script" not in page
    assert len(page) < 3_000_000
    for seen in (
        "<script>document",
        "\\u202egnp.exe",
        "\\x00 bell",
        "\\x1b[31m",
        "\\ud800",
        "\\U000e0041",
        "\\x9b",
        "\\uffff",
        "{{ 7 * 7 }}",
    ):
        assert seen in text, seen
    assert "99,400 more characters" in text


def test_hostile_names_and_messages_are_only_ever_read(kit: Any, tmp_path: Path) -> None:
    evil = "<script>x</script>$\\frac{\x00\u202e\ud800"
    probes = tuple(Probe(f"p{i}", evil, domain=evil) for i in range(6))
    history = History.create(tmp_path / "run", probes=probes, info={"fingerprint": evil, "rules": evil})
    shares = {evil: 0.6, "$x^{": 0.4}
    for step in (0, 1):
        row = (
            kit.point(step, 0.5, domain=evil, metric=evil, signature=evil, reason=evil),
            kit.point(step, 0.6, domain=evil, metric="format_dominance", signature="k:1", details={"shares": shares}),
            kit.point(
                step, 0.6, domain=evil, metric="tail_share",
                details={"shares": shares, "baseline_shares": {evil: math.nan}, "tail_levels": [evil]},
            ),
            kit.point(step, math.nan, domain=evil, metric="coverage", reason=evil),
        )  # fmt: skip
        told = {"severity": evil, "value": 0.1, "baseline": 0.5, "message": evil * 900, "actions": (evil,)}
        event = AlarmEvent(step, evil, evil, evil, "firing", **told)  # type: ignore[arg-type]
        history.append(Evaluation(step, row, (event,)))
    page, text = kit.checked(write(History.read(tmp_path / "run"), out=tmp_path / "r.html"))
    assert "&lt;script&gt;x&lt;/script&gt;$\\frac{\\x00\\u202e\\ud800" in page
    assert "<script>x</script>" in text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--virtual-time-budget=2000",
)  # fmt: skip
PROBE = """<!doctype html><body style="margin:0">
<iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe>
<script>addEventListener("load", () => {{
const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
for (const d of page.querySelectorAll("details")) d.open = true;
const facts = {{width: root.clientWidth, needs: root.scrollWidth, scripts: page.scripts.length,
  pwned: root.dataset.pwned || document.documentElement.dataset.pwned || "no"}};
document.body.dataset.facts = Object.entries(facts).map(([k, v]) => k + "=" + v).join(" ");
}})</script>"""


def browse(where: Path, *arguments: str) -> str:
    """What headless Chromium prints."""
    assert CHROMIUM is not None
    profile = where / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on this machine")
def test_in_a_real_browser_it_fits_a_phone_and_runs_nothing(kit: Any, tmp_path: Path) -> None:
    def text(p: int, k: int, s: int) -> str:
        return kit.HOSTILE[(p + k) % len(kit.HOSTILE)] if k < 3 or s < 20 else kit.HOSTILE[7]

    a = kit.recorded(
        tmp_path / "a", text, domains=("poems", "m" * 300), quality=lambda probe, text: float(len(text) < 99)
    )
    b = kit.recorded(
        tmp_path / "b", text, domains=("poems", "m" * 300), quality=lambda probe, text: float(len(text) < 99)
    )
    page = write(a, other=b, out=tmp_path / "r.html")
    for width in (360, 1280):
        wrapper = tmp_path / f"{width}.html"
        wrapper.write_text(PROBE.format(width=width, page=html.escape(page.read_text("utf-8"))), "utf-8")
        dom = browse(tmp_path, "--window-size=1400,900", "--dump-dom", wrapper.as_uri())
        facts = dict(pair.split("=") for pair in re.search(r'data-facts="([^"]*)"', dom)[1].split())  # type: ignore[index]
        assert facts["width"] == str(width)
        assert int(facts["needs"]) <= width
        assert (facts["scripts"], facts["pwned"]) == ("0", "no")
        image = tmp_path / f"{width}.png"
        browse(tmp_path, f"--window-size={max(width, 500)},900", f"--screenshot={image}", page.as_uri())
        pixels = _pixels(image)
        assert pixels.shape[1] == max(width, 500)
        assert pixels.std() > 5  # something was drawn


def _pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(path)) * 255
