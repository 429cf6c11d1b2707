"""Texts by people, completions of other models, and rewrites, from whatever the user has; a bad row is named."""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from divmon.errors import ConfigError, ProbeError, suggest
from divmon.metrics.attributes import ATTRIBUTES, Panel
from divmon.metrics.hivemind import OWN
from divmon.metrics.others import Bank
from divmon.metrics.people import References
from divmon.samplers.file import LISTS, SINGLES, as_lines, parse
from divmon.samplers.reading import SUFFIXES, Line, files_of, lines_of

SHIPPED = "shipped"  # instead of a file: the references that come with divmon
_TEXT = ("text", "reference")
_MODEL = "model"
PREFERENCES = ("ai", "equal", "own")


def _lines(source: Any, what: str) -> Iterable[Line]:
    if isinstance(source, (str, Path)):
        return lines_of(source)
    if hasattr(source, "iloc"):
        raise ConfigError(f"{what}= cannot read a data frame: pass frame.to_dict('records').")
    if isinstance(source, (Mapping, AbstractSet, bytes)) or not isinstance(source, Iterable):
        raise ConfigError(f"{what}= takes a file, a list or a data set, not a {type(source).__name__}.")
    return as_lines(source, what)


def _field(line: Line, names: Sequence[str], what: str) -> str:
    """The text under the first of `names` that a row has.

    Raises:
        ProbeError: There is none, it is no text, or it is empty; the message names the field and the line.
    """
    if not isinstance(line.row, Mapping):
        raise ProbeError(f"{line.where}: not an object with a {names[0]!r} ({what}).")
    name = next((name for name in names if line.row.get(name) is not None), None)
    name = name or next(
        (name for name in names if name in line.row), None
    )  # null is what is wrong, not a missing field
    if name is None:
        raise ProbeError(f"{line.where}: no {names[0]!r} ({what}); there are {sorted(map(str, line.row))}.")
    value = line.row[name]
    if not isinstance(value, str) or not value.strip():
        raise ProbeError(f"{line.where}: {name!r} must be a text that is not empty, not {str(value)[:80]!r}.")
    return value


def read_references(source: Any, *, length: int | None = None) -> References:
    """Texts by people: a file or rows with a ``text`` (and a ``domain``, if they are for one), or plain texts.

    Args:
        source: A path as `divmon.read_completions` takes it, a list or a column of texts, rows, a data set,
            ``"shipped"`` for the small set that comes with divmon, or `References`.
        length: The window in words; None: what nine in ten of the texts fill, at most 100.

    >>> read_references(["the cat saw the dog", "a dog saw a cat"]).texts[0]
    'the cat saw the dog'

    Raises:
        ProbeError: A row without a text; the message names the field and the line.
        ConfigError: Another kind of object, or a window under one word.
    """
    if length is not None and length < 1:
        raise ConfigError(f"the window must have at least one word, not {length}.")
    if isinstance(source, References):
        return source if length is None else References(source.texts, source.domains, length)
    if isinstance(source, str) and source == SHIPPED:
        with resources.as_file(resources.files("divmon.probes").joinpath("references", "people.jsonl")) as path:
            return read_references(path, length=length)
    texts, domains = [], []
    for line in _lines(source, "references"):
        row = line._replace(row={"text": line.row}) if isinstance(line.row, str) else line
        texts.append(_field(row, _TEXT, "a text by a person"))
        domain = row.row.get("domain")
        domains.append(None if domain in (None, "") else str(domain))
    if not texts:
        raise ProbeError("There are no references: the list is empty.")
    return References(tuple(texts), tuple(domains) if any(domains) else None, length)


def read_bank(source: Any) -> Bank:
    """Other models' completions: rows with a ``prompt``, a ``model`` and ``completions`` or one ``completion``.

    A row without a model belongs to the model that its file is named after.

    Args:
        source: A path (file, folder, pattern), a list of paths, rows, a data set, or a `Bank`.

    >>> read_bank([{"prompt": "?", "model": "other", "completion": "yes"}]).models
    ('other',)

    Raises:
        ProbeError: A row without prompt, model or completions; the message names the field and the line.
        ConfigError: Another kind of object.
    """
    if isinstance(source, Bank):
        return source
    answers: dict[str, dict[str, list[str]]] = {}
    for line, stem in _banked(source):
        found = parse(line)
        model = line.row.get(_MODEL, stem)
        if model is None:
            there = sorted(map(str, line.row))
            raise ProbeError(f"{line.where}: no 'model' (the name of who completed it); there are {there}.")
        if not isinstance(model, str) or not model.strip():
            raise ProbeError(f"{line.where}: 'model' must be the name of who completed it, not {str(model)[:80]!r}.")
        if model == OWN:
            raise ProbeError(
                f"{line.where}: 'model' is {OWN!r}, which names the policy itself; call it something else."
            )
        answers.setdefault(found.probe.text, {}).setdefault(model, []).extend(found.texts)
    if not answers:
        raise ProbeError("There are no completions of other models: the list is empty.")
    return Bank({prompt: {model: tuple(row) for model, row in rows.items()} for prompt, rows in answers.items()})


def _banked(source: Any) -> Iterator[tuple[Line, str | None]]:
    """Rows, and the name of the file they are from."""
    several = isinstance(source, (list, tuple)) and source and all(isinstance(one, (str, Path)) for one in source)
    if isinstance(source, (str, Path)) or several:
        for one in source if several else [source]:
            for path in files_of(one):
                name = path.name
                for suffix in SUFFIXES:
                    name = name.removesuffix(suffix)
                yield from ((line, name) for line in lines_of(path))
        return
    yield from ((line, None) for line in _lines(source, "others"))


