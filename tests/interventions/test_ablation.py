"""Ablation without a study, and generation with features steered."""

import copy
from dataclasses import replace

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.interventions import (
    FeatureAt,
    NamedActivations,
    SetFeature,
    ablate,
    clean_run,
    edited_run,
    feature_at,
    generate_tokens,
)
from mechstudy.models.sites import Site
from tests.support.interventions_world import logit_differences, pairs, strongest, transcoders
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def world():
    model = tiny_model("llama")
    dicts, some = transcoders(model), pairs(8)
    discovery = NamedActivations(model, dicts, some)
    return model, dicts, some, strongest(discovery, 0, "subject", 2) + strongest(discovery, 2, "last", 2)


def ablated_by_hand(model, dicts, pair, values):
    """The logit difference of the clean prompt with features at positions set to values."""
    clean = clean_run(model, torch.tensor([pair.clean_tokens]), (0,))
    edits = [SetFeature(layer, feature, at, value) for (layer, feature, at), value in values.items()]
    return float(logit_differences([pair], edited_run(model, dicts, clean, [edits]).logits))


def places(pair, members):
    return [(m.layer, m.feature, pair.positions[m.position]) for m in members]


def test_zero_ablation_equals_the_edited_run_of_each_prompt(world):
    model, dicts, some, members = world
    result = ablate(model, dicts, some, members, to="zero", n_resamples=200, n_permutations=199)
    assert [p.prompt_id for p in result.prompts] == [p.id for p in some] and result.features == tuple(members)
    for pair, prompt in zip(some, result.prompts, strict=True):
        by_hand = ablated_by_hand(model, dicts, pair, dict.fromkeys(places(pair, members), 0.0))
        assert prompt.ablated == pytest.approx(by_hand, abs=1e-10)
        assert prompt.effect == pytest.approx(prompt.ablated - prompt.clean, abs=1e-10)
        assert (prompt.kl > 0) == (prompt.effect != 0)


def test_the_paired_test_is_over_prompts_and_against_matched_controls(world):
    model, dicts, some, members = world
    result = ablate(model, dicts, some, members, n_controls=2, n_resamples=200, n_permutations=199)
    mean = sum(p.effect for p in result.prompts) / len(some)
    control = sum(p.control_effect for p in result.prompts) / len(some)
    assert result.to == "mean" and len(result.controls) == 2
    assert [(c.layer, c.position) for c in result.controls[0]] == [(m.layer, m.position) for m in members]
    assert result.test.effect.value == pytest.approx(mean) and result.test.control.value == pytest.approx(control)
    assert result.test.difference.value == pytest.approx(mean - control)
    assert result.test.effect.ci[0] < mean < result.test.effect.ci[1] and 0 < result.test.p <= 1


def test_without_controls_the_difference_is_not_tested(world):
    model, dicts, some, members = world
    result = ablate(model, dicts, some, members, n_controls=0, n_resamples=200, n_permutations=199)
    assert result.controls == () and result.test.control is None and result.test.p_difference is None
    assert all(p.control_effect is None for p in result.prompts)


def test_corrupted_ablation_writes_the_corrupted_prompts_activations(world):
    model, dicts, some, members = world
    result = ablate(model, dicts, some[:2], members, to="corrupted", n_controls=0)
    for pair, prompt in zip(some, result.prompts, strict=False):
        sites = [Site("mlp_in", layer) for layer in (0, 2)]
        x = model.forward(torch.tensor([pair.corrupted_tokens]), capture=sites).activations
        values = {
            (layer, f, at): float(dicts[layer].encode(x[Site("mlp_in", layer)][0, at])[f])
            for layer, f, at in places(pair, members)
        }
        assert prompt.ablated == pytest.approx(ablated_by_hand(model, dicts, pair, values), abs=1e-10)


def test_a_feature_without_a_position_is_ablated_at_every_position(world):
    model, dicts, some, members = world
    name = f"{members[0].layer}/{members[0].feature}"
    result = ablate(model, dicts, some[:2], [name], to="zero", n_controls=0)
    for pair, prompt in zip(some, result.prompts, strict=False):
        every = {(members[0].layer, members[0].feature, at): 0.0 for at in range(len(pair.clean_tokens))}
        assert prompt.ablated == pytest.approx(ablated_by_hand(model, dicts, pair, every), abs=1e-10)


