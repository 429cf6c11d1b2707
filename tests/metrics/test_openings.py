"""tail_to_head against its definition, one completion after the other, and against what it must say of extremes."""

import numpy as np
import pytest

from divmon.metrics import METRICS, MetricContext
from divmon.records import Probe, SampleBatch

METRIC = METRICS["tail_to_head"]


def batch(rows, source):
    probes = tuple(Probe(f"p{i}", "?") for i in range(len(rows)))
    texts = tuple(tuple("x" for _ in row) for row in rows)
    ids = tuple(tuple(tuple(range(len(cell))) for cell in row) for row in rows)
    logprobs = tuple(tuple(np.asarray(cell) for cell in row) for row in rows)
    return SampleBatch(0, probes, texts, token_ids=ids, logprobs=logprobs, source=source)


def measured(now, base):
    result = METRIC.fn(now, MetricContext(now, baseline=MetricContext(base)))
    with np.errstate(all="ignore"):
        return float(result.combine(result.parts))


def drawn(rng, p=5, k=7):
    shape = [[int(rng.integers(0, 30)) for _ in range(k)] for _ in range(p)]
    base = [[-rng.gamma(1.0, 0.5, n) for n in row] for row in shape]
    now = [[cell - rng.normal(0.02, 0.05, len(cell)) for cell in row] for row in base]
    return now, base


@pytest.mark.parametrize("seed", range(8))
def test_it_is_its_definition(seed):
    now, base = drawn(np.random.default_rng(seed))
    kept = {"tail": [], "head": []}
    for new, old in zip(now, base, strict=True):
        some = [j for j in range(len(old)) if len(old[j])]
        order = sorted(some, key=lambda j: (float(np.mean(old[j])), j))
        half = len(order) // 2
        for name, chosen in (("tail", order[:half]), ("head", order[len(order) - half :])):
            kept[name] += [min(1.0, float(np.exp((new[j] - old[j])[:16].sum()))) for j in chosen]
    expected = np.mean(kept["tail"]) / np.mean(kept["head"])
    assert measured(batch(now, "score"), batch(base, "probe")) == pytest.approx(expected, abs=1e-12)


def test_an_unchanged_policy_and_one_that_lost_everything():
    base = drawn(np.random.default_rng(0))[1]
    assert measured(batch(base, "score"), batch(base, "probe")) == 1.0
    gone = [[cell - 5.0 for cell in row] for row in base]
    assert np.isnan(measured(batch(gone, "score"), batch(base, "probe")))
