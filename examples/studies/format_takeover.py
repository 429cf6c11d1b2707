"""Which output format takes over in RL, is it the best one, how fast, and does a KL penalty leave the others alive?

The packaged model answers sums in four formats. It is trained a little further on mixtures that differ in how common
and how right each format is, and each base then goes through GRPO with a reward that pays right answers only, with and
without a KL penalty. Shares are by the task's own four formats, and by the rule of the published code ("llm-code",
"tinygsm-code", "text"), which knows two of them here.

    python examples/studies/format_takeover.py            # 4 GRPO runs: 2 mixtures x KL 0 and 0.01
    python examples/studies/format_takeover.py --quick    # 2 short ones, too short for a format to pass 80 %
    python examples/studies/format_takeover.py --full     # 36: 2 sizes, 3 mixtures, KL 0, 0.001, 0.01, GRPO and PPO

``--full`` takes about half an hour on one core (``--jobs 2`` halves that) and needs a TRL that has PPO (1.12 is
the last); its table is in FORMATS.md. Runs that are already in ``--out`` are read, not trained again.
"""

import argparse
import itertools
import json
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from _study import Outcome, Study, run

STUDY = Study(
    name="One format wins",
    question="Which format is taking over, is it the best one, how fast, and does KL or scale change it?",
    claim="RL ends in one format of the base model, and the winner is not always the commonest or the most accurate.",
    feature="curves `format_dominance`, `effective_formats`, `winner_gap`; `formats=`; report: steps to dominance",
    source="Zhao et al. 2025, arXiv:2504.07912",
)
# mixture -> format -> how common it is, and the share of sums that it always gets wrong (off by one). Errors that are
# the same each time are ignorance, which RL cannot sample its way out of; errors by chance it would simply train away.
MIXTURES = {
    "best is commonest": {"program": (0.4, 0.1), "prose": (0.3, 0.6), "latex": (0.2, 0.5), "bullets": (0.1, 0.4)},
    "best is rare": {"program": (0.25, 0.5), "prose": (0.45, 0.6), "latex": (0.15, 0.5), "bullets": (0.15, 0.1)},
    "worse is commonest": {"program": (0.1, 0.2), "prose": (0.7, 0.4), "latex": (0.1, 0.2), "bullets": (0.1, 0.2)},
}
SIZES = {"0.3M": {}, "0.1M": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}}
EVERY = 8


@dataclass(frozen=True)
class Cell:
    """One run of RL."""

    size: str
    mixture: str
    kl: float
    algorithm: str
    steps: int
    seed: int
    further: int = 300  # steps of the base on the mixture, before RL

    @property
    def name(self) -> str:
        """As a folder is called."""
        return f"{self.size} {self.mixture} kl{self.kl:g} {self.algorithm} {self.steps} s{self.seed}".replace(" ", "_")


def documents(mixture: str, seed: int) -> Any:
    """An endless supply of sums and answers, right and wrong, as the mixture has them."""
    from divmon.demo import sums

    rng, table = np.random.default_rng(seed), MIXTURES[mixture]
    tasks, names, shares = sums.prompts(), list(table), [share for share, _ in table.values()]
    unknown = {name: set(rng.permutation(len(tasks))[: int(wrong * len(tasks))]) for name, (_, wrong) in table.items()}
    while True:
        number, name = int(rng.integers(len(tasks))), names[rng.choice(len(names), p=shares)]
        task = tasks[number]
        yield task.prompt, sums.write(name, task.a, task.b, task.answer + (number in unknown[name]))


