"""config.yaml of a circuit-tracer set against the tensors of its files: kind, activation, k, skip path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats import circuit_tracer
from mechstudy.dictionaries.formats.cross_layer import write_clt
from mechstudy.dictionaries.formats.describe import describe
from tests.support.dictionary_files import D, F, K, clt, draw

LAYER = {"W_enc": draw(F, D, seed=1), "b_enc": draw(F, seed=2), "W_dec": draw(F, D, seed=3), "b_dec": draw(D, seed=4)}
THRESHOLDS = {circuit_tracer.THRESHOLD: draw(F, seed=5).abs()}
SKIP = {"W_skip": draw(D, D, seed=6)}


def layer(folder: Path, config: dict[str, object], tensors: dict[str, Tensor]) -> Path:
    save_file(LAYER | tensors, folder / "layer_0.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump({"model_kind": "transcoder_set", "model_name": "m"} | config))
    return folder / "layer_0.safetensors"


@pytest.mark.parametrize("key", ["activation", "activation_function", "activation_fn"])
@pytest.mark.parametrize(
    ("config", "tensors", "activation", "k"),
    [
        ("relu", {}, "jumprelu", None),
        ("ReLU", {}, "jumprelu", None),
        ("jump_relu", THRESHOLDS, "jumprelu", None),
        ("JumpReLU", THRESHOLDS, "jumprelu", None),
        ("topk", {"k": torch.tensor(K)}, "topk", K),
        ("TopK", {"k": torch.tensor(K)}, "topk", K),
    ],
)
def test_an_activation_that_fits_the_tensors_is_read_under_each_of_its_keys(
    key, config, tensors, activation, k, tmp_path
):
    cfg = Dictionary.load(layer(tmp_path, {key: config}, tensors)).cfg
    assert (cfg.activation, cfg.k) == (activation, k)


@pytest.mark.parametrize("key", ["activation", "activation_function", "activation_fn"])
@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ("relu", THRESHOLDS, "the activation is not one"),
        ("jump_relu", {}, "the activation is jump_relu, and the file holds no thresholds"),
        ("topk", {}, "the activation is topk, and neither config.yaml nor the file says its k"),
        ("topk", THRESHOLDS, "the activation is not one"),
        ("relu", {"k": torch.tensor(K)}, "the activation is not one"),
        ("gelu", {}, "'gelu' cannot be represented here"),
    ],
)
def test_an_activation_that_the_tensors_contradict_is_refused(key, config, tensors, message, tmp_path):
    with pytest.raises(MechstudyError, match=message) as error:
        Dictionary.load(layer(tmp_path, {key: config}, tensors))
    assert f"config.yaml {key}" in error.value.facts or config == "gelu"
    assert error.value.fix and str(tmp_path) in str(error.value.where)


def test_two_keys_of_config_yaml_that_disagree_are_refused(tmp_path):
    with pytest.raises(MechstudyError, match="the activation is not one") as error:
        Dictionary.load(layer(tmp_path, {"activation": "relu", "activation_function": "topk", "k": K}, {}))
    assert error.value.facts == {
        "config.yaml activation": "relu",
        "config.yaml activation_function": f"topk, k {K}",
    }
    with pytest.raises(MechstudyError, match="the activation is not one"):
        Dictionary.load(layer(tmp_path, {"activation": "relu", "k": K}, {}))


@pytest.mark.parametrize(
    ("architecture", "tensors"),
    [("transcoder", {}), ("skip_transcoder", SKIP), ("plt", {}), ("jumprelu_transcoder", THRESHOLDS),
     ("per-layer transcoder", SKIP), ("LlamaForCausalLM", {}), (None, {})],
)  # fmt: skip
def test_an_architecture_that_fits_or_says_nothing_is_no_obstacle(architecture, tensors, tmp_path):
    assert Dictionary.load(layer(tmp_path, {"architecture": architecture}, tensors)).cfg.d_sae == F


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"architecture": "clt"}, {}, "architecture: clt, and the file holds a transcoder of one layer"),
        ({"architecture": "Cross-Layer Transcoder"}, SKIP, "holds a transcoder of one layer with a skip path"),
        ({"model_kind": "cross_layer_transcoder"}, {}, "model_kind: cross_layer_transcoder, and the file holds"),
        ({"model_kind": "sae_set"}, {}, "model_kind: sae_set, and the file holds a transcoder of one layer"),
        ({"architecture": "skip_transcoder"}, {}, "architecture: skip_transcoder, and the file holds"),
        ({"architecture": "jumprelu_transcoder"}, {}, "the file holds no thresholds"),
        ({"architecture": "topk"}, {}, "neither config.yaml nor the file says its k"),
        ({"architecture": "relu transcoder"}, THRESHOLDS, "the activation is not one"),
        ({"architecture": "batch_topk"}, THRESHOLDS, "'batch_topk' cannot be represented here"),
        ({"architecture": "gated"}, {}, "'gated' cannot be represented here"),
    ],
)
def test_an_architecture_that_the_tensors_contradict_is_refused(config, tensors, message, tmp_path):
    path = layer(tmp_path, config, tensors)
    for use in (Dictionary.load, lambda place: describe(place, mapped=True)):
        with pytest.raises(MechstudyError, match=message) as error:
            use(path)
        assert error.value.fix


@pytest.mark.parametrize(
    ("config", "jumps", "message"),
    [
        ({"architecture": "plt"}, True, "architecture: plt, and the file holds a cross-layer transcoder"),
        ({"architecture": "skip_clt"}, True, "needs: +W_skip|holds a cross-layer transcoder"),
        ({"activation_function": "relu"}, True, "the activation is not one"),
        ({"activation": "jump_relu"}, False, "the file holds no thresholds"),
        ({"activation_function": "topk"}, False, "with topk cannot be represented"),
    ],
)
def test_a_cross_layer_transcoder_is_compared_with_its_config_too(config, jumps, message, tmp_path):
    write_clt(tmp_path, **clt(jumps))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | config))
    with pytest.raises(MechstudyError, match=message):
        CrossLayerTranscoder.load(tmp_path)


@pytest.mark.parametrize(("activation", "jumps"), [("relu", False), ("jump_relu", True)])
def test_a_cross_layer_transcoder_that_fits_its_config_is_read(activation, jumps, tmp_path):
    write_clt(tmp_path, **clt(jumps))
    path = tmp_path / "config.yaml"
    more = {"activation_function": activation, "architecture": "clt"}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | more))
    n_layers = len(list(tmp_path.glob("W_enc_*")))
    assert CrossLayerTranscoder.load(tmp_path).n_sites == n_layers
    assert "threshold_0" in load_file(tmp_path / "W_enc_0.safetensors") or not jumps
