"""Published dictionaries compute here what their publishers' code computes; the formulas stand beside each."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats.describe import describe
from tests.support.dictionary_files import CLASSES, D, F, K, X, draw, largest, learned

E, B, W, C = draw(D, F, seed=1), draw(F, seed=2), draw(F, D, seed=3), draw(D, seed=4)
NORMS = {"in": 5.0, "out": 2.0}

# ------------------------------------------------------------------------------------------------- Llama Scope


def llama_scope(folder: Path, **fields: object) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    content = {
        "d_model": D, "d_sae": F, "act_fn": "jumprelu", "jump_relu_threshold": 0.5, "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": NORMS, "sparsity_include_decoder_norm": True, "top_k": K,
        "hook_point_in": "blocks.8.hook_resid_post", "hook_point_out": "blocks.8.hook_resid_post",
    }  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(content | fields))
    t = {"encoder.weight": E.T, "encoder.bias": B, "decoder.weight": W.T, "decoder.bias": C}
    save_file({name: tensor.contiguous() for name, tensor in t.items()}, folder / "checkpoints" / "final.safetensors")
    return folder


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("activation", ["jumprelu", "topk", "relu"])
def test_llama_scope_folds_norms_as_its_own_loader_does(activation, by_norm, tmp_path):
    jump = {"jump_relu_threshold": 0.0} if activation == "topk" else {}
    folder = llama_scope(tmp_path / "a", act_fn=activation, sparsity_include_decoder_norm=by_norm, **jump)
    scale_in, scale_out = (math.sqrt(D) / NORMS[end] for end in ("in", "out"))
    decoder, encoder, bias = W * scale_in / scale_out, E, B / scale_in
    if by_norm:
        norms = decoder.norm(dim=1)
        decoder, encoder, bias = decoder / norms[:, None], encoder * norms, bias * norms
    pre = X @ encoder + bias
    f = {"jumprelu": pre * (pre > 0.5), "topk": largest(pre), "relu": pre.relu()}[activation]
    dictionary = Dictionary.load(folder)
    torch.testing.assert_close(dictionary.encode(X), f)
    torch.testing.assert_close(dictionary.reconstruct(X), f @ decoder + C / scale_out)
    assert dictionary.cfg.site_in == "resid_post.8" and dictionary.cfg.k == (K if activation == "topk" else None)


def test_a_llama_scope_topk_with_a_threshold_is_a_jumprelu(tmp_path):
    assert Dictionary.load(llama_scope(tmp_path / "a", act_fn="topk")).cfg.activation == "jumprelu"


def test_a_llama_scope_file_alone_is_read_with_the_hyperparams_above_it(tmp_path):
    folder = llama_scope(tmp_path / "a", hook_point_out="blocks.8.hook_mlp_out")
    assert Dictionary.load(folder / "checkpoints" / "final.safetensors").cfg.site_out == "mlp_out.8"
    (folder / "hyperparams.json").rename(folder / "other.json")
    with pytest.raises(MechstudyError, match=r"a Llama Scope dictionary.s tensors.*hyperparams\.json"):
        Dictionary.load(folder / "checkpoints" / "final.safetensors")
    with pytest.raises(MechstudyError, match=r"hyperparams\.json is missing"):
        Dictionary.load(folder)


@pytest.mark.parametrize(
    "fields,what",
    [
        ({"norm_activation": "token-wise"}, "cannot be folded"),
        ({"dataset_average_activation_norm": {"in": 3.0}}, "norm of the output is missing"),
        ({"dataset_average_activation_norm": None}, "norm of the input is missing"),
        ({"use_glu_encoder": True}, "use_glu_encoder"),
        ({"act_fn": "batchtopk"}, "batchtopk"),
        ({"jump_relu_threshold": None}, "jump_relu_threshold must be"),
        ({"jump_relu_threshold": -1.0}, "jump_relu_threshold must be"),
    ],
)
def test_a_llama_scope_dictionary_without_one_formula_is_refused(fields, what, tmp_path):
    with pytest.raises(MechstudyError, match=what):
        Dictionary.load(llama_scope(tmp_path / "a", **fields))


def llama_scope_2(folder: Path, hooks: tuple[str, str], **fields: object) -> Path:
    folder.mkdir(parents=True)
    content = {
        "sae_type": "sae", "d_model": D, "expansion_factor": F / D, "act_fn": "jumprelu", "top_k": K,
        "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True,
        "hook_point_in": hooks[0], "hook_point_out": hooks[1],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(content | fields))
    t = {"W_E": E, "b_E": B, "W_D": W, "b_D": C, "activation_function.log_jumprelu_threshold": draw(F, seed=5) / 2}
    t |= {f"dataset_average_activation_norm.{hook}": torch.tensor(norm, dtype=torch.float64)
          for hook, norm in zip(hooks, NORMS.values(), strict=True)}  # fmt: skip
    save_file(t, folder / "sae_weights.safetensors")
    return folder


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("activation", ["jumprelu", "topk", "relu"])
def test_llama_scope_2_reconstructs_as_its_normalised_forward(activation, by_norm, tmp_path):
    hooks = ("blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out")
    folder = llama_scope_2(tmp_path / "a", hooks, act_fn=activation, sparsity_include_decoder_norm=by_norm)
    scale_in, scale_out = (math.sqrt(D) / NORMS[end] for end in ("in", "out"))
    pre = (X * scale_in) @ E + B
    gated = pre * W.norm(dim=1) if by_norm else pre
    threshold = (draw(F, seed=5) / 2).exp()
    keep = {"jumprelu": gated > threshold, "topk": largest(gated) > 0, "relu": gated > 0}[activation]
    y = ((pre * keep) @ W + C) / scale_out
    dictionary = Dictionary.load(folder)
    torch.testing.assert_close(dictionary.reconstruct(X), y)
    assert torch.equal(dictionary.encode(X) > 0, keep & (pre > 0))
    assert (dictionary.cfg.kind, dictionary.cfg.site_in, dictionary.cfg.site_out) == (
        "transcoder", "mlp_in.2", "mlp_out.2",
    )  # fmt: skip
    assert describe(folder)[0]["format"] == "Llama Scope 2"


def test_a_lorsa_of_llama_scope_2_is_refused_for_what_it_is(tmp_path):
    with pytest.raises(MechstudyError, match="'lorsa'") as error:
        Dictionary.load(llama_scope_2(tmp_path / "a", ("x", "y"), sae_type="lorsa"))
    assert "attention" in error.value.facts["reason"]


# -------------------------------------------------------------------------------------------------- Qwen-Scope


def qwen_scope(folder: Path, layer: int = 7) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(
        {"W_enc": E.T.contiguous(), "b_enc": B, "W_dec": W.T.contiguous(), "b_dec": C}, folder / f"layer{layer}.sae.pt"
    )
    return folder / f"layer{layer}.sae.pt"


def test_a_qwen_scope_file_takes_k_and_model_from_its_repositorys_name(tmp_path):
    path = qwen_scope(tmp_path / f"models--Qwen--SAE-Res-Qwen3-8B-Base-W64K-L0_{K}" / "snapshots" / "0")
    dictionary = Dictionary.load(path)
    f = largest(X @ E + B)
    torch.testing.assert_close(dictionary.encode(X), f)
    torch.testing.assert_close(dictionary.reconstruct(X), f @ W + C)
    assert (dictionary.cfg.k, dictionary.cfg.site_in) == (K, "resid_post.7")
    assert dictionary.metadata["model_name"] == "Qwen/Qwen3-8B-Base"


def test_the_layers_of_a_qwen_scope_folder_are_listed_in_order(tmp_path):
    folder = tmp_path / f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}"
    for layer in (10, 2):
        qwen_scope(folder, layer)
    assert [entry["site_in"] for entry in describe(folder)] == ["resid_post.2", "resid_post.10"]


def test_a_qwen_scope_file_whose_k_nobody_says_is_refused_until_a_config_does(tmp_path):
    path = qwen_scope(tmp_path / "saes")
    with pytest.raises(MechstudyError, match="does not say k") as error:
        Dictionary.load(path)
    assert "config.json" in error.value.fix
    (tmp_path / "saes" / "config.json").write_text(json.dumps({"k": K}))
    assert Dictionary.load(path).cfg.k == K


# --------------------------------------------------------------------------------- old dictionary_learning


@pytest.mark.parametrize("name", CLASSES)
def test_an_ae_pt_without_its_config_is_read_if_its_tensors_tell_the_class(name, tmp_path):
    tensors, f, y = learned(name)
    torch.save(tensors, tmp_path / "ae.pt")
    if name in ("AutoEncoderTopK", "BatchTopKSAE"):  # one state dict for both
        with pytest.raises(MechstudyError, match=r"ae\.pt does not tell its class") as error:
            Dictionary.load(tmp_path)
        assert "AutoEncoderTopK" in error.value.facts["fits"] and "BatchTopKSAE" in error.value.facts["fits"]
        assert error.value.facts["missing"] == "dict_class"
        return
    dictionary = Dictionary.load(tmp_path)
    torch.testing.assert_close(dictionary.encode(X), f)
    torch.testing.assert_close(dictionary.reconstruct(X), y)
    assert dictionary.cfg.site_in == "unknown"


def test_an_early_topk_without_threshold_is_a_topk(tmp_path):
    tensors, f, _ = learned("AutoEncoderTopK")
    del tensors["threshold"]
    torch.save(tensors, tmp_path / "ae.pt")
    torch.testing.assert_close(Dictionary.load(tmp_path).encode(X), f)


def test_an_ae_pt_of_no_class_says_what_is_missing(tmp_path):
    torch.save({"encoder.weight": E.T.contiguous(), "b_dec": C}, tmp_path / "ae.pt")
    with pytest.raises(MechstudyError, match="does not tell its class") as error:
        Dictionary.load(tmp_path)
    assert error.value.facts["missing"] == "dict_class (and k)" and "config.json" in error.value.fix


# ---------------------------------------------------------------------------------------------- Gemma Scope 2


def gemma_scope_2(folder: Path, hooks: tuple[str, str | None], affine: bool = False, **fields: object) -> Path:
    folder.mkdir(parents=True)
    t = {"w_enc": E, "b_enc": B, "w_dec": W, "b_dec": C, "threshold": draw(F, seed=5).abs()}
    save_file(t | ({"affine_skip_connection": draw(D, D, seed=6)} if affine else {}), folder / "params.safetensors")
    content = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "width": F, "l0": 20,
               "hf_hook_point_in": hooks[0], "hf_hook_point_out": hooks[1], "affine_connection": affine}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(content | fields))
    return folder


PRE, POST = "model.layers.5.pre_feedforward_layernorm.output", "model.layers.5.post_feedforward_layernorm.output"


@pytest.mark.parametrize(
    "hooks,kind,sites",
    [
        ((PRE, POST), "transcoder", ("mlp_in.5", "mlp_out.5")),
        (("model.layers.5.output", "model.layers.5.output"), "sae", ("resid_post.5", "resid_post.5")),
        (("model.layers.5.output", None), "sae", ("resid_post.5", "resid_post.5")),
        ((POST, POST), "sae", ("mlp_out.5", "mlp_out.5")),
        (("model.layers.5.self_attn.o_proj.input", None), "sae", ("blocks.5.attn.hook_z",) * 2),
        (("model.layers.5.mlp.output", None), "sae", ("model.layers.5.mlp.output",) * 2),
    ],
)
def test_gemma_scope_2_takes_its_sites_from_config_json(hooks, kind, sites, tmp_path):
    cfg = Dictionary.load(gemma_scope_2(tmp_path / "any" / "name", hooks)).cfg
    assert (cfg.kind, (cfg.site_in, cfg.site_out)) == (kind, sites)
    assert cfg.metadata["model_name"] == "google/gemma-3-1b-pt"


def test_gemma_scope_2_adds_its_affine_connection(tmp_path):
    dictionary = Dictionary.load(gemma_scope_2(tmp_path / "a", (PRE, POST), affine=True))
    pre = X @ E + B
    y = (pre * (pre > draw(F, seed=5).abs())) @ W + C + X @ draw(D, D, seed=6)
    torch.testing.assert_close(dictionary.reconstruct(X), y)


@pytest.mark.parametrize("fields,what", [({"architecture": "topk"}, "'topk'"), ({"affine_connection": True}, "affine")])
def test_a_gemma_scope_2_config_of_other_weights_is_refused(fields, what, tmp_path):
    with pytest.raises(MechstudyError, match=what):
        Dictionary.load(gemma_scope_2(tmp_path / "a", (PRE, POST), **fields))


def gemma_clt(folder: Path, L: int = 3) -> Path:
    folder.mkdir()
    for layer in range(L):
        t = {"w_enc": draw(D, F, seed=layer), "b_enc": draw(F, seed=10 + layer), "b_dec": draw(D, seed=30 + layer)}
        t |= {"w_dec": draw(F, L, D, seed=20 + layer), "threshold": draw(F, seed=40 + layer).abs()}
        save_file(t, folder / f"params_layer_{layer}.safetensors")
    return folder


def test_a_gemma_scope_2_clt_writes_to_its_own_and_later_layers(tmp_path):
    folder = gemma_clt(tmp_path / "clt")
    x = draw(7, 3, D, seed=9)
    f, y = [], []
    for layer in range(3):
        t = load_file(folder / f"params_layer_{layer}.safetensors")
        pre = x[:, layer] @ t["w_enc"] + t["b_enc"]
        f.append(pre * (pre > t["threshold"]))
        written = sum(
            f[i] @ load_file(folder / f"params_layer_{i}.safetensors")["w_dec"][:, layer] for i in range(layer + 1)
        )
        y.append(written + t["b_dec"])
    found = CrossLayerTranscoder.load(folder)
    torch.testing.assert_close(found.encode(x), torch.stack(f, 1))
    torch.testing.assert_close(found.reconstruct(x), torch.stack(y, 1))
    [entry] = describe(folder)
    assert entry["format"] == "Gemma Scope 2" and entry["kind"] == "cross-layer transcoder of 3 layers"


def test_a_gemma_scope_2_clt_with_a_missing_layer_or_affine_connection_is_refused(tmp_path):
    folder = gemma_clt(tmp_path / "clt")
    path = folder / "params_layer_1.safetensors"
    save_file(load_file(path) | {"affine_skip_connection": draw(D, D, seed=6)}, path)
    with pytest.raises(MechstudyError, match="affine connection"):
        CrossLayerTranscoder.load(folder)
    path.unlink()
    with pytest.raises(MechstudyError, match="a file for every layer") as error:
        CrossLayerTranscoder.load(folder)
    assert error.value.facts["missing"] == "1"


def test_gemma_scope_arrays_of_two_files_are_ambiguous(tmp_path):
    folder = gemma_scope_2(tmp_path / "a", (PRE, POST))
    np.savez(folder / "params.npz", W_enc=E.numpy())
    with pytest.raises(MechstudyError, match="which is meant is not clear"):
        Dictionary.load(folder)
