"""The house rules: sizes, layers, types, style. Each is a command a contributor can run as well."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "divmon").rglob("*.py"))
WRITTEN = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "examples").rglob("*.py"))]
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "wandb",
    "sentence_transformers",
    "accelerate",
    "peft",
    "datasets",
    "matplotlib",
)


def functions() -> list[tuple[str, ast.FunctionDef]]:
    return [
        (f"{path.relative_to(ROOT)}:{node.name}", node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]


def lines_of_code(path: Path) -> int:
    """Lines of `path` that are neither blank, comment nor docstring: what a docstring must say is not for sparing."""
    text = path.read_text("utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            docs.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in docs for i, line in lines)


def test_no_file_has_more_than_400_lines_and_half_have_little_code() -> None:
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in WRITTEN}
    assert {str(path): n for path, n in lines.items() if n > 400} == {}
    assert statistics.median(map(lines_of_code, SOURCES)) < 120


def test_functions_are_short_and_take_few_parameters() -> None:
    sizes = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions()}
    long = {name: n for name, n in sizes.items() if n > 50}
    assert len(long) <= 0.05 * len(sizes), long
    counts = {
        name: len([a for a in (*n.args.posonlyargs, *n.args.args, *n.args.kwonlyargs) if a.arg not in ("self", "cls")])
        for name, n in functions()
    }
    assert {name: count for name, count in counts.items() if count > 8} == {}


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["importlinter.cli", "lint", "--no-cache"],
    ],
    ids=["lint", "format", "types", "imports"],
)
def test_tool(command: list[str]) -> None:
    program = [sys.executable, "-m", *command]
    if command[0] == "importlinter.cli":
        program = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", *command[2:]]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import divmon",
        "import divmon; divmon.Monitor, divmon.History, divmon.METRICS, divmon.ProbeSet, divmon.Rule",
        "from divmon.cli import main; main(['metrics'])",
    ],
)
def test_the_core_loads_no_gpu_stack(code: str) -> None:
    check = f"import sys; sys.argv = ['divmon']\n{code}\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_no_module_is_a_drawer() -> None:
    assert not [p for p in SOURCES if p.stem in ("utils", "util", "helpers", "common", "misc", "constants", "registry")]
