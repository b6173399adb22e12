"""Cross-layer transcoders through the Python interface: from a folder to graphs, ablations and steered text."""

import pytest
import torch
from safetensors.torch import save_file

import mechstudy as ms
from mechstudy.dictionaries import fitted, load_dictionary
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder, load_layer
from mechstudy.dictionaries.formats.recognise import CLT, Source
from mechstudy.dictionaries.loading import DictionarySet
from tests.support.api_world import PROMPT, error_of
from tests.support.clt_world import random_clt
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def clt():
    return random_clt(tiny_model("llama")).to(torch.float32)


@pytest.fixture
def folder(clt, tmp_path):
    clt.save(tmp_path / "clt")
    return tmp_path / "clt"


def test_a_folder_gives_a_dictionary_of_each_layer(folder, clt):
    dicts = ms.load_dictionaries(folder)
    assert list(dicts) == [0, 1, 2]
    assert dicts.frame["site_in"].to_list() == ["mlp_in.0", "mlp_in.1", "mlp_in.2"]
    assert dicts[0].sites_out == ("mlp_out.0", "mlp_out.1", "mlp_out.2")
    for layer in range(3):
        rows = dicts[layer].writes([4, 7])
        assert torch.equal(torch.stack(rows, 1), clt.W_dec[layer][[4, 7]])
    assert torch.equal(ms.load_dictionaries(clt)[1].W_writes, clt.W_dec[1])
    assert ms.load_dictionaries(folder, dtype=torch.float64, lazy=True)[2].b_enc.dtype == torch.float64


def test_one_layer_is_read_alone(folder, clt):
    (folder / "W_dec_0.safetensors").write_bytes(b"damaged")  # another layer's file
    one = load_layer(folder, 1)
    assert torch.equal(one.W_writes, clt.W_dec[1]) and torch.equal(one.W_enc, clt.W_enc[1].T)
    assert torch.equal(one.threshold, clt.threshold[1]) and torch.equal(one.b_dec, clt.b_dec[1])
    assert torch.equal(ms.load_dictionaries({2: folder})[2].W_writes, clt.W_dec[2])
    assert DictionarySet({1: Source(CLT, folder, 1)})[1].metadata["model_name"] == "tiny"
    assert "no layer 3" in error_of(lambda: ms.load_dictionaries({3: folder}))


def test_gemma_scope_2_files_give_layers(tmp_path, clt):
    for layer in range(3):
        w_dec = torch.zeros(24, 3, 32)
        w_dec[:, layer:] = clt.W_dec[layer]
        tensors = {"w_enc": clt.W_enc[layer].T, "b_enc": clt.b_enc[layer], "threshold": clt.threshold[layer]}
        tensors |= {"w_dec": w_dec, "b_dec": clt.b_dec[layer]}
        save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / f"params_layer_{layer}.safetensors")
    dicts = ms.load_dictionaries(tmp_path)
    assert torch.equal(dicts[1].W_writes, clt.W_dec[1]) and torch.equal(load_layer(tmp_path, 1).W_enc, dicts[1].W_enc)


def test_graph_ablation_and_steering(world, folder):
    dicts = ms.load_dictionaries(folder)
    graph = ms.attribute(world.model, dicts, world.pairs[0])
    assert graph.scores()["conservation_residual_max"] < 1e-3
    layers = {name.split("/")[0] for name in graph.nodes["feature"].drop_nulls()}
    assert "0" in layers
    result = ms.ablate(world.model, dicts, world.pairs, graph.top(3), to="zero", n_resamples=100, n_permutations=99)
    assert any(p.effect for p in result.prompts)
    plain = ms.generate(world.model, PROMPT, max_new_tokens=6)
    assert plain != ms.generate(world.model, PROMPT, max_new_tokens=6, steer={"0/5": 90.0}, dictionaries=dicts)


def test_a_layer_that_reads_before_the_norms_weight_is_fitted(world):
    clt = random_clt(world.model, site_in="ln2.hook_normalized").to(torch.float32)
    one = fitted(world.model, clt.layer(1))
    assert one.cfg.site_in == "mlp_in.1" and torch.equal(one.W_writes, clt.W_dec[1])
    normalised = torch.randn(5, 32)
    norm = world.model.linear_norm(world.model.blocks[1].norm_mlp, torch.zeros(1, 32))
    assert torch.allclose(one.encode(normalised * norm.weight_D), clt.layer(1).encode(normalised), atol=1e-5)


def test_two_that_read_one_layer_are_refused(folder, clt):
    assert "two dictionaries read layer 1" in error_of(lambda: ms.load_dictionaries([folder, clt.layer(1)]))
    assert isinstance(load_dictionary(folder), CrossLayerTranscoder)
