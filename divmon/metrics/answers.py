"""Answers read out of completions and held against gold ones. Hostile text costs linear time and raises nothing."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

READ = 10_000  # characters at the end of a completion in which its answer is looked for

_MINUS = "-−–"
# Every repeat is bounded and what follows it cannot extend it, so that time is linear on any text.
_NUMBER = re.compile(
    rf"(?<![\w.)\]}}])(?P<sign>[{_MINUS}+]?)\\?[$€£]?(?P<inner>[{_MINUS}]?)"
    r"(?:(?P<mixed>\d{1,40})(?:[ ](?=\d{1,40}/\d)|[ ]?(?=\\[dt]?frac)))?"
    rf"(?:\\[dt]?frac\{{(?P<top>[{_MINUS}]?\d{{1,40}})\}}\{{(?P<bottom>\d{{1,40}})\}}"
    r"|(?P<number>\d{1,3}(?:,\d{3}){1,12}(?!\d)(?:\.\d{1,40})?|\d{1,40}(?:\.\d{1,40})?|\.\d{1,40})"
    r"(?:e(?P<exponent>[-+]?\d{1,2})(?!\w))?(?:[ ]?/[ ]?(?P<over>\d{1,40}(?:\.\d{1,40})?))?)(?!\d)",
    re.IGNORECASE | re.ASCII,
)
_BOXED = "\\boxed"
_HASHES = re.compile(r"####[ \t]{0,8}([^\n]{1,200})")
_PHRASE = re.compile(
    r"\banswer(?:\*\*)?[ \t]{0,2}(?:is\b(?![ \t]not\b)|=|:)(?:\*\*)?[ \t]{0,2}:?[ \t]{0,4}([^\n]{1,200})"
    r"|^[ \t]{0,8}A:[ \t]{0,4}([^\n]{1,200})",
    re.IGNORECASE | re.MULTILINE,
)
_DECORATION = re.compile(r"\\(?:text|mathrm|textbf|left|right|[,!; %$()\[\]])|\^\{?\\circ|[{}$*`%]")
_UNITS = re.compile(r"\W*(?:[^\W\d_]+\W*){0,2}")
_FORMULA = re.compile(r"[\\^=+*<>_]")
_YES_NO = frozenset({"yes", "no", "true", "false"})
_SHORT = 3  # golds this short (A, no) are not looked for among the words of a sentence


def _boxed(text: str) -> str | None:
    """What the last ``\\boxed{...}`` holds; None when it is cut or absent. Braces are matched in one pass."""
    start = text.rfind(_BOXED)
    rest = text[start + len(_BOXED) :].lstrip() if start >= 0 else ""
    if not rest.startswith("{"):
        return rest.split(maxsplit=1)[0].strip("$.,") if rest else None
    depth = 0
    for i, char in enumerate(rest):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[1:i].strip() or None
    return None


def _announced(text: str) -> str | None:
    """What follows the last ``####``, else the last "answer is"."""
    hashes = _HASHES.findall(text)
    if hashes:
        return str(hashes[-1]).strip().rstrip(".") or None
    phrases = _PHRASE.findall(text)
    return next((part.strip().strip("*").rstrip(".") for part in phrases[-1] if part), None) if phrases else None


def marked_answer(text: str) -> str | None:
    """The final answer where a completion marks one: boxed, after ``####`` or after "answer is"; None otherwise.

    What moves it besides the answer: truncation and habits of closing.

    >>> marked_answer("The answer is Rome."), marked_answer("Rome, 753 BC")
    ('Rome', None)

    Source: the conventions of MATH (Hendrycks et al. 2021) and GSM8K (Cobbe et al. 2021).
    """
    tail = text[-READ:]
    return _boxed(tail) or _announced(tail)


def extract_answer(text: str) -> str | None:
    """The final answer of a completion as it is written there; None when there is none.

    In this order: the last ``\\boxed{...}``, the rest of the line after the last ``####``, after the last "answer is"
    (or "Answer:", or "A:" opening a line), else the last number. Only the last 10,000 characters are read.

    What moves it besides the answer: truncation (a cut text gives the last number of its working) and habits of
    closing ("That is 7, as 3 + 4 shows" gives 4).

    >>> extract_answer("3 + 4 = 7, so \\\\boxed{7}."), extract_answer("It takes 3 hours, or $180.")
    ('7', '180')

    Source: the conventions of MATH (Hendrycks et al. 2021) and GSM8K (Cobbe et al. 2021).
    """
    marked = marked_answer(text)
    if marked:
        return marked
    numbers = [match[0] for match in _NUMBER.finditer(text[-READ:])]
    return numbers[-1].lstrip("\\$€£") if numbers else None


