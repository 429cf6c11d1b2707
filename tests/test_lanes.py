"""Other versions of TRL, each unpacked beside the main environment and put first on the path of a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def site_with(version: str, tmp_path: Path) -> Path:
    site = tmp_path / f"trl-{version}"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), f"trl=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return site


def run_tests(site: Path, *targets: str) -> None:
    """Fails unless every test of `targets` ran and passed with the TRL of `site`."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *targets]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    last = done.stdout.splitlines()[-1]
    assert " passed" in last
    assert "skipped" not in last


@pytest.mark.trainer
def test_the_oldest_supported_trl(tmp_path: Path) -> None:
    site = site_with("1.0.0", tmp_path)
    run_tests(site, "tests/trainers/test_undisturbed.py", "tests/trainers/test_alarms_act.py")
    run_tests(site, "tests/trainers/test_levers.py", "-k", "not entropy and not resumed")  # it has no entropy bonus yet


@pytest.mark.trainer
def test_ppo_in_its_last_home(tmp_path: Path) -> None:
    run_tests(site_with("1.12.0", tmp_path), "tests/ppo")
