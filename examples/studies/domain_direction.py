"""Is this narrowing what I trained for? Post-training on code and on tales, watched by domain.

A character model is pretrained on two domains: expressions with a property that is asked for ("code: even(x)="), and
one-line tales about an animal. GRPO then pays quality in both with the same kind of reward, 0 or 1, that knows nothing
of diversity. Per domain the change of diversity is measured at three levels (words, form, meaning), among all
completions and among the valid ones, with intervals over prompts. Whatever sign comes out is the result.

    python examples/studies/domain_direction.py            # about four minutes on one core
    python examples/studies/domain_direction.py --quick
"""

import argparse
import ast
import operator
import os
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from _study import Outcome, Study, run

STUDY = Study(
    name="Direction depends on the domain",
    question="Is this narrowing what I trained for?",
    claim="Post-training moves diversity in different directions in code and in writing, and at different levels.",
    feature="every curve and alarm by `domain`; `ast_distance`, `correct_distance`, `benign_share`, `equivalence=`",
    source="Shypula et al. 2025, arXiv:2504.12522",
)
LEVELS = {
    "words": "tfidf_distance",
    "form": "form_distance",
    "meaning of valid outputs": "effective_pair_diversity",
    "words of valid outputs": "correct_distance",
}
INPUTS = range(2, 8)
PROPERTIES = {
    "even": lambda x, y: y % 2 == 0,
    "odd": lambda x, y: y % 2 == 1,
    "more": lambda x, y: y > x,
    "less": lambda x, y: y < x,
    "third": lambda x, y: y % 3 == 0,
    "far": lambda x, y: abs(y - x) > 3,
}
_EXPRESSIONS = """
    x+1 x+2 x+x 2*x x*2 3*x x*3 x*x x-1 x-2 x//2 x x-x 4*x x+3 6*x x*6 1 2 3 5 9 x*x+x x*x-x 2*x+1 x+x+1 8-x 9-x x+5 5+x
    3*x+3 1-x 0 x*x*x 2*x*x 7
"""
EXPRESSIONS = tuple(_EXPRESSIONS.split())
ANIMALS = ("fox", "cat", "owl", "hen", "bee", "dog", "ant", "cow")
OPENINGS = ("The {} ", "A {} ", "Once a {} ", "One day a {} ")
EVENTS = ("ran home", "ran away", "slept all day", "slept at home", "sang to me", "sang at noon", "hid in hay")
EVENTS += ("hid from us", "met a king", "got lost")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}


def value(node: ast.AST, x: int) -> int:
    """An expression in x, by an evaluator that knows four operations: nothing a model wrote is run."""
    if isinstance(node, ast.Name) and node.id == "x":
        return x
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](value(node.left, x), value(node.right, x))
    raise ValueError("not an expression of the task")


def results(text: str) -> tuple[int, ...] | None:
    """What an expression gives on every input; None for what is not one."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return tuple(value(tree, x) for x in INPUTS)
    except (ValueError, SyntaxError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def event(text: str) -> str | None:
    """What happens in a tale that can be read."""
    return next((event for event in EVENTS if text.strip().endswith(f" {event}.")), None)


def good(domain: str, task: str, text: str) -> float:
    """1 for an expression with the property asked for, or a tale of the animal asked for that ends."""
    if domain == "code":
        found = results(text)
        return float(found is not None and all(PROPERTIES[task](x, y) for x, y in zip(INPUTS, found, strict=True)))
    return float(event(text) is not None and f" {task} " in text)


def meaning(text: str) -> Any:
    """Two outputs with the same meaning do the same: give the same results, or tell of the same event."""
    return results(text) or event(text) or text


def form_distance(completions: list[str]) -> float:
    """Share of a prompt's pairs that differ in form: in the shape of the syntax tree, or in how the tale begins."""

    def form(text: str) -> str:
        try:
            shape = [type(node).__name__ for node in ast.walk(ast.parse(text.strip(), mode="eval"))]
            return " ".join(shape)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return text.strip().partition(" ")[0]

    forms = [form(text) for text in completions]
    counts = np.array([forms.count(name) for name in set(forms)])
    n = len(forms)
    if n < 2:
        return float("nan")
    return float(1 - (counts * (counts - 1)).sum() / (n * (n - 1)))


def prompt(domain: str, task: str) -> str:
    """As the model is asked."""
    return f"code: {task}(x)=" if domain == "code" else f"tale: {task}="


def tasks() -> list[tuple[str, str]]:
    """Every (domain, task)."""
    return [("code", name) for name in PROPERTIES] + [("tales", name) for name in ANIMALS]


def document(rng: random.Random) -> tuple[str, str]:
    """A prompt and an answer, which is good about half of the time; some answers are much commoner than others."""
    domain, task = rng.choice(tasks())
    if domain == "code":
        good_ones = [text for text in EXPRESSIONS if good("code", task, text)]
        pool = good_ones if rng.random() < 0.5 else list(EXPRESSIONS)
        return prompt(domain, task), pool[min(int(rng.expovariate(0.25)), len(pool) - 1)]
    animal = task if rng.random() < 0.6 else rng.choice(ANIMALS)
    opening = rng.choices(OPENINGS, weights=(5, 3, 2, 1))[0]
    happened = EVENTS[min(int(rng.expovariate(0.3)), len(EVENTS) - 1)]
    return prompt(domain, task), opening.format(animal) + happened + ("." if rng.random() < 0.8 else "")


