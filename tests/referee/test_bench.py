"""Scores of methods on known circuits."""

from dataclasses import replace

import pytest
import torch

from mechstudy.circuits.components import HeadAt
from mechstudy.core.errors import MechstudyError
from mechstudy.referee import programs
from mechstudy.referee.bench import EDGE_METHODS, NODE_METHODS, RankingScores, bench, means
from mechstudy.referee.suite import known_circuits


@pytest.fixture(scope="module")
def rows():
    return list(bench(known_circuits(["ioi_one_layer", "boolean_xor"])))


def test_there_is_a_row_for_each_circuit_kind_and_method(rows):
    expected = {("ioi_one_layer", "node", m) for m in NODE_METHODS}
    expected |= {("ioi_one_layer", "edge", m) for m in EDGE_METHODS}
    expected |= {("boolean_xor", "node", m) for m in NODE_METHODS}
    assert {(row["circuit"], row["kind"], row["method"]) for row in rows} == expected and len(rows) == len(expected)
    assert all(0 <= row[score] <= 1 for row in rows for score in ("auroc", "f1", "precision_at_5", "best_auroc"))


def test_patching_finds_a_circuit_whose_parts_are_each_needed(rows):
    found = [r for r in rows if r["circuit"] == "ioi_one_layer" and r["method"] == "patching"]
    assert len(found) == 2 and all(row["auroc"] == 1 and row["f1"] == 1 for row in found)


def test_a_false_truth_scores_low():
    circuit = programs.ioi_one_layer(0)
    false = replace(circuit, circuits=(frozenset({HeadAt(0, 0, "io"), HeadAt(0, 1, "io")}),), edges=frozenset())
    (row,) = bench([false], ["patching"])
    assert row["auroc"] < 0.6 and row["f1"] == 0


def test_scores_go_by_size_and_take_the_best_of_several_sets():
    effects = torch.tensor([-4.0, 3.0, 1e-12, 1.0], dtype=torch.float64)
    sets = [torch.tensor([True, False, False, False]), torch.tensor([False, False, True, True])]
    scores = RankingScores.of(effects, sets)
    assert scores.best_auroc == 1 and scores.best_f1 == 1
    assert scores.auroc == pytest.approx(1 / 3), "of the union's three members only the first is above 3.0"
    assert scores.f1 == scores.precision_at_5 == pytest.approx(2 / 3)


def test_effects_next_to_nothing_are_ties():
    effects = torch.tensor([1.0, 1e-12, -1e-13, 0.0], dtype=torch.float64)
    members = [torch.tensor([False, True, False, False])]
    assert RankingScores.of(effects, members).auroc == pytest.approx((0 + 0.5 + 0.5) / 3)


def test_means_are_over_circuits(rows):
    of_eap = [r for r in rows if r["kind"] == "node" and r["method"] == "eap"]
    (mean,) = [m for m in means(rows) if m["kind"] == "node" and m["method"] == "eap"]
    assert mean["circuits"] == 2 and mean["auroc"] == pytest.approx(sum(r["auroc"] for r in of_eap) / 2)


def test_unknown_names_are_refused():
    with pytest.raises(MechstudyError, match="no known circuit 'inductoin'"):
        next(known_circuits(["inductoin"]))
    with pytest.raises(MechstudyError, match="no method 'epa'"):
        next(bench([], ["epa"]))


@pytest.mark.slow
def test_the_best_edge_method_finds_nearly_all_edges():
    some = list(bench(known_circuits(["ioi", "majority", "threshold"]), ["eap", "patching"]))
    of_edges = {mean["method"]: mean["auroc"] for mean in means(some) if mean["kind"] == "edge"}
    assert of_edges["patching"] >= 0.95 > of_edges["eap"], "attention and steps are saturated, where slopes vanish"
