"""Faults of the disk: training goes on as if nothing had been asked, and the event log says what happened."""

from __future__ import annotations

import json
import pickle
import resource
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

import divmon
from divmon.levers.healthy import HealthyCheckpoints, Unusable

SFT: dict[str, Any] = {"max_steps": 6, "watch": {"strict": False}}


class At(TrainerCallback):
    """Does something to the run at the end of a step, before divmon looks."""

    def __init__(self, step: int, act: Any) -> None:
        self.step, self.act = step, act

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.act(Path(args.output_dir) / "divmon" / "healthy")


def cut(folder: Path, step: int) -> None:
    path = folder / f"step-{step:08d}.pt"
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder: Path, step: int) -> None:
    path = folder / f"step-{step:08d}.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def delete(folder: Path, step: int) -> None:
    (folder / f"step-{step:08d}.pt").unlink()


class Payload:
    def __reduce__(self) -> Any:
        return Path.write_text, (Path("pwned"), "x")


def poison(folder: Path, step: int) -> None:
    """A file with a right checksum that would run code if it were unpickled."""
    path = folder / f"step-{step:08d}.pt"
    torch.save({"weights": Payload()}, path)
    row = {"format": 1, "step": step, "bytes": path.stat().st_size, "crc32": zlib.crc32(path.read_bytes())}
    path.with_suffix(".json").write_text(json.dumps(row))


def other_model(folder: Path, step: int) -> None:
    found = torch.load(folder / f"step-{step:08d}.pt", weights_only=True)
    found["weights"] = {name: tensor[..., :1] for name, tensor in found["weights"].items()}
    HealthyCheckpoints(folder).write(step, found)


@pytest.mark.trainer
@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (cut, "torn or damaged"),
        (flip, "torn or damaged"),
        (delete, "is incomplete (FileNotFoundError"),
        (poison, "cannot be read"),
        (other_model, "its weights are not those that are trained now"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(
    tiny: Any, told: Any, harm: Any, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run = told(tiny.sft, extra=[At(4, lambda folder: harm(folder, 2))], **SFT)
    assert run.changes == [(4, "failed", 1.0), (4, "applied", 0.5)]
    first, second = run.history.mitigations
    assert why in first.reason
    assert "healthy checkpoint of step 0" in second.reason
    assert run.seen[4]["digest"] == run.seen[0]["began"]
    assert run.trainer.state.global_step == 6
    assert run.observed[-1].health["mitigation_failures"] == 1
    assert not Path("pwned").exists()


@pytest.mark.trainer
def test_without_any_checkpoint_training_goes_on_as_it_was(tiny: Any, told: Any, tmp_path: Path) -> None:
    plain = tiny.sft(tmp_path / "plain", max_steps=6)
    plain.train()

    def empty(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()

    run = told(tiny.sft, extra=[At(4, empty)], **SFT)
    assert [change.phase for change in run.history.mitigations] == ["failed", "failed", "refused"]
    assert run.history.mitigations[-1].reason == "No healthy checkpoint is left to go back to."
    assert tiny.digest(run.trainer.model) == tiny.digest(plain.model)


@pytest.mark.trainer
def test_a_full_disk_keeps_what_is_there(tiny: Any, told: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The file system itself refuses files as large as a checkpoint, from step 1 on."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = At(1, lambda folder: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard)))
    try:
        run = told(tiny.sft, extra=[limit], **SFT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert run.changes == [(2, "failed", 1.0), (4, "applied", 0.5), (6, "failed", 0.5)]
    said = run.history.mitigations[0].reason
    assert said.startswith("This healthy policy could not be kept (")
    assert said.endswith("; the one of step 0 stays.")
    assert run.seen[4]["digest"] == run.seen[0]["began"]
    assert run.kept == ["step-00000000.json", "step-00000000.pt"]  # nothing half written lies about
    assert "training goes on" in caplog.text


@pytest.mark.trainer
def test_an_optimizer_that_cannot_be_put_back_leaves_all_as_it_was(
    tiny: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_scheduler(folder: Path) -> None:
        def once(self: Any, state: Any) -> None:
            monkeypatch.setattr(LambdaLR, "load_state_dict", load)
            raise RuntimeError("no")

        monkeypatch.setattr(LambdaLR, "load_state_dict", once)

    load = LambdaLR.load_state_dict
    broken = told(tiny.sft, "broken", extra=[At(4, break_scheduler)], **SFT)
    whole = told(tiny.sft, "whole", breaks=[], **SFT)
    assert broken.changes == [(4, "refused", 1.0)]
    assert "Putting the checkpoint of step 2 back failed: RuntimeError: no" in broken.history.mitigations[0].reason
    assert tiny.digest(broken.trainer.model) == tiny.digest(whole.trainer.model)


def test_what_torch_would_unpickle_is_not_kept(tmp_path: Path) -> None:
    files = HealthyCheckpoints(tmp_path)
    files.write(3, {"weights": {"w": torch.ones(2)}})
    assert files.read(3)["weights"]["w"].tolist() == [1.0, 1.0]
    assert files.steps == [3]
    (tmp_path / "step-00000003.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(Unusable, match="torn or damaged"):
        files.read(3)
    with pytest.raises(Unusable, match="incomplete"):
        files.read(4)
    files.remove(3, 4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.trainer
def test_a_checkpoint_reads_as_its_doc_says(tiny: Any, told: Any) -> None:
    run = told(tiny.sft, breaks=[], max_steps=2)
    found = torch.load(run.out / "divmon" / "healthy" / "step-00000002.pt", weights_only=True)
    model = tiny.gpt2(seed=5)
    missing = model.load_state_dict(found["weights"], strict=False)
    assert missing.unexpected_keys == []
    assert tiny.digest(model) == tiny.digest(run.trainer.model)
    assert divmon.History.read(run.out).mitigations == []
