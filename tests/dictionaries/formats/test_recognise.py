"""A folder or file is taken for what its files say, and refused where they say nothing or two things."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats import circuit_tracer, sparsify
from mechstudy.dictionaries.formats.cross_layer import write_clt
from mechstudy.dictionaries.formats.describe import describe
from mechstudy.dictionaries.formats.sets import sources
from mechstudy.dictionaries.loading import load_dictionaries
from tests.support.dictionary_files import D, F, X, clt, draw, transcoder
from tests.support.dictionary_worlds import random_dictionary
from tests.support.toy_model import mechstudy

MATRICES = {
    "W_enc": draw(D, F, seed=1),
    "b_enc": draw(F, seed=2),
    "W_dec": draw(F, D, seed=3),
    "b_dec": draw(D, seed=4),
}


def a_set(folder: Path) -> None:
    circuit_tracer.write_set([transcoder(layer) for layer in range(3)], folder, model_name="some/model")


WRITERS: dict[str, Callable[[Path], object]] = {
    "SAELens": lambda folder: random_dictionary("sae").save(folder),
    "sparsify": lambda folder: sparsify.write(random_dictionary("sae"), folder),
    "a transcoder set": a_set,
    "a cross-layer transcoder": lambda folder: write_clt(folder, **clt(True)),
    "Gemma Scope": lambda folder: save_file(MATRICES, folder / "params.safetensors"),
    "dictionary_learning": lambda folder: torch.save(MATRICES, folder / "ae.pt"),
    "Llama Scope": lambda folder: (folder / "hyperparams.json").write_text("{}"),
    "Qwen-Scope": lambda folder: torch.save(MATRICES, folder / "layer3.sae.pt"),
}


def merged(folder: Path, *names: str) -> Path:
    """A folder with the files of several tools; the last one's cfg.json stays."""
    folder.mkdir()
    for name in names:
        part = folder.parent / name.replace(" ", "-")
        part.mkdir(exist_ok=True)
        WRITERS[name](part)
        for path in part.iterdir():
            path.replace(folder / path.name)
    return folder


@pytest.mark.parametrize(("first", "second"), combinations(sorted(WRITERS), 2))
def test_two_tools_in_one_folder_are_refused_and_both_named(first, second, tmp_path):
    folder = merged(tmp_path / "two", first, second)
    for attempt in (Dictionary.load, describe, sources):
        with pytest.raises(MechstudyError, match="which is meant is not clear") as error:
            attempt(folder)
        assert {first, second} <= set(error.value.facts)


def test_naming_one_file_of_an_ambiguous_folder_is_no_way_around(tmp_path):
    folder = merged(tmp_path / "two", "SAELens", "sparsify")  # they share the name cfg.json
    with pytest.raises(MechstudyError, match="which is meant is not clear"):
        Dictionary.load(folder / "sae.safetensors")


@pytest.mark.parametrize(
    "files",
    [
        (),
        (".keep",),
        ("model.safetensors", "config.json"),
        ("pytorch_model.bin",),
        ("trainer_state.pt",),
        ("cfg.yaml",),
    ],
)
def test_a_folder_of_no_known_tool_lists_what_it_holds(files, tmp_path):
    for name in files:
        (tmp_path / name).write_text("{}")
    for attempt in (Dictionary.load, describe):
        with pytest.raises(MechstudyError, match="there is no dictionary") as error:
            attempt(tmp_path)
        assert all(name in error.value.facts["holds"] for name in files or ("nothing",)) and error.value.fix


