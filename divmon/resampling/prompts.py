"""What critics and the policy are asked, in words that you may replace. Text of a model goes in and stays text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from divmon.errors import ConfigError, unknown
from divmon.records import Message, Probe, Prompt
from divmon.resampling.base import Attempt, Request
from divmon.resampling.filters import answer, solution

LONGEST = 16_000  # characters of a model's text that a prompt may hold; of a longer one, its beginning and its end
_FIELD = re.compile(r"\{(\w+)\}")
_GAP = "\n[...]\n"

_ATTEMPT = "Question:\n{question}\n\nAnswer:\n{answer}\n\n"
_AGAIN = (
    "{question}\n\nAn earlier answer to this:\n{answer}\n\nWhat was said about it:\n{critique}\n\n"
    "Answer again, from the beginning. "
)
_ALONE = "Mention neither the earlier answer nor what was said about it: write as if this were the first answer."


@dataclass(frozen=True, kw_only=True)
class Templates:
    """What is asked. ``{question}``, ``{answer}`` and so on are filled in; all other braces stay as they are.

    Attributes:
        critique: To a critic who does not see the right answer: question, answer.
        teacher: To one who does: question, answer, gold (and, if you want it, rationale).
        redundancy: To a critic of creative work: question, answer, others.
        refine: To the policy: question, answer, critique.
        answer: To the policy, with the right answer: question, gold.
        rationale: To the policy, with a worked solution: question, rationale.
        combinational: To the policy, as `refine`, to join distant ideas (and, if you want it, others).
        exploratory: The same, to go to the edge of what is there.
        transformational: The same, to change a rule.
        feasible: To a judge of creative work, who says yes or no: question, answer.

    The words are this project's. What they ask for: step-level critiques, Xi et al. (2024), arXiv:2411.16579; the right
    answer, a worked solution or a teacher as guidance, Ding et al. (2024), arXiv:2411.00750; the three creative modes,
    Suzuki and Banaei-Kashani (2025), arXiv:2511.20471, after Boden.

    >>> Templates(refine="Again: {question}")
    Traceback (most recent call last):
        ...
    divmon.errors.ConfigError: The template `refine` lacks {answer}, {critique}.
    """

    critique: str = (
        "The answer below is wrong, or not good enough.\n\n" + _ATTEMPT + "Go through the answer step by step. Say of "
        "each step whether it holds, and why. At the first one that does not, stop: name it, say what is wrong with "
        "it, and how to go on from there instead. Do not write out a whole answer."
    )
    teacher: str = (
        "A student gave the answer below, and it is wrong.\n\n" + _ATTEMPT + "The right answer, which the student has "
        "not seen:\n{gold}\n\nFind the first step that goes wrong. Name it, say why it is wrong, and give a hint that "
        "helps the student to put it right. Do not tell the right answer."
    )
    redundancy: str = (
        "Task:\n{question}\n\nThese answers to it are there already:\n{others}\n\nLook at this one of them:\n{answer}"
        "\n\nNothing is wrong with it, but it adds little. Say step by step what it repeats: which ideas, which "
        "structure and which phrases the others have too. Then say what all of them take for granted, and what none "
        "of them tries."
    )
    refine: str = _AGAIN + "Put right what was wrong, and show each step. " + _ALONE
    answer: str = (
        "{question}\n\nThe right answer is known: {gold}\nFind out how one gets there, and answer step by step. Do not "
        "mention that the answer was known: write as if you had found it yourself."
    )
    rationale: str = (
        "{question}\n\nHere is how somebody else solved it:\n{rationale}\n\nUnderstand it, and lay it aside. Then "
        "solve it step by step in your own words and your own way. Do not mention the other solution."
    )
    combinational: str = (
        _AGAIN + "Take two ideas that lie far apart, at least one of them from another field, and join them into one "
        "answer that none of the earlier ones is close to. " + _ALONE
    )
    exploratory: str = (
        _AGAIN + "Stay within the rules of the task, but go to the edge of what they allow: a corner that the earlier "
        "answers left empty. " + _ALONE
    )
    transformational: str = (
        _AGAIN + "Pick one thing that all the earlier answers take for granted though the task does not ask for it. "
        "Change or drop it, and answer by the new rule. " + _ALONE
    )
    feasible: str = (
        "Task:\n{question}\n\nAnswer:\n{answer}\n\nHowever unusual it is: could this be an answer to this task, one "
        "that makes sense, is complete, and keeps to what the task asks for? Reply with yes or no."
    )

    def __post_init__(self) -> None:
        for field in fields(self):
            template, (needed, more) = getattr(self, field.name), _FIELDS[field.name]
            if not isinstance(template, str):
                raise ConfigError(f"The template `{field.name}` must be a text, not {template!r}.")
            found = set(_FIELD.findall(template))
            missing = [name for name in needed if name not in found]
            if missing:
                raise ConfigError(f"The template `{field.name}` lacks {_braces(missing)}.")
            alien = [name for name in _NAMES if name in found and name not in (*needed, *more)]
            if alien:
                raise ConfigError(
                    f"The template `{field.name}` does not get {_braces(alien)}, only {_braces((*needed, *more))}."
                )

    @classmethod
    def of(cls, templates: Templates | Mapping[str, str] | None) -> Templates:
        """Templates from some of them by name; the others stay.

        Raises:
            ConfigError: A name that is none, a template that lacks a field.
        """
        if templates is None or isinstance(templates, Templates):
            return templates or cls()
        for name in templates:
            if name not in _FIELDS:
                raise unknown("template", name, _FIELDS)
        return cls(**templates)


_REFINE = ("question", "answer", "critique")
_FIELDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # what each must have, and what it may have besides
    "critique": (("question", "answer"), ()),
    "teacher": (("question", "answer", "gold"), ("rationale",)),
    "redundancy": (("question", "answer", "others"), ()),
    "refine": (_REFINE, ()),
    "answer": (("question", "gold"), ()),
    "rationale": (("question", "rationale"), ()),
    "combinational": (_REFINE, ("others",)),
    "exploratory": (_REFINE, ("others",)),
    "transformational": (_REFINE, ("others",)),
    "feasible": (("question", "answer"), ()),
}
_NAMES = ("question", "answer", "critique", "gold", "rationale", "others")


def _braces(names: Sequence[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


def shortened(text: str, most: int = LONGEST) -> str:
    """`text`, or its beginning and its end when it is longer than `most` characters.

    >>> shortened("abcdefghijklmnopqrstuvwxyz", 15)
    'abcd\\n[...]\\nwxyz'
    """
    if len(text) <= most:
        return text
    half = (most - len(_GAP)) // 2
    return text[:half] + _GAP + text[-half:]


def filled(template: str, values: Mapping[str, str]) -> str:
    """`template` with its fields filled in. What is filled in is not looked at again: "{gold}" in an answer stays so.

    >>> filled("Q: {question} A: {answer} {x}", {"question": "{answer}?", "answer": "{question}!"})
    'Q: {answer}? A: {question}! {x}'
    """
    return _FIELD.sub(lambda match: values.get(match[1], match[0]), template)


def _values(attempt: Attempt, others: Sequence[str], *, reveal: bool) -> dict[str, str]:
    listed = "\n\n".join(f"{i}. {shortened(text, LONGEST // 8)}" for i, text in enumerate(others, 1))
    values = {"answer": shortened(attempt.text), "others": shortened(listed)}
    if reveal:
        values |= {"gold": answer(attempt.probe) or "", "rationale": solution(attempt.probe) or ""}
    return values


def request(attempt: Attempt, others: Sequence[str], templates: Templates, *, creative: bool, reveal: bool) -> Request:
    """What a critic is asked; with `reveal`, and where there is a gold answer, as a teacher who sees it."""
    if creative:
        template = templates.redundancy
    else:
        template = templates.teacher if reveal and answer(attempt.probe) else templates.critique
    values = _values(attempt, others, reveal=reveal) | {"question": _conversation(attempt.probe)}
    return Request(attempt, _as_asked(attempt.probe, filled(template, values)), tuple(others) if creative else ())


def refinement(attempt: Attempt, critique: str, others: Sequence[str], templates: Templates, *, kind: str) -> Prompt:
    """What the policy is asked, to refine `attempt` in the way of `kind` (a variant or a mode).

    A plain prompt gives a text. A chat keeps its messages but for the last, the user's, in whose place the question
    stands.
    """
    name = "refine" if kind in ("critique", "interactive") else kind
    values = _values(attempt, others, reveal=kind in ("answer", "rationale")) | {"critique": shortened(critique)}
    prompt = attempt.probe.prompt
    if isinstance(prompt, str):
        return filled(getattr(templates, name), values | {"question": prompt})
    if prompt and prompt[-1].get("role") == "user":
        before, question = prompt[:-1], str(prompt[-1].get("content") or "")
    else:
        before = tuple(message for message in prompt if message.get("role") == "system")
        question = _conversation(attempt.probe)
    return (*before, _user(filled(getattr(templates, name), values | {"question": question})))


def feasibility(probe: Probe, text: str, templates: Templates) -> Prompt:
    """What a judge is asked about `text`, to answer with yes or no."""
    return _as_asked(probe, filled(templates.feasible, {"question": _conversation(probe), "answer": shortened(text)}))


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _as_asked(probe: Probe, text: str) -> Prompt:
    """`text` as a prompt of the kind that the probe's is: text or chat."""
    return text if isinstance(probe.prompt, str) else (_user(text),)


def _conversation(probe: Probe) -> str:
    """The prompt for somebody who was not there: of several messages, each with who said it."""
    if isinstance(probe.prompt, str) or len(probe.prompt) == 1:
        return probe.text
    return "\n\n".join(f"[{message.get('role', '')}]\n{message.get('content') or ''}" for message in probe.prompt)
