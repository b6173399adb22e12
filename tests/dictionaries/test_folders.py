"""Folders that dictionaries are written into: named by text or path, all files or none, no leftovers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats import circuit_tracer, cross_layer, sparsify
from mechstudy.dictionaries.formats.describe import describe
from mechstudy.dictionaries.training.trainer import train
from tests.support.dictionary_files import clt, trained_clt, transcoder
from tests.support.dictionary_worlds import random_dictionary


def write_set(n_layers: int, folder: str | Path) -> None:
    circuit_tracer.write_set([transcoder(layer) for layer in range(n_layers)], folder, model_name="some/model")


WRITERS: dict[str, Callable[[str | Path], None]] = {
    "dictionary": lambda folder: random_dictionary("sae").save(folder),
    "sparsify": lambda folder: sparsify.write(random_dictionary("sae"), folder),
    "set": lambda folder: write_set(2, folder),
    "clt": lambda folder: trained_clt(2).save(folder),
}
READERS: dict[str, Callable[[str | Path], object]] = {
    "dictionary": Dictionary.load,
    "sparsify": sparsify.read,
    "set": circuit_tracer.read_set,
    "clt": CrossLayerTranscoder.load,
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("path", [str, Path])
def test_a_folder_is_text_or_a_path(kind, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    WRITERS[kind](path("here"))
    READERS[kind](path("here"))
    assert not list(Path("here").glob(".*"))


def test_training_logs_and_saves_itself_where_a_text_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = TrainConfig(steps=4, batch_size=32, tensorboard=False, precision="float32")
    train(DictionaryConfig(kind="sae", d_sae=16, k=2), recipe, torch.randn(64, 8), out="log", checkpoint="at/step")
    assert Path("log/scalars.jsonl").read_text().count("\n") == 2 and Path("at/step").is_file()


def test_a_smaller_dictionary_leaves_no_layer_of_a_larger_one(tmp_path):
    trained_clt(4).save(tmp_path / "clt")
    trained_clt(2).save(tmp_path / "clt")
    assert CrossLayerTranscoder.load(tmp_path / "clt").n_sites == CrossLayerTranscoder.load(tmp_path / "clt").k == 2
    cross_layer.write_clt(tmp_path / "clt", **clt(False, 3))
    assert CrossLayerTranscoder.load(tmp_path / "clt").k is None  # of the one before, in mechstudy.json
    write_set(3, tmp_path / "set")
    (tmp_path / "set" / "README.md").write_text("mine")
    write_set(2, tmp_path / "set")
    assert sorted(circuit_tracer.read_set(tmp_path / "set")) == [0, 1]
    assert (tmp_path / "set" / "README.md").read_text() == "mine"


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("there", WRITERS)
def test_another_kind_s_folder_is_refused_and_left_as_it_was(kind, there, tmp_path):
    WRITERS[there](tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if kind == there:
        WRITERS[kind](tmp_path)
    else:
        with pytest.raises(MechstudyError, match="dictionary of another kind"):
            WRITERS[kind](tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_write_that_fails_leaves_the_dictionary_of_before(tmp_path, monkeypatch):
    trained_clt(3).save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real, calls = cross_layer.write_safetensors, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 3:
            raise OSError("no space left")
        real(tensors, path)

    monkeypatch.setattr(cross_layer, "write_safetensors", full)
    with pytest.raises(MechstudyError, match="cannot be written") as error:
        trained_clt(2).save(tmp_path)
    assert error.value.where == str(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_of_layers_is_read_below_them_as_gemma_scope_lays_it_out(tmp_path):
    for layer in (0, 1):
        place = tmp_path / f"layer_{layer}" / "width_16" / "average_l0_8"
        place.mkdir(parents=True)
        arrays = {"W_enc": (4, 6), "W_dec": (6, 4), "b_enc": (6,), "b_dec": (4,), "threshold": (6,)}
        np.savez(place / "params.npz", **{name: np.zeros(shape, dtype="float32") for name, shape in arrays.items()})
    about = describe(tmp_path)
    assert [entry["site_in"] for entry in about] == ["resid_post.0", "resid_post.1"]
    assert all(entry["site_assumed"] and entry["activation"] == "relu" for entry in about)
