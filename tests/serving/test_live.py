"""What a served report answers is what the same functions give in Python, on a finished run of a tiny model."""

from __future__ import annotations

import pytest

import mechstudy as ms
from mechstudy.circuits.bases import chosen_bases
from mechstudy.core.errors import MechstudyError
from mechstudy.interventions.subgraph import subgraph_effects
from mechstudy.serving import live
from mechstudy.serving.live import LiveRun
from tests.support.tiny_study import write_study

pytestmark = pytest.mark.slow  # a study is run


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    study = ms.Study.load(write_study(folder), ["attribution.basis=mixed"], out=folder / "run", say=lambda _: None)
    run = study.run(["attribute[mine]", "features"])
    return LiveRun(run, ms.load_model(f"path:{folder / 'model'}"), run.dictionaries)


def test_forms_start_with_a_prompt_of_each_behaviour(served):
    [example] = served.about()["examples"]
    first = served.run.prompts["mine"][0]
    assert example == {"prompt": first.clean, "corrupted": first.corrupted, "answer": "x", "wrong_answer": "y"}


def test_both_texts_are_those_of_generate(served):
    asked = {"prompt": "abc", "steer": {"1/3": 40.0, "2/5": -9.0}, "tokens": 5}  # a feature, and a neuron
    made = served.actions["steer"](asked)
    options = {"dictionaries": served.dictionaries, "basis": "mixed", "max_new_tokens": 5}
    assert made["steered"] == ms.generate(served.model, "abc", steer=asked["steer"], **options)
    assert made["unsteered"] == ms.generate(served.model, "abc", max_new_tokens=5)
    assert made["steered"] != made["unsteered"]


def test_the_graph_of_another_prompt_has_a_page_and_can_be_measured(served):
    made = served.actions["graph"]({"prompt": "abcd", "corrupted": "abed", "answer": "x", "wrong_answer": "y"})
    config = ms.AttributionConfig(max_features=256, basis="mixed")
    graph = ms.attribute(
        served.model, served.dictionaries, "abcd", answer="x", wrong_answer="y", corrupted="abed", config=config
    )
    assert made["nodes"] == len(graph.nodes)
    assert made["scores"]["replacement"] == pytest.approx(graph.scores()["replacement"])
    slug = made["page"].removesuffix(".html")
    assert "mechstudy.put(" in served.page(slug)
    assert served.page("prompt-999") is None
    top = graph.nodes.filter(kind="feature")["node"].to_list()[:3]
    measured = served.actions["subgraph"]({"graph": slug, "nodes": top})
    assert measured["replaced_by"] == "corrupted"
    assert measured["clean"] == pytest.approx(made["logit_difference"], abs=1e-5)


def test_pinned_nodes_of_the_reports_graphs_are_measured_on_their_prompt(served):
    graphs = served.run.graphs["mine"]
    slug, pair_id = list(graphs.prompt_ids.items())[1]
    graph, pair = graphs.prompts[1], next(p for p in served.run.prompts["mine"] if p.id == pair_id)
    assert graph.prompt == pair.clean
    rows = graph.nodes.filter(kind="feature").head(4).to_dicts()
    made = served.actions["subgraph"]({"graph": slug, "nodes": [row["node"] for row in rows], "replace_by": "zero"})
    nodes = [(row["layer"], int(row["feature"].split("/")[1]), row["position"]) for row in rows]
    bases = chosen_bases(served.model, served.dictionaries, "mixed")
    expected = subgraph_effects(served.model, bases, pair, nodes, replace_by="zero")
    for field in ("n_nodes", "n_others", "clean", "without", "only", "none", "faithfulness", "necessity"):
        assert made[field] == pytest.approx(getattr(expected, field)), field


def test_rows_of_top_are_nodes_and_another_prompt_is_refused(served):
    graphs, pairs = served.run.graphs["mine"], {pair.id: pair for pair in served.run.prompts["mine"]}
    graph, other = graphs.prompts[0], graphs.prompts[1]
    ids = list(graphs.prompt_ids.values())
    assert graph.prompt != other.prompt
    options = {"basis": "mixed", "replace_by": "zero"}
    top = graph.top(500).join(graph.nodes, on=["feature", "position"], how="semi")
    drawn = graph.nodes.join(top, on=["feature", "position"], how="semi")["node"].to_list()
    made = ms.subgraph_effects(served.model, served.dictionaries, graph, pairs[ids[0]], top, **options)
    assert made == ms.subgraph_effects(served.model, served.dictionaries, graph, pairs[ids[0]], drawn, **options)
    assert made.n_nodes == len(drawn) > 0
    with pytest.raises(MechstudyError, match="the graph is of another prompt"):
        ms.subgraph_effects(served.model, served.dictionaries, graph, pairs[ids[1]], drawn)


def test_errors_of_layers_count_and_tokens_do_not(served):
    graphs = served.run.graphs["mine"]
    names = graphs.prompts[0].nodes
    errors, tokens = (names.filter(kind=kind)["node"].to_list() for kind in ("error", "token"))
    made = served.actions["subgraph"]({"graph": next(iter(graphs.prompt_ids)), "nodes": errors[:2] + tokens})
    assert made["n_nodes"] == 2
    with pytest.raises(MechstudyError, match="no features and no errors"):
        served.actions["subgraph"]({"graph": next(iter(graphs.prompt_ids)), "nodes": tokens})


@pytest.mark.parametrize(
    ("action", "asked", "text"),
    [
        ("steer", {"prompt": "abc", "steer": {"9/3": 1.0}}, "9/3"),
        ("steer", {"prompt": "abc", "steer": {}}, "^steer"),
        ("steer", {"prompt": "abc", "steer": {"1/3": 1.0}, "tokens": 10**6}, "tokens"),
        ("steer", {"prompt": "abc", "steer": {"1/3": 1.0}, "other": 1}, "other"),
        ("graph", {"prompt": ""}, "prompt"),
        ("graph", {"prompt": "abc", "corrupted": "abc"}, "the same text"),
        ("graph", {"prompt": "abc", "answer": "xyz"}, "tokens"),
        ("graph", {"prompt": 7}, "prompt"),
        ("subgraph", {"graph": "aggregate", "nodes": ["a"]}, "no graph of a prompt 'aggregate'"),
        ("subgraph", {"graph": "mine-000", "nodes": ["0_1_99"]}, "no node 0_1_99"),
        ("subgraph", {"graph": "mine-000", "nodes": ["a"], "replace_by": "mean"}, "replace_by"),
    ],
)
def test_mistakes_are_named(served, action, asked, text):
    with pytest.raises(MechstudyError, match=text):
        served.actions[action](asked)


def test_only_the_last_graphs_are_kept(served, monkeypatch):
    monkeypatch.setattr(live, "MAX_GRAPHS", 2)
    made = [served.actions["graph"]({"prompt": f"abc{i}", "nodes": 5})["page"].removesuffix(".html") for i in range(3)]
    assert [served.page(name) is not None for name in made] == [False, True, True]
