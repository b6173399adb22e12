"""Every architecture of SAELens: read, written, and refused by name."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats.saelens_foreign import ARCHITECTURES, REFUSED
from mechstudy.dictionaries.stored import DictionaryMeta, expected_shapes
from tests.peers.exchange import D, F, K, N, assert_computes, assert_same, read_answer, write_rows

pytestmark = pytest.mark.peers

OUT = 12
SIZES = {"d_in": D, "d_sae": F}
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


def options(architecture: str, dtype: str = "float32", **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = SIZES | {"dtype": dtype} | more
    if architecture in TRANSCODERS:
        found |= {"d_out": OUT, "apply_b_dec_to_input": False}
    if architecture in ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk"):
        found["k"] = K
    if architecture == "matryoshka_batchtopk":
        found["matryoshka_widths"] = [F // 4, F // 2, F]
    return found


def test_every_architecture_of_saelens_is_read_or_refused_by_name(saelens):
    registry = saelens("registry")
    assert set(registry["inference"]) | set(registry["training"]) == set(ARCHITECTURES) | set(REFUSED)


FINAL = [
    *((name, dtype, {"apply_b_dec_to_input": centred})
      for name in ("standard", "gated", "topk", "abstopk", "jumprelu")
      for dtype in ("float32", "float64") for centred in (False, True)),
    *((name, "float32", {}) for name in TRANSCODERS),
    *((name, "float32", {"rescale_acts_by_decoder_norm": True}) for name in ("topk", "abstopk")),
    *((name, "float32", {"normalize_activations": "expected_average_only_in"}) for name in ("standard", "jumprelu")),
    *((name, "float32", {"reshape_activations": "hook_z"}) for name in ("standard", "topk", "jumprelu")),
]  # fmt: skip


@pytest.mark.parametrize("architecture,dtype,more", FINAL)
def test_a_final_model_of_saelens_computes_here_what_it_computes_there(architecture, dtype, more, saelens, tmp_path):
    x = write_rows(tmp_path, getattr(torch, dtype))
    saelens("make", folder=tmp_path, architecture=architecture, options=options(architecture, dtype, **more))
    dictionary = Dictionary.load(tmp_path)
    if architecture == "abstopk":  # ours fires in feature i or in its opposite, F + i
        features, reconstruction = read_answer(tmp_path)
        assert bool((features < 0).any()) and int((features != 0).sum()) == K * N
        both = dictionary.encode(x)
        assert_same(both[:, :F] - both[:, F:], features)
        assert_same(dictionary.reconstruct(x), reconstruction)
    else:
        assert_computes(dictionary, x, tmp_path)
    # What was read and written again is SAELens' once more.
    again = tmp_path / "again"
    dictionary.save(again)
    write_rows(again, getattr(torch, dtype))
    saelens("load", folder=again)
    assert_computes(dictionary, x, again)


CHECKPOINTS = [
    *((name, centred, scale, whiten)
      for name in ("standard", "gated", "topk", "abstopk", "jumprelu", "batchtopk", "matryoshka_batchtopk")
      for centred in (False, True) for scale, whiten in ((None, False), (1.7, False), (None, True))),
]  # fmt: skip


@pytest.mark.parametrize("architecture,centred,scale,whiten", CHECKPOINTS)
def test_a_training_checkpoint_equals_the_final_model_of_saelens(
    architecture, centred, scale, whiten, saelens, tmp_path
):
    normalisation = "covariance_whitening" if whiten else "expected_average_only_in" if scale else "none"
    more = {"apply_b_dec_to_input": centred, "normalize_activations": normalisation}
    x = write_rows(tmp_path, torch.float64)
    made = options(architecture, "float64", **more)
    saelens("make_checkpoint", folder=tmp_path, architecture=architecture, options=made, scale=scale, whiten=whiten)
    dictionary = Dictionary.load(tmp_path)
    if architecture == "abstopk":
        both, (features, reconstruction) = dictionary.encode(x), read_answer(tmp_path)
        assert_same(both[:, :F] - both[:, F:], features)
        assert_same(dictionary.reconstruct(x), reconstruction)
    else:
        assert_computes(dictionary, x, tmp_path)
    assert dictionary.cfg.k == (K if "topk" in architecture else None)


def test_a_checkpoint_without_folded_decoder_norms(saelens, tmp_path):
    x = write_rows(tmp_path, torch.float64)
    made = options("batchtopk", "float64", rescale_acts_by_decoder_norm=False)
    saelens("make_checkpoint", folder=tmp_path, architecture="batchtopk", options=made, scale=1.7, whiten=False)
    assert_computes(Dictionary.load(tmp_path), x, tmp_path)


@pytest.mark.parametrize("architecture", sorted(REFUSED))
def test_what_no_row_by_row_formula_can_say_is_refused_with_the_reason(architecture, saelens, tmp_path):
    write_rows(tmp_path, torch.float32)
    more = {"matching_pursuit": {}, "temporal": {"n_heads": 1, "bottleneck_factor": 1, "kval_topk": 3}}[architecture]
    # A temporal model takes positions, not rows; what is refused is its folder alone.
    try:
        saelens("make", folder=tmp_path, architecture=architecture, options=SIZES | more)
    except AssertionError:
        assert (tmp_path / "cfg.json").exists()
    with pytest.raises(MechstudyError, match=f"architecture '{architecture}' cannot be used") as error:
        Dictionary.load(tmp_path)
    assert error.value.facts["reason"] == REFUSED[architecture]


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_normalisations_by_row_are_refused_with_the_reason(normalisation, saelens, tmp_path):
    write_rows(tmp_path, torch.float32)
    more = {"normalize_activations": normalisation}
    saelens("make", folder=tmp_path, architecture="standard", options=options("standard", **more))
    with pytest.raises(MechstudyError, match=normalisation) as error:
        Dictionary.load(tmp_path)
    assert "every row is divided" in error.value.facts["reason"]


# ------------------------------------------------------------------------------------- ours, loaded there


def ours(kind: str, activation: str, d_out: int, dtype: torch.dtype) -> Dictionary:
    sites = ("mlp_out.3", "mlp_out.3") if kind == "sae" else ("mlp_in.3", "mlp_out.3")
    meta = DictionaryMeta(kind, activation, D, d_out, F, K, *sites, {"model_name": "some/model"})  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) / 2
        for name, shape in expected_shapes(meta).items()
    }
    if activation == "jumprelu":
        tensors["threshold"] = tensors["threshold"].abs()
        tensors["threshold"][:5] *= -1  # at least zero counts
    return Dictionary(meta, **{name: tensor.to(dtype) for name, tensor in tensors.items()})


WRITTEN = [
    ("sae", "topk", D, "TopKSAE"),
    ("sae", "jumprelu", D, "JumpReLUSAE"),
    ("transcoder", "jumprelu", OUT, "JumpReLUTranscoder"),
    ("transcoder", "topk", D, "TopKSAE"),
    ("skip_transcoder", "jumprelu", OUT, "JumpReLUSkipTranscoder"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind,activation,d_out,name", WRITTEN)
def test_saelens_loads_ours_and_computes_the_same(kind, activation, d_out, name, dtype, saelens, tmp_path):
    dictionary = ours(kind, activation, d_out, dtype)
    dictionary.save(tmp_path)
    x = write_rows(tmp_path, dtype)
    loaded = saelens("load", folder=tmp_path)
    assert loaded["class"] == name
    hooks = ("blocks.3.hook_mlp_out", None) if kind == "sae" else ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out")
    assert (loaded["hook"], loaded["out"]) == hooks
    assert_computes(dictionary, x, tmp_path)


@pytest.mark.parametrize("kind,d_out", [("transcoder", OUT), ("skip_transcoder", D), ("skip_transcoder", OUT)])
def test_saelens_refuses_what_it_would_compute_otherwise(kind, d_out, saelens, tmp_path):
    ours(kind, "topk", d_out, torch.float32).save(tmp_path)
    assert f"topk_{kind}" in saelens("refuses", folder=tmp_path)


def test_all_combinations_of_ours_are_written_or_refused():
    combinations = itertools.product(("sae", "transcoder", "skip_transcoder"), ("topk", "jumprelu"))
    assert set(combinations) == {(kind, activation) for kind, activation, *_ in WRITTEN} | {("skip_transcoder", "topk")}
