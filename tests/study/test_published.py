"""Studies of published dictionaries: from the file to the report, without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import mechstudy as ms
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats import circuit_tracer
from mechstudy.dictionaries.lazy import LazyDictionary
from mechstudy.planning.opened_study import open_study
from mechstudy.study.finished import dictionary_places, latest
from mechstudy.study.phases.train import load_published
from tests.support.interventions_world import transcoder
from tests.support.tiny_study import published_study, units_of, write_study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A study's files, and ``set``: two transcoders of its model that somebody has trained."""
    folder = tmp_path_factory.mktemp("published")
    write_study(folder)
    for layer in (0, 2):
        transcoder(16, layer, n_features=24).to(dtype=torch.float32).save(folder / "set" / f"layer_{layer}")
    return folder


@pytest.fixture(scope="module")
def run(world) -> ms.Run:
    file = published_study(world, "whole", **{"from": "set"})
    return ms.Study.load(file, out=world / "runs" / "whole", say=lambda _: None).run()


def test_nothing_is_captured_or_trained(world):
    planned = units_of(published_study(world, "planned", **{"from": "set"}))
    kinds = {unit.phase.kind for unit in planned.values()}
    assert "published" in kinds and not kinds & {"capture", "train", "stream", "variant"}
    assert [name for name in planned if name.startswith("published")] == ["published[0]", "published[2]"]


def test_a_study_runs_to_its_report(run, world):
    assert set(run.dictionaries) == {0, 2}
    evaluation = json.loads((latest(run.path)["published[2]"].path / "evaluation.json").read_text())
    assert (evaluation["site_in"], evaluation["d_sae"], evaluation["steps"]) == ("mlp_in.2", 24, None)
    assert evaluation["fvu"] > 1 and "no better than the mean" in evaluation["health"][0]["text"]
    source = json.loads((latest(run.path)["published[2]"].path / "source.json").read_text())
    assert source["address"] == "set" and source["path"] == str(world / "set" / "layer_2")
    page = (run.path / "report" / "index.html").parent / "dictionaries.html"
    assert "mlp_in" in page.read_text()


def test_graphs_are_of_the_published_features(run, world):
    own = ms.load_dictionaries(world / "set")
    model = ms.load_model(world / "model", device="cpu")
    pair = ms.load_prompts(world / "prompts.jsonl", model, split="train")[0]
    scores = ms.attribute(model, own, pair, config=ms.AttributionConfig(max_features=40)).scores()
    of_run = json.loads((latest(run.path)["attribute[mine]"].path / "scores.json").read_text())["per_prompt"]
    [row] = [row for row in of_run if row["prompt_id"] == pair.id]
    residuals = scores.pop("conservation_residual_max"), row["conservation_residual_max"]
    assert (
        max(residuals) < 1e-4
    )  # each is float32's rounding, which MKL does not repeat where memory is aligned otherwise
    assert {name: row[name] for name in scores} == pytest.approx(scores)


def test_one_layer_and_a_mapping_and_a_run(world, run):
    some = units_of(published_study(world, "some", **{"from": "set", "layers": [2]}))
    assert [name for name in some if name.startswith("published")] == ["published[2]"]
    one = units_of(published_study(world, "one", **{"from": {2: "set/layer_2"}}))
    spec = one["published[2]"].spec
    assert (spec.site_in, spec.path) == ("mlp_in.2", str(world / "set" / "layer_2"))
    trained = ms.Study.load(world / "study.yaml", out=world / "runs" / "trained", say=lambda _: None)
    trained.run(["train[0]", "train[1]"])
    folders = dictionary_places(latest(world / "runs" / "trained"))
    again = units_of(published_study(world, "again", **{"from": "runs/trained"}))
    assert again["published[1]"].spec.path == str(folders[1])


def test_matrices_stay_in_their_files_and_the_plan_counts_the_layer_in_use(world):
    planned = units_of(published_study(world, "lazy", **{"from": "set"}))
    held = {one.name: one for one in planned["attribute[mine]"].estimate.holds}["dictionaries"]
    assert (held.count, held.touched, held.stored) == (2 * 24 * 32, 24 * 32, "float32")
    assert isinstance(load_published(planned["published[0]"].spec.canonical(), "cpu"), LazyDictionary)


def test_a_sets_config_is_part_of_what_a_dictionary_is(world):
    circuit_tracer.write_set({layer: transcoder(16, layer, n_features=24) for layer in range(3)}, world / "tracer",
                             model_name="tiny")  # fmt: skip
    file = published_study(world, "set", **{"from": "tracer"})
    before = units_of(file)["published[1]"].spec
    config = yaml.safe_load((world / "tracer" / "config.yaml").read_text())
    (world / "tracer" / "config.yaml").write_text(yaml.safe_dump(config | {"model_name": "other"}))
    assert units_of(file)["published[1]"].spec.sha256 != before.sha256
    with pytest.raises(MechstudyError, match="was changed"):
        load_published(before.canonical(), "cpu")


