"""Three questions about completions in a file: like people? like other models? are writers' voices kept?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from divmon.errors import ConfigError, ProbeError
from divmon.metrics.attributes import AttributeFailure
from divmon.metrics.human_gap import HumanGap
from divmon.metrics.human_gap import human_gap as _human_gap
from divmon.metrics.others import Alike, alike
from divmon.metrics.voice import SHIPPED, Voice, preference_shares
from divmon.metrics.voice import voice as _voice
from divmon.samplers.file import LISTS, SINGLES, as_lines, parse
from divmon.samplers.reading import lines_of
from divmon.uncertainty import mean_interval
from divmon.yardsticks import read_bank, read_panel, read_references, read_rewrites

_MADE = (*LISTS, *SINGLES)


def human_gap(source: Any, references: Any = "shipped", *, words: int | None = None, n_boot: int = 1000) -> HumanGap:
    """How far texts of a model are from texts by people, in six dimensions of lexical diversity, at matched length.

    Every completion counts as a text of its own here. What moves it: see `divmon.metrics.human_gap.human_gap`.

    Args:
        source: Rows with completions, as `divmon.read_completions` takes them, or with a ``text``; or texts.
        references: The people: rows with a ``text``, or texts; ``"shipped"`` are 49 old, literary passages.
        words: How many words of each text are looked at; None takes what nine in ten references fill, at most 100.
        n_boot: Resamples for intervals.

    >>> people = ["the cat saw the dog and ran", "a man and a dog ran", "one bird sang and one sat up"]
    >>> human_gap(people[:2], people, n_boot=0).length
    6

    Raises:
        ProbeError: A row that cannot be used; the message names the field and the line.
    """
    given = read_references(references, length=words)
    return _human_gap(_texts(source), given.texts, length=given.length, n_boot=n_boot)


def _texts(source: Any) -> list[str]:
    """Completions of every row, or its ``text``, or the row itself."""
    texts: list[str] = []
    for line in lines_of(source) if isinstance(source, (str, Path)) else as_lines(source):
        if isinstance(line.row, str):
            texts.append(line.row)
        elif isinstance(line.row, Mapping) and "prompt" not in line.row and not any(map(line.row.__contains__, _MADE)):
            if "text" not in line.row:
                there = sorted(map(str, line.row))
                raise ProbeError(f"{line.where}: neither a 'text' nor a 'prompt' and 'completions'; there are {there}.")
            if not isinstance(line.row["text"], str):
                raise ProbeError(f"{line.where}: 'text' must be a text, not {str(line.row['text'])[:80]!r}.")
            texts.append(line.row["text"])
        else:
            texts.extend(parse(line).texts)
    return texts


def hivemind(*sources: Any, encoder: Any = None, nearest: int | None = None) -> Alike:
    """How alike several models are: each with each, and each with itself, on the prompts that all answered.

    What moves it besides agreement: the encoder, decoding, and how narrow the prompts are.

    Args:
        *sources: Rows with ``prompt``, ``model`` and completions; a file without a model is one model, of its name.
        encoder: As in `divmon.Settings`; None compares surfaces (TF-IDF of character 3-5-grams).
        nearest: Neighbours of a completion, for the sources; None takes the completions a model has, at most 50.

    >>> rows = [{"prompt": "?", "model": m, "completions": ["up", "down"]} for m in "ab"]
    >>> hivemind(rows).similarity[0].round(3).tolist()
    [[0.0, 0.5], [0.5, 0.0]]

    Raises:
        ProbeError: A row that cannot be used; the message names the field and the line.
        ConfigError: Fewer than two models, or no prompt that all of them answered.
    """
    files = [source for source in sources if isinstance(source, (str, Path))]
    rows = [row for source in sources if not isinstance(source, (str, Path)) for row in source]
    if files and rows:
        raise ConfigError("hivemind takes files, or rows, not both.")
    bank = read_bank(files or rows)
    if len(bank.models) < 2:
        raise ConfigError(
            f"There is one model, {bank.models[0]!r}: name each row's in a column 'model', or pass a file for each."
        )
    if nearest is not None and nearest < 1:
        raise ConfigError(f"a completion has at least one neighbour, not {nearest}.")
    loaded = None
    if encoder is not None:
        from divmon.models import load_encoder

        loaded, _ = load_encoder(encoder)
    try:
        return alike(bank, loaded, nearest=nearest)
    except ValueError as error:
        raise ConfigError(f"{', '.join(bank.models)}: {error}.") from error


def voice(source: Any, attributes: Any = None, *, n_boot: int = 1000) -> Voice:
    """What rewriting does to voices: shift and spread of each attribute, with what readers or a reward said of it.

    What moves it besides the model: see `divmon.metrics.voice.voice`.

    Args:
        source: Rows with ``original`` and ``rewrite``; if known ``author``, ``score`` and ``preferred``.
        attributes: As in `divmon.Settings`; None counts the shipped ones.
        n_boot: Resamples for intervals.

    >>> rows = [{"original": "I think so!", "rewrite": "Yes.", "score": 1.0}] * 3
    >>> voice(rows, {"length": len}, n_boot=0).acceptance["score"]
    1.0

    Raises:
        ProbeError: A row that cannot be used; the message names the field and the line.
        ConfigError: An attribute that is none, or that fails on a text.
    """
    found = read_rewrites(source)
    scores = np.array(found.scores)
    acceptance: dict[str, float] = {**preference_shares(found.preferred)}
    if np.isfinite(scores).any():
        low, high = mean_interval(scores)
        acceptance |= {"score": float(np.nanmean(scores)), "score_low": low, "score_high": high}
    panel = SHIPPED if attributes is None else read_panel(attributes)
    try:
        return _voice(
            found.originals,
            found.rewrites,
            panel=panel,
            authors=found.authors,
            acceptance=acceptance or None,
            n_boot=n_boot,
        )
    except AttributeFailure as error:
        raise ConfigError(f"{error}.") from error


def away(low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray, centre: float) -> np.ndarray:
    """bool[N]: intervals that leave `centre` out; unknown ones do not.

    >>> away([0.1, -1.0], [0.2, 1.0], 0.0).tolist()
    [True, False]
    """
    return np.asarray((np.asarray(low) > centre) | (np.asarray(high) < centre))


__all__ = ["away", "hivemind", "human_gap", "voice"]
