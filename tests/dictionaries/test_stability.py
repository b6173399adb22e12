"""Directions that two dictionaries share: numbers by hand, every pair once, and what chunks do not change."""

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.evaluation.stability import compare, compare_all, match_directions
from tests.support.dictionary_worlds import dictionary_of


def directions(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_match_ignores_order_length_and_sign():
    a = directions(40, 16, 0)
    b = -3 * a[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    found = match_directions(a, b)
    assert found["matched"] == {"mean": pytest.approx(1.0), "above": {"0.7": 1.0, "0.9": 1.0}, "n": 40, "exact": True}
    assert found["nearest_a"]["mean"] == found["nearest_b"]["mean"] == pytest.approx(1.0)
    assert 0.4 < found["chance"] < 0.8, "sixteen coordinates hold no forty orthogonal directions"


@pytest.mark.parametrize("exact_up_to", [100, 1])
def test_what_is_nearest_twice_is_matched_once(exact_up_to):
    a = torch.eye(3)
    b = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0]])
    found = match_directions(a, b, exact_up_to=exact_up_to)
    assert found["nearest_a"]["mean"] == pytest.approx((1.0 + 0.6 + 0.0) / 3)
    assert found["nearest_a"]["above"] == pytest.approx({"0.7": 1 / 3, "0.9": 1 / 3})
    assert found["nearest_b"]["mean"] == pytest.approx((1.0 + 0.8) / 2)
    assert found["nearest_b"]["above"] == pytest.approx({"0.7": 1.0, "0.9": 0.5})
    matched = found["matched"]
    assert matched["n"] == 2 and matched["mean"] == pytest.approx((1.0 + 0.6) / 2), "not .8, whose partner is taken"
    assert matched["exact"] is (exact_up_to == 100)
    turned = match_directions(b, a, exact_up_to=exact_up_to)
    assert (turned["nearest_a"], turned["nearest_b"]) == (found["nearest_b"], found["nearest_a"])
    assert turned["matched"] == matched


def test_chunked_matching_among_neighbours_is_a_lower_bound_and_near(monkeypatch):
    monkeypatch.setattr("mechstudy.dictionaries.evaluation.stability.CHUNK", 1_000)
    a = directions(300, 32, 0)
    b = torch.cat([a[:200] + 0.4 * directions(200, 32, 1), directions(120, 32, 2)])
    exact, chunked = match_directions(a, b), match_directions(a, b, exact_up_to=10)
    assert chunked["nearest_a"]["mean"] == pytest.approx(exact["nearest_a"]["mean"], rel=1e-5)
    assert chunked["nearest_b"]["above"] == pytest.approx(exact["nearest_b"]["above"])
    assert chunked["matched"]["n"] == 300 and not chunked["matched"]["exact"]
    assert exact["matched"]["mean"] - 2e-3 < chunked["matched"]["mean"] <= exact["matched"]["mean"] + 1e-6


def test_features_without_a_candidate_left_count_nothing(monkeypatch):
    monkeypatch.setattr("mechstudy.dictionaries.evaluation.stability.NEIGHBOURS", 1)
    a = torch.tensor([[1.0, 0.0], [1.0, 0.1]])
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = match_directions(a, b, exact_up_to=1)[
        "matched"
    ]  # both want the first, which the second has as its own nearest
    assert found["mean"] == pytest.approx((1.0 + 0.1 / 1.01**0.5) / 2, abs=1e-6)
    assert match_directions(a, b[:1].repeat(2, 1), exact_up_to=1)["matched"]["mean"] > 0.4


def test_a_zero_direction_is_like_nothing():
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert match_directions(a, torch.eye(2))["nearest_a"]["mean"] == 0.5


def test_decoder_and_encoder_are_compared_separately_for_every_pair():
    a = dictionary_of(torch.eye(4), directions(4, 4, 0))
    b = dictionary_of(torch.eye(4).flip(0), directions(4, 4, 1), "mlp_out.2")
    found = compare(a, b)
    assert found["decoder"]["matched"]["mean"] == pytest.approx(1.0)
    assert 0 < found["encoder"]["matched"]["mean"] < 0.95
    assert found["n_features"] == [4, 4] and found["sites"] == ["mlp_out.1 > mlp_out.1", "mlp_out.2 > mlp_out.2"]
    c = dictionary_of(torch.ones(4, 4), directions(4, 4, 0))
    seeds = compare_all({"x": a, "y": b, "z": c})
    assert [(pair["a"], pair["b"]) for pair in seeds["pairs"]] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert seeds["mean"]["decoder"]["matched"] == pytest.approx((1.0 + 0.5 + 0.5) / 3), "cosine of 1,1,1,1 with an axis"
    assert seeds["mean"]["decoder"]["above"] == pytest.approx({"0.7": 1 / 3, "0.9": 1 / 3})
    assert compare_all([a, a])["pairs"][0]["b"] == "1"


def test_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(MechstudyError, match="4 and of 5 coordinates"):
        match_directions(torch.eye(4), torch.eye(5))
    with pytest.raises(MechstudyError, match="no directions"):
        match_directions(torch.zeros(0, 4), torch.eye(4))
    broken = torch.eye(4)
    broken[2, 0] = torch.nan
    with pytest.raises(MechstudyError, match="second set has directions of NaN") as error:
        match_directions(torch.eye(4), broken)
    assert error.value.where == "feature 2"
    with pytest.raises(MechstudyError, match="1 dictionary"):
        compare_all([dictionary_of(torch.eye(4))])
