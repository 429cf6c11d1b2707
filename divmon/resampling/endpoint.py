"""A critic behind an OpenAI-compatible endpoint: any server that speaks `/v1/chat/completions`."""

from __future__ import annotations

import http.client
import ipaddress
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from divmon.errors import ConfigError
from divmon.models.encoder import printable
from divmon.resampling.asking import Failures, ask_all, prompt_keys
from divmon.resampling.base import Request
from divmon.resampling.replies import Passing, content_of, masked, read_body, refusal

DEFAULT_KEY = "OPENAI_API_KEY"
_BACKOFF = 0.5  # seconds before the first retry, doubled each time


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the key is for one host, and a redirected POST would be a GET."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class EndpointCritic:
    """Asks a server for critiques; None for each one that could not be had.

    A call returns at the latest after `deadline` seconds, whatever the server does. Not to be reached, 408, 409, 425,
    429 and 5xx are tried again, with growing pauses or the server's own ``Retry-After``; no other failure is. What
    failed and why is in `failures`, and in the log once.

    The key is read from the environment when it is needed. It is sent to the host of `url` and nowhere else (redirects
    are not followed), and is in no name, message or record. The default variable, OpenAI's, is not sent in clear text:
    over plain http it goes to this machine only. Proxies are those of the environment (``https_proxy``, ``no_proxy``).

    Args:
        url: Such as "https://api.openai.com/v1" or "http://localhost:8000/v1".
        model: As the server calls it.
        key_env: The environment variable that holds the key; nothing is sent where it is not set. None: no key.
        timeout: Seconds to connect, and to wait for the next bytes.
        retries: Of one request.
        concurrency: Requests under way at a time.
        deadline: Seconds for a whole call.
        options: More fields of the request, such as {"max_tokens": 1000}; null takes a field out. By default
            temperature 0 and 512 tokens; above temperature 0 a ``seed`` is sent that the call's key names.

    Attributes:
        name: For the lineage: the model and the host.

    Raises:
        ConfigError: A setting that cannot work.

    >>> EndpointCritic("http://localhost:8000", "small")
    EndpointCritic('http://localhost:8000/v1/chat/completions', 'small')

    Source: OpenAI's chat completions interface, as vLLM, llama.cpp, Ollama and others serve it.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_env: str | None = DEFAULT_KEY,
        timeout: float = 30.0,
        retries: int = 2,
        concurrency: int = 8,
        deadline: float = 120.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._at = _checked(url)
        if not (isinstance(model, str) and model.strip()):
            raise ConfigError("An endpoint's `model` must be a name, such as 'gpt-4.1-mini'.")
        _number("timeout", timeout, above=0)
        _number("deadline", deadline, above=0)
        _number("concurrency", concurrency, above=0, whole=True)
        _number("retries", retries, above=-1, whole=True)
        if key_env is not None and not (isinstance(key_env, str) and key_env.isidentifier()):
            raise ConfigError("`key_env` is the name of an environment variable, not the key itself.")
        self.model, self.key_env, self.timeout, self.retries = model, key_env, timeout, retries
        self.concurrency, self.deadline = concurrency, deadline
        self._body = _fields(model, options or {})
        self.name = f"endpoint:{model}@{self._at.netloc}"
        self._failures = Failures(self.name)
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __repr__(self) -> str:
        return f"EndpointCritic({urlunsplit(self._at._replace(query=''))!r}, {self.model!r})"

    def __call__(self, requests: Sequence[Request], *, key: int) -> list[str | None]:
        """One critique a request, in order; None for one that could not be had. Never raises for what a server does."""
        until = time.monotonic() + self.deadline
        keys = prompt_keys([request.prompt for request in requests], key)
        bodies = [self._encoded(request, seed) for request, seed in zip(requests, keys, strict=True)]
        answers = ask_all(lambda body: self._ask(body, until), bodies, workers=self.concurrency, deadline=self.deadline)
        return self._failures.sift(answers)

    @property
    def failures(self) -> Mapping[str, int]:
        """Why there was no critique, and how often."""
        return dict(self._failures.reasons)

    def _encoded(self, request: Request, seed: int) -> bytes:
        prompt = request.prompt
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
        clean = [{k: printable(v) if isinstance(v, str) else v for k, v in m.items()} for m in messages]
        body = {**self._body, "messages": clean}
        if isinstance(body.get("temperature"), (int, float)) and body["temperature"] > 0:
            body.setdefault("seed", seed % 2**31)
        return json.dumps(body).encode()

    def _ask(self, body: bytes, until: float) -> str | None:
        """One critique, tried `retries` more times while there is time."""
        attempt = 0
        while True:
            try:
                return content_of(self._post(body, until))
            except Passing as error:
                wait = _BACKOFF * 2**attempt if error.wait is None else error.wait
                if attempt >= self.retries or time.monotonic() + wait >= until:
                    raise
                time.sleep(wait)
            attempt += 1

    def _post(self, body: bytes, until: float) -> bytes:
        """The body of a good answer.

        Raises:
            Passing: It may work in a moment.
            ValueError: It will not.
        """
        left = until - time.monotonic()
        if left <= 0:
            raise ValueError("no time left before the deadline")
        request = urllib.request.Request(urlunsplit(self._at), data=body, method="POST")
        request.add_header("Content-Type", "application/json")
        request.add_header("Accept", "application/json")
        secret = self._key()
        if secret:
            request.add_unredirected_header("Authorization", f"Bearer {secret}")
        try:
            with self._opener.open(request, timeout=min(self.timeout, left)) as response:
                return read_body(response, until)
        except urllib.error.HTTPError as error:
            with error:
                raise refusal(error, until, secret) from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise Passing(f"no answer: {masked(str(cause), secret)}") from None

    def _key(self) -> str:
        """The key, or "" where none is to be sent."""
        clear = self._at.scheme == "http" and self.key_env == DEFAULT_KEY and not _local(self._at.hostname or "")
        secret = "" if self.key_env is None or clear else os.environ.get(self.key_env, "").strip()
        if not (secret.isascii() and secret.isprintable() and " " not in secret):  # the error of http.client shows it
            raise ValueError(f"the key in {self.key_env} has characters that no header can carry")
        return secret


def _checked(url: str) -> SplitResult:
    """The address that is asked. A wrong one is not repeated in the message: it may hold a password."""
    try:
        at = urlsplit(url.strip())
        good = at.scheme in ("http", "https") and bool(at.hostname) and at.port != 0
    except (AttributeError, ValueError):
        good = False
    if not good or any(c.isspace() or not c.isascii() for c in url.strip()):
        raise ConfigError("An endpoint's `url` must begin with http:// or https://, as in 'http://localhost:8000/v1'.")
    if "@" in at.netloc:
        raise ConfigError("Leave name and password out of an endpoint's `url`: name an environment variable `key_env`.")
    path = at.path.rstrip("/") or "/v1"
    return at._replace(path=path if path.endswith("/chat/completions") else f"{path}/chat/completions", fragment="")


def _number(name: str, value: Any, *, above: float, whole: bool = False) -> None:
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not (math.isfinite(value) and value > above):
        raise ConfigError(f"An endpoint's `{name}` must be a {'whole ' * whole}number above {above}, not {value!r}.")


def _fields(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The request but for its messages."""
    fixed = {"model", "messages", "stream", "n"} & set(options)
    if fixed:
        raise ConfigError(f"`options` of an endpoint cannot hold {', '.join(sorted(fixed))}.")
    body = {"model": model, "temperature": 0, "max_tokens": 512, **options}
    body = {name: value for name, value in body.items() if value is not None}
    try:
        json.dumps(body)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"`options` of an endpoint must be plain JSON: {error}") from None
    return body


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
