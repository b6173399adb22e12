"""Exact identities of scores, their terms and their effects: every family in float64 on tiny random models."""

import pytest
import torch

from mechstudy.circuits.query_key import score_edges, score_gradient, score_shares, score_terms, through_scores
from mechstudy.core.errors import MechstudyError
from mechstudy.models.attention import recorded_patterns
from mechstudy.models.query_key import query_keys
from mechstudy.models.sites import Site
from tests.support.tiny import ALL, tiny_model

TOKENS = torch.tensor([5, 17, 200, 33, 9, 120, 64])
LAYER, QUERY, KEY = 2, 6, 4


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Cohere and ERNIE turn queries and keys in float32, whatever the model's dtype."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def sources(model, position, layer=LAYER):
    """What the embedding, attention and MLPs wrote at a position, some of it in two pieces: it adds up to resid_pre."""
    kinds = [Site(kind, below) for below in range(layer) for kind in ("attn_out", "mlp_out")]
    with recorded_patterns(model.hf):  # whose softmax keeps float64, unlike transformers' own
        at = model.forward(TOKENS[None], capture=[Site("resid_pre", 0), *kinds], logits_at=None).activations
    rows = torch.stack([x[0, position] for x in at.values()])
    return torch.cat([0.3 * rows[:2], 0.7 * rows[:2], rows[2:]])


def random_gradient(model, rows=1):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, len(TOKENS), model.d_model, generator=generator, dtype=torch.float64)


def frozen_parts(model, layer):
    """The layer's value and output maps, and the norm after attention, frozen at the prompt."""
    block = model.blocks[layer]
    attention, one = block.attention_weights(), query_keys(model, TOKENS, [layer])[layer]
    post = None
    if block.norm_attn_post is not None:
        raw = attention.forward(one.pattern_QTS[None], one.norm.forward(one.resid_TD)[None])[0]
        post = model.linear_norm(block.norm_attn_post, raw)
    return one, attention, post


def target_of_scores(one, attention, post, g_TD, score_QTS):
    """<g, attn_out> as a function of the scores, by another code than what is tested: softmax, values, norm."""
    capped = score_QTS if one.softcap is None else one.softcap * torch.tanh(score_QTS / one.softcap)
    hidden = one.pattern_QTS == 0
    pattern = torch.softmax(capped.masked_fill(hidden, -torch.inf), -1)
    out = attention.forward(pattern[None], one.norm.forward(one.resid_TD)[None])[0]
    return (g_TD * (out if post is None else post.forward(out))).sum()


@pytest.mark.parametrize("family", ALL)
def test_frozen_queries_and_keys_give_the_models_own_scores(family):
    for layer, one in query_keys(tiny_model(family), TOKENS).items():
        x = one.norm.forward(one.resid_TD)
        q_TQH = one.query.forward(x)
        k_SQH = one.key.forward(x).repeat_interleave(one.group, 1)
        scores = one.scaling * torch.einsum("tqh,sqh->qts", q_TQH, k_SQH)
        assert torch.allclose(scores, one.score_QTS, rtol=0, atol=1e-10), layer


