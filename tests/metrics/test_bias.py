"""Estimators that promise to be unbiased are, the published biases come back, and the printed tables are the code's."""

import importlib.util
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from divmon.metrics.richness import chao_jost_entropy, grassberger_entropy
from divmon.metrics.spectrum import shannon
from divmon.metrics.vendi import squared_likeness, vendi

ROOT = Path(__file__).parents[2]
REPETITIONS = 1500


def _load():
    spec = importlib.util.spec_from_file_location("bias_tables", ROOT / "tests" / "benchmarks" / "bias_tables.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = _load()
UNBIASED = [column for columns in tables.TABLES.values() for column in columns if column.unbiased]

# Bias of Shannon estimators in nats at n draws: a simulation of 4,000 repetitions done elsewhere, to two decimals.
PUBLISHED = {
    ("uniform 5", 8): (-0.31, 0.02, 0.06),
    ("uniform 5", 16): (-0.14, 0.00, 0.03),
    ("uniform 20", 8): (-1.14, -0.01, -0.24),
    ("uniform 20", 16): (-0.68, 0.06, -0.05),
    ("uniform 20", 32): (-0.35, 0.02, 0.01),
    ("Zipf 50", 8): (-1.45, -0.46, -0.61),
    ("Zipf 50", 16): (-0.99, -0.12, -0.32),
    ("collapsed .7 + 30 x .01", 8): (-0.79, -0.48, -0.37),
    ("collapsed .7 + 30 x .01", 16): (-0.59, -0.20, -0.23),
    ("collapsed .7 + 30 x .01", 32): (-0.40, 0.00, -0.10),
}


def close(values, truth):
    """Within four standard errors (and rounding)."""
    return abs(values.mean() - truth) <= 4 * values.std() / math.sqrt(len(values)) + 1e-9


@pytest.mark.parametrize("n", tables.SIZES)
@pytest.mark.parametrize("name", tables.populations())
def test_what_is_labelled_unbiased_is(name, n):
    shares = tables.populations()[name]
    counts = np.random.default_rng(n).multinomial(n, shares, size=REPETITIONS)
    assert UNBIASED
    for column in UNBIASED:
        assert close(column.estimate(counts), column.truth(shares)), column.name


@pytest.mark.parametrize(("name", "n"), PUBLISHED)
def test_biases_of_entropy_are_the_published_ones(name, n):
    shares = tables.populations()[name]
    counts = np.random.default_rng(n).multinomial(n, shares, size=4000)
    for estimate, expected in zip((shannon, chao_jost_entropy, grassberger_entropy), PUBLISHED[name, n], strict=True):
        found = estimate(counts)
        error = found.std() * math.sqrt(2 / 4000)  # two simulations
        assert found.mean() - float(shannon(shares)) == pytest.approx(expected, abs=4 * error + 0.0051)


@pytest.mark.parametrize("n", tables.SIZES)
@pytest.mark.parametrize("clusters", [1, 5, 20])
def test_the_squared_likeness_behind_vendi_2_is_unbiased(clusters, n):
    vectors = tables.embeddings(clusters, size=1024)
    # two different draws may hit one vector of the population: pairs with themselves count, as in its own score
    truth = 1 / float(vendi(vectors, q=2.0))
    assert close(squared_likeness(tables.kernels(vectors, n, 300)), truth)


def test_the_committed_tables_say_how_they_were_made():
    lines = (ROOT / "divmon" / "metrics" / "BIAS.md").read_text("utf-8").splitlines()
    assert lines[2] == f"Made by `{tables.COMMAND}` (4,000 repetitions)."
    program = tables.COMMAND.split()[1]
    assert (ROOT / program).exists()
    assert "metrics/*.md" in (ROOT / "pyproject.toml").read_text("utf-8")


def test_the_committed_tables_are_those_the_command_prints():
    """All but the columns of Vendi scores, whose last digit depends on the linear algebra at hand."""
    committed = (ROOT / "divmon" / "metrics" / "BIAS.md").read_text("utf-8").splitlines()
    printed = list(tables.class_tables(4000))
    for line, now in zip(committed[8:], printed, strict=False):
        numbers, expected = (list(map(float, re.findall(r"\d+\.\d{3}", text))) for text in (line, now))
        assert numbers == pytest.approx(expected, abs=0.0015)
        assert re.sub(r"\d+\.\d{3}", "", line) == re.sub(r"\d+\.\d{3}", "", now)
    headings = [line for line in committed if line.startswith("## ")]
    assert headings[-1] == "## Vendi score"


def test_a_short_run_prints_every_table():
    page = "\n".join(tables.report(40, 3))
    assert page.count("\n## ") == len(tables.TABLES) + 2
    assert "nan" not in page
