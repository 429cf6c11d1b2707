"""Put the lever `resample` in place, in a run that is about to train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from divmon import compat
from divmon.config import Plan
from divmon.errors import ConfigError
from divmon.mitigations.inrun import InRunSettings
from divmon.resampling.critics import as_critic
from divmon.resampling.inrun import InRun, judged_by
from divmon.resampling.lineage import Lineage
from divmon.resampling.resampler import Resampler
from divmon.resampling.rows import columns_of
from divmon.resampling.serving import Serving
from divmon.resampling.writers import ModelWriter
from divmon.session import Session

CRITIQUE = 256  # tokens of a critique that the policy writes, at most
LINEAGE = "lineage.jsonl"  # beside the history


def start_resampling(plan: Plan, trainer: Any, session: Session, found: Mapping[str, Any]) -> InRun | None:
    """The lever `resample` of a session, standing in the data that the trainer's loader reads; None if no rule asks.

    Args:
        plan: Of the run.
        trainer: The trainer, which `divmon.resampling.rows.check` has passed.
        session: Of the run.
        found: What the trainer hands its callbacks: its loader, model and tokenizer.

    Raises:
        ConfigError: Nothing judges completions, or there is no such critic.
    """
    if "resample" not in plan.levers:
        return None
    given = cast(InRunSettings, plan.levers["resample"])
    settings = given if given.good is not None else replace(given, good=plan.settings.correct_at)
    if judged_by(plan.lenses.quality, session.probes) is None and settings.mode is None:
        raise ConfigError(
            "resample must know which completions are correct: pass quality=f(probe, completion), or probes with gold "
            "answers. Where nothing is right or wrong, set `mode` (for example {resample: {mode: combinational}})."
        )
    serving = Serving(trainer, columns_of(trainer), share=settings.share, health=session.health)
    resampler = None
    if session.ranks.main:
        with session.health.shield("mitigation", "resample"):
            resampler = _resampler(plan, settings, trainer, session, found)
    serving.attach(found.get("train_dataloader"))
    key = session.decoding.key
    return InRun(serving, session.probes, resampler=resampler, health=session.health, ranks=session.ranks, key=key)


def _resampler(
    plan: Plan, settings: InRunSettings, trainer: Any, session: Session, found: Mapping[str, Any]
) -> Resampler:
    """Who finds needy prompts and has them refined; only rank 0 has one."""
    tokenizer = compat.tokenizer_of(found.get("processing_class"))
    own: dict[str, Any] = {"chat_options": compat.chat_options(trainer), "batch_size": plan.settings.batch_size}
    policy = ModelWriter(found["model"], tokenizer, max_new_tokens=session.decoding.max_new_tokens, **own)
    longer = ModelWriter(found["model"], tokenizer, max_new_tokens=compat.completion_cap(trainer, CRITIQUE), **own)
    history, lineage = session.monitor.history, None
    if history is not None:
        lineage = Lineage(history.path / LINEAGE)
        if trainer.state.global_step > 0:
            with session.health.shield("disk", str(lineage.path)):
                lineage.rewind(trainer.state.global_step)
    return Resampler(
        plan.settings.writer or policy,
        as_critic(plan.critic, policy=longer),
        settings,
        quality=judged_by(plan.lenses.quality, session.probes),
        lineage=lineage,
        health=session.health,
    )
