"""Whatever a critic, a writer, a judge or the disk does: resampling goes on, keeps nothing by halves, and says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sums_task import DigitCritic, Obeys, pairwise, probe, quality, right, tries, wrong

from divmon.errors import HistoryError
from divmon.health import Health
from divmon.mitigations.resample import ResampleSettings
from divmon.records import Probe
from divmon.resampling.base import Attempt, Candidate, Refinement
from divmon.resampling.lineage import Lineage
from divmon.resampling.prompts import shortened
from divmon.resampling.resampler import COUNTED, Resampler

ATTEMPTS = tries(probe(1), 0, 3) + tries(probe(2), 1, 3)


def fails(*args: Any, **options: Any) -> Any:
    raise RuntimeError("no connection")


class Nameless(Exception):
    def __str__(self) -> str:
        raise ValueError("not even a message")


def fails_oddly(*args: Any, **options: Any) -> Any:
    raise Nameless


def writing(write: Any) -> Obeys:
    writer = Obeys()
    writer.write = write  # type: ignore[method-assign]
    return writer


def scoring(logprob: Any) -> Obeys:
    writer = Obeys()
    writer.logprob = logprob  # type: ignore[method-assign]
    return writer


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("critic raises", {"critic": fails}, "the critic failed with RuntimeError: no connection"),
    ("critic raises oddly", {"critic": fails_oddly}, "the critic failed with Nameless"),
    ("critic: None", {"critic": lambda requests, key: None}, "it returned a NoneType"),
    ("critic: one text", {"critic": lambda requests, key: "x" * len(requests)}, "it returned a str"),
    ("critic: too few", {"critic": lambda requests, key: ["off"]}, "it returned 1 texts for 4"),
    ("critic: numbers", {"critic": pairwise(lambda request: 3)}, "a critique failed 4 times; at first with a int"),
    ("critic: nothing", {"critic": pairwise(lambda request: None)}, ""),
    ("critic: blank", {"critic": pairwise(lambda request: " \n")}, ""),
    ("critic takes no key", {"critic": lambda requests: []}, "the critic failed with TypeError"),
    ("writer raises", {"writer": writing(fails)}, "the writer failed with RuntimeError"),
    ("writer: too many", {"writer": writing(lambda p, **o: ["x"] * 99)}, "it returned 99 texts for 16"),
    ("writer: bytes", {"writer": writing(lambda p, **o: [b"x"] * len(p))}, "a refinement failed 16 times"),
    ("writer: nothing", {"writer": writing(lambda p, **o: [None] * len(p))}, ""),
    ("writer: empty", {"writer": writing(lambda p, **o: [""] * len(p))}, ""),
    ("writer: endless", {"writer": writing(lambda p, **o: ["1 + 1 = 2 " * 50_000] * len(p))}, ""),
    ("logprob raises", {"writer": scoring(fails)}, "the writer's logprob failed with RuntimeError"),
    ("logprob: shape", {"writer": scoring(lambda p, t: np.zeros(99))}, "log-probabilities of shape (99,)"),
    ("logprob: words", {"writer": scoring(lambda p, t: ["low"] * len(t))}, "the writer's logprob failed"),
    ("logprob: -inf", {"writer": scoring(lambda p, t: [-np.inf] * len(t))}, ""),
    ("quality raises", {"quality": fails}, "the filter 'correct' failed"),
    ("quality: NaN", {"quality": lambda p, t: float("nan")}, ""),
    ("quality: None", {"quality": lambda p, t: None}, ""),
    ("quality: inf", {"quality": lambda p, t: float("inf")}, "quality must be finite"),
    ("quality: words", {"quality": lambda p, t: "good"}, "the filter 'correct' failed"),
    ("feasible raises", {"feasible": fails}, "the filter 'feasible' failed"),
    ("feasible: no", {"feasible": lambda p, t: 0}, ""),
]


@pytest.mark.parametrize(("options", "message"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_a_fault_keeps_nothing_and_is_told(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    health, lineage = Health(), Lineage(tmp_path / "lineage.jsonl")
    given = {"writer": Obeys(), "critic": DigitCritic(), "quality": quality, **options}
    writer, critic = given.pop("writer"), given.pop("critic")
    made = Resampler(writer, critic, ResampleSettings(), lineage=lineage, health=health, **given)
    found = made.resample(ATTEMPTS, step=1, key=0)
    assert found.accepted == ()
    assert message in " ".join(found.failures)
    assert bool(found.failures) == bool(message) == bool(health.failures["mitigation"])
    assert set(found.counts) == set(COUNTED)
    json.dumps(found.summary(), allow_nan=False)
    assert made.state()["kept"] == {}
    assert not lineage.path.exists()
    if message:
        strict = Resampler(writer, critic, ResampleSettings(), health=Health(strict=True), **given)
        with pytest.raises(Exception):  # noqa: B017
            strict.resample(ATTEMPTS, step=1, key=0)
        assert strict.state()["kept"] == {}


def test_one_bad_critique_costs_only_itself() -> None:
    critic = DigitCritic()
    says = critic.says
    critic.says = lambda request: 7 if request.attempt.probe.id == "sum-001" else says(request)  # type: ignore[method-assign, assignment]
    found = Resampler(Obeys(), critic, ResampleSettings(), quality=quality).resample(ATTEMPTS, step=1, key=0)
    assert {made.probe.id for made in found.accepted} == {"sum-002"}
    assert (found.counts["critiques"], found.counts["uncriticised"]) == (2, 2)


def test_huge_critiques_are_cut_and_huge_refinements_are_of_no_use() -> None:
    critic, writer = DigitCritic(), Obeys()
    critic.says = lambda request: "It is off by 1. " + "x" * 1_000_000  # type: ignore[method-assign]
    texts = [right(probe(1)), right(probe(1)) + " " * 300_000, None]
    writer.writes = lambda prompt, key: texts[key % 3]  # type: ignore[method-assign]
    found = Resampler(writer, critic, ResampleSettings(), quality=quality).resample(ATTEMPTS[:3], step=1, key=0)
    assert [made.text for made in found.accepted] == texts[:1]
    assert found.accepted[0].candidate.critique == shortened(critic.says(None))  # type: ignore[arg-type]
    assert found.counts["unfinished"] == sum(key % 3 > 0 for key in writer.calls[0][2])


def test_a_critic_that_fails_in_a_later_round_leaves_what_was_accepted() -> None:
    calls: list[int] = []

    def critic(requests: Any, *, key: int) -> list[str]:
        calls.append(len(requests))
        if len(calls) > 1:
            raise TimeoutError
        return ["It is off by 1."] * len(requests)

    writer = Obeys()
    writer.writes = lambda prompt, key: right(probe(1)) if probe(1).text in prompt else "no"  # type: ignore[method-assign]
    settings = ResampleSettings(variant="interactive", reveal=True)
    found = Resampler(writer, critic, settings, quality=quality).resample(ATTEMPTS, step=1, key=0)  # type: ignore[arg-type]
    assert [made.probe.id for made in found.accepted] == ["sum-001"]
    assert calls == [2, 1]  # a critic that is down is not asked round after round
    assert found.failures == ("the critic failed with TimeoutError",)


def test_nothing_to_do_asks_nobody() -> None:
    made = Resampler(writing(fails), fails, ResampleSettings(), quality=quality)
    for attempts in ([], tries(probe(1), 4, 0), tries(probe(1), 5, 3)):
        found = made.resample(attempts, step=0, key=0)
        assert (found.accepted, found.failures) == ((), ())
    broken = made.resample([3], step=0, key=0)  # type: ignore[list-item]
    assert broken.failures[0].startswith("the pass failed with AttributeError")


HOSTILE = [
    "{gold}",
    "{critique}{0}{}",
    "\ud800 34",
    "終わり" * 20,
    "x" * 100_000,
    "\0",
    "%s%(gold)s",
    "\\boxed{",
    "a\u2028",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_passes_through_unharmed(text: str, tmp_path: Path) -> None:
    p = replace(probe(1), gold="SECRET #### 34", id=text[:50])
    writer, critic = Obeys(), DigitCritic()
    critic.says = lambda request: text  # type: ignore[method-assign]
    writer.writes = lambda prompt, key: f"{text} {key}"  # type: ignore[method-assign]
    lineage = Lineage(tmp_path / "lineage.jsonl")
    made = Resampler(writer, critic, ResampleSettings(overlap=1.0), quality=lambda p, t: 1.0, lineage=lineage)
    found = made.resample([Attempt(p, text, 0.0), Attempt(p, "5", 0.0)], step=1, key=0)
    assert found.failures == ()
    assert found.accepted
    assert not any("SECRET" in prompt for prompt in writer.calls[0][0])
    assert repr(Lineage.read(lineage.path)) == repr(found.accepted)
    fresh = Resampler(writer, critic, ResampleSettings(), quality=quality)
    fresh.restore(json.loads(json.dumps(made.state())))
    assert fresh.state() == made.state()


# --- lineage ----------------------------------------------------------------------------------------------------------


def refinement(step: int, text: str = "34") -> Refinement:
    p = Probe("a", ({"role": "user", "content": "11 + 23?"},), domain="sums", gold="34", difficulty=2)
    told = Candidate(Attempt(p, wrong(probe(1)), 0.0), "off\nby 1", text, "interactive", "digits", "obeys", 3, (1, 2))
    return Refinement(told, step, quality=1.0, logprob=-0.5, novelty=0.25, passed=("feasible", "correct"))


def test_lineage_round_trip(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path / "deep" / "lineage.jsonl")
    lineage.append([])
    assert not lineage.path.exists()
    made = [refinement(i, text) for i, text in enumerate(["34", "\u2028\ud800\n", "", "34"])]
    lineage.append(made[:3])
    Lineage(lineage.path).append(made[3:])  # another process, after a resume
    assert Lineage.read(lineage.path) == tuple(made)
    unknown = replace(
        made[0], quality=float("nan"), logprob=-np.inf, candidate=replace(made[0].candidate, token_ids=None)
    )
    Lineage(lineage.path).append([unknown])
    assert repr(Lineage.read(lineage.path)[-1]) == repr(unknown)
    columns = replace(made[0].probe, columns={"thing": object()}, token_ids=(1,))
    told = replace(made[0].candidate, attempt=replace(made[0].candidate.attempt, probe=columns))
    Lineage(lineage.path).append([replace(made[0], candidate=told)])
    assert Lineage.read(lineage.path)[-1] == made[0]


def test_lineage_survives_a_kill_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "lineage.jsonl"
    made = [refinement(i) for i in range(3)]
    Lineage(path).append(made)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (0, 1, first - 1, first, first + 7, len(whole) - 1):
        path.write_bytes(whole[:cut])
        left = whole[:cut].count(b"\n")
        assert Lineage.read(path) == tuple(made[:left])
        Lineage(path).append([made[2]])
        assert Lineage.read(path) == (*made[:left], made[2])


def test_lineage_after_a_resume_from_an_earlier_checkpoint(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path / "lineage.jsonl")
    lineage.rewind(3)
    assert not lineage.path.exists()
    lineage.append([refinement(10), refinement(20), refinement(30)])
    lineage.rewind(20)
    lineage.append([refinement(25)])
    assert [made.step for made in Lineage.read(lineage.path)] == [10, 20, 25]


@pytest.mark.parametrize("line", ["{", "3", "[]", "{}", '{"probe": 1}'])
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "lineage.jsonl"
    Lineage(path).append([refinement(1)])
    path.write_text(line + "\n" + path.read_text("ascii"), "ascii")
    with pytest.raises(HistoryError, match="line 1 is damaged"):
        Lineage.read(path)
    with pytest.raises(HistoryError, match="There is no"):
        Lineage.read(tmp_path / "other.jsonl")


def test_a_full_disk_is_told_and_made_good_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lineage = Lineage(tmp_path / "lineage.jsonl")
    made = Resampler(Obeys(), DigitCritic(), ResampleSettings(novelty=0.0), quality=quality, lineage=lineage)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        first = made.resample(ATTEMPTS, step=1, key=0)
    assert first.accepted
    assert first.failures == ("writing the lineage failed with OSError: [Errno 28] No space left on device",)
    assert made.state()["kept"]
    second = made.resample(ATTEMPTS, step=2, key=0)
    assert second.failures == ()
    assert repr(Lineage.read(lineage.path)) == repr(first.accepted + second.accepted)  # none lost, none twice