def pretrained(steps: int, seed: int) -> tuple[Any, Any]:
    """A model of both domains, trained from scratch, and its tokenizer of characters."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    rng = random.Random(seed)
    torch.manual_seed(seed)
    letters = sorted({c for _ in range(4000) for c in "".join(document(rng))})
    inner = Tokenizer(models.WordLevel({t: i for i, t in enumerate(["<pad>", "</s>", "<unk>", *letters])}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="left"
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=96,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        chosen = [document(rng) for _ in range(48)]
        rows = [[*tokenizer.encode(p + a), tokenizer.eos_token_id] for p, a in chosen]
        ids = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id)
        labels = torch.full_like(ids, -100)
        for i, (row, (asked, _)) in enumerate(zip(rows, chosen, strict=True)):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, len(asked) : len(row)] = torch.tensor(row[len(asked) :])
        model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, tokenizer


def train(args: argparse.Namespace, out: Path) -> None:
    """GRPO on both domains at once, watched by divmon."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    import divmon
    from divmon.demo.run import quiet

    quiet(out)
    model, tokenizer = pretrained(250 if args.quick else 800, args.seed)
    rows = [{"prompt": prompt(domain, task), "domain": domain, "task": task} for domain, task in tasks()]

    def quality(completions: list[str], domain: list[str], task: list[str], **_: Any) -> list[float]:
        return [good(*each) for each in zip(domain, task, completions, strict=True)]

    steps = 12 if args.quick else 60
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=quality,
        train_dataset=Dataset.from_list(rows),
        args=GRPOConfig(
            output_dir=str(out),
            max_steps=steps,
            seed=args.seed,
            per_device_train_batch_size=56,
            num_generations=8,
            max_completion_length=28,
            learning_rate=3e-4,
            lr_scheduler_type="constant",
            beta=0.0,
            scale_rewards="none",
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    divmon.watch(
        trainer,
        rows,
        every=steps,
        k=16 if args.quick else 32,
        quality=lambda probe, text: good(probe.domain, probe.columns["task"], text),
        equivalence=lambda pairs: np.array([float(meaning(a) == meaning(b)) for a, b in pairs]),
        metrics=[
            *(name for name in LEVELS.values() if name != "form_distance"),
            form_distance,
            "pass_at_1",
            "benign_share",
        ],
        alarms=[],
        sinks=[],
    )
    trainer.train()


def measure(args: argparse.Namespace) -> Mapping[str, Any]:
    """Train, and give the change at each level in each domain, with its 95 % interval over prompts."""
    from divmon.history import History
    from divmon.report.tables import changes

    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        train(args, out)
        history = History.read(out)
        found = changes(history)
        numbers: dict[str, Any] = {}
        for domain in ("code", "tales"):
            valid = found[f"{domain}/pass_at_1"]
            numbers[f"{domain}: valid"] = [valid.first.value, valid.last.value]
            for level, metric in LEVELS.items():
                change = found.get(f"{domain}/{metric}")
                if change is not None and change.first.step < change.last.step:
                    numbers[f"{domain}: {level}"] = [change.delta, change.low, change.high]
            shares = [m.value for e in history.evaluations for m in e.measurements if m.key == f"{domain}/benign_share"]
            numbers[f"{domain}: benign share of the fall"] = shares[-1] if shares else float("nan")
    return numbers


def sign(change: Any) -> str:
    """The direction of a change that is beyond the noise over prompts, else "0"; "?" where the noise is not known."""
    _, low, high = change
    if np.isnan([low, high]).any():
        return "?"
    return "+" if low > 0 else "-" if high < 0 else "0"


def judge(numbers: Mapping[str, Any]) -> Outcome:
    """Directions differ where a level rises in one domain and falls in the other, or moves in one of them only."""
    signs = {
        domain: {level: sign(numbers[f"{domain}: {level}"]) for level in LEVELS if f"{domain}: {level}" in numbers}
        for domain in ("code", "tales")
    }
    number = "; ".join(f"{d}: {', '.join(f'{level} {s}' for level, s in row.items())}" for d, row in signs.items())
    both = [level for level in LEVELS if all(row.get(level, "?") != "?" for row in signs.values())]
    if all(signs[domain][level] == "0" for level in both for domain in signs):  # also where there is none
        return Outcome(number, "No change beyond the noise over prompts that could be compared.", None)
    differ = [level for level in both if signs["code"][level] != signs["tales"][level]]
    against = [level for level in both if {signs["code"][level], signs["tales"][level]} == {"+", "-"}]
    if against:
        return Outcome(number, f"Opposite directions in {', '.join(against)}.", True)
    if differ:
        return Outcome(
            number, f"The domains part in {', '.join(differ)}, though in none do they oppose each other.", None
        )
    return Outcome(number, f"Both domains move alike in {', '.join(both)}.", False)


def options(parser: argparse.ArgumentParser) -> None:
    """What only this study takes."""
    parser.add_argument("--out", type=Path, help="keep the run there")


if __name__ == "__main__":
    run(STUDY, measure, judge, options=options)
