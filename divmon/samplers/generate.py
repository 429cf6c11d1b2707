"""Fresh completions from the live policy, through the model's own `generate`."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm.auto import tqdm
from transformers import GenerationConfig

from divmon.compat import own_generation_configs, policy_of, stop_tokens, text_size, tokenizer_of, window_of
from divmon.errors import ConfigError, SamplingError
from divmon.probes import ProbeSet
from divmon.reasoning import begins_inside, decoder, suppressed
from divmon.records import Decoding, Probe, SampleBatch
from divmon.samplers.guard import undisturbed
from divmon.samplers.keyed import row_key
from divmon.samplers.stages import Row, write

log = logging.getLogger("divmon")
LARGEST_BATCH = 256  # rows tried first; memory decides


@dataclass(frozen=True)
class _Drawn:
    tokens: tuple[int, ...]
    finished: bool
    logprobs: np.ndarray
    entropies: np.ndarray


@dataclass
class GenerateSampler:
    """K completions a probe from a live model, which is left as found (see `undisturbed`).

    Sampling is exact, at the given temperature and top-p and nothing else: whatever the model's generation config
    says of top-k, penalties or forced tokens does not apply. Noise is keyed (see `divmon.samplers.keyed`), so the same
    weights give the same completions.

    Attributes:
        model: The policy, wrapped or not.
        tokenizer: Its tokenizer or processor. A missing pad token is fine.
        k: Completions a probe.
        decoding: Temperature, top-p, length cap, noise key, and whether an empty reasoning block ends the prompts.
            Nothing is taken out of texts here.
        chat_options: Passed to `apply_chat_template`.
        batch_size: Rows in one `generate`; found by trying when None. An out-of-memory error halves it and goes on.
        progress: Show a progress bar on a terminal.
    """

    model: Any
    tokenizer: Any
    k: int
    decoding: Decoding = field(default_factory=Decoding)
    chat_options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        policy_of(self.model)
        self.tokenizer = tokenizer_of(self.tokenizer)
        self._rows = self.batch_size or LARGEST_BATCH
        self._decode = decoder(self.tokenizer)

    def fresh(self, *, k: int, key: int) -> GenerateSampler:
        """The same sampler with `k` completions a probe and the noise that `key` names."""
        other = replace(self, k=k, decoding=replace(self.decoding, key=key))
        other._rows = self._rows  # what memory has taught
        return other

    def check(self, probes: ProbeSet) -> None:
        """Fail now, with the reason, where sampling `probes` could only fail later.

        Raises:
            ConfigError: Chat messages without a chat template or not to its taste; completions as long as the model's
                window.
        """
        policy = policy_of(self.model)
        window, longest = window_of(policy), self.decoding.max_new_tokens
        if window is not None and longest >= window:
            raise ConfigError(
                f"max_new_tokens={longest} leaves no room for a prompt in the model's window of {window} tokens. Pass "
                f"max_new_tokens={window // 2} or less."
            )
        chats = [p for p in probes if not isinstance(p.prompt, str) and p.token_ids is None]
        if chats and not (getattr(self.tokenizer, "chat_template", None) or self.chat_options.get("chat_template")):
            raise ConfigError(
                f"Probe {chats[0].id!r} holds chat messages, but the tokenizer has no chat template. Set "
                "tokenizer.chat_template, or pass the prompts as plain texts."
            )
        for probe in chats:
            try:
                self.tokens(probe)
            except Exception as error:
                raise ConfigError(f"Probe {probe.id!r} does not fit the chat template: {error}") from error
        cut = 0 if window is None else sum(len(self.tokens(p)) > window - longest for p in probes)
        if cut:
            log.warning(
                "divmon: %d of %d prompts lose their beginning: the model's window of %s tokens has room for %s after "
                "max_new_tokens=%d. Lower max_new_tokens, or probe shorter prompts.",
                cut, len(probes), window, (window or 0) - longest, longest,
            )  # fmt: skip

    def __call__(self, probes: ProbeSet, *, step: int) -> SampleBatch:
        """Draw P x K completions of the model as it is now.

        Raises:
            SamplingError: Not even one row fits into memory, or the policy's probabilities are not numbers.
        """
        keys = [[row_key(self.decoding.key, probe.id, j) for j in range(self.k)] for probe in probes]
        grid = self._grid(tuple(probes), keys)

        def column(name: str) -> Any:
            return tuple(tuple(getattr(cell, name) for cell in line) for line in grid)

        return SampleBatch(
            step=step,
            probes=tuple(probes),
            texts=tuple(tuple(self.decode(cell.tokens) for cell in line) for line in grid),
            token_ids=column("tokens"),
            finished=column("finished"),
            logprobs=column("logprobs"),
            entropies=column("entropies"),
            decoding=self.decoding,
            fingerprint=probes.fingerprint,
        )

    def complete(self, probes: Sequence[Probe], keys: Sequence[int]) -> list[str]:
        """One completion a probe, text only, with the noise of its int64 key (`row_key` makes those of `__call__`).

        Raises:
            SamplingError: As `__call__`.
        """
        return [self.decode(line[0].tokens) for line in self._grid(probes, [[key] for key in keys])]

    def prompt_ids(self, probes: ProbeSet) -> tuple[tuple[int, ...], ...]:
        """The prompt tokens that completions of `probes` are drawn from, for a bank."""
        policy = policy_of(self.model)
        return tuple(self._encode(probe, policy) for probe in probes)

    def opened(self, probes: ProbeSet) -> frozenset[str]:
        """Ids of probes whose prompts, as they are written for the model, end inside a reasoning block."""
        plain = replace(self, decoding=replace(self.decoding, reasoning="keep"))
        return frozenset(p.id for p in probes if begins_inside(str(self.tokenizer.decode(plain.tokens(p)))))

    def _grid(self, probes: Sequence[Probe], keys: Sequence[Sequence[int]]) -> list[list[_Drawn]]:
        """A completion for each key of each probe; the model is left as found."""
        policy = policy_of(self.model)
        with undisturbed(self.model, self.tokenizer):
            prompts = [self._encode(probe, policy) for probe in probes]
            rows = [Row(i, j, prompts[i], key) for i, line in enumerate(keys) for j, key in enumerate(line)]
            rows.sort(key=lambda row: len(row.prompt))  # equal lengths together: less padding
            config = self._config(policy)
            for module in own_generation_configs(policy):  # what `config` leaves at None would be taken from there
                module.generation_config = config
            drawn = self._draw(policy, config, rows)
        return [[drawn[i, j] for j in range(len(line))] for i, line in enumerate(keys)]

    def _encode(self, probe: Probe, policy: Any) -> tuple[int, ...]:
        """Prompt tokens; the end is kept where the model's window is too short."""
        ids, window = self.tokens(probe), window_of(policy)
        room = len(ids) if window is None else max(1, window - self.decoding.max_new_tokens)
        return tuple(int(i) for i in ids[-room:])

    def tokens(self, probe: Probe) -> list[int]:
        """All prompt tokens, as the trainer makes them, however many."""
        policy = policy_of(self.model)
        if probe.token_ids is not None:
            ids = list(probe.token_ids)
        elif isinstance(probe.prompt, str):
            ids = self.tokenizer(probe.prompt)["input_ids"]
            stops = stop_tokens(policy, self.tokenizer)
            while len(ids) > 1 and ids[-1] in stops:  # some tokenizers close every text
                ids = ids[:-1]
        else:
            messages = [dict(message) for message in probe.prompt]
            options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, **self.chat_options}
            ids = self.tokenizer.apply_chat_template(messages, **options)["input_ids"]
        if not ids:  # the policy starts from nothing: its first token, where it has one
            bos = self.tokenizer.bos_token_id
            ids = [self._pad_id(policy) if bos is None else bos]
        return suppressed(self.tokenizer, ids) if self.decoding.reasoning == "empty" else list(ids)

    def _draw(self, policy: Any, config: GenerationConfig, rows: Sequence[Row]) -> dict[tuple[int, int], _Drawn]:
        drawn: dict[tuple[int, int], _Drawn] = {}
        bar = tqdm(total=len(rows), desc="divmon probing", leave=False, disable=None if self.progress else True)
        with bar:
            while len(drawn) < len(rows):
                batch = list(itertools.islice(rows, len(drawn), len(drawn) + self._rows))
                cells = self._attempt(policy, config, batch)
                drawn.update(((row.i, row.j), cell) for row, cell in zip(batch, cells, strict=False))
                bar.update(len(cells))
        return drawn

    def _attempt(self, policy: Any, config: GenerationConfig, rows: Sequence[Row]) -> list[_Drawn]:
        """Completions of `rows`; none, and half as many rows from now on, where memory runs out."""
        try:
            return self._generate(policy, config, rows)
        except Exception as error:
            if not should_reduce_batch_size(error):
                raise
            if len(rows) == 1:
                raise SamplingError(
                    "Out of memory while sampling one completion. Lower max_new_tokens, or shorten the probes."
                ) from error
        # Only here is the traceback gone, and with it the tensors that filled the memory.
        self._rows = len(rows) // 2
        clear_device_cache(garbage_collection=True)
        log.info("divmon: out of memory with %d rows; sampling goes on with %d", len(rows), self._rows)
        return []

    def _generate(self, policy: Any, config: GenerationConfig, rows: Sequence[Row]) -> list[_Drawn]:
        stops = set(config.eos_token_id or ())
        return [
            self._cut(cell.tokens, cell.logprobs, cell.entropies, stops)
            for cell in write(policy, config, rows, self.decoding)
        ]

    def _config(self, policy: Any) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=self.decoding.max_new_tokens,
            do_sample=False,  # KeyedSampling draws; no warper is built
            num_beams=1,
            num_return_sequences=1,
            use_cache=True,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_length=0,
            pad_token_id=self._pad_id(policy),
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=stop_tokens(policy, self.tokenizer) or None,
        )

    @staticmethod
    def _cut(tokens: list[int], logprobs: np.ndarray, entropies: np.ndarray, stops: set[int]) -> _Drawn:
        end = next((t for t, token in enumerate(tokens) if token in stops), None)
        length = len(tokens) if end is None else end + 1
        if not np.isfinite(logprobs[:length]).all():
            raise SamplingError(
                "The policy's next-token probabilities are not numbers (NaN): its weights or activations overflowed."
            )
        return _Drawn(tuple(tokens[:length]), end is not None, logprobs[:length].copy(), entropies[:length].copy())

    def _pad_id(self, policy: Any) -> int:
        """An id to fill rows up with. Any will do that the model knows, as it is masked."""
        candidates = (self.tokenizer.pad_token_id, *stop_tokens(policy, self.tokenizer))
        known = text_size(policy, "vocab_size") or math.inf
        return int(next((c for c in candidates if c is not None and c < known), 0))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a completion, as it stands in batches."""
        return self._decode(tokens)
