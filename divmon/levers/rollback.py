"""The action `rollback`: weights, optimizer and scheduler of a trainer, kept while healthy and put back in place."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch

from divmon.alarms import Rule
from divmon.errors import ConfigError, DivmonError
from divmon.health import Health
from divmon.levers.healthy import HealthyCheckpoints
from divmon.mitigations.rollback import RollbackBook
from divmon.mitigations.settings import RollbackSettings
from divmon.records import Action, LeverEvent

log = logging.getLogger("divmon")
T = TypeVar("T")
FOLLOWERS = ("SyncRefModelCallback", "BEMACallback")  # callbacks that keep a moving copy of the policy
RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # what schedulers keep in parameter groups


class Group(Protocol):
    """The ranks of a run; see `divmon.samplers.ranks.Ranks`."""

    def gather(self, item: T) -> list[T]:
        """Every rank's `item`."""

    def broadcast(self, item: T) -> T:
        """Rank 0's `item`."""


class Rollback:
    """Keeps healthy policies of a run, and goes back to the newest one when an alarm asks.

    Restored, bit for bit: the weights that training changes (an adapter's, with PEFT) and persistent buffers, the
    optimizer's state, the scheduler, and the gradient scaler of fp16. Not restored: the step, the data (training goes
    on with rows it has not seen), and the random streams. The schedule therefore goes on from where it stood at the
    checkpoint, with the learning rate multiplied, and is that many steps behind at the end.

    Args:
        trainer: A trainer that `check` has passed.
        settings: How often, how much.
        folder: For the checkpoints.
        ranks: Every rank reads; who writes is the trainer's own choice (``args.should_save``).
        health: Where failures are counted.
        rules: Those that ask for it.

    Attributes:
        book: Where it stands, the same on every rank.
        moment: When evaluations take place: "now" (between steps), "later" (inside an evaluation of the trainer's,
            whose numbers are of the weights as they are), "end" (after the last step).
        due: Whether it was asked for and is to be carried out when the next step begins.
        stops: Whether training is to stop.
    """

    def __init__(
        self,
        trainer: Any,
        settings: RollbackSettings,
        folder: Path,
        *,
        ranks: Group,
        health: Health,
        rules: tuple[Rule, ...] = (),
    ) -> None:
        self.trainer, self.settings, self.ranks, self.health = trainer, settings, ranks, health
        self.files = HealthyCheckpoints(folder)
        self.book = RollbackBook(settings, rules)
        self.moment: Literal["now", "later", "end"] = "now"
        self.due = self.stops = False
        self._read_back = False  # whether anything that was written could be read

    @staticmethod
    def check(trainer: Any, settings: RollbackSettings) -> None:
        """Refuse, before the first step, a trainer that could not be taken back.

        Raises:
            ConfigError: With the reason.
        """
        for name in ("deepspeed", "fsdp"):
            if getattr(trainer, f"is_{name}_enabled", False):
                raise ConfigError(
                    f"rollback puts weights and optimizer back in place, and {name} shards them over ranks. Use save "
                    "and go back by hand, or train with DDP."
                )
        if any(hasattr(p, "device_mesh") for p in trainer.model.parameters()):
            raise ConfigError("rollback cannot put back parameters that are sharded over devices (DTensor).")
        for callback in trainer.callback_handler.callbacks:
            if any(kind.__name__ in FOLLOWERS for kind in type(callback).__mro__):
                raise ConfigError(
                    f"rollback would leave the copy of the policy that {type(callback).__name__} keeps (a moving "
                    "reference model or average) as it is, made of the weights it goes back from. Turn one of the two "
                    "off (sync_ref_model=False)."
                )
        if settings.finish and getattr(trainer.args, "load_best_model_at_end", False):
            raise ConfigError(
                "rollback with finish: true would have no effect: load_best_model_at_end=True loads another checkpoint "
                "at the end. Turn one of the two off."
            )

    def after(
        self, step: int, *, actions: Iterable[Action], states: Mapping[str, str], values: Mapping[str, float]
    ) -> tuple[LeverEvent, ...]:
        """Take in an evaluation: keep the policy if it is healthy, go back if an alarm asks. Every rank is here."""
        if not states:
            return ()  # nothing was evaluated
        self.book.restored = None  # this evaluation has recorded it
        ill = self.book.illness(states, values)
        what, event = self.book.ask(step, actions=actions, states=states)
        told = [event] if event is not None else []
        if what == "stop":
            self.stops = True
        elif what == "go" and self.moment == "end" and not self.settings.finish:
            told.append(self.book.refused(step, "Training is over; the weights stay as they are."))
        elif what == "go" and self.moment == "later" and not self.settings.finish:
            self.due = True
        elif what == "go":
            told += self.carry_out(step)
        elif ill is None and self.moment != "end":
            told += self._keep(step)
        return tuple(told)

    def carry_out(self, step: int) -> list[LeverEvent]:
        """Go back to the newest healthy checkpoint that every rank can read."""
        self.due = False
        told: list[LeverEvent] = []
        while self.book.healthy:
            target = self.book.healthy[-1]
            saved, problem = self._read(target)
            if why := self._first(problem):
                self.book.healthy.remove(target)
                why = f"The healthy checkpoint of step {target} cannot be used: {why}."
                told.append(self.book.event(step, "failed", why))
                continue
            if why := self._put_back(saved):
                return [*told, self.book.refused(step, f"Putting the checkpoint of step {target} back failed: {why}.")]
            before = int(saved["count"])
            told.append(self.book.went(step, to=target))
            if not self.settings.finish:
                slow_down(self.trainer, self.settings.factor ** (self.book.count - before))
            self.stops = self.stops or self.settings.finish
            return told
        return [*told, self.book.refused(step, "No healthy checkpoint is left to go back to.")]

    def state(self) -> dict[str, Any]:
        """What must survive a resume, in plain JSON types."""
        return {**self.book.to_json(), "rates": rates(self.trainer)}

    def restore(self, saved: Mapping[str, Any], step: int) -> None:
        """Go on from `state` in a run that resumes at `step`.

        Checkpoints of evaluations after it are of a branch that was given up. Where the trainer's checkpoint was
        healthy itself and its own is gone, it is kept again. A learning rate that was lowered and is not (the
        scheduler was not saved) is lowered again.
        """
        self.book.restore(saved)
        wanted, here = self.book.healthy, self.files.steps
        self.book.healthy = self.ranks.broadcast([s for s in wanted if s in here])
        if step in wanted and step not in self.book.healthy:
            self._keep(step)
        lower, now = saved.get("rates", []), rates(self.trainer)
        if self.book.count and len(lower) == len(now) and lower and now[0] > 0 and lower[0] < now[0] * (1 - 1e-9):
            log.warning("divmon: the learning rate that a rollback has lowered was not resumed; it is lowered again")
            slow_down(self.trainer, lower[0] / now[0])

    def _keep(self, step: int) -> list[LeverEvent]:
        problem = self._attempt(lambda: self._write(step)) if self.trainer.args.should_save else None
        if why := self._first(problem):
            left = f"the one of step {self.book.healthy[-1]} stays" if self.book.healthy else "there is none yet"
            return [self.book.event(step, "failed", f"This healthy policy could not be kept ({why}); {left}.")]
        gone = self.book.kept(step)
        if self.trainer.args.should_save:
            stale = [s for s in self.files.steps if s not in self.book.healthy]  # of branches given up, too
            self._attempt(lambda: self.files.remove(*gone, *stale))
        return []

    def _write(self, step: int) -> None:
        self.files.write(step, {"count": self.book.count, **capture(self.trainer)})
        if not self._read_back:  # an optimizer may keep what torch does not load without unpickling
            try:
                self.files.read(step)
            except DivmonError:
                self.files.remove(step)
                raise
            self._read_back = True

    def _read(self, step: int) -> tuple[dict[str, Any], str | None]:
        found: dict[str, Any] = {}

        def read() -> None:
            found.update(self.files.read(step))
            compare(self.trainer, found)

        return found, self._attempt(read)

    def _put_back(self, saved: Mapping[str, Any]) -> str | None:
        """Why it failed on some rank; the trainer is then as before. What can fail is done first."""
        trainer = self.trainer
        before = trainer.optimizer.state_dict(), copy.deepcopy(trainer.lr_scheduler.state_dict())

        def put_back() -> None:
            trainer.optimizer.load_state_dict(saved["optimizer"])
            trainer.lr_scheduler.load_state_dict(saved["scheduler"])

        why = self._first(self._attempt(put_back))
        if why is not None:
            trainer.optimizer.load_state_dict(before[0])
            trainer.lr_scheduler.load_state_dict(before[1])
            return why
        with torch.no_grad():
            for name, tensor in changing(trainer.model).items():
                tensor.copy_(saved["weights"][name])
        scaler = getattr(trainer.accelerator, "scaler", None)
        if scaler is not None and saved["scaler"]:
            scaler.load_state_dict(saved["scaler"])
        forget_rollouts(trainer)
        return None

    def _attempt(self, task: Any) -> str | None:
        """Run `task`; what went wrong, in one line, counted and reported."""
        try:
            task()
        except Exception as error:
            lines = str(error).splitlines() or [""]
            return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")
        return None

    def _first(self, problem: str | None) -> str | None:
        """The first problem of any rank, the same on every rank; each rank counts its own."""
        found = [text for text in self.ranks.gather(problem) if text is not None]
        if problem is not None:
            self.health.failed("mitigation", "rollback", problem)
        return found[0] if found else None


