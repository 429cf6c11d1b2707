"""What shape a completion has: the built-in structural labels, and the classifiers a user may put in their place.

A label says how a text is laid out, never what it says. The first of a text's labels is its *primary* one, so that
primaries sort completions into formats without overlap.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from divmon.errors import ConfigError
from divmon.metrics.base import Classifier

INSPECTED = 20_000  # characters of a completion that are looked at; what comes later has no say
ERROR = "error"  # the label of a completion that a user's function failed on; metrics leave such completions out
OTHER = "other"  # the label of a completion that none of a user's rules fits
FormatSpec = Callable[[str], str | Sequence[str] | None] | Mapping[str, str | re.Pattern[str]] | None

LABELS: dict[str, str] = {
    "empty": "no visible character",
    "refusal": "says within its first 300 characters that it cannot or will not help",
    "json": "opens as a JSON object with a quoted key, or is a JSON array or object as a whole",
    "tool_call": "calls a tool: <tool_call>, <llm-code>, <function=...>, <|python_tag|>, [TOOL_CALLS], Action + Input",
    "xml": "opens with a tag, or some line opens with a tag that is closed later",
    "fenced_code": "a line opens with ``` or ~~~",
    "bare_code": "a program without fences: one unmistakable code line, and half of the lines look like code",
    "latex_boxed": "contains \\boxed",
    "calculator": "contains a calculator annotation such as <<3*4=12>>",
    "table": "a Markdown table: a line of | and - under a line with |",
    "headings": "a # heading, or two lines that are bold as a whole",
    "numbered": "two lines open with a number (1. 1) (1)) or with Step 1",
    "bullets": "two lines open with a bullet (- * + •)",
    "dialogue": "three lines or more, half of all, open with a speaker (Name:); two speakers, one of them twice",
    "latex": "LaTeX mathematics: \\( \\[ $$ \\begin \\frac \\sqrt or $...$ around a formula",
    "marked_answer": "the last line announces the answer: #### 12, A: 12, The answer is 12",
    "short_lines": "nothing above; four lines or more, at least half of them within 60 characters (verse, plain lists)",
    "paragraphs": "nothing above; two lines of text or more",
    "single_paragraph": "nothing above; one line of more than 80 characters",
    "one_line": "nothing above; one line of at most 80 characters",
}
"""The built-in labels in order of priority, each with its rule. `fenced_code` and what follows ignore fenced lines."""

# Every pattern below is anchored or bounded: no two unbounded repeats touch, so time is linear in the text.
_HELP = (
    "help|assist|provide|comply|fulfil|fulfill|create|write|generate|give|share|discuss|answer|engage|support|offer|"
    "produce|recommend|participate|continue|do|tell|endorse|complete|proceed|advise|access|browse"
)
_REFUSAL = re.compile(
    rf"\bi(?:'m| am) (?:unable|not able|not comfortable)\b[^.\n]{{0,20}}\b(?:{_HELP}|{_HELP.replace('|', 'ing|')}ing)\b"
    rf"|\bi (?:can't|cannot|can not|won't|will not)(?: \w{{1,12}}){{0,2}} (?:{_HELP})\b(?! (?:up|in)\b)"
    r"|\bi(?:'m| am) sorry,? (?:but )?(?:i |that's |this )(?:can't|cannot|am unable|won't|not )"
    r"|\bi (?:must|have to)(?: respectfully)? (?:decline|refuse)\b"
    r"|\bas an ai\b[^.\n]{0,60}\bi (?:can't|cannot|don't|do not|am not|am unable)\b"
)
_JSON_OPENING = re.compile(r'(?:\[\s{0,80})?\{\s{0,80}"[^"\n]{0,200}"\s{0,80}:')
_TOOL = re.compile(
    r"<\|?(?:tool_calls?|tool_code|llm-code|function_calls?|function=|python_tag|python>|invoke )|\[TOOL_CALLS\]"
    r"|^Action:[^\n]{0,200}\n{1,2}Action Input:",
    re.MULTILINE,
)
_TAG = re.compile(r"<(?:([A-Za-z][\w:-]{0,40})(?:\s[^<>]{0,200})?/?>|!DOCTYPE |\?xml |!--)")
_CLOSING = re.compile(r"</([A-Za-z][\w:-]{0,40})>")
_CALCULATOR = re.compile(r"<<[\d\s+*/().,=%$-]{1,120}>>")
_LATEX = re.compile(r"\\[(\[]|\$\$|\\begin\{|\\[dt]?frac\b|\\sqrt\b")
_INLINE = re.compile(r"\$(?=\S)([^$\n]{1,200})(?<=\S)\$(?!\d)")
_FORMULA = re.compile(r"[\\^_]|=\s?[\w(-]|\A[A-Za-z]\Z")
_ANSWER = re.compile(
    r"\#{2,6}[ ]{0,4}[$-]{0,2}\d|a:[ ]{0,4}\S"
    r"|\W{0,4}(?:(?:so|thus|therefore|hence|the|final|my)[ ,]{1,2}){0,4}answer\b",
    re.IGNORECASE,
)
_LINE = re.compile(
    r"(?P<heading>\#{1,6}[ \t]{1,4}(?=.{0,80}[^\W\d_]))"
    r"|(?P<bold>\*\*[^*]{1,100}\*\*:?$)"
    r"|(?P<numbered>(?:\*\*)?(?:\(?\d{1,3}[.)](?:\*\*)?(?:[ \t]|$)|[Ss]tep[ ]\d{1,3}\b))"
    r"|(?P<bullets>[-*+•‣◦·][ \t])"
    r"|(?P<speaker>\*{0,2}[A-Z][\w.' -]{0,29}\*{0,2}:)"
)
_STRONG = re.compile(
    r"(?:async[ ]+)?(?:def|function|func|fn)[ ]+\w+[ ]*[(<\[]|class[ ]+\w+[ ]*[(:{]|\#include\b|\#!/|<\?php"
    r"|from[ ]+[\w.]+[ ]+import\b|import[ ]+[\w.]+(?:[ ]+as[ ]+\w+)?;?$|import[ ]*\{|print[ ]*\(|console\.log\("
    r"|(?:public|private|protected)[ ]+\w+|(?:const|let|var)[ ]+\w+[ ]*=|package[ ]+\w+;?$|using[ ]+namespace\b"
    r"|if[ ]+__name__|SELECT[ ].{1,120}[ ]FROM[ ]|int[ ]+main[ ]*\("
)
_WEAK = re.compile(
    r"return\b|(?:if|for|while|elif|else|try|except|with|finally|switch|case)\b.{0,190}[:{]$"
    r"|[\w.\[\]'\"]+[ ]*[-+*/%|&]?=(?!=)[ ]*\S|[\]})]|//|/\*|\#|@\w|\"\"\"|'''|[\w.]+\(.{0,190}\);?$|>>>"
)
_WIDTH = 200  # characters of a line that patterns see


def _opening_labels(text: str) -> list[str]:
    """Labels that the text as a whole decides."""
    labels = ["refusal"] if _REFUSAL.search(text[:300].replace("’", "'").lower()) else []
    labels += ["json"] if _is_json(text) else []
    return [*labels, "tool_call"] if _TOOL.search(text) else labels


def _is_json(text: str) -> bool:
    if text[0] not in "{[":
        return False
    if _JSON_OPENING.match(text):
        return True
    if text[-1] not in "}]":
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_xml(text: str, lines: Sequence[str]) -> bool:
    if _TAG.match(text):
        return True
    opened = {match[1] for line in lines if line[:1] == "<" and (match := _TAG.match(line)) and match[1]}
    return bool(opened) and not opened.isdisjoint(_CLOSING.findall(text))


def _is_code(lines: Sequence[str], stripped: Sequence[str]) -> bool:
    strong = code = 0
    for line, bare in zip(lines, stripped, strict=True):
        head = bare[:_WIDTH]
        sure = _STRONG.match(head) is not None
        strong += sure
        code += sure or line[:1] in " \t" or bare[-1] in ";{}" or _WEAK.match(head) is not None
    return strong > 0 and 2 * code >= len(stripped)


def _is_latex(text: str) -> bool:
    return bool(_LATEX.search(text)) or any(_FORMULA.search(match[1]) for match in _INLINE.finditer(text))


def _is_table(stripped: Sequence[str]) -> bool:
    return any(
        "|" in rule and "-" in rule and "|" in above and not set(rule) - set("|-: \t")
        for above, rule in itertools.pairwise(stripped)
    )


def _layout_labels(stripped: Sequence[str]) -> list[str]:
    """Labels that the openings of lines decide."""
    count = dict.fromkeys(("heading", "bold", "numbered", "bullets"), 0)
    speakers: list[str] = []
    for line in stripped:
        match = _LINE.match(line[:_WIDTH])
        if match is None or match.lastgroup is None:
            continue
        if match.lastgroup == "speaker":
            speakers.append(match[0].strip("*:"))
        else:
            count[match.lastgroup] += 1
    labels = ["table"] if _is_table(stripped) else []
    labels += ["headings"] if count["heading"] or count["bold"] >= 2 else []
    labels += [name for name in ("numbered", "bullets") if count[name] >= 2]
    talk = len(speakers) >= 3 and 1 < len(set(speakers)) < len(speakers) and 2 * len(speakers) >= len(stripped)
    return [*labels, "dialogue"] if talk else labels


def _shape(stripped: Sequence[str]) -> str:
    if len(stripped) >= 4 and median(map(len, stripped)) <= 60:
        return "short_lines"
    if len(stripped) >= 2:
        return "paragraphs"
    return "one_line" if len(stripped[0]) <= 80 else "single_paragraph"


def _outside_fences(lines: Sequence[str]) -> tuple[list[str], bool]:
    """Non-blank lines that are not fenced, and whether there was a fence."""
    kept, inside, fenced = [], False, False
    for line in lines:
        bare = line.lstrip()
        if bare.startswith(("```", "~~~")):
            inside, fenced = not inside, True
        elif bare and not inside:
            kept.append(line)
    return kept, fenced


def classify(text: str) -> tuple[str, ...]:
    """All structural labels of one completion (at least one of `LABELS`), in order of priority; the first is primary.

    What moves it besides diversity: the length cap (a completion cut before its \\boxed is filed by its layout so far),
    the prompt (a request for a list gets bullets), and thresholds (a sentence of 81 characters is a paragraph). Rules
    read signs on the surface: a story that opens with "I can't help it" is taken for a refusal. Only the first
    20,000 characters are read; time is linear in them, whatever they are.

    >>> classify("- three\\n- plus four\\n- gives $\\\\boxed{7}$")
    ('latex_boxed', 'bullets', 'latex')
    >>> classify("def add(a, b):\\n    return a + b")
    ('bare_code',)

    Source: this project; the idea that formats are recognisable by surface signs is that of Zhao et al. (2025),
    "Echo Chamber", arXiv:2504.07912.
    """
    text = text.strip().strip("\ufeff\u200b")[:INSPECTED].rstrip()
    if not text:
        return ("empty",)
    labels = _opening_labels(text)
    lines, fenced = _outside_fences(text.split("\n"))
    stripped = [line.strip() for line in lines]
    labels += ["xml"] if _is_xml(text, stripped) else []
    labels += ["fenced_code"] if fenced else []
    if "json" in labels:
        return tuple(labels)
    if _is_code(lines, stripped):
        return (*labels, "bare_code")
    labels += ["latex_boxed"] if "\\boxed" in text else []
    labels += ["calculator"] if _CALCULATOR.search(text) else []
    labels += _layout_labels(stripped)
    labels += ["latex"] if _is_latex(text) else []
    if stripped and _ANSWER.match(stripped[-1][:_WIDTH]):
        labels.append("marked_answer")
    return tuple(labels) if labels else (_shape(stripped),)


class FunctionClassifier:
    """A user's function as a classifier that never raises: texts it fails on are labelled "error" and counted.

    "error" is no format: the format metrics leave such completions out, show how many there were under
    "unclassified", and are missing (with the first error as the reason) when nothing is left.

    Attributes:
        failures: Calls that raised or returned something that is not a label.
        first_error: What went wrong first.
    """

    def __init__(self, fn: Callable[[str], str | Sequence[str] | None]) -> None:
        self._fn = fn
        self.failures = 0
        self.first_error: str | None = None

    def __call__(self, text: str) -> tuple[str, ...]:
        """The labels of `text`: one string, several, or none (then "other")."""
        try:
            found = self._fn(text)
        except Exception as error:
            return self._failed(f"{type(error).__name__}: {error}")
        labels = () if found is None else (found,) if isinstance(found, str) else found
        if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) and label for label in labels):
            return self._failed(f"expected a label or a list of labels, got {str(found)[:80]!r}")
        return tuple(dict.fromkeys(labels)) or (OTHER,)

    def _failed(self, why: str) -> tuple[str, ...]:
        self.failures += 1
        self.first_error = self.first_error or why
        return (ERROR,)


def build_classifier(spec: FormatSpec) -> Classifier:
    """A classifier from None (the built-in one), a function ``text -> label | labels | None``, or ``{label: regex}``.

    Patterns are tried in the order given with `re.search` on the first 20,000 characters; every one that matches gives
    its label, the first is primary, and a text that matches none is "other". Flags go into the pattern: ``(?im)^Sure``.

    What moves it besides diversity: rules that overlap (their order decides) and patterns that backtrack (a user's
    pattern takes the time it takes; nothing here can stop it).

    >>> by_opening = build_classifier({"eager": "^(Sure|Certainly)", "steps": "(?m)^Step 1"})
    >>> by_opening("Sure!\\nStep 1: boil water."), by_opening("Boil water.")
    (('eager', 'steps'), ('other',))

    Raises:
        ConfigError: For a pattern that does not compile, no rules at all, or anything else.

    Source: this project.
    """
    if spec is None:
        return classify
    if isinstance(spec, Mapping):
        return _from_patterns(spec)
    if callable(spec):
        return FunctionClassifier(spec)
    raise ConfigError(f"formats must be a function of a text, or a mapping from label to regex, not {spec!r}")


def _from_patterns(spec: Mapping[str, str | re.Pattern[str]]) -> Classifier:
    if not spec:
        raise ConfigError("formats is an empty mapping: give at least one label with a regex, or leave it out")
    rules: list[tuple[str, re.Pattern[str]]] = []
    for label, pattern in spec.items():
        if not isinstance(label, str) or not label or label == ERROR:
            raise ConfigError(f"formats: {label!r} cannot be a label; give a non-empty string other than {ERROR!r}")
        try:
            rules.append((label, re.compile(pattern)))
        except (re.error, TypeError) as error:
            raise ConfigError(f"formats: the regex of {label!r} does not compile: {error} (in {pattern!r})") from error

    def by_pattern(text: str) -> tuple[str, ...]:
        head = text[:INSPECTED]
        return tuple(label for label, rule in rules if rule.search(head)) or (OTHER,)

    return by_pattern