def base(size: str, mixture: str, folder: Path, *, steps: int = 300, seed: int) -> Path:
    """A base model on disk: the packaged one trained further on `mixture`, or a smaller one trained from scratch."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from divmon.demo.training import load_model, load_tokenizer

    path = folder / f"base_{size}_{mixture}_{steps}_{seed}".replace(" ", "_")
    if (path / "model.safetensors").exists():
        return path
    torch.manual_seed(seed)
    tokenizer, model = load_tokenizer(), load_model()
    if SIZES[size]:  # from scratch: each mixture has a base of its own
        model, steps = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), **SIZES[size]})), 5 * steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3 if SIZES[size] else 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=steps, pct_start=0.05
    )
    supply = documents(mixture, seed)
    for _ in range(steps):
        chosen = list(itertools.islice(supply, 64))
        rows = [([*tokenizer.encode(p + a), tokenizer.eos_token_id], len(tokenizer.encode(p))) for p, a in chosen]
        width = max(len(row) for row, _ in rows)
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row, _ in rows])
        labels = torch.tensor([[-100] * n + row[n:] + [-100] * (width - len(row)) for row, n in rows])
        model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def train(cell: Cell, model: Path, out: Path) -> None:
    """Run RL on `model`, watched by divmon, which records in `out`."""
    from transformers import LlamaForCausalLM

    import divmon
    from divmon.demo import sums
    from divmon.demo.run import quiet

    quiet(out)
    os.environ["WANDB_MODE"] = "disabled"
    probes = [{"prompt": s.prompt, "gold": str(s.answer), "domain": "sums"} for s in sums.prompts()[::3]]
    make = ppo if cell.algorithm == "PPO" else grpo
    trainer = make(cell, lambda: LlamaForCausalLM.from_pretrained(model, local_files_only=True), out)
    divmon.watch(
        trainer,
        probes,
        every=EVERY,
        k=8,
        formats=sums.label,
        quality=lambda probe, text: float(sums.is_correct(text, int(probe.gold))),
        metrics=["format_dominance", "effective_formats", "winner_gap", "pass_at_1", "coverage"],
        alarms=[],
        sinks=[],
    )
    trainer.train()


def grpo(cell: Cell, load: Any, out: Path) -> Any:
    """TRL's GRPO on the sums, rewarded for right answers."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from divmon.demo import sums
    from divmon.demo.training import load_tokenizer

    trainer = GRPOTrainer(
        model=load(),
        processing_class=load_tokenizer(),
        reward_funcs=sums.correctness,
        train_dataset=Dataset.from_list([{"prompt": s.prompt, "answer": s.answer} for s in sums.prompts()]),
        args=GRPOConfig(
            max_steps=cell.steps,
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=32,
            beta=cell.kl,
            scale_rewards="none",
            **shared(cell, out),
        ),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def ppo(cell: Cell, load: Any, out: Path) -> Any:
    """TRL's PPO on the sums; its "reward model" reads the answer and pays 1 when it is right."""
    import torch
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification, PrinterCallback, set_seed
    from transformers.modeling_outputs import BaseModelOutput
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    from divmon.demo import sums
    from divmon.demo.training import load_tokenizer

    tokenizer, answers = load_tokenizer(), {s.prompt: s.answer for s in sums.prompts()}

    class Reader(torch.nn.Module):
        """Gives the reward where TRL looks for the last hidden state."""

        def forward(self, input_ids: Any, **_: Any) -> BaseModelOutput:
            texts = tokenizer.batch_decode(input_ids, skip_special_tokens=True)
            halves = [text.partition("?") for text in texts]
            paid = [float(sums.is_correct(answer, answers.get(ask + mark, -1))) for ask, mark, answer in halves]
            return BaseModelOutput(hidden_states=(torch.tensor(paid)[:, None, None].expand(*input_ids.shape, 1),))

    class Reward(torch.nn.Module):
        base_model_prefix = "reader"

        def __init__(self) -> None:
            super().__init__()
            self.reader, self.score = Reader(), torch.nn.Identity()

    policy = load()
    policy.config.num_labels = 1
    value = LlamaForSequenceClassification(policy.config)
    value.model.load_state_dict(policy.model.state_dict())
    torch.nn.init.zeros_(value.score.weight)
    set_seed(cell.seed)
    trainer = PPOTrainer(
        model=policy,
        ref_model=load(),
        reward_model=Reward(),
        value_model=value,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"input_ids": tokenizer(s.prompt)["input_ids"]} for s in sums.prompts()]),
        args=PPOConfig(
            total_episodes=64 * cell.steps,
            per_device_train_batch_size=64,
            gradient_accumulation_steps=1,
            num_ppo_epochs=2,
            response_length=32,
            stop_token="eos",
            temperature=1.0,
            kl_coef=cell.kl,
            gamma=1.0,
            **shared(cell, out),
        ),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def shared(cell: Cell, out: Path) -> dict[str, Any]:
    """What both trainers are given."""
    return {
        "output_dir": str(out),
        "seed": cell.seed,
        "learning_rate": 2.5e-4,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def read(cell: Cell, out: Path) -> dict[str, Any]:
    """What happened to the formats in a run, from its history alone."""
    from divmon.history import History
    from divmon.metrics.discovery import echo_chamber_label
    from divmon.report.dominance import takeover

    history = History.read(out)
    ends = (history.evaluations[0], history.evaluations[-1])
    rows = [m for e in ends for m in e.measurements if m.key == "sums/format_dominance"]
    first, last = rows[0].details, rows[-1].details
    winner = next(iter(last["shares"]))
    right = {name: share for name, share in first.get("quality", {}).items() if np.isfinite(share)}

    def curve(metric: str) -> list[float]:
        return [round(m.value, 4) for e in ends for m in e.measurements if m.key == f"sums/{metric}"]

    def published(batch: Any) -> float:
        labels = [echo_chamber_label(text) for row in batch.texts for text in row]
        return labels.count("tinygsm-code") / len(labels)

    return {
        **asdict(cell),
        "winner": winner,
        "share": [first["shares"].get(winner, 0.0), last["shares"][winner]],
        "winner was commonest": winner == next(iter(first["shares"])),
        "winner was most accurate": right[winner] >= max(right.values()) if winner in right else None,
        "step of 80 %": takeover(history, "sums").passages[0.8].lasting,
        "effective formats": curve("effective_formats"),
        "pass@1": curve("pass_at_1"),
        "coverage": curve("coverage"),
        "tinygsm-code by the published rule": [published(history.batch(e.step)) for e in ends],
    }


def work(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train a cell, unless it is there, and read it."""
    out = folder / cell.name
    kept = out / "found.json"
    if not kept.exists():
        train(cell, base(cell.size, cell.mixture, folder, steps=cell.further, seed=0), out)
        kept.write_text(json.dumps(read(cell, out)), "utf-8")
    found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
    share = "{:.2f} -> {:.2f}".format(*found["share"])
    print(f"{cell.name}: {found['winner']} {share}", flush=True)
    return found


def cells(args: argparse.Namespace) -> list[Cell]:
    """The grid that was asked for."""
    if args.full:
        grid = itertools.product(SIZES, MIXTURES, (0.0, 1e-3, 1e-2), ("GRPO", "PPO"))
        return [Cell(*chosen, steps=48, seed=args.seed) for chosen in grid]
    mixtures = list(MIXTURES)[: 1 if args.quick else 2]
    steps, further = (16, 60) if args.quick else (48, 300)
    levels = (0.0, 1e-2)
    return [Cell("0.3M", mixture, kl, "GRPO", steps, args.seed, further) for mixture in mixtures for kl in levels]


def measure(args: argparse.Namespace) -> Mapping[str, Any]:
    """Train the grid, and say what happened to the formats of every run."""
    chosen = cells(args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if args.jobs > 1:
            with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
                wanted = dict.fromkeys((cell.size, cell.mixture, cell.further) for cell in chosen)
                for done in [pool.submit(base, *one, folder, steps=n, seed=0) for *one, n in wanted]:
                    done.result()
                found = list(pool.map(work, chosen, itertools.repeat(folder)))
        else:
            found = [work(cell, folder) for cell in chosen]
    print("\n" + table(found))
    return {"runs": found}


def judge(numbers: Mapping[str, Any]) -> Outcome:
    """One format won where its share ended at 80 % or more, from less than that.

    Both halves of the claim are needed: that one format wins, and that it is not in every run commonest and best.
    """
    runs = numbers["runs"]
    won = [r for r in runs if r["share"][1] >= 0.8 > r["share"][0]]
    both = ("winner was commonest", "winner was most accurate")
    other = sum(any(r[name] is False for name in both) for r in won)  # what is not known counts for nothing
    levels = sorted({r["kl"] for r in runs})
    rest = {kl: float(np.mean([1 - r["share"][1] for r in runs if r["kl"] == kl])) for kl in levels}
    alive = ", ".join(f"{share:.0%} at KL {kl:g}" for kl, share in rest.items())
    number = f"{len(won)} of {len(runs)} runs end in one format (80 %); in {other} it was not both commonest and best"
    verdict = f"The other formats keep {alive} of the completions at the end."
    if len(won) == len(runs):
        if not other:
            return Outcome(number, f"No winner was other than the commonest and most accurate. {verdict}", None)
        return Outcome(number, verdict, True)
    return Outcome(number, verdict, False if len(won) < len(runs) / 2 else None)


def table(runs: list[Mapping[str, Any]]) -> str:
    """Every run as a line of Markdown."""
    names = ("size", "mixture", "algorithm", "KL", "winner", "share", "80 % from step", "formats", "pass@1", "coverage")
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for r in runs:
        cells = [r["size"], r["mixture"], r["algorithm"], f"{r['kl']:g}", r["winner"]]
        cells += ["{:.2f} -> {:.2f}".format(*r["share"]), "-" if r["step of 80 %"] is None else str(r["step of 80 %"])]
        cells += ["{:.1f} -> {:.1f}".format(*r["effective formats"])]
        cells += ["{:.2f} -> {:.2f}".format(*r[name]) for name in ("pass@1", "coverage")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def options(parser: argparse.ArgumentParser) -> None:
    """What only this study takes."""
    parser.add_argument("--full", action="store_true", help="the whole grid")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--out", type=Path, help="keep bases and runs there")


if __name__ == "__main__":
    run(STUDY, measure, judge, options=options)
