"""What a file and its config say of one dictionary: its k, its activation, its attention head, its module."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.evaluation.stability import compare
from mechstudy.dictionaries.formats import circuit_tracer, sparsify
from mechstudy.dictionaries.formats.cross_layer import write_clt
from mechstudy.dictionaries.formats.hooks import module_site, norm_after
from mechstudy.dictionaries.hookpoints import refuse_other_tensor
from mechstudy.dictionaries.loading import load_dictionaries
from mechstudy.dictionaries.stored import DictionaryMeta
from mechstudy.models.sites import Site
from tests.support.dictionary_files import D, F, K, X, clt, draw
from tests.support.tiny import tiny_model

LAYER = {"W_enc": draw(F, D, seed=1), "b_enc": draw(F, seed=2), "W_dec": draw(F, D, seed=3), "b_dec": draw(D, seed=4)}
THRESHOLDS = {circuit_tracer.THRESHOLD: draw(F, seed=5).abs()}


def layer(folder: Path, config: str = "", **more: Tensor) -> Path:
    save_file(LAYER | more, folder / "layer_3.safetensors")
    if config:
        (folder / "config.yaml").write_text("model_kind: transcoder_set\nmodel_name: acme/tiny\n" + config)
    return folder / "layer_3.safetensors"


def active(path: Path) -> Tensor:
    return (Dictionary.load(path).encode(X) > 0).sum(1)


# ------------------------------------------------------------------------------------------------------- which k


@pytest.mark.parametrize("config", ["", "scan: acme/tiny\n", f"activation: topk\nk: {K}\n", f"k: {K}\n"])
@pytest.mark.parametrize("name", ["k", "activation_function.k"])
@pytest.mark.parametrize("value", [torch.tensor(K), torch.tensor([K]), torch.tensor(float(K))])
def test_the_k_in_a_layers_file_makes_it_a_topk(name, value, config, tmp_path):
    path = layer(tmp_path, config, **{name: value})
    cfg = Dictionary.load(path).cfg
    assert (cfg.activation, cfg.k) == ("topk", K) and int(active(path).max()) == K


def test_a_layers_file_without_k_or_config_is_a_relu(tmp_path):
    path = layer(tmp_path)
    assert Dictionary.load(path).cfg.activation == "jumprelu" and int(active(path).max()) > K


@pytest.mark.parametrize(
    "config,more",
    [
        (f"activation: topk\nk: {K + 1}\n", {"k": torch.tensor(K)}),
        ("activation: relu\n", {"k": torch.tensor(K)}),
        ("activation: jump_relu\n", {"k": torch.tensor(K)}),
        ("activation: relu\n", THRESHOLDS),
        (f"activation: topk\nk: {K}\n", THRESHOLDS),
        ("", THRESHOLDS | {"k": torch.tensor(K)}),
    ],
)
def test_a_file_and_config_of_two_activations_are_refused(config, more, tmp_path):
    with pytest.raises(MechstudyError, match="the activation is not one") as error:
        Dictionary.load(layer(tmp_path, config, **more))
    assert len(error.value.facts) == 2


@pytest.mark.parametrize("value", [torch.tensor(0), torch.tensor(F + 1), torch.tensor(2.5), torch.tensor([1, 2])])
def test_an_impossible_k_in_a_file_is_refused(value, tmp_path):
    with pytest.raises(MechstudyError, match=r"impossible|not one whole number"):
        Dictionary.load(layer(tmp_path, k=value))


@pytest.mark.parametrize("name", ["topk", "activation_function.top_k"])
def test_a_number_of_unknown_meaning_is_refused(name, tmp_path):
    with pytest.raises(MechstudyError, match=f"holds a number, '{name}', whose meaning is not known"):
        Dictionary.load(layer(tmp_path, **{name: torch.tensor(K)}))


@pytest.mark.parametrize("name", ["threshold", "log_threshold", "activation_function.log_threshold"])
@pytest.mark.parametrize("k", [{}, {"k": torch.tensor(K)}])
def test_thresholds_under_another_name_are_not_dropped(name, k, tmp_path):
    with pytest.raises(MechstudyError, match=rf"holds a tensor of shape \[{F}\], '{name}', whose meaning"):
        Dictionary.load(layer(tmp_path, **{name: torch.full((F,), 0.5)}, **k))


def test_a_copied_file_of_a_topk_set_that_we_wrote_is_a_topk(tmp_path):
    meta = DictionaryMeta("transcoder", "topk", D, D, F, K, "mlp_in.0", "mlp_out.0")
    t = LAYER | {"W_enc": LAYER["W_enc"].T.contiguous()}
    circuit_tracer.write_set([Dictionary(meta, **t)], tmp_path / "set", model_name="m")
    (tmp_path / "set" / "layer_0.safetensors").rename(tmp_path / "layer_0.safetensors")
    assert Dictionary.load(tmp_path / "layer_0.safetensors").cfg.k == K
    # circuit-tracer's loader takes no other tensors.
    assert set(load_file(tmp_path / "layer_0.safetensors")) == {"W_enc", "b_enc", "W_dec", "b_dec"}


@pytest.mark.parametrize("sign", ["activation: topk\nk: 3\n", "k: 3\n", "tensor"])
def test_a_cross_layer_topk_is_refused_and_not_read_as_a_relu(sign, tmp_path):
    write_clt(tmp_path, **clt(False))
    if sign == "tensor":
        path = tmp_path / "W_enc_1.safetensors"
        save_file(load_file(path) | {"k_1": torch.tensor(3)}, path)
    else:
        (tmp_path / "config.yaml").write_text(f"model_kind: cross_layer_transcoder\nmodel_name: acme/tiny\n{sign}")
    with pytest.raises(MechstudyError, match="with topk cannot be represented"):
        CrossLayerTranscoder.load(tmp_path)


# ---------------------------------------------------------------------------------------------------- which head


def of_head(folder: Path, **fields: object) -> Path:
    folder.mkdir()
    save_file(LAYER | {"W_enc": LAYER["W_enc"].T.contiguous()}, folder / "sae_weights.safetensors")
    content = {"architecture": "standard", "d_in": D, "d_sae": F, "apply_b_dec_to_input": False}
    (folder / "cfg.json").write_text(json.dumps(content | fields))
    return folder


NEW = {"metadata": {"hook_name": "blocks.1.attn.hook_z", "hook_head_index": 3, "sae_lens_version": "6.5.0"}}
OLD = {"hook_point": "blocks.1.attn.hook_q", "hook_point_head_index": 3}
MIDDLE = {"hook_name": "blocks.1.attn.hook_z", "hook_head_index": 3, "reshape_activations": "hook_z"}


@pytest.mark.parametrize("fields", [NEW, OLD, MIDDLE])
def test_the_head_of_an_attention_sae_is_part_of_its_site_and_saved_again(fields, tmp_path):
    dictionary = Dictionary.load(of_head(tmp_path / "a", **fields))
    hook = dictionary.cfg.site_in.removesuffix(" head 3")
    assert dictionary.cfg.site_in == dictionary.cfg.site_out == f"{hook} head 3" and "hook_" in hook
    assert "reshape_activations" not in dictionary.metadata
    dictionary.save(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "cfg.json").read_text())
    assert written["reshape_activations"] == "none"
    assert (written["metadata"]["hook_name"], written["metadata"]["hook_head_index"]) == (hook, 3)
    assert Dictionary.load(tmp_path / "again").cfg == dictionary.cfg
    del written["metadata"]["mechstudy"]  # as SAELens reads it
    (tmp_path / "again" / "cfg.json").write_text(json.dumps(written))
    assert Dictionary.load(tmp_path / "again").cfg.site_in == dictionary.cfg.site_in


def test_two_heads_of_a_layer_are_two_sites_in_a_comparison(tmp_path):
    other = {"metadata": NEW["metadata"] | {"hook_head_index": 0}}
    a, b = (Dictionary.load(of_head(tmp_path / name, **fields)) for name, fields in (("a", NEW), ("b", other)))
    sites = compare(a, b)["sites"]
    assert sites[0] != sites[1] and "head 3" in sites[0] and "head 0" in sites[1]


def test_without_a_head_hook_z_rows_hold_the_heads_side_by_side(tmp_path):
    fields = {"metadata": NEW["metadata"] | {"hook_head_index": None}}
    dictionary = Dictionary.load(of_head(tmp_path / "a", **fields))
    assert dictionary.cfg.site_in == "blocks.1.attn.hook_z"
    assert dictionary.metadata["reshape_activations"] == "hook_z"


@pytest.mark.parametrize("head", [-1, "three", 1.5])
def test_a_head_that_is_no_index_is_refused(head, tmp_path):
    with pytest.raises(MechstudyError, match="hook_head_index must be"):
        Dictionary.load(
            of_head(tmp_path / "a", metadata={"hook_name": "blocks.1.attn.hook_z", "hook_head_index": head})
        )


# ------------------------------------------------------------------------------------------------ which tensor


def hookpoint(folder: Path, model: str | None = None, transcode: bool = False) -> Path:
    folder.mkdir(parents=True)
    t = {"encoder.weight": LAYER["W_enc"], "encoder.bias": LAYER["b_enc"], "W_dec": LAYER["W_dec"]}
    save_file(t | {"b_dec": LAYER["b_dec"]}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"num_latents": F, "k": K, "d_in": D, "transcode": transcode}))
    if model:
        (folder.parent / "config.json").write_text(json.dumps({"model": model, "batch_size": 32}))
    return folder


@pytest.mark.parametrize("model", ["google/gemma-2-2b", "unsloth/gemma-3-270m-it", "local/gemma2"])
@pytest.mark.parametrize("module", ["mlp", "self_attn"])
def test_module_outputs_of_families_with_sandwich_norms_keep_their_names(module, model, tmp_path):
    folder = hookpoint(tmp_path / "run" / f"layers.1.{module}", model)
    assert Dictionary.load(folder).cfg.site_out == f"layers.1.{module}"


def test_a_transcoder_of_a_sandwich_model_reads_mlp_in_and_writes_the_module(tmp_path):
    cfg = Dictionary.load(hookpoint(tmp_path / "run" / "layers.1.mlp", "google/gemma-2-2b", transcode=True)).cfg
    assert (cfg.site_in, cfg.site_out) == ("mlp_in.1", "layers.1.mlp")


@pytest.mark.parametrize("model", ["google/gemma-2b", "meta-llama/Llama-3.2-1B", "HuggingFaceTB/SmolLM2-135M", None])
def test_module_outputs_of_other_families_are_mlp_out(model, tmp_path):
    assert Dictionary.load(hookpoint(tmp_path / "run" / "layers.1.mlp", model)).cfg.site_out == "mlp_out.1"


@pytest.mark.parametrize(
    "module,model,site",
    [
        ("layers.3.post_feedforward_layernorm", "google/gemma-2-2b", "mlp_out.3"),
        ("model.layers.3.post_feedforward_layernorm.output", "google/gemma-3-1b-pt", "mlp_out.3"),
        ("layers.3.post_attention_layernorm", "google/gemma-2-2b", "attn_out.3"),
        ("layers.3.post_attention_layernorm", "meta-llama/Llama-3.2-1B", "mlp_in.3"),
        ("layers.3.post_attention_layernorm", "", "layers.3.post_attention_layernorm"),
        ("layers.3.post_attention_layernorm", "zai-org/GLM-4-9B-0414", "mlp_in.3"),
        ("layers.3.post_self_attn_layernorm", "zai-org/GLM-4-9B-0414", "attn_out.3"),
        ("layers.3.post_mlp_layernorm", "zai-org/GLM-4-9B-0414", "mlp_out.3"),
        ("layers.3.self_attn", "zai-org/GLM-4-9B-0414", "layers.3.self_attn"),
        ("layers.3.post_attention_layernorm", "allenai/OLMo-2-0425-1B", "attn_out.3"),
        ("h.3.ln_2", "openai-community/gpt2", "mlp_in.3"),
        ("model.layers.3.output", "google/gemma-3-1b-pt", "resid_post.3"),
        ("h.3", "openai-community/gpt2", "resid_post.3"),
        ("gpt_neox.layers.3.attention", "EleutherAI/pythia-70m", "attn_out.3"),
        ("model.layers.3.mlp.input", "", "model.layers.3.mlp.input"),
    ],
)
def test_modules_are_the_sites_that_their_family_makes_of_them(module, model, site):
    assert module_site(module, model) == site


def test_signed_latents_are_refused_and_not_read_as_a_topk(tmp_path):
    folder = hookpoint(tmp_path / "run" / "layers.1.mlp")
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | {"signed": True}))
    with pytest.raises(MechstudyError, match="signed latents"):
        Dictionary.load(folder)


def test_a_model_folder_says_its_family_itself(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    assert norm_after("mlp_out", str(tmp_path)) == "post_feedforward_layernorm"
    assert norm_after("mlp_out", "somebody/finetune") is None


def test_a_dictionary_that_reads_one_layer_and_writes_another_is_refused_by_a_mapping(tmp_path):
    sites = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.2.hook_mlp_out"}
    place = of_head(tmp_path / "a", architecture="transcoder", d_out=D, metadata=sites)
    with pytest.raises(MechstudyError, match="the dictionary reads layer 1 and writes layer 2") as error:
        load_dictionaries({1: place})
    assert error.value.facts["writes"] == "mlp_out.2"


@pytest.mark.parametrize("place", ["blocks.{layer}.", "blocks.{}.", ""])
def test_a_hook_may_have_its_block_before_it(place, tmp_path):
    config = f"feature_input_hook: '{place}mlp.hook_in'\nfeature_output_hook: '{place}hook_mlp_out'\n"
    cfg = Dictionary.load(layer(tmp_path, config)).cfg
    assert (cfg.site_in, cfg.site_out) == ("mlp_in.3", "mlp_out.3")


def test_the_mark_that_windows_editors_write_is_no_part_of_a_config(tmp_path):
    folder = of_head(tmp_path / "a", **OLD)
    (folder / "cfg.json").write_bytes(b"\xef\xbb\xbf" + (folder / "cfg.json").read_bytes())
    assert Dictionary.load(folder).cfg.site_in == "blocks.1.attn.hook_q head 3"


@pytest.mark.parametrize("name", ["model.layers.1.mlp", "layers.1.mlp"])
def test_a_hugging_face_hook_name_of_saelens_keeps_its_name(name, tmp_path):
    assert Dictionary.load(of_head(tmp_path / "a", metadata={"hook_name": name})).cfg.site_out == name


def of_site(site: str, model: str | None = None) -> Dictionary:
    meta = DictionaryMeta("sae", "topk", D, D, F, K, site, site, {"model_name": model} if model else {})
    return Dictionary(meta, **(LAYER | {"W_enc": LAYER["W_enc"].T.contiguous()}))


def test_writing_mlp_out_of_a_sandwich_model_as_its_module_is_refused(tmp_path):
    dictionary = of_site("mlp_out.1", "google/gemma-2-2b")
    with pytest.raises(MechstudyError, match=r"this one is of mlp_out\.1") as error:
        sparsify.write(dictionary, tmp_path / "layers.1.mlp")
    assert "layers.1.post_feedforward_layernorm" in error.value.fix and not (tmp_path / "layers.1.mlp").exists()
    sparsify.write(dictionary, tmp_path / "layers.1.post_feedforward_layernorm")
    again = Dictionary.load(tmp_path / "layers.1.post_feedforward_layernorm")
    assert again.cfg.site_out == "mlp_out.1" and again.metadata["model_name"] == "google/gemma-2-2b"


def test_writing_into_another_layers_hookpoint_is_refused(tmp_path):
    with pytest.raises(MechstudyError, match="holds dictionaries of that module's output"):
        sparsify.write(of_site("mlp_out.1"), tmp_path / "layers.2.mlp")
    sparsify.write(of_site("mlp_out.1"), tmp_path / "layers.1.mlp")
    assert Dictionary.load(tmp_path / "layers.1.mlp").cfg.site_out == "mlp_out.1"


@pytest.mark.parametrize("family,refused", [("gemma2", True), ("llama", False)])
def test_a_module_without_its_model_is_refused_by_a_model_with_sandwich_norms(family, refused, tmp_path):
    dictionary, model = Dictionary.load(hookpoint(tmp_path / "layers.1.mlp")), tiny_model(family)
    if not refused:
        return refuse_other_tensor(model, dictionary)
    with pytest.raises(MechstudyError, match=r"mlp_out\.1 of this model is after post_feedforward_layernorm"):
        refuse_other_tensor(model, dictionary)
    return None


def test_mlp_out_of_a_sandwich_model_is_behind_its_last_norm():
    model = tiny_model("gemma2")
    seen = {}
    block = model.hf.model.layers[1]
    for name in ("mlp", "post_feedforward_layernorm"):
        module = getattr(block, name)
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    site = Site("mlp_out", 1)
    rows = model.forward(torch.arange(5)[None], capture=[site]).activations[site]
    assert torch.equal(rows, seen["post_feedforward_layernorm"]) and not torch.allclose(rows, seen["mlp"])
