"""Critics that are language models in this process: the policy itself, or another one."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divmon.compat import window_of
from divmon.errors import ConfigError, DivmonError, MissingDependency, SamplingError
from divmon.records import Probe, Prompt
from divmon.resampling.asking import critique_of, prompt_keys
from divmon.resampling.base import Request, Writer

if TYPE_CHECKING:
    from divmon.resampling.writers import ModelWriter


class PolicyCritic:
    """The policy criticises itself.

    Args:
        writer: The policy. Its length cap is that of critiques: give it a writer of its own where they should be
            longer or shorter than completions.
        temperature: Of critiques. 0, the paper's, always takes the likeliest token, so `key` changes nothing.

    Source: Xi et al. (2024), arXiv:2411.16579, where critics are asked at temperature 0.
    """

    def __init__(self, writer: Writer, *, temperature: float = 0.0) -> None:
        self.name = writer.name
        self._writer, self._temperature = writer, _temperature(temperature)

    def __repr__(self) -> str:
        return f"PolicyCritic({self.name!r})"

    def __call__(self, requests: Sequence[Request], *, key: int) -> list[str | None]:
        """One critique a request, in order; None where nothing was written.

        Raises:
            SamplingError: The policy could not be sampled.
        """
        return _written(self._writer, [request.prompt for request in requests], self._temperature, key)


class ModelCritic:
    """Another causal language model of Transformers criticises; it is loaded when it is first asked, and stays loaded.

    Loading reads safetensors only and runs no code of the model's authors. A plain-text question becomes a user's
    message where the tokenizer has a chat template; chat messages become plain text where it has none.

    Args:
        model: The Hub name or the folder of a model, or (model, tokenizer).
        max_new_tokens: Cap of a critique; half of the model's window, if that is less.
        temperature: As `PolicyCritic`.
        device: Where a model that is loaded here runs; the accelerator, if there is one, when None.
        chat_options: Passed to `apply_chat_template`.
        batch_size: Rows in one pass; found by trying when None.

    Raises:
        ConfigError: A folder that holds no model, or a setting that cannot work.

    Source: transformers, AutoModelForCausalLM.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | tuple[Any, Any],
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        device: str | None = None,
        chat_options: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
    ) -> None:
        self._given: str | tuple[Any, Any] = model if isinstance(model, tuple) else _model_name(model)
        self._cap, self._temperature, self._device = max_new_tokens, _temperature(temperature), device
        self._chat_options, self._batch_size = dict(chat_options or {}), batch_size
        self._writer: ModelWriter | None = None
        self._broken: DivmonError | None = None
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ConfigError(f"A critic's `max_new_tokens` must be a whole number above 0, not {max_new_tokens!r}.")
        self._chats = True
        if isinstance(self._given, str):
            self.name = f"model:{self._given}"
            return
        if len(self._given) != 2:
            raise ConfigError("A critic's `model` is a name, a folder, or a pair (model, tokenizer).")
        path = getattr(getattr(self._given[0], "config", None), "name_or_path", "")
        self.name = f"model:{path or type(self._given[0]).__name__}"
        self.check()

    def __repr__(self) -> str:
        return f"ModelCritic({self.name.removeprefix('model:')!r})"

    def check(self) -> None:
        """Load the model now, to fail before training rather than in the middle of it.

        Raises:
            ConfigError: The model cannot be loaded, or cannot write.
            MissingDependency: Transformers is absent.
        """
        if self._broken is not None:
            raise self._broken
        if self._writer is not None:
            return
        try:
            model, tokenizer = self._given if isinstance(self._given, tuple) else _load(self._given, self._device)
            self._writer = self._as_writer(model, tokenizer)
        except DivmonError as error:
            self._broken = error  # a download that fails is not tried again at every step
            raise

    def __call__(self, requests: Sequence[Request], *, key: int) -> list[str | None]:
        """One critique a request, in order; None where nothing was written.

        Raises:
            SamplingError: The model could not be loaded, or not be sampled.
        """
        try:
            self.check()
        except DivmonError as error:
            raise SamplingError(str(error)) from error
        assert self._writer is not None
        prompts = [self._said(request.prompt) for request in requests]
        return _written(self._writer, prompts, self._temperature, key)

    def _as_writer(self, model: Any, tokenizer: Any) -> ModelWriter:
        from divmon.resampling.writers import ModelWriter

        words = getattr(tokenizer, "tokenizer", tokenizer)
        self._chats = bool(getattr(words, "chat_template", None) or self._chat_options.get("chat_template"))
        window = window_of(model)
        return ModelWriter(
            model,
            tokenizer,
            max_new_tokens=self._cap if window is None else max(1, min(self._cap, window // 2)),
            chat_options=self._chat_options,
            batch_size=self._batch_size,
            name=self.name,
        )

    def _said(self, prompt: Prompt) -> Prompt:
        """A question in the form the model knows."""
        if isinstance(prompt, str):
            return ({"role": "user", "content": prompt},) if self._chats else prompt
        return prompt if self._chats else Probe("", prompt).text


def _temperature(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"A critic's `temperature` must be 0 or more, not {value!r}.")
    return float(value)


def _written(writer: Writer, prompts: Sequence[Prompt], temperature: float, key: int) -> list[str | None]:
    """Critiques by a writer; its errors are divmon's."""
    try:
        texts = writer.write(prompts, temperature=temperature, keys=prompt_keys(prompts, key))
    except DivmonError:
        raise
    except Exception as error:
        raise SamplingError(f"{writer.name} could not write critiques: {error}") from error
    return [critique_of(text) for text in texts]


def _model_name(model: str | os.PathLike[str], what: str = "critic") -> str:
    """A Hub name or folder; what looks like a folder must hold a model."""
    if not isinstance(model, (str, os.PathLike)) or not str(model).strip():
        raise ConfigError(f"A {what}'s `model` is a name, a folder, or a pair (model, tokenizer).")
    name = os.path.expanduser(os.fspath(model))
    folder = Path(name)
    if folder.is_dir():
        if not any((folder / f).is_file() for f in ("config.json", "adapter_config.json")):
            raise ConfigError(f"The folder {name!r} holds no model: there is no config.json. See `save_pretrained`.")
    elif isinstance(model, os.PathLike) or folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ConfigError(f"There is no folder {name!r}. Give the folder of a model, or its name on the Hub.")
    return name


def load_writer(model: Any, *, max_new_tokens: int, device: str | None = None) -> ModelWriter:
    """A writer from a folder, a Hub name, or (model, tokenizer); loaded as `ModelCritic` loads.

    Raises:
        ConfigError: It is none of these, or the model cannot be loaded.

    Source: transformers, AutoModelForCausalLM.
    """
    from divmon.resampling.writers import ModelWriter

    if not isinstance(model, tuple):
        model = _load(_model_name(model, "writer"), device, "writer")
    if len(model) != 2:
        raise ConfigError("A writer is a name, a folder, or a pair (model, tokenizer).")
    return ModelWriter(*model, max_new_tokens=max_new_tokens)


def _load(name: str, device: str | None, what: str = "critic") -> tuple[Any, Any]:
    """Model and tokenizer; the random streams are left as they were."""
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingDependency(f"A model as {what} needs Transformers: pip install transformers") from error
    import torch

    from divmon.samplers.guard import same_streams

    if device is None:
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    safe = {"trust_remote_code": False}
    try:
        with same_streams():
            tokenizer = library.AutoTokenizer.from_pretrained(name, **safe)
            model, report = library.AutoModelForCausalLM.from_pretrained(
                name, dtype="auto", use_safetensors=True, output_loading_info=True, **safe
            )
            model.to(device).eval().requires_grad_(False)
    except Exception as error:
        raise ConfigError(
            f"Cannot load the {what} {name!r}: {error} Give the folder of a causal language model saved as safetensors "
            "with its tokenizer, or its name on the Hub; or pass (model, tokenizer)."
        ) from error
    if report.get("missing_keys"):
        raise ConfigError(
            f"{name!r} is no trained language model: {', '.join(sorted(report['missing_keys'])[:5])} would be random."
        )
    return model, tokenizer
