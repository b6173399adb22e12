"""What people do with graphs and features, as tasks on a report: `python -m tests.browser.tasks RUN/report`.

The list is of the functions of the field's interfaces and of what their users ask for. Each task acts as a reader would
and checks what the page then shows; between tasks nothing is kept.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.browser.report_browser import Browser

EDITS = "mechstudyGraph.edits().qParams(mechstudyGraph.pins, -1)"
FEATURES = (
    "(() => { const g = mechstudyGraph.graph(); return g.nodes.type.map((t, i) => [t, i]).filter(([t]) => t === 0)"
    ".map(([, i]) => i); })()"
)
COUNT = "document.getElementById('g-count').textContent"


class Reader:
    """A reader at the page of a prompt's graph, with the helper motions of the tasks."""

    def __init__(self, browser: Browser, report: Path) -> None:
        self.browser, self.page, self.report = browser, browser.page, report
        pages = sorted(report.glob("graph-*.html"))
        self.graph = next(page for page in pages if 'id="viewer"' in page.read_text(encoding="utf-8"))

    def js(self, expression: str) -> Any:
        return self.browser.evaluate(expression)

    def open(self, fragment: str = "") -> None:
        """The first prompt's graph, as it was made."""
        self.browser.open(self.graph)
        self.js("localStorage.clear()")
        slug = self.js(
            "mechstudy.load(document.getElementById('viewer').dataset.graphs)"
            ".then((index) => index.graphs.find((g) => g.slug !== 'aggregate').slug)"
        )
        self.browser.open(self.graph, fragment or f"#g={slug}")

    def button(self, name: str) -> None:
        self.page.get_by_role("button", name=name).first.click()

    def pin(self, n: int) -> list[int]:
        """Pins features as a reader does: selected, then the P key."""
        chosen: list[int] = self.js(FEATURES)[:n]
        for i in chosen:
            self.js(f"mechstudyGraph.select({i})")
            self.page.locator("#g-over").press("p")
        return chosen

    def detail(self) -> str:
        return str(self.js("document.getElementById('g-detail').textContent"))

    def saved(self, name: str) -> str:
        with self.page.expect_download() as saved:
            self.button(name)
        with tempfile.TemporaryDirectory() as folder:
            saved.value.save_as(Path(folder) / "file")
            return (Path(folder) / "file").read_text(encoding="utf-8")


def see_a_nodes_edges(r: Reader) -> None:
    r.js(f"mechstudyGraph.select({FEATURES}[0])")
    assert "Comes from" in r.detail() and r.js("document.querySelectorAll('#g-detail .edges-list li').length") > 0


def see_what_a_feature_fires_on(r: Reader) -> None:
    r.js(f"mechstudyGraph.select({FEATURES}[0])")
    r.browser.wait("document.querySelectorAll('#g-detail .examples li').length > 0")


def see_what_a_feature_promotes(r: Reader) -> None:
    r.js(f"mechstudyGraph.select({FEATURES}[0])")
    r.browser.wait("document.querySelectorAll('#g-detail .logits li').length > 4")


def see_text_from_the_whole_range_of_activations(r: Reader) -> None:
    r.browser.open(r.report / "features.html")
    r.browser.wait("document.querySelectorAll('#f-detail .hist-bar').length > 20")
    intervals = r.page.locator("#f-detail .interval")
    assert intervals.count() >= 5 and not intervals.last.locator("li").is_visible()
    intervals.last.locator("summary").click()
    assert intervals.last.locator("li").first.is_visible()


def see_how_far_a_label_can_be_relied_on(r: Reader) -> None:
    r.browser.open(r.report / "features.html")
    r.browser.wait("document.getElementById('f-detail').textContent.includes('Fires on')")
    assert "rule" in r.js("document.getElementById('f-detail').textContent").lower()


def find_a_feature_by_its_label(r: Reader) -> None:
    label = r.js(f"mechstudyGraph.graph().nodes.label[{FEATURES}.find((i) => mechstudyGraph.graph().nodes.label[i])]")
    r.page.locator("#g-search").fill(label[:12])
    r.page.locator("#g-search").press("Enter")
    assert r.js("mechstudyGraph.selected") >= 0


def find_a_token(r: Reader) -> None:
    token = r.js("mechstudyGraph.graph().nodes.label[mechstudyGraph.graph().nodes.type.indexOf(2)]")
    r.page.locator("#g-search").fill(token)
    assert r.js("document.querySelectorAll('#g-results li[role=option]').length") > 0


