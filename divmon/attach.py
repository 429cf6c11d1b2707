"""watch(trainer): attach everything a trainer offers, in one line.

The module is not called watch: `divmon.watch` is the function, and a sub-module of that name would hide it.
"""

from __future__ import annotations

from typing import Any, Unpack

from divmon.callback import DiversityCallback
from divmon.config import SettingsKwargs


def watch(trainer: Any, probes: Any = None, **settings: Unpack[SettingsKwargs]) -> DiversityCallback:
    """Watch `trainer`: the same as passing ``callbacks=[DiversityCallback(...)]``, with errors raised right here.

    Args:
        trainer: A `transformers.Trainer` or any TRL trainer, before ``train()``.
        probes: Prompts, in any form `divmon.ProbeSet.of` takes; None takes 32 from the trainer's own data.
        **settings: See `divmon.Settings`.

    Returns:
        The callback that was added.

    Raises:
        ConfigError: A setting that cannot work, a model that cannot generate, a trainer without a tokenizer.
    """
    callback = DiversityCallback(probes, **settings)
    callback.attach(trainer)
    trainer.add_callback(callback)
    return callback
