"""`mechstudy view`: graph files, also of other tools, as pages."""

from __future__ import annotations

import json

import pytest

import mechstudy as ms
from tests.support.small_graphs import behaviour_json, prompt_json
from tests.support.toy_model import mechstudy

# As circuit-tracer writes it: nothing of ours, and fields that other readers skip.
FOREIGN = {
    "metadata": {"slug": "theirs", "scan": "gpt2", "prompt": "a <img>", "prompt_tokens": ["a", " <img>"]},
    "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
    "nodes": [
        {"node_id": "E_97_0", "feature": 97, "layer": "E", "ctx_idx": 0, "feature_type": "embedding", "clerp": "Emb: a",
         "jsNodeId": "E_97-0", "reverse_ctx_idx": 0, "token_prob": 0.0, "is_target_logit": False},
        {"node_id": "3_5_1", "feature": 20, "layer": "3", "ctx_idx": 1, "feature_type": "cross layer transcoder",
         "clerp": "", "influence": 0.4, "activation": 2.5, "jsNodeId": "3_5-0", "reverse_ctx_idx": 0},
        {"node_id": "4_7_1", "feature": 7, "layer": "4", "ctx_idx": 1, "feature_type": "logit", "clerp": "Output \"x\"",
         "token_prob": 0.9, "is_target_logit": True, "jsNodeId": "L_7-1", "reverse_ctx_idx": 0},
    ],
    "links": [
        {"source": "E_97_0", "target": "3_5_1", "weight": 1.5},
        {"source": "3_5_1", "target": "4_7_1", "weight": -0.5},
    ],
}  # fmt: skip


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in {"theirs": FOREIGN, "ours": prompt_json(0), "all": behaviour_json(0)}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def view_of(page):
    """The data of a page of one file."""
    text = page.read_text()
    line = next(line for line in text.split("\n") if line.startswith('mechstudy.put("graph",'))
    return json.loads(line[line.index(",") + 1 : line.rindex(")")])


def test_a_graph_of_another_tool_is_drawn_whole(inside):
    printed = mechstudy("view", "theirs.json").stdout
    assert "page: view-theirs-json.html" in printed
    page = inside / "view-theirs-json.html"
    view = view_of(page)
    assert sorted(view["nodes"]["id"]) == ["3_5_1", "4_7_1", "E_97_0"]
    assert sorted(view["edges"]["weight"]) == [-0.5, 1.5]
    assert [column["label"] for column in view["columns"]] == ["a", "·<img>"]
    assert "<img" not in page.read_text()


@pytest.mark.parametrize("name", ["ours", "all"])
def test_edits_are_on_the_page(inside, name):
    node = ms.api.comparison.graph_at(f"{name}.json").nodes["node"][0]
    (inside / "edits.json").write_text(json.dumps({"qParams": {"pinnedIds": [node]}}))
    mechstudy("view", f"{name}.json", "--edits", "edits.json", "--out", "mine.html")
    assert view_of(inside / "mine.html")["edits"]["pinnedIds"] == [node]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("none.json",), "none.json: no such file"),
        (("theirs.json", "--out", "x.json"), "'.json' is not a kind of page"),
        (("theirs.json", "--edits", "none.json"), "none.json: no such file"),
        (("theirs.json", "--edits", "all.json"), "not edits of a graph"),
        (("theirs.json", "--dictionaries", "."), ". is no run"),
    ],
)
def test_mistakes_are_named(inside, words, text):
    assert text in mechstudy("view", *words, code=2).stderr
    assert not list(inside.glob("*.html"))
