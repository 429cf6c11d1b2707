"""Completions of every checkpoint: drawn where they are not on disk yet, one checkpoint in memory at a time."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from divmon.errors import DivmonError, HistoryError
from divmon.probes import ProbeSet
from divmon.records import SampleBatch
from divmon.samplers.ranks import Ranks, merge
from divmon.tracing.lineage import Checkpoint, Lineage
from divmon.tracing.sampling import Asked, Opened, open_checkpoint
from divmon.tracing.store import Block, Drawn, blocks
from divmon.tracing.weights import fingerprint

log = logging.getLogger("divmon")
Draw = Callable[[Checkpoint], Opened]


@dataclass(frozen=True)
class Sampled:
    """What one checkpoint gave.

    Attributes:
        batch: Completions as they were drawn; None when it failed.
        facts: About its tokenizer and prompts.
        failure: Why there is nothing.
    """

    batch: SampleBatch | None
    facts: Mapping[str, Any]
    failure: str = ""


class Drawing:
    """Draws a lineage.

    Args:
        lineage: The checkpoints.
        probes: The prompts, the same for all.
        asked: How they are sampled.
        root: The folder of completions.
        ranks: This process among the others; each draws its share of the blocks.
        draw: Opens a checkpoint in the user's own way; None for models of Transformers.
        say: Called on the first rank with a line on what goes on.
    """

    def __init__(
        self,
        lineage: Lineage,
        probes: ProbeSet,
        asked: Asked,
        *,
        root: Path,
        ranks: Ranks,
        draw: Draw | None = None,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.lineage = lineage
        self.probes = probes
        self.asked = asked
        self.root = root
        self.ranks = ranks
        self.draw = draw
        self.say = say if ranks.main else lambda line: None
        self.blocks = blocks(probes.probes, asked.k)
        self._loaded = False

    def sample(self, checkpoint: Checkpoint, *, suppress: bool) -> Sampled:
        """All completions of a checkpoint; on the first rank, which has the batch.

        A failure of any rank is the checkpoint's; the others go on with the next one.
        """
        store, failure = None, ""
        try:
            store = self._store(checkpoint, suppress)
            self._fill(checkpoint, store, suppress)
        except Exception as error:
            log.debug("divmon: %s failed", checkpoint.name, exc_info=True)
            failure = _told(error)
        if self._loaded:
            self._forget()
        failures = [told for told in self.ranks.gather(failure) if told]
        if failures or store is None:
            self.say(f"{checkpoint.name} failed: {failures[0]}")
            return Sampled(None, {}, failures[0])
        return self._read(store) if self.ranks.main else Sampled(None, {})

    def _store(self, checkpoint: Checkpoint, suppress: bool) -> Drawn:
        """Where its completions are or will be."""
        request = {
            "source": checkpoint.source,
            "on": checkpoint.on,
            "tokenizer": checkpoint.tokenizer,
            "suppress": suppress,
            "chat": self.asked.chat,
            "dtype": str(self.asked.dtype),
            "k": self.asked.k,
            "decoding": asdict(self.asked.decoding),
            "blocks": len(self.blocks),
            "prompts": [[probe.id, probe.prompt, probe.token_ids] for probe in self.probes],
            "drawn_by": "user" if self.draw is not None else "divmon",
        }
        weights, error = self.ranks.broadcast(self._weights(checkpoint))
        if error:
            raise HistoryError(error)
        store = Drawn(self.root, checkpoint.name, {**request, "weights": weights})
        if weights is None and self.draw is None:
            known = Drawn.without_weights(self.root, checkpoint.name, request)
            if known is not None and not self._missing(known):
                self.say(f"{checkpoint.name}: its weights are not there; the completions drawn from them earlier are")
                return known
        return store

    def _weights(self, checkpoint: Checkpoint) -> tuple[list[str] | None, str]:
        """Which weights these are, or why that cannot be said: the first rank tells all others."""
        if self.draw is not None or not self.ranks.main:
            return None, ""
        try:
            return fingerprint(checkpoint, self.lineage), ""
        except (DivmonError, OSError) as error:
            return None, _told(error)

    def _missing(self, store: Drawn) -> list[int]:
        return [i for i, block in enumerate(self.blocks) if store.read(i, block) is None]

    def _fill(self, checkpoint: Checkpoint, store: Drawn, suppress: bool) -> None:
        """Draw this rank's blocks that are not there; load nothing where none is missing."""
        mine = range(self.ranks.index, len(self.blocks), self.ranks.count)
        missing = [i for i in mine if store.read(i, self.blocks[i]) is None]
        there = len(mine) - len(missing)
        self.say(f"{checkpoint.name}: {there} of {len(mine)} blocks are there" + (", drawing" if missing else ""))
        if not missing:
            return
        self._loaded = True
        opened = self._open(checkpoint, suppress)
        store.begin()
        facts = getattr(opened, "facts", {})
        for i in missing:
            part = ProbeSet(self.blocks[i])
            batch = opened(part, step=0)
            _check(batch, part, self.asked.k)
            store.write(i, Block(replace(batch, probes=part.probes), facts))

    def _open(self, checkpoint: Checkpoint, suppress: bool) -> Opened:
        if self.draw is not None:
            return self.draw(checkpoint)
        several = self.ranks.count > 1
        model = open_checkpoint(checkpoint, self.lineage, self.asked, suppress=suppress, several=several)
        model.prepare(self.probes)
        return model

    def _read(self, store: Drawn) -> Sampled:
        """Everything is measured as it stands on disk, drawn now or earlier."""
        found = [store.read(i, block) for i, block in enumerate(self.blocks)]
        whole = [block for block in found if block is not None]
        if len(whole) < len(found):
            lost = f"{len(found) - len(whole)} of {len(found)} blocks are not in {store.path}"
            return Sampled(None, {}, f"{lost}: all workers must write to one disk")
        batch = merge([block.batch for block in whole], self.probes)
        return Sampled(batch, whole[0].facts)

    def _forget(self) -> None:
        """Give the memory of the last model back before the next one is loaded."""
        self._loaded = False
        gc.collect()
        if self.draw is None:
            from accelerate.utils.memory import clear_device_cache

            clear_device_cache()


def _check(batch: Any, probes: ProbeSet, k: int) -> None:
    """What a user's own sampler gives.

    Raises:
        HistoryError: It is no batch of these prompts.
    """
    if not isinstance(batch, SampleBatch):
        raise HistoryError(f"draw= must give a divmon.SampleBatch, not a {type(batch).__name__}.")
    if [probe.id for probe in batch.probes] != [probe.id for probe in probes]:
        raise HistoryError("draw= gave a batch of other prompts than it was asked for, or in another order.")
    if batch.k < k:
        short = next(p.id for p, row in zip(batch.probes, batch.texts, strict=True) if len(row) < k)
        raise HistoryError(f"draw= gave fewer than {k} completions of the prompt {short!r}.")


def _told(error: Exception) -> str:
    """A failure in one line, without its traceback, which would keep the model in memory."""
    from accelerate.utils.memory import should_reduce_batch_size

    told = " ".join(str(error).split())[:400]
    if should_reduce_batch_size(error):
        return f"out of memory while it was loaded or sampled ({told[:160]}); use a larger device or a smaller dtype"
    return told if isinstance(error, DivmonError) else f"{type(error).__name__}: {told}"
