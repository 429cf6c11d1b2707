"""From a trainer that is about to train to a session: which probes, which sinks, which history."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from divmon import compat, rollouts
from divmon import scores as scoring
from divmon.alarms import dump_rules
from divmon.alarms.planning import brief
from divmon.config import Plan, fit
from divmon.confirming import FACTOR, JOURNAL
from divmon.errors import ConfigError, DivmonError, ProbeError
from divmon.health import Health
from divmon.history import History
from divmon.mitigations import LeverBook
from divmon.monitor import Monitor
from divmon.pacing import Pacer
from divmon.plain import to_json
from divmon.probes import ProbeSet
from divmon.samplers.generate import GenerateSampler
from divmon.samplers.ranks import Ranks
from divmon.samplers.rewards import TrainerRewards
from divmon.samplers.score import Scorer, identify
from divmon.schedule import MOVED, Pace, in_plan
from divmon.session import Session
from divmon.settings import EVALUATIONS, LENGTH_CAP, OWN_DOMAIN, OWN_PROBES
from divmon.sinks import ConsoleSink, ReporterSink, Sink, TrackioSink, WandbSink
from divmon.sinks.reporters import reporters
from divmon.sinks.trackio import open_run

log = logging.getLogger("divmon")
FORETELL = 8.0  # seconds that may be spent before training on saying what alarms will find
STATE_KEY = "divmon"  # in TrainerState.stateful_callbacks; not a class name, so that nothing is re-instantiated


def start(plan: Plan, trainer: Any, *, model: Any, processing_class: Any) -> Session:
    """Make the session of a trainer that is about to train.

    Raises:
        ConfigError: The trainer, model or tokenizer cannot be watched like this; the message says what to change.
    """
    args, settings = trainer.args, plan.settings
    compat.refuse_sharding(trainer)
    if plan.probes is None:
        compat.refuse_images(trainer)
    sharded = compat.sharded(trainer)
    if sharded and "resample" in plan.levers:
        raise ConfigError("resample draws on one rank only, and sharded weights (FSDP2) need all. Train with DDP.")
    ranks = Ranks(args.process_index, args.world_size, together=sharded)
    health = Health(strict=settings.strict)
    tokenizer = compat.tokenizer_of(processing_class)
    probes = choose_probes(plan, trainer, tokenizer)
    plan = fit(plan, probes)
    decoding = settings.decoding(compat.completion_cap(trainer, LENGTH_CAP))
    sampler = GenerateSampler(
        model,
        tokenizer,
        settings.k,
        decoding,
        compat.chat_options(trainer),
        settings.batch_size,
        progress=ranks.main,
    )
    sampler.check(probes)
    rewards = TrainerRewards(trainer) if settings.quality == "rewards" else None
    if rewards is not None:
        rewards.check(probes)
    kept = settings.keep_logprobs
    monitor = Monitor(plan.metrics, rules=plan.rules, lenses=plan.lenses, health=health, keep_logprobs=kept)
    sinks = (*(default_sinks(trainer, plan) if plan.default_sinks else ()), *plan.sinks)
    every = settings.every or max(1, -(-int(trainer.state.max_steps) // EVALUATIONS))
    session = Session(probes, sampler, monitor, sinks, health, every, decoding, ranks, rewards)
    if settings.scores:
        pace(session, sampler, plan, trainer)
    twins = _twins(sinks, trainer)
    if plan.levers:
        session.book = LeverBook(plan.levers)
        if trainer.state.global_step > 0:
            session.book.restore(saved_state(trainer.state).get("book", {}))
    session.rollouts = rollouts.start(plan, trainer, ranks=ranks, health=health, sinks=twins, decode=tokenizer.decode)
    if settings.reasoning != "keep":
        opened = sampler.opened(probes)
        session.opened = opened if settings.reasoning == "strip" else ()
        if session.rollouts is not None:
            session.rollouts.inside = len(opened) == len(probes)  # the chat template does it, of rollouts too
    if session.ranks.main:
        path = run_folder(plan, args)
        _bring_along(session, path, trainer.state)
        _open_history(session, path, plan, trainer.state.global_step)
        step = trainer.state.global_step if session.last_step >= 0 else 0
        if session.rollouts is not None:
            rollouts.record(session.rollouts, path, step=step)
        if session.scores is not None and session.pacer is not None:
            session.scores.record(path, step=step)
            session.pacer.path = path
        _announce(session, plan, trainer)
    return session


def pace(session: Session, sampler: GenerateSampler, plan: Plan, trainer: Any) -> None:
    """Give `session` what scores the baseline, and what says when."""
    settings, ranks, health = plan.settings, session.ranks, session.health
    health.clock = scoring.clock_of(compat.policy_of(sampler.model).device.type)
    steps = max(1, int(trainer.state.max_steps))
    moved = MOVED if settings.moved is None else settings.moved
    session.pacer = Pacer(Pace(steps, settings.share, settings.score_every, moved, settings.every), ranks, health)
    session.scores = scoring.ScoreWatch(
        Scorer(sampler.model, sampler.tokenizer, settings.batch_size),
        plan.lenses,
        sampler.prompt_ids,
        identify(sampler.model, sampler.tokenizer),
        plan.score_rules,
        session.probes,
        _twins(session.sinks, trainer, metrics=scoring.CURVES, console=True),
        ranks,
        health,
    )


def rejoin(session: Session, state: Any) -> None:
    """A run that resumes has its bank, and goes on counting. Every rank is here."""
    if session.scores is not None and session.pacer is not None:
        session.scores.resume(session.probes.fingerprint)
        session.pacer.blind = session.scores.bank is None
        session.pacer.restore(saved_state(state).get("schedule", {}), state.global_step)


def foretell(session: Session, *, steps: int) -> None:
    """Say what the confirmed alarms will find in this run, now that the baseline has shown the noise."""
    if not session.ranks.main or not any(sink.name == "console" for sink in session.sinks):
        return
    with session.health.shield("monitor", "plan"), session.health.timed():
        try:
            foreseen = session.monitor.foresee(max(1, steps // session.every), within=FORETELL)
        except DivmonError as error:  # a run must start all the same
            why = str(error).rstrip(".")
            print(f"       what they will find is not foretold: {why}; see `divmon rules plan`", flush=True)
            return
        for line in brief(foreseen) if foreseen else ():
            print(f"       {line}", flush=True)


def run_folder(plan: Plan, args: Any) -> Path:
    """Where the history of a run with the trainer's arguments `args` goes."""
    return Path(plan.settings.run_dir or Path(args.output_dir) / "divmon").absolute()


