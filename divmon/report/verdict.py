"""The top of a report: in plain words what fired, how sure that is, what it bought, and what to do."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import partial

from divmon.alarms.sentences import evidence_lines
from divmon.history import History
from divmon.metrics import METRICS
from divmon.records import AlarmEvent
from divmon.report.acted import acted
from divmon.report.alarms import Incident, Watch, change, incidents, pending, watch
from divmon.report.tables import Change, between, by_key, changes
from divmon.report.text import interval, joined, meaning, named, number, percent, placed, short, signed

HEADLINE = ("semantic_distance", "tfidf_distance", "effective_formats", "format_dominance", "coverage", "tail_share")
QUALITY = ("pass_at_1", "mean_quality")
SCREEN = "It is a screen, not a proof: compared with one noisy baseline, no error rate promised, not confirmed."
FEW = 16  # prompts below which one should not lean on an interval


@dataclass(frozen=True)
class Verdict:
    """What a reader must know first.

    Attributes:
        tone: "alarm", "watch" (look, but nothing grave) or "quiet".
        badge: The tone in words.
        headline: One sentence.
        facts: Questions with their answers.
    """

    tone: str
    badge: str
    headline: str
    facts: dict[str, list[str]] = field(default_factory=dict)


def verdict(history: History) -> Verdict:
    """The verdict on a run that has at least one evaluation."""
    fired, found, watched = incidents(history.events()), changes(history), watch(history)
    if fired:
        return _fired(history, fired, found)
    if len(history.evaluations) < 2:
        step = history.last_step
        headline = f"Only one evaluation was recorded (step {step}): there is nothing to compare with yet."
        return Verdict("watch", "Too early", headline, {"What to do": ["Come back after the next evaluation."]})
    return _silent(history, watched, found)


def _fired(history: History, fired: list[Incident], found: dict[str, Change]) -> Verdict:
    event = fired[0].event
    sentence = f"{placed(event.domain)}, the {named(event.metric)} {change(event)}"
    headline = f"{_kind(event)}: at step {event.step}, {sentence}{_ends(history, event)}."
    if len(fired) > 1:
        others = f"{len(fired) - 1} more alarm{'s' if len(fired) > 2 else ''} fired"
        headline = headline[:-1] + f"; {others}."
    facts = {"Also": [_told(i) for i in fired[1:5]]} | {
        "What that is": [f"{short(event.metric)}: {meaning(event.metric)}"],
        "When": _when(history, fired[0]),
        "How sure": [*_sureness(history, event), *_company(found, event.domain, event.metric)],
        "What it bought" if _narrowing(event) else "Quality": _bought(found, event.domain, narrower=_narrowing(event)),
        "What to do": _steps_after(history, fired, found),
    }
    over = all(incident.resolved is not None for incident in fired)
    tone = "watch" if over or event.severity == "info" else "alarm"
    badge = f"{short(event.severity)} alarm".capitalize() + (", resolved since" if over else "")
    return Verdict(tone, badge, headline, {question: answers for question, answers in facts.items() if answers})


def _narrowing(event: AlarmEvent) -> bool:
    """Whether what fired is a change towards less diversity."""
    direction = METRICS[event.metric].direction if event.metric in METRICS else "neutral"
    return (direction == "higher" and event.value < event.baseline) or (
        direction == "lower" and event.value > event.baseline
    )


def _kind(event: AlarmEvent) -> str:
    return "The outputs narrowed" if _narrowing(event) else "An alarm fired"


def _ends(history: History, event: AlarmEvent) -> str:
    """The interval of the value that fired."""
    for m in by_key(history).get(f"{event.domain}/{event.metric}", []):
        if m.step == event.step and (ends := interval(m.low, m.high)):
            return f" (95 % interval {ends})"
    return ""


def _told(incident: Incident) -> str:
    e = incident.event
    return f"Step {e.step}: {placed(e.domain)}, the {named(e.metric)} {change(e)} ({e.severity}, {short(e.alarm)})."


def _when(history: History, incident: Incident) -> list[str]:
    step = incident.event.step
    seen = f"first seen at step {incident.first_seen}, " if incident.first_seen < step else ""
    end = f"still so at the last evaluation (step {history.last_step})"
    if incident.resolved is not None:
        end = f"resolved at step {incident.resolved}"
    again = f"; it fired {incident.times} times" if incident.times > 1 else ""
    asked = joined([short(a) for a in incident.event.actions])
    text = f"{seen}fired at step {step}, {end}{again}."
    return [
        text[0].upper() + text[1:],
        *([f"The alarm “{short(incident.event.alarm)}” asked to: {asked}."] * bool(asked)),
    ]


def _drawn(history: History, domain: str) -> str:
    prompts = sum(domain in ("all", probe.domain) for probe in history.probes)
    signature = next((m.signature for m in history.evaluations[0].measurements), "")
    k = re.search(r"(?:^|\|)k:([\d-]+)", signature)
    return f"{prompts} prompt{'s' if prompts != 1 else ''}" + (f" × {k[1]} completions" if k else "")


def _confirmed(event: AlarmEvent) -> list[str]:
    """What fresh draws found, without the examples."""
    return [short(line, 400) for line in evidence_lines({**event.details, "examples": (), "recommended": ""})]


def _sureness(history: History, event: AlarmEvent) -> list[str]:
    row = [m for m in by_key(history).get(f"{event.domain}/{event.metric}", []) if not math.isnan(m.value)]
    now = next((m for m in row if m.step == event.step), None)
    said = _confirmed(event) if event.evidence == "confirm" else [SCREEN]
    if now is None or now.step == row[0].step:
        return said
    moved = between(row[0], now)
    drawn = _drawn(history, event.domain)
    if moved.paired:
        ends = interval(moved.low, moved.high, sign=True)
        means = "which leaves out 0: more than noise" if moved.clear else "which includes 0: it may be noise"
        said.append(f"The change is {signed(moved.delta)}, 95 % interval {ends} over {drawn}, {means}.")
    elif moved.clear is not None:
        apart = "do not overlap: noise alone is an unlikely reason" if moved.clear else "overlap: it may be noise"
        was, then = interval(row[0].low, row[0].high), interval(now.low, now.high)
        said.append(
            f"95 % intervals over {drawn}: {was} at step {row[0].step}, {then} at step {now.step}. They {apart}."
        )
    else:
        said.append(f"There is no interval: {drawn} are too few.")
    return said


def _brief(c: Change) -> str:
    return f"{named(c.metric)} ({number(c.first.value)} → {number(c.last.value)})"


def _company(found: dict[str, Change], domain: str, metric: str) -> list[str]:
    near = [c for name in HEADLINE if name != metric and (c := found.get(f"{domain}/{name}")) and c.clear is not None]
    moved = [_brief(c) for c in near if c.clear and c.narrower]
    still = [named(c.metric) for c in near if not c.clear]
    said = f"Narrower as well, beyond noise: {joined(moved)}. " if moved else ""
    said += f"Not moved beyond noise: {joined(still)}." if still else ""
    return [said.strip()] if said else []


def judged(found: dict[str, Change], domain: str) -> Change | None:
    """The change of quality in `domain`, when anything judged completions."""
    return next((found[f"{domain}/{name}"] for name in QUALITY if f"{domain}/{name}" in found), None)


def _quality(c: Change) -> str:
    ends = interval(c.low, c.high, sign=True)
    numbers = f"{named(c.metric)} went from {number(c.first.value)} to {number(c.last.value)}"
    return numbers + (f" ({signed(c.delta)}, 95 % interval {ends})" if ends else "")


def _bought(found: dict[str, Change], domain: str, *, narrower: bool = True) -> list[str]:
    quality = judged(found, domain)
    if quality is None:
        return ["Unknown: nothing judged the completions, so whether they got better meanwhile cannot be said."]
    numbers = _quality(quality)
    if not narrower:
        return [f"{numbers}."]
    names = ("effective_correct_formats", "coverage", "tail_share")
    lost = [c for name in names if (c := found.get(f"{domain}/{name}")) and c.clear and c.narrower]
    paid = f" Among right answers there is less, too: {joined([_brief(c) for c in lost])}." if lost else ""
    if not quality.clear:
        return [f"Nothing measurable: {numbers}. Narrower without being better is rarely wanted.{paid}"]
    if quality.delta < 0:
        return [f"Quality fell as well: {numbers}. That is a loss, not a trade.{paid}"]
    if lost:
        return [f"Quality rose: {numbers}. It is a trade, not a free gain.{paid}"]
    return [f"Quality rose: {numbers}. This may be benign convergence on what is right."]


def _steps_after(history: History, fired: list[Incident], found: dict[str, Change]) -> list[str]:
    start = min(i.first_seen for i in fired)
    quality = judged(found, fired[0].event.domain)
    if all(incident.resolved is not None for incident in fired):
        how = "after what was done about it (see below)" if acted(history) else "by itself"
        return [f"It came back within its limits {how}. Keep watching, and keep a checkpoint from before it fired."]
    steps = ["Read the completions that narrowed most, below: do they still say different things?"]
    if quality is not None and quality.clear and quality.delta > 0:
        steps.append("If they only agree on what is right, raise the limit of the alarm. If not:")
    before = max((e.step for e in history.evaluations if e.step < start), default=None)
    back = "Start again" if before is None else f"Go back to a checkpoint of about step {before} (before step {start})"
    levers = "a stronger pull to the reference model (KL), a lower learning rate, or another reward"
    if _narrowing(fired[0].event):
        levers = levers.replace("or another reward", "a higher temperature, or a reward that pays variety")
    steps.append(f"{back} and change one thing: {levers}.")
    if quality is None:
        steps.append("Pass quality=, so that the next report can say what the narrowing bought.")
    if len(history.probes) < FEW:
        steps.append(f"Probe more than {len(history.probes)} prompts: with so few, intervals are rough.")
    return steps


def _silent(history: History, watched: Watch, found: dict[str, Change]) -> Verdict:
    first, last = history.evaluations[0].step, history.last_step
    span = f"from step {first} to step {last}"
    near = [c for c in found.values() if c.metric in HEADLINE and c.domain != "all"]
    lower = sorted((c for c in near if c.clear and c.narrower), key=lambda c: -abs(c.relative))
    worse: list[Change] = []
    near_domains = list(dict.fromkeys(c.domain for c in near))[:4]
    waiting = pending(history.events())
    if not watched.rules:
        why = "no alarm was set" if watched.rules == 0 else "the run does not say which alarms were set"
        headline = f"No alarm fired {span}, but {why}."
    else:
        headline = f"No alarm fired in {len(history.evaluations)} evaluations, {span}."
    facts = {"What moved": _moved(near, lower)}
    if waiting:
        facts["About to fire"] = [short(e.message, 400) for e in waiting[:4]]
    facts["How sure"] = [*_reach(history, near), *_blind(watched)]
    if lower:
        facts["What it bought"] = _bought(found, lower[0].domain)
        facts["What to do"] = ["Read the completions that narrowed most, below, and set a rule for what you see there."]
    else:
        facts["Quality"] = [
            f"{placed(c.domain)}, {_quality(c)}." for c in map(partial(judged, found), near_domains) if c
        ]
        facts["What to do"] = ["Nothing. Keep watching."]
        if worse := [c for c in map(partial(judged, found), near_domains) if c and c.clear and c.delta < 0]:
            facts["What to do"] = [f"Diversity held, but quality fell {placed(worse[0].domain)}: look for the reason."]
    facts = {question: list(map(_sentence, answers)) for question, answers in facts.items() if answers}
    uneasy = bool(lower or waiting or worse or not watched.rules)
    return Verdict("watch" if uneasy else "quiet", "No alarm", headline, facts)


def _sentence(said: str) -> str:
    return said[:1].upper() + said[1:]


def _moved(near: list[Change], lower: list[Change]) -> list[str]:
    if not near:
        return ["None of the main metrics was measured."]
    if not lower:
        return ["None of the main metrics became narrower beyond its noise."]
    told = [f"{placed(c.domain)}, the {named(c.metric)} {_from_to(c)}" for c in lower[:4]]
    return [f"Narrower beyond noise, within what the alarms allow: {'; '.join(told)}."]


def _from_to(c: Change) -> str:
    return f"went from {number(c.first.value)} to {number(c.last.value)} ({percent(c.relative)})"


def _reach(history: History, near: list[Change]) -> list[str]:
    """How small a change would still have been seen."""
    widths = [
        (f"{(c.high - c.low) / 2 / c.first.value:.0%}".replace("%", " %"), c)
        for c in near
        if c.metric in ("tfidf_distance", "semantic_distance") and c.paired and c.first.value > 0
    ]
    return [
        f"{placed(c.domain)}, a fall of the {named(c.metric)} by less than about {width} would hide in the "
        f"noise of {_drawn(history, c.domain)}."
        for width, c in widths[:4]
    ]


def _blind(watched: Watch) -> list[str]:
    told = [f"{short(key)} ({short(why, 120)})" for key, why in watched.blind[:6]]
    more = f" and {len(watched.blind) - 6} more" if len(watched.blind) > 6 else ""
    return [f"Could not be judged at all: {'; '.join(told)}{more}."] if told else []
