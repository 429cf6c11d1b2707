"""Leave everything as found: sampling must not change the training run by one bit."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def same_streams() -> Iterator[None]:
    """Whatever is drawn inside, the random streams of python, numpy, torch and every device go on as if it were not."""
    python, legacy, cpu, devices = random.getstate(), np.random.get_state(), torch.get_rng_state(), _device_states()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(cpu)
        _restore(devices)


@contextlib.contextmanager
def undisturbed(model: torch.nn.Module, tokenizer: Any = None) -> Iterator[None]:
    """Sample inside; afterwards, also after an exception, all is as before.

    Inside, the model is in eval mode and no gradients are recorded. Restored: every module's ``training`` flag (not
    ``model.train()``: frozen sub-modules stay frozen), the random streams of python, numpy, torch and every device,
    each module's ``generation_config`` object (PEFT rewrites the base model's), the tokenizer's padding side, and
    weights that FSDP2 shards.

    Gradient checkpointing is deliberately not touched: in eval mode it is inert, and switching it off and on leaks a
    hook on the embeddings each time.

    Args:
        model: The live policy, wrapped or not.
        tokenizer: Its tokenizer, when it may be used inside.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    side = getattr(tokenizer, "padding_side", None)
    flags = [(module, module.training) for module in model.modules()]
    configs = [(m, m.__dict__["generation_config"]) for m in model.modules() if "generation_config" in m.__dict__]
    try:
        model.eval()
        with same_streams(), torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training
            reshard = getattr(
                module, "reshard", None
            )  # FSDP2 leaves the outermost whole after a pass without gradients
            if reshard is not None:
                reshard()
        for module, config in configs:
            module.generation_config = config
        if side is not None:
            tokenizer.padding_side = side


def _device_states() -> list[tuple[Any, int, torch.Tensor]]:
    """(device module, index, state) for each device of the accelerator in use; empty on CPU."""
    if not torch.accelerator.is_available():
        return []
    device = torch.get_device_module(torch.accelerator.current_accelerator())
    if not getattr(device, "is_initialized", lambda: True)() or not hasattr(device, "get_rng_state"):
        return []
    if not hasattr(device, "get_rng_state_all"):  # mps: one device, no index
        return [(device, -1, device.get_rng_state())]
    return [(device, i, device.get_rng_state(i)) for i in range(device.device_count())]


def _restore(states: list[tuple[Any, int, torch.Tensor]]) -> None:
    for device, index, state in states:
        if index < 0:
            device.set_rng_state(state)
        else:
            device.set_rng_state(state, index)
