"""Dictionaries whose matrices stay in their files give the results of loaded ones, and hold no matrix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mechstudy.behaviours.contrast import Contrast
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.live import live_effects
from mechstudy.circuits.targets import AnswerContrast
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats import circuit_tracer, sparsify
from mechstudy.dictionaries.lazy import LazyDictionary
from mechstudy.dictionaries.loading import DictionarySet, load_dictionaries
from mechstudy.dictionaries.stored import DictionaryMeta, FileTensor
from tests.support.dictionary_files import D, F, K, X, draw, learned, transcoder
from tests.support.dictionary_worlds import random_dictionary
from tests.support.tiny import tiny_model

T = {"W_enc": draw(D, F, seed=1), "b_enc": draw(F, seed=2), "W_dec": draw(F, D, seed=3), "b_dec": draw(D, seed=4)}


def one_layer(folder: Path) -> Path:
    circuit_tracer.write_set([transcoder(0)], folder, model_name="m")
    return folder / "layer_0.safetensors"


def as_sparsify(folder: Path) -> Path:
    meta = DictionaryMeta("sae", "topk", D, D, F, K, "x", "x")
    sparsify.write(Dictionary(meta, **T), folder)
    return folder


def saelens(architecture: str, **fields: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        save_file(T | {"threshold": draw(F, seed=5).abs()}, folder / "sae_weights.safetensors")
        content = {"architecture": architecture, "d_in": D, "d_sae": F, "k": K, "apply_b_dec_to_input": True}
        (folder / "cfg.json").write_text(json.dumps(content | fields))
        return folder

    return write


def as_gemma_scope(suffix: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        t = {name.lower(): tensor for name, tensor in T.items()} | {"threshold": draw(F, seed=5).abs()}
        if suffix == "npz":
            np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in t.items()})
        else:
            save_file(t, folder / "params.safetensors")
        return folder

    return write


def as_dictionary_learning(folder: Path) -> Path:
    torch.save(learned("GatedAutoEncoder")[0], folder / "ae.pt")
    return folder


def as_qwen_scope(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({"k": K}))
    t = {"W_enc": T["W_enc"].T.contiguous(), "W_dec": T["W_dec"].T.contiguous()}
    torch.save(T | t, folder / "layer3.sae.pt")
    return folder / "layer3.sae.pt"


def ours(folder: Path) -> Path:
    random_dictionary("skip_transcoder", "jumprelu", max_input_norm=9.5).save(folder)
    return folder


MAPPED: dict[str, Callable[[Path], Path]] = {  # both matrices stay in the file
    "ours": ours,
    "SAELens": saelens("jumprelu"),
    "circuit-tracer": one_layer,
    "sparsify": as_sparsify,
    "Gemma Scope 2": as_gemma_scope("safetensors"),
}
WHOLE: dict[str, Callable[[Path], Path]] = {  # the reader computes or unpacks them
    "SAELens topk": saelens("topk", rescale_acts_by_decoder_norm=True),
    "SAELens abstopk": saelens("abstopk"),
    "Gemma Scope": as_gemma_scope("npz"),
    "dictionary_learning": as_dictionary_learning,
    "Qwen-Scope": as_qwen_scope,
}


@pytest.mark.parametrize("name", [*MAPPED, *WHOLE])
def test_a_lazy_dictionary_computes_what_a_loaded_one_does(name, tmp_path):
    place = (MAPPED | WHOLE)[name](tmp_path)
    loaded, lazy = Dictionary.load(place), LazyDictionary(place)
    assert lazy.cfg == loaded.cfg and set(lazy._files) == ({"W_enc", "W_dec"} if name in MAPPED else set())
    torch.testing.assert_close(lazy.encode(X), loaded.encode(X))
    torch.testing.assert_close(lazy.reconstruct(X), loaded.reconstruct(X))
    for values, others in zip(lazy.encode_sparse(X), loaded.encode_sparse(X), strict=True):
        torch.testing.assert_close(values, others)
    features = torch.tensor([F - 1, 0, 3])
    assert torch.equal(lazy.encoder_rows(features), loaded.encoder_rows(features))
    assert torch.equal(lazy.decoder_rows(features.tolist()), loaded.decoder_rows(features))
    lazy.save(tmp_path / "saved")
    saved = Dictionary.load(tmp_path / "saved")
    assert saved.cfg == loaded.cfg
    for tensor, parameter in loaded.named_parameters():
        torch.testing.assert_close(dict(saved.named_parameters())[tensor], parameter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_and_results_have_the_dtype_that_was_asked_for(dtype, tmp_path):
    place = one_layer(tmp_path)
    lazy, loaded = LazyDictionary(place, dtype=dtype), Dictionary.load(place, dtype=dtype)
    assert lazy.encode(X).dtype == lazy.decoder_rows([1]).dtype == lazy.encoder_rows([1]).dtype == dtype
    torch.testing.assert_close(lazy.encode(X), loaded.encode(X))
    assert lazy.to(dtype=torch.float64).encode(X).dtype == torch.float64


@pytest.mark.parametrize("name", MAPPED)
def test_matrices_are_not_read_before_they_are_used(name, tmp_path):
    place = MAPPED[name](tmp_path)
    path = next(path for path in tmp_path.rglob("*.safetensors"))
    stored = load_file(path)
    decoder = next(name for name in stored if name.lower() == "w_dec")
    save_file(stored | {decoder: stored[decoder].index_fill(0, torch.tensor([2]), float("nan"))}, path)
    with pytest.raises(MechstudyError, match="no finite numbers"):
        Dictionary.load(place)
    lazy = LazyDictionary(place)
    assert lazy.encode(X).isfinite().all() and lazy.decoder_rows([0, 1, 3]).isfinite().all()
    with pytest.raises(MechstudyError, match="W_dec holds values that are no finite numbers"):
        lazy.decoder_rows([2])


def test_an_encoder_that_is_not_finite_is_refused_when_it_encodes(tmp_path):
    path = one_layer(tmp_path)
    stored = load_file(path)
    stored["W_enc"][4, 1] = float("inf")
    save_file(stored, path)
    lazy = LazyDictionary(path)
    with pytest.raises(MechstudyError, match="W_enc holds values that are no finite numbers") as error:
        lazy.encode(X)
    assert error.value.where == str(path)


def test_a_file_that_is_gone_is_named(tmp_path):
    path = one_layer(tmp_path)
    lazy = LazyDictionary(path)
    path.unlink()
    with pytest.raises(MechstudyError, match="can no longer be read") as error:
        lazy.encode(X)
    assert error.value.where == str(path)


# ---------------------------------------------------------------------------------------------------- sets, graphs


def a_set(folder: Path, n_layers: int = 3, d: int = 32, n_features: int = 80) -> Path:
    layers = []
    for layer in range(n_layers):
        meta = DictionaryMeta(
            "skip_transcoder", "topk", d, d, n_features, 5, f"mlp_in.{layer}", f"mlp_out.{layer}", {"model_name": "m"}
        )
        seed = 10 * layer
        t = {"W_enc": draw(d, n_features, seed=seed), "b_enc": draw(n_features, seed=seed + 1)}
        t |= {"W_dec": draw(n_features, d, seed=seed + 2), "b_dec": draw(d, seed=seed + 3)}
        layers.append(Dictionary(meta, **t, W_skip=draw(d, d, seed=seed + 4)))
    circuit_tracer.write_set(layers, folder, model_name="m")
    return folder


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Matrices that are opened: file and tensor."""
    names: list[str] = []
    real = FileTensor.tensor

    def tensor(self: FileTensor) -> torch.Tensor:
        names.append(f"{self.path.stem} {self.name}")
        return real(self)

    monkeypatch.setattr(FileTensor, "tensor", tensor)
    return names


