"""Which rows give way to refinements: a function of the row, the epoch and the offer, and of nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from divmon.errors import DivmonError
from divmon.health import Health
from divmon.resampling.inrun import PATIENCE, InRun
from divmon.resampling.serving import Serving
from divmon.samplers.ranks import Ranks

COLUMNS = ("input_ids", "labels")


def row(prompt: int, *answer: int) -> dict[str, list[int]]:
    return {"input_ids": [prompt, *answer], "labels": [-100, *answer]}


def trainer(epoch: float = 0.0) -> Any:
    return SimpleNamespace(state=SimpleNamespace(epoch=epoch), args=SimpleNamespace(ignore_data_skip=False))


def serving(*, share: float = 0.0, strength: float = 1.0, epoch: float = 0.0, rows: Any = ()) -> Serving:
    found = Serving(trainer(epoch), COLUMNS, share=share, health=Health(strict=True))
    found.add(rows or [row(7, 70), row(7, 71)])
    found.offer(strength=strength)
    return found


def batch(*prompts: int) -> dict[str, Any]:
    rows = [row(p, p + 1, p + 2) for p in prompts]
    return {name: [r[name] for r in rows] for name in COLUMNS}


def taken(found: Serving, *prompts: int) -> list[bool]:
    return [ids != [p, p + 1, p + 2] for p, ids in zip(prompts, found(batch(*prompts))["input_ids"], strict=True)]


def test_rows_of_the_prompt_give_way_and_its_refinements_take_turns_over_the_epochs() -> None:
    turns = [serving(epoch=e)(batch(7, 8))["input_ids"] for e in range(4)]
    assert {tuple(ids) for ids, _ in turns} == {(7, 70), (7, 71)}
    assert all(other == [8, 9, 10] for _, other in turns)


@pytest.mark.parametrize(("share", "strength", "expected"), [(0.3, 1.0, 0.3), (0.5, 0.5, 0.25), (0.0, 1.0, 0.0)])
def test_a_share_of_other_rows_gives_way_anew_each_epoch(share: float, strength: float, expected: float) -> None:
    prompts = range(100, 2100)
    first, second = (taken(serving(share=share, strength=strength, epoch=e), *prompts) for e in (0, 1))
    for chosen in (first, second):
        assert sum(chosen) / len(chosen) == pytest.approx(expected, abs=0.035)
    assert (first == second) == (expected == 0)
    assert taken(serving(share=share, strength=strength), *prompts) == first


def test_nothing_to_serve_returns_the_very_batch() -> None:
    given = batch(7, 8)
    assert serving(strength=0.0)(given) is given
    empty = Serving(trainer(), COLUMNS, share=1.0, health=Health(strict=True))
    empty.offer(strength=1.0)
    assert empty(given) is given
    assert serving()({"input_ids": [[7]]}) == {"input_ids": [[7]]}  # somebody looks at one column


def test_rows_that_are_all_loss_have_no_prompt_of_their_own() -> None:
    whole = {"input_ids": [7, 70], "labels": [7, 70]}
    found = serving(rows=[whole])
    assert found({"input_ids": [[7, 71], [8, 9]], "labels": [[7, 71], [8, 9]]})["input_ids"] == [[7, 71], [8, 9]]


def test_the_batch_read_ahead_of_a_checkpoint_is_read_again_as_it_was() -> None:
    before = serving(strength=0.0)
    before(batch(7))
    before.offer(strength=1.0)  # and the checkpoint is written before the next batch is read
    for epoch, ahead in ((0.5, True), (1.0, False)):
        after = serving(strength=0.0, epoch=epoch)
        after.restore(before.state())
        assert taken(after, 7) == [not ahead]
        assert taken(after, 7) == [True]


def test_a_data_set_keeps_its_own_transform_and_gets_it_back() -> None:
    def doubled(rows: dict[str, Any]) -> dict[str, Any]:
        return {name: [[*ids, 99] for ids in values] for name, values in rows.items()}

    data = Dataset.from_list([row(7, 70), row(8, 80)]).with_transform(doubled)
    found = serving(strength=0.0)
    found.attach(SimpleNamespace(dataset=data))
    assert data.__getitems__([0, 1])[1] == {"input_ids": [8, 80, 99], "labels": [-100, 80, 99]}
    found.offer(strength=1.0)
    assert data[0]["input_ids"] in ([7, 70], [7, 71])
    found.detach()
    assert data.format["format_kwargs"]["transform"] is doubled
    with pytest.raises(DivmonError, match="the trainer's loader reads a list"):
        found.attach(SimpleNamespace(dataset=[]))


def test_a_lever_whose_rows_are_never_read_says_so() -> None:
    quiet = Serving(trainer(), COLUMNS, share=0.0, health=Health(strict=True))
    lever = InRun(quiet, [], resampler=None, health=Health(strict=True), ranks=Ranks())
    quiet.add([row(7, 70)])
    assert lever.verdict() is None
    lever.set(1.0)
    for _ in range(PATIENCE):
        lever.tick()
        assert lever.verdict() is None
    lever.tick()
    assert lever.verdict() is False
    quiet(batch(8))
    assert lever.verdict() is None  # read, and no row of it was to give way
    quiet(batch(7))
    assert lever.verdict() is True
