"""When to look at the policy: a pure schedule of scores and samplings, with or without a budget.

::

    score     every `score_every` steps; with a budget, as often as half of it allows, and in every tenth of the run
    sample    when KL per token has moved by `moved` since the newest sampling, when the scores begin to say too little
              of the policy, when an alarm on them breaks, and at the latest `gap` steps after it

Under a budget a sampling waits until it can be paid. One that something has asked for (the policy moved, an alarm) may
use what the rest of the run will bring in; one that is only due again must have been saved up. A score in every tenth
of the run is taken whatever it costs. Only the cadence gives way: what is scored and what is sampled never change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

MOVED = 0.02  # nats a token: weights over 16 tokens then keep about exp(-2 x 16 x .02) = half of their sample size
JOURNAL = "schedule.jsonl"  # in the folder of a run: what was decided, and what it cost
TENTHS = 10  # a run is scored in each of so many parts
FIFTHS = 5  # and sampled in each of so many, where it can be paid
FOR_SCORES = 0.5  # share of the budget that scores may take beyond that; the rest is saved up for samplings
CROSSED = 5  # every fifth score looks at input dependence too
LOOKS = 100  # decisions over a run, at least: they cost nothing
_FADE = 0.5  # weight of the newest cost in its moving average
Reason = Literal["", "every", "tenth", "moved", "stale", "alarm", "gap", "end"]


@dataclass(frozen=True)
class Pace:
    """What the user asked for.

    Attributes:
        steps: Of the run.
        budget: Share of process time that divmon may take, the baseline apart; None: no limit.
        score_every: Steps between scores; with a budget, the fewest. None: as the budget allows.
        moved: Change of KL per token that asks for a sampling.
        gap: Most steps between samplings; None: a fifth of the run.
    """

    steps: int
    budget: float | None = None
    score_every: int | None = None
    moved: float = MOVED
    gap: int | None = None

    @property
    def tenth(self) -> int:
        """Most steps between scores. `score_every` may be longer, if the user says so."""
        least = max(1, self.steps // TENTHS)
        return least if self.score_every is None or self.budget is None else max(least, self.score_every)

    @property
    def longest(self) -> int:
        """`gap` with its default."""
        return self.gap or max(1, -(-self.steps // FIFTHS))


@dataclass(frozen=True)
class Clock:
    """Process seconds since the baseline was measured.

    Attributes:
        total: Of training and divmon together.
        spent: Inside divmon.
    """

    total: float = 0.0
    spent: float = 0.0


@dataclass(frozen=True)
class Progress:
    """What has been done: a fold over scores and samplings, in plain numbers (it travels with checkpoints).

    Attributes:
        scored: Step of the newest score.
        sampled: Step of the newest sampling.
        drift: KL per token by the newest score.
        at_sampling: The same when it was sampled.
        score_cost: Process seconds of a score, as a moving average; NaN before the first.
        sample_cost: The same of a sampling, measuring included.
        scores: Process seconds of all scores after the baseline.
        samplings: The same of all samplings.
        alarmed: Whether an alarm on scores has become pending or has fired since the newest sampling.
        stale: Whether the newest score says that the baseline's completions no longer stand for the policy.
        was_stale: The same when it was sampled.
        count: Scores so far, that of the baseline among them.
    """

    scored: int = 0
    sampled: int = 0
    drift: float = 0.0
    at_sampling: float = 0.0
    score_cost: float = math.nan
    sample_cost: float = math.nan
    scores: float = 0.0
    samplings: float = 0.0
    alarmed: bool = False
    stale: bool = False
    was_stale: bool = False
    count: int = 0

    def after_score(
        self,
        step: int,
        *,
        cost: float,
        drift: float,
        alarmed: bool = False,
        stale: bool = False,
        crossed: bool = False,
    ) -> Progress:
        """The progress once the policy of `step` has been scored; a `drift` of NaN (it failed) leaves the known one."""
        known = self.drift if math.isnan(drift) else drift
        return replace(
            self,
            scored=step,
            drift=known,
            score_cost=self.score_cost if crossed and self.count else _faded(self.score_cost, cost),
            scores=self.scores + (cost if step else 0.0),
            alarmed=self.alarmed or alarmed,
            stale=stale,
            count=self.count + 1,
        )

    def after_sample(self, step: int, *, cost: float) -> Progress:
        """The progress once the policy of `step` has been sampled."""
        average = _faded(self.sample_cost, cost)
        spent = self.samplings + (cost if step else 0.0)
        done = replace(self, sampled=step, at_sampling=self.drift, sample_cost=average, samplings=spent)
        return replace(done, alarmed=False, was_stale=self.stale)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `restore` reads them."""
        return {key: None if value != value else value for key, value in asdict(self).items()}

    @classmethod
    def restore(cls, row: Mapping[str, Any]) -> Progress:
        """What `to_json` gave. Unknown keys are those of a later version."""
        known = {f.name for f in fields(cls)}
        kept: dict[str, Any] = {key: math.nan if value is None else value for key, value in row.items() if key in known}
        return cls(**kept)


