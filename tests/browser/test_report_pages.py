"""The report in a real browser, from file://: no error, no request, no foreign script, and a graph one can use."""

# ruff: noqa: RUF001 - the typography of the pages is under test

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from mechstudy.report.pages import build_report
from tests.browser.axe import serious_violations
from tests.browser.report_browser import Browser, chromium
from tests.support.report_fixture import BEHAVIOURS, FakeStudy

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="Chromium is not installed"),
]
BIG = f"#g={BEHAVIOURS[0]}-0"
GRAPH = f"graph-{BEHAVIOURS[0]}.html"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fake = FakeStudy(tmp_path_factory.mktemp("study"), prompts=2)
    out = tmp_path_factory.mktemp("report")
    build_report(fake.data, out)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    instance = Browser()
    yield instance
    instance.close()


def select(browser: Browser, node: str) -> None:
    """Click a node on the canvas, where it is drawn."""
    x, y = browser.evaluate(
        "(() => { const c = document.getElementById('g-over'); c.scrollIntoView({block: 'center'});"
        f"const r = c.getBoundingClientRect(), p = mechstudyGraph.place('{node}');"
        "return [r.left + p[0], r.top + p[1]]; })()"
    )
    browser.page.mouse.click(x, y)


def enter(browser: Browser, control: str, value: str) -> None:
    """Set a control's value as typing would."""
    browser.page.locator(f"#{control}").fill(value)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_loads_without_error_request_or_foreign_script(
    browser: Browser, report: Path, theme: Literal["light", "dark"]
) -> None:
    browser.page.emulate_media(color_scheme=theme)
    for page in sorted(report.glob("*.html")):
        browser.open(page)
        assert browser.errors == [], page.name
        assert [u for u in browser.requests if not u.startswith(("file:", "data:"))] == [], page.name
        assert browser.evaluate("document.querySelectorAll('img[src=x]').length") == 0
        assert browser.evaluate("[...document.querySelectorAll('.chart')].every((c) => c.querySelector('svg'))")
    assert browser.dialogs == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_is_accessible(browser: Browser, report: Path, theme: Literal["light", "dark"]) -> None:
    browser.page.emulate_media(color_scheme=theme)
    found = {}
    for page in sorted(report.glob("*.html")):
        browser.open(page)
        found[page.name] = serious_violations(browser)
    browser.page.emulate_media(color_scheme="light")
    assert {name: violations for name, violations in found.items() if violations} == {}
    assert len(found) > 8


def test_axe_finds_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<html lang="en"><title>a</title><p style="color: #ccc; background: #fff">pale</p></html>')
    browser.open(page)
    assert [violation.split(",")[0] for violation in serious_violations(browser)] == ["color-contrast"]


def test_pages_and_their_charts_are_set_in_the_reports_own_font(browser: Browser, report: Path) -> None:
    browser.open(report / f"interventions-{BEHAVIOURS[0]}.html")
    assert browser.evaluate("[...document.fonts].map((f) => f.family + ' ' + f.status).join()").count("loaded") == 2
    text = "document.querySelector('.chart svg text')"
    assert browser.evaluate(f"getComputedStyle({text}).fontFamily").startswith('"Mechstudy Sans"')
    assert browser.evaluate("getComputedStyle(document.body).fontFamily").startswith('"Mechstudy Sans"')


def test_no_page_scrolls_sideways_on_a_phone(browser: Browser, report: Path) -> None:
    browser.size(390, 844, mobile=True)
    try:
        for page in sorted(report.glob("*.html")):
            browser.open(page)
            assert browser.evaluate("document.documentElement.scrollWidth") <= 390, page.name
    finally:
        browser.size(1440, 900)


def test_the_graph_shows_all_nodes_and_at_most_k_edges_into_each(browser: Browser, report: Path) -> None:
    browser.open(report / GRAPH, BIG)
    assert browser.evaluate("mechstudyGraph.visible.length") == 2073
    enter(browser, "g-influence", "100")
    assert browser.evaluate("mechstudyGraph.nodeCount") == 2073
    assert 2000 < browser.evaluate("mechstudyGraph.shownEdges.length") <= 3 * 2073
    inked = (
        "(() => { const c = document.getElementById('g-base');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let n = 0; for (let i = 3; i < d.length; i += 4) if (d[i] > 40) n++; return n; })()"
    )
    browser.wait(f"{inked} > 10000")


