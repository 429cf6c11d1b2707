"""The one place that knows how trainers of Transformers and TRL differ. Capabilities are looked for, never class names.

Each function says when its reason goes away.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from divmon.errors import ConfigError
from divmon.records import Decoding


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


def in_training(trainer: Any) -> bool:
    """Whether `trainer.train` is under way, from the frames above. An interrupted one leaves no other trace."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "train" and frame.f_locals.get("self") is trainer:
            return True
        frame = frame.f_back
    return False


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
    inside = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's wrappers always generate
    if not hasattr(inside, "generate"):
        return policy_of(inside)
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


def own_generation_configs(model: Any) -> list[Any]:
    """The modules in `model` with a generation config of their own: PEFT's wrapper has none, what it wraps has."""
    return [module for module in model.modules() if "generation_config" in module.__dict__]


def text_size(model: Any, name: str) -> int | None:
    """A number of the model's config (of its text part, where it has several), such as ``vocab_size``, if any."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, name, None)
    return size if isinstance(size, int) else None


def window_of(model: Any) -> int | None:
    """Tokens that prompt and completion may have together, where the model says so."""
    return text_size(model, "max_position_embeddings")


def completion_cap(trainer: Any, default: int) -> int:
    """Tokens a completion may have: at most `default`, the trainer's own cap, and half of the model's window.

    The other half is for the prompt, whose beginning the sampler would otherwise cut off.
    """
    args, window = getattr(trainer, "args", None), window_of(policy_of(trainer.model))
    caps = [getattr(args, n, None) for n in ("max_completion_length", "max_new_tokens", "response_length")]
    caps.append(window // 2 if window else None)
    return min([default, *(c for c in caps if isinstance(c, int) and c > 0)])


def is_conversational(rows: Any) -> bool:
    """Whether a trainer's data set holds chat messages rather than plain texts."""
    columns = getattr(rows, "column_names", None) or []
    if "messages" in columns:
        return True
    first = next(iter(rows), None) if "prompt" in columns else None  # only data sets that reread name columns
    return first is not None and isinstance(first["prompt"], list)


def rereadable(rows: Any) -> bool:
    """Whether a trainer's data set surely starts anew each time: it has a length, or is a stream of `datasets`."""
    return hasattr(rows, "__len__") or hasattr(rows, "column_names")


@contextlib.contextmanager
def without_waiting() -> Iterator[None]:
    """Inside, this process waits for no other: for one rank that runs code of trainers in which all ranks would meet.

    Accelerate's states share one dictionary, in which an attribute goes before the method of that name.
    """
    from accelerate import PartialState

    shared: dict[str, Any] = PartialState().__dict__
    shared["wait_for_everyone"] = lambda: None
    try:
        yield
    finally:
        del shared["wait_for_everyone"]


def refuse_sharding(trainer: Any) -> None:
    """Set-ups in which generation from a callback is known to corrupt or stall training.

    Raises:
        ConfigError: FSDP1 (generation inside a callback corrupts later checkpoints) or DeepSpeed ZeRO-3 (each rank
            holds a shard of every weight).
    """
    accelerator = getattr(trainer, "accelerator", None)
    instead = "Measure completions you made yourself with `divmon measure FILE.jsonl`"
    fsdp = getattr(getattr(accelerator, "state", None), "fsdp_plugin", None)
    if fsdp is not None and getattr(fsdp, "fsdp_version", 1) < 2:
        raise ConfigError(f"FSDP1 corrupts checkpoints when a callback generates. Use FSDP2. {instead}.")
    deepspeed = getattr(getattr(accelerator, "state", None), "deepspeed_plugin", None)
    if deepspeed is not None and getattr(deepspeed, "zero_stage", 0) == 3:
        raise ConfigError(f"ZeRO-3 shards every weight, so a callback cannot generate. Use ZeRO-2. {instead}.")


def sharded(trainer: Any) -> bool:
    """Whether a forward pass needs every rank: FSDP2, or another way to spread parameters over devices (DTensor)."""
    accelerator = getattr(trainer, "accelerator", None)
    return bool(getattr(accelerator, "is_fsdp2", False)) or any(
        hasattr(parameter, "device_mesh") for parameter in trainer.model.parameters()
    )


def refuse_images(trainer: Any) -> None:
    """Training data with images or sounds: its prompts without them would be other prompts.

    Raises:
        ConfigError: It has such a column.
    """
    columns = getattr(getattr(trainer, "train_dataset", None), "column_names", None) or ()
    found = sorted({"image", "images", "pixel_values", "audio", "audios", "video", "videos"} & set(columns))
    if found:
        raise ConfigError(
            f"The training data is multimodal (column {found[0]!r}), and divmon samples prompts of text only. Pass "
            "probes=[...] with prompts of text, or measure completions you made yourself with `divmon measure "
            "FILE.jsonl`."
        )


def unverified(trainer: Any) -> list[str]:
    """Sentences about what works by the libraries' code but has not been run by divmon's tests."""
    found = []
    if getattr(getattr(trainer, "args", None), "use_vllm", False):
        found.append(
            "vLLM: probes are sampled with the trainer's own copy of the model, not by the engine (rollouts are the "
            "engine's); this set-up is unverified"
        )
    return found


def rollout_settings(trainer: Any) -> tuple[int, list[float], Decoding]:
    """Completions a prompt, reward weights, and decoding of what a trainer generates."""
    args = trainer.args
    group = 1  # PPO, which has no reward functions
    if hasattr(trainer, "reward_funcs"):
        group = int(getattr(trainer, "num_generations", None) or 2)  # OnlineDPO draws two and names no number
    weights = getattr(trainer, "reward_weights", None)
    found = len(getattr(trainer, "reward_funcs", None) or [])
    decoding = Decoding(
        temperature=float(getattr(args, "temperature", 1.0)),
        top_p=float(getattr(args, "top_p", 1.0) or 1.0),
        max_new_tokens=completion_cap(trainer, 1_000_000),
    )
    return group, [1.0] * found if weights is None else [float(w) for w in weights], decoding


class StopTraining(Exception):
    """Ends a training loop that ignores the stop flag. `watch` catches it around ``trainer.train()``."""


def own_loop(trainer: Any) -> bool:
    """Whether `trainer` trains in a loop of its own (TRL's PPO), which ignores the stop flag of callbacks.

    A ``train()`` that only does something around ``super().train()`` is no loop. Goes with TRL's PPO, whose last
    release is 1.12.
    """
    from transformers import Trainer

    for kind in type(trainer).__mro__:
        if kind is Trainer:
            return False
        train = inspect.unwrap(vars(kind)["train"]) if "train" in vars(kind) else None
        if train is not None and "super" not in getattr(getattr(train, "__code__", None), "co_names", ()):
            return True
    return False


def is_async(function: Any) -> bool:
    """Whether calling `function` gives something to await: a coroutine function, a partial of one, such an object."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def reward_functions(trainer: Any) -> list[tuple[Any, float]]:
    """The plain reward functions of a trainer with their weights; empty where there are none.

    Raises:
        ConfigError: A reward is a model or asynchronous, which divmon does not call.
    """
    import torch

    functions = list(getattr(trainer, "reward_funcs", None) or [])
    weights = getattr(trainer, "reward_weights", None)
    weights = [1.0] * len(functions) if weights is None else [float(w) for w in weights]
    for function in functions:
        if isinstance(function, torch.nn.Module) or is_async(function):
            raise ConfigError(
                "quality='rewards' calls plain reward functions only, and this trainer has a reward model or an "
                "asynchronous one. Pass quality=your_function(probe, completion) instead."
            )
    return list(zip(functions, weights, strict=True))
