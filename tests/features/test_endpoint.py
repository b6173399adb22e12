"""Requests to a chat-completions server: what is sent, what is repeated, and what each failure says."""

from __future__ import annotations

import socket
import warnings

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.core.notices import MechstudyWarning
from mechstudy.features import endpoint
from mechstudy.features.endpoint import ATTEMPTS, Endpoint, one_line
from tests.support.stub_endpoint import stub

KEY = "sk-secret-0123456789"


@pytest.fixture
def waits():
    return []


def ask(server, waits, **options):
    return Endpoint(server.url, "stub", wait=waits.append, **options).ask("what?")


def failure(server, waits, **options):
    with pytest.raises(MechstudyError) as error:
        ask(server, waits, **options)
    return str(error.value)


def test_a_question_is_one_message_and_the_key_a_header(waits):
    with stub(lambda question: f" {question} yes\n") as server:
        assert ask(server, waits, key=KEY, max_tokens=7) == "what? yes"
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies[0] == {
        "model": "stub", "messages": [{"role": "user", "content": "what?"}], "max_tokens": 7, "temperature": 0,
    }  # fmt: skip
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert waits == []


def test_without_a_key_no_header_is_sent(waits):
    with stub() as server:
        ask(server, waits)
    assert "Authorization" not in server.headers[0]


def test_a_busy_server_is_asked_again_after_growing_waits(waits):
    with stub(plan=[500, 503, 429]) as server:
        assert ask(server, waits) == "x"
    assert len(server.bodies) == 4 and waits == [1.0, 2.0, 4.0]


def test_the_wait_is_what_the_server_asks_for_up_to_a_minute(waits):
    with stub(plan=[(429, {}, {"Retry-After": "7"}), (429, {}, {"Retry-After": "9000"})]) as server:
        ask(server, waits)
    assert waits == [7.0, 60.0]


def test_a_server_that_stays_busy_is_given_up(waits):
    with stub(plan=[500] * 9) as server:
        said = failure(server, waits)
    assert len(server.bodies) == ATTEMPTS == len(waits) + 1
    assert f"no answer after {ATTEMPTS} attempts: 500" in said and "labels that are there are kept" in said


def test_a_slow_answer_is_cut_off_and_asked_for_again(waits):
    with stub(plan=[1.0]) as server:
        assert ask(server, waits, timeout=0.2) == "x"
    assert waits == [1.0] and len(server.bodies) == 2


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_named_by_its_variable_and_never_shown(waits, status):
    echo = (status, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, {})
    with stub(plan=[echo]) as server:
        said = failure(server, waits, key=KEY, key_variable="MY_KEY")
    assert "MY_KEY holds a key" in said and "export MY_KEY=" in said and KEY not in said
    assert waits == []


def test_the_key_is_in_no_error_and_no_repr(waits):
    with stub(plan=[(418, {"error": {"message": f"teapot {KEY}"}}, {})]) as server:
        said = failure(server, waits, key=KEY)
    assert "418 teapot <key>" in said and KEY not in said + repr(Endpoint(server.url, "stub", key=KEY))


def test_an_unknown_model_is_named_beside_those_that_there_are(waits):
    with stub(plan=[(404, {"error": {"message": "The model `stub` does not exist."}}, {})], models=("stub2", "b")) as s:
        said = failure(s, waits)
    assert "no model 'stub'" in said and "models: stub2, b" in said and "fix:    --model stub2" in said


@pytest.mark.parametrize(("body", "words"), [
    (b"<html>hello</html>", "the answer is not JSON"),
    ({"object": "list"}, "the answer is not a chat completion"),
    ([1, 2], "the answer is not a chat completion"),
    ({"choices": []}, "the answer is not a chat completion"),
    (b'"hello"', "the answer is not a chat completion"),
    (b"null", "the answer is not a chat completion"),
    ({"choices": [{"message": {"content": ["x"]}}]}, "the answer is not a chat completion"),
])  # fmt: skip
def test_an_answer_of_another_form_is_refused(waits, body, words):
    with stub(plan=[(200, body, {})]) as server:
        said = failure(server, waits)
    assert words in said and "/v1" in said and waits == []


def test_an_answer_without_text_is_empty(waits):
    with stub(lambda _: None) as server:
        assert ask(server, waits) == ""