@dataclass(frozen=True)
class Decision:
    """What to do at a step.

    Attributes:
        step: Where it was taken.
        score: Why to score; "" not to.
        sample: Why to sample; "" not to.
        look: The next step at which to decide. Between the two nothing happens.
        cross: Whether the score also looks at completions under one another's prompts, which costs as much again.
        over: Whether it goes beyond the budget.
        waits: Why a sampling is wanted that cannot be paid yet; "" when none is.
    """

    step: int
    score: Reason = ""
    sample: Reason = ""
    look: int = 0
    cross: bool = False
    over: bool = False
    waits: Reason = ""


def decide(pace: Pace, progress: Progress, step: int, clock: Clock, *, blind: bool = False) -> Decision:
    """What to do at `step`. Call it again once a score has been taken: it may have shown that a sampling is due.

    Where there is nothing to score (`blind`), only the gap and the end ask for samplings.

    >>> pace = Pace(steps=100, score_every=5, gap=40)
    >>> decide(pace, Progress(), 5, Clock()).score, decide(pace, Progress(scored=5, drift=0.03), 5, Clock()).sample
    ('every', 'moved')
    """
    score, over = _score(pace, progress, step, clock)
    if score and not blind:
        return Decision(step, score=score, look=step, cross=_crosses(pace, progress, clock), over=over)
    wanted = _wanted(pace, progress, step)
    payable = wanted and _payable(pace, progress, step, clock, wanted)
    after = replace(progress, sampled=step) if payable else progress
    look = _look(pace, after, step, clock)
    return Decision(step, sample=wanted if payable else "", look=look, waits="" if payable else wanted)


def spacing(pace: Pace, progress: Progress, step: int, clock: Clock) -> int:
    """Steps between scores."""
    if pace.budget is None:
        return pace.score_every or pace.tenth
    share = _for_scores(pace, progress, clock) / max(1, step)
    if not share > 0 or math.isnan(progress.score_cost):
        return pace.tenth
    return min(pace.tenth, max(pace.score_every or 1, math.ceil(progress.score_cost / share)))


def _score(pace: Pace, progress: Progress, step: int, clock: Clock) -> tuple[Reason, bool]:
    since = step - progress.scored
    if pace.budget is None:
        every = pace.score_every or 0
        return ("every", False) if every and since > 0 and step % every == 0 else ("", False)
    cost = _known(progress.score_cost)
    if since >= pace.tenth:
        return "tenth", clock.spent + cost > _allowed(pace, clock)
    # an account of their own: samplings that were paid in advance do not make scores rarer
    paid = progress.scores + cost <= _for_scores(pace, progress, clock)
    return ("every" if paid and since >= spacing(pace, progress, step, clock) else "", False)


def _crosses(pace: Pace, progress: Progress, clock: Clock) -> bool:
    if progress.count % CROSSED:
        return False
    cost = 2 * _known(progress.score_cost)
    return pace.budget is None or progress.scores + cost <= _for_scores(pace, progress, clock)


def _wanted(pace: Pace, progress: Progress, step: int) -> Reason:
    if step <= progress.sampled:
        return ""
    if progress.alarmed:
        return "alarm"
    if abs(progress.drift - progress.at_sampling) >= pace.moved:
        return "moved"
    if progress.stale and not progress.was_stale:
        return "stale"
    if step - progress.sampled >= pace.longest:
        return "gap"
    return "end" if step >= pace.steps else ""


def _payable(pace: Pace, progress: Progress, step: int, clock: Clock, why: Reason) -> bool:
    if pace.budget is None:
        return True
    cost = _known(progress.sample_cost)
    allowed = _allowed(pace, clock)
    if why in ("gap", "end") and clock.spent + cost > allowed:
        return False  # it must have been saved up
    left = max(0, pace.steps - step)
    rest = left / max(1, step)  # of the time so far, still to come
    scores = _known(progress.score_cost) * math.ceil(left / spacing(pace, progress, step, clock))
    other = _other(progress, clock) * rest
    return clock.spent + cost + scores + other <= allowed * (1 + rest)


def _allowed(pace: Pace, clock: Clock) -> float:
    """What may have been spent by now, so that it is `budget` of everything."""
    share = pace.budget or 0.0
    return share / (1 - share) * (clock.total - clock.spent)


def _for_scores(pace: Pace, progress: Progress, clock: Clock) -> float:
    """What scores may have taken by now, beyond one in every tenth: what every step costs goes before them."""
    allowed = _allowed(pace, clock)
    return min(FOR_SCORES * allowed, allowed - _other(progress, clock))


def _other(progress: Progress, clock: Clock) -> float:
    """What neither scores nor samplings have taken, such as measuring rollouts."""
    return max(0.0, clock.spent - progress.scores - progress.samplings)


