"""What text metrics share: word ids, word n-gram ids and character n-gram ids, as numpy arrays, one prompt at a time.

Word tokenisation (``tok:split+cjk|case:kept`` in signatures): text is split at Unicode white space, every Chinese or
Japanese character is a word of its own, case and punctuation stay as they are ("end." is not "end"). No list of
languages, no download, the same on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from divmon.metrics.base import MetricContext

WORDS = "tok:split+cjk|case:kept"
CHARS = "char:3-5|case:lower|space:collapsed"
MAX_ROW = 1 << 16  # completions of one prompt that character n-gram ids can tell apart

_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK = re.compile(f"[{_ALONE}]")
_WORD = re.compile(f"[{_ALONE}]|[^\\s{_ALONE}]+")
_SPACES = re.compile(r"\s\s+")
_MIN_N, _MAX_N = 3, 5
_PAD = 0x110000  # one beyond the last code point, so no text contains it
_BITS = np.uint64(MAX_ROW.bit_length() - 1)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """The words of `text`: split at white space, with each Chinese or Japanese character a word.

    What it does not do: separate punctuation, lower-case, or segment languages without spaces other than these two.

    >>> words("The end. 終わり ok")
    ['The', 'end.', '終', 'わ', 'り', 'ok']

    Source: a convention of divmon, named ``tok:split+cjk|case:kept`` in signatures.
    """
    if not text.isascii() and _CJK.search(text):
        text = _CJK.sub(r" \g<0> ", text)
    return text.split()


def word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where each of `words(text)` begins and ends in `text`, one after the other.

    >>> list(word_spans(" The 終わ"))
    [(1, 4), (5, 6), (6, 7)]

    Source: a convention of divmon.
    """
    return (match.span() for match in _WORD.finditer(text))


@dataclass(frozen=True, slots=True)
class WordRow:
    """One prompt's completions as integers; equal words have equal ids within the row.

    Attributes:
        ids: int64[T], the words of all completions, one after the other.
        lengths: int64[K], words in each completion.
        size: Distinct words V; ids run from 0 to V - 1.
    """

    ids: np.ndarray
    lengths: np.ndarray
    size: int


def word_row(texts: Sequence[str], split: Callable[[str], Sequence[str]] = words) -> WordRow:
    """One prompt's completions as word ids; `split` cuts a text into words.

    >>> word_row(["To be", "to be"], lambda text: text.lower().split()).ids.tolist()
    [0, 1, 0, 1]

    Source: a convention of divmon.
    """
    table: dict[str, int] = {}
    ids: list[int] = []
    lengths: list[int] = []
    for text in texts:
        found = split(text)
        ids.extend([table.setdefault(word, len(table)) for word in found])
        lengths.append(len(found))
    return WordRow(np.array(ids, dtype=np.int64), np.array(lengths, dtype=np.int64), len(table))


def word_rows(context: MetricContext) -> list[WordRow]:
    """The batch as word ids, one `WordRow` a prompt, made once a batch.

    Ids mean nothing outside their row: nothing here compares prompts.

    >>> from divmon.records import Probe, SampleBatch
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("to be or", "not to be"),))
    >>> word_rows(MetricContext(batch))[0].ids.tolist()
    [0, 1, 2, 3, 0, 1]

    Source: a convention of divmon.
    """
    return context.cached("words", lambda: [word_row(row) for row in context.batch.texts])


def ranks(ids: np.ndarray) -> np.ndarray:
    """int64[M] ids renumbered from 0 without gaps, in their order; like np.unique's inverse, several times faster.

    >>> ranks(np.array([70, 10, 70])).tolist()
    [1, 0, 1]

    Source: a convention of divmon.
    """
    order = np.argsort(ids)
    found = np.empty(len(ids), dtype=np.int64)
    found[order] = np.cumsum(np.diff(ids[order], prepend=ids[order[:1]]) != 0)
    return found


