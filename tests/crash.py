"""A training run that can be killed at any moment: started once, forked for each attempt (imports cost more than runs).

``python crash.py`` reads one output folder a line (after ``confirm`` and a space: with confirmed alarms), forks a
child that trains there (from the last whole checkpoint, if there is one), and prints the child's process id, then
``done`` when the child has finished by itself.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

STEPS = 10


def tiny() -> Any:
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def last_checkpoint(out: Path) -> str | None:
    """The newest checkpoint that was written to its end (the trainer's state is its last file).

    Not the one of the last step: resumed there, the trainer would take a step too many.
    """
    found = []
    for path in out.glob("checkpoint-*"):
        try:
            found.append((json.loads((path / "trainer_state.json").read_text())["global_step"], str(path)))
        except (OSError, ValueError, KeyError):
            continue
    found = [(step, path) for step, path in found if step < STEPS]
    return max(found)[1] if found else None


def train(module: Any, out: Path, *, confirm: bool) -> None:
    import divmon

    rules: list[dict[str, Any]] = [
        {"name": "moved", "metric": "token_entropy", "rule": "outside", "by": "0.5%", "for": 2},
        {"name": "long", "metric": "length", "rule": "rise", "by": 1e-6, "tolerate": 0, "severity": "critical"},
        {"name": "sure", "metric": "token_entropy", "rule": "drop", "by": "0.1%", "severity": "critical"},
    ]
    callback = divmon.DiversityCallback(
        every=2, k=3, max_new_tokens=8, sinks=[], alarms=rules if confirm else rules[:1], strict=True
    )
    trainer = module.sft(out, callbacks=[callback], max_steps=STEPS, save_strategy="steps", save_steps=1)
    trainer.train(resume_from_checkpoint=last_checkpoint(out))


def main() -> None:
    module = tiny()
    import torch

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            os.dup2(sys.stdout.fileno(), 1)
            os.dup2(sys.stdout.fileno(), 2)
            status = 1
            try:
                train(module, Path(line.strip().removeprefix("confirm ")), confirm=line.startswith("confirm "))
                status = 0
            finally:
                os._exit(status)
        print(child, time.time(), flush=True)
        _, status = os.waitpid(child, 0)
        print("done" if status == 0 else f"ended {status}", flush=True)


if __name__ == "__main__":
    main()
