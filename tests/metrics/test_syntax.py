"""Distance between syntax trees against brute force over pairs, trees counted by hand and hostile programs."""

import ast
import itertools
import math
import os
import subprocess
import sys
import time
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.syntax import LONGEST, multiset_distance, parse_program, subtrees
from divmon.records import Probe, SampleBatch

NAMES = ["ast_distance", "ast_distance_4", "ast_distance_upto_4", "ast_shape_distance"]
PROGRAMS = [
    "def total(xs):\n    '''Add up.'''\n    s = 0\n    for x in xs:\n        s += x\n    return s",
    "def total(values):\n    '''Sum of values.'''\n    acc = 0\n    for v in values:\n        acc += v\n    return acc",
    "def total(xs):\n    return sum(xs)",
    "import math\n\nclass A(B, metaclass=C):\n    y: int = 3\n    async def f(self, *a, k=None, **kw):\n"
    "        global g\n        await g(*a, **kw)\n"
    "        return [i async for i in a if i], {**kw, 0: g}, f'{k!r:>{9}}'",
    "try:\n    f = lambda n: n if n < 2 else f(n - 1) + f(n - 2)\nexcept (ValueError, TypeError) as error:\n    raise\n"
    "else:\n    print(f(10), 1, 1.0, True, 'x', b'x', None, ..., -0.0, 0.0)",
    "match p:\n    case {'a': [1, *rest], **more}:\n        pass\n    case Point(x=0) | None:\n        del p[0:1, ...]",
    "while (n := n // 2) > 1:\n    with open(n) as h, h:\n        yield from h\n    assert n, 'no'",
    "x = 1",
]
ROW = st.lists(st.sampled_from(PROGRAMS), min_size=2, max_size=7)
MARKS = (ast.Load, ast.Store, ast.Del)


def value(name, row):
    batch = SampleBatch(0, (Probe("a", "?"),), (tuple(row),))
    return float(evaluate(METRICS[name], MetricContext(batch)).values[0])


def height(node):
    return 1 + max(map(height, ast.iter_child_nodes(node)), default=0)


def abstracted(tree):
    """The tree with every name, constant and docstring gone, by rewriting each node."""
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
        for field, content in list(ast.iter_fields(node)):
            if isinstance(node, (ast.Constant, ast.MatchSingleton)):
                setattr(node, field, None)
            elif isinstance(content, str):
                setattr(node, field, "name")
            elif isinstance(content, list) and content and isinstance(content[0], str):
                setattr(node, field, ["name"] * len(content))
    return tree


def brute_subtrees(program, low, high, shape):
    tree = ast.parse(program)
    tree = abstracted(tree) if shape else tree
    nodes = [node for node in ast.walk(tree) if not isinstance(node, MARKS)]
    return Counter(ast.dump(node) for node in nodes if low <= height(node) <= high)


def brute(row, low=1, high=10**6, shape=False):
    trees = [found for program in row if (found := brute_subtrees(program, low, high, shape))]
    if len(trees) < 2:
        return math.nan
    return float(np.mean([1 - (a & b).total() / (a | b).total() for a, b in itertools.combinations(trees, 2)]))


def released(program):
    """Subtrees as the released code of Karouzos et al. collects them: down from the root until the height is 4."""
    found, todo = Counter(), [ast.parse(program)]
    while todo:
        node = todo.pop()
        if height(node) == 4:
            found[ast.dump(node)] += 1
        elif height(node) > 4:
            todo += ast.iter_child_nodes(node)
    return found


@settings(max_examples=60, deadline=None)
@given(ROW)
def test_every_variant_equals_brute_force(row):
    assert value("ast_distance", row) == pytest.approx(brute(row), abs=1e-12)
    assert value("ast_distance_4", row) == pytest.approx(brute(row, 4, 4), abs=1e-12, nan_ok=True)
    assert value("ast_distance_upto_4", row) == pytest.approx(brute(row, 1, 4), abs=1e-12)
    assert value("ast_shape_distance", row) == pytest.approx(brute(row, shape=True), abs=1e-12)


def test_height_four_is_what_the_released_code_collects():
    trees = [released(program) for program in PROGRAMS]
    assert all(trees)
    expected = np.mean([1 - (a & b).total() / (a | b).total() for a, b in itertools.combinations(trees, 2)])
    assert value("ast_distance_4", PROGRAMS) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("program", "heights"),
    [
        ("x", {"Name": 2, "Expr": 3, "Module": 4}),
        ("x = 1", {"Constant": 1, "Name": 2, "Assign": 3, "Module": 4}),
        ("f(x + 1)", {"Add": 1, "Constant": 1, "Name": 2, "BinOp": 3, "Call": 4, "Expr": 5, "Module": 6}),
        ("pass", {"Pass": 1, "Module": 2}),
    ],
)
def test_heights_counted_by_hand(program, heights):
    tree = ast.parse(program)
    kinds = Counter(type(node).__name__ for node in ast.walk(tree) if not isinstance(node, MARKS))
    numbers, found = subtrees(tree, {})
    assert Counter(found.tolist()) == Counter(heights[kind] for kind in kinds.elements())
    assert len(numbers) == kinds.total()


