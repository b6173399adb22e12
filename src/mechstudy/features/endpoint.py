"""A chat-completions endpoint in OpenAI's form: one question, one answer, with time limits and repeated requests."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.notices import warn

KEY_VARIABLE = "OPENAI_API_KEY"
ATTEMPTS = 5  # of a request that a busy or failing server gets
LONGEST_WAIT = 60.0  # seconds between two of them, whatever the server asks for
_MOST_BYTES = 4 << 20  # of an answer
_PATH = "/chat/completions"
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)


@dataclass
class Endpoint:
    """A model behind an address, such as that of llama.cpp, vLLM, Ollama or a paid service.

    Nothing is sent before `ask`. Redirects are refused, since they would carry the key elsewhere; addresses of this
    machine are reached without a proxy. The key appears in no error and no ``repr``.

    Args:
        url: up to and without ``/chat/completions``: ``http://127.0.0.1:8000/v1``.
        model: its name there.
        key: for the header ``Authorization: Bearer``; none is sent without.
        key_variable: the environment variable that it came from, for errors.
        timeout: seconds that a request may stay without a byte.
        max_tokens: of an answer, with the tokens that reasoning models think in.
        wait: sleeps for some seconds between two attempts.

    Raises:
        MechstudyError: the address is none, or holds a password or a query.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    key_variable: str = KEY_VARIABLE
    timeout: float = 60.0
    max_tokens: int = 1024
    wait: Callable[[float], None] = field(default=time.sleep, repr=False)
    _limit: str = field(default="max_tokens", init=False, repr=False)
    _temperature: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        self.url = _checked(self.url)
        parts = urllib.parse.urlsplit(self.url)
        self.host = parts.netloc
        local = _is_local(parts.hostname or "")
        if self.key and parts.scheme == "http" and not local:
            warn(f"the key in {self.key_variable} goes to {self.host} unencrypted: https would protect it")
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if local:
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    @classmethod
    def with_key_of(
        cls, variable: str | None, url: str, model: str, *, timeout: float = 60.0, max_tokens: int = 1024
    ) -> Endpoint:
        """An endpoint whose key is in an environment variable: in `KEY_VARIABLE`, if it is set, without a name.

        Raises:
            MechstudyError: the variable that is named is not set, or what it holds cannot be a key.
        """
        name = variable or KEY_VARIABLE
        key = os.environ.get(name, "").strip()
        if variable and not key:
            raise MechstudyError(f"the environment variable {name} is not set", fix=f"export {name}=<the key>")
        if not re.fullmatch(r"[!-~]*", key):
            raise MechstudyError(
                f"the environment variable {name} holds spaces or characters that no key has", fix="the key alone"
            )
        return cls(url, model, key or None, name, timeout=timeout, max_tokens=max_tokens)

    def ask(self, question: str) -> str:
        """The answer to a question, at temperature 0, without what a reasoning model thought; it may be empty.

        Requests that time out or break, and those answered by 429 or 5xx, are sent up to `ATTEMPTS` times, after 1, 2,
        4 ... seconds or what the server asks for.

        Raises:
            MechstudyError: the endpoint cannot be reached, refuses the key, does not know the model, stays busy, or
                answers something else than a chat completion.
        """
        answer = self._repeated(question)
        try:
            content = answer["choices"][0]["message"]["content"] or ""
            return str(content.rpartition("</think>")[2].partition("<think>")[0].strip())
        except (KeyError, IndexError, TypeError, AttributeError):
            raise MechstudyError(
                "the answer is not a chat completion", where=self.url,
                facts={"answer": self._shown(json.dumps(answer))},
                fix="an address of the chat-completions API: most end with /v1",
            ) from None  # fmt: skip

    def _repeated(self, question: str) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                return self._once(question)
            except _Busy as busy:
                if attempt == ATTEMPTS - 1:
                    raise MechstudyError(
                        f"no answer after {ATTEMPTS} attempts: {busy}", where=self.url,
                        fix="run the same command again later: labels that are there are kept; or a longer timeout",
                    ) from None  # fmt: skip
                self.wait(min(LONGEST_WAIT, busy.seconds if busy.seconds is not None else 2.0**attempt))
        raise AssertionError("unreachable")

    def _once(self, question: str) -> Any:
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": question}]}
        body |= {self._limit: self.max_tokens} | ({"temperature": 0} if self._temperature else {})
        try:
            text = self._sent(_PATH, body)
        except urllib.error.HTTPError as error:
            if error.code == 400 and self._adapts(message := _message(error)):
                return self._once(question)
            raise self._refused(error, message if error.code == 400 else _message(error)) from None
        try:
            return json.loads(text)
        except ValueError:
            raise MechstudyError(
                "the answer is not JSON", where=self.url, facts={"answer": self._shown(text)},
                fix="an address of the chat-completions API: most end with /v1",
            ) from None  # fmt: skip

    def _sent(self, path: str, body: Mapping[str, Any] | None = None) -> str:
        """The body of a response with status 200; an HTTPError with another, which is kept for the caller."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "mechstudy"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return str(response.read(_MOST_BYTES).decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            if error.code in _BUSY:
                raise _Busy(f"{error.code} {error.reason}", _seconds(error.headers.get("Retry-After"))) from None
            raise
        except (TimeoutError, ConnectionError, http.client.HTTPException, urllib.error.URLError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                raise _Busy(f"nothing came for {self.timeout:g} s") from None
            if not isinstance(error, urllib.error.URLError):
                raise _Busy(f"the connection broke ({type(error).__name__})") from None
            raise MechstudyError(
                "the endpoint cannot be reached", where=self.url, facts={"reason": self._shown(str(reason))},
                fix="start the server, or check the address and the port",
            ) from None  # fmt: skip

    def _adapts(self, message: str) -> bool:
        """Whether another form of the request may be accepted: newer models take two parameters differently."""
        if self._limit == "max_tokens" and "max_completion_tokens" in message:
            self._limit = "max_completion_tokens"
            return True
        if self._temperature and "temperature" in message:
            self._temperature = False
            return True
        return False

    def _refused(self, error: urllib.error.HTTPError, message: str) -> MechstudyError:
        if error.code in (401, 403):
            state = "holds a key" if self.key else "is not set"
            return MechstudyError(
                f"the endpoint refuses the key ({error.code})", where=self.url,
                facts={"variable": f"{self.key_variable} {state}"},
                fix=f"export {self.key_variable}=<the key>, or --key-variable with the name of another variable",
            )  # fmt: skip
        facts = {"answer": f"{error.code} {self._shown(message) or error.reason}"}
        if error.code in (400, 404) and "model" in message.lower():
            names = self._models()
            close = nearest(self.model, names)
            return MechstudyError(
                f"the endpoint has no model {self.model!r}, or cannot use it", where=self.url,
                facts=facts | ({"models": ", ".join(names[:10])} if names else {}),
                fix=f"--model {close}" if close else "--model with a name that the server knows",
            )  # fmt: skip
        if 300 <= error.code < 400:
            target = self._shown(str(error.headers.get("Location")))
            return MechstudyError(
                f"the endpoint redirects to {target}, and the key is not sent there", where=self.url,
                fix="the address itself, if you trust it",
            )  # fmt: skip
        fix = "most addresses end with /v1" if error.code == 404 else "see the server's log"
        return MechstudyError("the endpoint refuses the request", where=self.url, facts=facts, fix=fix)

    def _models(self) -> list[str]:
        """Names of the models that the endpoint lists; none where it lists none."""
        try:
            listed = json.loads(self._sent("/models"))["data"]
            return [self._shown(str(one["id"])) for one in listed]
        except (MechstudyError, _Busy, urllib.error.HTTPError, ValueError, KeyError, TypeError):
            return []

    def _shown(self, text: str, longest: int = 200) -> str:
        """Another program's text in one line, without the key and without control characters."""
        return one_line(text.replace(self.key, "<key>") if self.key else text, longest)