def test_a_site_that_files_do_not_name_is_the_studys(world):
    transcoder(16, 1, n_features=24).to(dtype=torch.float32).save(world / "unnamed")
    cfg = json.loads((world / "unnamed" / "cfg.json").read_text())
    cfg["metadata"] = {"hook_name": "here", "hook_name_out": "there"}
    (world / "unnamed" / "cfg.json").write_text(json.dumps(cfg | {"architecture": "transcoder"}))
    with pytest.raises(MechstudyError, match="no site of the model") as error:
        units_of(published_study(world, "unnamed", **{"from": {1: "unnamed"}}))
    assert "dictionaries.site" in error.value.fix
    spec = units_of(published_study(world, "named", **{"from": {1: "unnamed"}, "site": "mlp_in"}))["published[1]"].spec
    assert (spec.site_in, spec.site_out) == ("mlp_in.1", "mlp_in.1")


@pytest.mark.parametrize(
    ("dictionaries", "message"),
    [
        ({"from": "nowhere"}, "there is no file or folder"),
        ({"from": "set", "layers": [1]}, "no dictionary of layer 1"),
        ({"from": ["set", "set/layer_2"]}, "two dictionaries are of layer 2"),
        ({"from": {9: "set/layer_2"}}, "of layer 2, and is given as layer 9's"),
        ({"from": {1: "set"}}, "holds 2 dictionaries"),
        ({"from": "set", "training": {"steps": 5}}, "how to train some"),
        ({"source": "published"}, "published dictionaries are named by"),
        ({"from": "saelens:gpt2-small/x"}, "sae-lens is not installed|registry has no"),
    ],
)
def test_what_cannot_be_used_is_refused_at_the_field(world, dictionaries, message):
    with pytest.raises(MechstudyError, match=message) as error:
        open_study(published_study(world, "refused", **dictionaries))
    assert "refused.yaml" in str(error.value) and "dictionaries" in str(error.value)


def test_a_dictionary_of_another_width_is_refused(world):
    transcoder(8, 1, n_features=12).to(dtype=torch.float32).save(world / "narrow")
    with pytest.raises(MechstudyError, match="has width 8 at mlp_in, the model 16"):
        open_study(published_study(world, "narrow", **{"from": "narrow"}))


def test_other_files_are_another_study_and_a_changed_file_is_refused(world):
    shutil.copytree(world / "set", world / "copy")
    file = published_study(world, "changing", **{"from": "copy"})
    before = units_of(file)["published[0]"].spec
    mine = ms.Study.load(file, out=world / "runs" / "changing", say=lambda _: None)
    finished = mine.run(["published[0]"])
    source = json.loads((latest(finished.path)["published[0]"].path / "source.json").read_text())
    assert load_published(source, "cpu").cfg.k == 8
    transcoder(16, 0, n_features=24, k=7).to(dtype=torch.float32).save(world / "copy" / "layer_0")
    after = units_of(file)["published[0]"].spec
    assert before.sha256 != after.sha256 and finished.path.exists()
    with pytest.raises(MechstudyError, match="was changed"):
        load_published(source, "cpu")


def test_a_study_without_published_dictionaries_is_stored_as_before(world):
    canonical = open_study(world / "study.yaml").study.canonical()
    assert "from" not in canonical["dictionaries"] and "published" not in canonical["dictionaries"]


def test_the_plan_says_sites_other_models_and_what_is_assumed(world):
    circuit_tracer.write_set({layer: transcoder(16, layer, n_features=24) for layer in range(3)}, world / "others",
                             model_name="Qwen/Qwen3-4B")  # fmt: skip
    opened = open_study(published_study(world, "others", **{"from": "others"}))
    [note] = [note for note in opened.notes if "made for" in note]
    assert "made for Qwen/Qwen3-4B" in note and "this model is model" in note and "layers 0, 1, 2" in note
    notes = {unit.layer: unit.estimate.note for unit in opened.units if unit.name.startswith("published")}
    assert notes[1] == "mlp_in.1 to mlp_out.1, from others"
    place = world / "unstated" / "layer_1" / "width_24"
    place.mkdir(parents=True)
    arrays = {"W_enc": (16, 24), "W_dec": (24, 16), "b_enc": (24,), "b_dec": (16,), "threshold": (24,)}
    np.savez(place / "params.npz", **{name: np.ones(shape, dtype="float32") for name, shape in arrays.items()})
    opened = open_study(published_study(world, "unstated", **{"from": "unstated"}))
    assert any("resid_post is assumed" in note for note in opened.notes)
    [unit] = [unit for unit in opened.units if unit.name == "published[1]"]
    assert unit.estimate.note == "resid_post.1 (assumed), from unstated"
    spec = units_of(published_study(world, "stated", **{"from": "unstated", "site": "mlp_in"}))["published[1]"].spec
    assert spec.site_in == "mlp_in.1"


def test_layers_of_a_larger_set_can_be_chosen(world):
    circuit_tracer.write_set({layer: transcoder(16, layer, n_features=24) for layer in range(9)}, world / "larger",
                             model_name="tiny")  # fmt: skip
    some = units_of(published_study(world, "larger", **{"from": "larger", "layers": "0-1"}))
    assert [name for name in some if name.startswith("published")] == ["published[0]", "published[1]"]
    with pytest.raises(MechstudyError, match="which the model does not have") as error:
        units_of(published_study(world, "larger", **{"from": "larger"}))
    assert "dictionaries.layers: 0-" in str(error.value.fix)