def hide_what_matters_little(r: Reader) -> None:
    before = r.js("mechstudyGraph.nodeCount")
    r.page.locator("#g-influence").fill("40")
    assert 0 < r.js("mechstudyGraph.nodeCount") < before


def hide_dense_features(r: Reader) -> None:
    of = f"{FEATURES}.map((i) => [mechstudyGraph.graph().nodes.density[i], mechstudyGraph.visible[i]])"
    known = sorted(density for density, _ in r.js(of) if density is not None)
    limit = round(math.log10(known[len(known) // 2]), 1)
    r.page.locator("#g-density").fill(str(limit))
    shown = [density for density, visible in r.js(of) if visible and density is not None]
    assert 0 < len(shown) < len(known) and max(shown) <= 10**limit


def see_raising_edges_alone(r: Reader) -> None:
    r.page.locator("#g-sign").select_option("raises")
    assert r.js("mechstudyGraph.shownEdges.every((e) => mechstudyGraph.graph().edges.weight[e] > 0)")


def hide_edges_through_patterns(r: Reader) -> None:
    if r.js("mechstudyGraph.graph().edges.qk.includes(1)"):
        r.page.locator("#g-qk").click()
    assert not r.js("mechstudyGraph.shownEdges.some((e) => mechstudyGraph.graph().edges.qk[e])")


def see_an_edges_share_of_the_input(r: Reader) -> None:
    r.page.locator("#g-topk").select_option("0")
    r.js(f"mechstudyGraph.select({FEATURES}[0])")
    assert "%" in r.js("document.querySelector('#g-detail .edges-list .share').textContent")


def see_the_heads(r: Reader) -> None:
    assert r.js("document.querySelectorAll('#g-heads tr').length") > 0


def see_why_a_head_attends_where_it_does(r: Reader) -> None:
    r.page.locator("#g-heads button").first.click()
    pairs = r.page.locator("#g-heads .pairs").first
    assert pairs.is_visible() and pairs.locator("tbody tr").count() > 1
    of_page = "mechstudyGraph.graph().heads[0].pairs"
    assert abs(r.js(f"{of_page}.score")) > 0 and r.js(f"{of_page}.pairs.length") > 1


def see_the_heads_of_a_feature(r: Reader) -> None:
    r.js(
        "(() => { const g = mechstudyGraph.graph(); "
        "mechstudyGraph.select(Number(g.edges.source[Number(Object.keys(g.edge_heads)[0])])); })()"
    )
    assert "It is read by" in r.detail() and "head" in r.detail()


def pin_and_unpin(r: Reader) -> None:
    [first, _] = r.pin(2)
    assert r.js("mechstudyGraph.pins.size") == 2
    r.js(f"mechstudyGraph.select({first})")
    r.button("Pinned")
    assert r.js("mechstudyGraph.pins.size") == 1


def see_pinned_nodes_alone(r: Reader) -> None:
    r.pin(3)
    r.page.locator("#g-pinned").click()
    assert r.js("mechstudyGraph.nodeCount") == 3


def score_what_is_pinned(r: Reader) -> None:
    r.pin(1)
    one = r.js("document.getElementById('g-pinned-scores').textContent")
    for i in r.js(FEATURES)[:6]:
        r.js(f"mechstudyGraph.pins.has({i}) || mechstudyGraph.pin({i})")
    assert r.js("document.getElementById('g-pinned-scores').textContent") != one


def pin_all_that_a_label_search_finds(r: Reader) -> None:
    layer = r.js(f"mechstudyGraph.graph().nodes.layer[{FEATURES}[0]]")
    r.page.locator("#g-search").fill(f"{layer}/")
    r.button("Pin found")
    assert r.js("mechstudyGraph.pins.size") > 0


def make_and_name_a_supernode(r: Reader) -> None:
    r.pin(3)
    r.button("Group the 3 free features")
    r.page.get_by_label("Name of group Group 1").fill("three")
    r.page.get_by_label("Name of group Group 1").press("Enter")
    assert [row[0] for row in r.js(EDITS)["supernodes"]] == ["three"]
    assert "three" in r.js("document.querySelector('.sg-picture').textContent")


def ungroup_a_supernode(r: Reader) -> None:
    r.pin(3)
    r.button("Group the 3 free features")
    r.button("Ungroup")
    assert r.js(EDITS)["supernodes"] == [] and r.js("document.querySelectorAll('.sg-node').length") == 3


def group_automatically(r: Reader) -> None:
    r.button("Start from the largest automatic groups")
    assert all(len(row) > 2 for row in r.js(EDITS)["supernodes"]) and r.js(EDITS)["supernodes"]


def group_by_token(r: Reader) -> None:
    for i in r.js(FEATURES):
        r.js(f"mechstudyGraph.pins.add({i})")
    r.js("mechstudyGraph.edited()")
    r.button("Group them by token")
    assert all(row[0].startswith("at ") for row in r.js(EDITS)["supernodes"]) and r.js(EDITS)["supernodes"]


def edit_a_label(r: Reader) -> None:
    r.js(f"mechstudyGraph.select({FEATURES}[0])")
    r.button("Edit label")
    r.page.get_by_label("Label", exact=True).fill("mine")
    r.page.get_by_label("Label", exact=True).press("Enter")
    assert "mine" in r.detail() and r.js(EDITS)["clerps"][0][1] == "mine"


def save_and_load_edits_with_labels(r: Reader) -> None:
    edit_a_label(r)
    r.pin(2)
    r.button("Group the 2 free features")
    made = r.js(EDITS)
    text = r.saved("Save edits")
    assert json.loads(text)["qParams"]["clerps"] == made["clerps"]
    r.button("Clear all")
    assert r.js(EDITS)["pinnedIds"] == []
    file = {"name": "edits.json", "mimeType": "application/json", "buffer": text.encode()}
    r.page.locator("#g-sub input[type=file]").set_input_files(file)  # type: ignore[arg-type]
    r.browser.wait("mechstudyGraph.pins.size === 2")
    assert r.js(EDITS) == made


def share_it_all_by_an_address(r: Reader) -> None:
    r.pin(2)
    r.button("Group the 2 free features")
    r.page.locator("#g-influence").fill("60")
    made, fragment, count = r.js(EDITS), r.js("location.hash"), r.js(COUNT)
    r.js("localStorage.clear()")
    r.browser.open(r.graph, fragment)
    assert (r.js(EDITS), r.js(COUNT)) == (made, count)


def export_the_subgraph_as_a_picture(r: Reader) -> None:
    r.pin(2)
    assert r.saved("Save picture").count("<rect") == 2


def use_the_whole_screen_and_the_keyboard(r: Reader) -> None:
    r.button("Full screen")
    r.browser.wait("document.fullscreenElement")
    r.page.locator("#g-over").press("ArrowUp")
    r.page.locator("#g-over").press("Enter")
    assert r.js("mechstudyGraph.selected") >= 0
    r.button("Leave full screen")
    r.browser.wait("!document.fullscreenElement")


TASKS: tuple[Callable[[Reader], None], ...] = (
    see_a_nodes_edges, see_what_a_feature_fires_on, see_what_a_feature_promotes,
    see_text_from_the_whole_range_of_activations, see_how_far_a_label_can_be_relied_on, find_a_feature_by_its_label,
    find_a_token, hide_what_matters_little, hide_dense_features, see_raising_edges_alone, hide_edges_through_patterns,
    see_an_edges_share_of_the_input, see_the_heads, see_why_a_head_attends_where_it_does, see_the_heads_of_a_feature,
    pin_and_unpin, see_pinned_nodes_alone,
    score_what_is_pinned, pin_all_that_a_label_search_finds, make_and_name_a_supernode, ungroup_a_supernode,
    group_automatically, group_by_token, edit_a_label, save_and_load_edits_with_labels, share_it_all_by_an_address,
    export_the_subgraph_as_a_picture, use_the_whole_screen_and_the_keyboard,
)  # fmt: skip


def done(browser: Browser, report: Path) -> dict[str, str]:
    """Each task -> ``done``, or what went wrong: a check, an error in the console, or a request."""
    reader, found = Reader(browser, report), {}
    for task in TASKS:
        name = task.__name__.replace("_", " ")
        try:
            reader.open()
            task(reader)
        except Exception as error:  # each task is judged by itself
            found[name] = f"{type(error).__name__}: {str(error)[:300]}"
            continue
        requests = [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))]
        found[name] = "done" if not browser.errors and not requests else f"{browser.errors} {requests}"
    return found


if __name__ == "__main__":
    browser = Browser()
    results = done(browser, Path(sys.argv[1]))
    browser.close()
    for name, result in results.items():
        print(f"{name}: {result}")
    print(f"{sum(result == 'done' for result in results.values())} of {len(TASKS)}")
