"""Keyed noise: exact sampling whose randomness is a function of names, not of a stream.

Each completion owns a key, made from the sampling key, the prompt's id and the completion's index. The noise of a
token is a hash of (key, position, token). So equal weights give equal completions whatever the batch size, order or
number of processes; the global generators are not even read; and two policies that differ a little mostly draw the
same tokens (common random numbers), which sharpens every difference between evaluations.

The draw is the Gumbel-max trick: argmax over tokens of log p + G is exactly a draw from p. With a large vocabulary,
Gumbel noise for every token would cost more than the model. So the `TOP` most likely tokens get their own noise, and
the rest one Gumbel for their total mass; when the rest wins, a keyed uniform picks inside it by inverse CDF. Still
exact: the maximum of independent Gumbels with locations log p_i is a Gumbel with location log of the sum of p_i.
"""

from __future__ import annotations

import hashlib

import torch
from transformers import LogitsProcessor, TopPLogitsWarper

TOP = 256
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64, the increment of splitmix64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_REST_GUMBEL, _REST_UNIFORM = -1, -2  # stand-ins for a token id


def row_key(key: int, prompt_id: str, index: int) -> int:
    """The int64 key of completion `index` of a prompt."""
    digest = hashlib.blake2b(f"{key}\x1f{prompt_id}\x1f{index}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little", signed=True)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64, a bijection of int64 (Steele, Lea and Flood 2014)."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def uniform(keys: torch.Tensor, position: int, tokens: torch.Tensor) -> torch.Tensor:
    """Uniforms in (0, 1), 53 bits (24 where the device has no float64), a hash of row key, position and token id.

    Args:
        keys: int64[B].
        position: Index of the token to draw.
        tokens: int64[B, M] or [1, M].

    Returns:
        float[B, M].
    """
    rows = mix(keys + torch.full_like(keys, position) * _GOLDEN)[:, None]  # wraps, as it should
    bits = mix(mix(tokens * _GOLDEN + 1) ^ rows)
    if keys.device.type == "mps":
        return (_shift(bits, 40).to(torch.float32) + 0.5) * 2.0**-24
    return (_shift(bits, 11).to(torch.float64) + 0.5) * 2.0**-53


def gumbel(u: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise from uniforms. log1p keeps the upper tail: 53 bits reach about 37, 24 bits only 17."""
    return -torch.log(-torch.log1p(-u))


class KeyedSampling(LogitsProcessor):  # type: ignore[misc]
    """Turns greedy `generate` into exact sampling with keyed noise, and records what the policy thought.

    Use with ``do_sample=False``: it applies temperature and top-p itself and returns scores whose argmax is the draw.

    Args:
        keys: int64[B], one a row.
        prompt_length: Length of the padded prompts.
        temperature: Above 0.
        top_p: In (0, 1].
        record: Keep next-token entropy and log p of each drawn token, both at temperature 1 and top-p 1.
    """

    def __init__(
        self,
        keys: torch.Tensor,
        *,
        prompt_length: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        record: bool = True,
    ) -> None:
        self.keys = keys
        self.prompt_length = prompt_length
        self.temperature = temperature
        self.warp = TopPLogitsWarper(top_p) if top_p < 1.0 else None
        self.record = record
        self.entropies: list[torch.Tensor] = []  # T tensors float32[B]
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores in, scores out: the same shape, 0 at the drawn token and -inf elsewhere."""
        position = input_ids.shape[1] - self.prompt_length
        plain = torch.log_softmax(scores.float(), dim=-1)
        warped = plain
        if self.temperature != 1.0:
            warped = torch.log_softmax(plain / self.temperature, dim=-1)
        if self.warp is not None:
            warped = torch.log_softmax(self.warp(input_ids, warped), dim=-1)
        drawn = draw(warped, self.keys, position)
        if self.record:
            self.entropies.append(-torch.special.xlogy(plain.exp(), plain.exp()).sum(-1))
            self.logprobs.append(plain.gather(1, drawn[:, None]).squeeze(1))
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)


def draw(logp: torch.Tensor, keys: torch.Tensor, position: int) -> torch.Tensor:
    """One token a row, exactly distributed as softmax(logp).

    Args:
        logp: float[B, V], normalised log-probabilities.
        keys: int64[B].
        position: Index of the token.

    Returns:
        int64[B].
    """
    vocabulary = logp.shape[1]
    if vocabulary <= 2 * TOP:
        tokens = torch.arange(vocabulary, device=logp.device)[None]
        return torch.argmax(logp + gumbel(uniform(keys, position, tokens)), dim=1)
    top, tokens = torch.topk(logp, TOP, dim=1)
    rest = logp.exp().scatter_(1, tokens, 0.0)
    stand_in = torch.full_like(tokens[:, :1], _REST_GUMBEL)
    noise = gumbel(uniform(keys, position, torch.cat([tokens, stand_in], dim=1)))
    mass = rest.sum(dim=1, keepdim=True, dtype=noise.dtype)
    winner = torch.argmax(torch.cat([top, mass.log()], dim=1) + noise, dim=1)
    drawn = tokens.gather(1, winner.clamp(max=TOP - 1)[:, None]).squeeze(1)
    tail = (winner == TOP).nonzero().squeeze(1)
    if tail.numel():
        u = uniform(keys[tail], position, torch.full_like(stand_in[tail], _REST_UNIFORM))
        cumulative = rest[tail].to(noise.dtype).cumsum(dim=1)
        drawn[tail] = torch.searchsorted(cumulative, u * cumulative[:, -1:]).squeeze(1).clamp(max=vocabulary - 1)
    return drawn
