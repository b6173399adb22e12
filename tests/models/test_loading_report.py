"""A config.json and weights that are not of one model: each difference would make another model of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mechstudy.core.errors import MechstudyError
from mechstudy.doctor.model import check_model
from mechstudy.models.loading import load_model
from tests.support.tiny import save_tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny(folder, d=16)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "tiny")


def set_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def set_weights(folder: Path, **tensors: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | tensors, folder / "model.safetensors", {"format": "pt"})


def refusal(folder: Path) -> MechstudyError:
    with pytest.raises(MechstudyError) as error:
        load_model(folder, device="cpu")
    assert error.value.fix and str(folder) in str(error.value.where or error.value)
    return error.value


def test_a_config_of_fewer_layers_than_the_weights_have_is_refused(folder):
    set_config(folder, num_hidden_layers=2)
    error = refusal(folder)
    assert error.what == "the weights hold 3 layers, and config.json names 2"
    assert "layers.2" in error.facts["first"]


def test_a_config_of_more_layers_is_refused(folder):
    set_config(folder, num_hidden_layers=4)
    assert "the weights are incomplete" in refusal(folder).what


@pytest.mark.parametrize("field", [{"intermediate_size": 48}, {"vocab_size": 300}, {"num_key_value_heads": 1}])
def test_a_size_that_differs_is_named_with_both(folder, field):
    set_config(folder, **field)
    error = refusal(folder)
    assert "has another size than config.json says" in error.what
    assert error.facts["found"] != error.facts["expected"] and "ignore_mismatched" not in str(error)


def test_biases_that_the_config_switches_off_are_not_dropped(folder):
    set_weights(folder, **{"model.layers.1.self_attn.q_proj.bias": torch.ones(16)})
    error = refusal(folder)
    assert error.what == "1 tensors of the weights have no place in the model that config.json describes"
    assert error.facts["first"] == "model.layers.1.self_attn.q_proj.bias"


def test_masks_frequencies_and_other_heads_of_older_files_are_left_out(folder):
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "v_head.weight": torch.ones(1, 16)}
    set_weights(folder, **more)
    assert load_model(folder, device="cpu").n_layers == 3


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_the_masks_that_older_files_of_a_family_hold_are_left_out(family, tmp_path):
    save_tiny(tmp_path / family, family)
    blocks = {"gpt2": "transformer.h.0.attn", "neox": "gpt_neox.layers.0.attention"}[family]
    set_weights(tmp_path / family, **{f"{blocks}.bias": torch.ones(1, 1, 8, 8), f"{blocks}.masked_bias": torch.ones(1)})
    assert load_model(tmp_path / family, device="cpu").n_layers == 3


@pytest.mark.parametrize("field", [{"hidden_act": "silly"}, {"rope_parameters": {"rope_type": "silly"}}])
def test_a_field_that_transformers_cannot_use_is_an_error_and_no_traceback(folder, field):
    set_config(folder, **field)
    error = refusal(folder)
    assert "silly" in error.facts["reason"] and "check config.json" in str(error.fix)


def test_weights_that_are_not_finite_are_named_by_load_and_doctor(folder):
    name = "model.layers.1.mlp.down_proj.weight"
    broken = load_file(folder / "model.safetensors")[name]
    broken[0, 0] = float("nan")
    set_weights(folder, **{name: broken})
    says = f"tensor {name} holds 1 of {broken.numel()} values that are no finite numbers"
    with pytest.raises(MechstudyError, match=says):
        load_model(folder, device="cpu")
    bad = [check for check in check_model(str(folder), Path(), device="cpu") if check.status == "bad"]
    assert bad and all(check.found == says for check in bad)
