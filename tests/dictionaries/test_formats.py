"""Other tools' files compute here what they compute there; their formulas are written out beside each."""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary, DictionaryMeta
from mechstudy.dictionaries.formats import circuit_tracer, saelens_foreign, sparsify
from mechstudy.dictionaries.formats.cross_layer import read_clt, write_clt
from mechstudy.dictionaries.loading import load_dictionaries
from tests.support.dictionary_files import CLASSES, D, F, K, X, clt, draw, largest, learned, transcoder

# ---------------------------------------------------------------------------------------------- sparsify


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_sparsify_folders_compute_the_same_and_survive_a_round_trip(transcode, skip, tmp_path):
    folder = tmp_path / "layers.3.mlp"
    folder.mkdir()
    t = {"encoder.weight": draw(F, D, seed=1), "encoder.bias": draw(F, seed=2), "W_dec": draw(F, D, seed=3)}
    t |= {"b_dec": draw(D, seed=4)} | ({"W_skip": draw(D, D, seed=5)} if skip else {})
    save_file(t, folder / "sae.safetensors")
    content = {"activation": "topk", "num_latents": F, "k": K, "d_in": D, "transcode": transcode}
    (folder / "cfg.json").write_text(json.dumps(content | {"skip_connection": skip, "signed": False}))
    x = X if transcode else X - t["b_dec"]
    f = largest(x @ t["encoder.weight"].T + t["encoder.bias"])
    y = f @ t["W_dec"] + t["b_dec"] + (X @ t["W_skip"].T if skip else 0)
    dictionary = Dictionary.load(folder)
    torch.testing.assert_close(dictionary.encode(X), f)
    torch.testing.assert_close(dictionary.reconstruct(X), y)
    assert (dictionary.cfg.site_in, dictionary.cfg.site_out) == ("mlp_in.3" if transcode else "mlp_out.3", "mlp_out.3")
    if skip and not transcode:
        return  # the one form that is not written again: an autoencoder with a skip path
    sparsify.write(dictionary, tmp_path / "again")
    written = load_file(tmp_path / "again" / "sae.safetensors")
    for name, tensor in t.items():
        torch.testing.assert_close(written[name], tensor)


def test_sparsify_groupmax_is_refused(tmp_path):
    (tmp_path / "cfg.json").write_text(json.dumps({"activation": "groupmax", "d_in": D}))
    save_file({"b_dec": draw(D, seed=4)}, tmp_path / "sae.safetensors")
    with pytest.raises(MechstudyError, match="groupmax"):
        Dictionary.load(tmp_path)


def test_a_k_above_the_number_of_features_is_refused_with_the_folder(tmp_path):
    t = {"W_enc": draw(D, F, seed=1), "b_enc": draw(F, seed=2), "W_dec": draw(F, D, seed=3), "b_dec": draw(D, seed=4)}
    sparsify.write(Dictionary(DictionaryMeta("sae", "topk", D, D, F, K, "x", "x"), **t), tmp_path)
    content = json.loads((tmp_path / "cfg.json").read_text())
    del content["k"]  # sparsify's own default is 32
    (tmp_path / "cfg.json").write_text(json.dumps(content))
    with pytest.raises(MechstudyError, match=f"k = 32 active features out of d_sae = {F}") as error:
        Dictionary.load(tmp_path)
    assert error.value.where == str(tmp_path) and error.value.fix


def test_sparsify_cannot_hold_a_threshold(tmp_path):
    with pytest.raises(MechstudyError, match="no jumprelu"):
        sparsify.write(transcoder(0), tmp_path)


# --------------------------------------------------------------------------------- dictionary_learning


@pytest.mark.parametrize("name", CLASSES)
def test_dictionary_learning_folders_compute_what_their_class_computes(name, tmp_path):
    tensors, f, y = learned(name)
    torch.save(tensors, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, "k": K, "layer": 8}}))
    dictionary = Dictionary.load(tmp_path)
    torch.testing.assert_close(dictionary.encode(X), f)
    torch.testing.assert_close(dictionary.reconstruct(X), y)
    assert 0 < (f > 0).double().mean() < 1


