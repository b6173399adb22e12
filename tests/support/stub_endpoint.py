"""A chat-completions server on this machine, which answers, fails and waits as a test says."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWERS = Callable[[str], str]
DETECTION = "numbered texts"  # in questions which texts fit


@dataclass
class Stub:
    """What a server got, and what it answers.

    ``plan`` holds, for the next requests, a status, a (status, body, headers) or seconds to wait as a float; afterwards
    requests are answered by ``answer``.
    """

    answer: ANSWERS
    plan: list[Any] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    gets: list[dict[str, str]] = field(default_factory=list)
    models: tuple[str, ...] = ("stub",)
    url: str = ""

    @property
    def questions(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]


def knowing(question: str) -> str:
    """Calls a feature by the first word between marks, and finds the texts with the word that is described."""
    if DETECTION not in question:
        marked = re.search(r"^1\. .*?<<\s*(.*?)\s*>>", question, re.MULTILINE)
        return (marked and marked[1]) or "something"
    label = json.loads(re.search(r"responds to as: (\".*\")", question)[1])
    return str([int(n) for n, text in re.findall(r"^(\d+)\. (.*)$", question, re.MULTILINE) if label in text])


@contextmanager
def stub(answer: ANSWERS = lambda _: "x", **fields: Any) -> Iterator[Stub]:
    made = Stub(answer, **fields)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(made))
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(made: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.gets.append(dict(self.headers))
            self._send(200, {"data": [{"id": name} for name in made.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.bodies.append(body)
            made.headers.append(dict(self.headers))
            made.paths.append(self.path)
            step = made.plan.pop(0) if made.plan else None
            if isinstance(step, float):
                time.sleep(step)
                step = None
            if step is None:
                message = {"role": "assistant", "content": made.answer(body["messages"][0]["content"])}
                self._send(200, {"choices": [{"index": 0, "message": message}]})
            else:
                status, content, headers = step if isinstance(step, tuple) else (step, {"error": "no"}, {})
                self._send(status, content, headers)

        def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            with suppress(ConnectionError):  # a client that waited too long has left
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    return Handler