def test_distances_counted_by_hand():
    # Module, Assign, Name and Constant; only the constant is shared: 1 of 7
    assert value("ast_distance", ["x = 1", "y = 1"]) == pytest.approx(6 / 7)
    # x twice, Expr(x) twice, Module; against x, Expr(x), Module: min 2, max 6
    assert value("ast_distance", ["x\nx", "x"]) == pytest.approx(1 - 2 / 6)
    assert value("ast_distance_upto_4", ["f(x + 1)", "f(x + 2)"]) == pytest.approx(1 - 3 / 9)  # f, x and Add of 6 each
    assert value("ast_distance_4", ["f(x + 1)", "f(x + 2)"]) == 1.0


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=2, max_size=6))
def test_the_multiset_distance_equals_brute_force(rows):
    counts = [Counter(row) for row in rows]
    expected = np.mean([1 - (a & b).total() / (a | b).total() for a, b in itertools.combinations(counts, 2)])
    found = multiset_distance([np.array(row) for row in rows], [np.arange(len(rows))])
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_equal_programs_are_at_distance_0_and_disjoint_ones_at_1(name):
    commented = PROGRAMS[0].replace("s = 0", "s = (0)  # start").replace("\n", "\n\n")
    assert value(name, [PROGRAMS[0], PROGRAMS[0], commented]) == 0.0
    assert value(name, ["a = b.c", "(lambda: 3).x"]) == 1.0


def test_renamed_programs_have_the_same_shape():
    assert value("ast_shape_distance", PROGRAMS[:2]) == 0.0
    assert value("ast_shape_distance", ["x = f(1)", "y = g('one')"]) == 0.0
    assert value("ast_distance", PROGRAMS[:2]) > 0.5
    assert value("ast_shape_distance", PROGRAMS[::2]) > 0.5
    assert value("ast_shape_distance", ["def f():\n  'Say it.'\n  return 1", "def g():\n  return 2"]) == 0.0


def test_constants_that_compare_equal_are_different():
    for one, two in itertools.combinations(["1", "1.0", "True", "1j", "'1'", "b'1'", "0.0", "-0.0", "None"], 2):
        assert value("ast_distance", [f"x = {one}", f"x = {two}"]) > 0


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x=1", "x = 1"),
        ("Sure!\n```python\nx = 1\n```\nThat is it.", "x = 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("~~~py\nx = 1\n~~~", "x = 1"),
        ("```python\nx = 1", "x = 1"),  # cut by the length cap
        ("1. so:\n   ```python\n   x = 1\n   ```", "x = 1"),
        ("```bash\npip\n```\n```python\nx = 1\n```", "x = 1"),
        ("```python\nx = 1\n```\nprints\n```\n42\n```", "x = 1"),
        ("```python\nthat is it, no?\n```\n```python\nx = 1\n```", "x = 1"),
        ("    x = 1\n    y = 2", "x = 1\ny = 2"),
        ("```python\nthat is it, no?\n```", None),
        ("```js\nx = 1\n```", None),
        ("Here is a plan.", None),
        ("", None),
        ("# nothing but a comment", None),
        ("```python\n```", None),
    ],
)
def test_where_the_program_is(text, program):
    tree = parse_program(text)
    assert (None if tree is None else ast.unparse(tree)) == program


@pytest.mark.parametrize(
    "text",
    [
        "\x00",
        "x = 1\x00",
        "\ud800 = 1",
        "x = '\ud800'",
        "(" * 5000,
        "[" * 90 + "]" * 90,
        "1" + " + 1" * 4000,
        "-" * 9000 + "1",
        "x" + ".a" * 4000,
        "9" * 9000,
        "x = 0x" + "f" * 9000,  # an int too long for repr
        "x = " + "(" * 150 + "1" + ")" * 150,
        "if 1:\n" + "".join(" " * i + "if 1:\n" for i in range(1, 99)) + " " * 99 + "x",
        "a" * 100_000,
        "```python\n" * 3000,
        "'\\d' is 1",
    ],
)
def test_hostile_programs_raise_and_warn_nothing(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in NAMES:
            found = value(name, [text, text, "x = 1"])
            assert math.isnan(found) or 0 <= found <= 1


@pytest.mark.parametrize("line", ["`" * 19_000, "~" * 19_000, "```" + " " * 9_000 + "a" * 9_000])
def test_a_fence_on_a_line_that_does_not_end_costs_linear_time(line):
    start = time.process_time()
    assert parse_program(line) is None
    assert time.process_time() - start < 0.1  # it was .2 seconds and more


def test_long_texts_are_not_parsed():
    assert parse_program("x = 1\n" * (LONGEST // 6)) is not None
    assert parse_program("x = 1\n" * (LONGEST // 6 + 1)) is None


def test_what_does_not_parse_is_left_out_and_said():
    rows = (("x = 1", "no code here", "y = 1"), ("x = 1", "nor this one", "that neither"), ())
    batch = SampleBatch(0, tuple(Probe(str(i), "?") for i in range(3)), rows)
    result = evaluate(METRICS["ast_distance"], MetricContext(batch))
    assert result.values[0] == pytest.approx(6 / 7)
    assert result.n.tolist() == [2, 0, 0]
    assert result.reasons[1].startswith("fewer than 2 completions are Python programs")
    assert result.details == {"parsed": 0.5}
    low = evaluate(METRICS["ast_distance_4"], MetricContext(SampleBatch(0, batch.probes[:1], (("pass", "pass"),))))
    assert low.reasons == ("fewer than 2 completions are Python programs with a subtree of height 4",)


def test_numbers_do_not_depend_on_the_process():
    code = "from test_syntax import *; print([value(name, PROGRAMS).hex() for name in NAMES])"
    folder = os.path.dirname(__file__)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([folder, *sys.path])},
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{[value(name, PROGRAMS).hex() for name in NAMES]}\n"}