@pytest.mark.parametrize("family", ALL)
def test_terms_of_pairs_of_sources_add_up_to_the_score(family):
    model = tiny_model(family)
    one = query_keys(model, TOKENS, [LAYER])[LAYER]
    at_query, at_key = sources(model, QUERY), sources(model, KEY)
    for head in range(one.n_heads):
        terms = score_terms(one, head, QUERY, KEY, at_query, at_key)
        assert terms.shape == (len(at_query) + 1, len(at_key) + 1)
        assert float(terms.sum()) == pytest.approx(float(one.score_QTS[head, QUERY, KEY]), abs=1e-10)
        assert terms.abs().max() > 1e-3
        rows, columns = score_shares(one, head, QUERY, KEY, at_query, at_key)
        assert torch.allclose(rows, terms.sum(1), rtol=0, atol=1e-10)
        assert torch.allclose(columns, terms.sum(0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ALL)
def test_effect_of_scores_equals_autograd_through_the_softmax(family):
    model = tiny_model(family)
    for layer in range(model.n_layers):
        one, attention, post = frozen_parts(model, layer)
        g_RTD = random_gradient(model, rows=2)
        ours = score_gradient(one, attention, post, g_RTD)
        for row in range(2):
            score = one.score_QTS.clone().requires_grad_()
            (expected,) = torch.autograd.grad(target_of_scores(one, attention, post, g_RTD[row], score), score)
            assert torch.allclose(ours[row], expected, rtol=0, atol=1e-10)
            assert expected.abs().max() > 1e-4


@pytest.mark.parametrize("family", ALL)
def test_query_key_edges_equal_a_finite_difference(family):
    """Source moved a little at one position, into queries or into keys only: norms frozen, the softmax live."""
    model = tiny_model(family)
    one, attention, post = frozen_parts(model, LAYER)
    g_TD = random_gradient(model)[0]
    effect_QTS = score_gradient(one, attention, post, g_TD[None])[0]
    written = sources(model, KEY)
    edges = score_edges(one, effect_QTS, written, torch.full((len(written),), KEY))

    def target(step, side):
        moved = one.resid_TD.clone()
        moved[KEY] += step
        x, x_moved = one.norm.forward(one.resid_TD), one.norm.forward(moved)
        q = one.query.forward(x_moved if side == 0 else x)
        k = one.key.forward(x_moved if side == 1 else x).repeat_interleave(one.group, 1)
        scores = one.scaling * torch.einsum("tqh,sqh->qts", q, k)
        return float(target_of_scores(one, attention, post, g_TD, scores))

    for n, source in enumerate(written):
        for side in (0, 1):
            step = 1e-5 * source
            slope = (target(step, side) - target(-step, side)) / 2e-5
            assert float(edges[side][n]) == pytest.approx(slope, abs=1e-7, rel=1e-6)


@pytest.mark.parametrize("family", ALL)
def test_query_key_edges_are_effects_times_shares(family):
    model = tiny_model(family)
    one, attention, post = frozen_parts(model, LAYER)
    effect_QTS = score_gradient(one, attention, post, random_gradient(model))[0]
    at_query, at_key = sources(model, QUERY), sources(model, KEY)
    kept = torch.zeros_like(effect_QTS)
    kept[1, QUERY, KEY] = effect_QTS[1, QUERY, KEY]
    rows, columns = score_shares(one, 1, QUERY, KEY, at_query, at_key)
    through_query, _ = score_edges(one, kept, at_query, torch.full((len(at_query),), QUERY))
    _, through_key = score_edges(one, kept, at_key, torch.full((len(at_key),), KEY))
    assert torch.allclose(through_query, kept.sum() * rows[:-1], rtol=0, atol=1e-10)
    assert torch.allclose(through_key, kept.sum() * columns[:-1], rtol=0, atol=1e-10)


def test_queries_are_scaled_beyond_the_first_training_context_of_ministral_3():
    model = tiny_model("ministral3")
    model.hf.config.rope_parameters |= {"llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 3}
    one = query_keys(model, TOKENS, [1])[1]
    assert one.query.factor_T is not None and one.query.factor_T[0] == 1 < one.query.factor_T[6]


def test_partial_rotary_maps_leave_the_rest_of_a_head_alone():
    one = query_keys(tiny_model("neox"), TOKENS, [1])[1]
    turned = one.query.rotation_THH
    width = turned.shape[-1]
    assert not torch.equal(turned[3], torch.eye(width, dtype=torch.float64))
    assert torch.equal(turned[3, width // 4 :, width // 4 :], torch.eye(width - width // 4, dtype=torch.float64))


def test_layers_without_a_rotary_map_have_none():
    maps = {family: query_keys(tiny_model(family, n_layers=4), TOKENS) for family in ("gpt2", "smollm3", "cohere2")}
    assert all(one.query.rotation_THH is None for one in maps["gpt2"].values())
    for family in ("smollm3", "cohere2"):
        assert {one.query.rotation_THH is None for one in maps[family].values()} == {True, False}, family


def test_clipped_queries_are_refused():
    model = tiny_model("olmo")
    model.hf.config.clip_qkv = 0.1
    with pytest.raises(MechstudyError, match="not the affine maps of its family"):
        query_keys(model, TOKENS, [1])


@pytest.mark.parametrize(
    "where, message",
    [((4, 3, 2), "head 4 does not exist"), ((0, 7, 2), "query position 7"), ((0, 2, 3), "key 3 comes after query 2")],
)
def test_scores_that_do_not_exist_are_refused(where, message):
    model = tiny_model()
    one = query_keys(model, TOKENS, [1])[1]
    with pytest.raises(MechstudyError, match=message):
        score_terms(one, *where, one.resid_TD[:1], one.resid_TD[:1])


def test_gradients_of_many_targets_equal_those_of_one_at_a_time():
    model = tiny_model("gemma3")
    one, attention, post = frozen_parts(model, 1)
    effects = score_gradient(one, attention, post, random_gradient(model, rows=3))
    together = through_scores(one, effects)
    for row in range(3):
        for both, alone in zip(together, through_scores(one, effects[row : row + 1]), strict=True):
            assert torch.allclose(both[row], alone[0], rtol=0, atol=1e-12)
