"""A finished run of a tiny model: everything that can be read from its folder."""

import polars as pl
import pytest

import mechstudy as ms
from tests.support.api_world import error_of
from tests.support.tiny_study import write_study

TABLES = ("baseline", "evaluations", "features", "effects", "edges", "patching", "dose_response", "units")
UNITS = ["baseline[mine]", "intervene[mine]", "features"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    study = ms.Study.load(write_study(folder), out=folder / "run", say=lambda _: None)
    assert study.config.name == "tiny"
    assert set(UNITS) < set(study.units)
    return study.run(UNITS)


def test_opening_the_folder_gives_what_running_gave(run):
    again = ms.open_run(run.path)
    assert again.units.equals(run.units)
    assert set(again.units["phase"]) >= {"model", "prompts", "baseline", "train", "attribute", "features", "intervene"}
    assert again.model["n_layers"] == 3
    assert again.study["name"] == "tiny"


def test_graphs_of_a_behaviour_and_of_its_prompts(run):
    graph = run.graphs["mine"]
    assert graph.top(3)["contrast_effect"].is_sorted()
    assert graph.top(3, by="|contrast_effect|")["contrast_effect"].abs().is_sorted(descending=True)
    assert graph.top(3, by="live_effect")["live_effect"].is_sorted(descending=True)
    assert set(graph.edges["source"]) <= set(graph.nodes["node"])
    assert 0 < graph.scores()["replacement"] < 1
    assert len(graph.prompts) == 5
    prompt = graph.prompts[0]
    assert prompt.prompt == run.prompts["mine"][0].clean
    assert prompt.ledger["total"] == pytest.approx(prompt.ledger["target"], rel=1e-3)
    assert "srcdoc" in graph._repr_html_()
    assert "srcdoc" in prompt._repr_html_()


def test_dictionaries_are_read_by_layer(run):
    assert list(run.dictionaries) == [0, 1]
    assert run.dictionaries[1].cfg.site_out == "mlp_out.1"
    assert list(ms.load_dictionaries(run.path)) == [0, 1]


def test_effects_are_those_of_the_summary(run):
    [artifact] = [a for a in run.artifacts.values() if a.phase == "intervene"]
    groups = artifact.read_json("summary.json")["groups"]
    assert run.effects["effect"].to_list() == [group["effect"] for group in groups]
    assert run.effects["effect_low"].to_list() == [group["ci95"][0] for group in groups]
    assert run.effects["members"].list.len().to_list() == [len(group["members"]) for group in groups]


def test_every_table_has_rows(run):
    for name in TABLES:
        frame = getattr(run, name)
        assert isinstance(frame, pl.DataFrame)
        assert len(frame), name
    assert run.evaluations["layer"].to_list() == [0, 1]
    assert run.baseline["split"].to_list() == ["train", "test"]
    assert run.features["feature"].str.contains(r"^\d+/\d+$").all()
    assert len(run.samples["mine"]) > 100


def test_a_graphs_rows_of_a_run_can_be_ablated_where_they_stand(run):
    model = ms.load_model(run.path.parent / "model", device="cpu")
    result = ms.ablate(model, run.dictionaries, run.prompts["mine"], run.graphs["mine"].top(2), to="mean")
    assert all(feature.position != "all" for feature in result.features)


def test_of_several_artifacts_of_a_unit_the_newest_is_read(run, tmp_path):
    import shutil

    from mechstudy.core.jsonio import read_json
    from mechstudy.store.manifest import write_manifest

    shutil.copytree(run.path, tmp_path / "run")
    [folder] = (tmp_path / "run" / "artifacts" / "train").glob("train-1-*/")
    shutil.copytree(folder, folder.with_name("train-1-older"))
    older = read_json(folder / "manifest.json") | {"id": "0" * 64, "finished": "2001-01-01T00:00:00+00:00"}
    write_manifest(folder.with_name("train-1-older"), older)
    assert ms.open_run(tmp_path / "run").artifacts["train[1]"].path == folder


def test_a_wrong_name_lists_the_valid_ones(run):
    assert error_of(lambda: run.graphs["mne"]) == (
        "there is no behaviour 'mne'\n  behaviours: mine\n  fix:        did you mean 'mine'?"
    )
    assert "layers: 0, 1" in error_of(lambda: run.dictionaries[7])
    assert "other" not in run.graphs


def test_a_folder_that_is_no_run_names_runs_nearby(run, tmp_path):
    assert "no artifacts/" in error_of(lambda: ms.open_run(tmp_path))
    near = error_of(lambda: ms.open_run(run.path.parent / "rnu"))
    assert "no such folder" in near
    assert str(run.path) in near


def test_an_empty_table_has_columns_of_a_full_one(run, tmp_path):
    (tmp_path / "artifacts").mkdir()
    for name in TABLES:
        empty = getattr(ms.open_run(tmp_path), name)
        assert set(empty.columns) <= set(getattr(run, name).columns), name
        assert len(empty.filter(pl.col(empty.columns[0]).is_not_null())) == 0


def test_what_was_not_made_is_empty(tmp_path):
    (tmp_path / "artifacts").mkdir()
    run = ms.open_run(tmp_path)
    assert len(run.effects) == len(run.units) == len(run.graphs) == len(run.patching) == 0
    assert "no finished dictionaries" in error_of(lambda: ms.load_dictionaries(tmp_path))
