"""Accessibility of a page by axe-core."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from tests.browser.report_browser import Browser


@cache
def _script() -> str:
    return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")


def serious_violations(browser: Browser) -> list[str]:
    """What axe-core calls serious or critical on the open page, with the first element of each."""
    browser.evaluate(_script())
    found: dict[str, Any] = browser.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{v['id']}, {len(v['nodes'])} elements: {v['nodes'][0]['html'][:200]}"
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]
