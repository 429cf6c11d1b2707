"""The gate: prompts that are solved well enough stop pushing the policy, so that what is left goes to the others.

With m of n completions of a prompt correct, and a uniform prior on its chance p of being solved, what another correct
completion is worth to pass@k is ``u(m) = E[k (1 - p)^(k-1)]`` with ``p ~ Beta(m + 1, n - m + 1)``. A prompt's
advantages are scaled by ``u(m) / u(1)``, and by zero once ``u(m) < tau (n + 1)``: saturated. At n = 8, k = 16,
tau = 0.01 the weights of m = 1, 2, 3 are 1, .318 and .091, and prompts solved in half of their completions no longer
push.

Source: arXiv:2606.15455 (2026). A prompt without a correct completion, which the paper learns from through a term that
centred groups cannot express, keeps its weight of 1 here (its advantages are 0 for 0/1 rewards).
"""

from __future__ import annotations

import numpy as np


def marginal_value(m: int, n: int, k: int) -> float:
    """u(m): what one more correct completion is worth to pass@k, given m of n correct.

    >>> round(marginal_value(1, 8, 16) / marginal_value(2, 8, 16), 4)
    3.1429
    """
    steps = np.arange(1, k)
    return float(k * np.prod(np.maximum(0.0, n - m + steps) / (n + 1 + steps)))


def gate_weights(n: int, *, k: int = 16, tau: float = 0.01) -> np.ndarray:
    """float[n + 1]: the weight of a prompt with 0, 1, ... n correct completions.

    >>> gate_weights(8).round(3).tolist()
    [1.0, 1.0, 0.318, 0.091, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    value = np.array([marginal_value(m, n, k) for m in range(n + 1)])
    weights = np.where(value < tau * (n + 1), 0.0, value / value[1])
    weights[0] = 1.0
    return weights
