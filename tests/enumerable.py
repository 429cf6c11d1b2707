"""A policy all of whose completions can be listed: a real, tiny GPT-2 of six tokens and at most four of them.

Everything that scores estimate has an exact value here, as a sum over all 781 completions of every prompt.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.special import gammaln
from transformers import GPT2Config, GPT2LMHeadModel

from divmon.bank import Bank
from divmon.records import Decoding, Probe, SampleBatch

V, LONGEST, EOS = 6, 4, 5
LETTERS = "abcde"
PROMPTS = 8
TREE = tuple(
    tokens
    for n in range(LONGEST + 1)
    for body in itertools.product(range(EOS), repeat=n)
    for tokens in ([(*body, EOS)] if n < LONGEST else [body])
)
TEXTS = tuple("".join(LETTERS[t] for t in tokens if t != EOS) for tokens in TREE)
LENGTHS = np.array([len(tokens) for tokens in TREE])


def label(text: str) -> tuple[str, ...]:
    """The format of a completion: its first letter, where it has one and ends in another; else whether it is empty."""
    if not text:
        return ("empty",)
    return (f"{text[0]}-flat",) if len(set(text)) == 1 else (text[0],)


LABELS = np.array([label(text)[0] for text in TEXTS])


def policy(seed: int, *, spread: float = 0.9) -> GPT2LMHeadModel:
    """A random GPT-2 that is far from uniform. Prompt i is the token i."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=PROMPTS + V, n_positions=16, n_embd=16, n_layer=1, n_head=2, initializer_range=spread / 4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=EOS, eos_token_id=EOS,
        )
    )  # fmt: skip