def changing(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of `model` that training changes: parameters with a gradient, and buffers that are part of its state.

    Each once, by name, and as they are: writing into them writes into the model.
    """
    found = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                found[name] = buffer.detach()
    return found


def capture(trainer: Any) -> dict[str, Any]:
    """Everything that `Rollback` puts back."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    return {
        "weights": changing(trainer.model),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else {},
    }


def compare(trainer: Any, saved: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        DivmonError: Names, shapes or types of the weights differ.
    """
    here = {name: (tensor.shape, tensor.dtype) for name, tensor in changing(trainer.model).items()}
    there = {name: (tensor.shape, tensor.dtype) for name, tensor in saved["weights"].items()}
    if here != there:
        names = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        raise DivmonError(f"its weights are not those that are trained now ({len(names)} differ, such as {names[0]})")


def forget_rollouts(trainer: Any) -> None:
    """Let GRPO and RLOO draw anew: what they have buffered comes from the weights that are gone."""
    if hasattr(trainer, "_buffered_inputs"):
        trainer._buffered_inputs = None
    if hasattr(trainer, "_last_loaded_step"):
        trainer._last_loaded_step = -1  # vLLM takes the weights anew


def slow_down(trainer: Any, factor: float) -> None:
    """Multiply the learning rate, now and for the rest of the schedule.

    A scheduler computes the rate of the next step from its base rates; a change of the optimizer's alone would be
    overwritten.
    """
    for scheduler in _schedulers(trainer.lr_scheduler):
        for name in ("base_lrs", "_last_lr"):
            if isinstance(getattr(scheduler, name, None), list):
                setattr(scheduler, name, [rate * factor for rate in getattr(scheduler, name)])
    for group in trainer.optimizer.param_groups:
        group.update({name: group[name] * factor for name in RATES if name in group})


def rates(trainer: Any) -> list[float]:
    """The base rates of the schedule, without which the rate of no later step is known."""
    return [float(rate) for s in _schedulers(trainer.lr_scheduler) for rate in getattr(s, "base_lrs", None) or ()]


def _schedulers(scheduler: Any) -> list[Any]:
    """`scheduler` with those inside it."""
    inner = getattr(scheduler, "scheduler", None)  # accelerate's wrapper
    if inner is not None:
        return _schedulers(inner)
    parts = getattr(scheduler, "_schedulers", None) or ()
    return [scheduler, *(deeper for part in parts for deeper in _schedulers(part))]
