"""What a checkpoint is asked, and how its prompts are written: as they are, as chat, with reasoning suppressed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from divmon.probes import ProbeSet
from divmon.reasoning import begins_inside, suppressed
from divmon.records import Decoding, Probe, SampleBatch
from divmon.samplers.generate import GenerateSampler
from divmon.tracing.lineage import Checkpoint, Lineage
from divmon.tracing.weights import load_model, load_tokenizer, this_device


@dataclass(frozen=True)
class Asked:
    """How every checkpoint is sampled.

    Attributes:
        k: Completions a prompt.
        decoding: Temperature, top-p, length cap, noise.
        chat: Write plain texts as user messages where a checkpoint has a chat template.
        batch_size: Completions drawn at once; found by trying when None.
        dtype: Of the weights; "auto" takes them as they are.
    """

    k: int
    decoding: Decoding
    chat: bool = False
    batch_size: int | None = None
    dtype: Any = "auto"


class Opened(Protocol):
    """A checkpoint that is in memory: draws completions, and may tell `facts` about its tokenizer."""

    def __call__(self, probes: ProbeSet, *, step: int) -> SampleBatch:
        """Draw completions of `probes`."""
        ...


@dataclass
class Model:
    """A checkpoint in memory, which writes prompts in its own way.

    Attributes:
        sampler: Draws from its model.
        chat: As in `Asked`.
        suppress: Put an empty reasoning block at the beginning of every answer.
        facts: Plain JSON, kept with the completions.
    """

    sampler: GenerateSampler
    chat: bool
    suppress: bool
    facts: dict[str, Any] = field(default_factory=dict)

    def __call__(self, probes: ProbeSet, *, step: int) -> SampleBatch:
        """Draw, and give back the probes as they came."""
        written = ProbeSet(tuple(self._written(probe) for probe in probes))
        self.sampler.check(written)
        batch = self.sampler(written, step=step)
        return replace(batch, probes=probes.probes, fingerprint=probes.fingerprint)

    def prepare(self, probes: ProbeSet) -> None:
        """Fill in `facts` about these prompts."""
        tokenizer = self.sampler.tokenizer
        texts = [tokenizer.decode(self._written(probe).token_ids) for probe in probes]
        self.facts["prompts"] = _digest(texts)
        self.facts["inside"] = not self.suppress and any(map(begins_inside, texts))
        if self._flattened(probes):
            self.facts["notes"].append("it has no chat template: chat messages were put to it as plain text")

    def _flattened(self, probes: ProbeSet) -> bool:
        return not self._has_template and any(not isinstance(p.prompt, str) for p in probes)

    @property
    def _has_template(self) -> bool:
        return bool(getattr(self.sampler.tokenizer, "chat_template", None))

    def _written(self, probe: Probe) -> Probe:
        """The probe with the tokens that this checkpoint is shown."""
        tokenizer = self.sampler.tokenizer
        if self.chat and self._has_template and isinstance(probe.prompt, str) and probe.token_ids is None:
            probe = replace(probe, prompt=({"role": "user", "content": probe.prompt},))
        elif not isinstance(probe.prompt, str) and not self._has_template:
            probe = replace(probe, prompt=probe.text)
        ids = self.sampler.tokens(probe)
        if self.suppress:
            ids = suppressed(tokenizer, ids)
        return replace(probe, token_ids=tuple(int(i) for i in ids))


def open_checkpoint(checkpoint: Checkpoint, lineage: Lineage, asked: Asked, *, suppress: bool, several: bool) -> Model:
    """Load a checkpoint.

    Raises:
        ConfigError: It is not there, or has no tokenizer.
    """
    tokenizer, note = load_tokenizer(checkpoint, lineage)
    model = load_model(checkpoint, lineage, dtype=asked.dtype, device=this_device(several=several))
    sampler = GenerateSampler(model, tokenizer, asked.k, asked.decoding, batch_size=asked.batch_size)
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    facts = {"tokenizer": _digest(sorted(vocabulary.items())), "notes": [note] if note else []}
    return Model(sampler, asked.chat, suppress, facts)


def _digest(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:12]
