"""A file being measured: its prompts on disk, what judges its completions, and a metric context for a block of them."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from divmon.measuring.results import Source
from divmon.measuring.store import CHARACTERS, Entry, Group, Store, batch_of
from divmon.metrics.base import MetricContext
from divmon.metrics.discovery import Discovery, discovered_classifier
from divmon.metrics.quality import judge
from divmon.metrics.semantic import Idf, fit_idf
from divmon.monitor import Lenses
from divmon.records import SampleBatch
from divmon.samplers.reading import files_of

IDF_COMPLETIONS = 8192  # inverse document frequencies are fitted on so many, at most, drawn by whole prompts


class Side:
    """One file, read and sorted.

    Args:
        store: Its completions.
        lenses: How to look at them; the judge becomes what this file has.
        name: "file" or "baseline", for signatures.
        path: As the user named it; None for rows in memory.
    """

    def __init__(self, store: Store, lenses: Lenses, *, name: str, path: str | Path | None) -> None:
        self.store = store
        self.name = name
        self.path = path
        self.failures: list[str] = []
        summary = store.summary
        if lenses.quality is not None:
            self.judge = lenses.judge
        elif summary.judged:
            self.judge = " or ".join(sorted(summary.judges))
        else:
            self.judge = "gold" if summary.gold else ""
        self.lenses = replace(lenses, judge=self.judge or lenses.judge)

    def signature(self, group: Group = ()) -> str:
        """What `SampleBatch.signature` would say of a group, but for the prompts, which are those of the whole file."""
        low, high = self.store.summary.ks[group]
        k = str(low) if low == high else f"{low}-{high}"
        return f"k:{k}|decoding:unknown|file|probes:{self.store.summary.fingerprint}"

    @functools.cached_property
    def _fitted(self) -> tuple[Idf, int]:
        entries = self.first()
        return fit_idf(batch_of(entries, judged=False)), sum(len(entry.texts) for entry in entries)

    def idf(self) -> Idf:
        """Fitted on the file; on the first 8,192 completions in hash order (whole prompts) of a larger one."""
        return self._fitted[0]

    @property
    def idf_signature(self) -> str:
        """Which completions `idf` was fitted on."""
        fitted, there = self._fitted[1], self.store.summary.completions
        return f"idf_from:{self.name}" + (f"[{fitted} of {there}]" if fitted < there else "")

    def first(self) -> list[Entry]:
        """Whole prompts in hash order, up to 8,192 completions: what is fitted on a file is fitted on them."""
        sizes = itertools.accumulate(
            ((len(entry.texts), entry.size, entry) for entry in self.store.entries()),
            lambda a, b: (a[0] + b[0], a[1] + b[1], b[2]),
        )
        within = itertools.takewhile(lambda s: s[0] <= IDF_COMPLETIONS and s[1] <= CHARACTERS, sizes)
        return [entry for _, _, entry in within] or list(itertools.islice(self.store.entries(), 1))

    def context(self, entries: Sequence[Entry], reference: MetricContext | None = None) -> MetricContext:
        """What metrics look at for a block of prompts."""
        batch = batch_of(entries, fingerprint=self.store.summary.fingerprint, judged=self.store.summary.judged)
        return self.lenses.context(batch, quality=self._quality(batch), baseline=reference)

    def _quality(self, batch: SampleBatch) -> list[np.ndarray] | None:
        """Judged in the way of the whole file, though this block may have no reward or gold answer at all."""
        if not self.judge:
            return None
        if self.lenses.quality is None and batch.rewards is not None:
            rewards = [np.asarray(row, dtype=float) for row in batch.rewards]
            return [np.where(np.isfinite(row), row, np.nan) for row in rewards]
        found, errors = judge(batch, self.lenses.quality)
        if errors and not self.failures:
            self.failures.append(f"quality could not judge every completion; it failed first with {errors[0]!r}")
        return found if found is not None else [np.full(len(row), np.nan) for row in batch.texts]

    def source(self) -> Source:
        """For reports."""
        summary = self.store.summary
        return Source(
            path="rows" if self.path is None else str(self.path),
            sha256={} if self.path is None else {str(path): _sha256(path) for path in files_of(self.path)},
            completions=summary.completions,
            prompts=summary.prompts,
            k=summary.k,
            quality=self.judge,
            fingerprint=summary.fingerprint,
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def freeze_classifier(reference: Side, sides: Sequence[Side]) -> None:
    """Let ``formats="discover"`` discover on the reference, once, on the completions that `idf` is fitted on."""
    if not isinstance(reference.lenses.classifier, Discovery):
        return
    texts = [text for entry in reference.first() for text in entry.texts]
    found = discovered_classifier(texts)
    for side in sides:
        side.lenses = replace(side.lenses, classifier=found)
