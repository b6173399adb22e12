"""Ablation as notebooks call it: features by name, prompts from a file, results as frames."""

import pytest
import torch

import mechstudy as ms
from mechstudy.interventions.engine import SetFeature, clean_run, edited_run
from mechstudy.interventions.features import feature_at
from tests.support.api_world import error_of


@pytest.fixture(scope="module")
def features(world):
    """The two features of layer 0 that are most active on the prompts."""
    acts = ms.capture(world.model, list(world.pairs), "mlp_in.0")
    mean_F = world.dicts[0].encode(acts["mlp_in.0"][acts.rows["position"].to_numpy() > 0]).mean(0)
    return [f"0/{i}" for i in mean_F.topk(2).indices.tolist()]


def by_hand(world, pair, features, value):
    """The change of the logit difference when features are set at every position."""
    tokens = torch.tensor([pair.clean_tokens])
    refs = [feature_at(name) for name in features]
    clean = clean_run(world.model, tokens, [0])
    edits = [SetFeature(r.layer, r.feature, at, value) for r in refs for at in range(tokens.shape[1])]
    logits = edited_run(world.model, world.dicts, clean, [edits]).logits
    right, wrong = pair.answer_tokens[0], pair.wrong_tokens[0]
    difference = logits[0, right] - logits[0, wrong] - clean.logits_BV[0, right] + clean.logits_BV[0, wrong]
    return float(difference)


def test_a_feature_without_position_is_ablated_everywhere(world, features):
    result = ms.ablate(world.model, world.dicts, world.pairs, features, to="zero", n_controls=2)
    assert result.frame["prompt_id"].to_list() == [pair.id for pair in world.pairs]
    for pair, effect in zip(world.pairs, result.frame["effect"], strict=True):
        assert effect == pytest.approx(by_hand(world, pair, features, 0.0), abs=1e-4)
    [effect, low, high] = result.summary().row(0)[1:4]
    assert effect == result.test.effect.value == pytest.approx(result.frame["effect"].mean())
    assert low <= effect <= high


def test_controls_are_other_features_of_the_same_layer(world, features):
    result = ms.ablate(world.model, world.dicts, world.pairs, features, n_controls=2)
    assert len(result.controls) == 2
    controls = {ref for group in result.controls for ref in group}
    assert {ref.layer for ref in controls} == {0}
    assert not controls & set(result.features)
    effect, control, difference = result.summary()["effect"]
    assert difference == pytest.approx(effect - control)


@pytest.mark.parametrize("to", ["mean", "zero", "resample", "corrupted"])
def test_every_replacement_gives_an_effect_per_prompt(world, features, to):
    result = ms.ablate(world.model, world.dicts, world.pairs, features, to=to, n_controls=1)
    assert len(result.frame) == 6
    assert result.frame["effect"].abs().max() > 0
    assert "on 6 prompts" in repr(result)


def test_named_positions_are_the_only_ones_edited(world, features):
    at_last = ms.ablate(world.model, world.dicts, world.pairs, f"{features[0]}@last", to="zero")
    everywhere = ms.ablate(world.model, world.dicts, world.pairs, features[0], to="zero")
    assert at_last.features[0].position == "last"
    assert at_last.frame["effect"].to_list() != everywhere.frame["effect"].to_list()


def test_a_graphs_rows_can_be_ablated(world):
    graph = ms.attribute(world.model, world.dicts, world.pairs[0])
    assert ms.ablate(world.model, world.dicts, world.pairs, graph.top(2), to="mean").test.effect.n == 6


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("0/999", "features 0-39"),
        ("1/3", "layer 1 has no dictionary"),
        ("0/1@object", "positions: animal, last, other, all"),
        ([], "no features are named"),
    ],
)
def test_features_that_cannot_be_ablated_say_why(world, features, message):
    assert message in error_of(lambda: ms.ablate(world.model, world.dicts, world.pairs, features))


def test_ablation_without_prompts_is_refused(world, features):
    assert "there are no prompt pairs" in error_of(lambda: ms.ablate(world.model, world.dicts, [], features))
