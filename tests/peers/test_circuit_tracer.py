"""circuit-tracer's sets and cross-layer transcoders, both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.formats import circuit_tracer as sets
from mechstudy.dictionaries.formats.cross_layer import Clt, read_clt, write_clt
from mechstudy.dictionaries.loading import load_dictionaries
from tests.peers.exchange import D, F, N, assert_computes, assert_same, read_answer, write_rows

pytestmark = pytest.mark.peers
L = 3


def rows_of_layers(folder: Path) -> Tensor:
    for layer in range(L):
        x = write_rows(folder / f"rows_{layer}", torch.float32)
    return x


@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_a_set_computes_the_same_from_either_ones_files(jumps, skip, circuit_tracer, tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    x = rows_of_layers(there)
    circuit_tracer("make_set", folder=there, layers=L, d=D, width=F, jumps=jumps, skip=skip)
    circuit_tracer("compute_set", folder=there)
    found = load_dictionaries(there)
    for layer, dictionary in found.items():
        assert_computes(dictionary, x, there / f"rows_{layer}")
        assert (dictionary.cfg.site_in, dictionary.cfg.site_out) == (f"mlp_in.{layer}", f"mlp_out.{layer}")
    rows_of_layers(here)
    sets.write_set(found, here, model_name="some/model")
    config = circuit_tracer("compute_set", folder=here)
    assert config["model_kind"] == "transcoder_set"
    assert (config["feature_input_hook"], config["feature_output_hook"]) == ("mlp.hook_in", "mlp.hook_out")
    for layer, dictionary in found.items():
        assert_computes(dictionary, x, here / f"rows_{layer}")


def test_our_cross_layer_transcoder_computes_there_what_it_computes_here(circuit_tracer, tmp_path):
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / 2

    generator = torch.Generator().manual_seed(5)
    thresholds = draw(L, F).abs()
    thresholds[:, :4] *= -1  # at least zero counts
    ours = CrossLayerTranscoder(
        draw(L, F, D), draw(L, F), thresholds, [draw(F, L - layer, D) for layer in range(L)], draw(L, D)
    )
    ours.save(tmp_path)
    x_LND = write_rows(tmp_path, torch.float32)[: N // L * L].unflatten(0, (L, -1))
    save_file({"x": x_LND.flatten(0, 1).contiguous()}, tmp_path / "rows.safetensors")
    circuit_tracer("compute_clt", folder=tmp_path)
    features, reconstruction = read_answer(tmp_path)
    x_NLD = x_LND.transpose(0, 1)
    assert_same(ours.encode(x_NLD).transpose(0, 1).flatten(0, 1), features)
    assert_same(ours.reconstruct(x_NLD).transpose(0, 1).flatten(0, 1), reconstruction)


def by_hand(clt: Clt, x_LND: Tensor) -> tuple[Tensor, Tensor]:
    """f_l = activation(W_enc_l x_l + b_enc_l); y_m = b_dec_m + sum over l <= m of f_l W_dec_l[:, m - l]."""
    features = []
    for layer, (W, b) in enumerate(zip(clt["enc"], clt["b_enc"], strict=True)):
        pre = x_LND[layer] @ W.T + b
        features.append(pre.relu() * (pre > (clt["threshold"][layer] if clt["threshold"] else 0.0)))
    out = [
        clt["b_dec"][m] + sum(features[at] @ clt["dec"][at][:, m - at] for at in range(m + 1)) for m in range(L)
    ]  # fmt: skip
    return torch.cat(features), torch.cat(out)


@pytest.mark.parametrize("jumps", [False, True])
def test_a_clt_computes_the_same_from_either_ones_files(jumps, circuit_tracer, tmp_path):
    x_LND = write_rows(tmp_path, torch.float32)[: N // L * L].unflatten(0, (L, -1))
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
        save_file({"x": x_LND.flatten(0, 1).contiguous()}, folder / "rows.safetensors")
    circuit_tracer("make_clt", folder=there, layers=L, d=D, width=F, jumps=jumps)
    circuit_tracer("compute_clt", folder=there)
    clt = read_clt(there)
    for ours, theirs in zip(by_hand(clt, x_LND), read_answer(there), strict=True):
        assert_same(ours, theirs)
    sites = {"site_in": clt["site_in"], "site_out": clt["site_out"]}
    assert sites == {"site_in": "resid_mid", "site_out": "mlp_out"}
    write_clt(here, clt["enc"], clt["b_enc"], clt["dec"], clt["b_dec"], clt["threshold"], model_name="m", **sites)
    config = circuit_tracer("compute_clt", folder=here)
    assert (config["feature_input_hook"], config["feature_output_hook"]) == ("hook_resid_mid", "hook_mlp_out")
    for ours, theirs in zip(by_hand(clt, x_LND), read_answer(here), strict=True):
        assert_same(ours, theirs)