@pytest.mark.parametrize(
    "tensors,what",
    [
        (
            {"encoder.weight": 2, "encoder.bias": 1, "decoder.weight": 2, "decoder.bias": 1},
            "a Llama Scope dictionary's",
        ),
        ({"encoder.weight": 2, "encoder.bias": 1, "W_dec": 2, "b_dec": 1}, "a sparsify dictionary's"),
        ({"W_E": 2, "b_E": 1, "W_D": 2, "b_D": 1}, "a Llama Scope 2 dictionary's"),
        ({"W_enc_0": 2, "b_enc_0": 1}, "one file of a cross-layer transcoder"),
        ({"model.layers.0.mlp.up_proj.weight": 2, "lm_head.weight": 2}, "no tensors of a known tool"),
    ],
)
def test_a_lone_file_is_named_by_its_tensors(tensors, what, tmp_path):
    save_file({name: torch.ones((2,) * ndim) for name, ndim in tensors.items()}, tmp_path / "weights.safetensors")
    with pytest.raises(MechstudyError, match=what):
        Dictionary.load(tmp_path / "weights.safetensors")


def test_saelens_weights_under_another_name_are_not_taken_for_circuit_tracers(tmp_path):
    save_file(MATRICES, tmp_path / "layer_3.safetensors")
    with pytest.raises(MechstudyError, match=r"a SAELens dictionary's tensors, which are not read without cfg\.json"):
        Dictionary.load(tmp_path / "layer_3.safetensors")


def test_a_file_without_a_number_names_no_layer(tmp_path):
    a_set(tmp_path / "set")
    (tmp_path / "set" / "layer_0.safetensors").rename(tmp_path / "transcoder.safetensors")
    assert Dictionary.load(tmp_path / "transcoder.safetensors").cfg.site_in == "mlp.hook_in"
    with pytest.raises(MechstudyError, match="does not name its layer"):
        load_dictionaries(tmp_path / "transcoder.safetensors")
    assert load_dictionaries({5: tmp_path / "transcoder.safetensors"})[5].cfg.d_sae == F


def test_layers_of_a_set_with_gaps_are_shown_alone_and_together(tmp_path):
    a_set(tmp_path)
    (tmp_path / "layer_1.safetensors").unlink()
    assert [entry["site_in"] for entry in describe(tmp_path)] == ["mlp_in.0", "mlp_in.2"]
    assert "mlp_in.2 -> mlp_out.2" in mechstudy("dictionary", "show", tmp_path / "layer_2.safetensors").output


@pytest.mark.parametrize("name", ["ae.pt", "sae.safetensors", "params.npz"])
def test_the_command_line_refuses_with_two_and_no_traceback(name, tmp_path):
    random_dictionary("sae").save(tmp_path)
    (tmp_path / name).write_text("x")
    output = mechstudy("dictionary", "show", tmp_path, code=2).output
    assert output.startswith("error: ") and "not clear" in output and "Traceback" not in output and "fix:" in output


# --------------------------------------------------------------------------------------------- sets that are listed


