"""The graph file, score and record of one prompt pair, and scores.json."""

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast
from mechstudy.circuits.aggregate import scores_of
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.graph import prune
from mechstudy.circuits.graph_attention import attention_of
from mechstudy.circuits.live import live_effects
from mechstudy.circuits.prompt_graph import explain_prompt
from mechstudy.circuits.prompt_record import prompt_record
from mechstudy.circuits.targets import AnswerContrast
from tests.support.interventions_world import pair, transcoders
from tests.support.tiny import tiny_model

CONFIG = AttributionConfig(max_features=40)


@pytest.fixture(scope="module")
def world():
    model = tiny_model("llama")
    return (
        model,
        transcoders(model),
        [explain_prompt(model, transcoders(model), pair(i), f"b-{i}", CONFIG) for i in (0, 1)],
    )


def test_a_prompts_graph_is_that_of_its_clean_tokens_and_answers(world):
    model, dictionaries, [explained, _] = world
    prompt = pair(0)
    answer, wrong = prompt.answer_tokens[0], prompt.wrong_tokens[0]
    graph = attribute(model, dictionaries, torch.tensor(prompt.clean_tokens), CONFIG, answer=answer, wrong_answer=wrong)
    pruned = prune(graph, CONFIG.node_threshold, CONFIG.edge_threshold)
    live = live_effects(model, dictionaries, graph, AnswerContrast(Contrast((answer,), (wrong,))))
    assert explained.record == prompt_record(
        prompt.id,
        graph,
        pruned,
        prompt.positions,
        live,
        attention=attention_of(model, graph, pruned, CONFIG),
    )
    assert explained.score["n_nodes_pruned"] == pruned.n_nodes and explained.score["n_features_expanded"] == 40
    assert explained.score["replacement"] == graph.scores().replacement
    extra = explained.json["metadata"]["mechstudy"]
    assert extra["scores"] == explained.score and extra["logit_difference"] == float(graph.value_R[0])


def test_graph_metadata_leaves_out_what_only_mechstudy_reads(world):
    metadata = world[2][0].metadata
    assert metadata["slug"] == "b-0" and "mechstudy" not in metadata and "mechstudy" in world[2][0].json["metadata"]


def test_scores_json_holds_means_the_worst_residual_and_every_prompt(world):
    first, second = (explained.score for explained in world[2])
    content = scores_of([first, second])
    assert list(content) == [
        "n_prompts", "nodes", "edges", "replacement", "completeness", "replacement_pruned", "completeness_pruned",
        "replacement_among_rows", "completeness_among_rows",
        "conservation_residual_max", "per_prompt",
    ]  # fmt: skip
    assert content["n_prompts"] == 2 and content["per_prompt"] == [first, second]
    assert content["nodes"] == (first["n_nodes_pruned"] + second["n_nodes_pruned"]) / 2
    assert content["replacement"] == pytest.approx((first["replacement"] + second["replacement"]) / 2)
    assert content["conservation_residual_max"] == max(s["conservation_residual_max"] for s in (first, second))
