import html
import re

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