def choose_probes(plan: Plan, trainer: Any, tokenizer: Any) -> ProbeSet:
    """The user's probes, else the trainer's own prompts, else the creative pack."""
    rows = getattr(trainer, "train_dataset", None)
    probes = plan.probes
    if probes is None:
        try:
            if rows is None:
                raise ProbeError("The trainer has no training data.")
            if not compat.rereadable(rows):
                raise ProbeError("It is a stream that may be readable only once.")
            prompts_only = compat.own_loop(trainer)  # PPO's rows hold nothing but tokenised prompts
            if prompts_only and "input_ids" in rows.column_names:
                rows = rows.rename_column("input_ids", "prompt_ids")
            return ProbeSet.from_rows(rows, domain=OWN_DOMAIN, limit=OWN_PROBES, decode=tokenizer.decode)
        except ProbeError as error:
            log.warning(
                "divmon: no prompts found in the training data (%s) The creative pack is probed instead.", error
            )
            probes = ProbeSet.of("creative", limit=OWN_PROBES)
    chat = plan.settings.chat
    return probes.as_chat() if (chat if chat is not None else compat.is_conversational(rows)) else probes


def default_sinks(trainer: Any, plan: Plan) -> tuple[Sink, ...]:
    """The console, and what the trainer reports to: W&B and trackio (also where a run is open), other reporters."""
    reports = trainer.args.report_to
    reports = reports if isinstance(reports, (list, tuple)) else [reports]
    wandb = sys.modules.get("wandb")
    sinks: list[Sink] = [ConsoleSink()]
    if "wandb" in reports or getattr(wandb, "run", None) is not None:
        sinks.append(WandbSink(classifier=plan.lenses.classifier))
    if "trackio" in reports or open_run() is not None:
        sinks.append(TrackioSink(classifier=plan.lenses.classifier))
    if reporters(trainer):
        sinks.append(ReporterSink(trainer))
    return tuple(sinks)


def _twins(
    sinks: Sequence[Sink], trainer: Any, *, metrics: Sequence[str] = rollouts.CURVES, console: bool = False
) -> list[Sink]:
    """Sinks for another series where there are trackers: of their own, since each keeps to the curves it began with."""
    chosen: dict[str, Callable[[], Sink]] = {
        "wandb": lambda: WandbSink(metrics=metrics, table_rows=0),
        "trackio": lambda: TrackioSink(metrics=metrics, table_rows=0),
        "reporters": lambda: ReporterSink(trainer, metrics=metrics),
    }
    if console:
        chosen["console"] = lambda: ConsoleSink(metrics=metrics, alerts=True)
    return [chosen[sink.name]() for sink in sinks if sink.name in chosen]


def saved_state(state: Any) -> dict[str, Any]:
    """What divmon keeps in every checkpoint: plain JSON in the trainer's own state, live (changes are saved)."""
    kept = getattr(state, "stateful_callbacks", None)
    mine: dict[str, Any] = kept.setdefault(STATE_KEY, {}) if isinstance(kept, dict) else {}
    return mine


def _bring_along(session: Session, path: Path, state: Any) -> None:
    """The history of a run that resumes in another output folder, found through the trainer's own saved state."""
    saved = saved_state(state)
    before = saved.get("run_dir")
    with session.health.shield("disk", str(path)):
        if state.global_step > 0 and before and not path.exists() and (Path(before) / "run.json").exists():
            shutil.copytree(before, path)
    saved.update(version=1, run_dir=str(path))