def _value(match: re.Match[str]) -> Fraction | None:
    """The number of a match of `_NUMBER`; None when it divides by zero."""
    try:
        if match["top"]:
            value = Fraction(int(match["top"].lstrip(_MINUS)), int(match["bottom"]))
        else:
            value = Fraction(match["number"].replace(",", "")) * Fraction(10) ** int(match["exponent"] or 0)
            value = value / Fraction(match["over"]) if match["over"] else value
    except ZeroDivisionError:
        return None
    value += int(match["mixed"] or 0)
    minuses = sum(bool(part) and part[0] in _MINUS for part in (match["sign"], match["inner"], match["top"]))
    return -value if minuses % 2 else value


def parse_number(text: str) -> Fraction | None:
    """The one number that `text` states, exactly; None when it states none, several, or a formula.

    Thousands separators, currency signs, %, up to two words of units and LaTeX decoration are ignored, and so is what
    stands left of the last "="; a/b, mixed numbers and \\frac are exact. 50% and 50 are the same number.

    What moves it besides the number: decimals of other countries (1.000,5 is not read) and rounding (0.33 is not 1/3).

    >>> [str(parse_number(text)) for text in ("$1,200.50", "x = -3/6 km", "(1, 2)", "Apollo 11")]
    ['2401/2', '-1/2', 'None', 'None']

    Source: this project.
    """
    short = text[-READ:].rsplit("=", 1)[-1]
    found = list(_NUMBER.finditer(short))
    if len(found) != 1:
        return None
    before = _DECORATION.sub("", short[: found[0].start()]).strip(" (~≈*")
    after = _DECORATION.sub("", short[found[0].end() :])[:100]
    return _value(found[0]) if not before and _UNITS.fullmatch(after) and not _FORMULA.search(after) else None


def _fold(text: str) -> str:
    """Words only: case, punctuation and runs of spaces taken away."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(char if char.isalnum() else " " for char in plain).split())


def _bare(formula: str) -> str:
    """A formula without spaces and LaTeX decoration."""
    return re.sub(r"\s+", "", _DECORATION.sub("", formula)).replace("dfrac", "frac").rstrip(".").casefold()


def answer_key(answer: str) -> str:
    """What is equal for answers that are the same: a number's exact value, else the words, else the bare formula.

    What moves it besides the answer: formulas written in another order (a + b, b + a) are different answers.

    >>> answer_key("$1,200.00"), answer_key("The  Nile."), answer_key("x^2 + 1") == answer_key("x^2+1")
    ('1200', 'the nile', True)

    Source: this project.
    """
    number = parse_number(answer)
    if number is not None:
        return str(number)
    return _bare(answer) if _FORMULA.search(answer) else _fold(answer) or _bare(answer)


def _same_number(text: str, gold: Fraction) -> bool:
    boxed = _boxed(text)
    if boxed:
        return parse_number(boxed) == gold
    said = _announced(text)
    first = _NUMBER.search(said.rsplit("=", 1)[-1]) if said else None
    if first:
        return _value(first) == gold
    answer = extract_answer(text) if not said else None
    return answer is not None and parse_number(answer) == gold


def _leads(text: str, gold: str, want: str) -> bool:
    """Whether `text` opens with a short gold answer that ends there or at punctuation: ``B``, ``(B) Rome``, ``No,``."""
    words = _fold(text[:200]).split(" ")
    if words == [want] or (want in _YES_NO and words[0] == want):
        return True
    return bool(re.match(rf"[\W_]{{0,5}}{re.escape(gold.strip('().*: '))}(?:[).:,;\]]|$)", text, re.IGNORECASE))


def gold_match(text: str, gold: str) -> bool:
    """Whether a completion gives the right answer.

    A gold answer that is a number is compared exactly (``1/2`` is ``0.5``, ``1,200`` is ``1200.00``) with what
    `extract_answer` finds. A formula must equal the announced answer (boxed, ``####``, "answer is") or, when none is
    announced, the last line, spaces and LaTeX decoration aside. Words are compared without case and punctuation: they
    must stand whole in the announced answer or, when none is announced, anywhere; golds of up to three characters
    (A, no) must open the announced answer, the first or the last line. A gold solution (``... #### 18``) is cut to its
    answer first.

    What moves it besides being right: forgetting to announce the answer and, for words, naming the right answer while
    denying it ("not Paris").

    >>> gold_match("She makes 9 * 2 = $18 a day.", "18.0"), gold_match("The answer is (B).", "B")
    (True, True)

    Source: this project; its agreement with published labels is measured in the tests.
    """
    gold = (_boxed(gold) or _announced(gold) or gold).strip()
    tail = text[-READ:]
    number = parse_number(gold)
    if number is not None:
        return _same_number(tail, number)
    marked = _boxed(tail) or _announced(tail)
    lines = [marked] if marked else (tail.strip().splitlines() or [""])
    want = _fold(gold)
    if _FORMULA.search(gold) or (not re.search(r"[^\W\d_]{2}", want) and re.search(r"\d", want)):
        said = lines[-1]
        return _bare(gold) in (_bare(said), _bare(said.rsplit("=", 1)[-1]))
    if not want:
        return False
    if len(want) <= _SHORT:
        return any(_leads(line, gold, want) for line in (lines[0], lines[-1]))
    return f" {want} " in f" {_fold(marked or tail)} "
