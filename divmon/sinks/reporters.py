"""TensorBoard, MLflow and the trainer's other reporters: the short row, through their own callbacks.

Each reporter's ``on_log`` is called directly. `Trainer.log` would add the row to ``state.log_history``, let other
callbacks answer to it, and make the trainer skip its own row of that step.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from divmon.records import Observation
from divmon.sinks.base import choose, curves, metric_names
from divmon.sinks.samples import QUEUE

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Row:
    """A row for one reporter."""

    reporter: Any
    step: int
    values: dict[str, float]


class ReporterSink:
    """Hands each observation's curves to the reporters attached to `trainer`, on rank 0. They name them as the
    trainer's own (``train/divmon/...`` in TensorBoard).

    A reporter that is not set up yet gets its rows when it is. The final evaluation comes after the reporters have
    ended: TensorBoard takes it in a further event file of the same run; for others it is left out, which is said once,
    because they would open a second run for it.

    Args:
        trainer: The trainer; W&B and trackio, which have sinks of their own, are left out.
        metrics: Exactly these metrics become curves; see `divmon.sinks.base.choose` for the default.
    """

    name = "reporters"

    def __init__(self, trainer: Any, *, metrics: Sequence[str] | None = None) -> None:
        self._trainer = trainer
        self._metrics = metric_names(metrics)
        self._chosen: tuple[str, ...] = ()
        self._waiting: deque[_Row] = deque(maxlen=QUEUE)
        self._left_out: set[str] = set()

    def emit(self, observation: Observation) -> None:
        """Hand over one row."""
        self._chosen = choose(observation, metrics=self._metrics, keep=self._chosen)
        row = curves(observation, metrics=self._metrics, keep=self._chosen)
        for reporter in reporters(self._trainer) if row else ():
            if _ended(self._trainer) and not _reopens(reporter):
                self._leave_out(reporter, observation.step)
            else:
                self._waiting.append(_Row(reporter, observation.step, row))
        self._flush()

    def close(self) -> None:
        """Write what could only be written after the end, and leave no file open."""
        reopened = []
        while self._waiting:
            row = self._waiting.popleft()
            if _reopens(row.reporter):
                self._hand_over(row)
                reopened.append(row.reporter)
            else:
                self._leave_out(row.reporter, row.step)
        for reporter in dict.fromkeys(reopened):
            reporter.on_train_end(self._trainer.args, copy.copy(self._trainer.state), copy.copy(self._trainer.control))

    def _flush(self) -> None:
        """Hand over the rows of all reporters that are set up, oldest first. One that fails keeps no other from its."""
        rows, failure = list(self._waiting), None
        self._waiting.clear()
        for row in rows:
            if not _set_up(row.reporter):
                self._waiting.append(row)
                continue
            try:
                self._hand_over(row)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _hand_over(self, row: _Row) -> None:
        """Call the reporter with copies of what it must leave as it is."""
        trainer = self._trainer
        state = copy.copy(trainer.state)
        state.global_step = row.step
        row.reporter.on_log(
            trainer.args,
            state,
            copy.copy(trainer.control),
            logs=dict(row.values),
            model=trainer.model,
            processing_class=getattr(trainer, "processing_class", None),
        )

    def _leave_out(self, reporter: Any, step: int) -> None:
        name = type(reporter).__name__
        if name not in self._left_out:
            self._left_out.add(name)
            LOG.warning("%s had ended before step %d was evaluated, so that row is not in it.", name, step)


def reporters(trainer: Any) -> list[Any]:
    """The trainer's callbacks that send rows somewhere, without those of W&B and trackio."""
    from transformers import TrainerCallback
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    kinds = [kind for name, kind in INTEGRATION_TO_CALLBACK.items() if name not in ("wandb", "trackio")]
    found = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, tuple(kinds))]
    return [callback for callback in found if getattr(type(callback), "on_log", None) is not TrainerCallback.on_log]


def _set_up(reporter: Any) -> bool:
    """Whether it has begun: before, its rows would end up where the trainer's will not."""
    return bool(getattr(reporter, "_initialized", True)) and getattr(reporter, "tb_writer", reporter) is not None


def _reopens(reporter: Any) -> bool:
    """Whether it can take rows after it has ended: TensorBoard's, which still knows its directory then."""
    return hasattr(reporter, "tb_writer") and getattr(reporter, "logging_dir", None) is not None


def _ended(trainer: Any) -> bool:
    """Whether training is over: the trainer logs its run time just before callbacks hear of the end."""
    history = trainer.state.log_history
    return bool(history) and "train_runtime" in history[-1]
