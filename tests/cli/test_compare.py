"""`mechstudy compare`: tables, JSON, and graphs by their place."""

import json

import pytest

import mechstudy as ms
from mechstudy.api.comparison import graph_at
from tests.support.small_graphs import behaviour_json, prompt_json
from tests.support.toy_model import mechstudy


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in {"a": prompt_json(0), "b": prompt_json(1), "c": behaviour_json(0)}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))


def test_the_strongest_differences_are_listed(files):
    printed = mechstudy("compare", "a.json", "b.json", "--top", "3").stdout
    comparison = ms.compare(ms.load_graph("a.json"), ms.load_graph("b.json"))
    for node in comparison.top(3)["node"]:
        assert f"\n {node} " in printed
    nodes, edges = printed.partition(" source ")[::2]
    assert comparison.top(4)["node"][3] not in nodes
    assert edges.partition("weight a")[2].count("@") <= 2 * 3
    assert f"{comparison.summary()['nodes']['jaccard']:.2f}" in printed
    assert "rank correlation" in printed


def test_json_is_the_summary_and_the_strongest_rows(files):
    printed = json.loads(mechstudy("compare", "a.json", "b.json", "--json", "--top", "2").stdout)
    assert printed == ms.compare(ms.load_graph("a.json"), ms.load_graph("b.json")).as_json(2)
    assert len(printed["nodes"]) == 2


def test_a_behaviours_graph_is_read_from_its_file(files):
    assert isinstance(graph_at("c.json"), ms.BehaviourGraph)
    assert "nothing differs" in mechstudy("compare", "c.json", "c.json").stdout
    assert "one graph is a behaviour's" in mechstudy("compare", "a.json", "c.json", code=2).stderr


def test_a_notebook_shows_a_table(files):
    shown = ms.compare(ms.load_graph("a.json"), ms.load_graph("b.json"))._repr_html_()
    assert shown.count("<table>") == 2 and "<script" not in shown
    same = ms.load_graph("a.json")
    assert "<table>" not in ms.compare(same, same)._repr_html_()
