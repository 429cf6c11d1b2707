"""The alarms of a run that is over: recorded, or only completions in files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from divmon.alarms import Alarms, RuleSet, default_rules, restore_rules
from divmon.alarms.lifecycle import Cell
from divmon.alarms.rules import Rule
from divmon.errors import ConfigError, HistoryError, suggest
from divmon.history import Evaluation, History
from divmon.metrics import METRICS, Metric
from divmon.monitor import Monitor
from divmon.plain import to_json
from divmon.records import AlarmEvent
from divmon.rulebook.reading import DIFFER, read_steps

UNCONFIRMED = "screened, unconfirmed"


@dataclass(frozen=True)
class Replayed:
    """What a set of rules would have said.

    Attributes:
        rules: The rules.
        events: Every change of a state, oldest first.
        cells: Where each cell (``name/domain``) stands at the end.
        evaluations: How many there were.
        same: Whether the run's own rules gave its own events, bit for bit; None where other rules were replayed.
        remarks: What a reader should know about it.
    """

    rules: RuleSet
    events: tuple[AlarmEvent, ...]
    cells: dict[str, Cell]
    evaluations: int
    same: bool | None = None
    remarks: tuple[str, ...] = ()

    def state(self, key: str) -> str:
        """The final state of a cell; for one that waits for a confirmation nobody recorded, that it was screened."""
        rule = next(rule for rule in self.rules if key.startswith(f"{rule.name}/"))
        cell = self.cells[key]
        asked = rule.confirms and cell.state == "pending" and cell.breaches >= rule.hold and not cell.judged
        return UNCONFIRMED if asked else cell.state


def replay_path(path: str | Path, *, rules: RuleSet | None = None) -> Replayed:
    """Fold `rules` over what is at `path`.

    Args:
        path: A recorded run (or the trainer's output folder above it), a folder of TRL's ``completions_*.parquet``,
            one of these files, or a JSON Lines file of completions with a ``step``.
        rules: Other rules than those of the run. Files have none of their own: the default rules, without it.

    Raises:
        HistoryError: The run is damaged.
        ProbeError: The file holds no completions.
        ConfigError: A rule names a metric that neither the run has nor divmon can measure.
    """
    path = Path(path)
    if any((folder / "run.json").exists() for folder in (path, path / "divmon")):
        return replay_history(History.read(path), rules=rules)
    if not path.exists():
        raise HistoryError(f"There is nothing at {path}.")
    return _replay_files(path, RuleSet.of(default_rules()) if rules is None else rules)


def replay_history(history: History, *, rules: RuleSet | None = None) -> Replayed:
    """Fold `rules` over a recorded run: its own, without them, and then the events must be those recorded.

    Raises:
        ConfigError: A rule names a metric that the run has no series of and that divmon does not know.
    """
    own = RuleSet.restore(restore_rules(history.info.get("rules", ())), history.info.get("alarms"))
    chosen = own if rules is None else rules
    missing = _unmeasured(history, chosen)
    found = fold(chosen, history.evaluations)
    remarks = [f"This run has no series of {name}: what watches it stays unknown." for name in missing]
    same = None
    if chosen.rules == own.rules and chosen.silences == own.silences:
        same = [repr(to_json(e)) for e in found.events] == [repr(to_json(e)) for e in history.events()]
    return replace(found, same=same, remarks=tuple(remarks))


def fold(rules: RuleSet, evaluations: Iterable[Evaluation]) -> Replayed:
    """The events and final cells of `rules` over `evaluations` and the confirmations recorded with them."""
    alarms, events = Alarms(rules), list[AlarmEvent]()
    rows = list(evaluations)
    for row in rows:
        events += alarms.fold(row)
    return Replayed(rules, tuple(events), alarms.cells, len(rows))


def _unmeasured(history: History, rules: Iterable[Rule]) -> list[str]:
    names = {key.rsplit("/", 1)[1] for key in [*history.keys()]}
    absent = dict.fromkeys(rule.metric for rule in rules if names and rule.metric not in names)
    for name in absent:
        if name not in METRICS:
            raise ConfigError(f"This run has no series of {name!r}.{suggest(name, names)}")
    return list(absent)


def _replay_files(path: Path, rules: RuleSet) -> Replayed:
    monitor = Monitor(_metrics(rules), rules=rules, intervals=False)
    events, batches = list[AlarmEvent](), read_steps(path)
    for batch in batches:
        events += monitor.observe(batch).events
    differ = batches[0].fingerprint == DIFFER
    remarks = ["The prompts differ from step to step: a change may be theirs, not the policy's."] if differ else []
    return Replayed(rules, tuple(events), monitor.alarms.cells, len(batches), None, tuple(remarks))


def _metrics(rules: Iterable[Rule]) -> tuple[Metric, ...]:
    names = dict.fromkeys(rule.metric for rule in rules)
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"Unknown metric {name!r}.{suggest(name, METRICS)}")
    return tuple(METRICS[name] for name in names)
