"""Configs, metrics, groups, controls, directions, and the table on disk."""

import math

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast, contrasts
from mechstudy.circuits.named_positions import positions_left_to_right
from mechstudy.core.errors import MechstudyError
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.controls import activation_sizes, matched_controls, random_like, with_norm_of
from mechstudy.interventions.edges import LOGIT, edge_checks
from mechstudy.interventions.engine import turns
from mechstudy.interventions.features import (
    FeatureAt,
    NamedActivations,
    feature_at,
    feature_groups,
    positions_named,
    recurring_features,
)
from mechstudy.interventions.metric import kl_divergence
from mechstudy.interventions.results import COLUMNS, PartialTable, read_csv
from mechstudy.interventions.steering import difference_of_means, feature_direction, steer
from mechstudy.models.sites import Site
from tests.support.interventions_world import pair, pairs, strongest, transcoders
from tests.support.tiny import tiny_model


def node(layer, feature, position, total_effect):
    return {
        "type": "feature", "layer": layer, "feature": feature, "position": position, "total_effect": total_effect,
    }  # fmt: skip


# ------------------------------------------------------------------ config, metric


def test_doses_are_sorted_distinct_and_not_all_zero():
    assert InterventionConfig(alphas=(2, -1, 0)).alphas == (-1, 0, 2)
    for bad in ((), (1, 1), (0,)):
        with pytest.raises(ValueError):
            InterventionConfig(alphas=bad)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError):
        InterventionConfig(kinds=("ablations",))


def test_kl_of_two_coins_is_the_textbook_value_and_of_equal_logits_zero():
    clean = torch.tensor([[math.log(0.5), math.log(0.5)]] * 3)
    edited = torch.tensor([[math.log(0.9), math.log(0.1)]] * 3)
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert kl_divergence(clean, edited).tolist() == pytest.approx([expected] * 3, abs=1e-6)
    assert kl_divergence(edited, edited).tolist() == [0.0] * 3


def test_a_logit_difference_is_answer_minus_wrong_answer():
    logits = torch.tensor([[1.0, 5.0, 2.5], [0.0, -1.0, 4.0]])
    assert contrasts(logits, [Contrast((1,), (2,)), Contrast((2,), (0,))]).tolist() == [2.5, 4.0]


# ------------------------------------------------------------------ features, groups


def test_a_feature_prints_as_its_node_id_and_reads_back():
    feature = FeatureAt(12, 345, "subject")
    assert str(feature) == "f.12.345@subject" and feature_at(str(feature)) == feature
    with pytest.raises(MechstudyError, match="is not a feature"):
        feature_at("error.3@last")


def test_other_means_every_position_without_a_name():
    assert positions_named(pair(0, 7), "other") == [0, 1, 3, 4, 5]
    assert positions_named(pair(0, 7), "last") == [6] and positions_named(pair(0, 7), "verb") == []


def test_groups_take_named_features_by_falling_signed_effect():
    nodes = [node(1, i, "last", i - 2.0) for i in range(5)] + [node(1, 9, "other", 50.0), {"type": "error"}]
    groups = feature_groups(nodes, n_groups=5, group_size=2, rank_by="total_effect")
    assert [[m.feature for m in g.members] for g in groups] == [[4, 3], [2, 1]]
    assert [(g.rank, g.name) for g in groups] == [(1, "features 1-2"), (2, "features 3-4")]


def test_groups_by_contrast_take_supporters_first_or_the_largest():
    effects = (-3.0, 5.0, -1.0, 0.5)
    nodes = [node(1, i, "last", 0.0) | {"contrast_effect": effect} for i, effect in enumerate(effects)]

    def first(by):
        return [m.feature for m in feature_groups(nodes, n_groups=1, group_size=2, by=by)[0].members]

    assert first("effect") == [0, 2]
    assert first("|effect|") == [1, 0]
    with pytest.raises(MechstudyError, match="carry no contrast_effect"):
        feature_groups([node(1, 0, "last", 1.0)], n_groups=1, group_size=1)


def test_unnamed_positions_join_where_the_named_would_not_fill_a_group():
    nodes = [node(1, 0, "last", 1.0), node(1, 9, "other", 50.0)]
    [group] = feature_groups(nodes, n_groups=3, group_size=4, rank_by="total_effect")
    assert [m.feature for m in group.members] == [9, 0] and group.name == "features 1-2"


