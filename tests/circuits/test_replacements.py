"""What nodes are replaced by, whether effects are integrated, and how aggregates carry them."""

from collections import defaultdict
from pathlib import Path

import pytest

from mechstudy.circuits.aggregate import aggregate
from mechstudy.circuits.config import AttributionConfig, ContrastConfig
from mechstudy.circuits.node_names import node_id, position_names
from mechstudy.circuits.node_sets import nodes_of
from mechstudy.circuits.prompt_graph import explain_prompt
from mechstudy.circuits.question import Question
from mechstudy.circuits.replacements import replacements_of
from mechstudy.core.errors import MechstudyError
from mechstudy.study.study import load_study
from tests.support.interventions_world import pairs, transcoders
from tests.support.tiny import tiny_model

SOME = pairs(3)
ALONE = [pair.model_copy(update={"corrupted": "", "corrupted_tokens": ()}) for pair in SOME]


@pytest.fixture(scope="module")
def world():
    model = tiny_model()
    dicts = transcoders(model)
    return model, dicts, nodes_of(model, dicts)


def of(world, some=SOME, **config):
    model, _, nodes = world
    return replacements_of(model, nodes, some, some, ContrastConfig(**config))


def test_values_are_the_corrupted_prompts_where_every_pair_has_one(world):
    assert of(world).source.to == "corrupted"
    assert of(world, [*SOME[:2], ALONE[2]]).source.to == "mean"
    with pytest.raises(MechstudyError, match="no corrupted prompt") as error:
        of(world, ALONE, replace_by="corrupted")
    assert "mean" in error.value.fix


def test_effects_are_integrated_where_first_order_misses_more_than_the_tolerance(world):
    close, far = of(world, tolerance=1e9), of(world, tolerance=1e-9)
    assert (close.steps, far.steps) == (0, 10)
    assert close.layer_gap == far.layer_gap > 0
    assert close.path_gap is None and 0 < far.path_gap < 0.02
    assert of(world, method="first_order", tolerance=1e-9).steps == 0
    assert of(world, method="integrated", tolerance=1e9, steps=3).steps == 3


@pytest.mark.parametrize("replace_by", ["corrupted", "mean", "zero"])
def test_an_aggregates_effect_is_the_mean_over_prompts(world, replace_by):
    model, dicts, _ = world
    config = AttributionConfig(aggregate_min_prompts=1, aggregate_nodes=10_000)
    replacements = of(world, replace_by=replace_by, method="first_order")
    records, expected, present = [], defaultdict(float), defaultdict(set)
    for pair in SOME:
        records.append(explain_prompt(model, dicts, pair, pair.id, config, replacements=replacements).record)
        effects = replacements.effects(Question.of_pair(pair))
        names = position_names(pair.positions, len(pair.clean_tokens))
        columns = (effects.layer_M, effects.feature_M, effects.position_M, effects.own_M, effects.other_M)
        for effect, layer, feature, at, own, other in zip(
            effects.effect_M.tolist(), *(c.tolist() for c in columns), strict=True
        ):
            key = node_id("feature", layer, feature, names[at])
            expected[key] += effect / len(SOME)
            if own or (other and replace_by == "corrupted"):
                present[key].add(pair.id)
    nodes = {node["id"]: node for node in aggregate(records, config)["nodes"]}
    named = [key for key in present if "@other" not in key]
    assert len(named) > 20
    for key in named:
        assert nodes[key]["contrast_effect"] == pytest.approx(expected[key], abs=1e-3)
        assert nodes[key]["presence"] == len(present[key]) / len(SOME)
        if replace_by == "zero":
            assert nodes[key]["contrast_effect"] == pytest.approx(-nodes[key]["live_effect"], abs=1e-9)
    assert any(nodes[key]["activation"] == 0 for key in named) == (replace_by == "corrupted")


def test_graphs_replace_by_what_features_are_ranked_by():
    demo = Path(__file__).parents[2] / "examples" / "demo.yaml"

    def replace_by(*overrides):
        return load_study(demo, overrides)[0].contrast.replace_by

    assert replace_by() == "auto"
    assert replace_by("interventions.rank_by=mean") == "mean"
    with pytest.raises(MechstudyError, match="ranked by zero"):
        replace_by("interventions.rank_by=zero", "attribution.contrast.replace_by=mean")