def listing(folder: Path, *entries: str, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_kind": "transcoder_set", "model_name": "some/model", "feature_input_hook": "hook_resid_mid",
               "feature_output_hook": "hook_mlp_out", "scan": "x", "transcoders": list(entries)}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(content | config))
    return folder


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Path:
    """A hub cache with two layers of a repository at two revisions, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository = tmp_path / "cache" / "models--owner--scope"
    for commit, names in (("a" * 40, (0, 1)), ("b" * 40, (2,))):
        for layer in names:
            folder = repository / "snapshots" / commit / f"layer_{layer}" / "width_16k"
            folder.mkdir(parents=True)
            save_file(
                MATRICES | {"threshold": draw(F, seed=layer).abs(), "b_dec": draw(D, seed=50 + layer)},
                folder / "params.safetensors",
            )
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "refs" / "v2").write_text("b" * 40)
    return repository


def test_a_listed_set_is_read_from_the_hubs_cache_with_the_lists_sites(cached, tmp_path):
    uris = [f"hf://owner/scope/layer_{layer}/width_16k/params.safetensors" for layer in range(3)]
    folder = listing(tmp_path / "set", uris[0], uris[1], f"{uris[2]}@v2")
    found = load_dictionaries(folder)
    assert [d.cfg.site_in for d in found.values()] == [f"resid_mid.{layer}" for layer in range(3)]
    assert {d.metadata["model_name"] for d in found.values()} == {"some/model"}
    assert torch.equal(found[2].b_dec, draw(D, seed=52))
    assert found[0].encode(X).shape[-1] == F
    listing(tmp_path / "set", uris[0], uris[1], f"{uris[2]}?revision=v2")
    assert torch.equal(load_dictionaries(tmp_path / "set")[2].b_dec, draw(D, seed=52))


def test_missing_files_of_a_listed_set_are_named_offline(cached, tmp_path):
    uris = [f"hf://owner/scope/layer_{layer}/width_16k/params.safetensors" for layer in range(3)]
    with pytest.raises(MechstudyError, match="1 of the 3 files that this transcoder set lists are not here") as error:
        load_dictionaries(listing(tmp_path / "set", *uris))
    assert error.value.facts["missing"] == uris[2]
    assert error.value.where is not None and error.value.where.endswith("config.yaml")


def test_a_set_address_on_the_hub_is_read_from_its_cache(cached, tmp_path):
    a_set(tmp_path / "files")
    snapshot = tmp_path / "cache" / "models--owner--set" / "snapshots" / ("c" * 40)
    (snapshot.parent.parent / "refs").mkdir(parents=True)
    (snapshot.parent.parent / "refs" / "main").write_text("c" * 40)
    snapshot.parent.mkdir()
    (tmp_path / "files").rename(snapshot)
    assert sorted(load_dictionaries("hf:owner/set")) == [0, 1, 2]
    uris = [f"hf://owner/scope/layer_{layer}/width_16k/params.safetensors" for layer in range(2)]
    for path in snapshot.iterdir():
        path.unlink()
    listing(snapshot, *uris)
    assert [d.cfg.site_in for d in load_dictionaries("hf:owner/set").values()] == ["resid_mid.0", "resid_mid.1"]


def test_local_files_of_a_list_stand_beside_it(tmp_path):
    a_set(tmp_path / "set")
    for layer in range(3):
        (tmp_path / "set" / f"layer_{layer}.safetensors").rename(tmp_path / "set" / f"part-{layer}.safetensors")
    listing(tmp_path / "set", *(f"part-{layer}.safetensors" for layer in (2, 0, 1)))
    found = load_dictionaries(tmp_path / "set")
    assert torch.equal(found[0].W_enc, transcoder(2).W_enc) and found[0].cfg.site_in == "resid_mid.0"
    (tmp_path / "set" / "part-1.safetensors").unlink()
    with pytest.raises(MechstudyError, match="1 of the 3 files") as error:
        load_dictionaries(tmp_path / "set")
    assert error.value.facts["missing"] == "part-1.safetensors"


def test_a_list_in_another_order_than_its_layers_is_refused(cached, tmp_path):
    uris = [f"hf://owner/scope/layer_{layer}/width_16k/params.safetensors" for layer in (1, 0)]
    with pytest.raises(MechstudyError, match=r"entry 0 of the list is a dictionary of resid_post\.1"):
        load_dictionaries(listing(tmp_path / "set", *uris))


@pytest.mark.parametrize("entries", ["x", [], [3], [None], ["hf://owner"], ["hf://owner/name"], ["hf://owner/../x/y"]])
def test_a_list_that_is_none_is_refused(entries, tmp_path):
    folder = listing(tmp_path / "set", transcoders=entries)
    with pytest.raises(MechstudyError):
        load_dictionaries(folder)


@pytest.mark.parametrize("name", ["sae.safetensors", "sae_weights.safetensors", "layer_0.safetensors"])
def test_weights_that_are_a_pointer_or_lead_nowhere_are_named(name, tmp_path):
    path = tmp_path / name
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "standard", "d_in": 4, "d_sae": 8, "k": 2}))
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(MechstudyError, match=f"{name} is a pointer of Git LFS"):
        Dictionary.load(path)
    path.unlink()
    path.symlink_to("../../blobs/gone")
    with pytest.raises(MechstudyError, match=r"is a link to \.\./\.\./blobs/gone, which is not there"):
        Dictionary.load(tmp_path if name != "layer_0.safetensors" else path)
