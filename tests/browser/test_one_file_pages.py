"""Pages of one file in a real browser, from file://: they draw themselves, without an error and without a request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import mechstudy as ms
from tests.browser.axe import serious_violations
from tests.browser.report_browser import Browser, chromium
from tests.support.toy_model import mechstudy

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="Chromium is not installed"),
]
CLEAN, CORRUPTED = "<img src=x> keys", "<img src=x> dogs"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    instance = Browser(1300)
    yield instance
    instance.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of both commands, of a tiny model."""
    from tests.support.tiny import save_tiny

    folder = tmp_path_factory.mktemp("pages")
    save_tiny(folder / "model")
    words = ("--model", f"path:{folder / 'model'}", "--corrupted", CORRUPTED, "--answer", "x", "--wrong-answer", "y")
    made = {command: folder / f"{command}.html" for command in ("graph", "patch")}
    for command, page in made.items():
        mechstudy(command, CLEAN, *words, "--out", page)
    return made


def assert_clean(browser: Browser, page: Path) -> None:
    """No error, no request but for the page itself, no foreign element."""
    assert browser.errors == [], page.name
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.resolve().as_uri()]
    assert browser.evaluate("document.querySelectorAll('img').length") == 0


@pytest.mark.parametrize("command", ["graph", "patch"])
@pytest.mark.parametrize("width", [1300, 390])
def test_a_page_loads_and_fits(browser: Browser, pages: dict[str, Path], command: str, width: int) -> None:
    browser.size(width, 844, mobile=width < 500)
    try:
        browser.open(pages[command])
        assert_clean(browser, pages[command])
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        browser.size(1300, 900)


@pytest.mark.parametrize("command", ["graph", "patch"])
def test_a_page_is_accessible(browser: Browser, pages: dict[str, Path], command: str) -> None:
    for theme in ("dark", "light"):
        browser.page.emulate_media(color_scheme=theme)
        browser.open(pages[command])
        assert serious_violations(browser) == []


def test_the_graph_is_drawn_and_a_node_shows_what_it_promotes(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["graph"])
    assert browser.evaluate("mechstudyGraph.nodeCount") > 10
    feature = browser.evaluate("mechstudyGraph.graph().nodes.type.indexOf(0)")
    browser.evaluate(f"mechstudyGraph.select({feature})")
    browser.wait("document.querySelectorAll('#g-detail .logits li').length > 0")
    assert "No text was searched" in browser.evaluate("document.getElementById('g-detail').textContent")
    assert browser.errors == []


def test_the_heat_map_has_a_cell_for_each_layer_and_token_that_matters(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["patch"])
    n_tokens = browser.evaluate("document.querySelectorAll('details thead th').length - 1")
    assert browser.evaluate("document.querySelectorAll('.chart svg .mark-rect.role-mark path').length") == 3 * n_tokens


def test_a_graph_saved_from_python_draws_itself(browser: Browser, tmp_path: Path, world: object) -> None:
    graph = ms.attribute(world.model, world.dicts, CLEAN, answer="x", wrong_answer="y")  # type: ignore[attr-defined]
    page = graph.save(tmp_path / "graph.html")
    browser.open(page)
    assert_clean(browser, page)
    assert browser.evaluate("mechstudyGraph.nodeCount") > 3


@pytest.mark.real
def test_the_readmes_graph_of_the_real_model_opens_without_error_or_request(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "keys.html"
    mechstudy("graph", "The keys to the cabinet", "--answer", " are", "--wrong-answer", " is", "--out", page)
    browser.open(page)
    assert_clean(browser, page)
    assert browser.evaluate("mechstudyGraph.nodeCount") > 50
