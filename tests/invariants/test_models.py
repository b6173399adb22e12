"""Exact identities of forward passes on tiny random models, every supported family, float64."""

from functools import partial

import pytest
import torch

from mechstudy.behaviours.tokenise import Tokens, pair_tokens, require_open_end
from mechstudy.core.errors import MechstudyError
from mechstudy.models.sites import Site
from mechstudy.models.validate import relative_error, validate_model
from tests.support.tiny import ALL, FAMILIES, tiny_model

TOKENS = torch.tensor([[5, 17, 200, 33, 9, 120], [250, 3, 3, 77, 41, 8]])


@pytest.mark.parametrize("family", ALL)
def test_every_family_satisfies_the_load_checks(family):
    checks = validate_model(tiny_model(family))
    assert max(checks.values()) < 1e-6, checks  # attention softmax is fp32 inside transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_a_site_with_itself_changes_nothing(family):
    model = tiny_model(family)
    clean = model.forward(TOKENS, logits_at="all").logits
    for kind in ("resid_pre", "attn_heads", "attn_out", "mlp_in", "mlp_act", "mlp_out", "resid_post"):
        edited = model.forward(TOKENS, edits={Site(kind, 1): lambda x: x.clone()}, logits_at="all").logits
        assert torch.equal(clean, edited), kind


@pytest.mark.parametrize("family", ALL)
def test_heads_through_the_output_projection_are_the_attention_output(family):
    model = tiny_model(family)
    for layer, block in enumerate(model.blocks):
        sites = [Site("attn_heads", layer), Site("attn_out", layer)]
        heads, attn_out = model.forward(TOKENS, capture=sites).activations.values()
        assert heads.shape[-1] == model.width(sites[0]) == model.n_heads * model.head_dim
        written = block.attn_proj(heads)
        if block.norm_attn_post is not None:
            written = block.norm_attn_post(written)
        assert relative_error(written * block.residual_multiplier, attn_out) < 1e-12


def test_an_edited_head_moves_the_attention_output_by_its_slice_of_the_projection():
    model = tiny_model()
    site, out, h = Site("attn_heads", 1), Site("attn_out", 1), slice(2 * model.head_dim, 3 * model.head_dim)

    def cut(x):
        x = x.clone()
        x[..., h] = 0
        return x

    clean = model.forward(TOKENS, capture=[site, out]).activations
    edited = model.forward(TOKENS, capture=[out], edits={site: cut}).activations
    written = clean[site][..., h] @ model.blocks[1].attn_proj.weight[:, h].T
    assert relative_error(clean[out] - edited[out], written) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_reaches_the_logits_and_later_sites_but_nothing_before_it(family):
    model = tiny_model(family)
    before, after = Site("resid_post", 0), Site("resid_post", 2)
    clean = model.forward(TOKENS, capture=[before, after])
    edited = model.forward(TOKENS, capture=[before, after], edits={Site("mlp_out", 1): torch.zeros_like})
    assert torch.equal(clean.activations[before], edited.activations[before])
    assert relative_error(edited.activations[after], clean.activations[after]) > 1e-3
    assert relative_error(edited.logits, clean.logits) > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_at_a_position_leaves_earlier_positions_alone(family):
    model = tiny_model(family)

    def bump(x):
        x = x.clone()
        x[:, 3] += torch.linspace(-1, 2, x.shape[-1]) ** 2  # a constant would vanish in a LayerNorm
        return x

    clean = model.forward(TOKENS, logits_at="all").logits
    edited = model.forward(TOKENS, edits={Site("resid_post", 0): bump}, logits_at="all").logits
    assert torch.equal(clean[:, :3], edited[:, :3])
    assert relative_error(edited[:, 3:], clean[:, 3:]) > 1e-3


def test_logits_are_read_at_the_position_asked_for_in_each_row():
    model = tiny_model()
    everywhere = model.forward(TOKENS, logits_at="all").logits
    chosen = model.forward(TOKENS, logits_at=torch.tensor([2, 4])).logits
    assert torch.allclose(chosen, everywhere[[0, 1], [2, 4]], atol=1e-12)


def test_stopping_early_runs_no_later_block_and_gives_no_logits():
    model = tiny_model()
    ran = []
    handle = model.blocks[2].module.register_forward_hook(lambda *_: ran.append(2))
    out = model.forward(TOKENS, capture=[Site("mlp_out", 1)], stop_after=1)
    handle.remove()
    assert out.logits is None and not ran and Site("mlp_out", 1) in out.activations


def test_hooks_are_gone_after_a_forward_even_one_that_fails():
    model = tiny_model()
    clean = model.forward(TOKENS).logits

    def boom(_):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        resid = torch.zeros(2, 6, 32, dtype=torch.float64)
        model.forward(TOKENS, edits={Site("mlp_out", 2): boom}, start=(1, resid))
    assert torch.equal(model.forward(TOKENS).logits, clean)


@pytest.mark.parametrize("bos", [False, True])
def test_bos_stands_exactly_where_the_tokenizer_puts_it(bos):
    ids = tiny_model(bos=bos).encode("hi")
    assert ids[0] == 0 if bos else 0 not in ids
    assert len(ids) == 2 + bos


def test_in_a_chat_template_the_prompt_begins_the_reply():
    model = tiny_model()
    model.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>"
    before, after = (model.encode(text, instruction="Go on.") for text in ("The cat", "The cat is"))
    assert after[: len(before)] == before
    assert "".join(model.token_strings(after)) == "<user>Go on.</><assistant>The cat is"
    tokens = Tokens(partial(model.encode, instruction="Go on."))
    require_open_end(tokens)
    assert pair_tokens(tokens, "The cat", "The dog", "s", "d").answer == tuple(model.encode("s"))
    model.tokenizer.chat_template = None
    with pytest.raises(MechstudyError, match="has no chat template"):
        model.encode("The cat", instruction="Go on.")
