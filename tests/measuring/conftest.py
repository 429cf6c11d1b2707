"""Completions in four formats with rewards and difficulties."""

from __future__ import annotations

import random

import pytest

WORDS = ("the", "fox", "hen", "runs", "jumps", "over", "under", "red", "because", "if", "not", "yes", "is", "3", "7")
FORMATS = ("{}", "- {}\n- x", "```python\n{}\n```", '{{"a": "{}"}}')


def rows(prompts, *, seed=0, k=6, first=0, formats=FORMATS):
    rng = random.Random(seed)

    def text():
        return rng.choice(formats).format(" ".join(rng.choices(WORDS, k=rng.randint(1, 25))))

    return [
        {
            "id": f"p{i}",
            "prompt": f"question {i}",
            "completions": [text() for _ in range(k)],
            "rewards": [float(rng.random() < 0.5) for _ in range(k)],
            "difficulty": i % 4 + 1,
            "domain": "ab"[i % 2],
        }
        for i in range(first, first + prompts)
    ]


def one_a_line(found):
    """The same completions, one a line."""
    return [
        {**{k: v for k, v in row.items() if k not in ("completions", "rewards")}, "completion": text, "reward": reward}
        for row in found
        for text, reward in zip(row["completions"], row["rewards"], strict=True)
    ]


@pytest.fixture
def make():
    return rows


@pytest.fixture
def lines():
    return one_a_line
