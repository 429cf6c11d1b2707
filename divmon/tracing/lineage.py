"""A lineage: checkpoints by name, each with the one it was trained from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from divmon.errors import ConfigError, unknown
from divmon.reasoning import way_named
from divmon.tracing.attribution import branches, check_tree

SUFFIXES = (".yaml", ".yml")
_TOP = "checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """One stage of a lineage.

    Attributes:
        name: In tables and on disk.
        source: A folder, or a name on the Hub, also as ``name@revision``; a folder or name of a PEFT adapter too.
        parent: The checkpoint it was trained from. None: the one before it in the list; the first is the base.
        on: For an adapter: what it is put on, a checkpoint of the lineage, a folder or a Hub name. Empty: what the
            adapter itself names.
        tokenizer: A folder or Hub name. Empty: that of `source`.
        reasoning: As for `divmon.trace`, for this checkpoint alone. Empty: as for all.
        group: Checkpoints of one group are also shown as their mean, task by task.
    """

    name: str
    source: str
    parent: str | None = None
    on: str = ""
    tokenizer: str = ""
    reasoning: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        for field in ("name", "source"):
            if not isinstance(getattr(self, field), str) or not getattr(self, field).strip():
                raise ConfigError(f"Checkpoint {self.name!r}: {field!r} must be a text, not {getattr(self, field)!r}.")
        for field in ("parent", "on", "tokenizer", "reasoning", "group"):
            value = getattr(self, field)
            if not isinstance(value, str) and not (field == "parent" and value is None):
                raise ConfigError(f"Checkpoint {self.name!r}: {field!r} must be a text, not {value!r}.")
        if self.reasoning:
            way_named(self.reasoning)


@dataclass(frozen=True)
class Lineage:
    """Checkpoints in order, parents before children.

    Attributes:
        checkpoints: At least two.

    >>> lineage = Lineage.of({"base": "org/base", "sft": "out/sft", "rl": {"source": "out/rl", "parent": "base"}})
    >>> lineage.branches
    [('base', 'sft'), ('base', 'rl')]
    """

    checkpoints: tuple[Checkpoint, ...]

    def __post_init__(self) -> None:
        names = self.names
        if len(names) < 2:
            raise ConfigError("A lineage needs at least two checkpoints: a base, and one to set beside it.")
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"Two checkpoints are called {name!r}.")
        check_tree(self.parents, names)
        for group, members in self.groups.items():
            if group in names:
                raise ConfigError(f"The group {group!r} has the name of a checkpoint.")
            if len({self.parents[name] for name in members}) > 1 or self.parents[members[0]] is None:
                raise ConfigError(f"The checkpoints of group {group!r} must have one parent, and the base is in none.")

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self.checkpoints)

    @property
    def names(self) -> list[str]:
        """Of the checkpoints."""
        return [checkpoint.name for checkpoint in self.checkpoints]

    @property
    def parents(self) -> dict[str, str | None]:
        """Of each checkpoint."""
        return {checkpoint.name: checkpoint.parent for checkpoint in self.checkpoints}

    @property
    def base(self) -> Checkpoint:
        """The one without a parent."""
        return next(checkpoint for checkpoint in self.checkpoints if checkpoint.parent is None)

    @property
    def groups(self) -> dict[str, list[str]]:
        """Names of the members of each group."""
        found: dict[str, list[str]] = {}
        for checkpoint in self.checkpoints:
            if checkpoint.group:
                found.setdefault(checkpoint.group, []).append(checkpoint.name)
        return found

    @property
    def branches(self) -> list[tuple[str, ...]]:
        """Every way from the base to a last checkpoint."""
        return branches(self.names, self.parents)

    def named(self, name: str) -> Checkpoint:
        """One of them."""
        return next(checkpoint for checkpoint in self.checkpoints if checkpoint.name == name)

    @classmethod
    def of(cls, source: Any) -> Lineage:
        """A lineage from whatever the user has.

        Args:
            source: A YAML file with ``checkpoints:``; a mapping from names to sources or to mappings of the fields of
                `Checkpoint`; a list of such mappings with a ``name``, of `Checkpoint`, or of texts ``name=source``.

        Raises:
            ConfigError: What is wrong, in which field, and in which line of a file.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, (str, Path)):
            return _from_file(Path(source))
        if isinstance(source, Mapping):
            return _linked([_checkpoint(str(name), value, "") for name, value in source.items()])
        if isinstance(source, Iterable):
            return _linked([_item(item, "") for item in source])
        raise ConfigError(f"A lineage is a YAML file, a mapping or a list of checkpoints, not {type(source).__name__}.")


