"""A served report in a real browser: the forms that ask the model, and what is pinned, measured."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import pytest

import mechstudy as ms
from mechstudy.serving import LiveRun, ReportServer
from tests.browser.axe import serious_violations
from tests.browser.report_browser import Browser, chromium
from tests.support.tiny_study import write_study

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="Chromium is not installed"),
]
READY = "html[data-live=ready]"
PIN_THREE = """(() => {
  const nodes = mechstudyGraph.graph().nodes;
  const chosen = [...nodes.type.keys()].filter((i) => nodes.type[i] === 0).slice(0, 3);
  chosen.forEach((i) => mechstudyGraph.pin(i));
  return chosen.map((i) => nodes.id[i]);
})()"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReportServer]:
    folder = tmp_path_factory.mktemp("served")
    run = ms.Study.load(write_study(folder), out=folder / "run", say=lambda _: None).run()
    live = LiveRun(run, ms.load_model(f"path:{folder / 'model'}"), run.dictionaries)
    server = ReportServer(live, folder / "run" / "report")
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.stop()
    thread.join()


def open_page(browser: Browser, served: ReportServer, page: str) -> None:
    browser.page.goto("about:blank")
    browser.errors, browser.requests = [], []
    browser.page.goto(served.address.replace("index.html", page))
    browser.page.wait_for_selector(READY)


def only_asked(browser: Browser, served: ReportServer) -> bool:
    """Whether every request went to the server, below its token."""
    base = served.address.removesuffix("index.html")
    return all(url.startswith((base, "data:", "blob:")) for url in browser.requests)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_prompt_is_continued_and_explained(browser, served, theme):
    page = browser.page
    page.emulate_media(color_scheme=theme)
    open_page(browser, served, "index.html")
    page.click(".live-open")
    assert serious_violations(page) == []
    page.fill("#live-features", "1/3=40")
    page.fill("#live-start", "<b>abc")
    page.click("text=Continue it")
    page.wait_for_selector(".live-texts")
    texts = page.locator(".live-texts p").all_inner_texts()
    options = {"steer": {"1/3": 40.0}, "dictionaries": served.live.dictionaries, "basis": "mixed"}
    steered = ms.generate(served.live.model, "<b>abc", **options)
    assert len(texts) == 2
    assert page.locator(".live-texts b").count() == 0  # what is typed is text
    assert page.locator(".live-texts p").last.evaluate("p => p.textContent") == "<b>abc" + steered
    page.fill("#live-prompt", "abcd")
    assert [page.input_value(f"#live-{name}") for name in ("corrupted", "answer", "wrong")] == ["", "", ""]
    page.fill("#live-answer", "x")
    page.fill("#live-prompt", "abcde")
    assert page.input_value("#live-answer") == "x"  # what was written here stays
    page.click("text=Draw its graph")
    page.wait_for_selector("#live-graph a")
    assert serious_violations(page) == []
    [n_nodes] = re.findall(r"(\d+) nodes", page.locator("#live-graph").inner_text())
    address = page.locator("#live-graph a").evaluate("a => a.href")
    assert browser.errors == []
    assert only_asked(browser, served)
    page.goto(address)
    page.wait_for_selector(READY)
    assert f"of {n_nodes} nodes" in page.locator("#g-count").inner_text()
    assert browser.errors == []


def test_what_is_wrong_is_said_in_the_form(browser, served):
    page = browser.page
    open_page(browser, served, "index.html")
    page.click(".live-open")
    page.click("text=Continue it")
    assert "Nothing is steered" in page.locator("#live-steered .live-error").inner_text()
    page.fill("#live-features", "1/3=much")
    page.click("text=Continue it")
    assert "1/3=much is not of the form" in page.locator("#live-steered .live-error").inner_text()
    page.fill("#live-features", "1/3 = 2, 1/3=4")
    page.click("text=Continue it")
    assert "1/3 is given twice" in page.locator("#live-steered .live-error").inner_text()
    page.fill("#live-features", "1/999=3")
    page.click("text=Continue it")
    page.wait_for_selector("#live-steered .live-error:has-text('0-31')")
    assert page.locator("text=Continue it").is_enabled()


def test_pinned_nodes_are_measured_on_their_prompt(browser, served):
    page = browser.page
    slug, pair_id = next(iter(served.live.run.graphs["mine"].prompt_ids.items()))
    open_page(browser, served, f"graph-mine.html#g={slug}")
    page.click("text=Measure what is pinned")
    assert "No feature and no error node is pinned" in page.locator("#live-measured").inner_text()
    pinned = page.evaluate(PIN_THREE)
    page.click("text=Measure what is pinned")
    page.wait_for_selector("#live-measured table")
    graph = served.live.run.graphs["mine"].prompts[0]
    pair = next(p for p in served.live.run.prompts["mine"] if p.id == pair_id)
    made = ms.subgraph_effects(served.live.model, served.live.dictionaries, graph, pair, pinned)
    shown = page.locator("#live-measured td.n").all_inner_texts()
    expected = [made.clean, made.without, made.only, made.none]
    assert [float(text.replace("\u2212", "-")) for text in shown] == pytest.approx(expected, abs=0.006)
    assert serious_violations(page) == []
    page.click("text=Steer what is pinned")
    assert page.locator("#live-features").input_value().count("=") == len({name.rsplit("_", 1)[0] for name in pinned})
    assert browser.errors == []


def test_the_form_starts_with_the_feature_that_is_shown(browser, served):
    page = browser.page
    feature = served.live.run.feature_pages[0]
    open_page(browser, served, f"features.html#{feature['layer']}/{feature['feature']}")
    page.click(".live-open")
    value = page.locator("#live-features").input_value()
    assert value.startswith(f"{feature['layer']}/{feature['feature']}=")
    assert float(value.split("=")[1]) == pytest.approx(feature["max_activation"] or 1, rel=0.01)


def test_a_phone_shows_the_form(browser, served):
    page = browser.page
    page.set_viewport_size({"width": 390, "height": 800})
    open_page(browser, served, "index.html")
    page.click(".live-open")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator("dialog.live").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.set_viewport_size({"width": 1300, "height": 900})
