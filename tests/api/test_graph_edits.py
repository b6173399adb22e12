"""Pins, groups and labels that a reader gives a graph, from and to files."""

import json

import pytest

import mechstudy as ms
from mechstudy.core.errors import MechstudyError
from tests.support.api_world import PROMPT


@pytest.fixture(scope="module")
def graph(world):
    return ms.attribute(world.model, world.dicts, PROMPT, answer="x", wrong_answer="y")


def made(graph):
    a, b, c = graph.nodes.filter(kind="feature")["node"][:3]
    return {"pinnedIds": [a, b, c], "supernodes": [["pair", a, b]], "clerps": [[c, "a <b>label</b>"]]}


def test_edits_survive_a_file_and_the_drawing_shows_them(graph, tmp_path):
    file = tmp_path / "edits.json"
    file.write_text(json.dumps({"slug": "x", "qParams": made(graph)}))
    edited = graph.edited(file)
    read = ms.load_graph(edited.save(tmp_path / "graph.json"))
    assert {field: read.edits[field] for field in made(graph)} == made(graph)
    assert dict(read.nodes.select("node", "label").iter_rows())[made(graph)["clerps"][0][0]] == "a <b>label</b>"
    assert read._view()["edits"]["supernodes"] == made(graph)["supernodes"]
    assert "<b>label" not in edited.html()
    assert graph.edits["pinnedIds"] == [], "the graph itself is as it was"


@pytest.mark.parametrize("held", [[1], "x", None, {"clerps": [["a"], 3, ["a", "b", "c"], [1, 2]]}, {"clerps": None}])
def test_a_graph_file_with_odd_edits_is_read_and_drawn(graph, held):
    odd = ms.PromptGraph({**graph._json, "qParams": held})
    assert odd.nodes["node"].to_list() == graph.nodes["node"].to_list() and odd.html()


def test_edits_of_another_graph_are_refused_by_name(graph, tmp_path):
    with pytest.raises(MechstudyError, match="1 node of 1 not in this graph") as caught:
        graph.edited({"pinnedIds": ["9_9_9"]})
    assert "9_9_9" in str(caught.value)
    with pytest.raises(MechstudyError, match="1 node of 1 not in this graph"):
        graph.kept_scores(["9_9_9"])


@pytest.mark.parametrize(
    "content", ['{"pinnedIds": 3}', "[1]", "{}", '{"a": 1}', "3", "null", '{"qParams": {"supernodes": [[]]}}']
)
def test_a_file_of_something_else_is_refused(graph, tmp_path, content):
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(MechstudyError, match="not edits of a graph"):
        graph.edited(file)


def test_scores_of_more_nodes_are_never_smaller(graph):
    drawn = graph.nodes.filter(kind="feature").sort("influence", descending=True)["node"].to_list()[:20]
    replacement = [graph.kept_scores(drawn[:n])["replacement"] for n in range(len(drawn) + 1)]
    assert replacement == sorted(replacement) and replacement[-1] > replacement[0]
    assert graph.kept_scores(graph.top(5)) == graph.kept_scores(
        graph.nodes.join(graph.top(5).select("feature", "position"), on=["feature", "position"], how="semi")
    )
    assert graph.kept_scores(drawn[0]) == graph.kept_scores(drawn[:1])
    frame = graph.nodes.filter(kind="feature")
    assert graph.kept_scores(frame) == graph.kept_scores(frame["node"].to_list())
