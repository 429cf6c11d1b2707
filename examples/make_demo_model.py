"""Make the tiny model of `divmon demo`: a Llama that answers one-digit sums in four formats, often rightly.

It is trained from scratch on one CPU core, in about five minutes:

    python examples/make_demo_model.py --out divmon/demo/model
"""

import argparse
import random
import time
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from divmon.demo import sums

SHARES = {"program": 0.40, "prose": 0.30, "latex": 0.20, "bullets": 0.10}
# How often each format is wrong on a sum of middling difficulty. The differences are what reinforcement
# learning later finds: the format that is most often right takes over, though all of them could be right.
ERRORS = {"program": 0.06, "prose": 0.50, "latex": 0.35, "bullets": 0.20}
PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token a character, which gives back exactly the text it was given."""
    texts = [s.prompt + sums.write(name, s.a, s.b, s.answer) for s in sums.prompts() for name in sums.FORMATS]
    vocabulary = [PAD, BOS, EOS, UNKNOWN, *sorted(set("".join(texts)))]
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build the untrained model: three layers of width 96."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def document(rng: random.Random) -> tuple[str, str]:
    """Draw a sum and an answer to it, its format by SHARES; harder sums are more often answered wrongly."""
    task = rng.choice(sums.prompts())
    (name,) = rng.choices(list(SHARES), weights=list(SHARES.values()))
    answer = task.answer
    if rng.random() < ERRORS[name] * (0.4 + 0.2 * task.difficulty):
        answer = rng.choice([n for n in range(answer - 2, answer + 3) if n >= 0 and n != answer])
    return task.prompt, sums.write(name, task.a, task.b, answer)


def batch(tokenizer: PreTrainedTokenizerFast, documents: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Encode documents, padded on the right; only the answers and their ends are learned."""
    rows = [[*tokenizer.encode(prompt + answer), tokenizer.eos_token_id] for prompt, answer in documents]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for number, (row, (prompt, _)) in enumerate(zip(rows, documents, strict=True)):
        ids[number, : len(row)] = torch.tensor(row)
        labels[number, len(prompt) : len(row)] = torch.tensor(row[len(prompt) :])
    return {"input_ids": ids, "attention_mask": (ids != tokenizer.pad_token_id).long(), "labels": labels}


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, steps: int, seed: int) -> None:
    """Train on fresh documents, 64 a step."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.05)
    start = time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        loss = model(**batch(tokenizer, [document(rng) for _ in range(64)])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 250 == 0:
            print(f"step {step:5d}  loss {loss.item():.3f}  {time.monotonic() - start:4.0f} s")


@torch.no_grad()
def sample(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, n: int) -> list[tuple[str, bool]]:
    """Sample n answers to every sum at temperature 1; return the format of each and whether it is right."""
    model.eval()
    tasks = sums.prompts()
    inputs = tokenizer([s.prompt for s in tasks], return_tensors="pt")
    output = model.generate(
        **inputs, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=32, num_return_sequences=n
    )
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    golds = [s.answer for s in tasks for _ in range(n)]
    return [(sums.label(text), sums.is_correct(text, gold)) for text, gold in zip(texts, golds, strict=True)]


def report(drawn: list[tuple[str, bool]]) -> None:
    """Print each format's share and accuracy."""
    counts = Counter(name for name, _ in drawn)
    right = Counter(name for name, correct in drawn if correct)
    for name in (*sums.FORMATS, sums.OTHER):
        accuracy = right[name] / counts[name] if counts[name] else float("nan")
        print(f"{name:8s}  share {counts[name] / len(drawn):.3f}  accuracy {accuracy:.3f}")
    print(f"{'all':8s}  share 1.000  accuracy {sum(right.values()) / len(drawn):.3f}")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save both for Transformers 4 and 5 to load: 5 writes a tokenizer class that 4 does not know."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    for file in folder.iterdir():
        file.chmod(0o644)  # Transformers saves weights for their owner's eyes only; a package is for all


def main() -> None:
    """Train the model, report on it, save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--steps", type=int, default=2000, help="training steps of 64 documents")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the number of threads decides the rounding, and so the model
    torch.manual_seed(arguments.seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, steps=arguments.steps, seed=arguments.seed)
    report(sample(model, tokenizer, n=20))
    save(model, tokenizer, arguments.out)
    print(f"saved to {arguments.out}")


if __name__ == "__main__":
    main()