def _look(pace: Pace, progress: Progress, step: int, clock: Clock) -> int:
    if pace.budget is None:
        every = pace.score_every or pace.longest
        return min(step + every - step % every, max(step + 1, progress.sampled + pace.longest))
    soon = (
        progress.scored + spacing(pace, progress, step, clock),
        progress.scored + pace.tenth,
        progress.sampled + pace.longest,
    )
    return min([step + max(1, pace.steps // LOOKS), *(at for at in soon if at > step)])


@dataclass(frozen=True)
class Forecast:
    """What a pace comes to.

    Attributes:
        score_every: Steps between scores.
        scores: Over the run.
        samplings: Over the run: at most so many under a budget, at least so many without one.
        overhead: Expected share of process time, without samplings that a moving policy asks for where there is no
            budget; NaN where a cost is not known.
        least: The share that a score in every tenth of the run takes by itself.
        holds: Whether the budget can be kept.
    """

    score_every: int
    scores: int
    samplings: int
    overhead: float
    least: float
    holds: bool


def forecast(pace: Pace, *, step_cost: float, score_cost: float, sample_cost: float, other: float = 0.0) -> Forecast:
    """What `pace` comes to where a training step, a score and a sampling take so many process seconds.

    Args:
        pace: The pace.
        step_cost: Of a training step, without divmon.
        score_cost: Of a score.
        sample_cost: Of a sampling with its measuring.
        other: What divmon takes at every step besides.

    >>> costs = {"step_cost": 1.0, "score_cost": 0.2, "sample_cost": 4.0}
    >>> plan = forecast(Pace(steps=500, budget=0.02), **costs)
    >>> plan.score_every, plan.samplings, plan.holds
    (20, 1, True)
    """
    train = pace.steps * step_cost
    if pace.budget is None:
        every = pace.score_every or pace.tenth
        scores, samplings = pace.steps // every, -(-pace.steps // pace.longest)
    else:
        clock = Clock(train, 0.0)
        every = spacing(pace, Progress(score_cost=score_cost), pace.steps, clock)
        scores = pace.steps // every
        left = _allowed(pace, clock) - scores * score_cost - other * pace.steps
        room = left / sample_cost if sample_cost > 0 else 0.0
        samplings = max(0, math.floor(room + 1e-9)) if math.isfinite(room) else 0
        samplings = min(samplings, pace.steps // every)  # what asks for one is a score, or the gap between two
    spent = scores * score_cost + (samplings * sample_cost if samplings else 0.0) + other * pace.steps
    floor = (pace.steps // pace.tenth) * score_cost + other * pace.steps
    least = floor / (train + floor) if train + floor > 0 else math.nan
    overhead = spent / (train + spent) if train + spent > 0 else math.nan
    return Forecast(every, scores, samplings, overhead, least, pace.budget is None or least <= pace.budget)


def in_plan(pace: Pace) -> str:
    """What will be done, before anything has been measured.

    >>> in_plan(Pace(steps=500, score_every=10, gap=100))[49:]
    'new ones are drawn when KL moves by 0.02 a token, and after 100 steps at the latest'
    """
    often = f"every {pace.score_every} steps" if pace.score_every and pace.budget is None else "as often as it allows"
    least = "" if pace.budget is None else f" (at least every {pace.tenth} steps)"
    limit = "" if pace.budget is None else f"budget {100 * pace.budget:g} % of process time, baseline apart: "
    late = (
        f"after {pace.longest} steps at the latest"
        if pace.budget is None
        else f"after {pace.longest} steps, if it can be paid"
    )
    return (
        f"{limit}the first completions are scored {often}{least}; new ones are drawn when KL moves by {pace.moved:g} a "
        f"token, and {late}"
    )


def in_words(pace: Pace, told: Forecast) -> str:
    """A forecast as a sentence.

    >>> pace = Pace(steps=500, budget=0.02)
    >>> in_words(pace, forecast(pace, step_cost=1.0, score_cost=0.2, sample_cost=4.0))
    'scores about every 20 steps, room for 1 sampling; at most 1.8 % of process time (budget: 2 %)'
    >>> in_words(pace, forecast(pace, step_cost=1.0, score_cost=2.0, sample_cost=4.0))[:74]
    'ten scores take 3.8 % of process time by themselves: the budget of 2 % can'
    """
    if not told.holds:
        most = 100 * (pace.budget or 0.0)
        return (
            f"ten scores take {100 * told.least:.2g} % of process time by themselves: the budget of {most:g} % cannot "
            "be kept. They are taken all the same, and nothing is sampled. Fewer prompts, k or max_new_tokens help"
        )
    number = f"{told.samplings} sampling{'' if told.samplings == 1 else 's'}"
    share = f"{100 * told.overhead:.2g} % of process time"
    if pace.budget is None:
        return f"scores every {told.score_every} steps, at least {number}; {share} or more"
    limit = f"(budget: {100 * pace.budget:g} %)"
    return f"scores about every {told.score_every} steps, room for {number}; at most {share} {limit}"


def _faded(average: float, newest: float) -> float:
    return newest if math.isnan(average) else (1 - _FADE) * average + _FADE * newest


def _known(cost: float) -> float:
    return 0.0 if math.isnan(cost) else cost
