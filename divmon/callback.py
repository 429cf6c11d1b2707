"""DiversityCallback: the one line a user adds to a trainer."""

from __future__ import annotations

import logging
from typing import Any, Unpack

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from divmon import compat
from divmon.config import Settings, SettingsKwargs, plan
from divmon.errors import ConfigError
from divmon.health import Health
from divmon.opening import start
from divmon.records import Action
from divmon.samplers.ranks import Ranks
from divmon.session import Session

log = logging.getLogger("divmon")


class DiversityCallback(TrainerCallback):  # type: ignore[misc]
    """Watch the diversity of what the policy writes while it is trained.

    At step 0 and every few steps it samples the live policy on fixed prompts, measures the completions, draws the
    curves, and raises alarms. Training is left bitwise undisturbed. Whatever fails inside is counted and skipped.

    Args:
        probes: Prompts, in any form `divmon.ProbeSet.of` takes; None takes 32 from the trainer's own data.
        **settings: See `divmon.Settings`.

    Raises:
        ConfigError: A setting that cannot work; at construction, or when training starts if only the trainer shows it.

    >>> DiversityCallback(every=10, k=4).plan.settings.every
    10
    """

    def __init__(self, probes: Any = None, **settings: Unpack[SettingsKwargs]) -> None:
        values = {"probes": probes, **settings}
        self.plan = plan(probes if isinstance(probes, Settings) and not settings else Settings.make(values))
        self.trainer: Any = None
        self.session: Session | None = None
        self.catches_stop = False  # whether somebody around train() catches StopTraining
        self._stopping = False
        self._boundary = Health(strict=self.plan.settings.strict)

    def attach(self, trainer: Any) -> None:
        """Name the trainer, and check now what can be checked before training.

        Raises:
            ConfigError: The model cannot generate, or there is no tokenizer.
        """
        self.trainer = trainer
        compat.policy_of(trainer.model)
        compat.tokenizer_of(getattr(trainer, "processing_class", None))

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check the model and tokenizer while the trainer is being made."""
        trainer = compat.find_trainer()
        if trainer is not None:
            self.attach(trainer)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the session and evaluate the baseline."""
        self.trainer = self.trainer or compat.find_trainer()
        if self.trainer is None:
            raise ConfigError("divmon found no trainer around this callback. Use divmon.watch(trainer, ...) instead.")
        wants_stop = any("stop" in rule.actions for rule in self.plan.rules)
        if wants_stop and compat.own_loop(self.trainer) and not self.catches_stop:
            raise ConfigError(
                f"{type(self.trainer).__name__} ignores the stop flag of callbacks. Use divmon.watch(trainer, ...) "
                "before trainer.train() instead of callbacks=[...], or remove 'stop' from the alarms."
            )
        self._stopping, session = False, None
        with self._boundary.shield("monitor", "start"):
            session = start(
                self.plan, self.trainer, model=kwargs["model"], processing_class=kwargs.get("processing_class")
            )
        ranks = Ranks(args.process_index, args.world_size)
        if not all(ranks.gather(session is not None)) or session is None:
            return  # all or none: a rank that never joins would hang the others
        session.last_step = ranks.broadcast(session.last_step)
        self.session = session
        with self._boundary.shield("monitor", "start"):
            if session.last_step < 0:  # a resumed run has its baseline, and its cadence
                self._apply(session.evaluate(state.global_step), control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate when due, and do what a firing alarm asks for."""
        if self.session is None:
            return
        with self._boundary.shield("monitor", "step"):
            if self.session.rollouts is not None:
                self.session.rollouts.evaluate()
            if self.session.due(state.global_step):
                self._apply(self.session.evaluate(state.global_step), control)
        if self._stopping:  # also when the baseline asked for it: the flag to save is cleared when a step begins
            control.should_save = control.should_training_stop = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """Add ``eval_divmon/<domain>/<metric>``, so that `metric_for_best_model` and early stopping can use them."""
        if self.session is None or metrics is None:
            return
        with self._boundary.shield("monitor", "evaluate"):
            if state.global_step > self.session.last_step:
                self._apply(self.session.evaluate(state.global_step), control)
            metrics.update({f"eval_divmon/{key}": value for key, value in self.session.latest.items()})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End a loop that ignores the stop flag, now that its checkpoint is written."""
        if self._stopping and self.session is not None and compat.own_loop(self.trainer):
            raise compat.StopTraining

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate the final policy, if it was not, and close the sinks."""
        if self.session is None:
            return
        with self._boundary.shield("monitor", "end"):
            if state.global_step > self.session.last_step:
                self.session.evaluate(state.global_step)
            self.session.close()
            self.session = None

    def _apply(self, actions: tuple[Action, ...], control: TrainerControl) -> None:
        """The only place where anything is asked of the trainer."""
        for action in actions:
            if action.kind in ("save", "stop"):
                control.should_save = True  # a stop without a checkpoint would lose the run
            if action.kind == "stop":
                control.should_training_stop = self._stopping = True
                if self.session is not None and self.session.ranks.main:
                    log.warning(
                        "divmon stops training: the alarm %r fired; the checkpoint is saved first", action.alarm
                    )
