"""Two studies without training: what a model may write, what the verdicts rest on, the grid, reading a run."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest

import divmon
from divmon.demo import sums
from divmon.monitor import Lenses

STUDIES = Path(__file__).parents[2] / "examples" / "studies"


def load(name: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUDIES))
        spec = importlib.util.spec_from_file_location(f"study_{name}", STUDIES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module


domain = load("domain_direction")
formats = load("format_takeover")

HOSTILE = (
    "9**9**9", "(" * 500 + "x" + ")" * 500, "-" * 500 + "x", "9" * 10_000, "9" * 4000 + "*x" * 50, "x//0", "1//(x-2)",
    "__import__('os')", "x.real", "[x]*9", "lambda: x", "x if x else 1", "True+x", "1.5*x", "'a'*9", "x\x00", "\ud800",
    "", "x +", "x\nx", "1<<x", "y+1", "x;x", "f'{x}'", "x:=3", "+".join("x" * 5000), "0x", "1__0",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_a_model_writes_runs_or_raises(text: str) -> None:
    found = domain.results(text)
    if found is not None:  # long sums and products of numbers are expressions of the task
        assert set(text) <= set("x+*0123456789_")
    assert domain.good("code", "even", text) in (0.0, 1.0)
    assert domain.good("tales", "fox", text) == 0.0
    assert domain.meaning(text) == domain.meaning(text)
    assert 0.0 <= domain.form_distance([text, "x+1", "The fox ran home."]) <= 1.0


def test_expressions_mean_what_they_give() -> None:
    inputs = list(domain.INPUTS)
    for text in domain.EXPRESSIONS:
        wanted = [eval(text, {"__builtins__": {}}, {"x": x}) for x in inputs]  # our own list
        assert domain.results(f" {text} ") == tuple(wanted)
        for name, rule in domain.PROPERTIES.items():
            assert domain.good("code", name, text) == all(map(rule, inputs, wanted))
    assert all(any(domain.good("code", name, text) for text in domain.EXPRESSIONS) for name in domain.PROPERTIES)
    assert domain.meaning("x+x") == domain.meaning("2*x") != domain.meaning("x*x")


def test_tales_mean_what_happens_in_them() -> None:
    assert domain.good("tales", "fox", "Once a fox ran home.") == 1.0
    assert domain.good("tales", "fox", "Once a fox ran home") == 0.0  # no end
    assert domain.good("tales", "fox", "Once a cat ran home.") == 0.0
    assert domain.meaning("A fox ran home.") == domain.meaning("The cat ran home.") != domain.meaning("A fox ran away.")
    assert domain.meaning("no tale") == "no tale"


def test_form_is_the_shape_of_the_tree_or_the_first_word() -> None:
    assert domain.form_distance(["x+1", "x+2", "x+3"]) == 0.0
    assert domain.form_distance(["x+1", "x*2"]) == 1.0
    assert domain.form_distance(["The fox ran.", "The cat hid.", "A hen sang."]) == pytest.approx(2 / 3)
    assert math.isnan(domain.form_distance(["x"]))


UP, DOWN, FLAT, UNKNOWN = (0.2, 0.1, 0.3), (-0.2, -0.3, -0.1), (0.0, -0.1, 0.1), (0.1, math.nan, math.nan)


def judged(code: Any, tales: Any) -> Any:
    rows = {"code": code, "tales": tales}
    return domain.judge({f"{d}: {level}": list(row) for d, row in rows.items() for level in domain.LEVELS})


def test_domains_are_judged_by_the_signs_of_clear_changes() -> None:
    assert judged(UP, DOWN).holds is True
    assert judged(DOWN, UP).holds is True
    assert judged(DOWN, DOWN).holds is judged(UP, UP).holds is False
    assert judged(FLAT, DOWN).holds is None
    assert judged(FLAT, FLAT).holds is None  # nothing moved: that is no agreement
    assert judged(UNKNOWN, DOWN).holds is judged(UNKNOWN, UNKNOWN).holds is None
    assert "?" in judged(UNKNOWN, DOWN).number
    assert domain.judge({}).holds is None
    numbers = {f"{d}: {level}": list(DOWN) for d in ("code", "tales") for level in domain.LEVELS}
    mixed = domain.judge({**numbers, "code: words": list(UP)})
    assert mixed.holds is True
    assert mixed.verdict == "Opposite directions in words."
    assert [domain.sign(change) for change in (UP, DOWN, FLAT, UNKNOWN)] == ["+", "-", "0", "?"]


def run(share: tuple[float, float] = (0.3, 0.9), kl: float = 0.0, *, common: Any = True, best: Any = False) -> Any:
    return {"share": share, "kl": kl, "winner was commonest": common, "winner was most accurate": best}


def test_formats_are_judged_by_both_halves_of_the_claim() -> None:
    won, lost = run(), run((0.3, 0.6), 0.01)
    assert formats.judge({"runs": [won, won]}).holds is True
    assert formats.judge({"runs": [won, lost]}).holds is None
    assert formats.judge({"runs": [won, lost, lost]}).holds is False
    assert formats.judge({"runs": [run((0.85, 0.95))] * 2}).holds is False  # it had won before
    both = formats.judge({"runs": [run(best=True)] * 2})
    assert both.holds is None
    assert both.verdict.startswith("No winner was other than the commonest and most accurate.")
    unknown = formats.judge({"runs": [run(best=None)] * 2})
    assert unknown.holds is None
    assert "in 0 it was not both" in unknown.number
    assert "60% at KL" not in formats.judge({"runs": [won, lost]}).verdict
    assert "10% at KL 0, 40% at KL 0.01" in formats.judge({"runs": [won, lost]}).verdict


def test_the_full_grid_is_the_one_promised() -> None:
    def chosen(**more: Any) -> Any:
        return formats.cells(argparse.Namespace(**{"full": False, "quick": False, "seed": 3, **more}))

    full = chosen(full=True)
    assert len(full) == len({cell.name for cell in full}) == 36
    axes = [{getattr(cell, name) for cell in full} for name in ("size", "mixture", "kl", "algorithm")]
    assert [len(axis) for axis in axes] == [2, 3, 3, 2]
    assert set(itertools.product(*axes)) == {(c.size, c.mixture, c.kl, c.algorithm) for c in full}
    assert axes[2:] == [{0.0, 1e-3, 1e-2}, {"GRPO", "PPO"}]
    plain = chosen()
    assert {(cell.mixture, cell.kl) for cell in plain} == set(
        itertools.product(list(formats.MIXTURES)[:2], (0.0, 1e-2))
    )
    assert len(chosen(quick=True)) == 2
    for cell in (*full, *plain):
        assert cell.seed == 3
        assert not set(cell.name) & set(" /\\:")
    for table in formats.MIXTURES.values():
        assert set(table) == {"program", "prose", "latex", "bullets"}
        assert sum(share for share, _ in table.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("mixture", formats.MIXTURES)
def test_documents_are_as_common_and_as_right_as_the_mixture_has_them(mixture: str) -> None:
    rows = list(itertools.islice(formats.documents(mixture, 0), 3000))
    answers = {s.prompt: s.answer for s in sums.prompts()}
    for name, (share, wrong) in formats.MIXTURES[mixture].items():
        own = [(prompt, text) for prompt, text in rows if sums.label(text) == name]
        assert len(own) / len(rows) == pytest.approx(share, abs=0.04)
        right = sum(sums.is_correct(text, answers[prompt]) for prompt, text in own) / len(own)
        assert 1 - right == pytest.approx(wrong, abs=0.09)


def history(path: Path, ends: list[dict[str, int]], right: Any) -> None:
    """A run of 8 completions a prompt, so many of each format."""
    chosen = sums.prompts()[:5]
    probes = tuple(divmon.Probe(s.prompt, s.prompt, gold=str(s.answer), domain="sums") for s in chosen)
    record = divmon.History.create(path, probes=probes)
    names = ("format_dominance", "effective_formats", "pass_at_1", "coverage")
    lenses = Lenses(quality=lambda p, text: float(sums.is_correct(text, int(p.gold or -1))), classifier=sums.label)
    monitor = divmon.Monitor([divmon.METRICS[name] for name in names], lenses=lenses, history=record)
    for step, counts in enumerate(ends):
        texts = tuple(
            tuple(sums.write(n, s.a, s.b, s.answer + (not right(n))) for n, k in counts.items() for _ in range(k))
            for s in chosen
        )
        monitor.observe(divmon.SampleBatch(step * 8, probes, texts, fingerprint="f"))


@pytest.mark.parametrize(
    ("right", "best"),
    [
        (lambda name: name == "prose", True),
        (lambda name: True, True),  # the best together with the others
        (lambda name: name != "prose", False),
    ],
)
def test_a_run_is_read_from_its_history(right: Any, best: bool, tmp_path: Path) -> None:
    ends = [{"program": 4, "prose": 3, "latex": 1}, {"program": 2, "prose": 6}, {"prose": 7, "program": 1}]
    history(tmp_path / "run", ends, right)
    found = formats.read(formats.Cell("0.3M", "best is rare", 0.0, "GRPO", 16, 0), tmp_path / "run")
    assert (found["winner"], found["share"], found["step of 80 %"]) == ("prose", [0.375, 0.875], 16)
    assert found["winner was commonest"] is False
    assert found["winner was most accurate"] is best
    assert found["tinygsm-code by the published rule"] == [0.5, 0.125]
    assert found["coverage"][1] == float(right("prose") or right("program"))
    assert "| 0.38 -> 0.88 | 16 |" in formats.table([found])
    assert "| 0.38 -> 0.88 | 0 |" in formats.table([{**found, "step of 80 %": 0}])
    assert "| 0.38 -> 0.88 | - |" in formats.table([{**found, "step of 80 %": None}])
