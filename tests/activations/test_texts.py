import pytest
import torch

import mechstudy as ms
from tests.support.api_world import error_of

TEXTS = ["abcdef", "xyz", "uvwxyz"]


def test_rows_are_those_of_a_single_forward(world):
    acts = ms.capture(world.model, TEXTS, sites=["resid_post.0-1", "mlp_out.2"], positions="last-2")
    assert [str(site) for site in acts.sites] == ["resid_post.0", "resid_post.1", "mlp_out.2"]
    assert acts.rows["prompt"].to_list() == [0, 0, 1, 1, 2, 2]
    assert acts.rows["position"].to_list() == [4, 5, 1, 2, 4, 5]
    assert "".join(acts.rows["token"]) == "ef" + "yz" + "yz"
    site = ms.Site("resid_post", 1)
    for number, text in enumerate(TEXTS):
        tokens = torch.tensor([world.model.encode(text)])
        alone = world.model.forward(tokens, capture=[site]).activations[site][0, -2:]
        torch.testing.assert_close(acts["resid_post.1"][2 * number : 2 * number + 2], alone)


def test_a_frame_holds_activations_beside_their_tokens(world):
    acts = ms.capture(world.model, "abc", "mlp_in.1")
    frame = acts.frame("mlp_in.1")
    assert frame.columns == ["prompt", "position", "token_id", "token", "activation"]
    assert frame["activation"].to_list()[1] == pytest.approx(acts["mlp_in.1"][1].tolist())


def test_named_positions_of_prompt_pairs(world):
    acts = ms.capture(world.model, list(world.pairs), "resid_pre.0", positions=["animal", "last"])
    assert acts.rows.filter(prompt=0)["position"].to_list() == [5, 6]


def test_all_layers_and_single_positions(world):
    acts = ms.capture(world.model, TEXTS, "resid_post.all", positions=-1)
    assert len(acts) == world.model.n_layers
    assert acts["resid_post.0"].shape == (3, world.model.d_model)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"texts": []}, "there are no texts"),
        ({"texts": ["a", ""]}, "text 1 is empty"),
        ({"sites": "resid_pst.1"}, "did you mean 'resid_post'"),
        ({"sites": "resid_post"}, "resid_post.all"),
        ({"sites": "resid_post.9"}, "layers 0-2"),
        ({"positions": "subject"}, "subject"),
        ({"positions": 12}, "no position 12"),
    ],
)
def test_mistakes_say_what_exists(world, asked, message):
    given = {"texts": ["abc"], "sites": "resid_post.1"} | asked
    assert message in error_of(lambda: ms.capture(world.model, **given))


def test_a_site_that_was_not_captured_is_named_with_those_that_were(world):
    acts = ms.capture(world.model, "abc", "resid_post.1")
    assert error_of(lambda: acts["resid_post.2"]) == "resid_post.2 was not captured\n  sites: resid_post.1"
    assert "resid_post.2" not in acts