@dataclass(frozen=True)
class Rewrites:
    """Texts by writers, and what a model made of them.

    Attributes:
        originals: N texts.
        rewrites: N texts.
        authors: N names; None where no row has one.
        scores: N numbers, NaN where unknown: what a reward model or a reader thinks of the rewrite.
        preferred: How often readers or writers preferred "ai", "equal" or "own".
    """

    originals: tuple[str, ...]
    rewrites: tuple[str, ...]
    authors: tuple[str, ...] | None
    scores: tuple[float, ...]
    preferred: Mapping[str, int]


def read_rewrites(source: Any) -> Rewrites:
    """Rows with an ``original`` and a ``rewrite``; if known, ``author``, ``score``, ``preferred`` (ai, equal or own).

    An ``original`` may also be called ``reference``; a rewrite may stand under any name that completions may have,
    several of them in a list.

    >>> read_rewrites([{"original": "hi there", "rewrite": "Good day."}]).rewrites
    ('Good day.',)

    Raises:
        ProbeError: What is missing or of the wrong kind; the message names the field and the line.
    """
    originals: list[str] = []
    rewrites: list[str] = []
    authors: list[str | None] = []
    scores: list[float] = []
    counts: dict[str, int] = {}
    for line in _lines(source, "rewrites"):
        original = _field(line, ("original", "reference"), "the writer's own text")
        made = _rewritten(line)
        given = line.row.get("score", line.row.get("scores"))
        each = given if isinstance(given, list) else [given] * len(made)
        if len(each) != len(made):
            raise ProbeError(f"{line.where}: {len(each)} 'scores' for {len(made)} rewrites.")
        preferred = line.row.get("preferred")
        if preferred is not None:
            if preferred not in PREFERENCES:
                raise ProbeError(f"{line.where}: 'preferred' must be one of {PREFERENCES}, not {preferred!r}.")
            counts[preferred] = counts.get(preferred, 0) + 1
        originals += [original] * len(made)
        rewrites += made
        scores += [_score(line, value) for value in each]
        author = line.row.get("author")
        authors += [line.name if author in (None, "") else str(author)] * len(made)
    if not originals:
        raise ProbeError("There are no rewrites: the list is empty.")
    named = tuple(str(author) for author in authors)
    single = len(set(named)) == len(named)
    preferred_counts = {name: counts.get(name, 0) for name in PREFERENCES} if counts else {}
    return Rewrites(tuple(originals), tuple(rewrites), None if single else named, tuple(scores), preferred_counts)


def _rewritten(line: Line) -> list[str]:
    row = line.row
    listed = next((name for name in ("rewrites", *LISTS) if isinstance(row.get(name), (list, tuple))), None)
    if listed is None:
        return [_field(line, ("rewrite", *SINGLES), "the model's text")]
    if not row[listed] or not all(isinstance(text, str) for text in row[listed]):
        raise ProbeError(f"{line.where}: {listed!r} must be a list of texts that is not empty.")
    return list(row[listed])


def _score(line: Line, value: Any) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, (bool, int, float)) or abs(value) == math.inf:
        raise ProbeError(f"{line.where}: 'score' must be a number, not {str(value)[:80]!r}.")
    return float(value)


def read_panel(source: Any) -> Panel:
    """Attributes of a text: a mapping from name to function, or a list of functions and names.

    Functions take one text and return a number. What is given takes the place of the shipped attributes; in a list,
    ``"default"`` keeps them, and the name of a shipped one keeps that one. ``"package.module:function"`` is imported.

    >>> read_panel({"length": len}).names
    ('length',)
    >>> read_panel(["questions", "builtins:len"]).names
    ('questions', 'len')

    Raises:
        ConfigError: A name that is no attribute, something that cannot be called, two attributes of one name.
    """
    if isinstance(source, Panel):
        return source
    if isinstance(source, (str, bytes)) or not isinstance(source, (Mapping, Iterable)):
        raise ConfigError(f"attributes= takes a mapping from name to function, or a list, not {source!r}.")
    own: dict[str, Callable[[str], float]] = {}
    shipped: list[str] = []
    for name, value in source.items() if isinstance(source, Mapping) else ((None, one) for one in source):
        if name is None and isinstance(value, str) and ":" not in value:
            if value != "default" and value not in ATTRIBUTES:
                raise ConfigError(f"Unknown attribute {value!r}.{suggest(value, ('default', *ATTRIBUTES))}")
            shipped += ATTRIBUTES if value == "default" else (value,)
            continue
        function = _imported(value) if isinstance(value, str) else value
        label = str(name if name is not None else getattr(function, "__name__", ""))
        if not callable(function) or not label.isidentifier():
            raise ConfigError(
                f"An attribute is a named function of one text that returns a number, not {value!r}. Give a lambda a "
                "name: attributes={'clarity': fn}."
            )
        if label in own or label in ATTRIBUTES:
            raise ConfigError(f"Two attributes are called {label!r}; a name is a curve, so give one another name.")
        own[label] = function
    if not own and not shipped:
        raise ConfigError("attributes= is empty: name at least one.")
    return Panel(tuple(dict.fromkeys(shipped)), own)


def _imported(path: str) -> Callable[[str], float]:
    try:
        found: Callable[[str], float] = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"Cannot import the attribute {path!r}: {error}.") from error
    return found
