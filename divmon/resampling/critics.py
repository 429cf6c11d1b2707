"""Who criticises: the policy itself, another model in this process, a server, or a function."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from divmon.compat import is_async
from divmon.errors import ConfigError, suggest
from divmon.resampling.asking import Failures, ask_all
from divmon.resampling.base import Critic, Request, Writer
from divmon.resampling.endpoint import EndpointCritic
from divmon.resampling.local import ModelCritic, PolicyCritic

__all__ = ["EndpointCritic", "FunctionCritic", "ModelCritic", "PolicyCritic", "as_critic"]

FORMS = "'policy', 'model:NAME_OR_FOLDER', 'http(s)://HOST/v1#MODEL', {'url': ..., 'model': ...}, or a function"


class FunctionCritic:
    """A function criticises, one request after the other.

    Python's, numpy's and torch's random streams are left as found, unless the function goes on after the deadline.

    Args:
        fn: Of (prompt, answer), both texts, or of one `Request`, by how many arguments it needs; returns a critique,
            or None where it has nothing to say. Whatever it raises counts as None.
        deadline: Seconds for a whole call; the function runs in a thread, and what is not there by then is None. None
            runs it in this thread, however long it takes.
        name: For the lineage; the function's own when None.

    Raises:
        ConfigError: Not a function of one or two arguments.

    >>> from divmon.records import Probe
    >>> from divmon.resampling.base import Attempt
    >>> critic = FunctionCritic(lambda prompt, answer: f"{prompt} is not {answer}", deadline=None)
    >>> critic([Request(Attempt(Probe("a", "2+2="), "5"), "What is wrong?")], key=0)
    ['2+2= is not 5']

    Source: a convention of divmon.
    """

    def __init__(self, fn: Callable[..., Any], *, deadline: float | None = 120.0, name: str | None = None) -> None:
        timed = isinstance(deadline, (int, float)) and not isinstance(deadline, bool)
        if deadline is not None and not (timed and 0 < deadline < math.inf):
            raise ConfigError(f"A critic's `deadline` must be a number of seconds above 0, not {deadline!r}.")
        self.name = name or str(getattr(fn, "__name__", None) or type(fn).__name__)
        self._fn, self._whole, self._deadline = fn, _takes_request(fn), deadline
        self._failures = Failures(self.name)
        self._late: list[Request] = []  # holds the request an earlier call still works on, if any

    def __repr__(self) -> str:
        return f"FunctionCritic({self.name!r})"

    @property
    def failures(self) -> Mapping[str, int]:
        """Why there was no critique, and how often."""
        return dict(self._failures.reasons)

    def __call__(self, requests: Sequence[Request], *, key: int) -> list[str | None]:
        """One critique a request, in order; None for one that could not be had. `key` is not used."""
        from divmon.samplers.guard import same_streams

        if self._late:
            self._failures.note("it is still busy with an earlier request")
            return [None] * len(requests)
        with same_streams():
            answers = ask_all(self._ask, requests, workers=1, deadline=self._deadline)
        said = iter(self._failures.sift([answer for answer in answers if answer is not None]))
        return [None if answer is None else next(said) for answer in answers]

    def _ask(self, request: Request) -> Any:
        self._late.append(request)
        try:
            if self._whole:
                return self._fn(request)
            return self._fn(request.attempt.probe.text, request.attempt.text)
        except Exception as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        finally:
            self._late.pop()


def as_critic(spec: Any, *, policy: Writer | None = None) -> Critic:
    """The critic that `spec` names.

    Args:
        spec: "policy"; "model:NAME_OR_FOLDER"; "http(s)://HOST/v1#MODEL"; a mapping with the arguments of
            `EndpointCritic` (``url`` and ``model`` at least), or without a ``url`` those of `ModelCritic`; a folder as
            `pathlib.Path`, or a pair (model, tokenizer); a function (`FunctionCritic`); or a critic: an object with a
            name that is called with requests and ``key=``.
        policy: Who "policy" is.

    Raises:
        ConfigError: Anything else, with what to write instead.

    >>> as_critic("https://api.openai.com/v1#gpt-4.1-mini").name
    'endpoint:gpt-4.1-mini@api.openai.com'

    Source: a convention of divmon.
    """
    if isinstance(spec, str):
        return _named(spec.strip(), policy)
    if isinstance(spec, Mapping):
        return _mapped(spec)
    if isinstance(spec, (tuple, os.PathLike)):
        return ModelCritic(spec)
    if hasattr(spec, "generate"):
        raise ConfigError("A model alone cannot criticise, as texts need its tokenizer. Pass (model, tokenizer).")
    if callable(spec) and not isinstance(spec, type):
        return spec if _is_critic(spec) else FunctionCritic(spec)
    what = f"the class {spec.__name__}: pass an instance of it" if isinstance(spec, type) else type(spec).__name__
    raise ConfigError(f"A critic is {FORMS}, not {what}.")


def _named(spec: str, policy: Writer | None) -> Critic:
    kind, colon, rest = spec.partition(":")
    if spec == "policy":
        if policy is None:
            raise ConfigError("The critic 'policy' needs a policy here. Name another model: 'model:NAME_OR_FOLDER'.")
        return PolicyCritic(policy)
    if kind == "model" and colon:
        return ModelCritic(rest.strip())
    if "://" in spec:  # not repeated in messages: it may hold a password
        url, _, model = spec.partition("#")
        if not model:
            raise ConfigError("Name the endpoint's model after a '#': 'http://localhost:8000/v1#MODEL'.")
        return EndpointCritic(url, model)
    hint = f" Did you mean 'model:{spec}'?" if "/" in spec or Path(spec).is_dir() else suggest(spec, ("policy",))
    raise ConfigError(f"Unknown critic {spec!r}.{hint if 'mean' in hint else ''} A critic is {FORMS}.")


def _mapped(spec: Mapping[str, Any]) -> Critic:
    kind: Any = EndpointCritic if "url" in spec else ModelCritic
    known = list(inspect.signature(kind).parameters)
    for name in spec:
        if name in ("api_key", "key"):
            raise ConfigError("A critic's key does not belong here: put it into an environment variable, and its name "
                              "into `key_env`.")  # fmt: skip
        if name not in known:
            raise ConfigError(f"Unknown setting {name!r} of a critic.{suggest(str(name), known)}")
    if "model" not in spec:
        raise ConfigError("A critic's mapping needs a `model`, and a `url` if a server has it.")
    critic: Critic = kind(**spec)
    return critic


def _is_critic(spec: Any) -> bool:
    """Whether `spec` is called as a `Critic` is, and has a name."""
    if not isinstance(getattr(spec, "name", None), str):
        return False
    try:
        inspect.signature(spec).bind((), key=0)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{type(spec).__name__} has a name, but is not called as a critic is: critic(requests, key=0)."
        ) from None
    return True


def _takes_request(fn: Callable[..., Any]) -> bool:
    """Whether `fn` wants one argument, the whole request, and not two."""
    wanted = "A critic's function takes (prompt, answer) or one Request, and returns a text or None"
    if not callable(fn) or is_async(fn):
        raise ConfigError(
            f"{wanted}; {'a coroutine is not awaited' if callable(fn) else type(fn).__name__ + ' is no function'}."
        )
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        raise ConfigError(f"{wanted}. That of {fn!r} cannot be seen: wrap it in a lambda.") from None
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = sum(p.default is p.empty for p in named)
    most = math.inf if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(named)
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters) or needed > 2 or most == 0:
        raise ConfigError(f"{wanted}; this one takes {inspect.signature(fn)}.")
    return needed == 1 or most == 1
