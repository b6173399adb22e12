"""Pages of one file in a real browser, from file://: they draw themselves, without an error and without a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import polars as pl
import pytest

import mechstudy as ms
from tests.browser.axe import serious_violations
from tests.browser.report_browser import Browser, chromium
from tests.support.tiny import tiny_model
from tests.support.toy_model import mechstudy

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="Chromium is not installed"),
]
EDITED = "mechstudyGraph.edits().qParams(mechstudyGraph.pins, -1)"
CLEAN, CORRUPTED = "<img src=x> keys", "<img src=x> dogs"


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


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[ms.PromptGraph, Path]:
    """A graph of a tiny model's neurons, and its page."""
    graph = ms.attribute(tiny_model("llama", dtype="float32"), None, "a b c d e", answer="x", wrong_answer="y")
    return graph, graph.save(tmp_path_factory.mktemp("drawn") / "graph.html")


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


def pin_features(browser: Browser, n: int) -> None:
    """Pins the first features, as pressing P on each does."""
    browser.evaluate(
        "(() => { const g = mechstudyGraph.graph(); g.nodes.type.map((t, i) => [t, i]).filter(([t]) => t === 0)"
        f".slice(0, {n}).forEach(([, i]) => mechstudyGraph.pin(i)); }})()"
    )


def test_scores_of_pinned_nodes_are_pythons(browser: Browser, drawn: tuple[ms.PromptGraph, Path]) -> None:
    graph, page = drawn
    browser.open(page)
    for n in (1, 4, 20):
        browser.evaluate("mechstudyGraph.pins.clear()")
        pin_features(browser, n)
        pinned = browser.evaluate(EDITED)["pinnedIds"]
        shown = browser.evaluate("mechstudy.pinnedScores(mechstudyGraph.graph(), mechstudyGraph.pins)")
        assert len(pinned) == n and shown == pytest.approx(graph.kept_scores(pinned), abs=1e-6)
        assert f"{shown['replacement']:.3f}" in browser.evaluate(
            "document.getElementById('g-pinned-scores').textContent"
        )


def test_nodes_are_pinned_grouped_and_named_and_a_file_keeps_it(
    browser: Browser, drawn: tuple[ms.PromptGraph, Path], tmp_path: Path
) -> None:
    graph, page = drawn
    browser.open(page)
    browser.evaluate("localStorage.clear()")
    browser.open(page)
    pin_features(browser, 3)
    browser.page.get_by_role("button", name="Group the 3 free features").click()
    name = browser.page.get_by_label("Name of group Group 1")
    name.fill("all <b>three</b>")
    name.press("Enter")
    browser.evaluate("mechstudyGraph.select([...mechstudyGraph.pins][0])")
    browser.page.get_by_role("button", name="Edit label").click()
    browser.page.get_by_label("Label", exact=True).fill("my <i>label</i>")
    browser.page.get_by_label("Label", exact=True).press("Enter")
    assert browser.evaluate("document.querySelectorAll('.sg-node').length") == 1
    assert "all <b>three</b>" in browser.evaluate("document.querySelector('.sg-picture').textContent")
    assert "my <i>label</i>" in browser.evaluate("document.getElementById('g-detail').textContent")
    made = browser.evaluate(EDITED)
    assert [row[0] for row in made["supernodes"]] == ["all <b>three</b>"] and len(made["clerps"]) == 1
    with browser.page.expect_download() as saved:
        browser.page.get_by_role("button", name="Save edits").click()
    file = tmp_path / "edits.json"
    saved.value.save_as(file)
    assert serious_violations(browser) == [] and browser.errors == []

    browser.open(page)
    assert browser.evaluate(EDITED) == made, "the browser keeps them"
    browser.page.get_by_role("button", name="Clear all").click()
    assert browser.evaluate(EDITED)["pinnedIds"] == []
    browser.page.locator("#g-sub input[type=file]").set_input_files(file)
    browser.wait("mechstudyGraph.pins.size === 3")
    assert browser.evaluate(EDITED) == made, "and a file"
    empty = json.dumps({"nodes": [], "qParams": {"pinnedIds": [], "supernodes": []}})  # as graph files have it
    for text in ("{}", "[1]", empty, '{"name": "package"}', '{"qParams": {"supernodes": [3]}}', "null", "{"):
        wrong = {"name": "wrong.json", "mimeType": "application/json", "buffer": text.encode()}
        browser.page.locator("#g-sub input[type=file]").set_input_files(wrong)  # type: ignore[arg-type]
        browser.wait("document.getElementById('g-sub').textContent.includes('wrong.json is no file of edits')")
        assert browser.evaluate(EDITED) == made, "what is no file of edits changes nothing"
    browser.page.get_by_role("button", name="Ungroup").click()
    assert browser.evaluate("document.querySelectorAll('.sg-node').length") == 3
    browser.evaluate("localStorage.clear()")

    again = graph.edited(file).save(tmp_path / "again.html")
    browser.open(again)
    assert {**browser.evaluate(EDITED), "clickedId": ""} == made, "and Python, without loss"


