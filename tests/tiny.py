"""Tiny models, data and trainers: real trainers of Transformers and TRL, a second or two each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_utils import set_seed
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from divmon.demo.training import load_tokenizer

PROMPTS = [f"{a}+{b}=" for a in range(1, 7) for b in range(1, 5)]
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def tokenizer() -> Any:
    return load_tokenizer()


def gpt2(*, seed: int = 0, vocabulary: int | None = None) -> GPT2LMHeadModel:
    """A GPT-2 of about 50k parameters with every dropout on."""
    set_seed(seed)
    tok = tokenizer()
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary or len(tok), n_positions=96, n_embd=32, n_layer=2, n_head=2,
            resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1,
            bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
        )
    )  # fmt: skip


def arguments(out: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(out), "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 5e-3,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False,
        "gradient_checkpointing": True, "disable_tqdm": True, "seed": 3, **more,
    }  # fmt: skip


def trainer(out: Path, *, callbacks: Any = (), **more: Any) -> Trainer:
    tok = tokenizer()
    rows = Dataset.from_list([{"input_ids": tok(f"{p}{len(p)}{p}")["input_ids"]} for p in PROMPTS])
    return Trainer(
        model=gpt2(), args=TrainingArguments(**arguments(out, **more)), train_dataset=rows, processing_class=tok,
        data_collator=DataCollatorForLanguageModeling(tok, mlm=False), callbacks=list(callbacks),
    )  # fmt: skip


def sft(out: Path, *, callbacks: Any = (), peft: Any = None, **more: Any) -> Trainer:
    rows = Dataset.from_list([{"prompt": p, "completion": f"the sum is {len(p)}"} for p in PROMPTS])
    return SFTTrainer(
        model=gpt2(), args=SFTConfig(**arguments(out, **more)), train_dataset=rows, processing_class=tokenizer(),
        callbacks=list(callbacks), peft_config=peft, eval_dataset=rows.select(range(4)),
    )  # fmt: skip


def dpo(out: Path, *, callbacks: Any = (), peft: Any = None, **more: Any) -> Trainer:
    rows = Dataset.from_list([{"prompt": p, "chosen": "- 1 - 2", "rejected": "the sum"} for p in PROMPTS])
    settings = arguments(out, disable_dropout=False, **more)
    return DPOTrainer(
        model=gpt2(), ref_model=None if peft else gpt2(), args=DPOConfig(**settings), train_dataset=rows,
        processing_class=tokenizer(), callbacks=list(callbacks), peft_config=peft,
    )  # fmt: skip


def shortness(completions: list[str], **_: Any) -> list[float]:
    return [-len(text) / 10 for text in completions]


def grpo(
    out: Path, *, callbacks: Any = (), peft: Any = None, rewards: Any = shortness, kind: Any = GRPOTrainer, **more: Any
) -> Trainer:
    rows = Dataset.from_list([{"prompt": p, "answer": str(i)} for i, p in enumerate(PROMPTS)])
    settings = arguments(out, **{"num_generations": 4, "max_completion_length": 12, **more})
    return kind(
        model=gpt2(), args=GRPOConfig(**settings), train_dataset=rows, processing_class=tokenizer(),
        reward_funcs=rewards, callbacks=list(callbacks), peft_config=peft,
    )  # fmt: skip


TRAINERS: dict[str, Callable[..., Trainer]] = {"trainer": trainer, "sft": sft, "dpo": dpo, "grpo": grpo}


def digest(model: torch.nn.Module) -> str:
    """sha256 of every parameter and buffer, bit for bit."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def rows(run: Trainer) -> list[dict[str, Any]]:
    """Every row the trainer logged, without timings."""
    timed = ("runtime", "per_second", "step_time", "time")
    return [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in run.state.log_history]


def kto(out: Path, *, callbacks: Any = (), **more: Any) -> Trainer:
    from trl import KTOConfig, KTOTrainer

    rows = Dataset.from_list(
        [
            {"prompt": p, "completion": "- 1" if i % 2 else "the sum", "label": bool(i % 2)}
            for i, p in enumerate(PROMPTS)
        ]
    )
    settings = arguments(out, disable_dropout=False, **more)
    return KTOTrainer(
        model=gpt2(), ref_model=gpt2(), args=KTOConfig(**settings), train_dataset=rows, processing_class=tokenizer(),
        callbacks=list(callbacks),
    )  # fmt: skip


def rloo(out: Path, *, callbacks: Any = (), rewards: Any = shortness, **more: Any) -> Trainer:
    from trl import RLOOConfig, RLOOTrainer

    rows = Dataset.from_list([{"prompt": p, "answer": str(i)} for i, p in enumerate(PROMPTS)])
    settings = arguments(out, **{"num_generations": 4, "max_completion_length": 12, "beta": 0.0, **more})
    return RLOOTrainer(
        model=gpt2(), args=RLOOConfig(**settings), train_dataset=rows, processing_class=tokenizer(),
        reward_funcs=rewards, callbacks=list(callbacks),
    )  # fmt: skip


def online_dpo(out: Path, *, callbacks: Any = (), **more: Any) -> Trainer:
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    rows = Dataset.from_list([{"prompt": p} for p in PROMPTS])
    settings = arguments(out, **{"max_new_tokens": 12, "max_length": 64, **more})
    return OnlineDPOTrainer(
        model=gpt2(), ref_model=gpt2(), args=OnlineDPOConfig(**settings), train_dataset=rows,
        processing_class=tokenizer(), reward_funcs=shortness, callbacks=list(callbacks),
    )  # fmt: skip


MORE_TRAINERS: dict[str, Callable[..., Trainer]] = {"kto": kto, "rloo": rloo, "online_dpo": online_dpo}
