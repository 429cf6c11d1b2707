"""How much of the base's diversity each checkpoint keeps, and which stage lost it. Pure.

A lineage has one base. What a checkpoint keeps is its number in percent of the base's; what a stage changes is the
difference of what it and its parent keep, so that the changes along a branch add up to what the branch has lost. Over
several tasks there are two ways to take that percentage, and they give visibly different numbers:

- ``mean of ratios``: in percent of the base task by task, then the mean over tasks. Each task weighs the same.
- ``ratio of means``: the mean over tasks in percent of the base's mean. Tasks with large numbers weigh more.

What a metric is at least (1 for an effective number) is not taken off: of four formats, one is 25 percent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from divmon.errors import ConfigError, unknown
from divmon.uncertainty import LEVEL, RESAMPLES

AGGREGATORS = ("mean of ratios", "ratio of means")


@dataclass(frozen=True)
class Stage:
    """What one checkpoint keeps of the base and what its stage changed, in percent of the base.

    Attributes:
        name: The checkpoint.
        since: The checkpoint it is compared with: its parent, or the nearest ancestor that has a number. Empty for the
            base.
        retained: Percent of the base's number that is left; 100 for the base itself.
        change: `retained` minus that of `since`: negative where the stage lowered the number. NaN for the base.
        retained_low: Lower end of the 95 % interval over prompts, NaN where there is none.
        retained_high: Upper end.
        change_low: Of `change`.
        change_high: Upper end.
        reason: Why there is no number.
    """

    name: str
    since: str
    retained: float
    change: float
    retained_low: float = math.nan
    retained_high: float = math.nan
    change_low: float = math.nan
    change_high: float = math.nan
    reason: str | None = None


def aggregator_named(name: str) -> str:
    """One of `AGGREGATORS`; hyphens stand for spaces.

    >>> aggregator_named("ratio-of-means")
    'ratio of means'

    Raises:
        ConfigError: Another name.
    """
    plain = str(name).replace("-", " ").replace("_", " ")
    if plain not in AGGREGATORS:
        raise unknown("aggregator", str(name), AGGREGATORS)
    return plain


def percent_of_base(values: np.ndarray, base: int, aggregator: str) -> np.ndarray:
    """What each checkpoint keeps of the base, in percent.

    Args:
        values: float[..., C, T], C checkpoints and T tasks (or prompts).
        base: Index of the base among the checkpoints.
        aggregator: One of `AGGREGATORS`. Under "mean of ratios" tasks where the base has 0 have no ratio and are left
            out.

    Returns:
        float[..., C], NaN where a number is missing or the base has nothing to keep.

    >>> values = np.array([[0.2, 0.8], [0.1, 0.8]])
    >>> [percent_of_base(values, 0, name).round(6).tolist() for name in AGGREGATORS]
    [[100.0, 75.0], [100.0, 90.0]]

    Source: the two aggregations of Karouzos et al. (2026), arXiv:2604.16027, which uses both.
    """
    values = np.asarray(values, dtype=float)
    before = values[..., base, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        if aggregator == "ratio of means":
            means, whole = values.mean(axis=-1), before.mean(axis=-1)[..., None]
            return np.asarray(100.0 * np.where(whole > 0, means / whole, math.nan))
        usable = before > 0
        ratios = values / np.where(usable, before, 1.0)[..., None, :]
        kept = np.where(usable[..., None, :], ratios, 0.0).sum(axis=-1)
        lost = np.isnan(before).any(axis=-1)[..., None]
        return np.asarray(np.where(lost, math.nan, 100.0 * kept / usable.sum(axis=-1)[..., None]))


def stages(
    names: Sequence[str],
    parents: Mapping[str, str | None],
    values: np.ndarray,
    *,
    aggregator: str,
    kept_draws: np.ndarray | None = None,
) -> list[Stage]:
    """The stages of a lineage: the one way from numbers to percentages, for measured and for published ones.

    Args:
        names: C checkpoints. One of them has no parent: the base.
        parents: Of each.
        values: float[C, T]; a row with a NaN is a checkpoint without a number.
        aggregator: One of `AGGREGATORS`.
        kept_draws: float[R, C], percent of the base in R resampled prompt sets, the same ones for all checkpoints; None
            without intervals.
    """
    base = next(i for i, name in enumerate(names) if parents[name] is None)
    kept = percent_of_base(values, base, aggregator)
    drawn = kept_draws
    at = {name: i for i, name in enumerate(names)}
    found = []
    for i, name in enumerate(names):
        since = next((p for p in ancestors(name, parents) if not math.isnan(kept[at[p]])), "")
        low, high = (math.nan, math.nan) if i == base else interval(None if drawn is None else drawn[:, i])
        change, less, more = math.nan, math.nan, math.nan
        if since and not math.isnan(kept[i]):
            change = float(kept[i] - kept[at[since]])
            if drawn is not None:
                less, more = interval(drawn[:, i] - drawn[:, at[since]])
        found.append(Stage(name, since, float(kept[i]), change, low, high, less, more))
    return found


def ancestors(name: str, parents: Mapping[str, str | None]) -> list[str]:
    """From the parent of `name` to the base.

    >>> ancestors("rl", {"base": None, "sft": "base", "rl": "sft"})
    ['sft', 'base']
    """
    line: list[str] = []
    above = parents[name]
    while above is not None:
        line.append(above)
        above = parents[above]
    return line


def interval(draws: np.ndarray | None) -> tuple[float, float]:
    """95 % percentile interval of `draws` (float[R]); NaN where there are too few."""
    known = np.zeros(0) if draws is None else draws[np.isfinite(draws)]
    if known.size < RESAMPLES // 2:
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Blame:
    """Where a branch lost its diversity.

    Attributes:
        branch: Its checkpoints, from the base to the last one.
        stage: The stage with the largest loss; empty where no stage has a loss whose interval leaves out 0.
        lost: What that stage took, in percent of the base.
        share: Of the loss of all stages that lost (what later stages brought back is not counted off).
        sure: Share of resampled prompt sets in which this stage loses most; NaN without intervals.
    """

    branch: tuple[str, ...]
    stage: str
    lost: float
    share: float
    sure: float


def blame(
    branch: Sequence[str], found: Sequence[Stage], kept_draws: np.ndarray | None, *, sign: int, clear: bool = True
) -> Blame:
    """The stage of a branch that lost most.

    Args:
        branch: Checkpoints from the base to the last one.
        found: Their stages.
        kept_draws: float[R, C], what each of `branch` keeps in R resampled prompt sets; None without them.
        sign: 1 where more is more diverse, -1 where less is.
        clear: Only a loss whose interval leaves out 0 counts.
    """
    by_name = {stage.name: stage for stage in found}
    steps = [by_name[name] for name in branch[1:] if not math.isnan(by_name[name].change)]
    losses = {stage.name: -sign * stage.change for stage in steps}
    worst = max(losses, key=lambda name: losses[name], default="")
    if not worst or losses[worst] <= 0 or (clear and not _clear(by_name[worst], sign)):
        return Blame(tuple(branch), "", math.nan, math.nan, math.nan)
    sure = math.nan
    if kept_draws is not None:
        at = {name: i for i, name in enumerate(branch)}
        drawn = np.stack([sign * (kept_draws[:, at[s.since]] - kept_draws[:, at[s.name]]) for s in steps], axis=1)
        drawn = drawn[np.isfinite(drawn).all(axis=1)]
        place = [stage.name for stage in steps].index(worst)
        sure = float((drawn.argmax(axis=1) == place).mean()) if len(drawn) else math.nan
    total = sum(loss for loss in losses.values() if loss > 0)
    return Blame(tuple(branch), worst, losses[worst], losses[worst] / total, sure)


def _clear(stage: Stage, sign: int) -> bool:
    """Whether a stage's loss is beyond the noise over prompts."""
    return stage.change_high < 0 if sign > 0 else stage.change_low > 0


