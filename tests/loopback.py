"""A server on loopback that answers as endpoints do, rightly and wrongly."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[Any], None]


class Handler(BaseHTTPRequestHandler):
    """Answers with the server's next scripted answer, the last one again and again."""

    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.seen.append((self.path, dict(self.headers), json.loads(body)))
            script = self.server.script
            answer = script.pop(0) if len(script) > 1 else script[0]
        answer(self)

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers), None))
        say("stolen")(self)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[Any] = []
        self.script: list[Answer] = [say("The sum is 5.")]
        self.lock, self.over = threading.Lock(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        pass  # a client that left


def raw(
    body: bytes, *, code: int = 200, kind: str = "application/json", length: int | None = None, **more: str
) -> Answer:
    def answer(handler: Any) -> None:
        handler.send_response(code)
        headers = {"Content-Type": kind, "Content-Length": str(len(body) if length is None else length)}
        for name, value in {**headers, **{k.replace("_", "-"): v for k, v in more.items()}}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def completion(content: Any, **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": "stop"}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": {}}).encode()


def say(content: Any, **more: Any) -> Answer:
    return raw(completion(content), **more)


def error(code: int, message: str = "", **more: str) -> Answer:
    return raw(json.dumps({"error": {"message": message, "type": "x"}}).encode(), code=code, **more)


def stall(handler: Any) -> None:
    handler.server.over.wait(20)


def drip(handler: Any) -> None:
    """A byte now and then: no single read ever times out."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.over.wait(0.05):
        handler.wfile.write(b" ")


def hang_up(handler: Any) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