def ngrams(row: WordRow, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the n-grams of words of each completion; none crosses from one completion into the next.

    Ids are exact (equal if and only if the words are equal), not hashes.

    Returns:
        int64[M] ids and int64[M] the completion each belongs to, M = sum over completions of max(0, T - n + 1).

    >>> grams, owners = ngrams(WordRow(np.array([0, 1, 0, 1, 2]), np.array([3, 2]), 3), 2)
    >>> len(set(grams.tolist())), owners.tolist()
    (3, [0, 0, 1])

    Source: a convention of divmon.
    """
    total = len(row.ids)
    left = np.repeat(np.cumsum(row.lengths), row.lengths) - np.arange(total)
    starts = np.flatnonzero(left >= n)
    owners = np.repeat(np.arange(len(row.lengths)), row.lengths)[starts]
    grams, distinct = row.ids[starts], row.size
    for offset in range(1, n):
        if distinct * row.size >= 1 << 62:  # a product that would not fit: number the prefixes seen, then go on
            grams = ranks(grams)
            distinct = len(starts)
        grams = grams * row.size + row.ids[starts + offset]
        distinct *= row.size
    return grams, owners


@dataclass(frozen=True, slots=True)
class CharRow:
    """Counts of character n-grams (n = 3, 4, 5) in one prompt's completions, sorted by n-gram.

    Attributes:
        grams: uint64[U], ids of distinct n-grams, ascending; 48-bit hashes, the same in every batch.
        starts: int64[U], where each n-gram's entries begin.
        owners: int64[E], the completion of each entry.
        counts: float[E], how often the n-gram occurs in that completion.
    """

    grams: np.ndarray
    starts: np.ndarray
    owners: np.ndarray
    counts: np.ndarray

    @property
    def documents(self) -> np.ndarray:
        """int64[U]: completions in which each n-gram occurs."""
        return np.diff(self.starts, append=len(self.owners))


def _mixed(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 whose every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * _MIX[0]
    x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return np.asarray(x ^ (x >> np.uint64(31)))


def _code_points(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """uint64[N] code points of all texts and int64[K] their lengths; texts under 3 characters are padded to 3."""
    clean = [_SPACES.sub(" ", text.lower()) for text in texts]
    sizes = np.array([len(text) for text in clean], dtype=np.int64)
    joined = "".join(text.ljust(_MIN_N, "\0") for text in clean)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    padded = np.maximum(sizes, _MIN_N)
    ends = np.cumsum(padded)
    for i in np.flatnonzero(sizes < _MIN_N):
        codes[ends[i] - (_MIN_N - sizes[i]) : ends[i]] = _PAD
    return codes, padded


def char_ngrams(texts: Sequence[str]) -> CharRow:
    """Character n-grams of order 3 to 5 of each text, lower-cased, runs of white space made one space.

    A text of fewer than three characters has one n-gram, the whole text, so that "7" and "8" differ and "" equals "".
    Lone surrogates count as characters. At most `MAX_ROW` texts at once.

    >>> row = char_ngrams(["abcd", "abc"])
    >>> len(row.grams), sorted(row.documents.tolist())
    (3, [1, 1, 2])

    Source: the char analyser of scikit-learn's TfidfVectorizer, except for texts under three characters.
    """
    codes, sizes = _code_points(texts)
    total = len(codes)
    left = np.repeat(np.cumsum(sizes), sizes) - np.arange(total)
    owners = np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
    hashed = (codes[:-2] << np.uint64(42)) | (codes[1:-1] << np.uint64(21)) | codes[2:]
    keys = []
    for n in range(_MIN_N, _MAX_N + 1):
        if n > _MIN_N:
            hashed = hashed[:-1] + codes[n - 1 :] * _STEP
        hashed = _mixed(hashed)
        inside = left[: len(hashed)] >= n
        keys.append((((hashed >> _BITS) << _BITS) | owners[: len(hashed)])[inside])
    return _counted(np.sort(np.concatenate(keys)))


def _counted(keys: np.ndarray) -> CharRow:
    """Run lengths of sorted keys (n-gram id in the high bits, completion in the low ones)."""
    first = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    counts = np.diff(first, append=len(keys)).astype(float)
    entries = keys[first]
    grams = entries >> _BITS
    starts = np.flatnonzero(np.concatenate(([True], grams[1:] != grams[:-1])))
    owners = (entries & np.uint64(MAX_ROW - 1)).astype(np.int64)
    return CharRow(grams[starts], starts, owners, counts)