def test_the_influence_filter_hides_nodes_and_their_edges(browser: Browser, report: Path) -> None:
    browser.open(report / GRAPH, BIG)
    enter(browser, "g-influence", "30")
    assert browser.evaluate("mechstudyGraph.nodeCount") < 1000
    assert browser.evaluate(
        "mechstudyGraph.shownEdges.every((e) => mechstudyGraph.visible[mechstudyGraph.graph().edges.source[e]])"
    )


def test_clicking_a_node_opens_its_evidence_and_its_edges(browser: Browser, report: Path) -> None:
    browser.open(report / GRAPH)
    node = browser.evaluate(
        "(() => { const g = mechstudyGraph.graph();"
        "const i = g.nodes.type.findIndex((t, k) => t === 0 && g.incoming[k].length && g.outgoing[k].length);"
        "return g.nodes.id[i]; })()"
    )
    select(browser, node)
    browser.wait(f"document.getElementById('g-detail').dataset.node === '{node}'")
    browser.wait("document.querySelectorAll('#g-detail .examples li').length > 0")
    assert browser.evaluate("document.querySelectorAll('#g-detail .logits li').length") > 4
    assert browser.evaluate("document.querySelectorAll('#g-detail .edges-list li').length") > 1
    weights = browser.evaluate(
        "[...document.querySelector('#g-detail .edges-list').querySelectorAll('.w')].map((w) => Math.abs(parseFloat("
        "w.textContent.replace('−', '-'))))"
    )
    assert weights == sorted(weights, reverse=True)
    assert browser.errors == []


def test_edges_through_patterns_stand_apart_and_can_be_hidden(browser: Browser, report: Path) -> None:
    browser.open(report / GRAPH)
    kinds = "mechstudyGraph.shownEdges.map((e) => mechstudyGraph.graph().edges.qk[e])"
    assert browser.evaluate(f"new Set({kinds}).size") == 2
    browser.page.locator("#g-qk").click()
    assert browser.evaluate(f"{kinds}.every((qk) => qk === 0)")
    assert browser.evaluate("document.querySelectorAll('#g-heads tr').length") == 10
    assert browser.errors == []


def test_a_link_restores_graph_node_and_pins(browser: Browser, report: Path) -> None:
    browser.open(report / GRAPH, BIG)
    browser.evaluate("(() => { mechstudyGraph.select(40); mechstudyGraph.pin(41); })()")
    fragment = browser.evaluate("location.hash")
    browser.open(report / GRAPH, fragment)
    assert browser.evaluate("mechstudyGraph.selected") == 40
    assert browser.evaluate("[...mechstudyGraph.pins]") == [41]


def test_the_graph_works_from_the_keyboard(browser: Browser, report: Path) -> None:
    browser.open(report / GRAPH)
    browser.page.locator("#g-over").focus()
    for key in ("ArrowUp", "ArrowUp", "Enter"):
        browser.page.keyboard.press(key)
    browser.wait("mechstudyGraph.selected >= 0")
    browser.page.keyboard.press("p")
    assert browser.evaluate("mechstudyGraph.pins.size") == 1
    browser.page.keyboard.press("Escape")
    assert browser.evaluate("mechstudyGraph.selected") == -1


def test_search_finds_a_feature_by_number_and_a_token_by_its_text(browser: Browser, report: Path) -> None:
    browser.open(report / GRAPH, BIG)
    feature = browser.evaluate(
        "(() => { const n = mechstudyGraph.graph().nodes; return n.layer[30] + '/' + n.feature[30]; })()"
    )
    for query in (feature, "</script>"):
        enter(browser, "g-search", query)
        assert browser.evaluate("document.querySelectorAll('#g-results li[role=option]').length") >= 1


def test_a_hostile_token_is_shown_as_text_and_never_runs(browser: Browser, report: Path) -> None:
    browser.open(report / "features.html")
    shown = browser.evaluate(
        "(async () => { for (const r of await mechstudy.load('features-index')) {"
        "const f = (await mechstudy.load('features-L' + r.layer))[r.feature];"
        "if (f.examples.some((e) => e.t.some((t) => t.includes('<img')))) return r.layer + '/' + r.feature; } })()"
    )
    browser.evaluate(f"location.hash = '{shown}'")
    browser.wait(f"document.getElementById('f-detail').dataset.feature === '{shown}'")
    assert "</script><img·src=x·onerror=alert(1)>" in browser.evaluate(
        "document.getElementById('f-detail').textContent"
    )
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.dialogs == []


def test_the_pages_policy_forbids_requests_and_inline_scripts(browser: Browser, report: Path) -> None:
    browser.open(report / "index.html")
    blocked = browser.evaluate("fetch('http://127.0.0.1:9/').then(() => 'reached', () => 'blocked')")
    assert blocked == "blocked"
    ran = browser.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = true';"
        "document.body.append(s);"
        "return window.ran === true; })()"
    )
    assert ran is False
    assert any("Content Security Policy" in e for e in browser.errors)


