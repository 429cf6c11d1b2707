"""The toy task: single-digit sums that a model may answer in four formats, with the rewards of two GRPO runs.

Pure Python, so that the task can be read, tested and used as a probe set without torch.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

RewardFunction = Callable[..., list[float]]
"""What TRL's GRPO calls: ``reward(prompts=..., completions=..., <dataset columns>=...) -> list[float]``."""

OTHER = "other"
"""The label of a completion in none of the four formats."""


class Sum(NamedTuple):
    """One sum: the text a model is shown, its addends, its gold answer, and its difficulty (5 is hardest)."""

    prompt: str
    a: int
    b: int
    answer: int
    difficulty: int


class _Format(NamedTuple):
    """How a format is written, what gives it away, and where its answer stands."""

    template: str
    looks: re.Pattern[str]
    answer: re.Pattern[str]


def _format(template: str, looks: str, answer: str) -> _Format:
    return _Format(template, re.compile(looks, re.DOTALL), re.compile(answer, re.DOTALL))


# `looks` is lenient inside and strict at both ends: a policy under training garbles its digits long before
# its layout, and a garbled program is still a program. `answer` is strict, so that garbage earns no reward.
# Neither may backtrack over the text twice: a model's text is hostile.
_FORMATS: dict[str, _Format] = {
    "program": _format(
        "def add(): return {a}+{b}  # {answer}",
        looks=r"def \w+\([^)]*\).*\breturn\b.*",
        answer=r"def \w+\(\): return \d\+\d +# (\d{1,2})",
    ),
    "prose": _format(
        "The sum of {a} and {b} is {answer}.",
        looks=r"The sum\b(?=.*\bis\b)[^$\\]*",
        answer=r"The sum of \d and \d is (\d{1,2})\.",
    ),
    "latex": _format(
        r"${a}+{b}=\boxed{{{answer}}}$",
        looks=r"\$(?=.*\\boxed\b).*\$",
        answer=r"\$\d\+\d=\\boxed\{(\d{1,2})\}\$",
    ),
    "bullets": _format(
        "- {a}\n- plus {b}\n- gives {answer}",
        looks=r"- [^\n]*(\n- [^\n]*)+",
        answer=r"- \d\n- plus \d\n- gives (\d{1,2})",
    ),
}

FORMATS: tuple[str, ...] = tuple(_FORMATS)
"""The four formats: ``program``, ``prose``, ``latex``, ``bullets``."""


def prompts() -> list[Sum]:
    """Return all hundred sums of two digits, from 0+0 to 9+9.

    Example:
        >>> prompts()[34]
        Sum(prompt='What is 3+4?', a=3, b=4, answer=7, difficulty=2)
    """
    return [Sum(f"What is {a}+{b}?", a, b, a + b, difficulty(a, b)) for a in range(10) for b in range(10)]


def difficulty(a: int, b: int) -> int:
    """Grade a sum as a school book would: 1 adds 0 or 1, 2 no carry, 3 makes ten, 4 a carry, 5 a large carry.

    Example:
        >>> [difficulty(8, 0), difficulty(3, 4), difficulty(4, 6), difficulty(5, 8), difficulty(9, 7)]
        [1, 2, 3, 4, 5]
    """
    if min(a, b) <= 1:
        return 1
    if a + b < 10:
        return 2
    if a + b == 10:
        return 3
    return 4 if a + b < 15 else 5


def write(format: str, a: int, b: int, answer: int) -> str:
    r"""Write an answer, right or wrong, in one of the four formats.

    Example:
        >>> write("latex", 3, 4, 7)
        '$3+4=\\boxed{7}$'
    """
    return _FORMATS[format].template.format(a=a, b=b, answer=answer)


def label(completion: str) -> str:
    """Name the format of a completion, or ``other``; never raises, whatever the text.

    Example:
        >>> label("- 3\\n- plus 4\\n- gives 12"), label("The def $")
        ('bullets', 'other')
    """
    text = completion.strip()
    return next((name for name, form in _FORMATS.items() if form.looks.fullmatch(text)), OTHER)


def answer(completion: str) -> int | None:
    """Read the number a completion gives as its answer; None unless it is written as its format demands.

    Example:
        >>> answer("The sum of 3 and 4 is 8."), answer("The sum of 3 and 4 is is")
        (8, None)
    """
    text = completion.strip()
    for form in _FORMATS.values():
        if found := form.answer.fullmatch(text):
            return int(found[1])
    return None


def is_correct(completion: str, gold: int) -> bool:
    """Say whether a completion answers with the gold number, in any format."""
    return answer(completion) == gold


def correctness(completions: Sequence[str], answer: Sequence[int], **kwargs: Any) -> list[float]:
    """Reward a right answer with 1, any other with 0: the ordinary reward, blind to how an answer is written.

    Args:
        completions: the texts to score.
        answer: the gold answer to each; TRL passes the data set's column of that name.
        **kwargs: TRL's other columns and state, unused.
    """
    return [float(is_correct(text, gold)) for text, gold in zip(completions, answer, strict=True)]


def set_diversity(group_size: int) -> RewardFunction:
    """Make the healthy twin's reward: a right answer earns more, the fewer of its group are written like it.

    With ``G`` completions in a group and ``f`` right ones in this completion's format (itself included), a
    right answer earns ``max((G - f) / (G - 1), 0.1)``: 1 alone in its format, 0.1 when all G share one.

    Args:
        group_size: ``G``, how many consecutive completions answer one prompt (TRL's `num_generations`).

    Example:
        >>> reward = set_diversity(2)
        >>> reward(completions=["$1+1=\\\\boxed{2}$", "The sum of 1 and 1 is 2."], answer=[2, 2])
        [1.0, 1.0]
        >>> reward(completions=["$1+1=\\\\boxed{2}$", "$1+1=\\\\boxed{2}$"], answer=[2, 2])
        [0.1, 0.1]
    """
    if group_size < 2:
        raise ValueError(f"set_diversity compares a prompt's completions: group_size={group_size} is below 2")

    def diverse_correctness(completions: Sequence[str], answer: Sequence[int], **kwargs: Any) -> list[float]:
        if len(completions) % group_size:
            raise ValueError(f"{len(completions)} completions are not whole groups of {group_size}")
        rewards: list[float] = []
        for start in range(0, len(completions), group_size):
            group = slice(start, start + group_size)
            rewards += _shared_out(completions[group], answer[group])
        return rewards

    return diverse_correctness


def _shared_out(completions: Sequence[str], gold: Sequence[int]) -> list[float]:
    """Score one group for `set_diversity`."""
    size = len(completions)
    correct = [is_correct(text, number) for text, number in zip(completions, gold, strict=True)]
    formats = [label(text) for text in completions]
    alike = Counter(name for name, right in zip(formats, correct, strict=True) if right)
    return [
        max((size - alike[name]) / (size - 1), 0.1) if right else 0.0
        for name, right in zip(formats, correct, strict=True)
    ]
