"""What a server answered: the text of a chat completion, or why there is none."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from divmon.resampling.asking import one_line

LARGEST_ANSWER = 2**20  # bytes; a critique has a few thousand
_LARGEST_ERROR = 2**14
_PASSING = (408, 409, 425, 429)  # and everything from 500


class Passing(Exception):
    """A failure that may be gone in a moment; `wait` is what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def read_body(response: Any, until: float, most: int = LARGEST_ANSWER) -> bytes:
    """The whole body, if it comes in time and is not too large."""
    raw = b""
    while part := response.read1(2**16):
        raw += part
        if len(raw) > most:
            raise ValueError(f"its answer is larger than {most} bytes")
        if time.monotonic() > until:
            raise ValueError("its answer did not end before the deadline")
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and len(raw) < int(length):
        raise Passing("its answer broke off")
    return raw


def refusal(error: urllib.error.HTTPError, until: float, secret: str) -> Exception:
    """What to raise for a status other than 2xx, with the server's own words: `Passing` where a retry may help."""
    if 300 <= error.code < 400:
        host = urlsplit(error.headers.get("Location") or "").netloc.rpartition("@")[2]
        return ValueError(f"HTTP {error.code}: it redirects to {one_line(host) or 'another page'}; give that address")
    try:
        said = json.loads(read_body(error, until, _LARGEST_ERROR))
        said = said["error"]["message"] if isinstance(said["error"], Mapping) else said["error"]
    except Exception:  # whatever it sent, the status says enough
        said = ""
    reason = f"HTTP {error.code}: {masked(str(said), secret) or http.client.responses.get(error.code, 'no reason')}"
    if error.code in _PASSING or error.code >= 500:
        return Passing(reason, _retry_after(error.headers.get("Retry-After")))
    return ValueError(reason)


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from seconds or a date; None where the server says nothing that can be read."""
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def masked(text: str, secret: str) -> str:
    """One line of what a server said, without the key."""
    return one_line(text.replace(secret, "***") if secret else text)


def content_of(raw: bytes) -> str | None:
    """The text of the first choice; None where the model refused or said nothing."""
    try:
        answer = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("its answer is not JSON") from None
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        refused = message.get("refusal") or choice.get("finish_reason") == "content_filter"
        content = message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("its answer is no chat completion: there is no choices[0].message") from None
    if refused:
        raise ValueError("the model refused")
    if not (content is None or isinstance(content, str)):
        raise ValueError("its answer is no chat completion: the content is not a text")
    return content
