"""One rank of a run: ``torchrun --nproc-per-node 2 worker.py OUT MODE``. Prints DONE and the last step."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

import divmon
from divmon.samplers.generate import GenerateSampler

CONFIRMED = [
    {
        "name": "moved",
        "metric": "token_entropy",
        "rule": "outside",
        "by": "0.2%",
        "tolerate": "0%",
        "severity": "critical",
    },
    {"name": "long", "metric": "length", "rule": "drop", "by": 1e-6, "tolerate": 0, "severity": "critical"},
]

LOST = {"name": "lost", "metric": "retained_mass", "rule": "drop", "by": 1e-6, "for": 1, "then": ["save"]}


def load(name: str) -> Any:
    path = Path(__file__).parents[1] / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def break_rank(rank: int, seam: str) -> None:
    """Make `seam` fail on one rank only."""
    import os

    if int(os.environ.get("RANK", "0")) != rank:
        return

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{seam} broke on rank {rank}")

    if seam == "sampler":
        GenerateSampler.__call__ = broken  # type: ignore[method-assign]
    elif seam == "scorer":
        from divmon.samplers.score import Scorer

        score = Scorer.__call__

        def once(self: Any, bank: Any, *, step: int) -> Any:
            return score(self, bank, step=step) if step < 2 else broken()

        Scorer.__call__ = once  # type: ignore[method-assign]
    elif seam == "metric":
        from divmon import monitor

        monitor.evaluate = broken
    elif seam == "start":
        from divmon import opening

        opening.choose_probes = broken
    elif seam == "draw":
        draw = GenerateSampler.__call__

        def late(self: Any, *given: Any, **more: Any) -> Any:
            return draw(self, *given, **more) if self.k == 3 else broken()

        GenerateSampler.__call__ = late  # type: ignore[method-assign]
    elif seam == "confirm":
        from divmon import confirming

        confirming.Confirmations._test = broken  # type: ignore[method-assign]
        confirming.Confirmations.row = property(broken)  # type: ignore[assignment]
    elif seam == "verdict":
        from divmon.levers.diversity import DiversityReward

        DiversityReward.verdict = broken  # type: ignore[method-assign]
    elif seam == "pass":
        from divmon.resampling import inrun

        inrun.prepare = broken  # type: ignore[assignment]
    elif seam == "text":
        from divmon.levers import groups

        groups._text = broken  # type: ignore[assignment]
    elif seam == "rollback":
        from divmon.levers.healthy import HealthyCheckpoints

        read = HealthyCheckpoints.read
        HealthyCheckpoints.read = lambda self, step: broken() if step == 2 else read(self, step)  # type: ignore[method-assign]
    elif seam == "disk":
        from divmon import opening

        opening.History.create = broken


NOW = [0]  # the step that is being trained


def told(texts: list[str]) -> float:
    return float(NOW[0] == 4)


def label(text: str) -> str:
    return "abc"[sum(map(ord, text)) % 3]


def every_one(completions: list[str], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def resample(out: Path, tiny: Any, mode: str) -> None:
    """Every refinement that is accepted on rank 0 reaches the batches of the loss on every rank."""
    running = load("resampling/running")
    watched = {"strict": mode == "resample", **({"critic": running.failing} if mode == "resample-failing" else {})}
    if mode.endswith("plain"):
        story = running.plain(tiny.sft, out, max_steps=6, per_device_train_batch_size=2)
    else:
        if ":" in mode:
            break_rank(int(mode.split(":")[1]), mode.split(":")[0])
        story = running.train(tiny.sft, out, watched=watched, max_steps=6, per_device_train_batch_size=2)
    known = {tuple(tiny.tokenizer()(p + running.answer(p))["input_ids"]) for p in tiny.PROMPTS}
    found = {
        step: sum(any(row[: len(ids)] == ids for ids in known) for row in running.rows_of(batches, 0))
        for step, batches in story.seen.items()
    }
    accepted = mode == "resample"
    assert found == {step: 2 if accepted and step >= 4 else 0 for step in range(1, 7)}, found
    print(f"DONE {story.trainer.state.global_step} {tiny.digest(story.trainer.model)}", flush=True)


def whole_digest(model: Any) -> str:
    """sha256 of every weight, put together from all ranks where it is sharded."""
    import hashlib

    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        sha.update(name.encode() + value.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def sharded(out: Path, tiny: Any) -> None:
    """FSDP2 in a real trainer, without divmon and with it: the same weights, none of them left whole.

    Accelerate turns FSDP on for accelerators only; here its state says so on CPU, and everything else is its own.
    """
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    init = AcceleratorState.__init__

    def told(self: Any, *given: Any, **more: Any) -> None:
        init(self, *given, **more)
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["GPT2Block"],
            cpu_ram_efficient_loading=False,
        )  # fmt: skip

    AcceleratorState.__init__ = told
    # five prompts of different lengths: shares would be unequal
    given = {"probes": [*tiny.PROMPTS[:4], "1+2+3+4="], "alarms": CONFIRMED}
    watched = divmon.DiversityCallback(
        every=2, k=3, max_new_tokens=8, sinks=[], strict=True, score_every=1, confirm_k=4, **given
    )
    found = []
    for callbacks, folder in (([], out / "plain"), ([watched], out)):
        trainer = tiny.sft(folder, callbacks=callbacks, max_steps=4)
        assert trainer.accelerator.is_fsdp2
        trainer.train()
        assert {type(p).__name__ for p in trainer.model.parameters()} == {"DTensor"} or not callbacks
        found.append((whole_digest(trainer.model), tiny.rows(trainer)))
    assert found[0] == found[1]
    print(f"DONE {trainer.state.global_step} {found[1][0]}", flush=True)


def main(out: Path, mode: str) -> None:
    torch.set_num_threads(1)
    tiny = load("tiny")
    if mode == "sharded":
        sharded(out, tiny)
        return
    if mode.startswith(("resample", "pass")):
        resample(out, tiny, mode)
        return
    settings: dict[str, Any] = {"every": 2, "k": 3, "max_new_tokens": 8, "sinks": []}
    if mode == "stop":
        rule = {"name": "always", "metric": "length", "rule": "above", "level": 0.5, "for": 2, "then": ["save", "stop"]}
        settings["alarms"] = [rule]
    if mode == "grpo-mixture":
        settings["score_every"] = 1
    if mode.startswith("scorer"):  # rank 0 reads its clock: the others could not know
        settings |= {"budget": "60%", "alarms": [LOST]}
    if mode.startswith(("draw", "confirm")):
        settings["alarms"] = CONFIRMED
    more: dict[str, Any] = {}
    if mode.startswith(("grpo-lever", "verdict", "text")):  # two rows a rank, four a group: no rank has a whole one
        rule = {"name": "always", "metric": "length", "rule": "above", "level": 0.5, "then": ["diversity_reward"]}
        settings |= {"alarms": [rule], "formats": label, "strict": mode == "grpo-lever"}
        more = {"rewards": every_one, "per_device_train_batch_size": 2, "scale_rewards": "none"}
    if mode.startswith("rollback"):
        broken = {"name": "told", "metric": "told", "rule": "above", "level": 0.5, "for": 1, "then": ["rollback"]}
        settings |= {"alarms": [broken], "metrics": [told, "length"]}
    if ":" in mode:
        seam, rank = mode.split(":")
        break_rank(int(rank), seam)
    seen: dict[int, str] = {}

    class Spy(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            seen[state.global_step] = tiny.digest(given["model"]) + str(given["lr_scheduler"].base_lrs)

        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            NOW[0] = state.global_step + 1
            if not seen:
                self.on_step_end(args, state, control, **given)

    callbacks = [] if mode.endswith("plain") else [divmon.DiversityCallback(**settings)]
    trainer = (tiny.grpo if mode.startswith(("grpo", "verdict", "text")) else tiny.sft)(
        out, callbacks=[*callbacks, Spy()], **more
    )
    trainer.train()
    if mode == "rollback:1":  # one rank could not read the checkpoint of step 2, so both are back at the first weights
        assert seen[4] == seen[0].replace("0.005", "0.0025") != seen[3]
        assert trainer.optimizer.state_dict()["param_groups"][0]["initial_lr"] == 0.0025
    if mode == "grpo-lever":
        texts, found = list(trainer._logs["completion"]), list(trainer._logs["advantages"])
        labels = [label(text) for text in texts]
        rewards = [max((4 - labels.count(name)) / 3, 0.1) for name in labels]
        expected = [reward - sum(rewards) / 4 for reward in rewards]
        assert len(found) == 4
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-6, (found, expected)
    print(f"DONE {trainer.state.global_step} {tiny.digest(trainer.model)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
