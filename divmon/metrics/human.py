"""Six dimensions of lexical diversity, and how far a policy's texts are from human ones in them.

After Jarvis (2013), with abundance in the place of rarity as in Kendro et al. (2025), arXiv:2508.00086. That study's
own formulas were not available: the indices here are named and documented, and claim no parity with its tables.

==========  ===================================================================================================
volume      words of the whole text
abundance   different words (types) in the window
variety     MTLD, mean of both directions (`mattr` is the other usual index)
evenness    standard deviation of words per type: *higher is less even* (`pielou` is the normed variant)
disparity   1 - mean cosine over pairs of types, as character 3-5-grams; with `vectors=`, as the vectors given
dispersion  mean distance, in words, between one use of a type and the next
==========  ===================================================================================================

All but volume depend on length, so texts are cut to a common window of words first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from divmon.metrics.text import MAX_ROW, char_ngrams, words

DIMENSIONS = ("volume", "abundance", "variety", "evenness", "disparity", "dispersion")
MTLD_THRESHOLD = 0.72
WINDOW = 50
TOKENS = "tok:split+cjk|case:folded|edges:bare"

Words = Callable[[str], Sequence[str]]
Vectors = Callable[[Sequence[str]], np.ndarray]


def bare_words(text: str) -> list[str]:
    """The words of `text` in one case, without punctuation at their edges.

    >>> bare_words("“Don't!” she said -- 3 times.")
    ["don't", 'she', 'said', '3', 'times']

    Source: a convention of divmon, named ``tok:split+cjk|case:folded|edges:bare`` in signatures.
    """
    return [bare for bare in map(_bare, words(text.casefold())) if bare]


def _bare(word: str) -> str:
    if word.isalnum():
        return word
    start, stop = 0, len(word)
    while start < stop and not word[start].isalnum():
        start += 1
    while stop > start and not word[stop - 1].isalnum():
        stop -= 1
    return word[start:stop]


def token_ids(tokens: Sequence[Hashable]) -> np.ndarray:
    """int64[T]: equal tokens get equal numbers, from 0 in order of first use.

    >>> token_ids(["to", "be", "or", "to"]).tolist()
    [0, 1, 2, 0]

    Source: a convention of divmon.
    """
    table: dict[Hashable, int] = {}
    return np.array([table.setdefault(token, len(table)) for token in tokens], dtype=np.int64)


def mtld(tokens: Sequence[Hashable], *, threshold: float = MTLD_THRESHOLD) -> float:
    """Measure of textual lexical diversity: mean length in words of stretches with types/words above a threshold.

    The mean of a forward and a backward pass; the last, unfinished stretch counts as a part of one. 1 or more; higher
    is more varied. A text that repeats no word is one stretch, by convention: its MTLD is its length, a lower bound.

    What moves it besides variety: it is unstable under about 100 words, and has no upper bound.

    Returns:
        A float; NaN for no words.

    >>> mtld("a b a b a b".split()), mtld("a b c d".split())
    (3.0, 4.0)

    Source: McCarthy and Jarvis (2010), Behavior Research Methods 42(2).
    """
    ids = token_ids(tokens).tolist()
    return (_mtld(ids, threshold) + _mtld(ids[::-1], threshold)) / 2 if ids else math.nan


def _mtld(ids: Sequence[int], threshold: float) -> float:
    factors, seen, length = 0.0, set[int](), 0
    for token in ids:
        seen.add(token)
        length += 1
        if len(seen) / length <= threshold:
            factors, length = factors + 1, 0
            seen.clear()
    if length:
        factors += (1 - len(seen) / length) / (1 - threshold)
    return len(ids) / factors if factors else float(len(ids))


def mattr(tokens: Sequence[Hashable], *, window: int = WINDOW) -> float:
    """Types over words, averaged over every window of `window` words; between 1/window and 1, higher is more varied.

    Time is linear in the words, whatever the window. What moves it besides variety: the window, so name it.

    Returns:
        A float; NaN for texts shorter than the window.

    >>> round(mattr("a b a a".split(), window=2), 3)
    0.833

    Source: Covington and McFall (2010), Journal of Quantitative Linguistics 17(2).
    """
    ids = token_ids(tokens)
    n = len(ids)
    if window < 1 or n < window:
        return math.nan
    at = np.arange(n)
    # a word is the first of its type in the windows that begin after its last use and not after the word itself
    first = np.maximum(_previous(ids) + 1, at - window + 1)
    windows = np.minimum(at, n - window) - np.maximum(first, 0) + 1
    return float(np.maximum(windows, 0).sum()) / (window * (n - window + 1))


def _previous(ids: np.ndarray) -> np.ndarray:
    """int64[T]: where the same token stood last, -1 where nowhere."""
    order = np.argsort(ids, kind="stable")
    previous = np.full(len(ids), -1)
    again = ids[order][1:] == ids[order][:-1]
    previous[order[1:][again]] = order[:-1][again]
    return previous


def dispersion(tokens: Sequence[Hashable]) -> float:
    """Mean distance in words between one use of a type and the next; 1 or more, higher is more spread out.

    What moves it besides dispersion: length (longer texts hold longer distances).

    Returns:
        A float; NaN where no word is repeated.

    >>> dispersion("a b a c c".split())
    1.5

    Source: dispersion of Jarvis (2013), Language Learning 63(s1), as distances between successive uses.
    """
    ids = token_ids(tokens)
    previous = _previous(ids)
    gaps = (np.arange(len(ids)) - previous)[previous >= 0]
    return float(gaps.mean()) if gaps.size else math.nan


def evenness_sd(tokens: Sequence[Hashable]) -> float:
    """Standard deviation (of the population) of words per type; 0 when all are used alike, higher is less even.

    What moves it besides evenness: length. NaN for no words.

    >>> evenness_sd("a a a b".split())
    1.0

    Source: evenness of Jarvis (2013), Language Learning 63(s1).
    """
    return float(np.bincount(token_ids(tokens)).std()) if len(tokens) else math.nan


def pielou(tokens: Sequence[Hashable]) -> float:
    """Pielou's evenness: Shannon entropy of words over the log of the number of types; 0 to 1, higher is more even.

    What moves it besides evenness: length, less than `evenness_sd`. NaN for fewer than two types.

    >>> pielou("a b a b".split())
    1.0

    Source: Pielou (1966), Journal of Theoretical Biology 13.
    """
    counts = np.bincount(token_ids(tokens))
    if len(counts) < 2:
        return math.nan
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum() / math.log(len(counts)))


def disparity(tokens: Sequence[str], *, vectors: Vectors | None = None) -> float:
    """1 - mean cosine over pairs of different words; 0 to 1, or 0 to 2 with `vectors`; higher is more disparate.

    Without `vectors` a word is its counts of character 3-5-grams: a stand-in that needs no model and sees families of
    words ("walk", "walked"), not meaning. What moves it besides disparity: the number of types hardly does.

    Args:
        tokens: T words.
        vectors: V different words to float[V, D], for disparity of meaning.

    Returns:
        A float; NaN for fewer than two different words, or a vector that is not finite.

    >>> round(disparity(["walk", "walks", "tree", "walk"]), 3)
    0.764

    Source: disparity of Jarvis (2013), Language Learning 63(s1), with n-grams in the place of senses.
    """
    types = list(dict.fromkeys(tokens))
    k = len(types)
    if not 2 <= k <= MAX_ROW:
        return math.nan
    if vectors is None:
        row = char_ngrams(types)
        unit = row.counts / np.sqrt(np.bincount(row.owners, row.counts**2, minlength=k))[row.owners]
        total, squares = np.add.reduceat(unit, row.starts), float(k)
    else:
        found = np.asarray(vectors(types), dtype=float)
        if found.ndim != 2 or len(found) != k:
            raise ValueError(f"vectors= returned shape {found.shape} for {k} words; it must be (words, width)")
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        scaled = np.divide(found, norms, out=np.zeros_like(found), where=norms != 0)
        total, squares = scaled.sum(axis=0), float((scaled**2).sum())
    return 1.0 - (float((total**2).sum()) - squares) / (k * (k - 1))


def dimensions(
    texts: Sequence[str], *, length: int | None = None, words: Words = bare_words, vectors: Vectors | None = None
) -> np.ndarray:
    """The six `DIMENSIONS` of each text, float[N, 6]; what each is, and its unit, stands at the top of this module.

    What moves them besides diversity: length, all but volume; hence `length`.

    Args:
        texts: N texts.
        length: Words of a text that are looked at (volume is always of the whole); None looks at all.
        words: How a text becomes words.
        vectors: See `disparity`.

    Returns:
        float[N, 6]. NaN where an index is undefined, and everywhere but in volume for texts under `length` words.

    >>> dimensions(["to be or not to be"]).round(2).tolist()
    [[6.0, 4.0, 6.0, 0.5, 1.0, 4.0]]

    Source: after Jarvis (2013), Language Learning 63(s1).
    """
    found = np.full((len(texts), len(DIMENSIONS)), math.nan)
    for row, text in zip(found, texts, strict=True):
        tokens = list(words(text))
        row[0] = len(tokens)
        if length is not None and len(tokens) < length:
            continue
        tokens = tokens[:length]
        row[1:] = (
            len(set(tokens)) if tokens else math.nan,
            mtld(tokens),
            evenness_sd(tokens),
            disparity(tokens, vectors=vectors),
            dispersion(tokens),
        )
    return found
