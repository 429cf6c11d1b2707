"""Word n-grams of one prompt's completions, counted once and shared by every metric that asks for the same order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from divmon.metrics.base import MetricContext
from divmon.metrics.text import WordRow, ngrams, ranks, word_rows

_KEY_BITS = 62  # of a sort key; one bit is the sign, one is slack


@dataclass(frozen=True, slots=True)
class GramRow:
    """How often each n-gram occurs in each of one prompt's K completions, without the zeros.

    Entries are sorted by n-gram, then by completion.

    Attributes:
        bounds: int32[U + 1], where the entries of each different n-gram begin, and the end of the last.
        owners: int32[E], the completion of each entry.
        counts: int32[E], how often the n-gram occurs there; at least 1.
        k: Completions K, those without an n-gram included.
    """

    bounds: np.ndarray
    owners: np.ndarray
    counts: np.ndarray
    k: int

    @property
    def size(self) -> int:
        """Different n-grams U."""
        return len(self.bounds) - 1

    @property
    def documents(self) -> np.ndarray:
        """int32[U]: completions in which each n-gram occurs."""
        return np.asarray(self.bounds[1:] - self.bounds[:-1])

    @property
    def totals(self) -> np.ndarray:
        """float[K]: n-grams of each completion, repeats included."""
        return np.bincount(self.owners, self.counts, minlength=self.k)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """[U] values of n-grams as [E] values of their entries."""
        return np.repeat(values, self.documents)

    def summed(self, values: np.ndarray) -> np.ndarray:
        """float[U]: [E] values added up for each n-gram."""
        return np.add.reduceat(values, self.bounds[:-1], dtype=float) if self.size else np.zeros(0)

    def largest(self, values: np.ndarray) -> np.ndarray:
        """[U]: the largest of the [E] values of each n-gram."""
        return np.asarray(np.maximum.reduceat(values, self.bounds[:-1])) if self.size else values[:0]

    def shared(self) -> GramRow:
        """Only the n-grams that two completions or more have."""
        documents = self.documents
        keep = documents > 1
        kept = np.repeat(keep, documents)
        return GramRow(_bounds(documents[keep]), self.owners[kept], self.counts[kept], self.k)


def _bounds(documents: np.ndarray) -> np.ndarray:
    found = np.zeros(len(documents) + 1, dtype=np.int32)
    np.cumsum(documents, out=found[1:])
    return found


def _runs(ids: np.ndarray) -> np.ndarray:
    """int32[R + 1]: where each run of equal neighbours begins, and the end of the last."""
    if not len(ids):
        return np.zeros(1, dtype=np.int32)
    new = np.ones(len(ids) + 1, dtype=bool)
    np.not_equal(ids[1:], ids[:-1], out=new[1:-1])
    return np.flatnonzero(new).astype(np.int32)


def counted(grams: np.ndarray, owners: np.ndarray, k: int) -> GramRow:
    """Counts of int64[M] n-gram ids (0 or more), of which each belongs to one of `k` completions.

    >>> row = counted(np.array([7, 7, 3, 7]), np.array([0, 0, 1, 1]), 2)
    >>> row.documents.tolist(), row.owners.tolist(), row.counts.tolist()
    ([1, 2], [1, 0, 1], [1, 2, 1])

    Source: a convention of divmon.
    """
    bits = max(1, (k - 1).bit_length())
    if grams.size and int(grams.max()) >> (_KEY_BITS - bits):
        grams = ranks(grams)
    keys = np.sort((grams << bits) | owners)
    first = _runs(keys)
    entries = keys[first[:-1]]
    owners = entries & ((1 << bits) - 1)
    counts = first[1:] - first[:-1]
    return GramRow(_runs(entries >> bits), owners.astype(np.int32), counts, k)


def gram_row(row: WordRow, n: int) -> GramRow:
    """The n-grams of one row of words, counted."""
    return counted(*ngrams(row, n), len(row.lengths))


def gram_rows(context: MetricContext, n: int) -> list[GramRow]:
    """Counted n-grams of words, one `GramRow` a prompt, made once a batch and order.

    >>> from divmon.records import Probe, SampleBatch
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("to be or", "not to be"),))
    >>> gram_rows(MetricContext(batch), 2)[0].documents.tolist()
    [2, 1, 1]

    Source: a convention of divmon.
    """
    return context.cached(("grams", n), lambda: [gram_row(row, n) for row in word_rows(context)])