def test_opening_a_set_opens_no_matrix_and_a_layer_only_its_own(opened, tmp_path):
    dicts = load_dictionaries(a_set(tmp_path), lazy=True)
    assert list(dicts) == [0, 1, 2] and dicts.frame.height == 3 and opened == []
    dicts[1].encode(draw(4, 32, seed=0))
    assert set(opened) == {"layer_1 W_enc"}
    dicts[2].decoder_rows([3])
    assert set(opened) == {"layer_1 W_enc", "layer_2 W_dec"}


def test_a_set_of_paths_reads_a_file_when_its_layer_is_asked_for(tmp_path):
    a_set(tmp_path)
    (tmp_path / "layer_2.safetensors").write_text("damaged")
    dicts = DictionarySet({layer: tmp_path / f"layer_{layer}.safetensors" for layer in range(3)}, lazy=True)
    assert isinstance(dicts[0], LazyDictionary) and dicts[0] is dicts[0]
    with pytest.raises(MechstudyError, match="truncated or damaged"):
        dicts[2].encode(draw(4, 32, seed=0))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_graph_from_a_lazy_set_equals_that_of_a_loaded_one(family, opened, tmp_path):
    model, tokens = tiny_model(family), torch.tensor([3, 1, 4, 1, 5])
    config = AttributionConfig(max_features=40)
    a_set(tmp_path)
    loaded, lazy = load_dictionaries(tmp_path), load_dictionaries(tmp_path, lazy=True)
    graphs = [attribute(model, dicts, tokens, config, answer=2, wrong_answer=7) for dicts in (loaded, lazy)]
    for name in ("feature_layer_S", "feature_position_S", "feature_id_S", "column_R"):
        assert torch.equal(getattr(graphs[0], name), getattr(graphs[1], name)), name
    torch.testing.assert_close(graphs[0].A_RS, graphs[1].A_RS)
    assert graphs[1].conservation_residual_max() < 1e-9
    effects = [live_effects(model, dicts, graphs[0], AnswerContrast(Contrast((2,), (7,)))) for dicts in (loaded, lazy)]
    torch.testing.assert_close(*effects)
    decoders = [name for name in opened if name.endswith("W_dec")]
    assert len(decoders) == 6, decoders  # of each layer once for the graph, and once for live effects


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of mapped pages")
def test_pages_that_were_read_do_not_accumulate_over_layers(tmp_path):
    d, n_features, n_layers = 256, 8192, 6
    size = 4 * d * n_features  # of one matrix, in bytes
    for layer in range(n_layers):
        t = {"W_enc": torch.rand(n_features, d), "W_dec": torch.rand(n_features, d)}
        save_file(
            t | {"b_enc": torch.zeros(n_features), "b_dec": torch.zeros(d)}, tmp_path / f"layer_{layer}.safetensors"
        )
    dicts, x, some = load_dictionaries(tmp_path, lazy=True), torch.rand(2, d), range(0, n_features, 50)

    def mapped() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssFile")))

    assert dicts[0].encode(x).shape == (2, n_features) and dicts[0].decoder_rows(some).shape[1] == d
    before = mapped()
    for dictionary in dicts.values():
        dictionary.encode(x)
        dictionary.decoder_rows(some)
    assert mapped() - before < size, "the matrices of six layers are twelve times that"
