"""How far estimators of diversity are from the truth when few completions are drawn: Markdown tables, by simulation.

    python tests/benchmarks/bias_tables.py > divmon/metrics/BIAS.md

Classes are drawn from known distributions; embeddings from populations of 4,096 unit vectors, whose own Vendi scores
are the truth. Every table gives the mean of the estimates, and their standard deviation in brackets.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from divmon.metrics.richness import chao1, chao_jost_entropy, good_turing_coverage, grassberger_entropy, rarefy
from divmon.metrics.spectrum import collision_unbiased, hill, shannon
from divmon.metrics.vendi import inverse_mean, likeness_parts, squared_likeness, vendi, vendi_1_log_jackknife

COMMAND = "python tests/benchmarks/bias_tables.py > divmon/metrics/BIAS.md"
SIZES = (8, 16, 32)
RAREFIED = 8
PROMPTS = 100  # over which a collision probability is averaged before it is inverted
WIDTH = 64
POPULATION = 4096


def populations() -> dict[str, np.ndarray]:
    """Shares of the classes: float[C] by name."""
    zipf = 1.0 / np.arange(1, 51)
    return {
        "uniform 5": np.full(5, 0.2),
        "uniform 20": np.full(20, 0.05),
        "Zipf 50": zipf / zipf.sum(),
        "collapsed .7 + 30 x .01": np.r_[0.7, np.full(30, 0.01)],
    }


def miller_madow(counts: np.ndarray) -> np.ndarray:
    """The plug-in plus (C - 1) / 2n, for comparison only."""
    return shannon(counts) + ((counts > 0).sum(axis=-1) - 1) / (2 * counts.sum(axis=-1))


def expected_richness(shares: np.ndarray, n: int) -> float:
    """Classes that n draws show on average."""
    return float((1 - (1 - shares) ** n).sum())


def averaged_then_inverted(counts: np.ndarray) -> np.ndarray:
    """Hill-2 from groups of `PROMPTS` samples, as a metric gives it; float[R // PROMPTS]."""
    group = min(PROMPTS, len(counts))
    same = collision_unbiased(counts[: len(counts) // group * group]).reshape(-1, group)
    return 1.0 / same.mean(axis=1)


@dataclass(frozen=True)
class Estimator:
    """One column.

    Attributes:
        name: As the table shows it.
        estimate: float[R, C] counts to float[R].
        truth: Shares to the number that is estimated.
        unbiased: Whether that is promised.
    """

    name: str
    estimate: Callable[[np.ndarray], np.ndarray]
    truth: Callable[[np.ndarray], float]
    unbiased: bool = False


def _entropy(shares: np.ndarray) -> float:
    return float(shannon(shares))


def _hill_2(shares: np.ndarray) -> float:
    return float(hill(shares, q=2))


TABLES: dict[str, tuple[Estimator, ...]] = {
    "Shannon entropy (nats)": (
        Estimator("plug-in", shannon, _entropy),
        Estimator("Miller-Madow", miller_madow, _entropy),
        Estimator("Chao-Jost", chao_jost_entropy, _entropy),
        Estimator("Grassberger 2003", grassberger_entropy, _entropy),
    ),
    "Probability that two completions agree": (
        Estimator("plug-in", lambda n: 1 / hill(n, q=2), lambda p: 1 / _hill_2(p)),
        Estimator("`collision_unbiased`", collision_unbiased, lambda p: 1 / _hill_2(p), unbiased=True),
    ),
    "Effective number of classes, order 2": (
        Estimator("plug-in", lambda n: hill(n, q=2), _hill_2),
        Estimator(f"unbiased, averaged over {PROMPTS} prompts, inverted once", averaged_then_inverted, _hill_2),
    ),
    "Number of classes": (
        Estimator("seen", lambda n: hill(n, q=0), lambda p: float(len(p))),
        Estimator("`chao1`", chao1, lambda p: float(len(p))),
    ),
    f"Number of classes among {RAREFIED} draws": (
        Estimator("seen (among all draws)", lambda n: hill(n, q=0), lambda p: expected_richness(p, RAREFIED)),
        Estimator("`rarefy`", lambda n: rarefy(n, n=RAREFIED), lambda p: expected_richness(p, RAREFIED), unbiased=True),
    ),
}
COVERAGE: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("Good-Turing", good_turing_coverage),
    ("improved", lambda counts: good_turing_coverage(counts, improved=True)),
)


def embeddings(clusters: int, *, size: int = POPULATION, seed: int = 0) -> np.ndarray:
    """A population of unit vectors, float[N, D], around 1, 5 or 20 centres. One centre is common to all."""
    rng = np.random.default_rng((seed, clusters))
    centres = rng.normal(size=(clusters, WIDTH)) + (2.0 if clusters == 1 else 0.8) * rng.normal(size=WIDTH)
    vectors = centres[rng.integers(clusters, size=size)] + 0.9 * rng.normal(size=(size, WIDTH))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def kernels(vectors: np.ndarray, n: int, sets: int, *, seed: int = 0) -> np.ndarray:
    """float[sets, n, n]: cosines of sets of n vectors of the population, drawn with replacement."""
    drawn = vectors[np.random.default_rng((seed, n)).integers(len(vectors), size=(sets, n))]
    return np.einsum("snd,smd->snm", drawn, drawn)


def _cell(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ({values.std():.3f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""


def class_tables(repetitions: int) -> Iterator[str]:
    """The tables of estimators over classes."""
    rng = np.random.default_rng(0)
    samples = {
        name: [rng.multinomial(n, shares, size=repetitions) for n in SIZES] for name, shares in populations().items()
    }
    for title, columns in TABLES.items():
        yield f"## {title}"
        yield ""
        head = ["distribution", "draws", "truth", *(c.name + (" (unbiased)" if c.unbiased else "") for c in columns)]
        rows = [
            [name, str(n), f"{columns[0].truth(shares):.3f}", *(_cell(c.estimate(counts)) for c in columns)]
            for name, shares in populations().items()
            for n, counts in zip(SIZES, samples[name], strict=True)
        ]
        yield from _table(head, rows)
    yield "## Coverage: share of the probability that lies on classes seen"
    yield ""
    rows = []
    for name, shares in populations().items():
        for n, counts in zip(SIZES, samples[name], strict=True):
            true = ((counts > 0) * shares).sum(axis=1)
            rows.append([name, str(n), f"{true.mean():.3f}", *(_cell(estimate(counts)) for _, estimate in COVERAGE)])
    yield from _table(["distribution", "draws", "truth (mean)", *(name for name, _ in COVERAGE)], rows)


def vendi_table(sets: int) -> Iterator[str]:
    """Vendi scores of small samples against those of the population they are drawn from."""
    yield "## Vendi score"
    yield ""
    yield f"Embeddings of {WIDTH} dimensions, {sets:,} sets; order 2 is averaged over all sets and inverted once."
    yield ""
    rows = []
    for clusters in (1, 5, 20):
        vectors = embeddings(clusters)
        for n in SIZES:
            drawn = kernels(vectors, n, sets)
            unbiased = float(inverse_mean(likeness_parts(squared_likeness(drawn))))
            plain = [_cell(np.array([float(vendi(v, q=q)) for v in _sets(vectors, n, sets)])) for q in (1.0, 2.0)]
            rows.append(
                [
                    f"{clusters} cluster{'s' if clusters > 1 else ''}", str(n),
                    f"{float(vendi(vectors, q=1.0)):.3f}", plain[0], _cell(vendi_1_log_jackknife(drawn)),
                    f"{float(vendi(vectors, q=2.0)):.3f}", plain[1], f"{unbiased:.3f}",
                ]
            )  # fmt: skip
    head = ["population", "draws", "truth q=1", "plug-in q=1", "log-jackknife q=1"]
    yield from _table([*head, "truth q=2", "plug-in q=2", "unbiased q=2"], rows)


def _sets(vectors: np.ndarray, n: int, sets: int) -> np.ndarray:
    return np.asarray(vectors[np.random.default_rng((0, n)).integers(len(vectors), size=(sets, n))])


def report(repetitions: int, sets: int) -> Iterator[str]:
    """The whole page."""
    yield "# How far estimates from few completions are from the truth"
    yield ""
    yield f"Made by `{COMMAND}` ({repetitions:,} repetitions)."
    yield ""
    yield "Means, standard deviations in brackets. Estimators marked unbiased are right on average at every number of"
    yield "draws, and a test holds them to it; the others are for comparison at one number of draws. `chao1` is to be"
    yield "read beside the coverage of its row: below a half it says little."
    yield ""
    yield from class_tables(repetitions)
    yield from vendi_table(sets)


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repetitions", type=int, default=4000)
    parser.add_argument("--sets", type=int, default=400, help="sets of embeddings for the Vendi table")
    chosen = parser.parse_args()
    print("\n".join(report(chosen.repetitions, chosen.sets)).rstrip("\n"))


if __name__ == "__main__":
    main()
