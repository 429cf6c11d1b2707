"""Keyed noise: exact sampling whose randomness is a function of names, not of a stream.

Each completion owns a key, made from the sampling key, the prompt's id and the completion's index. The noise of a
token is a hash of (key, position, token). So equal weights give equal completions whatever the batch size, order or
number of processes; the global generators are not even read; and two policies that differ a little mostly draw the
same tokens (common random numbers), which sharpens every difference between evaluations.

The draw is the Gumbel-max trick: argmax over tokens of log p + G is exactly a draw from p. With a large vocabulary,
noise for every token would cost more than the model. So the tokens are dealt into groups (token t into group t modulo
the number of groups, which spreads the frequent ones), a group is drawn by its total mass, and a token inside it. Still
exact, as p(token) = p(group) p(token | group); and it needs noise for V / 128 + 128 numbers only, nothing sorted.
"""

from __future__ import annotations

import hashlib

import torch
from transformers import LogitsProcessor, TopPLogitsWarper

GROUP = 128  # tokens a group
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64, the increment of splitmix64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


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
        temperature: Above 0; or 0, which always takes the likeliest token.
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
        logits = scores.float()
        lows = torch.finfo(logits.dtype).min  # 0 * -inf is not a number, 0 * this is 0
        logits = (logits - logits.amax(dim=1, keepdim=True)).clamp_(min=lows)
        p = _raised(logits)  # one exp for the draw, the log-probabilities and the entropies
        drawn = self._drawn(logits, p, input_ids, position)
        if self.record:
            total = p.sum(dim=1)
            self.logprobs.append(logits.gather(1, drawn[:, None]).squeeze(1) - total.log())
            # Both terms are at least 0, as the greatest of `logits` is 0: nothing cancels.
            self.entropies.append(total.log() - p[:, : logits.shape[1]].mul_(logits).sum(dim=1) / total)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)

    def _drawn(self, logits: torch.Tensor, p: torch.Tensor, input_ids: torch.Tensor, position: int) -> torch.Tensor:
        """int64[B], a token a row, from logits float32[B, V] at temperature 1 and top-p 1 and `_raised` of them."""
        if self.temperature == 0.0:
            return torch.argmax(logits, dim=1)
        if self.temperature == 1.0 and self.warp is None:
            return _draw(logits, p, self.keys, position)
        warped = torch.log_softmax(logits / self.temperature, dim=-1)
        if self.warp is not None:
            warped = torch.log_softmax(self.warp(input_ids, warped), dim=-1)
        return draw(warped, self.keys, position)


def entropy(logp: torch.Tensor) -> torch.Tensor:
    """Entropies in nats, float[B], of rows of log-probabilities, float[B, V]. Tokens at -inf count nothing."""
    return -logp.exp().mul_(logp.clamp(min=torch.finfo(logp.dtype).min)).sum(dim=-1)


def draw(logp: torch.Tensor, keys: torch.Tensor, position: int) -> torch.Tensor:
    """One token a row, exactly distributed as softmax(logp).

    Args:
        logp: float[B, V], normalised log-probabilities.
        keys: int64[B].
        position: Index of the token.

    Returns:
        int64[B].
    """
    return _draw(logp, _raised(logp), keys, position)


def _raised(logits: torch.Tensor) -> torch.Tensor:
    """The exponentials of logits of at most 0, float[B, V]; with zeros behind, up to a whole number of groups."""
    rows, vocabulary = logits.shape
    if vocabulary <= 2 * GROUP:
        return logits.exp()
    p = logits.new_empty(rows, GROUP * -(-vocabulary // GROUP))
    torch.exp(logits, out=p[:, :vocabulary])
    p[:, vocabulary:] = 0.0
    return p


def _draw(logits: torch.Tensor, p: torch.Tensor, keys: torch.Tensor, position: int) -> torch.Tensor:
    """`draw` from logits that need not be normalised, and `_raised` of them."""
    rows, vocabulary = logits.shape
    if vocabulary <= 2 * GROUP:
        tokens = torch.arange(vocabulary, device=logits.device)[None]
        return torch.argmax(logits + gumbel(uniform(keys, position, tokens)), dim=1)
    groups = p.shape[1] // GROUP
    mass = p.view(rows, GROUP, groups).sum(dim=1)
    names = -1 - torch.arange(groups, device=logits.device)[None]  # no token has a negative id
    group = torch.argmax(mass.log() + gumbel(uniform(keys, position, names)), dim=1, keepdim=True)
    tokens = group + groups * torch.arange(GROUP, device=logits.device)
    inside = logits.gather(1, tokens.clamp(max=vocabulary - 1)).masked_fill(tokens >= vocabulary, -torch.inf)
    winner = torch.argmax(inside + gumbel(uniform(keys, position, tokens)), dim=1, keepdim=True)
    return tokens.gather(1, winner).squeeze(1)