def test_a_demo_sized_report_stays_small(report: Path) -> None:
    files = [p for p in report.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 20e6
    assert all(p.stat().st_size > 500 for p in (report / "figures").iterdir())


def test_an_address_carries_pins_groups_and_labels(browser: Browser, report: Path) -> None:
    browser.open(report / GRAPH)
    browser.evaluate("localStorage.clear()")  # of other tests
    browser.open(report / GRAPH)
    browser.evaluate(
        "(() => { const g = mechstudyGraph.graph(); const found = g.nodes.type.map((t, i) => [t, i])"
        ".filter(([t]) => t === 0).slice(0, 3).map(([, i]) => i); found.forEach((i) => mechstudyGraph.pin(i));"
        "mechstudyGraph.edits().group('both, \"so\" & so', found.slice(0, 2));"
        "mechstudyGraph.edits().label(found[2], 'é #1');"
        "mechstudyGraph.edited(); })()"
    )
    edits = "mechstudyGraph.edits().qParams(mechstudyGraph.pins, -1)"
    made, fragment = browser.evaluate(edits), browser.evaluate("location.hash")
    assert len(made["pinnedIds"]) == 3 and len(made["supernodes"]) == len(made["clerps"]) == 1
    browser.evaluate("localStorage.clear()")
    browser.open(report / GRAPH)
    assert browser.evaluate(edits)["pinnedIds"] == []
    browser.open(report / GRAPH, fragment)
    assert browser.evaluate(edits) == made
    assert browser.evaluate("document.querySelectorAll('.sg-node').length") == 2
    assert browser.errors == []
    browser.evaluate("localStorage.clear()")


def test_an_address_carries_the_controls(browser: Browser, report: Path) -> None:
    browser.open(report / GRAPH)
    enter(browser, "g-influence", "55")
    browser.page.locator("#g-topk").select_option("5")
    browser.page.locator("#g-errors").click()
    browser.page.locator("#g-sign").select_option("lowers")
    fragment, shown = (
        browser.evaluate("location.hash"),
        browser.evaluate("document.getElementById('g-count').textContent"),
    )
    browser.open(report / GRAPH)
    assert browser.evaluate("document.getElementById('g-count').textContent") != shown
    browser.open(report / GRAPH, fragment)
    assert browser.evaluate("document.getElementById('g-count').textContent") == shown
    assert browser.evaluate("location.hash") == fragment


def test_edges_of_one_sign_and_features_of_low_density_are_shown_alone(browser: Browser, report: Path) -> None:
    browser.open(report / GRAPH)
    weights = "mechstudyGraph.shownEdges.map((e) => mechstudyGraph.graph().edges.weight[e])"
    browser.page.locator("#g-sign").select_option("raises")
    assert min(browser.evaluate(weights)) > 0
    browser.page.locator("#g-sign").select_option("lowers")
    assert max(browser.evaluate(weights)) < 0
    browser.page.locator("#g-sign").select_option("both")
    enter(browser, "g-density", "-3")
    densities = browser.evaluate(
        "(() => { const n = mechstudyGraph.graph().nodes, seen = mechstudyGraph.visible;"
        "return n.density.map((d, i) => [d, seen[i]]).filter(([d, v], i) => n.type[i] === 0 && d !== null); })()"
    )
    assert {bool(shown) for density, shown in densities if density > 1e-3} == {False}
    assert any(shown for density, shown in densities if density <= 1e-3)


def test_an_edge_says_its_share_of_the_drawn_input(browser: Browser, report: Path) -> None:
    browser.open(report / GRAPH)
    node = browser.evaluate(
        "(() => { const g = mechstudyGraph.graph(); return g.nodes.type.findIndex((t, k) => t === 0"
        " && g.incoming[k].length > 1 && g.incoming[k].length <= 12"
        " && g.incoming[k].every((e) => !g.edges.qk[e])); })()"
    )
    browser.page.locator("#g-topk").select_option("0")
    browser.evaluate(f"mechstudyGraph.select({node})")
    shares = browser.evaluate(
        "[...document.querySelector('#g-detail .edges-list').querySelectorAll('.share')]"
        ".map((s) => parseFloat(s.textContent))"
    )
    assert len(shares) > 1 and abs(sum(shares) - 100) < len(shares)


def test_automatic_groups_start_a_subgraph_that_is_saved_as_a_picture(
    browser: Browser, report: Path, tmp_path: Path
) -> None:
    browser.open(report / GRAPH)
    browser.evaluate("localStorage.clear()")
    browser.open(report / GRAPH)
    browser.page.get_by_role("button", name="Start from the largest automatic groups").click()
    groups = browser.evaluate("mechstudyGraph.edits().groups.map((g) => g.members.length)")
    assert groups and min(groups) > 1
    assert browser.evaluate("document.querySelectorAll('.sg-group').length") == len(groups)
    assert serious_violations(browser) == []
    with browser.page.expect_download() as saved:
        browser.page.get_by_role("button", name="Save picture").click()
    saved.value.save_as(tmp_path / "picture.svg")
    picture = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert picture.startswith("<svg") and picture.count("<rect") == len(groups) and "var(" not in picture
    browser.evaluate("localStorage.clear()")


def test_the_graph_fills_the_screen(browser: Browser, report: Path) -> None:
    browser.open(report / GRAPH)
    browser.page.get_by_role("button", name="Full screen").click()
    browser.wait("document.fullscreenElement === document.getElementById('viewer')")
    browser.page.get_by_role("button", name="Leave full screen").click()
    browser.wait("!document.fullscreenElement")
    assert browser.errors == []


def of_feature(browser: Browser, report: Path, condition: str) -> None:
    """The features page with the first feature whose record fulfils a condition."""
    browser.open(report / "features.html")
    shown = browser.evaluate(
        "(async () => { for (const r of await mechstudy.load('features-index')) {"
        "const f = (await mechstudy.load('features-L' + r.layer))[r.feature];"
        f"if ({condition}) return r.layer + '/' + r.feature; }} }})()"
    )
    browser.evaluate(f"location.hash = '{shown}'")
    browser.wait(f"document.getElementById('f-detail').dataset.feature === '{shown}'")


def test_a_histogram_has_a_bar_for_each_bin_and_says_its_shares(browser: Browser, report: Path) -> None:
    of_feature(browser, report, "f.histogram && !f.histogram.negative.length")
    assert browser.evaluate("document.querySelectorAll('#f-detail .hist-bar').length") == 37
    heights = browser.evaluate("[...document.querySelectorAll('.hist-bar')].map((b) => +b.getAttribute('height'))")
    assert heights[0] == pytest.approx(60) and heights == [*sorted(heights[:34], reverse=True), 0, 0, heights[-1]]
    assert heights[-1] > 0, "one activation can be seen"
    assert browser.evaluate("document.querySelector('.hist-bar title').textContent") == "0 to 0.25: 5,000"
    said = browser.evaluate("document.querySelector('.hist svg').getAttribute('aria-label')")
    assert said.startswith("Histogram of activations: 0.3% from 7.25 to 9.25, ")
    assert said.endswith("% from 0 to 1.75")


def test_intervals_are_folded_and_open_on_their_examples(browser: Browser, report: Path) -> None:
    of_feature(browser, report, "f.histogram && f.histogram.negative.length")
    summaries = browser.evaluate("[...document.querySelectorAll('.interval summary')].map((s) => s.firstChild.data)")
    assert summaries[:2] == ["7.25 to 9.25 ", "5.5 to 7.25 "] and summaries[-1] == "−2.25 to −1.75 "
    intervals = browser.page.locator("#f-detail .interval")
    assert intervals.count() == 10 and not intervals.last.locator(".ex-peak").is_visible()
    intervals.last.locator("summary").click()
    assert "--cold" in (intervals.last.locator(".ex-peak").get_attribute("style") or "")
    assert intervals.last.locator(".ex-meta").inner_text().startswith("−2.00")
    assert serious_violations(browser) == []


def test_features_of_earlier_runs_are_shown_without_a_histogram(browser: Browser, report: Path) -> None:
    of_feature(browser, report, "!f.histogram")
    assert browser.evaluate("document.querySelectorAll('#f-detail .examples li').length") == 6
    assert browser.evaluate("document.querySelectorAll('#f-detail .hist, #f-detail .interval').length") == 0
    assert browser.errors == []


def test_the_graphs_panel_has_the_histogram_too(browser: Browser, report: Path) -> None:
    browser.open(report / GRAPH)
    browser.evaluate("mechstudyGraph.select(mechstudyGraph.graph().nodes.type.indexOf(0))")
    browser.wait("document.querySelectorAll('#g-detail .hist-bar').length > 30")
    assert browser.evaluate("document.querySelectorAll('#g-detail .interval').length") >= 5
    assert browser.errors == []