class _Trap:
    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK", "k": 2}}))
    for dump in (partial(pickle.dump, protocol=2), torch.save):
        with (tmp_path / "ae.pt").open("wb") as file:
            dump({"encoder.weight": _Trap()}, file)
        with pytest.raises(MechstudyError, match="more than tensors"):
            Dictionary.load(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_an_unknown_class_and_a_missing_tensor_are_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "IdentityDict"}}))
    torch.save({"encoder.weight": draw(F, D, seed=1)}, tmp_path / "ae.pt")
    with pytest.raises(MechstudyError, match="IdentityDict"):
        Dictionary.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "BatchTopKSAE", "k": K}}))
    with pytest.raises(MechstudyError, match=r"tensor decoder\.weight is missing"):
        Dictionary.load(tmp_path)


# ----------------------------------------------------------------------------- circuit-tracer, Gemma Scope


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_set_is_read_back_as_it_was(skip, tmp_path):
    layers = {layer: transcoder(layer, skip) for layer in range(3)}
    circuit_tracer.write_set(layers, tmp_path, model_name="some/model")
    assert "model_kind: transcoder_set" in (tmp_path / "config.yaml").read_text()
    for layer, written in layers.items():
        found = Dictionary.load(tmp_path / f"layer_{layer}.safetensors")
        assert found.cfg.site_in == f"mlp_in.{layer}"
        torch.testing.assert_close(found.encode(X), written.encode(X), rtol=0, atol=0)
        torch.testing.assert_close(found.reconstruct(X), written.reconstruct(X), rtol=0, atol=0)


def test_a_set_with_a_gap_is_refused(tmp_path):
    with pytest.raises(MechstudyError, match="every layer from 0 on") as error:
        circuit_tracer.write_set({0: transcoder(0), 2: transcoder(2)}, tmp_path, model_name="m")
    assert error.value.facts["missing"] == "1"


def test_a_topk_set_says_so_in_its_config_and_is_read_back(tmp_path):
    layers = {}
    for layer in range(2):
        meta = DictionaryMeta("transcoder", "topk", D, D, F, K, f"mlp_in.{layer}", f"mlp_out.{layer}")
        t = {
            "W_enc": draw(D, F, seed=1),
            "b_enc": draw(F, seed=2),
            "W_dec": draw(F, D, seed=3),
            "b_dec": draw(D, seed=4),
        }
        layers[layer] = Dictionary(meta, **t)
    circuit_tracer.write_set(layers, tmp_path, model_name="some/model")
    config = (tmp_path / "config.yaml").read_text()
    assert "activation: topk" in config and f"k: {K}" in config and "feature_output_hook: hook_mlp_out" in config
    for layer, found in load_dictionaries(tmp_path).items():
        assert found.cfg.k == K and found.cfg.site_in == f"mlp_in.{layer}"
        torch.testing.assert_close(found.reconstruct(X), layers[layer].reconstruct(X), rtol=0, atol=0)


def test_a_set_of_mixed_layers_is_refused(tmp_path):
    with pytest.raises(MechstudyError, match="have one input site"):
        other = transcoder(1)
        meta = DictionaryMeta("skip_transcoder", "jumprelu", D, D, F, None, "resid_mid.1", "mlp_out.1")
        changed = Dictionary(meta, **dict(other.named_parameters()))
        circuit_tracer.write_set({0: transcoder(0), 1: changed}, tmp_path, model_name="m")


def test_negative_thresholds_of_a_set_are_refused(tmp_path):
    circuit_tracer.write_set({0: transcoder(0)}, tmp_path, model_name="m")
    path = tmp_path / "layer_0.safetensors"
    t = load_file(path)
    t[circuit_tracer.THRESHOLD][:3] = -0.5
    save_file(t, path)
    with pytest.raises(MechstudyError, match="negative") as error:
        Dictionary.load(path)
    assert error.value.facts["features"] == f"3 of {F}"


def change(path: Path, **tensors: Tensor) -> None:
    save_file(load_file(path) | tensors, path)