def test_all_that_a_search_finds_is_pinned(browser: Browser, drawn: tuple[ms.PromptGraph, Path]) -> None:
    _, page = drawn
    browser.open(page)
    browser.evaluate("(() => { localStorage.clear(); mechstudyGraph.pins.clear(); })()")
    layer = browser.evaluate(
        "mechstudyGraph.graph().nodes.layer.find((l, i) => mechstudyGraph.graph().nodes.type[i] === 0)"
    )
    browser.page.locator("#g-search").fill(f"{layer}/")
    browser.page.get_by_role("button", name="Pin found").click()
    layers = browser.evaluate("[...mechstudyGraph.pins].map((i) => mechstudyGraph.graph().nodes.layer[i])")
    assert layers and set(layers) == {layer}
    browser.page.get_by_role("button", name="Group them by token").click()
    groups = browser.evaluate(
        "mechstudyGraph.edits().groups.map((g) => g.members.map((i) => mechstudyGraph.graph().nodes.column[i]))"
    )
    assert groups and all(len(set(columns)) == 1 for columns in groups)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_two_graphs_are_one_picture_with_what_each_has_alone(
    browser: Browser, tmp_path: Path, theme: Literal["light", "dark"]
) -> None:
    model = tiny_model("llama", dtype="float32")
    a, b = (ms.attribute(model, None, text, answer="x", wrong_answer="y") for text in ("a b c", "a <b>"))
    compared = ms.compare(a, b, positions="end")
    page = compared.save(tmp_path / "compared.html")
    browser.page.emulate_media(color_scheme=theme)
    browser.open(page)
    assert_clean(browser, page)
    assert browser.evaluate("document.querySelectorAll('h1 b').length") == 0
    shown = "(() => mechstudyGraph.visible.reduce((n, v) => n + v, 0))()"
    assert browser.evaluate(shown) == len(compared.nodes)
    always = len(compared.nodes.filter(kind="token")) + len(compared.nodes.filter(kind="output"))
    for choice, changes in {"gained": ["gained"], "lost": ["lost"], "both": ["same", "changed"]}.items():
        browser.page.select_option("#g-change", choice)
        inner = compared.nodes.filter(~pl.col("kind").is_in(["token", "output"]), pl.col("change").is_in(changes))
        assert browser.evaluate(shown) == len(inner) + always, choice
    gained = compared.nodes.filter(kind="feature", change="gained")["node"][0]
    browser.evaluate(f"mechstudyGraph.select(mechstudyGraph.graph().index.get({gained!r}))")
    detail = browser.page.inner_text("#g-detail")
    assert "only in the second graph" in detail
    assert "none →" in detail
    assert serious_violations(browser) == []
