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
from mechstudy.dictionaries.formats import circuit_tracer, sparsify

D, F, K, N = 6, 20, 3, 30


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = draw(N, D, seed=0)


def largest(pre: Tensor, k: int = K) -> Tensor:
    values, places = pre.relu().topk(k, 1)
    return torch.zeros_like(pre).scatter(1, places, values)


# ---------------------------------------------------------------------------------------------- sparsify


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_sparsify_folders_compute_what_sparsify_computes_and_survive_a_round_trip(transcode, skip, tmp_path):
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


def test_sparsify_cannot_hold_a_threshold(tmp_path):
    with pytest.raises(MechstudyError, match="no jumprelu"):
        sparsify.write(transcoder(0), tmp_path)


# --------------------------------------------------------------------------------- dictionary_learning


def learned(name: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A state dict of the class, and the codes and reconstructions of X by the class's own formulas."""
    E, D_, b, c = draw(F, D, seed=1), draw(D, F, seed=2), draw(F, seed=3), draw(D, seed=4)
    linear = {"encoder.weight": E, "decoder.weight": D_}
    k, threshold = torch.tensor(K), torch.tensor(0.4, dtype=torch.float64)
    centred = (X - c) @ E.T + b
    if name == "AutoEncoder":
        norms = D_.norm(dim=0)
        f = centred.relu() * norms
        return linear | {"encoder.bias": b, "bias": c}, f, f @ (D_ / norms).T + c
    if name == "AutoEncoderNew":
        f = (X @ E.T + b).relu()
        return linear | {"encoder.bias": b, "decoder.bias": c}, f, f @ D_.T + c
    if name == "GatedAutoEncoder":
        r, m = draw(F, seed=5) / 2, draw(F, seed=6) / 2
        u = (X - c) @ E.T
        f = (u + b > 0) * (r.exp() * u + m).relu()
        return linear | {"gate_bias": b, "mag_bias": m, "r_mag": r, "decoder_bias": c}, f, f @ D_.T + c
    if name == "AutoEncoderTopK":
        f = largest(centred)
        return linear | {"encoder.bias": b, "b_dec": c, "k": k, "threshold": threshold}, f, f @ D_.T + c
    f = centred.relu() * (centred > threshold)
    if name == "BatchTopKSAE":
        return linear | {"encoder.bias": b, "b_dec": c, "k": k, "threshold": threshold}, f, f @ D_.T + c
    own = {"W_enc": E.T.contiguous(), "b_enc": b, "W_dec": D_.T.contiguous(), "b_dec": c}
    if name == "MatryoshkaBatchTopKSAE":
        sizes = torch.tensor([5, 15])
        return own | {"k": k, "threshold": threshold, "group_sizes": sizes}, f, f @ D_.T + c
    thresholds = draw(F, seed=7).abs()
    pre = X @ E.T + b
    f = (pre * (pre > thresholds)).relu()
    return own | {"threshold": thresholds}, f, f @ D_.T + c


CLASSES = ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
           "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")  # fmt: skip


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


def transcoder(seed: int, skip: bool = True) -> Dictionary:
    kind = "skip_transcoder" if skip else "transcoder"
    meta = DictionaryMeta(kind, "jumprelu", D, D, F, None, f"mlp_in.{seed}", f"mlp_out.{seed}")
    return Dictionary(
        meta, W_enc=draw(D, F, seed=seed + 1), b_enc=draw(F, seed=seed + 2), W_dec=draw(F, D, seed=seed + 3),
        b_dec=draw(D, seed=seed + 4), W_skip=draw(D, D, seed=seed + 5) if skip else None,
        threshold=draw(F, seed=seed + 6).abs(),
    )  # fmt: skip


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


def test_gemma_scope_arrays_are_read_and_numpys_pickles_are_not(tmp_path):
    t = {"W_enc": draw(D, F, seed=1), "b_enc": draw(F, seed=2), "W_dec": draw(F, D, seed=3), "b_dec": draw(D, seed=4)}
    t["threshold"] = draw(F, seed=5).abs()
    np.savez(tmp_path / "params.npz", **{name: tensor.numpy() for name, tensor in t.items()})
    pre = X @ t["W_enc"] + t["b_enc"]
    torch.testing.assert_close(Dictionary.load(tmp_path).encode(X), pre * (pre > t["threshold"]))
    np.savez(tmp_path / "params.npz", W_enc=np.array([_Trap()], dtype=object))
    with pytest.raises(MechstudyError, match="damaged"):
        Dictionary.load(tmp_path)


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
    with pytest.raises(MechstudyError, match=r"cfg\.json is missing"):
        Dictionary.load(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(MechstudyError, match="this is no dictionary"):
        Dictionary.load(tmp_path / "notes.txt")
