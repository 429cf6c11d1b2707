"""What measuring costs: divmon's arithmetic against the packages people use today, in one run, one thread.

    pip install -c constraints.txt -e '.[test,bench]'; OMP_NUM_THREADS=1 python tests/benchmarks/bench_metrics.py

64 prompts x 16 completions of about 160 words (words drawn from a Zipf law, a quarter of them from the prompt's own
topic). CPU seconds, the least of three; slow rivals are timed on a few prompts and scaled, which the table says.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

import numpy as np

from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.base import PerPrompt
from divmon.metrics.semantic import embeddings
from divmon.metrics.vendi import vendi
from divmon.records import Probe, SampleBatch

PROMPTS, K, WORDS = 64, 16, 160
LEXICAL = (
    *("distinct_1", "distinct_2", "distinct_3", "distinct_4", "ead", "self_bleu", "unique_fraction"),
    *("opening_dominance", "compression_ratio", "self_repetition", "bigram_collision"),
    *("jaccard_distance_1", "jaccard_distance_2", "rarefied_distinct_1", "rarefied_distinct_2", "rarefied_distinct_3"),
)
SUITE = (*LEXICAL, "tfidf_distance", "surface_vendi_1", "surface_vendi_2")


def _vocabulary(rng: np.random.Generator) -> np.ndarray:
    """20,000 invented words of one to three syllables, the common ones short, so that they compress like prose."""
    syllables = np.array(
        [f"{a}{b}{c}" for a in "bcdfghlmnprstvw" for b in "aeiou" for c in ("", "", "n", "r", "s", "t")]
    )
    lengths = 1 + np.minimum(2, np.log10(np.arange(1, 20_001)) / 2 + rng.random(20_000) / 2).astype(int)
    return np.array(["".join(rng.choice(syllables, n)) for n in lengths])


def texts(prompts: int = PROMPTS, k: int = K, *, seed: int = 0) -> list[list[str]]:
    """Invented prose: words by a Zipf law over 20,000, and a topic of 200 words a prompt."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(2, 20_002)
    names = _vocabulary(rng)
    rows = []
    for _ in range(prompts):
        topic = rng.choice(20_000, 200, replace=False)
        lengths = rng.integers(WORDS - 40, WORDS + 41, k)
        drawn = [
            np.where(rng.random(n) < 0.25, rng.choice(topic, n), rng.choice(20_000, n, p=weights / weights.sum()))
            for n in lengths
        ]
        rows.append([" ".join(names[ids].tolist()) for ids in drawn])
    return rows


def batch(rows: list[list[str]]) -> SampleBatch:
    """The rows as a batch of one domain."""
    probes = tuple(Probe(f"p{i}", f"prompt {i}") for i in range(len(rows)))
    return SampleBatch(0, probes, tuple(map(tuple, rows)))


def cpu(work: Callable[[], object], *, repeats: int = 3) -> float:
    """CPU seconds, the least of `repeats`."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def measure(names: Iterable[str], rows: list[list[str]]) -> list[float]:
    """The named metrics of `rows`, from a fresh context: tokenising counts."""
    context = MetricContext(batch(rows))
    found = []
    for name in names:
        result = evaluate(METRICS[name], context)
        known = result.values if isinstance(result, PerPrompt) else result.combine(result.parts)
        found.append(float(np.nanmean(known)))
    return found


def nltk_self_bleu(rows: list[list[str]]) -> None:
    """Self-BLEU as everybody writes it."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    for row in rows:
        split = [text.split() for text in row]
        for i, hypothesis in enumerate(split):
            sentence_bleu(split[:i] + split[i + 1 :], hypothesis, smoothing_function=smooth)


def fast_self_bleu(rows: list[list[str]]) -> None:
    """Self-BLEU by the C++ package."""
    from fast_bleu import SelfBLEU

    for row in rows:
        SelfBLEU([text.split() for text in row], {4: (0.25,) * 4}).get_score()


def rouge_score_pairs(rows: list[list[str]]) -> None:
    """ROUGE-L of every pair by the usual package."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    for row in rows:
        for i, a in enumerate(row):
            for b in row[:i]:
                scorer.score(a, b)


def vendi_package(vectors: np.ndarray) -> None:
    """Vendi scores of each group of embeddings by the authors' package."""
    from vendi_score import vendi as package

    for group in vectors:
        package.score_X(group)


