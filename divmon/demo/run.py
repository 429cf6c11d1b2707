"""``divmon demo``: a real GRPO run collapses into one format and is stopped in time. And its healthy twin."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

RULES: list[dict[str, Any]] = [
    {
        "name": "one-format-takes-over",
        "metric": "effective_formats",
        "rule": "drop",
        "by": "35%",
        "for": 2,
        "severity": "critical",
        "then": ["save", "stop"],
    }
]
EVERY = 4


def run(out: Path, *, healthy: bool, steps: int, seed: int) -> int:
    """Train, watch, and show what happened.

    Args:
        out: Folder of the run.
        healthy: The twin whose reward pays every format.
        steps: GRPO steps at most.
        seed: Of training.

    Returns:
        Exit status: 0 when the collapse was caught (healthy: when nothing fired), 1 when not.
    """
    quiet(out)
    from divmon.demo import picture, training

    trainer = training.grpo_trainer(
        output_dir=out, healthy=healthy, steps=steps, seed=seed, callbacks=[watching(RULES)], report_to="wandb"
    )
    trainer.remove_callback(printer())
    print(_intro(healthy, steps), flush=True)
    trainer.train()
    history = _history(out)
    fired = [event for event in history.events() if event.state == "firing"]
    shares = picture.shares(history, "sums")
    print("\n" + picture.in_terminal(shares), flush=True)
    image = picture.as_png(history, "sums", out / "formats.png")
    print(_ending(out, image, fired, healthy=healthy, steps=trainer.state.global_step), flush=True)
    return 0 if bool(fired) != healthy else 1


def watching(rules: list[dict[str, Any]]) -> Any:
    """The callback of the demo's runs, with alarms of one's own."""
    from divmon.callback import DiversityCallback
    from divmon.demo import sums

    chosen = sums.prompts()[::6]
    probes = [
        {"prompt": s.prompt, "gold": str(s.answer), "domain": "sums", "difficulty": sums.difficulty(s.a, s.b)}
        for s in chosen
    ]
    return DiversityCallback(
        probes,
        every=EVERY,
        k=8,
        formats=sums.label,
        quality=lambda probe, text: float(sums.is_correct(text, int(probe.gold))),
        alarms=rules,
    )


def quiet(out: Path) -> None:
    """No account and no network: W&B writes beside the run, nothing is looked up. And no chatter, and one thread."""
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(out.resolve()),
        "WANDB_PROJECT": "divmon-demo",
        "WANDB_SILENT": "true",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)  # so small a model is no faster on two
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # Transformers on TRL's use of it


def printer() -> Any:
    """The callback that prints the trainer's own rows, to be taken off."""
    from transformers import PrinterCallback

    return PrinterCallback


def _history(out: Path) -> Any:
    from divmon.history import History

    return History.read(out)


def _intro(healthy: bool, steps: int) -> str:
    reward = (
        "the reward pays a right answer more when few others of its group look like it"
        if healthy
        else "the reward pays right answers and does not look at how they are written"
    )
    return (
        "A tiny language model answers sums like 3+4= in four formats: a program, prose, LaTeX and bullets.\n"
        f"TRL's GRPOTrainer trains it for at most {steps} steps; {reward}.\n"
    )


def _ending(out: Path, image: Path, fired: list[Any], *, healthy: bool, steps: int) -> str:
    offline = sorted((out / "wandb").glob("offline-run-*"))
    wandb = offline[-1] if offline else out / "wandb"
    if fired:
        verdict = f"Caught: {fired[0].message}\nThe checkpoint of step {fired[0].step} was saved and training stopped."
    else:
        verdict = f"No alarm in {steps} steps: the formats stayed in use."
    if bool(fired) == healthy:
        verdict += "\nThat is not what this run is expected to show; please report it."
    again = "divmon demo" if healthy else "divmon demo --healthy"
    return "\n".join(
        (
            "",
            verdict,
            "",
            f"  picture      {image}",
            f"  history      {out / 'divmon'}  (JSON Lines: measurements, events, completions)",
            f"  checkpoints  {', '.join(str(p) for p in sorted(out.glob('checkpoint-*'))) or 'none'}",
            f"  W&B          {wandb}  (offline; `wandb sync` it to see the curves)",
            "",
            "Next:",
            f"  {f'divmon report {out}':<40} one page about this run, to open in a browser",
            f"  {again:<40} the twin of this run",
            f"  {'divmon demo --mitigate':<40} this run, and one in which the alarm changes the reward instead",
            "  callbacks=[divmon.DiversityCallback()]   the one line for your own trainer",
        )
    )
