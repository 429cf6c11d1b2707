"""A critic behind a server, over real sockets: good answers, every fault, the deadline, and where the key goes."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import numpy as np
import pytest
from loopback import Answer, Server, completion, drip, error, hang_up, raw, say, stall

from divmon.errors import ConfigError
from divmon.records import Probe
from divmon.resampling import endpoint
from divmon.resampling.base import Attempt, Request
from divmon.resampling.critics import EndpointCritic, as_critic

SECRET = "sk-very-secret-0123456789"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=lambda: made.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    yield made
    made.over.set()
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_BACKOFF", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("no_proxy", "*")


def asked(n: int = 1, prompt: Any = "What is wrong with 2+2=5?") -> list[Request]:
    """N requests, one after the other told apart by their number."""
    numbered = [f"{prompt} ({i})" if isinstance(prompt, str) and n > 1 else prompt for i in range(n)]
    return [Request(Attempt(Probe(str(i), "2+2="), "5"), text) for i, text in enumerate(numbered)]


def critic(server: Server, **more: Any) -> EndpointCritic:
    return EndpointCritic(server.url, "small", **{"deadline": 10.0, **more})


# ---- good answers


def test_a_critique_a_request_in_order(server: Server) -> None:
    server.script = [lambda h: say("about " + h.server.seen[-1][2]["messages"][0]["content"][-4:])(h)]
    made = critic(server, concurrency=1)
    assert made(asked(5), key=0) == [f"about  ({i})" for i in range(5)]
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert headers["Content-Type"] == "application/json"
    assert body == {
        "model": "small",
        "temperature": 0,
        "max_tokens": 512,
        "messages": [{"role": "user", "content": "What is wrong with 2+2=5? (0)"}],
    }
    assert made.failures == {}
    assert made([], key=0) == []


def test_requests_go_out_together(server: Server) -> None:
    barrier = threading.Barrier(8, timeout=5)

    def together(handler: Any) -> None:
        barrier.wait()
        say("together")(handler)

    server.script = [together]
    assert critic(server, concurrency=8)(asked(16), key=0) == ["together"] * 16


def test_chats_options_and_odd_text(server: Server) -> None:
    chat = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "\ud800é"})
    options = {"max_tokens": None, "max_completion_tokens": 9, "temperature": 0.7}
    server.script = [say(" \ud83d\ude00\ud800 \n")]
    made = critic(server, options=options, key_env=None)
    assert made(asked(1, chat), key=5) == ["😀\ufffd"]
    _, headers, body = server.seen[0]
    assert "Authorization" not in headers
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "\ufffdé"}]
    assert {k: body[k] for k in body if k not in ("messages", "seed")} == {
        "model": "small", "max_completion_tokens": 9, "temperature": 0.7,
    }  # fmt: skip
    made(asked(1, chat), key=5)
    made(asked(1, chat), key=6)
    seeds = [body["seed"] for _, _, body in server.seen]
    assert seeds[0] == seeds[1] != seeds[2]
    assert 0 <= min(seeds) <= max(seeds) < 2**31


def test_json_under_another_name_is_read(server: Server) -> None:
    server.script = [say("fine", kind="text/plain")]
    assert critic(server)(asked(), key=0) == ["fine"]


# ---- faults that pass


@pytest.mark.parametrize(
    "fault",
    [error(500), error(503, Retry_After="0"), error(429, Retry_After=formatdate(0, usegmt=True)), hang_up,
     raw(completion("half a body"), length=999)],
    ids=["500", "503", "429", "hang-up", "half-body"],
)  # fmt: skip
def test_faults_that_pass_are_tried_again(server: Server, fault: Answer) -> None:
    server.script = [fault, fault, say("at last")]
    made = critic(server)
    assert made(asked(), key=0) == ["at last"]
    assert len(server.seen) == 3
    assert made.failures == {}
    server.script, server.seen = [fault], []
    assert made(asked(), key=0) == [None]
    assert len(server.seen) == 3
    assert sum(made.failures.values()) == 1


def test_the_server_says_how_long_to_wait(server: Server) -> None:
    server.script = [error(429, Retry_After="1"), say("later")]
    start = time.monotonic()
    assert critic(server)(asked(), key=0) == ["later"]
    assert 1.0 <= time.monotonic() - start < 3
    server.script = [error(429, "slow down", Retry_After="3600")]
    start = time.monotonic()
    made = critic(server)
    assert made(asked(), key=0) == [None]  # at once: an hour is past the deadline
    assert time.monotonic() - start < 2
    assert made.failures == {"HTTP 429: slow down": 1}


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = EndpointCritic(f"http://127.0.0.1:{port}", "small")
    assert made(asked(2), key=0) == [None, None]
    assert [reason.startswith("no answer: ") for reason in made.failures] == [True]
    assert list(made.failures.values()) == [2]


# ---- faults that stay


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (error(400, "no such\nmodel"), "HTTP 400: no such model"),
        (error(401, f"wrong key {SECRET}"), "HTTP 401: wrong key ***"),
        (error(404), "HTTP 404: Not Found"),
        (raw(b"\xff{", code=403), "HTTP 403: Forbidden"),
        (raw(b'["x"]', code=422), "HTTP 422: Unprocessable"),
        (raw(b"<html>welcome</html>", kind="text/html"), "its answer is not JSON"),
        (raw(b""), "its answer is not JSON"),
        (raw(b"\xff\xfe"), "its answer is not JSON"),
        (raw(b"[" * 100_000), "its answer is not JSON"),
        (raw(b'{"choices": 1' + b"0" * 5000), "its answer is not JSON"),
        (raw(b"{}"), "its answer is no chat completion"),
        (raw(b"[]"), "its answer is no chat completion"),
        (raw(b"null"), "its answer is no chat completion"),
        (raw(b'{"choices": []}'), "its answer is no chat completion"),
        (raw(b'{"choices": {}}'), "its answer is no chat completion"),
        (raw(b'{"choices": [{"message": "x"}]}'), "its answer is no chat completion"),
        (raw(b'{"choices": [{"text": "x"}]}'), "its answer is no chat completion"),
        (say([{"type": "text", "text": "x"}]), "its answer is no chat completion: the content"),
        (say(None), "it had nothing to say"),
        (say(" \n"), "it had nothing to say"),
        (raw(completion(None, refusal="I cannot help.")), "the model refused"),
        (raw(completion("x").replace(b'"stop"', b'"content_filter"')), "the model refused"),
        (raw(b" " * 10_000_000), "its answer is larger than 1048576 bytes"),
        (raw(b"", code=204), "its answer is not JSON"),
    ],
)
def test_what_is_no_critique_is_none_and_not_tried_again(server: Server, fault: Answer, reason: str) -> None:
    server.script = [fault]
    made = critic(server)
    assert made(asked(), key=0) == [None]
    assert len(server.seen) == 1
    [found] = made.failures
    assert found.startswith(reason)


def test_one_failure_leaves_the_others(server: Server) -> None:
    server.script = [say("one"), error(400, "bad"), say("three")]
    assert critic(server, concurrency=1)(asked(3), key=0) == ["one", None, "three"]


# ---- time


@pytest.mark.parametrize("fault", [stall, drip], ids=["stall", "drip"])
def test_a_server_that_never_ends_holds_up_nobody(server: Server, fault: Answer) -> None:
    server.script = [say("in time"), fault]
    made = critic(server, concurrency=2, deadline=0.5)
    start = time.monotonic()
    found = made(asked(6), key=0)
    assert time.monotonic() - start < 2
    assert found.count("in time") == 1
    assert found.count(None) == 5
    assert sum(made.failures.values()) == 5
    assert len(server.seen) <= 4  # nothing is begun after the deadline


def test_the_deadline_holds_while_retrying(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_BACKOFF", 0.2)
    server.script = [error(500)]
    start = time.monotonic()
    assert critic(server, deadline=0.5, retries=100)(asked(3), key=0) == [None] * 3
    assert time.monotonic() - start < 2


def test_each_wait_is_bounded(server: Server) -> None:
    server.script = [stall, say("second try")]
    assert critic(server, timeout=0.2)(asked(), key=0) == ["second try"]


# ---- the key


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_the_key_goes_to_one_host_only(server: Server, code: int) -> None:
    other = Server()
    threading.Thread(target=lambda: other.serve_forever(poll_interval=0.01), daemon=True).start()
    server.script = [raw(b"", code=code, Location=f"http://user:pw@localhost:{other.server_port}/v1/chat/completions")]
    made = critic(server)
    assert made(asked(), key=0) == [None]
    assert len(server.seen) == 1
    assert other.seen == []
    assert list(made.failures) == [f"HTTP {code}: it redirects to localhost:{other.server_port}; give that address"]
    other.shutdown()
    other.server_close()


def test_openais_key_is_not_sent_in_clear_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "mine\n")

    def key(url: str, **more: Any) -> str:
        return EndpointCritic(url, "small", **more)._key()

    assert key("http://example.com") == ""
    assert key("http://10.0.0.7:8000/v1") == ""
    assert key("https://example.com") == SECRET
    assert [key(f"http://{host}:1") for host in ("localhost", "127.0.0.2", "[::1]")] == [SECRET] * 3
    assert key("http://example.com", key_env="MY_KEY") == "mine"
    assert key("https://example.com", key_env="NOT_SET") == ""


def test_the_key_is_in_no_name_message_or_record(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    odd = f"{SECRET}\r\nX-Evil: 1"
    server.script = [error(401, f"Incorrect API key provided: {SECRET}"), error(500, SECRET)]
    made = critic(server)
    with caplog.at_level(logging.DEBUG):
        made(asked(2), key=0)
        monkeypatch.setenv("OPENAI_API_KEY", odd)
        assert made(asked(), key=0) == [None]
    assert "the key in OPENAI_API_KEY has characters that no header can carry" in made.failures
    told = [caplog.text, repr(made), made.name, str(made.failures), str(vars(made))]
    assert not [text for text in told if "very-secret" in text]
    assert made.name == f"endpoint:small@127.0.0.1:{server.server_port}"
    assert len(server.seen) == 4  # one, and three tries; nothing with the odd key


# ---- settings, and what is left as found


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ftp://host/v1#m", "must begin with http"),
        ("file:///etc/passwd#m", "must begin with http"),
        ("http://#m", "must begin with http"),
        ("http://host:99999/v1#m", "must begin with http"),
        ("http://ho st/v1#m", "must begin with http"),
        ("https://user:hunter2@host/v1#m", "Leave name and password out"),
        ("https://user:hunter2@host/v1", "Name the endpoint's model after a '#'"),
        ({"url": 7, "model": "m"}, "must begin with http"),
        ({"url": "http://h", "model": " "}, "`model` must be a name"),
        ({"url": "http://h", "model": "m", "timeout": 0}, "`timeout` must be a number above 0, not 0"),
        ({"url": "http://h", "model": "m", "deadline": float("inf")}, "`deadline` must be a number above 0"),
        ({"url": "http://h", "model": "m", "retries": -1}, "`retries` must be a whole number"),
        ({"url": "http://h", "model": "m", "concurrency": 1.5}, "`concurrency` must be a whole number"),
        ({"url": "http://h", "model": "m", "key_env": "sk-123"}, "not the key itself"),
        ({"url": "http://h", "model": "m", "api_key": "hunter2"}, "environment variable"),
        ({"url": "http://h", "model": "m", "time_out": 3}, "Did you mean 'timeout'"),
        ({"url": "http://h", "model": "m", "options": {"stream": True}}, "cannot hold stream"),
        ({"url": "http://h", "model": "m", "options": {"stop": {1}}}, "plain JSON"),
        ({"url": "http://h"}, "needs a `model`"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        as_critic(spec)
    assert "hunter2" not in str(caught.value)
    assert "sk-123" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "asks"),
    [
        ("http://h", "http://h/v1/chat/completions"),
        ("https://h:8443/", "https://h:8443/v1/chat/completions"),
        ("https://h/api/v3/", "https://h/api/v3/chat/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
        ("https://h/v1?version=1", "https://h/v1/chat/completions"),
    ],
)
def test_addresses(url: str, asks: str) -> None:
    assert repr(EndpointCritic(url, "org/model:7b")) == f"EndpointCritic('{asks}', 'org/model:7b')"
    host, _, query = url.partition("?")
    spelled = as_critic(f"{host}{'?' if query else ''}{query}#org/model:7b")
    assert (
        spelled.name
        == as_critic({"url": url, "model": "org/model:7b"}).name
        == EndpointCritic(url, "org/model:7b").name
    )


def test_random_streams_and_threads_are_left_as_found(server: Server) -> None:
    import torch

    running = set(threading.enumerate())
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert critic(server)(asked(4), key=0) == ["The sum is 5."] * 4
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert not [t for t in threading.enumerate() if t.name == "divmon-critic" and t not in running]
