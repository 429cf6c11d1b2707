"""Points of equal quality, against a dense search on the curve itself."""

import numpy as np
import pytest

from divmon.errors import HistoryError
from divmon.matching import Place, between, joint_step, match, shared_range

NAN = np.nan


def test_the_highest_that_both_reach_by_hand():
    found = match([np.array([0.1, 0.5, 0.9]), np.array([0.1, 0.3, 0.7, 0.6])])
    assert found.level == 0.7
    slow, fast = found.places[1], found.places[0]
    assert slow == Place(2, 2, 0.0)
    assert (fast.before, fast.after) == (1, 2)
    assert fast.weight == pytest.approx(0.5)  # 0.7 is halfway from 0.5 to 0.9
    assert fast.read(np.array([9.0, 4.0, 2.0])) == pytest.approx(3.0)


def test_against_a_dense_search():
    rng = np.random.default_rng(3)
    for _ in range(60):
        qualities = [rng.uniform(size=rng.integers(2, 9)) for _ in range(3)]
        low, high = shared_range(qualities)
        if low > high:
            with pytest.raises(HistoryError, match="no quality that every run"):
                match(qualities)
            continue
        for level in (None, low, (low + high) / 2):
            found = match(qualities, level=level)
            assert found.level == pytest.approx(high if level is None else level)
            for quality, place in zip(qualities, found.places, strict=True):
                at = np.arange(len(quality))
                assert place.read(quality) == pytest.approx(found.level, abs=1e-12)
                dense = np.union1d(np.linspace(0, len(quality) - 1, 100_001), at)
                side = np.sign(np.interp(dense, at, quality) - found.level)
                first = dense[np.argmax(side != side[0])] if side[0] else 0.0
                assert place.read(at) == pytest.approx(first, abs=1e-3)


def test_unknown_qualities_are_passed_over():
    [a, _] = match([np.array([0.0, NAN, 1.0]), np.array([0.0, 0.5])]).places
    assert a == Place(0, 2, 0.5)
    assert np.isnan(a.read(np.array([1.0, 5.0, NAN])))
    assert Place(0, 1, 0.0).read(np.array([1.0, NAN])) == 1
    assert between(np.array(NAN), np.array(2.0), 1) == 2


def test_a_run_that_begins_above_is_read_where_it_falls_to_the_level():
    [a, b] = match([np.array([0.2, 0.6]), np.array([0.9, 0.5, 0.9])]).places
    assert (a, b.before, b.after) == (Place(1, 1, 0.0), 0, 1)


def test_refusals():
    with pytest.raises(HistoryError, match=r"they share 0.1 to 0.5"):
        match([np.array([0.0, 0.5]), np.array([0.1, 0.9])], level=0.6)
    with pytest.raises(HistoryError, match="no quality at all"):
        match([np.array([NAN]), np.array([0.1])])
    rounded = match([np.array([0.0, 0.1 + 0.2]), np.array([0.0, 0.3])], level=0.1 * 3)
    assert rounded.level == 0.3
    assert joint_step([np.array([0, 10]), np.array([5])]) is None
