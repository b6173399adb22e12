import html
import re

import polars as pl
import pytest

import mechstudy as ms
from tests.support.api_world import PROMPT


@pytest.fixture(scope="module")
def graph(world):
    return ms.attribute(world.model, world.dicts, PROMPT, answer="x", wrong_answer="y")


def test_the_page_holds_everything_and_may_fetch_nothing(graph):
    page = graph.html()
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["'](?!features\.html)""", page)
    assert 'mechstudy.put("graph"' in page


def test_a_cell_is_the_page_in_a_sandboxed_frame(graph):
    cell = graph._repr_html_()
    [held] = re.findall(r'srcdoc="([^"]*)"', cell)
    assert html.unescape(held) == graph.html()
    assert 'sandbox="allow-scripts"' in cell


def test_hostile_prompts_stay_text(world):
    graph = ms.attribute(world.model, world.dicts, "</script><b>hi", answer="x", wrong_answer="y")
    page = graph.html()
    assert page.count("</script>") == page.count("<script>")
    assert "<b>hi" not in page


def test_a_page_is_written_whole(graph, tmp_path):
    assert graph.save(tmp_path / "keys.html").read_text() == graph.html()


def test_records_of_a_run_describe_features_of_the_same_kind(graph):
    drawn = graph.nodes.drop_nulls("feature")["feature"][0]
    layer, number = map(int, drawn.split("/"))
    example = {"tokens": [" the", " keys"], "activations": [0.0, 2.0], "peak": 1, "document": 3}
    record = {"layer": layer, "feature": number, "kind": "transcoder", "frequency": 0.25, "examples": [example]}
    described = graph.described_by([record])
    assert described.nodes.row(by_predicate=pl.col("feature") == drawn, named=True)["label"] == "peaks on «·keys»"
    assert '"frequency":0.25' in described.html()
    assert graph.described_by([record | {"kind": "sae"}]).html() == graph.html()
