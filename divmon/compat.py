"""The one place that knows how trainers of Transformers and TRL differ. Capabilities are looked for, never class names.

Each function says when its reason goes away.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from divmon.errors import ConfigError


def find_trainer() -> Any | None:
    """The trainer whose callback is running, from the frames above. Goes when callbacks are handed their trainer."""
    from transformers import Trainer

    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        frame = frame.f_back
    return None


def policy_of(model: Any) -> Any:
    """The module that generates: out of DDP and torch.compile wrappers and PPO's policy-and-value pair.

    Raises:
        ConfigError: Nothing inside can generate.
    """
    while not hasattr(model, "generate"):
        inner = next((getattr(model, n) for n in ("policy", "module", "_orig_mod") if hasattr(model, n)), None)
        if inner is None:
            raise ConfigError(
                f"{type(model).__name__} has no generate(), so divmon cannot sample it. Use a causal language model "
                "(AutoModelForCausalLM), or measure completions you made yourself with `divmon measure FILE.jsonl`."
            )
        model = inner
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ConfigError(
            f"{type(model).__name__} is an encoder-decoder model; divmon samples decoder-only models. Measure "
            "completions you made yourself with `divmon measure FILE.jsonl`."
        )
    return model


def tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer inside a processor, or the tokenizer itself.

    Raises:
        ConfigError: There is none.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if tokenizer is None or not hasattr(tokenizer, "decode"):
        raise ConfigError(
            "The trainer has no tokenizer, so divmon cannot write prompts or read completions. Pass "
            "processing_class=tokenizer to the trainer."
        )
    return tokenizer


def chat_options(trainer: Any) -> dict[str, Any]:
    """What the trainer passes to `apply_chat_template` (its own template, enable_thinking and the like)."""
    options = dict(getattr(trainer, "chat_template_kwargs", None) or {})
    template = getattr(trainer, "chat_template", None)
    return {**options, "chat_template": template} if template else options


def stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every end-of-sequence id the model or the tokenizer declares, as GRPO unites them."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids: Sequence[Any] = declared if isinstance(declared, (list, tuple)) else [declared]
    return sorted({int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None})


def completion_cap(trainer: Any, default: int) -> int:
    """Tokens a completion may have: the trainer's own cap where it has one and it is smaller than `default`."""
    args = getattr(trainer, "args", None)
    caps = [getattr(args, n, None) for n in ("max_completion_length", "max_new_tokens", "response_length")]
    return min([default, *(c for c in caps if isinstance(c, int) and c > 0)])


def is_conversational(rows: Any) -> bool:
    """Whether a trainer's data set holds chat messages rather than plain texts."""
    columns = getattr(rows, "column_names", None) or []
    if "messages" in columns:
        return True
    first = next(iter(rows), None) if "prompt" in columns else None
    return first is not None and isinstance(first["prompt"], list)


def reward_functions(trainer: Any) -> list[tuple[Any, float]]:
    """The plain reward functions of a trainer with their weights; empty where there are none.

    Raises:
        ConfigError: A reward is a model or asynchronous, which divmon does not call.
    """
    import inspect

    import torch

    functions = list(getattr(trainer, "reward_funcs", None) or [])
    weights = getattr(trainer, "reward_weights", None)
    weights = [1.0] * len(functions) if weights is None else [float(w) for w in weights]
    for function in functions:
        if isinstance(function, torch.nn.Module) or inspect.iscoroutinefunction(function):
            raise ConfigError(
                "quality='rewards' calls plain reward functions only, and this trainer has a reward model or an "
                "asynchronous one. Pass quality=your_function(probe, completion) instead."
            )
    return list(zip(functions, weights, strict=True))
