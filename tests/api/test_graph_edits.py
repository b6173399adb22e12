"""Pins, groups and labels that a reader gives a graph, from and to files."""

import json

import polars as pl
import pytest

import mechstudy as ms
from mechstudy.api.reader_edits import edits_of
from mechstudy.core.errors import MechstudyError
from tests.support.api_world import PROMPT
from tests.support.finished_study import finished_study, study_file
from tests.support.toy_model import mechstudy


@pytest.fixture(scope="module")
def graph(world):
    return ms.attribute(world.model, world.dicts, PROMPT, answer="x", wrong_answer="y")


@pytest.fixture(scope="module")
def run(tmp_path_factory, worker_id):
    return finished_study(tmp_path_factory, worker_id)


def made(graph):
    a, b, c = graph.nodes.sort(pl.col("kind") != "feature", maintain_order=True)["node"][:3]
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


# ------------------------------------------------------------------------------- edits of a run's graphs


def test_a_behaviours_graph_takes_edits_too(run):
    graph = run.graphs["mine"]
    edited = graph.edited(made(graph))
    labelled, label = made(graph)["clerps"][0]
    assert dict(edited.nodes.select("node", "label").iter_rows())[labelled] == label
    assert edited._view()["edits"]["pinnedIds"] == made(graph)["pinnedIds"]
    assert edited.prompt_ids == graph.prompt_ids
    assert len(edited.prompts) == len(graph.prompts)
    assert "<b>label" not in edited.html()
    with pytest.raises(MechstudyError, match="1 node of 1 not in this graph"):
        graph.edited({"pinnedIds": ["9_9_9"]})


def written(file, slug, graph, **more):
    file.write_text(json.dumps({"slug": slug, "qParams": made(graph)} | more))
    return file


def test_files_of_edits_find_their_graph(run, tmp_path):
    graph = run.graphs["mine"]
    name, prompt = list(graph.prompt_ids)[1], graph.prompts[1]
    file = written(tmp_path / "a.json", name, prompt)
    assert edits_of(run, file)[0] == name
    assert edits_of(run, file)[1]["supernodes"] == made(prompt)["supernodes"]
    for more in ({}, {"behaviour": "mine"}, {"behaviour": None}):
        assert edits_of(run, written(tmp_path / "b.json", "aggregate", graph, **more))[0] == "mine"
    with pytest.raises(MechstudyError, match="edits of mine-999, which is no graph") as caught:
        edits_of(run, written(tmp_path / "c.json", "mine-999", prompt))
    assert "mine-001" in str(caught.value)
    for slug, more in (("aggregate", {"behaviour": "other"}), (3, {}), ("aggregate", {"behaviour": ["mine"]})):
        with pytest.raises(MechstudyError, match="which is no graph of this run"):
            edits_of(run, written(tmp_path / "d.json", slug, graph, **more))
    (tmp_path / "e.json").write_text("[1]")
    with pytest.raises(MechstudyError, match="does not say which graph"):
        edits_of(run, tmp_path / "e.json")


@pytest.mark.slow
def test_the_report_opens_with_edits_and_later_reports_too(run, tmp_path, monkeypatch):
    """And an archive takes them along."""
    study = study_file(run)
    graph = run.graphs["mine"]
    name = next(iter(graph.prompt_ids))
    one = written(tmp_path / "one.json", name, graph.prompts[0])
    all_of_them = written(tmp_path / "all.json", "aggregate", graph, behaviour="mine")
    before = {unit: artifact.id for unit, artifact in run.artifacts.items()}
    for words in (("--edits", one, "--edits", all_of_them), ()):
        said = mechstudy("report", study, "--out", run.path, *words).stderr
        assert (f"edits of {name}: 3 pins, 1 group, 1 label" in said) == bool(words)
        listed = (run.path / "report" / "data" / "graphs-mine.js").read_text()
        assert listed.count(" (edited)") == 2
        for view, edited in ((f"graph-mine-{name}", graph.prompts[0]), ("graph-mine-aggregate", graph)):
            text = (run.path / "report" / "data" / f"{view}.js").read_text()
            shown = json.loads(text[text.index(",") + 1 : text.rindex(")")])["edits"]
            assert shown["pinnedIds"] == made(edited)["pinnedIds"]
            assert shown["clerps"] == made(edited)["clerps"]
    after = ms.open_run(run.path)
    assert {unit: artifact.id for unit, artifact in after.artifacts.items() if unit in before} == before
    assert set(after.edits) == {name, "mine"}
    assert (
        after.graphs["mine"].prompts[0].edited(after.edits[name]).edits["pinnedIds"]
        == made(graph.prompts[0])["pinnedIds"]
    )
    monkeypatch.chdir(study.parent)
    (run.path / "asked_labels.json").write_text("{}")
    mechstudy("archive", study, "-o", tmp_path / "packed.tar.gz")
    mechstudy("restore", tmp_path / "packed.tar.gz", "--out", tmp_path / "restored")
    for name in ("edits.json", "asked_labels.json"):
        assert (tmp_path / "restored" / name).read_bytes() == (run.path / name).read_bytes()


def test_edits_of_another_graph_leave_the_report_as_it_is(run, tmp_path):
    study = study_file(run)
    name = next(iter(run.graphs["mine"].prompt_ids))
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"slug": name, "qParams": {"pinnedIds": ["9_9_9"]}}))
    kept = (run.path / "edits.json").read_bytes() if (run.path / "edits.json").exists() else None
    printed = mechstudy("report", study, "--out", run.path, "--edits", bad, code=2).output
    assert "1 node of 1 not in this graph" in printed
    assert (run.path / "edits.json").read_bytes() == kept if kept else not (run.path / "edits.json").exists()


def test_later_edits_replace_a_label_with_what_the_graph_was_made_with(run):
    for graph in (run.graphs["mine"], run.graphs["mine"].prompts[0]):
        node = graph.nodes["node"][0]
        twice = graph.edited({"clerps": [[node, "mine"]]}).edited({"clerps": []})
        assert twice.nodes.equals(graph.nodes)
        assert graph.edited({"clerps": [[node, "mine"]]}).nodes["label"][0] == "mine"
