"""Graphs of what a prompt has over a corrupted one, from text and from pairs."""

from __future__ import annotations

import pytest

import mechstudy as ms
from mechstudy.circuits.config import ContrastConfig
from mechstudy.core.errors import MechstudyError
from tests.support.interventions_world import pair, transcoders
from tests.support.tiny import tiny_model

CONFIG = ms.AttributionConfig(max_features=10, contrast=ContrastConfig(steps=8))
ANSWERS = {"answer": "x", "wrong_answer": "y"}


@pytest.fixture(scope="module")
def world():
    model = tiny_model(dtype="float32")
    return model, {layer: one.float() for layer, one in transcoders(model, (0, 2)).items()}


def test_a_text_is_explained_against_its_corrupted_text(world):
    graph = ms.attribute(*world, "the keys", **ANSWERS, corrupted="the kegs", explains="difference", config=CONFIG)
    gap = graph.scores()["path_gap"]
    assert graph.explains == "difference" and gap["target"] < 0.05 and gap["median_row"] <= gap["worst_row"] < 0.05
    assert graph.ledger["biases"] == 0 and abs(graph.ledger["target"]) > 1e-4
    features = graph.nodes.filter(kind="feature")
    assert features["position"].min() >= 6 and features["change"].null_count() == 0  # "y" is "g" at position 6
    assert not len(graph.heads) and not len(graph.qk_edges)


def test_a_pair_has_its_own_corrupted_prompt(world):
    model, dicts = world
    graph = ms.attribute(model, dicts, pair(0), explains="difference", config=CONFIG)
    assert graph.explains == "difference"
    with pytest.raises(MechstudyError, match="has its own corrupted prompt"):
        ms.attribute(model, dicts, pair(0), corrupted="abc")


def test_a_corrupted_text_alone_predicts_effects_of_replacing_features(world):
    graph = ms.attribute(*world, "the keys", **ANSWERS, corrupted="the kegs", config=CONFIG)
    assert graph.explains == "clean" and graph.top(3).columns[3] == "contrast_effect"


@pytest.mark.parametrize(
    ("corrupted", "message"),
    [(None, "needs a corrupted prompt"), ("the key", "8 tokens and its corrupted prompt 7"), ("", "prompt is empty")],
)
def test_differences_without_a_counterpart_are_refused(world, corrupted, message):
    with pytest.raises(MechstudyError, match=message):
        ms.attribute(*world, "the keys", **ANSWERS, corrupted=corrupted, explains="difference", config=CONFIG)


def test_explaining_the_clean_prompt_changes_no_ids():
    assert ms.AttributionConfig(explains="clean").canonical() == ms.AttributionConfig().canonical()
    assert "explains" not in ms.AttributionConfig().canonical()
    with pytest.raises(MechstudyError, match="explains"):
        ms.AttributionConfig(explains="diference")
