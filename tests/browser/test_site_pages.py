"""The documentation site in a real browser, from file://: no error, no request, a search that finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.report_browser import Browser, chromium
from tests.support.site import build_site

pytest.importorskip("material", reason="the site needs mkdocs-material, of the extra `dev`")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="Chromium is not installed"),
]
PAGES = ["index", "reference/api", "reference/study-file", "reference/command-line", "coming-from/saelens",
         "explanation/method", "examples/index", "project/changelog"]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module", params=[1300, 390], ids=["desktop", "phone"])
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    instance = Browser(width=request.param)
    yield instance
    instance.close()


def test_pages_fit_load_without_error_and_fetch_nothing(browser: Browser, site: Path) -> None:
    for name in PAGES:
        browser.open(site / f"{name}.html")
        browser.page.wait_for_timeout(300)
        assert not browser.errors, name
        assert not [url for url in browser.requests if not url.startswith("file:")], name
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), name


def test_the_search_finds_fields_and_functions_from_disk(browser: Browser, site: Path) -> None:
    browser.open(site / "index.html")
    browser.page.keyboard.press("/")
    browser.page.wait_for_function("document.activeElement.matches('.md-search__input')")
    for words, found in (("layers_per_pass", "reference/study-file.html"), ("keep_only", "reference/api.html")):
        browser.page.locator(".md-search__input").fill("")
        browser.page.keyboard.type(words)
        browser.page.locator(f".md-search-result__link[href*='{found}']").first.wait_for(state="attached")
    assert not browser.errors
