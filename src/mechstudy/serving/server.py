"""The server of a run's report: this machine alone, behind a secret address, the report's own files, and its model."""

from __future__ import annotations

import json
import mimetypes
import secrets
import sys
import threading
import traceback
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote, urlsplit

from mechstudy.core.errors import MechstudyError, first_sentence
from mechstudy.core.jsonio import json_bytes

if TYPE_CHECKING:
    from mechstudy.serving.live import LiveRun

HOST = "127.0.0.1"
MAX_BODY = 1_000_000  # bytes of a request
_PAGE = "text/html; charset=utf-8"
_QUOTES = (b"'", b"&#39;")  # in the policies of pages, as they are and as templates escape them
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ReportServer:
    """Serves a run's report at `address`, and answers what its pages ask of the model.

    It listens on the loopback interface only. Every address begins with a token of 128 bits that is new each time;
    requests without it, or for another host's name, get 404. Pages are those of ``mechstudy report``, with one more
    script. The model does one thing at a time; others wait.

    Args:
        live: what the pages may ask.
        report: the folder of the report.
        port: 0 takes a free one.

    Raises:
        MechstudyError: no report (`require_report`), or a port that cannot be used.
    """

    def __init__(self, live: LiveRun, report: Path, port: int = 0) -> None:
        self.report = require_report(report)
        self.live, self.token = live, secrets.token_urlsafe(16)
        self.lock = threading.Lock()
        try:
            self._server = ThreadingHTTPServer((HOST, port), type("Handler", (_Handler,), {"owner": self}))
        except (OSError, OverflowError) as error:
            raise MechstudyError(
                f"port {port} cannot be used: {first_sentence(error)}", fix="another --port, or 0 for a free one"
            ) from None
        self._server.daemon_threads = True

    @property
    def address(self) -> str:
        """Where the report is; nobody can guess it."""
        return f"http://{HOST}:{self._server.server_address[1]}/{self.token}/index.html"

    def run(self) -> None:
        """Serve until `stop` is called from another thread, or Ctrl+C."""
        with self._server:
            self._server.serve_forever()

    def stop(self) -> None:
        """End `run`, from another thread while it runs."""
        self._server.shutdown()


def require_report(report: Path) -> Path:
    """The folder of a report, resolved.

    Raises:
        MechstudyError: there is no report.
    """
    if not (report / "index.html").is_file():
        raise MechstudyError(
            "there is no report", where=str(report), fix="`mechstudy run STUDY`, or `mechstudy report STUDY`"
        )
    return report.resolve()


class _Handler(BaseHTTPRequestHandler):
    owner: ClassVar[ReportServer]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mechstudy", ""
    timeout = 60  # seconds of a connection that says nothing

    def do_GET(self) -> None:
        path = self._below_token()
        if path is None:
            self._missing()
        elif path == "live.js":
            self._send(HTTPStatus.OK, "text/javascript; charset=utf-8", _asset("live.js").encode())
        elif path == "live/about":
            self._json(HTTPStatus.OK, self.owner.live.about())
        elif (made := self._made(path)) is not None:
            # A page of one file allows scripts inside alone.
            self._page(made.encode(), f"<script>{_asset('live.js')}</script>")
        else:
            self._file(path)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = self._below_token()
        action = None if path is None else self.owner.live.actions.get(path.removeprefix("live/"))
        if action is None or not self._is_ours():
            self.close_connection = True
            self._missing()
            return
        try:
            asked = self._body()
            with self.owner.lock:
                answer = action(asked)
        except MechstudyError as error:
            where = f"{error.where}: " if error.where else ""
            content = {"error": where + error.what, "facts": error.facts, "fix": error.fix}
            self._json(HTTPStatus.UNPROCESSABLE_ENTITY, content)
        except Exception as error:  # the page says that it failed, and the terminal why
            traceback.print_exc(file=sys.stderr)
            self._json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": first_sentence(error), "facts": {}, "fix": None})
        else:
            self._json(HTTPStatus.OK, answer)

    def _below_token(self) -> str | None:
        """The path after the token; None without it, or where a browser was led here by another host's name."""
        host, port = HOST, self.server.server_address[1]  # type: ignore[index]
        if self.headers.get("Host") not in (f"{host}:{port}", f"localhost:{port}"):
            return None
        token, _, path = unquote(urlsplit(self.path).path).removeprefix("/").partition("/")
        known = secrets.compare_digest(token.encode("utf-8", "replace"), self.owner.token.encode())
        return (path or "index.html") if known else None

    def _made(self, path: str) -> str | None:
        """The page of a graph that was made here."""
        name = path.removeprefix("live/").removesuffix(".html")
        return self.owner.live.page(name) if path == f"live/{name}.html" else None

    def _is_ours(self) -> bool:
        """Whether a page of this server asks: others cannot send this type of content, nor this origin."""
        is_json = self.headers.get_content_type() == "application/json"
        origin = self.headers.get("Origin")
        return is_json and origin in (None, f"http://{self.headers.get('Host')}")

    def _body(self) -> Mapping[str, Any]:
        try:
            length = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            length = -1
        if not 0 <= length <= MAX_BODY:
            self.close_connection = True
            raise MechstudyError(f"a request has at most {MAX_BODY:,} bytes")
        try:
            asked = json.loads(self.rfile.read(length))
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            raise MechstudyError("the request is no JSON object")
        return asked

    def _file(self, path: str) -> None:
        """A file of the report: none outside of its folder, and no folder."""
        try:
            file = (self.owner.report / path).resolve()
            content = file.read_bytes() if file.is_relative_to(self.owner.report) and file.is_file() else None
        except (OSError, ValueError):
            content = None
        if content is None:
            self._missing()
        elif file.suffix == ".html":
            self._page(content, f'<script src="/{self.owner.token}/live.js"></script>')
        else:
            self._send(HTTPStatus.OK, mimetypes.guess_type(file.name)[0] or "application/octet-stream", content)

    def _page(self, content: bytes, script: str) -> None:
        head, _, rest = content.partition(b"</head>")
        for quote in _QUOTES:  # scripts may talk to this server, besides what the page's own policy allows
            alone = b"default-src %bnone%b" % (quote, quote)
            head = head.replace(alone, alone + b"; connect-src %bself%b" % (quote, quote), 1)
        rest = rest.replace(b"this page makes no network request", b"served with its model", 1)
        page = head + b"</head>" + rest.replace(b"</body>", script.encode() + b"</body>", 1)
        self._send(HTTPStatus.OK, _PAGE, page)

    def _json(self, status: HTTPStatus, content: Mapping[str, Any]) -> None:
        self._send(status, "application/json", json_bytes(content, indent=None))

    def _missing(self) -> None:
        self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"not found\n")

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: addresses hold the token."""


@cache
def _asset(name: str) -> str:
    return resources.files("mechstudy.serving").joinpath("assets", name).read_text(encoding="utf-8")
