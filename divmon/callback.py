"""DiversityCallback: the one line a user adds to a trainer."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from typing import Any, Literal, Unpack

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from divmon import compat
from divmon.config import plan
from divmon.errors import ConfigError
from divmon.health import Health
from divmon.levers.board import Board, check_levers
from divmon.levers.rollback import Rollback
from divmon.mending import start_resampling
from divmon.opening import foretell, rejoin, run_folder, saved_state, start
from divmon.records import LEVERS, ROLLBACK, Action, LeverEvent, Observation
from divmon.resampling import rows
from divmon.resampling.inrun import InRun
from divmon.samplers.guard import same_streams
from divmon.samplers.ranks import Ranks
from divmon.session import Session
from divmon.settings import Settings, SettingsKwargs

log = logging.getLogger("divmon")


class DiversityCallback(TrainerCallback):  # type: ignore[misc]
    """Watch the diversity of what the policy writes while it is trained.

    At step 0 and every few steps it samples the live policy on fixed prompts, measures the completions, draws the
    curves, and raises alarms. Training is left bitwise undisturbed. Whatever fails inside is counted and skipped.

    Args:
        probes: Prompts, in any form `divmon.ProbeSet.of` takes, or `Settings` (from a file, say); None takes 32 prompts
            from the trainer's own data.
        **settings: See `divmon.Settings`.

    Raises:
        ConfigError: A setting that cannot work; at construction, or when training starts if only the trainer shows it.

    >>> DiversityCallback(every=10, k=4).plan.settings.every
    10
    """

    def __init__(self, probes: Any = None, **settings: Unpack[SettingsKwargs]) -> None:
        given = vars(probes) if isinstance(probes, Settings) else {"probes": probes}
        self.plan = plan(Settings.make({**given, **settings}))
        self.trainer: Any = None
        self.session: Session | None = None
        self.board: Board | None = None  # levers that rules ask for
        self.resampling: InRun | None = None  # one of them, which works at evaluations too
        self.catches_stop = False  # whether somebody around train() catches StopTraining
        self._asked: set[str] = set()  # "save", until a checkpoint is written, and "stop"
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
        self._close()  # what a train() that was interrupted has left
        self.trainer = compat.find_trainer() or self.trainer
        if self.trainer is None:
            raise ConfigError("divmon found no trainer around this callback. Use divmon.watch(trainer, ...) instead.")
        self._check(args)
        self._asked, session = set(), None
        self._boundary.opening = True
        with self._boundary.shield("monitor", "start"), same_streams():
            session = start(
                self.plan, self.trainer, model=kwargs["model"], processing_class=kwargs.get("processing_class")
            )
        ranks = Ranks(args.process_index, args.world_size)
        if not all(ranks.gather(session is not None)) or session is None:
            return  # all or none: a rank that never joins would hang the others
        session.last_step = ranks.broadcast(session.last_step)
        self.session = session
        with self._boundary.shield("monitor", "start"), same_streams():
            self._raise_board(session, state, kwargs)
            self._raise_rollback(session, args, state)
            if session.last_step < 0:  # a resumed run has its baseline, and its cadence
                self._evaluate(state)
                foretell(session, steps=state.max_steps)
                session.begin(state.global_step)
            else:
                rejoin(session, state)
        self._boundary.opening = session.health.opening = False

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Go back where an evaluation inside the trainer's own has asked for it."""
        session = self.session
        if session is None or session.rollback is None or not session.rollback.due:
            return
        with self._boundary.shield("mitigation", "rollback"), same_streams(), session.health.timed():
            session.note(*session.rollback.carry_out(int(state.global_step)))
            session.take_back()
            saved_state(state)[ROLLBACK] = session.rollback.state()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate when due, and do what a firing alarm asks for."""
        if self.session is None:
            return
        wakes = self.session.wakes(state.global_step)
        if not wakes and self.session.rollouts is None and self.board is None:
            self._apply(args, control)
            return
        spent = self.session.health.timed() if wakes else contextlib.nullcontext()
        with self._boundary.shield("monitor", "step"), spent, same_streams():
            if self.session.rollouts is not None:
                self.session.rollouts.evaluate()
            if self.board is not None:
                self.board.tick()
            self._take(self.session.score(state.global_step))
            if self.session.due(state.global_step):
                self._evaluate(state)
            if self.board is not None:
                saved_state(state)["levers"] = self.board.state()
            if wakes and self.session.pacer is not None:
                saved_state(state)["schedule"] = self.session.pacer.state()
        self._apply(args, control)  # also what the baseline asked for: flags set then are cleared when a step begins

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """Add ``eval_divmon/<domain>/<metric>``, so that `metric_for_best_model` and early stopping can use them.

        What could not be measured is left out; only where the best model is chosen by it, it is the worst value.
        """
        if self.session is None or metrics is None:
            return
        with self._boundary.shield("monitor", "evaluate"), same_streams():
            if self.session.spare(state.global_step):
                self._evaluate(state, "later")
                if self.session.pacer is not None:  # a checkpoint of this step may follow
                    saved_state(state)["schedule"] = self.session.pacer.state()
        known = {**self.session.latest, **self.session.scored}
        latest = {f"eval_divmon/{key}": value for key, value in known.items()}
        metrics.update({key: value for key, value in latest.items() if math.isfinite(value)})
        best = f"eval_{(args.metric_for_best_model or '').removeprefix('eval_')}"
        if best not in metrics and best.startswith("eval_divmon/") and (best in latest or not latest):
            metrics[best] = -math.inf if args.greater_is_better else math.inf
        if args.save_strategy != "best":  # there, the trainer decides after this whether to save: the next step asks
            self._apply(args, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End a loop that ignores the stop flag, now that its checkpoint is written."""
        self._asked.discard("save")
        if "stop" in self._asked and self.session is not None and compat.own_loop(self.trainer):
            raise compat.StopTraining

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate the final policy, if it was not, and close the sinks."""
        if self.session is None:
            return
        with self._boundary.shield("monitor", "end"), same_streams():
            if self.session.spare(state.global_step):
                if self.session.rollback is not None:
                    self.session.rollback.moment = "end"
                self.session.evaluate(state.global_step)
        self._close()

    def _evaluate(self, state: TrainerState, moment: Literal["now", "later"] = "now") -> None:
        """Evaluate, remember what alarms ask for, and set the levers. Every rank is here."""
        session, board = self.session, self.board
        if session is None:
            return
        if session.rollback is not None:
            session.rollback.moment = moment
        step = int(state.global_step)
        idle = board.idle(session.ranks.gather(board.verdicts())) if board is not None and board.waiting else []
        self._take(session.evaluate(step))
        if session.rollback is not None:
            saved_state(state)[ROLLBACK] = session.rollback.state()
            self._asked |= {"save", "stop"} if session.rollback.stops else set()
        if board is None or session.book is None:
            return
        for name in idle:
            log.warning("divmon: the lever %s was applied and had no effect on this trainer; it is taken off", name)
            session.note(session.book.refuse(name, step, "It was applied and had no effect on this trainer."))
        board.apply(session.book)
        saved_state(state)["book"] = session.book.to_json()

    def _raise_board(self, session: Session, state: TrainerState, found: Mapping[str, Any]) -> None:
        """Put the levers in place, as they stood where the run resumes."""
        if session.book is None:
            return
        lenses = self.plan.lenses
        self.resampling = start_resampling(self.plan, self.trainer, session, found)
        self.board = Board(
            self.trainer,
            self.plan.levers,
            health=session.health,
            correct_at=lenses.correct_at,
            classifier=lenses.classifier,
            more={} if self.resampling is None else {"resample": self.resampling},
        )
        session.act = self._act
        if state.global_step > 0:
            self.board.restore(saved_state(state).get("levers", {}))
        self.board.apply(session.book)

    def _raise_rollback(self, session: Session, args: TrainingArguments, state: TrainerState) -> None:
        """Make ready what goes back to healthy policies, as it stood where the run resumes."""
        if self.plan.rollback is None:
            return
        folder = run_folder(self.plan, args) / "healthy"
        asking = tuple(rule for rule in self.plan.rules if ROLLBACK in rule.actions)
        session.rollback = Rollback(
            self.trainer, self.plan.rollback, folder, ranks=session.ranks, health=session.health, rules=asking
        )
        if state.global_step > 0:
            session.rollback.restore(saved_state(state).get(ROLLBACK, {}), int(state.global_step))
            session.take_back()

    def _act(self, observation: Observation) -> tuple[LeverEvent, ...]:
        """Set the levers, and let the one that works at evaluations do so, unless no batch is left to serve."""
        session, board, resampling = self.session, self.board, self.resampling
        if session is None or session.book is None or board is None:
            return ()
        board.apply(session.book)
        if resampling is None or observation.step >= self.trainer.state.max_steps:
            return ()
        found = resampling.evaluate(observation, session.book.levers["resample"])
        return () if found is None else (found,)

    def _close(self) -> None:
        session, self.session = self.session, None
        board, self.board, self.resampling = self.board, None, None
        if board is not None:
            board.detach()
        if session is not None:
            with self._boundary.shield("monitor", "end"), same_streams():
                session.close()

    def _check(self, args: TrainingArguments) -> None:
        """Refuse, before the first step, what only shows when training starts."""
        check_levers(self.plan.levers, self.trainer, {"resample": rows.check})
        going_back = self.plan.rollback
        if going_back is not None:
            Rollback.check(self.trainer, going_back)
        wants_stop = any("stop" in rule.actions for rule in (*self.plan.rules, *self.plan.score_rules))
        wants_stop |= going_back is not None and going_back.stops
        if wants_stop and compat.own_loop(self.trainer) and not self.catches_stop:
            raise ConfigError(
                f"{type(self.trainer).__name__} ignores the stop flag of callbacks. Use divmon.watch(trainer, ...) "
                "before trainer.train() instead of callbacks=[...], or remove 'stop' from the alarms."
            )
        watching = [c for c in self.trainer.callback_handler.callbacks if isinstance(c, DiversityCallback)]
        folder = run_folder(self.plan, args)
        if sum(run_folder(callback.plan, args) == folder for callback in watching) > 1:
            raise ConfigError(
                f"Two DiversityCallbacks of this trainer record in {folder}. Keep one (divmon.watch adds one of its "
                "own), or give each a run_dir=."
            )

    def _take(self, actions: tuple[Action, ...]) -> None:
        """Remember what alarms ask for."""
        for action in actions:
            if action.kind in ("save", "stop"):
                self._asked.add("save")  # a stop without a checkpoint would lose the run
            if action.kind == "stop":
                self._asked.add("stop")
            ready = {*self.plan.levers, *([ROLLBACK] if self.plan.rollback is not None else [])}
            if action.kind in (ROLLBACK, *LEVERS) and action.kind not in ready:  # a function has asked for it
                why = f"no alarm lists {action.kind} in `then`, so it was not made ready before training"
                self._boundary.failed("mitigation", action.kind, why)
            if action.kind == "stop" and self.session is not None and self.session.ranks.main:
                log.warning("divmon stops training: the alarm %r fired; the checkpoint is saved first", action.alarm)

    def _apply(self, args: TrainingArguments, control: TrainerControl) -> None:
        """The only place where anything is asked of the trainer."""
        if "save" in self._asked:
            control.should_save = True
            if args.save_strategy == "best":  # an evaluation would overrule that
                control.should_evaluate = False
        if "stop" in self._asked:
            control.should_training_stop = True