def test_a_graph_without_features_is_refused():
    with pytest.raises(MechstudyError, match="no feature"):
        feature_groups([{"type": "error"}], n_groups=1, group_size=1)


def test_rare_features_are_left_out_unless_the_others_are_too_few():
    nodes = [node(1, i, "last", 1.0) | {"presence": p} for i, p in enumerate((0.9, 0.5, 0.4))]
    nodes += [node(1, 9, "other", 1.0) | {"presence": 1.0}, {"type": "error", "presence": 1.0}]
    config = InterventionConfig(min_presence=0.5, group_size=2)
    assert [n["feature"] for n in recurring_features(nodes, config)] == [0, 1, 9]
    config = InterventionConfig(min_presence=0.5, group_size=3)
    assert [n["feature"] for n in recurring_features(nodes, config)] == [0, 1, 2, 9]


def test_position_names_run_from_left_to_right():
    some = [p.model_copy(update={"positions": {"last": 6, "b": 4, "a": 1}}) for p in pairs(2, lengths=(7,))]
    assert positions_left_to_right(some) == ["a", "b", "last"]


# ------------------------------------------------------------------ controls, directions


@pytest.fixture(scope="module")
def world():
    model = tiny_model("llama")
    dicts = transcoders(model)
    return model, dicts, NamedActivations(model, dicts, pairs(12))


def test_controls_share_layer_and_position_and_are_distinct(world):
    _, dicts, discovery = world
    members = strongest(discovery, 0, "subject", 3) + strongest(discovery, 2, "last", 2)
    excluded = {(m.layer, m.feature) for m in strongest(discovery, 0, "subject", 6)}
    controls = matched_controls(members, discovery, dicts, excluded, 3)
    assert len(controls) == 3
    for group in controls:
        assert [(c.layer, c.position) for c in group] == [(m.layer, m.position) for m in members]
        assert not {(c.layer, c.feature) for c in group} & (excluded | {(m.layer, m.feature) for m in members})
        assert all(discovery.means(c.layer, c.position)[c.feature] > 0 for c in group)
    everyone = [c for group in controls for c in group]
    assert len(set(everyone)) == len(everyone)
    assert controls == matched_controls(members, discovery, dicts, excluded, 3)


def test_the_first_control_is_the_closest_in_size(world):
    _, dicts, discovery = world
    [member] = strongest(discovery, 0, "subject", 1)
    sizes = activation_sizes(discovery, dicts[0], 0, "subject")
    controls = matched_controls([member], discovery, dicts, (), 3)
    gaps = [float((sizes[g[0].feature] - sizes[member.feature]).abs()) for g in controls]
    others = [f for f in range(40) if sizes[f] > 0 and f != member.feature]
    assert gaps == sorted(float((sizes[f] - sizes[member.feature]).abs()) for f in others)[:3]


def test_features_that_are_never_active_are_no_controls(world):
    _, dicts, _ = world
    means = torch.cat([torch.tensor([0.1]), torch.zeros(30), torch.full((9,), 10.0)]).double()

    class MadeUp(NamedActivations):
        def means(self, layer, name):
            return means

    made_up = MadeUp(world[0], dicts, [])
    controls = matched_controls([FeatureAt(0, 0, "subject")], made_up, dicts, (), 3)
    assert len(controls) == 3 and all(c.feature > 30 for group in controls for c in group)


def test_where_every_feature_is_in_the_circuit_there_is_no_control(world):
    _, dicts, discovery = world
    members = strongest(discovery, 0, "subject", 2)
    assert matched_controls(members, discovery, dicts, {(0, f) for f in range(40)}, 3) == []


def test_steering_directions_have_one_norm_per_layer(world):
    model, dicts, discovery = world
    members = strongest(discovery, 0, "subject", 2) + strongest(discovery, 2, "last", 2)
    features = feature_direction(members, discovery, dicts)
    written = sum(discovery.means(0, "subject")[m.feature] * dicts[0].W_dec[m.feature] for m in members[:2])
    assert torch.allclose(features[Site("mlp_out", 0)], written)
    lowest = Site("mlp_out", 0)
    for other in (
        random_like(features, torch.Generator().manual_seed(0)),
        difference_of_means(model, pairs(6), features),
    ):
        assert [float(v.norm()) for v in other.values()] == pytest.approx([float(v.norm()) for v in features.values()])
        assert abs(float(torch.cosine_similarity(other[lowest], features[lowest], dim=0))) < 0.9


