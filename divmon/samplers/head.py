"""From hidden states to log-probabilities, a few positions at a time, inside the model's own forward pass.

A pre-hook on the output layer sees the hidden states of every position as the model made them, and computes what is
wanted from slices of them. The layer itself then goes on with the last position only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from divmon.samplers.keyed import entropy

Warp = Callable[[torch.Tensor], torch.Tensor]
LOGITS = {"cpu": 1 << 20}  # logits at once, in single precision 4 MB, which a cache holds; on an accelerator 256 MB:
_LOGITS_ACCELERATED = 1 << 26
_FEWEST = 16  # positions a slice, or reading the weights of the output layer would take most of the time
_PROBED = 4  # positions that the output layer's place in the model is found out with


@dataclass(frozen=True)
class Wanted:
    """Where to look, and for what.

    Attributes:
        places: int64[N], positions in the flattened [B x T].
        targets: int64[N], the token whose log-probability is wanted there.
        temperature: Of that log-probability. Entropies are at 1.
    """

    places: torch.Tensor
    targets: torch.Tensor
    temperature: float = 1.0


Found = tuple[torch.Tensor, torch.Tensor]  # float32[N] log-probabilities, float32[N] entropies


@dataclass(frozen=True)
class Head:
    """The output layer of a model, and what becomes of its logits afterwards.

    Attributes:
        layer: Hidden states to raw logits.
        warp: Raw logits to the model's logits (a scale, a soft cap).
    """

    layer: torch.nn.Module
    warp: Warp

    def __call__(self, policy: Any, inputs: Mapping[str, torch.Tensor], wanted: Wanted) -> Found | None:
        """One forward pass; None where the layer was not called as it was when it was probed."""
        seen: list[Found | None] = []

        def look(layer: torch.nn.Module, args: tuple[Any, ...]) -> tuple[torch.Tensor]:
            hidden: torch.Tensor = args[0]
            fits = hidden.shape[:-1] == inputs["input_ids"].shape
            seen.append(self._found(hidden.flatten(0, 1), wanted) if fits else None)
            return (hidden[:, -1:],)

        hook = self.layer.register_forward_pre_hook(look)
        try:
            _run(policy, inputs)
        finally:
            hook.remove()
        return seen[0] if len(seen) == 1 else None

    def _found(self, hidden: torch.Tensor, wanted: Wanted) -> Found:
        size = 1
        found: list[Found] = []
        start = 0
        while start < len(wanted.places):  # the first slice is one position: it says how large the vocabulary is
            at = slice(start, start + size)
            logits = self.warp(self.layer.forward(hidden[wanted.places[at]]))
            found.append(measured(logits, wanted.targets[at], wanted.temperature))
            start, size = at.stop, slice_size(logits)
            del logits
        return joined(found)


def most_logits(device: torch.device) -> int:
    """How many logits may stand in memory at once."""
    return LOGITS.get(device.type, _LOGITS_ACCELERATED)


def slice_size(logits: torch.Tensor) -> int:
    """Positions whose logits may stand in memory at once, given those of some."""
    return max(_FEWEST, most_logits(logits.device) // logits.shape[-1])


def measured(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> Found:
    """Log-probabilities of `targets` at `temperature`, and entropies in nats at 1, float32[N] each.

    Args:
        logits: float[N, V].
        targets: int64[N].
        temperature: Above 0.
    """
    with torch.autocast(logits.device.type, enabled=False):  # the model's own would round the entropies to its type
        logits = logits.float()
        plain = torch.log_softmax(logits, dim=-1)
        warm = plain if temperature == 1.0 else torch.log_softmax(logits / temperature, dim=-1)
        logprobs = warm.gather(-1, targets[:, None]).squeeze(-1)
        entropies = -torch.linalg.vecdot(plain.exp(), plain)
    if torch.isnan(entropies).any():  # tokens at -inf, which count nothing; or scores that are not numbers, which stay
        entropies = entropy(plain)
    return logprobs, entropies


def joined(found: list[Found]) -> Found:
    """One pair of tensors from those of slices."""
    return torch.cat([a for a, _ in found]), torch.cat([b for _, b in found])


def whole(policy: Any, inputs: Mapping[str, torch.Tensor], wanted: Wanted) -> Found:
    """The same through the full logits [B, T, V] that the model returns: for models whose output layer is hidden."""
    logits = _run(policy, inputs).flatten(0, 1)
    size = slice_size(logits)
    slices = [slice(i, i + size) for i in range(0, len(wanted.places), size)]
    return joined([measured(logits[wanted.places[s]], wanted.targets[s], wanted.temperature) for s in slices])


def head_of(policy: Any, inputs: Mapping[str, torch.Tensor]) -> Head | None:
    """The output layer of `policy`, found out by a forward pass of `inputs` (one short row).

    None where it has none that is called once with hidden states [B, T, D], or where its logits become something that
    is neither themselves, a multiple nor a soft cap of it.
    """
    layer = policy.get_output_embeddings() if hasattr(policy, "get_output_embeddings") else None
    if layer is None:
        return None
    seen: list[tuple[Any, Any]] = []
    hook = layer.register_forward_hook(lambda _, args, out: seen.append((args, out)))
    try:
        logits = _run(policy, inputs)
    finally:
        hook.remove()
    if len(seen) != 1 or len(seen[0][0]) != 1:
        return None
    hidden, raw = seen[0][0][0], seen[0][1]
    if hidden.ndim != 3 or hidden.shape[:2] != logits.shape[:2] or raw.shape != logits.shape:
        return None
    near = 1e-4 if raw.dtype == torch.float32 else 1e-2  # a factor rounds in half precision
    for warp in _warps(raw, logits, text_cap(policy)):
        if torch.allclose(warp(raw).float(), logits.float(), rtol=near, atol=near):
            return Head(layer, warp)
    return None


def text_cap(policy: Any) -> float | None:
    """The soft cap of final logits that the model's config names, if any."""
    config: Any = getattr(policy, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    cap = getattr(text, "final_logit_softcapping", None)
    return float(cap) if isinstance(cap, (int, float)) else None


def _warps(raw: torch.Tensor, logits: torch.Tensor, cap: float | None) -> list[Warp]:
    """What models do to raw logits, as far as one pair shows it: nothing, a soft cap, a factor."""
    found: list[Warp] = [lambda x: x]
    if cap:  # first: small logits look alike with and without it
        found.insert(0, lambda x: torch.tanh(x / cap) * cap)
    a, b = raw.double().flatten(), logits.double().flatten()
    factor = float(a @ b / (a @ a).clamp(min=1e-30))
    return [*found, lambda x: x * factor]


def _run(policy: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    logits: torch.Tensor = policy(**inputs, use_cache=False, return_dict=True).logits
    return logits


def probe(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The beginning of the first row of `inputs`."""
    return {name: value[:1, :_PROBED] for name, value in inputs.items()}