def pair_loop(vectors: np.ndarray) -> None:
    """Mean cosine over pairs with a Python loop, as in the released code of several papers."""
    norm = np.linalg.norm
    for group in vectors:
        np.mean([float(a @ b / (norm(a) * norm(b))) for i, a in enumerate(group) for b in group[:i]])


def distances(vectors: np.ndarray) -> Callable[[], object]:
    """`semantic_distance` of vectors that an encoder has already made."""
    names = [[f"{i} {j}" for j in range(vectors.shape[1])] for i in range(len(vectors))]
    context = MetricContext(batch(names), encoder=lambda _: vectors.reshape(-1, vectors.shape[2]))
    embeddings(context)
    return lambda: evaluate(METRICS["semantic_distance"], context)


def row(what: str, ours: float, rival: str, theirs: float, wanted: float) -> None:
    """One line of the table, with its verdict."""
    ratio = theirs / ours
    verdict = "yes" if ratio >= wanted else "NO"
    print(f"| {what} | {ours:.4f} s | {rival} | {theirs:.3f} s | {ratio:,.0f} | {wanted:g} | {verdict} |", flush=True)


def against_rivals() -> None:
    """The table of ratios."""
    rows = texts()
    vectors = np.random.default_rng(0).normal(size=(PROMPTS, K, 384))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    print("| what | divmon | rival | rival's time | ratio | wanted | reached |\n|---|---|---|---|---|---|---|")
    bleu = cpu(lambda: measure(["self_bleu"], rows))
    row("self-BLEU-4", bleu, "NLTK (4 prompts, x 16)", 16 * cpu(lambda: nltk_self_bleu(rows[:4]), repeats=1), 100)
    try:
        row("self-BLEU-4", bleu, "fast-bleu", cpu(lambda: fast_self_bleu(rows), repeats=1), 20)
    except ImportError:
        print("| self-BLEU-4 | | fast-bleu is not installed | | | 20 | |")
    rouge, pairs = cpu(lambda: measure(["rouge_l"], rows)), cpu(lambda: rouge_score_pairs(rows[:1]), repeats=1)
    row("ROUGE-L of all pairs", rouge, "rouge_score (1 prompt, x 64)", 64 * pairs, 500)
    scores, package = cpu(lambda: vendi(vectors, q=1)), cpu(lambda: vendi_package(vectors))
    row("Vendi, 64 groups of 16", scores, "vendi-score (score_X)", package, 8)
    row("mean cosine over pairs", cpu(distances(vectors)), "pair loop", cpu(lambda: pair_loop(vectors)), 20)


def whole_suite() -> None:
    """Everything at once, shared tokenising and hashing included."""
    rows = texts()
    seconds = cpu(lambda: measure(SUITE, rows))
    print(
        f"64 x 16 completions, {len(SUITE)} metrics ({', '.join(SUITE)}): {seconds:.2f} CPU s (wanted: at most 1.2)\n"
    )


def one_group(k: int) -> None:
    """CPU seconds and peak memory of the lexical suite on one group, in this process."""
    rows = texts(1, k)
    seconds = cpu(lambda: measure(LEXICAL, rows), repeats=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{k:,} completions in one group, lexical suite: {seconds:.2f} CPU s (at most 6), peak {peak:.0f} MB (500)")


def growth() -> None:
    """Time at twice the completions over time: about 2 is linear, 4 quadratic."""
    print("\n| metric | 2,000 completions | 4,000 | ratio |\n|---|---|---|---|")
    small, large = texts(1, 2_000), texts(1, 4_000)
    for name in (*LEXICAL, "tfidf_distance", "surface_vendi_2"):
        a, b = cpu(lambda n=name: measure([n], small)), cpu(lambda n=name: measure([n], large))
        print(f"| `{name}` | {a:.3f} s | {b:.3f} s | {b / a:.1f} |", flush=True)


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one-group", type=int, help="only the suite on one group of so many completions")
    parser.add_argument("--growth", action="store_true", help="also how times grow with the completions of a prompt")
    args = parser.parse_args()
    if args.one_group:
        one_group(args.one_group)
        return
    # a process of its own, and the first: a child's peak memory begins at that of its parent
    subprocess.run([sys.executable, __file__, "--one-group", "10000"], check=True)
    whole_suite()
    against_rivals()
    if args.growth:
        growth()


if __name__ == "__main__":
    main()