def test_control_characters_of_a_server_do_not_reach_the_terminal(waits):
    with stub(plan=[(200, b"\x1b[2Jgone\x07", {})]) as server:
        said = failure(server, waits)
    assert "\x1b" not in said and "\x07" not in said and "gone" in said


@pytest.mark.parametrize("status", [301, 302, 303, 307])
def test_a_redirect_is_refused_and_the_key_goes_nowhere_else(waits, status):
    with stub() as other, stub(plan=[(status, {}, {"Location": other.url})]) as server:
        said = failure(server, waits, key=KEY)
    assert "redirects to http://127.0.0.1" in said and other.bodies == other.gets == []


def test_a_server_that_is_not_there_is_not_asked_again(waits):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(MechstudyError, match="cannot be reached"):
        Endpoint(url, "stub", wait=waits.append).ask("what?")
    assert waits == []


def test_this_machine_is_reached_without_the_proxy(waits, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    with stub() as server:
        assert ask(server, waits) == "x"


@pytest.mark.parametrize(("message", "field"), [
    ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_completion_tokens"),
    ("Unsupported value: 'temperature' does not support 0.", "max_tokens"),
])  # fmt: skip
def test_a_request_takes_the_form_that_a_newer_model_asks_for(waits, message, field):
    with stub(plan=[(400, {"error": {"message": message}}, {})]) as server:
        assert ask(server, waits) == "x"
    assert field in server.bodies[1] and ("temperature" in server.bodies[1]) == ("temperature" not in message)


@pytest.mark.parametrize("text", ["<think>\nhm\n</think>\n\nplurals", "hm</think>plurals", "plurals<think>hm"])
def test_thoughts_are_no_part_of_an_answer(waits, text):
    with stub(lambda _: text) as server:
        assert ask(server, waits) == "plurals"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "file:///etc/passwd", "http://", "http://a b/v1", "http://a:99999"])
def test_what_is_no_address_is_refused_before_anything_is_sent(url):
    with pytest.raises(MechstudyError, match="not an address"):
        Endpoint(url, "stub")


@pytest.mark.parametrize("url", ["http://me:pw@127.0.0.1/v1", "https://a.b/v1?key=x", "https://a.b/v1#x"])
def test_an_address_with_secrets_is_refused_without_repeating_them(url):
    with pytest.raises(MechstudyError, match="a user, a password, a query") as error:
        Endpoint(url, "stub")
    assert "pw" not in str(error.value).replace("password", "") and "key=x" not in str(error.value)


def test_the_whole_address_of_the_api_is_taken_too():
    assert Endpoint("http://127.0.0.1/v1/chat/completions", "stub").url == "http://127.0.0.1/v1"


def test_the_key_comes_from_the_variable_that_is_named(monkeypatch):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    monkeypatch.setenv(endpoint.KEY_VARIABLE, "other")
    assert Endpoint.with_key_of("MY_KEY", "https://a.b/v1", "m").key == KEY
    assert Endpoint.with_key_of(None, "https://a.b/v1", "m").key == "other"
    monkeypatch.delenv(endpoint.KEY_VARIABLE)
    assert Endpoint.with_key_of(None, "https://a.b/v1", "m").key is None
    with pytest.raises(MechstudyError, match="NO_KEY is not set"):
        Endpoint.with_key_of("NO_KEY", "https://a.b/v1", "m")
    monkeypatch.setenv("MY_KEY", f"{KEY} {KEY}")
    with pytest.raises(MechstudyError) as error:
        Endpoint.with_key_of("MY_KEY", "https://a.b/v1", "m")
    assert KEY not in str(error.value)


def test_a_key_that_would_go_unencrypted_to_another_machine_is_a_warning():
    with pytest.warns(MechstudyWarning, match="unencrypted"):
        Endpoint("http://example.org/v1", "m", key=KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Endpoint("http://example.org/v1", "m")
        Endpoint("http://localhost:1/v1", "m", key=KEY)
        Endpoint("https://example.org/v1", "m", key=KEY)


def test_one_line_keeps_what_can_be_seen():
    assert one_line("a\n b\t\u200bc\x1b[1m \ud800d", 99) == "a b c[1m d"
    assert one_line("abcdef", 4) == "abc…"
