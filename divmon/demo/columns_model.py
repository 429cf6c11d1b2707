"""The base model of sums in columns: packaged, and made from scratch in a minute or two on one core.

python -m divmon.demo.columns_model FOLDER
"""

import random
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from divmon.demo import columns

BASE_DIR = Path(__file__).parent / "columns_base"
"""The packaged base model."""

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"
SHARES = (30, 25, 20, 15, 10)
"""Of the levels in what the base model has read, in per cent: the hard ones are its long tail."""
SLIP = 0.5
REVISED = 0.4
BATCH = 64


def load_base() -> tuple[GPT2LMHeadModel, Any]:
    """A fresh copy of the packaged model, which forgets half of all carries as its teachers did, and its tokenizer."""
    return GPT2LMHeadModel.from_pretrained(BASE_DIR, local_files_only=True), AutoTokenizer.from_pretrained(
        BASE_DIR, local_files_only=True
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a digit, a sum or a word."""
    words = [*"0123456789", "+", "=", *(f"={i:02}" for i in range(20)), "wrong:", "column"]
    ids = {word: i for i, word in enumerate((PAD, END, UNKNOWN, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_base(*, steps: int = 700, seed: int = 0, width: int = 64) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """A model that answers, and answers again when criticised."""
    tokenizer, rng = make_tokenizer(), random.Random(seed)
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=64, n_embd=width, n_layer=2, n_head=4, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        ids, mask, labels = _batch(tokenizer, rng)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


def _batch(tokenizer: Any, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Documents, padded on the right; only answers and their ends are learned."""
    drawn = [columns.document(rng, shares=SHARES, slip=SLIP, revised=REVISED) for _ in range(BATCH)]
    rows = [(tokenizer.encode(prompt), [*tokenizer.encode(text), tokenizer.eos_token_id]) for prompt, text in drawn]
    size = max(len(prompt) + len(text) for prompt, text in rows)
    ids, labels = torch.full((len(rows), size), tokenizer.pad_token_id), torch.full((len(rows), size), -100)
    for i, (prompt, text) in enumerate(rows):
        ids[i, : len(prompt) + len(text)] = torch.tensor([*prompt, *text])
        labels[i, len(prompt) : len(prompt) + len(text)] = torch.tensor(text)
    return ids, (ids != tokenizer.pad_token_id).long(), labels


if __name__ == "__main__":
    torch.set_num_threads(1)  # the number of threads decides the rounding, and so the model
    made, words = make_base()
    made.save_pretrained(sys.argv[1])
    words.save_pretrained(sys.argv[1])