@pytest.mark.parametrize("jumps", [False, True])
def test_a_cross_layer_transcoder_is_read_back_bit_for_bit(jumps, tmp_path):
    written = clt(jumps)
    write_clt(tmp_path, **written, model_name="some/model")
    found = read_clt(tmp_path)
    assert (found["model_name"], found["site_in"], found["site_out"]) == ("some/model", "mlp_in", "mlp_out")
    for name, values in written.items():
        assert (values is None) == (found[name] is None)
        if values is not None:
            assert all(torch.equal(here, there) for here, there in zip(values, found[name], strict=True))
    assert set(load_file(tmp_path / "W_enc_1.safetensors")) == {
        "W_enc_1", "b_enc_1", "b_dec_1", *(["threshold_1"] if jumps else [])
    }  # fmt: skip
    assert load_file(tmp_path / "W_dec_1.safetensors")["W_dec_1"].shape == (F, 2, D)


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda folder: (folder / "W_enc_1.safetensors").unlink(), "every further layer"),
        (lambda folder: (folder / "W_dec_2.safetensors").unlink(), "W_dec_2.safetensors is missing"),
        (lambda folder: (folder / "config.yaml").unlink(), "config.yaml is missing"),
        (lambda folder: (folder / "config.yaml").write_text("a: [1"), "cannot be read as YAML"),
        (lambda folder: (folder / "config.yaml").write_text("model_kind: transcoder_set"), "transcoder_set"),
        (lambda folder: save_file({"W_dec_0": draw(F, 2, D, seed=0)}, folder / "W_dec_0.safetensors"), "wrong shape"),
        (lambda folder: save_file({"x": draw(2, seed=0)}, folder / "W_enc_2.safetensors"), "W_enc_2 is missing"),
        (lambda folder: change(folder / "W_enc_1.safetensors", threshold_1=-draw(F, seed=0).abs()), "are negative"),
    ],
)
def test_damaged_cross_layer_folders_are_named(damage, message, tmp_path):
    write_clt(tmp_path, **clt(True))
    damage(tmp_path)
    with pytest.raises(MechstudyError, match=message):
        read_clt(tmp_path)


def test_folders_of_several_dictionaries_say_how_they_are_read(tmp_path):
    circuit_tracer.write_set({0: transcoder(0), 1: transcoder(1)}, tmp_path / "set", model_name="m")
    with pytest.raises(MechstudyError, match="a set of 2 transcoders") as error:
        Dictionary.load(tmp_path / "set")
    assert error.value.fix.endswith("layer_0.safetensors")
    write_clt(tmp_path / "clt", **clt(True))
    with pytest.raises(MechstudyError, match="cross-layer transcoder") as error:
        Dictionary.load(tmp_path / "clt")
    assert "CrossLayerTranscoder.load" in error.value.fix


def test_a_clt_with_a_misshapen_decoder_is_not_written(tmp_path):
    wrong = clt(False)
    wrong["dec"][1] = draw(F, 3, D, seed=1)
    with pytest.raises(MechstudyError, match="W_dec_1 has the wrong shape"):
        write_clt(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_gemma_scope_arrays_are_read_and_numpys_pickles_are_not(tmp_path):
    t = {"W_enc": draw(D, F, seed=1), "b_enc": draw(F, seed=2), "W_dec": draw(F, D, seed=3), "b_dec": draw(D, seed=4)}
    t["threshold"] = draw(F, seed=5).abs()
    folder = tmp_path / "gemma-scope-2b-pt-mlp" / "layer_7" / "average_l0_20"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in t.items()})
    pre = X @ t["W_enc"] + t["b_enc"]
    found = Dictionary.load(folder)
    torch.testing.assert_close(found.encode(X), pre * (pre > t["threshold"]))
    assert found.cfg.site_in == found.cfg.site_out == "mlp_out.7"
    np.savez(folder / "params.npz", W_enc=np.array([_Trap()], dtype=object))
    with pytest.raises(MechstudyError, match="damaged"):
        Dictionary.load(folder)


