"""A task with real levels of difficulty: sums in columns, worked from the right, by somebody who forgets to carry.

Pure Python. ``0 3 8 5 + 0 4 6 7 = `` is answered by ``5 7 =12 6 8 =15 3 4 =08 0 0 =00``: the two digits of each column,
in either order, and their sum with what is carried into it. So a sum has up to sixteen right answers, which differ in
order only.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

COLUMNS = 4
LEVELS = (1, 2, 3, 4, 5)
REFINE = "{question}{answer} {critique} = "
"""How the model is asked to answer again: the template `refine` of `divmon.SelfTraining`."""


class Task(NamedTuple):
    """One sum: what a model is shown, its addends, and its level (5 is hardest)."""

    prompt: str
    a: int
    b: int
    level: int


def digits(number: int) -> list[int]:
    """The digits of `number` from the right, one a column.

    >>> digits(385)
    [5, 8, 3, 0]
    """
    return [number // 10**i % 10 for i in range(COLUMNS)]


def carries(a: int, b: int) -> list[int]:
    """What is carried into each column, from the right.

    >>> carries(385, 467)
    [0, 1, 1, 0]
    """
    found = [0]
    for x, y in zip(digits(a)[:-1], digits(b)[:-1], strict=True):
        found.append((x + y + found[-1]) // 10)
    return found


def level(a: int, b: int) -> int:
    """1 for sums of at most two digits without a carry; one more for a third digit or more, and for each carry.

    >>> [level(12, 34), level(120, 340), level(15, 27), level(385, 467), level(2999, 4444)]
    [1, 2, 2, 4, 5]
    """
    return min(LEVELS[-1], 1 + (max(a, b) > 99) + sum(carries(a, b)))


def task(a: int, b: int) -> Task:
    """The sum of `a` and `b`, at most 9999.

    >>> task(385, 467).prompt
    '0 3 8 5 + 0 4 6 7 = '
    """
    return Task(f"{' '.join(f'{a:0{COLUMNS}}')} + {' '.join(f'{b:0{COLUMNS}}')} = ", a, b, level(a, b))


def read(prompt: str) -> Task:
    """The task that a prompt shows.

    >>> read("0 3 8 5 + 0 4 6 7 = ").level
    4
    """
    a, b = prompt.replace(" ", "").rstrip("=").split("+")
    return task(int(a), int(b))


def draw(rng: random.Random, wanted: int) -> Task:
    """A sum of level `wanted`."""
    while True:
        size = 10 ** rng.choice((1, 2) if wanted == 1 else (2, 3, 4))
        found = task(rng.randrange(size), rng.randrange(size))
        if found.level == wanted and found.a + found.b < 10**COLUMNS:
            return found


def tasks(numbers: Sequence[int], *, seed: int) -> list[Task]:
    """So many different sums of each level, the same for the same seed.

    >>> [one.level for one in tasks([1, 0, 2, 0, 1], seed=0)]
    [1, 3, 3, 5]
    """
    rng, found = random.Random(seed), dict[str, Task]()
    for wanted, number in zip(LEVELS, numbers, strict=True):
        whole = len(found) + number
        while len(found) < whole:
            one = draw(rng, wanted)
            found[one.prompt] = one
    return list(found.values())


def write(one: Task, rng: random.Random, *, slip: float = 0.0, kept: Sequence[str] = ()) -> str:
    """An answer; right if `slip` is 0.

    Args:
        one: The sum.
        rng: Draws the order of digits, and the slips.
        slip: How probably each carry is forgotten.
        kept: Columns that stay as they are; the carry into the one after them is not forgotten.

    >>> write(task(2, 9), random.Random(1))
    '9 2 =11 0 0 =01 0 0 =00 0 0 =00'
    """
    columns = list(kept)
    carried = int(columns[-1][-2]) if columns else 0
    for i in range(len(columns), COLUMNS):
        if carried and i != len(kept) and rng.random() < slip:
            carried = 0
        pair = [digits(one.a)[i], digits(one.b)[i]]
        rng.shuffle(pair)
        total = sum(pair) + carried
        columns.append(f"{pair[0]} {pair[1]} ={total:02}")
        carried = total // 10
    return " ".join(columns)


def split(text: str) -> list[str]:
    """An answer by columns.

    >>> split("2 9 =11 0 0 =01")
    ['2 9 =11', '0 0 =01']
    """
    words = text.split()
    return [" ".join(words[i : i + 3]) for i in range(0, len(words), 3)]


def criticism(prompt: str, text: str) -> str | None:
    """Names the first column that does not hold, without saying what would be right; None where all do.

    >>> criticism("0 0 0 9 + 0 0 0 2 = ", "2 9 =11 0 0 =00 0 0 =00 0 0 =00")
    'wrong: column 2'
    """
    one, found = read(prompt), split(text)
    for i, (x, y, carried) in enumerate(zip(digits(one.a), digits(one.b), carries(one.a, one.b), strict=True)):
        right = {f"{p} {q} ={x + y + carried:02}" for p, q in ((x, y), (y, x))}
        if i >= len(found) or found[i] not in right:
            return f"wrong: column {i + 1}"
    return None if len(found) == COLUMNS else f"wrong: column {COLUMNS}"


def is_correct(prompt: str, text: str) -> bool:
    """Whether every column holds."""
    return criticism(prompt, text) is None


def document(rng: random.Random, *, shares: Sequence[float], slip: float, revised: float) -> tuple[str, str]:
    """What the base model has read: a prompt and an answer as people give them, or an answer put right after criticism.

    Args:
        rng: Draws it.
        shares: Of the levels; few are hard.
        slip: As `write` has it; after the column that was criticised, too.
        revised: How often it is a revision: prompt, wrong answer, criticism, better answer.
    """
    one = draw(rng, rng.choices(LEVELS, weights=shares)[0])
    if rng.random() >= revised:
        return one.prompt, write(one, rng, slip=slip)
    for _ in range(20):
        wrong = write(one, rng, slip=max(slip, 0.5))
        if said := criticism(one.prompt, wrong):
            again = write(one, rng, slip=slip, kept=split(wrong)[: int(said[-1]) - 1])
            return REFINE.format(question=one.prompt, answer=wrong, critique=said), again
        one = draw(rng, rng.choices(LEVELS[1:], weights=shares[1:])[0])
    return one.prompt, write(one, rng, slip=slip)
