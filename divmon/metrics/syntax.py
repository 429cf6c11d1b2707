"""How differently programs are built: distance between the syntax trees of a prompt's completions (Python only).

A tree is what `ast.parse` returns. The *height* of a node is 1 where it has no child and else one more than the largest
height among its children, the marks Load, Store and Del included: a name has height 2, ``x + 1`` has 3, ``f(x + 1)``
has 4. Every node is the root of one *subtree*; two subtrees are equal where `ast.dump` would print the same. The marks
themselves are not counted as subtrees: they say where a name stands, and every two programs would share them.
"""

from __future__ import annotations

import ast
import math
import re
import textwrap
import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from divmon.metrics.base import Metric, MetricContext, PerPrompt, Result, per_prompt
from divmon.metrics.grams import counted
from divmon.metrics.overlap import blocks, mean_jaccard
from divmon.records import SampleBatch

LONGEST = 20_000  # characters of a completion; a longer one is not parsed
BLOCKS = 8  # fenced blocks of a completion that are parsed
HEIGHT = 4
# The look ahead for a line's end lets nothing after it fail, so that time is linear on any text.
_FENCE = re.compile(
    r"^(?=[^\n]*\n)[ \t]*(`{3,}|~{3,})[ \t]*([\w+.-]*)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL
)
_PYTHON = frozenset({"", "python", "python3", "py", "py3"})
_MARKS = (ast.Load, ast.Store, ast.Del)
_VALUES = (ast.Constant, ast.MatchSingleton)
Table = dict[tuple[Hashable, ...], int]
Forest = list[tuple[np.ndarray, np.ndarray] | None]


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like: the model's, not the user's
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if tree.body else None


def parse_program(text: str) -> ast.Module | None:
    """The Python program in a completion: of its fenced blocks the longest that parses; without a fence the whole text.

    Blocks fenced as another language are passed over. None where nothing parses, where there is no statement, and
    where the text is longer than `LONGEST`. Nothing is run. A single word parses, as a name.

    >>> ast.unparse(parse_program("Here it is:\\n```python\\nx=1\\n```\\nIt sets x."))
    'x = 1'
    >>> parse_program("Here it is.") is None
    True

    Source: a convention of divmon.
    """
    if len(text) > LONGEST:
        return None
    fenced = list(_FENCE.finditer(text))
    sources = [match[3] for match in fenced if match[2].lower() in _PYTHON] if fenced else [text]
    for source in sorted(sources, key=len, reverse=True)[:BLOCKS]:
        tree = _parse(textwrap.dedent(source).strip("\n"))
        if tree is not None:
            return tree
    return None


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _strip_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and body:
            node.body = body[_is_docstring(body[0]) :]


def _frame(node: ast.AST, children: list[ast.AST], *, shape: bool) -> tuple[Hashable, ...]:
    """What a node is apart from its children, with a mark where each of them stands; they are added to `children`."""

    def seen(value: Any) -> Hashable:
        if isinstance(value, ast.AST):
            children.append(value)
            return ...
        if isinstance(value, str):
            return "" if shape else value
        # 1, 1.0 and True are equal to a dict, and so are 0.0 and -0.0; a whole number may be too long for repr
        return None if value is None else (type(value).__name__, value if isinstance(value, int) else repr(value))

    kind = type(node).__name__
    if shape and isinstance(node, _VALUES):
        return (kind,)
    fields = [getattr(node, name, None) for name in node._fields]
    return (kind, *(tuple(map(seen, value)) if isinstance(value, list) else seen(value) for value in fields))