def one_line(text: str, longest: int) -> str:
    """Text in one line of limited length, without control characters, invisible ones and unpaired surrogates."""
    kept = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    line = " ".join(kept.split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


class _Busy(Exception):
    """A request that may succeed later; ``seconds`` is when, if the server says."""

    def __init__(self, why: str, seconds: float | None = None) -> None:
        super().__init__(why)
        self.seconds = seconds


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None, so that the response of the redirect is an error."""


def _checked(url: str) -> str:
    fix = "--endpoint http://127.0.0.1:8000/v1"
    try:
        parts = urllib.parse.urlsplit(url.strip())
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, has_host = urllib.parse.urlsplit(""), False
    if parts.scheme not in ("http", "https") or not has_host or not re.fullmatch(r"[!-~]+", url.strip()):
        raise MechstudyError("this is not an address of the form http://HOST/v1", where="endpoint", fix=fix)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise MechstudyError(
            "the address holds a user, a password, a query or a fragment", where="endpoint",
            fix=f"the address alone, the key in an environment variable such as {KEY_VARIABLE}",
        )  # fmt: skip
    return url.strip().rstrip("/").removesuffix(_PATH)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _message(error: urllib.error.HTTPError) -> str:
    """What the body of an error says, whatever its form."""
    try:
        text = error.read(_MOST_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        content = json.loads(text)
        inner = content.get("error", content)
        return str(inner.get("message", text) if isinstance(inner, dict) else inner)
    except (ValueError, AttributeError):
        return text


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.strip().isdecimal() else None