@dataclass
class Law:
    """Exact: float[P, N, 4] log-probabilities of the tokens of every completion (0 after its end), and entropies."""

    logprobs: np.ndarray
    entropies: np.ndarray
    _halves: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @functools.cached_property
    def sequences(self) -> np.ndarray:
        """float[P, N]: log p(completion)."""
        return self.logprobs.sum(axis=-1)

    def halves(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """float[P, N] twice: the chances to be in the tail half, and in the head half, of K draws."""
        if k not in self._halves:
            p, means = np.exp(self.sequences), self.sequences / LENGTHS
            pairs = list(zip(p, means, strict=True))
            tail, head = (np.stack([in_tail(a, sign * b, k) for a, b in pairs]) for sign in (1, -1))
            self._halves[k] = (tail, head)
        return self._halves[k]


def logits_of(model: GPT2LMHeadModel, prompts: torch.Tensor, completions: torch.Tensor) -> torch.Tensor:
    """float[P, N, 4, V']: next-token logits before each token of each completion under each prompt."""
    p, n = len(prompts), len(completions)
    ids = torch.cat((prompts[:, None, None].expand(p, n, 1), completions[None].expand(p, n, LONGEST)), dim=-1)
    logits: torch.Tensor = model(ids.reshape(p * n, LONGEST + 1)).logits
    return logits[:, :-1].reshape(p, n, LONGEST, -1)


def padded() -> torch.Tensor:
    return torch.tensor([[*tokens, *[0] * (LONGEST - len(tokens))] for tokens in TREE])


def law(model: GPT2LMHeadModel) -> Law:
    """Of all completions of all prompts. Ids of prompts can be drawn too; they count as the end (see `TREE`)."""
    with torch.no_grad():
        logits = logits_of(model, torch.arange(V, V + PROMPTS), padded()).double()
        logp = torch.log_softmax(logits, dim=-1)
        chosen = logp.gather(-1, padded()[None, ..., None].expand(PROMPTS, -1, -1, -1))[..., 0].numpy()
        entropies = -(logp.exp() * logp).sum(-1).numpy()
    inside = np.arange(LONGEST) < LENGTHS[:, None]
    return Law(np.where(inside, chosen, 0.0), np.where(inside, entropies, 0.0))


def close(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The same model, which never says the name of a prompt: TREE is then all it can say."""
    head = torch.nn.Linear(model.config.n_embd, PROMPTS + V)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.copy_(torch.where(torch.arange(PROMPTS + V) < V, 0.0, -1e4))
    model.lm_head = head
    return model


def reward() -> np.ndarray:
    """What training pays: one format in full, its flat kind by half."""
    return np.select([LABELS == "b", LABELS == "b-flat"], [1.0, 0.5], 0.0)


def train(model: GPT2LMHeadModel, steps: int, *, lr: float = 3e-3, seed: int = 0) -> None:
    """REINFORCE with real Adam steps on drawn completions."""
    generator = np.random.default_rng(seed)
    optimiser = getattr(model, "optimiser", None) or torch.optim.Adam(model.parameters(), lr=lr)
    model.optimiser = optimiser
    pay = torch.tensor(reward())
    for _ in range(steps):
        p = np.exp(law(model).sequences)
        rows = np.stack([generator.choice(len(TREE), size=16, p=row / row.sum()) for row in p])
        loss = torch.zeros(())
        for i, row in enumerate(rows):
            logits = logits_of(model, torch.tensor([V + i]), padded()[row])[0]
            chosen = torch.log_softmax(logits, -1).gather(-1, padded()[row][..., None])[..., 0]
            inside = torch.arange(LONGEST) < torch.tensor(LENGTHS[row])[:, None]
            gain = pay[row] - pay[row].mean()
            loss = loss - (gain.float() * (chosen * inside).sum(-1)).mean() / PROMPTS
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def bank(base: Law, *, k: int, seed: int) -> Bank:
    """K completions a prompt, drawn from the exact law."""
    generator = np.random.default_rng(seed)
    p = np.exp(base.sequences)
    drawn = [generator.choice(len(TREE), size=k, p=row / row.sum()) for row in p]
    probes = tuple(Probe(f"p{i}", f"prompt {i}") for i in range(PROMPTS))

    def cells(values: np.ndarray) -> tuple[tuple[np.ndarray, ...], ...]:
        return tuple(tuple(values[i, n, : LENGTHS[n]] for n in row) for i, row in enumerate(drawn))

    batch = SampleBatch(
        0, probes, tuple(tuple(TEXTS[n] for n in row) for row in drawn),
        token_ids=tuple(tuple(TREE[n] for n in row) for row in drawn),
        logprobs=cells(base.logprobs), entropies=cells(base.entropies),
        decoding=Decoding(max_new_tokens=LONGEST), fingerprint="toy",
    )  # fmt: skip
    return Bank(batch, tuple((V + i,) for i in range(PROMPTS)))


def exact(base: Law, now: Law, *, k: int) -> dict[str, float]:
    """What `measure_scores` estimates, exactly: means over prompts of sums over all completions."""
    p0, p1 = np.exp(base.sequences), np.exp(now.sequences)
    kept = np.where(np.arange(LONGEST) < LENGTHS[:, None], np.exp(np.minimum(now.logprobs - base.logprobs, 0.0)), 0.0)
    tail, head = base.halves(k)

    def per_token(values: np.ndarray, weights: np.ndarray) -> float:
        return float(np.mean((weights * values).sum(1) / (weights * LENGTHS).sum(1)))

    found = {
        "kl_per_token": per_token(base.sequences - now.sequences, p0),
        "retained_mass": per_token(kept.sum(-1), p0),
        "retained_tail": per_token(kept.sum(-1), p0 * tail),
        "retained_head": per_token(kept.sum(-1), p0 * head),
        "scored_entropy": per_token(now.entropies.sum(-1), p0),
    }
    return found | {f"share:{name}": float(p1[:, name == LABELS].sum(1).mean()) for name in sorted(set(LABELS))}


def in_tail(p: np.ndarray, mean: np.ndarray, k: int) -> np.ndarray:
    """float[N]: the chance that a completion among K draws is one of the K // 2 of least `mean`; copies share it.

    b of the other K - 1 draws lie below it and c are copies of it, a multinomial; of the c + 1 places from b on, those
    before K // 2 count.
    """
    order = np.argsort(mean, kind="stable")
    below = np.empty(len(p))
    below[order] = np.cumsum(p[order]) - p[order]
    b, c = np.arange(k // 2)[:, None], np.arange(k)[None]
    rest = k - 1 - b - c
    ways = gammaln(k) - gammaln(b + 1) - gammaln(c + 1) - gammaln(np.maximum(rest, 0) + 1)
    places = np.where(rest >= 0, np.clip((k // 2 - b) / (1 + c), 0.0, 1.0) * np.exp(ways), 0.0)
    above = np.clip(1 - below - p, 0.0, 1.0)
    x, y, z = (np.clip(v, 0, 1)[:, None] ** np.arange(k)[None] for v in (below, p, above))  # powers
    power = z[:, np.clip(rest, 0, k - 1).ravel()].reshape(len(p), *rest.shape)
    return np.einsum("bc,nb,nc,nbc->n", places, x[:, : k // 2], y, power, optimize=True)
