"""Attribution patching with exact patterns: exact where only a pattern is not linear, in float64 on tiny models."""

import pytest
import torch

from mechstudy.circuits.components import Components
from mechstudy.circuits.exact_patterns import PatternResponse
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.circuits.node_attribution import predict_effects
from mechstudy.core.errors import MechstudyError
from mechstudy.interventions.node_patching import measure_effects
from mechstudy.models.attention import recorded_patterns
from mechstudy.models.query_key import recorded_attention
from mechstudy.models.sites import Site
from tests.support.interventions_world import pairs, transcoders
from tests.support.thorough import few
from tests.support.tiny import ALL, tiny_model

SOME = pairs(4, lengths=(7, 9))
OTHERS = pairs(5, lengths=(7, 8), seed=1)
NAMES = NamedPositions.of([*SOME, *OTHERS])
TOKENS = torch.tensor([[5, 17, 200, 33, 9, 120, 64]])


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Cohere and ERNIE turn queries and keys in float32, whatever the model's dtype."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def model_of_one_pattern(scale=20.0):
    """Linear but for the patterns of its last layer, which all nodes below reach by the residual stream alone.

    Heads' values and MLPs read coordinate 0, which the embeddings alone write.
    """
    model = tiny_model("gpt2")
    model.final_norm.forward = lambda x: x
    last, d = model.n_layers - 1, model.d_model
    for layer, block in enumerate(model.blocks):
        block.norm_attn.forward = block.norm_mlp.forward = block.mlp.act.forward = lambda x: x
        block.norm_attn = None  # the frozen maps are of a family without a norm
        block.attn.c_attn.weight[1:, 2 * d :] = block.mlp.c_fc.weight[1:] = 0
        for written in (block.attn.c_proj, block.mlp.c_proj):
            written.weight[:, 0] = written.bias[0] = 0
        if layer < last:  # equal attention to all earlier tokens
            block.attn.c_attn.weight[:, : 2 * d] = block.attn.c_attn.bias[: 2 * d] = 0
        else:
            block.attn.c_attn.weight[:, : 2 * d] *= scale
    return model


@pytest.mark.parametrize("positions", [NAMES, NamedPositions.whole()], ids=["named", "whole"])
@pytest.mark.parametrize("to", few(["corrupted", "mean", "zero"]))
def test_effects_are_the_measured_ones_where_patterns_alone_are_not_linear(to, positions):
    model = model_of_one_pattern()
    nodes = Components(model, positions, layers=[0, 1])
    options = {"replace_by": to, "discovery": OTHERS}
    with recorded_patterns(model.hf):  # whose softmax keeps float64, unlike transformers' own
        exact = predict_effects(model, nodes, SOME, method="atp_qk", **options).effects_PN
        first = predict_effects(model, nodes, SOME, method="eap", **options).effects_PN
        measured = measure_effects(model, nodes, SOME, **options).effects_PN
    torch.testing.assert_close(exact, measured, rtol=1e-9, atol=1e-10)
    assert (first - measured).abs().max() > 0.05 * measured.abs().max() > 1e-4


def test_without_a_later_layer_there_is_nothing_to_correct():
    model = tiny_model()
    nodes = Components(model, NAMES, layers=[model.n_layers - 1])
    exact, first = (predict_effects(model, nodes, SOME, method=m).effects_PN for m in ("atp_qk", "eap"))
    torch.testing.assert_close(exact, first, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", few(ALL))
def test_changes_of_scores_are_those_of_the_model_to_first_order_and_exactly(family):
    """Against the scores of two runs whose stream is moved a little."""
    model, layer, at = tiny_model(family), 1, torch.tensor([2, 4])
    site = Site("resid_pre", layer)
    change_PD = torch.randn(2, model.d_model, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def run(step):
        def moved(x):
            return x.index_add(1, at, step * change_PD[None])

        with recorded_attention(model, [layer]) as recorded:
            out = model.forward(TOKENS, edits={site: moved}, capture=[site], logits_at=None)
        return recorded.query_key(layer, out.activations[site], live=True)[0]

    step = 1e-5
    up, down, one, far = run(step), run(-step), run(0.0), run(1.0)
    measured = (up.score_QTS - down.score_QTS) / (2 * step)
    attention = model.blocks[layer].attention_weights()
    response = PatternResponse(model, layer, one, attention, None, torch.zeros_like(one.resid_TD))
    [predicted] = response.linear_scores(change_PD[None], at)
    if one.softcap is not None:
        measured = measured * one.softcap_slope
    seen = one.pattern_QTS > 0
    torch.testing.assert_close(
        predicted[seen], measured[seen], rtol=2e-3, atol=1e-4 * float(measured[seen].abs().max())
    )
    assert float(measured[seen].abs().max()) > 0
    [exact] = response.changed_scores(change_PD[None], at)
    read, cap = [one.score_QTS, far.score_QTS], one.softcap
    before, after = read if cap is None else [cap * torch.tanh(x / cap) for x in read]
    torch.testing.assert_close(exact[seen], (after - before)[seen], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", few(["gemma2", "qwen3", "gpt2", "neox"]))
def test_in_the_limit_of_small_changes_nothing_is_corrected(family):
    """Halving a change quarters what is beyond first order, whatever norms and caps a family has."""
    model, layer = tiny_model(family), 1
    with recorded_attention(model, [layer]) as recorded:
        out = model.forward(TOKENS, capture=[Site("resid_pre", layer)], logits_at=None)
    [one] = recorded.query_key(layer, out.activations[Site("resid_pre", layer)], live=True)
    generator = torch.Generator().manual_seed(6)
    g_TD = torch.randn(7, model.d_model, generator=generator, dtype=torch.float64)
    change_NPD = torch.randn(3, 1, model.d_model, generator=generator, dtype=torch.float64)
    response = PatternResponse(model, layer, one, model.blocks[layer].attention_weights(), None, g_TD)
    whole, half = (response.beyond_first_order(s * change_NPD, torch.tensor([3])) for s in (1e-4, 5e-5))
    torch.testing.assert_close(whole / half, torch.full_like(whole, 4.0), rtol=0.02, atol=0)


def test_features_are_refused():
    import mechstudy as ms

    model = tiny_model()
    with pytest.raises(MechstudyError, match="atp_qk is for heads and MLPs"):
        ms.components(model, SOME, dictionaries=transcoders(model), method="atp_qk")