def test_the_difference_of_means_points_from_corrupted_to_clean():
    model = tiny_model("llama")
    [prompt] = pairs(1)
    site = Site("mlp_out", 1)
    like = {site: torch.ones(model.d_model, dtype=torch.float64)}
    a, b = (model.forward(torch.tensor([t]), capture=[site]).activations[site][0, -1] for t in
            (prompt.clean_tokens, prompt.corrupted_tokens))  # fmt: skip
    assert torch.allclose(difference_of_means(model, [prompt], like)[site], with_norm_of(like[site], a - b))


def test_steering_adds_alpha_times_the_direction_at_the_last_position():
    [edit] = steer({Site("mlp_out", 3): torch.tensor([1.0, -2.0])}, -2.0, pair(0, 7))
    assert (edit.site, edit.position, edit.vector_D.tolist()) == (Site("mlp_out", 3), 6, [-2.0, 4.0])


# ------------------------------------------------------------------ edges of aggregate.json


def test_edge_checks_are_the_edges_with_instances():
    p = pair(0)
    instances = [[p.id, 0.5]]
    aggregate = {
        "target": "logit_difference",
        "edges": [
            {"source": "f.0.1@subject", "target": "f.2.3@last", "instances": instances},
            {"source": "f.0.1@subject", "target": "logit", "instances": instances},
            {"source": "error.0@subject", "target": "logit"},
        ],
        "qk_edges": [
            {"source": "token@subject", "target": "logit"},
            {"source": "f.0.2@subject", "target": "f.2.3@last", "instances": instances},
        ],
    }
    checks = edge_checks(aggregate, [p])
    ends = [(FeatureAt(2, 3, "last"), "value"), (LOGIT, "value"), (FeatureAt(2, 3, "last"), "qk")]
    assert [(c.target, c.kind) for c in checks] == ends
    assert checks[0].instances[0].weight == 0.5 and checks[0].instances[0].pair is p
    assert len(edge_checks(aggregate | {"target": "logits"}, [p])) == 2
    with pytest.raises(MechstudyError, match="not among the prompts"):
        edge_checks(aggregate, [])


# ------------------------------------------------------------------ the table on disk


def row(number, value=0.1):
    return (number, "k", "i, \"q\"", "g", "effect", 0, None, "p", "c", 1, 1.0, 2.0, 3.0, value, 0.0)  # fmt: skip


def results(folder, size):
    return PartialTable(folder, "results", COLUMNS, size)


def test_results_are_saved_in_parts_and_read_back_bit_for_bit(tmp_path):
    table = results(tmp_path, 2)
    values = [0.1, 1 / 3, -1e-300, 2.0, 5e-324]
    for i, value in enumerate(values):
        table.append(row(i, value))
        assert len(list(tmp_path.glob("results_partial_*.csv"))) == (i + 1) // 2
    table.save()
    rows = read_csv(table.join())
    assert [float(r["value"]) for r in rows] == values and rows[0]["item"] == 'i, "q"' and rows[0]["alpha"] == ""
    assert tuple(rows[0]) == COLUMNS and len(list(tmp_path.glob("results_partial_*.csv"))) == 3
    assert results(tmp_path, 2).n_saved == 5 and results(tmp_path, 2).rows() == rows


def test_a_part_that_does_not_fit_the_list_is_refused(tmp_path):
    table = results(tmp_path, 1)
    table.append(row(0))
    table.append(row(1))
    (tmp_path / "results_partial_2.csv").write_bytes(table.part(1).read_bytes())
    with pytest.raises(MechstudyError, match="do not fit the sample list"):
        results(tmp_path, 1)


def test_deleted_parts_are_gone_and_the_table_is_empty(tmp_path):
    table = results(tmp_path, 1)
    table.append(row(0))
    table.append(row(1))
    table.delete_parts()
    assert list(tmp_path.iterdir()) == [] and table.n_saved == 0


def test_edits_of_one_place_take_turns():
    assert turns([0, 1, 0, 0, 1, 2]) == [[0, 1, 5], [2, 4], [3]]
    assert turns([]) == []