def subtrees(tree: ast.Module, table: Table, *, shape: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Every subtree of a program, the marks Load, Store and Del left out.

    Each is numbered by looking up its root and its children's numbers in `table`, from the leaves up and without
    recursion, so that equal numbers mean equal subtrees: exactly, and the same in any process.

    Args:
        tree: The program.
        table: Numbers given so far; shared by programs that are compared, and added to.
        shape: Leave out what things are called, the values of constants and docstrings.

    Returns:
        int64[N] numbers and int64[N] heights.

    >>> numbers, heights = subtrees(ast.parse("x = 1"), {})
    >>> sorted(heights.tolist())
    [1, 2, 3, 4]

    Source: Merkle (1987), with a table in the place of a hash.
    """
    if shape:
        _strip_docstrings(tree)
    order: list[tuple[ast.AST, tuple[Hashable, ...], list[ast.AST]]] = []
    todo: list[ast.AST] = [tree]
    while todo:  # parents before children; backwards, children before parents
        node, children = todo.pop(), list[ast.AST]()
        order.append((node, _frame(node, children, shape=shape), children))
        todo += children
    known: dict[int, tuple[int, int]] = {}
    found = []
    for node, frame, children in reversed(order):
        below = [known[id(child)] for child in children]
        number = table.setdefault((frame, *(number for number, _ in below)), len(table))
        known[id(node)] = number, 1 + max((height for _, height in below), default=0)
        if not isinstance(node, _MARKS):
            found.append(known[id(node)])
    columns = np.array(found, dtype=np.int64)
    return columns[:, 0], columns[:, 1]


def _forest(texts: Sequence[str], *, shape: bool) -> Forest:
    """The subtrees of each of one prompt's completions; None where no program parses."""
    table: Table = {}
    trees = {text: parse_program(text) for text in dict.fromkeys(texts)}
    found = {text: None if tree is None else subtrees(tree, table, shape=shape) for text, tree in trees.items()}
    return [found[text] for text in texts]


def _within(forest: Forest, least: int, most: int | None) -> dict[int, np.ndarray]:
    """The numbers of each program's subtrees of these heights, by completion; programs without one are left out."""
    known = {j: tree for j, tree in enumerate(forest) if tree is not None}
    found = {j: numbers[(high >= least) & (high <= (most or math.inf))] for j, (numbers, high) in known.items()}
    return {j: numbers for j, numbers in found.items() if numbers.size}


def _occurrences(numbers: np.ndarray) -> np.ndarray:
    """int64[N]: for each subtree whether it is the first, second, ... of its kind in a program: 0, 1, ...

    Paired with the numbers they turn a multiset into a set: the minimum of two counts is then the size of an
    intersection, the maximum that of a union.
    """
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    at = np.arange(len(ordered))
    new = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    found = np.empty(len(ordered), dtype=np.int64)
    found[order] = at - np.maximum.accumulate(np.where(new, at, 0))
    return found


def multiset_distance(programs: Sequence[np.ndarray], parts: Sequence[np.ndarray]) -> float:
    """1 - mean over pairs of programs of sum of min over sum of max of their subtrees' counts.

    Args:
        programs: K arrays int[N] of subtree numbers.
        parts: The blocks of programs whose pairs count.

    Returns:
        A number between 0 and 1; NaN without a pair.

    >>> multiset_distance([np.array([1, 1, 2]), np.array([1, 2, 2])], [np.arange(2)])
    0.5

    Source: Ruzicka (1958); Jaccard index of multisets.
    """
    if not programs:
        return math.nan
    numbers = np.concatenate(programs)
    times = np.concatenate([_occurrences(program) for program in programs])
    owners = np.repeat(np.arange(len(programs)), [len(program) for program in programs])
    most = int(times.max(initial=0)) + 1
    return 1.0 - mean_jaccard(counted(numbers * most + times, owners, len(programs)), parts)


def ast_distance(
    batch: SampleBatch,
    context: MetricContext,
    *,
    least: int = 1,
    most: int | None = None,
    shape: bool = False,
) -> Result:
    """1 - mean multiset Jaccard index of the syntax subtrees of two programs, over a prompt's pairs of completions.

    Between 0 (equal programs, but for comments and layout) and 1 (no subtree in common); higher is more diverse.
    Completions without a Python program, or whose program has no subtree of the heights asked for, are left out.

    What moves it besides diversity: names, unless `shape` (renaming one variable changes every subtree around it;
    most of the number is names then); docstrings; the length of programs; and who parses: a policy that learns to
    write valid code brings other completions into the mean, so read it beside ``details["parsed"]``, the share of all
    completions that parse. On code, narrowing toward right answers may be wanted. It does not drift with K.

    Args:
        batch: The completions.
        context: Of the batch.
        least: Smallest height of a subtree that counts.
        most: Largest height; None for no limit.
        shape: Leave out what things are called, the values of constants and docstrings.

    Returns:
        float[P]; NaN where fewer than two completions are left.

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("x = 1", "y = 1"),))
    >>> context = MetricContext(batch)
    >>> ast_distance(batch, context).values.round(3).tolist(), ast_distance(batch, context, shape=True).values.tolist()
    ([0.857], [0.0])

    Source: Karouzos et al. (2026), arXiv:2604.16027.
    """
    forests = context.cached(("ast", shape), lambda: [_forest(texts, shape=shape) for texts in batch.texts])
    kept = [_within(forest, least, most) for forest in forests]

    def value(i: int) -> float:
        return multiset_distance(list(kept[i].values()), blocks([batch.texts[i][j] for j in kept[i]]))

    why = "fewer than 2 completions are Python programs" + f" with a subtree of height {least}" * (least > 1)
    result = per_prompt(batch, value, reason=why)
    n = np.where(np.isnan(result.values), 0, [len(row) for row in kept]) if kept else result.n
    total = sum(map(len, forests))
    parsed = sum(tree is not None for forest in forests for tree in forest)
    return PerPrompt(result.values, n, result.reasons, {"parsed": parsed / total if total else None})


def _metric(name: str, heights: str, summary: str, **options: Any) -> Metric:
    def fn(batch: SampleBatch, context: MetricContext) -> Result:
        return ast_distance(batch, context, **options)

    return Metric(
        name=name,
        fn=fn,
        summary=summary,
        family="syntax",
        direction="higher",
        source="after Karouzos et al. 2026, arXiv:2604.16027",
        signature=f"python-ast|heights:{heights}|{'shape' if options.get('shape') else 'names:kept'}",
        standard=False,
    )


_OF = "of Python syntax trees over a prompt's pairs of completions"
_ONLY = {"least": HEIGHT, "most": HEIGHT}
AST = (
    _metric("ast_distance", "all", f"1 - mean multiset Jaccard index of all subtrees {_OF}."),
    _metric("ast_distance_4", "4", f"1 - mean multiset Jaccard index of subtrees of height 4 {_OF}.", **_ONLY),
    _metric("ast_distance_upto_4", "1-4", f"1 - mean multiset Jaccard index of low subtrees {_OF}.", most=HEIGHT),
    _metric("ast_shape_distance", "all", f"Without names and constants: 1 - mean Jaccard index {_OF}.", shape=True),
)
