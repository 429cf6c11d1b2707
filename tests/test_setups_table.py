"""The table of set-ups says "tested" only of what a test in this repository runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from divmon.cli import main
from divmon.doctor.setups import SETUPS, Setup, markdown

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_what_is_tested_names_tests_that_exist(setup: Setup) -> None:
    assert setup.tests or "tested" not in setup.states
    for name in setup.tests:
        path, function, case = re.fullmatch(r"([^:]+)(?:::(\w+))?(?:\[(.+)\])?", name).groups()
        text = (ROOT / path).read_text("utf-8")
        assert function is None or f"def {function}(" in text, name
        assert case is None or f'    "{case}": (' in text, name


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_what_is_refused_says_what_to_do_instead(setup: Setup) -> None:
    if "refused" in setup.states:
        assert set(setup.states) == {"refused"}
        assert re.search(r"\. (Use|Measure|Pass) ", setup.note)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--setups", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == markdown()
    assert main(["doctor", "--setups"]) == 0
    assert "LoRA (PEFT)" in capsys.readouterr().out
    assert main(["doctor", "--setups", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == [setup.name for setup in SETUPS]
