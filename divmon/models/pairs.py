"""Models that read two texts together, as functions of pairs, with a cache."""

from __future__ import annotations

import hashlib
import importlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from divmon.errors import ConfigError, MissingDependency
from divmon.metrics.base import PairJudge
from divmon.models.encoder import printable, random_untouched

CACHE_PAIRS = 200_000  # about 60 MB
_MAX_TOKENS = 512
_BATCH = 32

Pairs = Sequence[tuple[str, str]]


class CachedPairs:
    """A judge that remembers the pairs it has seen, the latest first kept.

    What the cache changes: speed, and that a pair's numbers never vary with the pairs it was batched with.

    Args:
        judge: N pairs to an array of N rows.
        size: Pairs remembered.

    >>> judge = CachedPairs(lambda pairs: print("asked", pairs) or np.ones(len(pairs)))
    >>> judge([("a", "b"), ("a", "b")]).tolist()
    asked [('a', 'b')]
    [1.0, 1.0]

    Source: a convention of divmon.
    """

    def __init__(self, judge: PairJudge, *, size: int = CACHE_PAIRS) -> None:
        if size < 1:
            raise ConfigError(f"A judge's cache must hold at least one pair, not {size}.")
        self._judge = judge
        self._size = size
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def __call__(self, pairs: Pairs) -> np.ndarray:
        """What the judge says of each pair, float64, asking only about pairs not seen."""
        keys = [_key(pair) for pair in pairs]
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._cache}
        found = {key: self._cache[key] for key in keys if key in self._cache}
        if new:
            found.update(zip(new, np.asarray(self._judge(list(new.values())), dtype=float), strict=True))
        for key in dict.fromkeys(keys):
            self._cache[key] = found[key]
            self._cache.move_to_end(key)
        while len(self._cache) > self._size:
            self._cache.popitem(last=False)
        return np.stack([found[key] for key in keys]) if keys else np.zeros(0)


def _key(pair: tuple[str, str]) -> bytes:
    a, b = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in pair)
    return a + b


class CrossEncoder:
    """A sequence classifier of Transformers as a function of pairs of texts: float64[N, L], probabilities of L classes.

    A model with a single logit has two classes: the logistic function of the logit is the second one's probability.

    What moves its numbers besides meaning: where it stops reading. Both texts together are cut to the smallest of 512
    tokens and what the model takes, the longer one first; or each text by itself to `side_tokens`.

    Args:
        model: In evaluation mode, on its device.
        tokenizer: The model's own.
        side_tokens: Tokens kept of each text; None cuts the pair as a whole.

    Source: Reimers and Gurevych (2019), arXiv:1908.10084 (cross-encoders); a convention of divmon.
    """

    def __init__(self, model: Any, tokenizer: Any, *, side_tokens: int | None = None) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._side = side_tokens
        config = model.config
        places = int(getattr(config, "max_position_embeddings", None) or _MAX_TOKENS)
        if "roberta" in str(config.model_type):
            places -= int(config.pad_token_id or 0) + 1  # its positions count from there
        self._most = max(8, min(_MAX_TOKENS, places, int(tokenizer.model_max_length)))
        labels = config.id2label
        self.labels: tuple[str, ...] = tuple(str(labels[i]) for i in sorted(labels))

    def __call__(self, pairs: Pairs) -> np.ndarray:
        """Probabilities of the classes for each pair; pairs of like length share a forward pass."""
        rows = self._tokens([(printable(a), printable(b)) for a, b in pairs])
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        found = np.zeros((len(rows), max(2, len(self.labels))))
        for i in range(0, len(order), _BATCH):
            part = order[i : i + _BATCH]
            found[part] = self._probabilities([rows[j] for j in part])
        return found

    def _tokens(self, pairs: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Token ids and segment ids of each pair."""
        if not pairs:
            return []
        first, second = (list(side) for side in zip(*pairs, strict=True))
        if self._side is not None:
            return list(self._sides(first, second))
        coded = self._tokenizer(
            first, second, truncation="longest_first", max_length=self._most, return_token_type_ids=True
        )
        return list(zip(coded["input_ids"], coded["token_type_ids"], strict=True))

    def _sides(self, first: list[str], second: list[str]) -> Iterator[tuple[list[int], list[int]]]:
        start, stop = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        room = min(self._side or 0, (self._most - 3) // 2)
        cut = {"add_special_tokens": False, "truncation": True, "max_length": room}
        sides = (self._tokenizer(side, **cut)["input_ids"] for side in (first, second))
        for a, b in zip(*sides, strict=True):
            yield [start, *a, stop, *b, stop], [0] * (len(a) + 2) + [1] * (len(b) + 1)

    def _probabilities(self, rows: list[tuple[list[int], list[int]]]) -> np.ndarray:
        import torch

        width = max(len(ids) for ids, _ in rows)
        pad = self._tokenizer.pad_token_id or 0
        columns: dict[str, list[list[int]]] = {
            "input_ids": [ids + [pad] * (width - len(ids)) for ids, _ in rows],
            "attention_mask": [[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows],
        }
        if "token_type_ids" in self._tokenizer.model_input_names:
            columns["token_type_ids"] = [kinds + [0] * (width - len(kinds)) for _, kinds in rows]
        with random_untouched(), torch.no_grad():
            inputs = {name: torch.tensor(column, device=self._model.device) for name, column in columns.items()}
            logits = self._model(**inputs).logits.double().cpu()
            if logits.shape[1] == 1:
                second = torch.sigmoid(logits)
                return np.asarray(torch.cat((1 - second, second), dim=1).numpy())
            return np.asarray(torch.softmax(logits, dim=1).numpy())


def load_cross_encoder(
    name: str, *, tokenizer: str | None = None, side_tokens: int | None = None, device: str | None = None
) -> CrossEncoder:
    """A `CrossEncoder` by its Hub name or folder; the random streams are left as they were found.

    Args:
        name: The model.
        tokenizer: Where its tokenizer is, if elsewhere.
        side_tokens: See `CrossEncoder`.
        device: Where it runs, "cpu" when None.

    Source: transformers, AutoModelForSequenceClassification.

    Raises:
        MissingDependency: Transformers is absent.
        ConfigError: The model cannot be loaded, or its classifier was never trained.
    """
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingDependency("Judges by name need Transformers: pip install transformers") from error
    try:
        with random_untouched():
            words = library.AutoTokenizer.from_pretrained(tokenizer or name)
            model, report = library.AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True)
            model.to(device or "cpu").float()
            model.eval()
            model.requires_grad_(False)
    except Exception as error:
        raise ConfigError(
            f"Cannot load the judge {name!r}: {error} Give the name or folder of a sequence classifier of "
            "Transformers, or a function of pairs of texts."
        ) from error
    if report.get("missing_keys"):
        raise ConfigError(
            f"The model {name!r} is no trained classifier: {', '.join(sorted(report['missing_keys']))} would be random."
        )
    return CrossEncoder(model, words, side_tokens=side_tokens)