def _open_history(session: Session, path: Path, plan: Plan, step: int) -> None:
    """Continue the history on disk where the trainer resumes the run it belongs to; else start one."""
    if step > 0 and (path / "run.json").exists():
        with session.health.shield("disk", f"{path} (resume)"):
            _continue(session, path, plan, step)
    if session.monitor.history is None:  # History.create keeps what is there, whole or damaged, under another name
        spent = _spent(session, path) if step > 0 else b""
        fingerprint = session.probes.fingerprint
        info: dict[str, Any] = {"fingerprint": fingerprint, "measured": _measured(session, plan)}
        info |= {"rules": dump_rules(plan.rules), "alarms": plan.rules.shared}
        info |= {"schedule": to_json(session.pacer.pace)} if session.pacer is not None else {}
        with session.health.shield("disk", str(path)):
            session.monitor.history = History.create(path, probes=session.probes.probes, info=info)
            if spent:
                journal = session.monitor.history.confirmations / JOURNAL
                journal.parent.mkdir(exist_ok=True)
                journal.write_bytes(spent)


def _spent(session: Session, path: Path) -> bytes:
    """The journal of confirmations at `path`: training that goes on with a new history has spent them too."""
    journal, found = path / "confirmations" / JOURNAL, b""
    with session.health.shield("disk", str(journal)):
        found = journal.read_bytes() if journal.exists() else b""
    return found


def _measured(session: Session, plan: Plan) -> str:
    """What two parts of a run must share to be one: probes, K, decoding, judge, formats, encoder."""
    lenses = plan.lenses
    judged = (
        f"quality:{lenses.judge}@{lenses.correct_at:g}|formats:{lenses.classifier_name}|encoder:{lenses.encoder_name}"
    )
    given = f"|{plan.given.signature}" if plan.given.signature else ""
    return f"k:{plan.settings.k}|{session.decoding.signature}|probes:{session.probes.fingerprint}|{judged}{given}"


def _continue(session: Session, path: Path, plan: Plan, step: int) -> None:
    history, now = History.read(path), _measured(session, plan)
    before = history.info.get("measured")
    if before != now:
        log.warning(
            "divmon: %s was measured as %s, and this run measures as %s; a new history starts at step %d, the old one "
            "is kept beside it", path, before, now, step,
        )  # fmt: skip
        return
    if [history.info.get("rules"), history.info.get("alarms")] != [dump_rules(plan.rules), plan.rules.shared]:
        log.warning(
            "divmon: the alarms are not those that %s began with. They are judged from its baseline; its run.json "
            "keeps the first ones, so `divmon replay` without --rules gives other events from step %d on", path, step,
        )  # fmt: skip
    history.rewind(step)
    session.monitor.resume(history)
    session.last_step = history.last_step


def _announce(session: Session, plan: Plan, trainer: Any) -> None:
    if not any(sink.name == "console" for sink in session.sinks):
        return
    history = session.monitor.history
    own = plan.probes is None and session.probes.domains == (OWN_DOMAIN,)
    source = f"prompts {'of your training data ' if own else ''}({', '.join(session.probes.domains)})"
    shared = f" on {session.ranks.count} ranks" if session.ranks.count > 1 else ""
    often = f"every {session.every} steps" if session.pacer is None else "when it has moved"
    lines = [
        f"divmon watches {len(session.probes)} {source} x {plan.settings.k} completions of at most "
        f"{session.decoding.max_new_tokens} tokens, temperature {session.decoding.temperature:g}, "
        f"{often}{shared}; history in {history.path if history else 'memory only'}"
    ]
    if session.pacer is not None:
        lines.append(f"       {in_plan(session.pacer.pace)}")
    if plan.rules.confirms:
        k = plan.rules.confirm_k or FACTOR * plan.settings.k
        lines.append(
            f"       alarms are confirmed: {k} completions a prompt are drawn now, and {k} at each confirmation "
            f"(at most {plan.rules.confirmations}); false alarms in at most {100 * plan.rules.alpha:g} % of runs"
        )
    if any(probe.token_ids for probe in session.probes) and not compat.own_loop(trainer):
        lines.append(
            "       the data names no prompts, so the beginnings of its texts are probed; probes=[...] is better"
        )
    lines += [f"       {text}" for text in compat.unverified(trainer)]
    if plan.default_sinks and len(session.sinks) == 1 + len(plan.sinks):
        lines.append(
            "       for curves beside your loss, set report_to='wandb', 'trackio' (no account needed) or 'tensorboard' "
            "in the trainer's arguments"
        )
    if any(sink.name == "trackio" for sink in session.sinks):
        lines.append("       curves: `trackio show`, with train/global_step as the x axis")
    if plan.settings.quality is None and not any(probe.gold for probe in session.probes):
        how = "probes with gold answers" if compat.own_loop(trainer) else "quality=f(probe, completion)"
        lines.append(
            f"       nothing judges completions: {how} would add pass@1, coverage, quality by format and the tail by "
            "difficulty"
        )
    print("\n".join(lines), flush=True)
