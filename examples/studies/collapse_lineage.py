"""Where does output diversity collapse: which stage of a lineage takes it, and is it narrowing or fewer errors?

The lineage is made here, from the packaged model that answers sums in four formats: SFT on one of them, DPO that
prefers right answers to wrong ones, GRPO that pays right answers. A second branch turns the order round: GRPO straight
from the base, then the same SFT, so that the data can be told from the place. `divmon.trace` samples all checkpoints on
the same prompts. Half-way it is interrupted, as by Ctrl-C, and started again; the numbers must be those of a trace that
was never interrupted.

    python examples/studies/collapse_lineage.py                # about two minutes
    python examples/studies/collapse_lineage.py --quick        # fewer steps and prompts
    python examples/studies/collapse_lineage.py --out runs/lineage   # keeps checkpoints, completions and the page
"""

import argparse
import json
import os
import tempfile
import threading
import time
from _thread import interrupt_main
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from _study import Outcome, Study, run

import divmon
from divmon.demo import sums
from divmon.tracing.attribution import AGGREGATORS

STUDY = Study(
    name="Where does it collapse?",
    question="Which stage, which data, the format or the weights?",
    claim="Most diversity goes where a model is fine-tuned on data of one form, not in the DPO and RL after it.",
    feature="`divmon trace base=... sft=... dpo=... --probes FILE --out DIR`; `divmon.trace`",
    source="Karouzos et al. 2026, arXiv:2604.16027",
)
FORM = "bullets"
STEPS = {"sft": 30, "dpo": 20, "grpo": 20, "zero": 20, "late": 30}
QUICK = {"sft": 15, "dpo": 5, "grpo": 3, "zero": 3, "late": 15}
METRICS = ("tfidf_distance", "effective_formats")
TRACED = {"k": 8, "max_new_tokens": 32, "formats": sums.label}


def is_right(probe: divmon.Probe, text: str) -> float:
    return float(sums.is_correct(text, int(probe.gold or -1)))


def settings(out: Path, steps: int, seed: int, **more: Any) -> dict[str, Any]:
    """What the arguments of all trainers share."""
    return {
        "output_dir": str(out), "max_steps": steps, "seed": seed, "learning_rate": 3e-4, "report_to": "none",
        "lr_scheduler_type": "constant", "per_device_train_batch_size": 8, "save_strategy": "no", "bf16": False,
        "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no", "gradient_checkpointing": False, **more,
    }  # fmt: skip


def tokenizer() -> Any:
    from divmon.demo.training import load_tokenizer

    return load_tokenizer()


