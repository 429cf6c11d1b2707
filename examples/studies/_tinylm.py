"""A language model of a few hundred thousand weights that a CPU trains in seconds, on whole words; for the studies."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"
Pairs = Sequence[tuple[str, str]]


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word; words are what white space separates."""
    words = dict.fromkeys(word for text in texts for word in text.split())
    ids = {token: i for i, token in enumerate((PAD, END, UNKNOWN, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, padding_side="left",
        clean_up_tokenization_spaces=False, model_max_length=256, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def make_model(tokenizer: PreTrainedTokenizerFast, *, seed: int, width: int = 96, layers: int = 2) -> GPT2LMHeadModel:
    """An untrained model; its weights depend on the seed alone."""
    torch.set_num_threads(1)  # the number of threads decides the rounding
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=192, n_embd=width, n_layer=layers, n_head=4, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def pretrain(
    model: GPT2LMHeadModel, tokenizer: Any, draw: Callable[[], Pairs], *, steps: int, lr: float = 3e-3
) -> float:
    """Train on batches of (prompt, completion) that `draw` makes; the completion and its end are learned."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.1)
    model.train()
    loss = torch.tensor(0.0)
    for _ in range(steps):
        rows = [(tokenizer.encode(p), [*tokenizer.encode(c), tokenizer.eos_token_id]) for p, c in draw()]
        size = max(len(p) + len(c) for p, c in rows)
        ids = torch.full((len(rows), size), tokenizer.pad_token_id)
        labels = torch.full((len(rows), size), -100)
        for i, (p, c) in enumerate(rows):
            ids[i, : len(p) + len(c)] = torch.tensor([*p, *c])
            labels[i, len(p) : len(p) + len(c)] = torch.tensor(c)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return float(loss.detach())


@torch.no_grad()
def sample(
    model: GPT2LMHeadModel, tokenizer: Any, prompts: Sequence[str], *, k: int, length: int, seed: int
) -> list[list[str]]:
    """P x K completions at temperature 1."""
    model.eval()
    torch.manual_seed(seed)
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
    out = model.generate(
        **inputs, do_sample=True, top_k=0, max_new_tokens=length, num_return_sequences=k, pad_token_id=0
    )
    texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[i * k : (i + 1) * k] for i in range(len(prompts))]


def grpo(
    model: GPT2LMHeadModel, tokenizer: Any, prompts: Sequence[str], reward: Callable[..., list[float]], *,
    out: Path, steps: int, length: int, **more: Any,
) -> GRPOTrainer:  # fmt: skip
    """A GRPO run towards `reward`, ready for ``.train()``; `more` are arguments of `GRPOConfig`, or callbacks."""
    callbacks = more.pop("callbacks", ())
    settings = {
        "per_device_train_batch_size": 64, "num_generations": 8, "learning_rate": 1e-3, "beta": 0.0,
        "lr_scheduler_type": "constant", "scale_rewards": "none", "save_strategy": "no", "report_to": "none",
        "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True, "logging_steps": 1000,
        "top_k": 0,
    }  # fmt: skip
    args = GRPOConfig(
        output_dir=str(out), max_steps=steps, max_completion_length=length, temperature=1.0, **(settings | more)
    )
    rows = Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    return GRPOTrainer(
        model=model, processing_class=tokenizer, reward_funcs=reward, train_dataset=rows, args=args,
        callbacks=list(callbacks),
    )  # fmt: skip