def attribute(
    values: Mapping[str, Mapping[str, float]],
    parents: Mapping[str, str | None],
    *,
    aggregator: str = "mean of ratios",
    groups: Mapping[str, Sequence[str]] | None = None,
) -> list[Stage]:
    """Stages from a table of numbers, such as a published one: tasks that not every checkpoint has are left out.

    Args:
        values: Checkpoint to task to number.
        parents: Of each checkpoint; None for the base.
        aggregator: One of `AGGREGATORS`.
        groups: Names for means over several checkpoints with one parent (variants of a recipe), task by task.

    >>> table = {"base": {"a": 0.4, "b": 0.2}, "sft": {"a": 0.1, "b": 0.1}, "rl": {"a": 0.2, "b": 0.1}}
    >>> found = attribute(table, {"base": None, "sft": "base", "rl": "sft"})
    >>> [(stage.name, round(stage.change, 1), round(stage.retained, 1)) for stage in found[1:]]
    [('sft', -62.5, 37.5), ('rl', 12.5, 50.0)]

    Raises:
        ConfigError: A parent that is not in the table, no base or several, or no task that all have.
    """
    names = list(values)
    check_tree(parents, names)
    tasks = [task for task in values[names[0]] if all(task in values[name] for name in names)]
    if not tasks:
        raise ConfigError("No task has a number for every checkpoint: there is nothing to attribute.")
    table = np.array([[float(values[name][task]) for task in tasks] for name in names])
    wide = {**parents, **{group: parents[members[0]] for group, members in (groups or {}).items()}}
    table = with_groups(names, table, groups or {})
    return stages([*names, *(groups or {})], wide, table, aggregator=aggregator_named(aggregator))


def with_groups(names: Sequence[str], values: np.ndarray, groups: Mapping[str, Sequence[str]]) -> np.ndarray:
    """`values` (float[..., C, T]) with a row for each group: the mean over its members, task by task."""
    rows = [values[..., [names.index(name) for name in members], :].mean(axis=-2) for members in groups.values()]
    return np.concatenate([values, *(row[..., None, :] for row in rows)], axis=-2)


def check_tree(parents: Mapping[str, str | None], names: Sequence[str]) -> None:
    """One base, and every other checkpoint comes from it.

    Raises:
        ConfigError: Not so; the message names the checkpoint.
    """
    roots = [name for name in names if parents.get(name) is None]
    if len(roots) != 1:
        told = ", ".join(map(repr, roots)) or "none"
        raise ConfigError(f"A lineage has one base, a checkpoint without a parent; here there are: {told}.")
    for name in names:
        seen = {name}
        above = parents[name]
        while above is not None:
            if above not in names:
                raise unknown(f"parent of {name!r}", above, names)
            if above in seen:
                raise ConfigError(f"The parents of {name!r} run in a circle ({above!r} comes twice).")
            seen.add(above)
            above = parents[above]


def branches(names: Sequence[str], parents: Mapping[str, str | None]) -> list[tuple[str, ...]]:
    """Every way from the base to a checkpoint that is nobody's parent.

    >>> branches(["base", "sft", "a", "b"], {"base": None, "sft": "base", "a": "sft", "b": "sft"})
    [('base', 'sft', 'a'), ('base', 'sft', 'b')]
    """
    leaves = [name for name in names if name not in parents.values()]
    return [tuple(itertools.chain(reversed(ancestors(leaf, parents)), [leaf])) for leaf in leaves]
