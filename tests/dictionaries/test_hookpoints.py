"""A dictionary of a module's own output, at every way in of a model that norms that output before adding it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import mechstudy as ms
from mechstudy.cli.app import app
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries import fitted
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats import circuit_tracer, sparsify
from mechstudy.dictionaries.formats.describe import describe
from mechstudy.dictionaries.formats.hooks import HOOKPOINT
from mechstudy.planning.opened_study import open_study
from tests.support.clt_world import random_clt
from tests.support.interventions_world import transcoder
from tests.support.tiny import save_tiny, tiny_model
from tests.support.tiny_study import published_study, write_study

D, LAYERS = 16, (0, 1, 2)
SANDWICH = ("gemma2", "gemma3", "olmo2")
NORM = "after post_feedforward_layernorm"


def dictionaries() -> dict[int, Dictionary]:
    return {layer: transcoder(D, layer, n_features=24).float() for layer in LAYERS}


def _sparsify(folder: Path) -> Path:
    for layer, one in dictionaries().items():
        sparsify.write(one, folder / f"layers.{layer}.mlp")
    return folder


def _with_hook(folder: Path, hook: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"feature_output_hook": hook}))
    return folder


def _circuit_tracer(folder: Path) -> Path:
    circuit_tracer.write_set(dictionaries(), folder, model_name="acme/tiny")
    return _with_hook(folder, "mlp.hook_out")


def _listed(folder: Path) -> Path:
    _circuit_tracer(folder / "set")
    config = yaml.safe_load((folder / "set" / "config.yaml").read_text())
    files = [str(folder / "set" / f"layer_{layer}.safetensors") for layer in LAYERS]
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"transcoders": files}))
    return folder


def _cross_layer(folder: Path) -> Path:
    random_clt(tiny_model("llama", d=D), n_features=24).float().save(folder)
    return _with_hook(folder, "mlp.hook_out")


def _saelens(folder: Path, hook: str = "blocks.{}.mlp.hook_out") -> Path:
    for layer, one in dictionaries().items():
        one.save(folder / f"layer_{layer}")
        path = folder / f"layer_{layer}" / "cfg.json"
        cfg = json.loads(path.read_text())
        names = {"hook_name": f"blocks.{layer}.mlp.hook_in", "hook_name_out": hook.format(layer)}
        cfg |= {"metadata": names, "architecture": "topk_transcoder" if "topk" in cfg["architecture"] else "transcoder"}
        path.write_text(json.dumps(cfg | {"architecture": "transcoder"}))
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "sparsify": _sparsify,
    "circuit-tracer": _circuit_tracer,
    "a list": _listed,
    "cross-layer": _cross_layer,
    "SAELens": _saelens,
}


def pair() -> ms.PromptPair:
    texts = {"clean": "ab", "corrupted": "cd", "answer": "x", "wrong_answer": "y"}
    tokens = {"clean_tokens": (1, 2), "corrupted_tokens": (3, 4), "answer_tokens": (5,), "wrong_tokens": (6,)}
    return ms.PromptPair(id="p", template="t", group="g", positions={"last": 1}, **texts, **tokens)


@pytest.fixture(scope="module", params=WRITERS)
def place(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "published"
    folder.mkdir()
    return WRITERS[request.param](folder)


@pytest.fixture(scope="module", params=SANDWICH)
def model(request) -> ms.LanguageModel:
    return tiny_model(request.param, dtype="float32", d=D)


def test_files_that_name_a_module_say_so(place):
    entries = describe(place, mapped=True)
    assert all(HOOKPOINT in entry and "mlp" in entry[HOOKPOINT] for entry in entries)
    assert {str(entry["site_out"]).partition(".")[0] for entry in entries} == {"mlp_out"}


def test_the_api_refuses_them_on_a_model_that_norms_the_output(place, model):
    for lazy in (False, True):
        dicts = ms.load_dictionaries(place, lazy=lazy)
        assert set(dicts) == set(LAYERS)
        pairs = [pair()]
        for use in (
            lambda dicts=dicts: ms.attribute(model, dicts, "ab"),
            lambda dicts=dicts, pairs=pairs: ms.ablate(model, dicts, pairs, ["1/3"], to="zero", n_controls=0),
            lambda dicts=dicts: ms.generate(model, "ab", steer={"1/3": 2.0}, dictionaries=dicts),
            lambda dicts=dicts, pairs=pairs: ms.components(model, pairs, dictionaries=dicts),
            lambda dicts=dicts: fitted(model, dicts[1]),
        ):
            with pytest.raises(MechstudyError, match=NORM) as error:
                use()
            assert "hookpoint" in error.value.facts and "post_feedforward_layernorm" in str(error.value.fix)


def test_they_are_used_on_a_model_without_such_a_norm(place):
    llama = tiny_model("llama", dtype="float32", d=D)
    graph = ms.attribute(llama, ms.load_dictionaries(place), "ab")
    assert graph.scores()["conservation_residual_max"] < 1e-3
    assert ms.generate(llama, "ab", steer={"1/3": 2.0}, dictionaries=ms.load_dictionaries(place), max_new_tokens=1)


@pytest.fixture(scope="module", params=SANDWICH)
def study(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write_study(folder, d=D)
    save_tiny(folder / "model", request.param, d=D)
    return folder


@pytest.mark.parametrize("more", [{}, {"site": "mlp_out"}])
def test_a_study_refuses_them_before_anything_runs(place, study, more):
    file = published_study(study, "theirs", **{"from": str(place)}, **more)
    with pytest.raises(MechstudyError, match=NORM) as error:
        open_study(file)
    assert "dictionaries.from" in error.value.what and "theirs.yaml:" in str(error.value.where)
    for command in ("plan", "run", "validate"):
        shown = CliRunner().invoke(app, [command, str(file)])
        assert shown.exit_code == 2 and NORM.split()[1] in shown.stdout + shown.stderr


def test_a_site_that_the_study_names_does_not_make_the_module_another_tensor(study, tmp_path):
    _saelens(tmp_path / "set", "model.layers.{}.mlp")
    with pytest.raises(MechstudyError, match="which is no site of the model"):
        open_study(published_study(study, "unnamed", **{"from": str(tmp_path / "set")}))
    named = published_study(study, "named", **{"from": str(tmp_path / "set")}, site="mlp_out")
    with pytest.raises(MechstudyError, match=NORM):
        open_study(named)


def test_the_module_of_a_model_that_the_files_name_keeps_its_name(tmp_path):
    circuit_tracer.write_set(dictionaries(), tmp_path / "set", model_name="google/gemma-2-2b")
    one = ms.load_dictionaries({1: _with_hook(tmp_path / "set", "mlp.hook_out") / "layer_1.safetensors"})[1]
    assert one.cfg.site_out == "blocks.1.mlp.hook_out"
    _with_hook(tmp_path / "set", "hook_mlp_out")
    one = ms.load_dictionaries({1: tmp_path / "set" / "layer_1.safetensors"})[1]
    assert one.cfg.site_out == "mlp_out.1" and HOOKPOINT not in one.metadata


def test_a_cross_layer_transcoder_that_is_saved_again_is_still_of_its_module(tmp_path):
    whole = CrossLayerTranscoder.load(_cross_layer(tmp_path / "clt"))
    whole.save(tmp_path / "again")
    assert HOOKPOINT in CrossLayerTranscoder.load(tmp_path / "again").layer(1).metadata
    assert HOOKPOINT in ms.load_dictionaries(tmp_path / "again")[1].metadata
