"""A rule file as it is written: every alarm with the lines of its keys, before any of them is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from divmon.alarms import loading
from divmon.alarms.ruleset import RuleSet
from divmon.errors import unknown


@dataclass
class Document:
    """What a rule file holds.

    Attributes:
        top: The whole mapping.
        rows: Each alarm as it is written.
        silences: Each silence as it is written.
        wrong: (line, text) of what is wrong outside the alarms.
        file: Its name ("" for text or Python objects).
    """

    top: Mapping[str, Any] = field(default_factory=dict)
    rows: list[Any] = field(default_factory=list)
    silences: list[Any] = field(default_factory=list)
    wrong: list[tuple[int, str]] = field(default_factory=list)
    file: str = ""

    def line(self, key: str, i: int, inner: str = "") -> int:
        """The line of the i-th alarm or silence (`key`: alarms, silences), or of its key `inner`; 0 when unknown."""
        row = (self.rows if key == "alarms" else self.silences)[i]
        items = getattr(self.top, "items_of", {}).get(key, [])
        return line_of(row, inner) or (items[i] if i < len(items) else 0)


def read_document(source: loading.Source | RuleSet) -> Document:
    """Read a rule file, or text, without checking the alarms in it.

    Raises:
        RuleError: It is not YAML, or a key is written twice.
        ConfigError: The file cannot be read.
    """
    file, text = loading.opened(source)
    if isinstance(source, RuleSet):
        shared = {**source.shared, "silences": source.silences}
        return Document(shared, list(source.rules), list(source.silences), file=file)
    top = source if text is None else loading.parsed(text)
    if not isinstance(top, Mapping):
        return Document({}, [row for _, row in loading.alarm_rows(top)], file=file)
    found = Document(top, file=file)
    for key in top:
        if key not in loading.TOP:
            found.wrong.append((line_of(top, str(key)), str(unknown("key", str(key), loading.TOP))))
    for key, rows in (("alarms", found.rows), ("silences", found.silences)):
        items = top.get(key, [])
        if isinstance(items, (list, tuple)):
            rows += items
        elif items is not None:
            text = f"`{key}` is a list: put `- ` before the first key of each {key.removesuffix('s')}."
            found.wrong.append((line_of(top, key), text))
    if "alarms" not in top:
        found.wrong.append((line_of(top), "There is no `alarms:` here. Write `alarms: []` for none."))
    return found


def line_of(row: Any, key: str = "") -> int:
    """The line of `key` in a mapping that was read from a file (of the mapping itself without one); 0 elsewhere.

    >>> line_of({"name": "a"}, "name")
    0
    """
    lines = getattr(row, "lines", {})
    return int(lines.get(key, getattr(row, "line", 0)))
