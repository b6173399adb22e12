"""Exact identities of a prompt's nodes that are replaced, or kept alone (float64, tiny random models)."""

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast, contrasts
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.core.errors import MechstudyError
from mechstudy.interventions.engine import SetFeature, clean_run, edited_run
from mechstudy.interventions.feature_nodes import active_at
from mechstudy.interventions.subgraph import subgraph_effects
from mechstudy.models.sites import Site
from tests.support import bases_world
from tests.support.interventions_world import pair, transcoders
from tests.support.thorough import few
from tests.support.tiny import tiny_model

MODEL = tiny_model()
MODEL_SITE = Site("mlp_in", 0)
PAIR = pair(1)
NAMED = PAIR.model_copy(update={"positions": {str(i): i for i in range(7)}})


def active(bases):
    """Layer, feature and token of every feature that is active in either prompt, and of every error."""
    found = active_at(MODEL, bases, NamedPositions.of([NAMED]), [NAMED])
    features = [(f.layer, f.feature, int(f.position)) for f in found]
    return [*features, *((layer, None, at) for layer in bases for at in range(7))]


def contrast_of(edits, bases):
    run = clean_run(MODEL, torch.tensor([PAIR.clean_tokens]), [0])
    logits = edited_run(MODEL, bases, run, [edits]).logits
    return float(contrasts(logits, [Contrast.of_pair(PAIR)])[0])


@pytest.mark.parametrize("to", ["zero", "corrupted"])
@pytest.mark.parametrize("kind", few(bases_world.KINDS, 2))
def test_everything_pinned_carries_all_and_is_needed_for_all(kind, to):
    bases = bases_world.bases(MODEL, kind)
    made = subgraph_effects(MODEL, bases, PAIR, active(bases), replace_by=to)
    assert made.n_others == 0
    assert made.only == pytest.approx(made.clean, rel=1e-12)
    assert made.without == pytest.approx(made.none, rel=1e-12)
    assert abs(made.clean - made.none) > 1e-6
    assert made.necessity == pytest.approx(1)
    assert made.faithfulness == pytest.approx(1)


def test_a_feature_set_to_zero_is_the_edited_run():
    bases = transcoders(MODEL)
    at, features = 4, [f for f in active(bases) if f[1] is not None and f[2] == 4][:3]
    made = subgraph_effects(MODEL, bases, PAIR, features, replace_by="zero")
    edits = [SetFeature(layer, feature, at) for layer, feature, _ in features]
    assert made.n_nodes == 3
    assert made.without == pytest.approx(contrast_of(edits, bases), rel=1e-10)
    assert abs(made.without - made.clean) > 1e-6


def test_the_corrupted_prompt_gives_the_value_where_there_is_one():
    """The prompts differ at token 2, and so do the features of the first layer that are active there."""
    bases = transcoders(MODEL, (0,))
    resid = MODEL.forward(torch.tensor([PAIR.corrupted_tokens]), capture=[MODEL_SITE]).activations[MODEL_SITE]
    there = bases[0].encode(resid[0, 2])
    features = [f for f in active(bases) if f[1] is not None and f[2] == 2]
    made = subgraph_effects(MODEL, bases, PAIR, features)
    edits = [SetFeature(0, feature, 2, float(there[feature])) for _, feature, _ in features]
    assert made.replaced_by == "corrupted"
    assert made.without == pytest.approx(contrast_of(edits, bases), rel=1e-10)


def test_nothing_that_differs_has_no_share():
    """Before the first differing token both prompts compute the same, so nothing there can be replaced by another."""
    early = [f for f in active(transcoders(MODEL)) if f[2] == 0]
    made = subgraph_effects(MODEL, transcoders(MODEL), PAIR, early)
    assert made.without == pytest.approx(made.clean, rel=1e-12)
    assert made.only == pytest.approx(made.none, rel=1e-12)
    alone = PAIR.model_copy(update={"corrupted": "", "corrupted_tokens": ()})
    assert subgraph_effects(MODEL, transcoders(MODEL), alone, early).replaced_by == "zero"


@pytest.mark.parametrize(
    ("nodes", "options", "text"),
    [
        ([], {}, "no features and no errors"),
        ([(0, 1, 7)], {}, "there is no token 7"),
        ([(1, 1, 2)], {}, "layer 1 has no features"),
        ([(0, 40, 2)], {}, "has features 0-39"),
        ([(0, 1, 2)], {"replace_by": "mean"}, "cannot be replaced by 'mean'"),
    ],
)
def test_mistakes_are_named(nodes, options, text):
    with pytest.raises(MechstudyError, match=text):
        subgraph_effects(MODEL, transcoders(MODEL), PAIR, nodes, **options)
