"""Opening a checkpoint: its weights, its tokenizer, an adapter put on what it belongs to. One at a time in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import cached_file, extract_commit_hash

from divmon.errors import ConfigError, MissingDependency
from divmon.tracing.lineage import Checkpoint, Lineage

ADAPTER = "adapter_config.json"
_READ = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")
_NOT_READ = ("trainer_state.json", "training_args.bin", "optimizer.bin", "scheduler.bin")  # nothing is drawn with them
_MISSING = (OSError, ValueError, KeyError, ImportError)


@dataclass(frozen=True)
class Place:
    """Where weights or a tokenizer are.

    Attributes:
        source: A folder, or a name on the Hub.
        revision: On the Hub; None for the newest.
    """

    source: str
    revision: str | None = None

    @classmethod
    def of(cls, text: str) -> Place:
        """``name@revision``, unless a folder has that very name.

        >>> Place.of("org/model@step-100")
        Place(source='org/model', revision='step-100')
        """
        path = Path(text).expanduser()
        if path.exists():
            return cls(str(path))
        name, at, revision = text.rpartition("@")
        return cls(name, revision) if at and name and revision else cls(text)

    @property
    def folder(self) -> Path | None:
        """The folder, where it is one."""
        return Path(self.source) if Path(self.source).is_dir() else None

    @property
    def gone(self) -> bool:
        """Whether it can only be a folder and is not there."""
        local = self.source.startswith((".", "/", "~")) or self.source.count("/") > 1 or "\\" in self.source
        return local and self.folder is None

    def file(self, name: str) -> Path | None:
        """One of its files, from the Hub or its cache where need be; None when there is none."""
        if self.folder is not None:
            return self.folder / name if (self.folder / name).is_file() else None
        if self.gone:
            return None
        try:
            found = cached_file(self.source, name, revision=self.revision, _raise_exceptions_for_missing_entries=False)
        except OSError:  # no network, no such model
            return None
        return Path(found) if found else None

    def fingerprint(self) -> str | None:
        """The bytes of a folder's files, or the commit on the Hub; None where there is nothing to be had."""
        if self.folder is not None:
            sha = hashlib.sha256()
            for path in sorted(self.folder.iterdir()):
                if path.name.endswith(_READ) and path.name not in _NOT_READ:
                    with path.open("rb") as opened:
                        sha.update(f"{path.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
            return sha.hexdigest()[:16]
        known = self.file("config.json") or self.file(ADAPTER)
        return None if known is None else extract_commit_hash(str(known), None)


def adapter_on(checkpoint: Checkpoint) -> str:
    """What an adapter is to be put on, as it is written; empty where the checkpoint is no adapter.

    Raises:
        ConfigError: An adapter that does not say.
    """
    found = Place.of(checkpoint.source).file(ADAPTER)
    if found is None or checkpoint.on:
        return checkpoint.on
    try:
        base = json.loads(found.read_text("utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{found} cannot be read ({error}).") from error
    if not base:
        raise ConfigError(f"The adapter {checkpoint.source} does not say what it belongs to: write it under 'on'.")
    return str(base)


def parts_of(checkpoint: Checkpoint, lineage: Lineage) -> Iterator[Place]:
    """Everything the checkpoint is made of: its own folder first, then what an adapter is put on."""
    yield Place.of(checkpoint.source)
    seen = {checkpoint.source}
    below = adapter_on(checkpoint)
    while below:
        if below in seen:
            raise ConfigError(f"The adapter {checkpoint.source} is put on itself (through {below!r}).")
        seen.add(below)
        under = _under(below, lineage)
        yield Place.of(under.source)
        below = adapter_on(under)


def _under(name: str, lineage: Lineage) -> Checkpoint:
    return lineage.named(name) if name in lineage.names else Checkpoint(name, name)


def fingerprint(checkpoint: Checkpoint, lineage: Lineage) -> list[str] | None:
    """Of all parts; None where one of them is not there."""
    found = [place.fingerprint() for place in parts_of(checkpoint, lineage)]
    if checkpoint.tokenizer:
        found.append(Place.of(checkpoint.tokenizer).fingerprint())
    known = [one for one in found if one is not None]
    return known if len(known) == len(found) else None


def load_model(checkpoint: Checkpoint, lineage: Lineage, *, dtype: Any, device: torch.device) -> Any:
    """The model, ready to generate.

    Raises:
        ConfigError: There is none; the message says what was looked for.
    """
    place, below = Place.of(checkpoint.source), adapter_on(checkpoint)
    if place.gone:
        raise ConfigError(f"There is no folder {place.source}.")
    if not below:
        where = {"device_map": {"": device}} if device.type != "cpu" else {}
        try:
            model = AutoModelForCausalLM.from_pretrained(
                place.source, revision=place.revision or "main", dtype=dtype, **where
            )
        except (OSError, ValueError) as error:
            what = "holds no model" if place.folder else "is neither a folder nor a model that can be had from the Hub"
            raise ConfigError(f"{place.source} {what}: {' '.join(str(error).split())[:300]}") from error
        return model.eval()
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingDependency("Adapters need PEFT: pip install peft") from error
    base = load_model(_under(below, lineage), lineage, dtype=dtype, device=device)
    if isinstance(base, PeftModel):
        base = base.merge_and_unload()
    model = PeftModel.from_pretrained(base, place.source, revision=place.revision)
    return model.to(device).eval()


def load_tokenizer(checkpoint: Checkpoint, lineage: Lineage) -> tuple[Any, str]:
    """The tokenizer and, where it is not the checkpoint's own, a sentence about whose it is.

    Raises:
        ConfigError: Neither the checkpoint nor what it came from has one.
    """
    if checkpoint.tokenizer:
        place = Place.of(checkpoint.tokenizer)
        try:
            return _tokenizer(place), ""
        except _MISSING as error:
            raise ConfigError(f"{place.source} holds no tokenizer: {' '.join(str(error).split())[:200]}") from error
    tried = dict.fromkeys([*parts_of(checkpoint, lineage), Place.of(lineage.base.source)])
    if lineage.base.tokenizer:
        tried[Place.of(lineage.base.tokenizer)] = None
    for i, place in enumerate(tried):
        try:
            found = _tokenizer(place)
        except _MISSING:
            continue
        return found, "" if i == 0 else f"it has no tokenizer; that of {place.source} is used"
    if _nothing(first := Place.of(checkpoint.source)):
        raise ConfigError(f"{first.source} is neither a folder nor a model that can be had from the Hub.")
    raise ConfigError(
        f"No tokenizer in {', '.join(place.source for place in tried)}: write a folder or Hub name under 'tokenizer'."
    )


def _nothing(place: Place) -> bool:
    return place.folder is None and place.file("config.json") is None and place.file(ADAPTER) is None


def _tokenizer(place: Place) -> Any:
    if place.gone:
        raise OSError("there is no such folder")
    return AutoTokenizer.from_pretrained(place.source, revision=place.revision or "main")


def this_device(*, several: bool) -> torch.device:
    """The accelerator of this process, or the CPU."""
    if several:
        from accelerate import PartialState

        return torch.device(PartialState().device)
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return torch.device("cpu")