def test_resampling_gives_the_same_donors_in_every_call_and_others_by_seed(world):
    model, dicts, some, members = world

    def effects(seed):
        result = ablate(model, dicts, some, members, to="resample", n_controls=0, seed=seed)
        return [p.effect for p in result.prompts]

    assert effects(0) == effects(0) != effects(1)


def test_features_are_named_as_users_write_them():
    everywhere = FeatureAt(12, 345, "all")
    assert feature_at("12/345") == feature_at((12, 345)) == everywhere == feature_at(everywhere)
    assert feature_at("f.12.345@last") == feature_at((12, 345, "last")) == FeatureAt(12, 345, "last")
    with pytest.raises(MechstudyError, match="is not a feature"):
        feature_at("12-345")


@pytest.mark.parametrize(
    "feature, message",
    [("1/3", "layer 1 has no dictionary"), ("0/40", "features 0-39"), ((0, 3, "verb"), "no prompt has a position")],
)
def test_features_that_do_not_exist_are_refused(world, feature, message):
    model, dicts, some, _ = world
    with pytest.raises(MechstudyError, match=message):
        ablate(model, dicts, some, [feature])


def test_ablation_refuses_dictionaries_of_a_site_that_no_node_stands_for(world):
    model, dicts, some, _ = world
    sae = copy.deepcopy(dicts[0])
    sae.cfg = replace(sae.cfg, site_in="mlp_in.0", site_out="mlp_in.0")
    with pytest.raises(
        MechstudyError, match=r"need a transcoder from mlp_in\.0 .*, or an SAE of .*; this dictionary is of mlp_in\.0"
    ):
        ablate(model, {0: sae}, some, ["0/3"])


def test_ablation_needs_pairs_features_and_a_replacement_that_exists(world):
    model, dicts, some, members = world
    with pytest.raises(MechstudyError, match="no features are named"):
        ablate(model, dicts, some, [])
    with pytest.raises(MechstudyError, match="no prompt pairs"):
        ablate(model, dicts, [], members)
    with pytest.raises(MechstudyError, match="share an id"):
        ablate(model, dicts, [some[0], some[0]], members)
    with pytest.raises((MechstudyError, TypeError), match="median"):  # TypeError where types are checked
        ablate(model, dicts, some, members, to="median")


def test_greedy_generation_takes_the_most_probable_token_each_time(world):
    model, _, some, _ = world
    ids = list(some[0].clean_tokens)
    for token in generate_tokens(model, ids, max_new_tokens=3):
        assert token == int(model.forward(torch.tensor([ids])).logits[0].argmax())
        ids.append(token)
    assert len(ids) == 10


def test_steering_adds_the_decoder_row_at_every_position_but_the_first(world):
    model, dicts, some, _ = world
    tokens, vector = list(some[0].clean_tokens), 30.0 * dicts[2].W_dec[5]

    def push(x_BTD):
        x = x_BTD.clone()
        x[0, 1:] += vector
        return x

    expected = int(model.forward(torch.tensor([tokens]), edits={Site("mlp_out", 2): push}).logits[0].argmax())
    assert generate_tokens(model, tokens, steer={"2/5": 30.0}, dictionaries=dicts, max_new_tokens=1) == [expected]
    assert generate_tokens(model, tokens, steer={(2, 5): 0.0}, dictionaries=dicts) == generate_tokens(model, tokens)
    with pytest.raises(MechstudyError, match="layer 1 has no dictionary"):
        generate_tokens(model, tokens, steer={"1/5": 1.0}, dictionaries=dicts)


def test_generation_stops_after_a_stop_token_and_samples_by_seed(world):
    model, _, some, _ = world
    tokens = some[0].clean_tokens
    first = generate_tokens(model, tokens, max_new_tokens=1)
    assert generate_tokens(model, tokens, stop=first) == first
    draws = [generate_tokens(model, tokens, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
