"""Fixtures of the sampler's tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats


def _assert_drawn_from(p: np.ndarray, seen: np.ndarray) -> None:
    """Chi-square of counts against probabilities, both [V]; tokens expected fewer than five times share one cell."""
    assert not seen[p == 0].any()
    expected = p / p.sum() * seen.sum()
    common = expected >= 5
    want, got = [*expected[common], expected[~common].sum()], [*seen[common], seen[~common].sum()]
    if want[-1] < 5:  # too few even together: they join the first cell
        want, got = [want[0] + want[-1], *want[1:-1]], [got[0] + got[-1], *got[1:-1]]
    assert len(want) == 1 or stats.chisquare(got, want).pvalue > 1e-3


@pytest.fixture(scope="session")
def assert_drawn_from() -> Callable[[np.ndarray, np.ndarray], None]:
    """Checks that counts of tokens come from a distribution; see `_assert_drawn_from`."""
    return _assert_drawn_from
