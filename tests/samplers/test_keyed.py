"""Keyed noise: uniform and independent for every key; draws exactly from p; the same draw whatever the batch."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from divmon.samplers.keyed import GROUP, KeyedSampling, draw, entropy, gumbel, mix, row_key, uniform

Check = Callable[[np.ndarray, np.ndarray], None]
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
SMALL, LARGE = 51, 2 * GROUP + 45  # a vocabulary drawn at once, and one drawn by groups that it does not fill


def keys(n: int, key: int = 0) -> torch.Tensor:
    return torch.tensor([row_key(key, "prompt", index) for index in range(n)])


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the hash


def signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


def splitmix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def unsplitmix(x: int) -> int:
    x ^= (x >> 31) ^ (x >> 62)
    x = (x * pow(0x94D049BB133111EB, -1, 2**64)) & MASK
    x ^= (x >> 27) ^ (x >> 54)
    x = (x * pow(0xBF58476D1CE4E5B9, -1, 2**64)) & MASK
    return x ^ (x >> 30) ^ (x >> 60)


def test_mix_gives_the_published_numbers_of_splitmix64() -> None:
    state = torch.tensor([signed(GOLDEN * n & MASK) for n in (1, 2, 3)])
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # seed 0
    assert [value & MASK for value in mix(state).tolist()] == published


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50))
def test_mix_is_a_bijection(values: list[int]) -> None:
    mixed = [value & MASK for value in mix(torch.tensor(values)).tolist()]
    assert mixed == [splitmix(value & MASK) for value in values]
    assert [signed(unsplitmix(value)) for value in mixed] == values


def test_row_keys_tell_sampling_keys_prompts_and_indices_apart() -> None:
    names = [(key, prompt, j) for key in (0, 1, 11) for prompt in ("", "1", "11", "\x1f", "\ud800") for j in range(99)]
    assert len({row_key(*name) for name in names}) == len(names)
    assert row_key(0, "a", 0) == row_key(0, "a", 0)
    assert all(-(2**63) <= row_key(*name) < 2**63 for name in names)


# ---- uniforms and Gumbel noise

CUBES: dict[str, Callable[[], torch.Tensor]] = {
    "keys": lambda: uniform(keys(1000), 3, torch.arange(500)[None]),
    "positions": lambda: torch.cat([uniform(keys(10), t, torch.arange(500)[None]) for t in range(100)]),
    "small keys": lambda: uniform(torch.arange(1000), 0, torch.arange(500)[None]),  # not hashed first
    "groups": lambda: uniform(keys(1000), 3, -1 - torch.arange(500)[None]),
}


@pytest.mark.parametrize("name", CUBES)
def test_uniforms_are_uniform(name: str) -> None:
    u = CUBES[name]().numpy().ravel()
    assert u.dtype == np.float64
    assert 0 < u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    assert abs(u.mean() - 0.5) < 4 * np.sqrt(1 / 12 / u.size)
    assert abs(u.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / u.size)
    assert stats.kstest(u[:100_000], "uniform").pvalue > 1e-4
    fine = np.bincount((u * 2**45 % 256).astype(int), minlength=256)  # bits 38 to 45
    assert stats.chisquare(fine).pvalue > 1e-4


def test_uniforms_do_not_repeat() -> None:
    tokens = torch.arange(-250, 250)[None]
    u = torch.cat([uniform(keys(200), t, tokens) for t in range(10)]).numpy().ravel()
    assert np.unique(u).size == u.size == 1_000_000


@pytest.mark.parametrize("name", CUBES)
@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "tokens"])
@pytest.mark.parametrize("lag", [1, 2, 64])
def test_neighbours_are_independent(name: str, axis: int, lag: int) -> None:
    u = CUBES[name]().numpy()
    one, other = (u[:-lag], u[lag:]) if axis == 0 else (u[:, :-lag], u[:, lag:])
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(one.size)
    cells = np.histogram2d(one.ravel(), other.ravel(), bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.ravel()).pvalue > 1e-4


def test_positions_and_keys_do_not_trade_places() -> None:
    tokens = torch.arange(100)[None]
    shifted = keys(50) + 1
    seen = [uniform(k, t, tokens) for k in (keys(50), shifted) for t in range(20)]
    assert torch.cat(seen).unique().numel() == 50 * 2 * 20 * 100


def test_gumbel_noise_has_its_distribution_and_its_tail() -> None:
    g = gumbel(uniform(keys(2000), 0, torch.arange(500)[None])).numpy().ravel()
    assert stats.kstest(g[:100_000], "gumbel_r").pvalue > 1e-4
    for level in (5.0, 8.0, 10.0):
        expected = g.size * stats.gumbel_r.sf(level)
        assert abs((g > level).sum() - expected) < 4 * np.sqrt(expected) + 1
    ends = gumbel(torch.tensor([0.5 * 2.0**-53, 1 - 2.0**-53], dtype=torch.float64))
    assert ends.isfinite().all()
    assert ends[0] > 37  # tokens of probability 1e-16 can still be drawn


# ---- draws


def counts(logp: torch.Tensor, *, rows: int = 2000, positions: int = 10) -> np.ndarray:
    """How often each token of one distribution, float[V], is drawn in `rows` times `positions` draws."""
    batch = logp[None].expand(rows, -1)
    drawn = torch.cat([draw(batch, keys(rows), position) for position in range(positions)])
    assert drawn.min() >= 0
    assert drawn.max() < logp.shape[0]
    return np.bincount(drawn.numpy(), minlength=logp.shape[0])


def zipf(vocabulary: int) -> torch.Tensor:
    return -1.1 * torch.arange(1, vocabulary + 1).log()


def with_forbidden(vocabulary: int) -> torch.Tensor:
    logits = noise(1, vocabulary)
    logits[::2] = -torch.inf
    logits[: vocabulary // 3] = -torch.inf
    return logits


def with_heavy_rest(vocabulary: int) -> torch.Tensor:
    logits = torch.zeros(vocabulary)
    logits[7] = float(np.log(vocabulary / 10))  # one token has 9 %, all others share the rest
    return logits


SHAPES: dict[str, Callable[[int], torch.Tensor]] = {
    "flat": torch.zeros,
    "normal": lambda vocabulary: 2 * noise(0, vocabulary),
    "zipf": zipf,
    "forbidden tokens": with_forbidden,
    "heavy rest": with_heavy_rest,
}


@pytest.mark.parametrize("vocabulary", [2, SMALL, 2 * GROUP, LARGE, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_draws_are_exact(shape: str, vocabulary: int, assert_drawn_from: Check) -> None:
    logp = torch.log_softmax(SHAPES[shape](max(vocabulary, 8))[-vocabulary:], -1)
    assert_drawn_from(logp.double().exp().numpy(), counts(logp))


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE])
def test_a_point_mass_is_always_drawn(vocabulary: int) -> None:
    for token in (0, vocabulary // 2, vocabulary - 1):
        logp = torch.full((vocabulary,), -torch.inf)
        logp[token] = 0.0
        assert (counts(logp, rows=50, positions=2).nonzero()[0] == token).all()


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.7, 1.0), (1.0, 0.9), (0.7, 0.5)])
def test_temperature_and_top_p_are_those_of_transformers(
    vocabulary: int, temperature: float, top_p: float, assert_drawn_from: Check
) -> None:
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    logits = 3 * noise(2, 1, vocabulary)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
    p = torch.softmax(warpers(None, logits.clone()).double(), -1)[0].numpy()
    seen = np.zeros(vocabulary, dtype=int)
    for position in range(5):
        keyed = KeyedSampling(keys(2000), prompt_length=1, temperature=temperature, top_p=top_p)
        ids = torch.zeros(2000, 1 + position, dtype=torch.long)
        scores = keyed(ids, logits.expand(2000, -1).clone())
        seen += np.bincount(scores.argmax(-1).numpy(), minlength=vocabulary)
    assert_drawn_from(p, seen)
    plain = torch.log_softmax(logits, -1)[0]  # what is recorded ignores temperature and top-p
    torch.testing.assert_close(keyed.logprobs[0], plain[scores.argmax(-1)])
    torch.testing.assert_close(keyed.entropies[0], torch.tensor(stats.entropy(plain.exp())).expand(2000).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_leave_nothing_but_the_draw(dtype: torch.dtype) -> None:
    logits = noise(3, 4, LARGE).to(dtype)
    before = logits.clone()
    out = KeyedSampling(keys(4), prompt_length=0, record=False)(torch.zeros(4, 0, dtype=torch.long), logits)
    assert out.dtype == dtype
    assert torch.equal(logits, before)
    assert (out.isfinite().sum(-1) == 1).all()
    assert (out.amax(-1) == 0).all()


def test_entropy_counts_forbidden_tokens_as_nothing() -> None:
    logits = with_forbidden(LARGE)[None]
    expected = stats.entropy(torch.softmax(logits.double(), -1).numpy(), axis=-1)
    assert entropy(torch.log_softmax(logits, -1)).numpy() == pytest.approx(expected, abs=1e-5)
    point = torch.full((1, 9), -torch.inf)
    point[0, 3] = 0.0
    assert entropy(point).item() == 0


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE, 5000])
def test_a_draw_does_not_depend_on_the_batch(vocabulary: int) -> None:
    logp, names = torch.log_softmax(noise(4, 64, vocabulary), -1), keys(64)
    whole = draw(logp, names, 5)
    assert torch.equal(whole, torch.cat([draw(logp[i : i + 1], names[i : i + 1], 5) for i in range(64)]))
    assert torch.equal(whole.flip(0), draw(logp.flip(0), names.flip(0), 5))
    assert not torch.equal(whole, draw(logp, names, 6))
    assert not torch.equal(whole, draw(logp, keys(64, key=1), 5))


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE, 5000])
@pytest.mark.parametrize("change", [0.05, 0.3])
def test_close_policies_mostly_draw_the_same_tokens(vocabulary: int, change: float) -> None:
    rows, positions = 500, 4
    logits = 2 * noise(5, rows, vocabulary)
    p = torch.log_softmax(logits, -1)
    q = torch.log_softmax(logits + change * noise(6, rows, vocabulary), -1)
    agree = np.mean([(draw(p, keys(rows), t) == draw(q, keys(rows), t)).double().mean() for t in range(positions)])
    distance = 0.5 * (p.exp() - q.exp()).abs().sum(-1).mean().item()  # total variation: no coupling agrees more
    error = 3 * np.sqrt(distance / (rows * positions))
    assert (1 - distance) / (1 + distance) - distance - error < agree <= 1 - distance + error
    assert agree > 5 * (p.exp() * q.exp()).sum(-1).mean().item()  # what independent draws would agree


def test_the_global_generators_are_not_read() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    scores = KeyedSampling(keys(8), prompt_length=0, top_p=0.9)(torch.zeros(8, 0, dtype=torch.long), noise(7, 8, LARGE))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    torch.manual_seed(99)
    again = KeyedSampling(keys(8), prompt_length=0, top_p=0.9)(torch.zeros(8, 0, dtype=torch.long), noise(7, 8, LARGE))
    assert torch.equal(scores, again)
