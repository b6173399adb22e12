"""Chromium with one page, driven by Playwright: opens files and collects the console, requests and dialogs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import ConsoleMessage, Dialog, sync_playwright

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
]  # fmt: skip
TIMEOUT = 40_000  # milliseconds


def chromium() -> str | None:
    """Where Chromium is, if anywhere."""
    return next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)


class Browser:
    """One page. ``errors`` and ``requests`` collect since the last ``open``; ``dialogs`` since the start."""

    def __init__(self, width: int = 1440, height: int = 900):
        self.playwright = sync_playwright().start()
        self.browser = self.playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        self.page = self.browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(TIMEOUT)
        self.devtools = self.page.context.new_cdp_session(self.page)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", self._dialog)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "assert", "warning"):
            self.errors.append(message.text)

    def _dialog(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.accept()

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file and wait until its scripts have settled."""
        self.page.goto("about:blank")
        self.errors, self.requests = [], []
        self.page.goto(path.resolve().as_uri() + fragment)
        self.wait("[...document.querySelectorAll('.chart[data-chart]')].every((c) => c.dataset.drawn)")
        self.wait("!document.getElementById('viewer') || document.getElementById('viewer').dataset.ready")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression (a promise is awaited)."""
        return self.page.evaluate(expression)

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        for _ in range(TIMEOUT // 50):
            if self.evaluate(f"Boolean({expression})"):
                return
            self.page.wait_for_timeout(50)
        raise TimeoutError(f"never true: {expression}; console: {self.errors}")

    def size(self, width: int, height: int, mobile: bool = False) -> None:
        """Resize the window; ``mobile`` lays pages out as a phone does."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.devtools.send("Emulation.setDeviceMetricsOverride", metrics)

    def close(self) -> None:
        """Ends the browser."""
        self.browser.close()
        self.playwright.stop()
