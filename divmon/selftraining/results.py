"""What self-training did, round by round: shares of levels, pass rates, what went wrong; on disk and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from divmon.errors import HistoryError
from divmon.metrics.tails import tail_share
from divmon.plain import float_from_json, to_json

RECORD = "selftraining.json"


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        number: From 1.
        drawn: Plain completions.
        critiques: That were had.
        refinements: That were written.
        levels: Of the prompts, easy to hard: L of them.
        data: int[L], prompts of each level.
        tried: float[L], share of plain completions that are correct; NaN without any.
        direct: int[L], accepted plain completions.
        refined: int[L], accepted refinements.
        covered: float[L], share of prompts with anything accepted.
        held_out_levels: Of the held-out prompts, easy to hard: H of them.
        pass_at_1: float[H], share of correct completions of held-out prompts after the round.
        pass_at_k: float[H], share of held-out prompts with a correct one among `k`.
        k: Completions of a held-out prompt.
        diversity: What divmon measured over held-out prompts after the round, by metric.
        alarms: That fired during the round.
        counts: What resampling counted (see `divmon.resampling.resampler.COUNTED`), over all its passes.
        events: What failed, or could not be done.
        steps: Of the optimiser.
        seconds: Wall time.
    """

    number: int
    drawn: int
    critiques: int
    refinements: int
    levels: tuple[int, ...]
    data: tuple[int, ...]
    tried: tuple[float, ...]
    direct: tuple[int, ...]
    refined: tuple[int, ...]
    covered: tuple[float, ...]
    held_out_levels: tuple[int, ...] = ()
    pass_at_1: tuple[float, ...] = ()
    pass_at_k: tuple[float, ...] = ()
    k: int = 0
    diversity: Mapping[str, float] = field(default_factory=dict)
    alarms: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    events: tuple[str, ...] = ()
    steps: int = 0
    seconds: float = math.nan

    @property
    def spent(self) -> int:
        """Completions drawn in all: answers, critiques and refinements."""
        return self.drawn + self.critiques + self.refinements

    @property
    def accepted(self) -> tuple[int, ...]:
        """int[L], accepted completions of each level."""
        return tuple(d + r for d, r in zip(self.direct, self.refined, strict=True))

    @property
    def tail(self) -> float:
        """Share of the hardest 40 % of levels among accepted completions over that among prompts: 1 is kept in full.

        Source: after Ding et al. (2024), arXiv:2411.00750; see `divmon.metrics.tails`.
        """
        return representation(self.accepted, self.data)


def representation(accepted: Sequence[int], data: Sequence[int]) -> float:
    """Share of the hardest 40 % of levels in `accepted` over that in `data`, both int[L]; NaN where either is empty.

    What moves it besides narrowing: caps of completions a prompt, which favour hard levels.

    >>> representation([30, 10, 5, 3, 2], [20, 20, 20, 20, 20])
    0.25

    Source: after Ding et al. (2024), arXiv:2411.00750.
    """
    if len(data) < 2 or not sum(accepted) or not sum(data):
        return math.nan
    shares = [np.asarray(counts, dtype=float) / sum(counts) for counts in (accepted, data)]
    now, before = (float(tail_share(share)) for share in shares)
    return now / before if before else math.nan


@dataclass(frozen=True)
class SelfTrained:
    """What `SelfTraining` did.

    Attributes:
        out: Its folder: in ``round-N`` the accepted pairs, the model and divmon's history of each round.
        rounds: In order.
        critic: Who criticised; None for plain self-training.
        settings: What was asked for, as the record on disk has it.
    """

    out: Path
    rounds: tuple[Round, ...]
    critic: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, out: str | Path) -> SelfTrained:
        """Self-training on disk, finished or not.

        Raises:
            HistoryError: There is none, or its record is damaged.
        """
        path = Path(out) / RECORD
        try:
            found = json.loads(path.read_text("ascii"))
            rounds = tuple(round_from_json(row) for row in found["rounds"])
            return cls(Path(out), rounds, found["settings"]["critic"], found["settings"])
        except OSError as error:
            raise HistoryError(f"There is no self-training in {out}: cannot read {path} ({error.strerror}).") from error
        except (ValueError, KeyError, TypeError) as error:
            raise HistoryError(f"{path} is damaged ({type(error).__name__}: {error}).") from error

    @property
    def model(self) -> Path:
        """The folder of the last round's model."""
        return self.out / f"round-{self.rounds[-1].number}" / "model"

    @property
    def accepted(self) -> tuple[int, ...]:
        """int[L], accepted completions of each level over all rounds."""
        return tuple(map(sum, zip(*(one.accepted for one in self.rounds), strict=True)))

    @property
    def tail(self) -> float:
        """`Round.tail` over all rounds."""
        return representation(self.accepted, self.rounds[0].data) if self.rounds else math.nan

    def table(self) -> str:
        """Rounds by levels, as text: shares in the data and among accepted completions, and pass rates."""
        if not self.rounds:
            return "No round is finished."
        who = "plain" if self.critic is None else f"guided by {self.critic}"
        lines = [f"Self-training, {who}, {len(self.rounds)} rounds", _HEAD]
        for one in self.rounds:
            lines += _rows(one)
            found = f"tail {_cell(one.tail)}, {one.spent} completions ({one.critiques} critiques, "
            lines.append(f"{one.number:>5}   {found}{one.refinements} refinements), {one.steps} steps")
            lines += [f"        ! {event}" for event in one.events]
        lines.append(
            "tail: share of the hardest 40 % of levels among accepted completions over their share in the data; "
            f"{_cell(self.tail)} over all rounds"
        )
        return "\n".join(lines)


