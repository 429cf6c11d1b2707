"""watch(trainer): attach everything a trainer offers, in one line.

The module is not called watch: `divmon.watch` is the function, and a sub-module of that name would hide it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Unpack

from divmon.callback import DiversityCallback
from divmon.compat import StopTraining, own_loop
from divmon.settings import SettingsKwargs


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
    if own_loop(trainer):
        callback.catches_stop = True
        trainer.train = _stoppable(trainer)
    return callback


def _stoppable(trainer: Any) -> Callable[..., Any]:
    """`trainer.train` that returns cleanly, its callbacks told, when an alarm has stopped it."""
    train = trainer.train

    @functools.wraps(train)
    def stoppable(*args: Any, **kwargs: Any) -> Any:
        try:
            return train(*args, **kwargs)
        except StopTraining:
            handler = trainer.callback_handler
            trainer.control = handler.on_train_end(trainer.args, trainer.state, trainer.control)
            return None

    return stoppable
