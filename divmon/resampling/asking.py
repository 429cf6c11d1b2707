"""Questions to somebody who may be slow, broken or gone: a deadline for all, and None for what failed."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from divmon.models.encoder import printable
from divmon.records import Prompt

log = logging.getLogger("divmon")
T = TypeVar("T")
R = TypeVar("R")
_REASONS = 10  # kept and logged; a server that words each failure differently shall not fill the log


def ask_all(
    ask: Callable[[T], R], questions: Sequence[T], *, workers: int, deadline: float | None
) -> list[R | Exception]:
    """What `ask` gives for each question, in order: its answer, the exception it raised, or `TimeoutError`.

    It runs in daemon threads, so what hangs holds up neither the caller nor the end of the process. Whatever is not
    there at the deadline is not waited for, and no question is begun after it.

    Args:
        ask: From one question to one answer; called from several threads at once if `workers` is above 1.
        questions: N of them.
        workers: Most questions under way at a time.
        deadline: Seconds for all; None asks one after the other in this thread, however long it takes.

    >>> ask_all(lambda x: 1 / x, [1, 0], workers=2, deadline=5.0)
    [1.0, ZeroDivisionError('division by zero')]

    Source: a convention of divmon.
    """
    late = TimeoutError(f"no answer within the deadline of {deadline} s")
    answers: list[R | Exception] = [late] * len(questions)
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(len(questions)):
        todo.put(i)
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            try:
                i = todo.get_nowait()
            except queue.Empty:
                return
            try:
                answers[i] = ask(questions[i])
            except Exception as error:
                answers[i] = error

    if deadline is None:
        work()
        return answers
    until = time.monotonic() + deadline
    threads = [threading.Thread(target=work, daemon=True, name="divmon-critic") for _ in range(workers)]
    threads = threads[: len(questions)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
    finally:
        over.set()
    return list(answers)  # a copy: what comes late changes nothing


class Failures:
    """Counts what went wrong with a critic, and says each reason once.

    Attributes:
        name: Of the critic.
        reasons: How often each was met; the eleventh and later ones together as "other".
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.reasons: Counter[str] = Counter()

    def sift(self, answers: Sequence[Any]) -> list[str | None]:
        """Critiques that say something, in order; None for anything else."""
        found = [critique_of(answer) for answer in answers]
        for answer, critique in zip(answers, found, strict=True):
            if critique is None:
                self.note(_reason(answer))
        return found

    def note(self, reason: str) -> None:
        """Count one failure."""
        if reason not in self.reasons and len(self.reasons) >= _REASONS:
            reason = "other"
        if reason not in self.reasons:
            log.warning("divmon: the critic %s: %s", self.name, reason)
        self.reasons[reason] += 1


def critique_of(answer: object) -> str | None:
    """A critique without white space around it and without what no tokenizer accepts; None for what says nothing.

    >>> critique_of(" The sum is 5. "), critique_of("\\n"), critique_of(7)
    ('The sum is 5.', None, None)

    Source: a convention of divmon.
    """
    return (printable(answer).strip() or None) if isinstance(answer, str) else None


def prompt_keys(prompts: Sequence[Prompt], key: int) -> list[int]:
    """An int64 for each prompt, of the prompt and `key` alone; the second, third, ... of equal prompts differ.

    >>> one, two, other = prompt_keys(["a", "a", "b"], 0)
    >>> len({one, two, other}), prompt_keys(["b", "a"], 0) == [other, one]
    (3, True)

    Source: a convention of divmon.
    """
    seen: Counter[str] = Counter()
    keys = []
    for prompt in prompts:
        text = repr(prompt if isinstance(prompt, str) else [sorted(message.items()) for message in prompt])
        name = f"{key}\x1f{seen[text]}\x1f{text}".encode("utf-8", "surrogatepass")
        keys.append(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True))
        seen[text] += 1
    return keys


def _reason(answer: object) -> str:
    if isinstance(answer, Exception):
        return one_line(str(answer)) or type(answer).__name__
    if answer is None or isinstance(answer, str):
        return "it had nothing to say"
    return f"it answered with {type(answer).__name__}, not with a text"


def one_line(text: str, most: int = 300) -> str:
    """`text` fit for a log: one line of printable characters, not more than `most`.

    >>> one_line("a\\x1b[31m\\n b")
    'a [31m b'

    Source: a convention of divmon.
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most]).split())[:most]
