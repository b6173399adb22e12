"""Random dictionaries of a tiny model in the layouts of those who publish some, one for each of some layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from mechstudy.dictionaries.formats import circuit_tracer, sparsify
from tests.support.interventions_world import transcoder

D, F, K, LAYERS = 16, 24, 8, (0, 1, 2)


def _tensors(layer: int, read: str, written: str) -> dict[str, Tensor]:
    """Encoder [D, F] and decoder [F, D] under these names, with their biases."""
    one = transcoder(D, layer, n_features=F).float()
    tensors = {read: one.W_enc, "b_enc": one.b_enc, written: one.W_dec, "b_dec": one.b_dec}
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _saelens(folder: Path) -> str:
    for layer in LAYERS:
        transcoder(D, layer, n_features=F).float().save(folder / f"layer_{layer}")
    return "."


def _circuit_tracer(folder: Path) -> str:
    dicts = {layer: transcoder(D, layer, n_features=F).float() for layer in LAYERS}
    circuit_tracer.write_set(dicts, folder / "set", model_name="tiny")
    return "set"


def _listed(folder: Path) -> str:
    """A config.yaml that names files of another folder, which do not say their activation."""
    _circuit_tracer(folder)
    config = yaml.safe_load((folder / "set" / "config.yaml").read_text())
    config["transcoders"] = [f"set/layer_{layer}.safetensors" for layer in LAYERS]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "set" / "config.yaml").unlink()
    return "."


def _sparsify(folder: Path) -> str:
    for layer in LAYERS:
        sparsify.write(transcoder(D, layer, n_features=F).float(), folder / f"layers.{layer}.mlp")
    return "."


def _dictionary_learning(folder: Path) -> dict[int, str]:
    for layer in LAYERS:
        t = _tensors(layer, "W_enc", "W_dec")
        (folder / f"sae_{layer}").mkdir(parents=True)
        state = {"encoder.weight": t["W_enc"].T.contiguous(), "decoder.weight": t["W_dec"].T.contiguous()}
        state |= {"encoder.bias": t["b_enc"], "b_dec": t["b_dec"], "k": torch.tensor(K)}
        torch.save(state, folder / f"sae_{layer}" / "ae.pt")
        trainer = {
            "dict_class": "AutoEncoderTopK",
            "k": K,
            "layer": layer,
            "submodule_name": f"resid_post_layer_{layer}",
        }
        (folder / f"sae_{layer}" / "config.json").write_text(json.dumps({"trainer": trainer}))
    return {layer: f"sae_{layer}" for layer in LAYERS}


def _llama_scope(folder: Path) -> str:
    for layer in LAYERS:
        t = _tensors(layer, "encoder.weight", "decoder.weight")
        place = folder / f"l{layer}r" / "checkpoints"
        place.mkdir(parents=True)
        hook = f"blocks.{layer}.hook_resid_post"
        fields = {"d_model": D, "d_sae": F, "act_fn": "jumprelu", "jump_relu_threshold": 0.5}
        fields |= {"norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 5.0, "out": 2.0}}
        fields |= {"sparsity_include_decoder_norm": True, "top_k": K, "hook_point_in": hook, "hook_point_out": hook}
        (place.parent / "hyperparams.json").write_text(json.dumps(fields))
        weights = {name: t[name].T.contiguous() for name in ("encoder.weight", "decoder.weight")}
        biases = {"encoder.bias": t["b_enc"], "decoder.bias": t["b_dec"]}
        save_file(weights | biases, place / "final.safetensors")
    return "."


def _llama_scope_2(folder: Path) -> str:
    for layer in LAYERS:
        t = _tensors(layer, "W_E", "W_D")
        place = folder / f"layer{layer}"
        place.mkdir(parents=True)
        hooks = (f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out")
        fields = {"sae_type": "sae", "d_model": D, "expansion_factor": F / D, "act_fn": "topk", "top_k": K}
        fields |= {"norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True}
        (place / "config.json").write_text(json.dumps(fields | {"hook_point_in": hooks[0], "hook_point_out": hooks[1]}))
        norms = {f"dataset_average_activation_norm.{hook}": torch.tensor(4.0, dtype=torch.float64) for hook in hooks}
        save_file(
            {"W_E": t["W_E"], "b_E": t["b_enc"], "W_D": t["W_D"], "b_D": t["b_dec"]} | norms,
            place / "sae_weights.safetensors",
        )
    return "."


def _qwen_scope(folder: Path) -> str:
    place = folder / f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}"
    place.mkdir(parents=True)
    for layer in LAYERS:
        t = _tensors(layer, "W_enc", "W_dec")
        t |= {name: t[name].T.contiguous() for name in ("W_enc", "W_dec")}
        torch.save(t, place / f"layer{layer}.sae.pt")
    return place.name


def _gemma_scope(folder: Path, kind: str = "res") -> dict[int, str]:
    places = {}
    for layer in LAYERS:
        t = {name: tensor.numpy() for name, tensor in _tensors(layer, "W_enc", "W_dec").items()}
        places[layer] = f"gemma-scope-2b-pt-{kind}/layer_{layer}/width_16k/average_l0_71"
        (folder / places[layer]).mkdir(parents=True)
        np.savez(folder / places[layer] / "params.npz", threshold=np.full(F, 0.1, dtype=np.float32), **t)
    return places


def _gemma_scope_2(folder: Path) -> str:
    for layer in LAYERS:
        t = _tensors(layer, "w_enc", "w_dec")
        place = folder / f"layer_{layer}_width_16k_l0_medium"
        place.mkdir(parents=True)
        save_file(t | {"threshold": torch.full((F,), 0.1)}, place / "params.safetensors")
        block = f"model.layers.{layer}"
        fields = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "width": F, "l0": 20}
        fields |= {"hf_hook_point_in": f"{block}.pre_feedforward_layernorm.output", "affine_connection": False}
        fields |= {"hf_hook_point_out": f"{block}.post_feedforward_layernorm.output"}
        (place / "config.json").write_text(json.dumps(fields))
    return "."


LAYOUTS: dict[str, Callable[[Path], str | dict[int, str]]] = {
    "SAELens": _saelens,
    "circuit-tracer": _circuit_tracer,
    "circuit-tracer, listed": _listed,
    "sparsify": _sparsify,
    "dictionary_learning": _dictionary_learning,
    "Llama Scope": _llama_scope,
    "Llama Scope 2": _llama_scope_2,
    "Qwen-Scope": _qwen_scope,
    "Gemma Scope": _gemma_scope,
    "Gemma Scope transcoders": partial(_gemma_scope, kind="transcoders"),
    "Gemma Scope 2": _gemma_scope_2,
}
"""Writes the dictionaries into a new folder, and returns what ``dictionaries.from`` names, relative to it."""