_HEAD = "round  level    data  accepted  covered  correct tries  held-out pass@1  pass@k"


def _rows(one: Round) -> list[str]:
    held = dict(zip(one.held_out_levels, zip(one.pass_at_1, one.pass_at_k, strict=True), strict=True))
    total, lines = max(1, sum(one.accepted)), []
    for i, level in enumerate(one.levels):
        at_1, at_k = held.get(level, (math.nan, math.nan))
        shares = f"{one.data[i] / sum(one.data):>6.3f}  {one.accepted[i] / total:>8.3f}"
        rates = f"{_cell(one.covered[i]):>7}  {_cell(one.tried[i]):>13}  {_cell(at_1):>15}  {_cell(at_k):>6}"
        lines.append(f"{one.number:>5}  {level or 'all':>5}  {shares}  {rates}")
    return lines


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def beside(plain: SelfTrained, guided: SelfTrained) -> str:
    """Both by level, as text: shares over all rounds, and held-out pass rates after the last one.

    Raises:
        HistoryError: They did not have the same prompts, held-out prompts, number of rounds or budget.
    """
    for name in ("prompts", "held_out", "budget", "base"):
        if plain.settings.get(name) != guided.settings.get(name):
            raise HistoryError(
                f"Not to be compared: {name} is {plain.settings.get(name)} and {guided.settings.get(name)}."
            )
    if len(plain.rounds) != len(guided.rounds) or not plain.rounds:
        raise HistoryError(f"Not to be compared: {len(plain.rounds)} and {len(guided.rounds)} finished rounds.")
    first, ends = plain.rounds[0], (plain.rounds[-1], guided.rounds[-1])
    lines = ["level    data  accepted: plain  guided  pass@1: plain  guided  pass@k: plain  guided"]
    for i, level in enumerate(first.levels):
        shares = [run.accepted[i] / max(1, sum(run.accepted)) for run in (plain, guided)]
        held = [end.held_out_levels.index(level) if level in end.held_out_levels else None for end in ends]
        rates = [
            [_cell(math.nan if j is None else values[j]) for j, values in zip(held, pair, strict=True)]
            for pair in ([end.pass_at_1 for end in ends], [end.pass_at_k for end in ends])
        ]
        lines.append(
            f"{level or 'all':>5}  {first.data[i] / sum(first.data):>6.3f}  {shares[0]:>15.3f}  {shares[1]:>6.3f}"
            f"  {rates[0][0]:>13}  {rates[0][1]:>6}  {rates[1][0]:>13}  {rates[1][1]:>6}"
        )
    ratio = guided.tail / plain.tail if plain.tail else math.nan
    lines.append(f"tail: plain {_cell(plain.tail)}, guided {_cell(guided.tail)}: {_cell(ratio)} times")
    return "\n".join(lines)


def round_from_json(row: Mapping[str, Any]) -> Round:
    """The inverse of `to_json` for a `Round`."""
    values = dict(row)
    for name in ("tried", "covered", "pass_at_1", "pass_at_k"):
        values[name] = tuple(map(float_from_json, values[name]))
    for name in ("levels", "data", "direct", "refined", "held_out_levels", "alarms", "events"):
        values[name] = tuple(values[name])
    values["diversity"] = {key: float_from_json(value) for key, value in values["diversity"].items()}
    values["seconds"] = float_from_json(values["seconds"])
    return Round(**{f.name: values[f.name] for f in fields(Round)})


def write_record(out: Path, rounds: Sequence[Round], settings: Mapping[str, Any], levels: Mapping[str, int]) -> None:
    """Put what is finished on disk, whole or not at all."""
    row = to_json({"settings": settings, "levels": levels, "rounds": list(rounds)})
    text = json.dumps(row, ensure_ascii=True, allow_nan=False, indent=1)
    partial = out / f"{RECORD}.partial"
    partial.write_text(text + "\n", "ascii")
    partial.replace(out / RECORD)