def table(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def write(s: sums.Sum, answer: int) -> str:
    return sums.write(FORM, s.a, s.b, answer)


def sft(model: Any, out: Path, steps: int, seed: int) -> Any:
    """On right answers of one form."""
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": s.prompt, "completion": write(s, s.answer)} for s in sums.prompts()]
    return SFTTrainer(
        model=model, processing_class=tokenizer(), train_dataset=table(rows),
        args=SFTConfig(**settings(out, steps, seed)),
    )  # fmt: skip


def dpo(model: Any, out: Path, steps: int, seed: int) -> Any:
    """A right answer is preferred to a wrong one, both of the form that is left."""
    from trl import DPOConfig, DPOTrainer

    rows = [
        {"prompt": s.prompt, "chosen": write(s, s.answer), "rejected": write(s, (s.answer + 1 + i % 7) % 19)}
        for i, s in enumerate(sums.prompts())
    ]
    return DPOTrainer(
        model=model, processing_class=tokenizer(), train_dataset=table(rows),
        args=DPOConfig(**settings(out, steps, seed, learning_rate=5e-5)),
    )  # fmt: skip


def grpo(model: Any, out: Path, steps: int, seed: int) -> Any:
    """Right answers are paid, in whatever form."""
    from trl import GRPOConfig, GRPOTrainer

    from divmon.demo.training import LEARNING_RATE

    rows = [{"prompt": s.prompt, "answer": s.answer} for s in sums.prompts()]
    group = {
        "per_device_train_batch_size": 64, "num_generations": 8, "max_completion_length": 32, "temperature": 1.0,
        "learning_rate": LEARNING_RATE, "beta": 0.0, "scale_rewards": "none",
    }  # fmt: skip
    return GRPOTrainer(
        model=model, processing_class=tokenizer(), train_dataset=table(rows),
        reward_funcs=sums.correctness,
        args=GRPOConfig(**settings(out, steps, seed, **group)),
    )  # fmt: skip


def make(folder: Path, steps: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Train the lineage; names to sources, as `divmon.trace` takes them."""
    from transformers import PrinterCallback

    from divmon.demo.training import load_model

    makers = {
        "sft": (sft, "base"),
        "dpo": (dpo, "sft"),
        "grpo": (grpo, "dpo"),
        "zero": (grpo, "base"),
        "late": (sft, "zero"),
    }
    load_model().save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    lineage: dict[str, Any] = {"base": folder / "base"}
    for name, (maker, parent) in makers.items():
        model = load_model() if parent == "base" else type(load_model()).from_pretrained(folder / parent)
        trainer = maker(model, folder / "training", steps[name], seed)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.save_model(str(folder / name))
        lineage[name] = {"source": str(folder / name), "parent": parent}
    return lineage


def interrupted(lineage: Mapping[str, Any], probes: list[Any], out: Path, blocks: int) -> bool:
    """Start a trace, press Ctrl-C once so many blocks of completions are there; whether that came in time."""
    done = threading.Event()

    def press() -> None:
        while not done.is_set() and len(list(out.rglob("*.gz"))) < blocks:
            time.sleep(0.005)
        if not done.is_set():
            interrupt_main()

    threading.Thread(target=press, daemon=True).start()
    try:
        divmon.trace(lineage, probes, out=out, quality=is_right, **TRACED)
        done.set()
        time.sleep(0.05)
    except KeyboardInterrupt:
        return True
    return False


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    steps = dict(QUICK if args.quick else STEPS)
    chosen = sums.prompts()[:: 4 if args.quick else 2]
    probes = [
        {"id": s.prompt, "prompt": s.prompt, "gold": str(s.answer), "domain": "carry" if s.a + s.b > 9 else "no carry"}
        for s in chosen
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        lineage = make(folder / "checkpoints", steps, args.seed)
        stopped = interrupted(lineage, probes, folder / "trace", blocks=3)
        resumed = divmon.trace(lineage, probes, out=folder / "trace", quality=is_right, **TRACED)
        whole = divmon.trace(lineage, probes, out=folder / "whole", quality=is_right, **TRACED)
        resumed.save(folder / "trace")
        print(resumed.table())
    same = json.dumps(resumed.to_json(), sort_keys=True) == json.dumps(whole.to_json(), sort_keys=True)
    return {**read(resumed), "interrupted": stopped, "the same when resumed": same}


def read(found: Any) -> dict[str, Any]:
    """The numbers of the verdict."""
    numbers: dict[str, Any] = {}
    for metric in METRICS:
        for aggregator in AGGREGATORS:
            series = found.get(metric, aggregator=aggregator)
            stages = {stage.name: stage for stage in series.stages[1:]}
            first, second = series.blames
            numbers[f"{metric}, {aggregator}"] = {
                **{name: stage.change for name, stage in stages.items()},
                "low": -stages["sft"].change_high,
                "high": -stages["sft"].change_low,
                "kept": stages["grpo"].retained,
                "worst": first.stage or "none",
                "sure": first.sure,
                "worst, turned round": second.stage or "none",
            }
    split = found.split("sft")
    numbers["narrowing in sft"] = {"share": split.narrowing, "low": split.low, "high": split.high, "prompts": split.n}
    return numbers


def judge(numbers: Mapping[str, Any]) -> Outcome:
    tables = [numbers[f"{metric}, {aggregator}"] for metric in METRICS for aggregator in AGGREGATORS]
    first = tables[0]
    number = (
        f"surface distance: SFT took {-first['sft']:.0f} ({first['low']:.0f} to {first['high']:.0f}) of the "
        f"{100 - first['kept']:.0f} points lost, DPO {-first['dpo']:.0f}, GRPO {-first['grpo']:.0f}; turned round, "
        f"GRPO {-first['zero']:.0f}, SFT {-first['late']:.0f}"
    )
    same = "the same" if numbers["the same when resumed"] else "NOT the same"
    how = f"Interrupted and resumed, the numbers are {same}." if numbers["interrupted"] else "It was not interrupted."
    named, turned = (sorted({table[key] for table in tables}) for key in ("worst", "worst, turned round"))
    if named == ["none"]:
        return Outcome(number, f"No stage has a loss beyond the noise over prompts. {how}", None)
    told = (
        f"By both metrics and aggregators {named[0]} lost most"
        if len(named) == 1
        else f"{' and '.join(named)} are named"
    )
    told += f"; with RL first, {' or '.join(turned)} did. {how}"
    return Outcome(number, told, named == ["sft"] and numbers["the same when resumed"])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="keep everything there")


if __name__ == "__main__":
    run(STUDY, measure, judge, options=options)
