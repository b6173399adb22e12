"""The server of a report: who may ask, what is given, and what pages are told when something fails."""

from __future__ import annotations

import json
import threading
from html import unescape
from http.client import HTTPConnection
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from markupsafe import escape

from mechstudy.core.errors import MechstudyError
from mechstudy.report.site import CSP
from mechstudy.report.standalone import CSP as ALONE
from mechstudy.serving.server import MAX_BODY, ReportServer

PAGE = '<head><meta content="{}"></head><body>{}</body>'


def refused(asked):
    raise MechstudyError("layer 99 does not exist", facts={"layers": "0-2"}, fix="layer 2")


def broken(asked):
    raise RuntimeError("secret detail of /somewhere. And more.")


def running(server):
    """The thread that serves; it answers when this returns, for the socket listens already."""
    thread = threading.Thread(target=server.run)
    thread.start()
    return thread


@pytest.fixture
def served(tmp_path):
    """A server of a report of two files, beside which lies a study file; what it answers, by `ask`."""
    report = tmp_path / "report"
    (report / "data").mkdir(parents=True)
    (report / "index.html").write_text(PAGE.format(escape(CSP), "report"))
    (report / "data" / "one.js").write_text("put(1)")
    (report / "outside.js").symlink_to(tmp_path / "study.yaml")
    (tmp_path / "study.yaml").write_text("secret")
    pages = {"prompt-1": PAGE.format(ALONE, "made")}
    actions = {"echo": dict, "refused": refused, "broken": broken}
    server = ReportServer(SimpleNamespace(actions=actions, page=pages.get, about=lambda: {"model": "tiny"}), report)
    thread = running(server)
    address = urlsplit(server.address)

    def ask(path, body=None, method=None, **headers):
        connection = HTTPConnection(address.netloc, timeout=10)
        sent = None if body is None else json.dumps(body) if isinstance(body, dict) else body
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method or ("GET" if body is None else "POST"), path, sent, kind | headers)
        answer = connection.getresponse()
        content = answer.read().decode()
        connection.close()
        return SimpleNamespace(status=answer.status, text=content, headers=answer.headers)

    yield SimpleNamespace(ask=ask, at=f"/{server.token}/", netloc=address.netloc, server=server)
    server.stop()
    thread.join()


def test_it_listens_on_the_loopback_interface_and_has_a_new_address_each_time(served, tmp_path):
    assert served.server.address == f"http://127.0.0.1:{served.netloc.split(':')[1]}{served.at}index.html"
    other = ReportServer(served.server.live, tmp_path / "report")
    thread = running(other)
    assert len(other.token) >= 22
    assert other.token != served.server.token
    other.stop()
    thread.join()


def test_pages_may_talk_to_the_server_and_get_its_script(served):
    page = served.ask(served.at)
    assert page.status == 200
    assert CSP.replace("default-src 'none'", "default-src 'none'; connect-src 'self'") in unescape(page.text)
    assert page.text.endswith(f'report<script src="{served.at}live.js"></script></body>')
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    made = served.ask(f"{served.at}live/prompt-1.html").text
    assert "connect-src 'self'" in made
    assert "Ask the model" in made  # its policy allows no script but those inside
    assert served.ask(f"{served.at}data/one.js").text == "put(1)"
    assert served.ask(f"{served.at}live/about").text == '{"model": "tiny"}\n'
    head = served.ask(f"{served.at}data/one.js", method="HEAD")
    assert (head.text, head.headers["Content-Length"]) == ("", "6")


@pytest.mark.parametrize(
    "path",
    [
        "/", "/index.html", "/wrong/index.html", "/{token}x/index.html", "/%C3%A9/index.html", "/{token}/../study.yaml",
        "/{token}/%2e%2e/study.yaml", "/{token}//etc/passwd", "/{token}/data", "/{token}/outside.js",
        "/{token}/none.html", "/{token}/%00", "/{token}/live/prompt-2.html", "/{token}/..%2fstudy.yaml",
    ],
)  # fmt: skip
def test_nothing_else_is_given(served, path):
    answer = served.ask(path.format(token=served.server.token))
    assert answer.status == 404
    assert "secret" not in answer.text
    assert "report" not in answer.text


def test_another_host_or_another_page_gets_nothing(served):
    """A name that is made to lead here, a form, and a script of another site."""
    assert served.ask(served.at, Host="evil.example").status == 404
    assert served.ask(served.at, Host=f"localhost:{served.netloc.split(':')[1]}").status == 200
    echo = f"{served.at}live/echo"
    assert json.loads(served.ask(echo, {"a": 1}).text) == {"a": 1}
    assert served.ask(echo, {"a": 1}, Origin=f"http://{served.netloc}").status == 200
    assert served.ask(echo, {"a": 1}, Origin="https://evil.example").status == 404
    assert served.ask(echo, {"a": 1}, **{"Content-Type": "text/plain"}).status == 404
    assert served.ask(f"{served.at}live/none", {"a": 1}).status == 404
    assert served.ask("/wrong/live/echo", {"a": 1}).status == 404


@pytest.mark.parametrize("body", ["[1]", "{", "\udcff".encode("utf-8", "surrogateescape"), b""])
def test_what_is_no_object_is_refused(served, body):
    answer = served.ask(f"{served.at}live/echo", body)
    assert answer.status == 422
    assert json.loads(answer.text)["error"] == "the request is no JSON object"


def test_a_request_that_is_too_long_is_refused_unread(served):
    answer = served.ask(f"{served.at}live/echo", b"{}", **{"Content-Length": str(MAX_BODY + 1)})
    assert answer.status == 422
    assert "at most 1,000,000 bytes" in answer.text


def test_errors_say_what_and_how_to_go_on_and_hide_the_rest(served, capfd):
    wrong = served.ask(f"{served.at}live/refused", {})
    assert wrong.status == 422
    expected = {"error": "layer 99 does not exist", "facts": {"layers": "0-2"}, "fix": "layer 2"}
    assert json.loads(wrong.text) == expected
    failed = served.ask(f"{served.at}live/broken", {})
    assert failed.status == 500
    assert "Traceback" not in failed.text
    assert "And more" not in failed.text
    assert "RuntimeError" in capfd.readouterr().err  # the terminal has all of it
    assert served.ask(served.at).status == 200


def test_the_model_does_one_thing_at_a_time(served):
    running, most = [], []

    def slow(asked):
        running.append(1)
        most.append(len(running))
        threading.Event().wait(0.05)
        running.pop()
        return {}

    served.server.live.actions["slow"] = slow
    threads = [threading.Thread(target=served.ask, args=(f"{served.at}live/slow", {})) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_a_folder_without_a_report_and_a_port_in_use_are_named(served, tmp_path):
    with pytest.raises(MechstudyError, match="there is no report"):
        ReportServer(served.server.live, tmp_path / "none")
    port = int(served.netloc.split(":")[1])
    with pytest.raises(MechstudyError, match=f"port {port} cannot be used"):
        ReportServer(served.server.live, tmp_path / "report", port)
