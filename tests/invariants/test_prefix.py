"""A pass of the last tokens equals the whole pass: every family, windows, and layers without a rotary map."""

import pytest
import torch

from mechstudy.models.prefix import keep_run, run_last_tokens
from mechstudy.models.sites import Site
from tests.support.tiny import ALL, FAMILIES, tiny_model

TOKENS = torch.tensor([[5, 17, 200, 33, 9, 120, 64, 8, 90], [250, 3, 3, 77, 41, 8, 13, 99, 4]])


def bumped(position):
    def bump(x_BTD):
        x = x_BTD.clone()
        x[:, position] += torch.linspace(-1, 2, x.shape[-1], dtype=x.dtype) ** 2  # a constant vanishes in a LayerNorm
        return x

    return bump


@pytest.mark.parametrize("family", ALL)
def test_a_pass_of_the_last_tokens_equals_the_whole_pass(family):
    model = tiny_model(family, n_layers=4)
    kept = keep_run(model, TOKENS)
    assert torch.allclose(kept.logits_BV, model.forward(TOKENS).logits, rtol=0, atol=1e-6)
    for site in (Site("resid_pre", 0), Site("attn_out", 1), Site("mlp_out", 2), Site("resid_post", 3)):
        layer = 4 if site == Site("resid_post", 3) else site.layer
        for position in (0, 1, 6, 8):
            whole = model.forward(TOKENS, edits={site: bumped(position)}).logits
            part = run_last_tokens(model, kept, [1, 0, 1], [layer] * 3, position, {site: bumped(0)})
            assert torch.allclose(part, whole[[1, 0, 1]], rtol=0, atol=1e-6), (site, position)
            assert position < 8 or (whole - kept.logits_BV).abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_join_at_their_own_layers_equal_whole_passes(family):
    model = tiny_model(family, n_layers=4)
    kept = keep_run(model, TOKENS)
    rows, layers, position = [1, 0, 0, 1, 1], [0, 0, 2, 3, 4], 5
    for site, own in ((Site("attn_out", 0), (0, 1)), (Site("mlp_out", 2), (2,)), (Site("resid_post", 3), (3, 4))):

        def bump_own(x_BTD, own=own):
            x = x_BTD.clone()
            x[list(own)] = bumped(0)(x[list(own)])
            return x

        part = run_last_tokens(model, kept, rows, layers, position, {site: bump_own})
        whole = model.forward(TOKENS, edits={site: bumped(position)}).logits
        for number, row in enumerate(rows):
            expected = whole[row] if number in own else kept.logits_BV[row]
            assert torch.allclose(part[number], expected, rtol=0, atol=1e-6), (site, number)


def test_logits_of_several_last_tokens_are_those_of_the_whole_pass():
    model = tiny_model("gemma3")
    kept = keep_run(model, TOKENS, logits_at=3)
    for layer, site in ((1, Site("mlp_out", 1)), (3, Site("resid_post", 2))):
        whole = model.forward(TOKENS, edits={site: bumped(6)}, logits_at=3).logits
        part = run_last_tokens(model, kept, [0, 1], [layer] * 2, 6, {site: bumped(0)})
        assert torch.allclose(part, whole, rtol=0, atol=1e-6)
    assert kept.logits_BV.shape[1] == 3


def test_a_kept_run_can_be_continued_many_times():
    model = tiny_model()
    kept = keep_run(model, TOKENS)
    once, again = (run_last_tokens(model, kept, [0], [1], 4, {}) for _ in range(2))
    assert torch.equal(once, again) and kept.keys_values[2][0].shape[-2] == TOKENS.shape[1]
