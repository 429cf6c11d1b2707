"""The usual ways to raise an alarm, on the same streams, for `bench_alarms.py`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from alarm_streams import CHANGE_AT, K, Noise, T

_CHUNK = 100  # runs at once
_LIBRARY = 4096  # values of each prompt
ENTROPY = (0.44, 0.52, 0.03)  # token entropy before and after a published collapse, and its noise here
Alarm = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def rivals(noise: Noise, drop: float, *, runs: int) -> dict[str, float | np.ndarray]:
    """By rule, float[runs]: the evaluation (from 1) of its first alarm when the mean falls by `drop` at the change."""
    values = noise.values(_LIBRARY, K)
    sd = values.std(axis=0)
    factors = np.where(np.arange(1, T + 1) >= CHANGE_AT, 1 - drop, 1.0)
    found: dict[str, list[np.ndarray]] = {}
    for _ in range(-(-runs // _CHUNK)):
        picked = noise.rng.integers(0, _LIBRARY, (_CHUNK, T + 1, noise.p))
        streams = values[picked, np.arange(noise.p)]
        streams[:, 1:] *= factors[:, None]
        for name, hits in _hits(streams, math.sqrt(float((sd**2).mean()) / noise.p), noise, drop).items():
            first = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, math.inf)
            found.setdefault(name, []).append(first)
    return {name: np.concatenate(parts)[:runs] for name, parts in found.items()}


def _hits(streams: np.ndarray, sd: float, noise: Noise, drop: float) -> dict[str, np.ndarray]:
    """bool[runs, T] by rule; `sd` is that of a mean over the prompts."""
    means = streams.mean(axis=2)
    fall = streams[:, :1] - streams[:, 1:]
    error = fall.std(axis=2, ddof=1) / math.sqrt(noise.p)
    z = (means[:, :1] - means[:, 1:]) / sd
    found = {
        "a 95 % interval at each look": fall.mean(axis=2) > 1.96 * error,
        "two sigma below the last ten": _rolling(means),
        "CUSUM (k = 0.5, h = 5)": _cusum(z),
        "e-process against one baseline": _mixture(z / math.sqrt(2)) >= 20,
    }
    found.update(_river(means))
    found["token entropy 20 % below its start"] = _entropy(means.shape, noise, drop)
    return found


def _rolling(means: np.ndarray) -> np.ndarray:
    hits = np.zeros((len(means), T), dtype=bool)
    for t in range(10, T + 1):
        window = means[:, t - 10 : t]
        hits[:, t - 1] = means[:, t] < window.mean(axis=1) - 2 * window.std(axis=1, ddof=1)
    return hits


def _cusum(z: np.ndarray) -> np.ndarray:
    c, hits = np.zeros(len(z)), np.zeros(z.shape, dtype=bool)
    for t in range(T):
        c = np.maximum(0.0, c + z[:, t] - 0.5)
        hits[:, t] = c > 5
    return hits


def _mixture(z: np.ndarray) -> np.ndarray:
    """A one-sided normal mixture (variance 1) of likelihood ratios, as if the baseline were known."""
    from scipy.special import ndtr

    s, t = np.cumsum(z, axis=1), np.arange(1, T + 1)
    return 2 / np.sqrt(t + 1) * np.exp(np.minimum(700, s**2 / (2 * (t + 1)))) * ndtr(s / np.sqrt(t + 1))


def _river(means: np.ndarray) -> dict[str, np.ndarray]:
    try:
        from river import drift
    except ImportError:
        return {}
    found = {}
    for name, make in (("river PageHinkley (defaults)", drift.PageHinkley), ("river ADWIN (defaults)", drift.ADWIN)):
        hits = np.zeros((len(means), T), dtype=bool)
        for run, row in enumerate(means):
            detector = make()
            for t, value in enumerate(row):
                detector.update(float(value))
                if detector.drift_detected and t:
                    hits[run, t - 1] = True
                    break
        found[name] = hits
    return found


def _entropy(shape: tuple[int, int], noise: Noise, drop: float) -> np.ndarray:
    before, after, sd = ENTROPY
    changed = (np.arange(shape[1]) >= CHANGE_AT) & (drop > 0)
    entropy = np.where(changed, after, before) * (1 + noise.rng.normal(0, sd, shape))
    return entropy[:, 1:] < 0.8 * entropy[:, :1]