@pytest.mark.parametrize("skip", [False, True])
def test_gemma_scope_two_transcoders_are_read(skip, tmp_path):
    folder = tmp_path / "transcoder_all" / "layer_5_width_16k_l0_small_affine"
    folder.mkdir(parents=True)
    t = {"w_enc": draw(D, F, seed=1), "b_enc": draw(F, seed=2), "w_dec": draw(F, D, seed=3), "b_dec": draw(D, seed=4)}
    t |= {"threshold": draw(F, seed=5).abs()} | ({"affine_skip_connection": draw(D, D, seed=6)} if skip else {})
    save_file(t, folder / "params.safetensors")
    found = Dictionary.load(folder)
    pre = X @ t["w_enc"] + t["b_enc"]
    y = (pre * (pre > t["threshold"])) @ t["w_dec"] + t["b_dec"]
    torch.testing.assert_close(found.reconstruct(X), y + X @ t["affine_skip_connection"] if skip else y)
    assert (found.cfg.site_in, found.cfg.site_out) == ("mlp_in.5", "mlp_out.5")


def test_abstopk_is_a_topk_of_twice_as_many_features(tmp_path):
    t = {"W_enc": draw(D, F, seed=1), "b_enc": draw(F, seed=2), "W_dec": draw(F, D, seed=3), "b_dec": draw(D, seed=4)}
    save_file(t, tmp_path / "sae_weights.safetensors")
    content = {"architecture": "abstopk", "d_in": D, "d_sae": F, "k": K, "apply_b_dec_to_input": False}
    (tmp_path / "cfg.json").write_text(json.dumps(content))
    pre = X @ t["W_enc"] + t["b_enc"]
    places = pre.abs().topk(K, 1).indices
    signed = torch.zeros_like(pre).scatter(1, places, pre.gather(1, places))
    found = Dictionary.load(tmp_path)
    both = found.encode(X)
    torch.testing.assert_close(both[:, :F] - both[:, F:], signed)
    torch.testing.assert_close(found.reconstruct(X), signed @ t["W_dec"] + t["b_dec"])
    assert found.cfg.d_sae == 2 * F and (both > 0).sum(1).eq(K).all()


def test_whitened_checkpoints_without_their_statistics_are_refused(tmp_path):
    t = {"W_enc": draw(D, F, seed=1), "b_enc": draw(F, seed=2), "W_dec": draw(F, D, seed=3), "b_dec": draw(D, seed=4)}
    save_file(t, tmp_path / "sae_weights.safetensors")
    content = {"architecture": "standard", "d_in": D, "d_sae": F, "normalize_activations": "covariance_whitening"}
    (tmp_path / "cfg.json").write_text(json.dumps(content))
    with pytest.raises(MechstudyError, match="covariance_whitening") as error:
        Dictionary.load(tmp_path)
    assert saelens_foreign.WHITENING in error.value.fix


def test_saelens_gated_is_the_jumprelu_it_computes(tmp_path):
    t = {"W_enc": draw(D, F, seed=1), "W_dec": draw(F, D, seed=3), "b_dec": draw(D, seed=4)}
    t |= {"b_gate": draw(F, seed=2), "r_mag": draw(F, seed=5) / 2, "b_mag": draw(F, seed=6) / 2}
    save_file(t, tmp_path / "sae_weights.safetensors")
    for centred in (False, True):
        content = {"architecture": "gated", "d_in": D, "d_sae": F, "apply_b_dec_to_input": centred, "metadata": {}}
        (tmp_path / "cfg.json").write_text(json.dumps(content))
        u = (X - t["b_dec"] if centred else X) @ t["W_enc"]
        f = (u + t["b_gate"] > 0) * (u * t["r_mag"].exp() + t["b_mag"]).relu()
        torch.testing.assert_close(Dictionary.load(tmp_path).encode(X), f)


def test_a_path_with_nothing_known_says_so(tmp_path):
    with pytest.raises(MechstudyError, match="no dictionary of a known tool"):
        Dictionary.load(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(MechstudyError, match="this is no dictionary"):
        Dictionary.load(tmp_path / "notes.txt")