def _linked(found: Sequence[Checkpoint]) -> Lineage:
    """Parents filled in, and put before their children."""
    linked = [
        checkpoint if i == 0 or checkpoint.parent is not None else dataclasses.replace(checkpoint, parent=before)
        for i, (before, checkpoint) in enumerate(zip(["", *(c.name for c in found)], found, strict=False))
    ]
    names = [checkpoint.name for checkpoint in linked]
    check_tree({checkpoint.name: checkpoint.parent for checkpoint in linked}, names)
    ordered: list[Checkpoint] = []
    while len(ordered) < len(linked):
        placed = {checkpoint.name for checkpoint in ordered}
        more = [c for c in linked if c not in ordered and (c.parent is None or c.parent in placed)]
        ordered += more[:1]
    return Lineage(tuple(ordered))


def _item(item: Any, where: str) -> Checkpoint:
    if isinstance(item, Checkpoint):
        return item
    if isinstance(item, str):
        name, equals, source = item.partition("=")
        if not equals:
            raise ConfigError(f"{where}A checkpoint is written name=source, not {item!r}.")
        return _checkpoint(name, source, where)
    if isinstance(item, Mapping):
        fields = dict(item)
        name = fields.pop("name", None)
        if name is None:
            raise ConfigError(f"{where}a checkpoint has no field 'name'; it has {', '.join(sorted(map(str, fields)))}.")
        return _checkpoint(str(name), fields, where)
    raise ConfigError(f"{where}A checkpoint is a text name=source or a mapping, not {item!r}.")


def _checkpoint(name: str, value: Any, where: str) -> Checkpoint:
    if isinstance(value, (str, Path)):
        value = {"source": str(value)}
    if isinstance(value, Checkpoint):
        return dataclasses.replace(value, name=name)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}checkpoint {name!r} must be a folder, a Hub name or a mapping, not {value!r}.")
    known = [field.name for field in dataclasses.fields(Checkpoint) if field.name != "name"]
    for field in value:
        if field not in known:
            raise ConfigError(f"{where}{unknown(f'field of checkpoint {name!r}', str(field), known)}")
    if "source" not in value:
        raise ConfigError(f"{where}checkpoint {name!r} has no field 'source': a folder or a name on the Hub.")
    try:
        return Checkpoint(name, **{field: str(v) if isinstance(v, Path) else v for field, v in value.items()})
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error


def _from_file(path: Path) -> Lineage:
    try:
        text = path.read_text("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"Cannot read a lineage from {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, Mapping) or _TOP not in values:
        raise ConfigError(f"{path} must hold 'checkpoints:', and under it a name and a source for each.")
    for key in values:
        if key != _TOP:
            raise ConfigError(f"{path}, {unknown('field of a lineage', str(key), [_TOP])}")
    rows, listed = values[_TOP], _node_of(node, _TOP, path)
    lines = _lines(listed, path)
    if isinstance(rows, Mapping):
        found = [_checkpoint(str(k), v, where) for (k, v), where in zip(rows.items(), lines, strict=True)]
    elif isinstance(rows, list):
        found = [_item(item, where) for item, where in zip(rows, lines, strict=True)]
    else:
        raise ConfigError(f"{path}: 'checkpoints' must be a mapping or a list, not {rows!r}.")
    try:
        return _linked([_beside(checkpoint, path.parent) for checkpoint in found])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _node_of(node: Any, key: str, path: Path) -> Any:
    found = [(name.start_mark.line + 1, value) for name, value in node.value if name.value == key]
    if len(found) > 1:
        told = f"{key!r} is written twice (first in line {found[0][0]})"
        raise ConfigError(f"{path}, line {found[1][0]}: {told}; keep one.")
    return found[0][1]


def _lines(node: Any, path: Path) -> list[str]:
    """``file, line 3: `` for each checkpoint."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                told = f"checkpoint {key.value!r} is written twice (first in line {seen[key.value]})"
                raise ConfigError(f"{path}, line {line}: {told}; keep one.")
            seen[key.value] = line
        return [f"{path}, line {line}: " for line in seen.values()]
    if isinstance(node, yaml.SequenceNode):
        return [f"{path}, line {item.start_mark.line + 1}: " for item in node.value]
    return []


def _beside(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Folders that a file names are meant from where the file is."""
    moved = {
        field: str(folder / value)
        for field in ("source", "on", "tokenizer")
        if (value := getattr(checkpoint, field)) and not Path(value).is_absolute() and (folder / value).is_dir()
    }
    return dataclasses.replace(checkpoint, **moved)
