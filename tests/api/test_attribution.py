import json
from dataclasses import replace

import pytest
import torch

import mechstudy as ms
from mechstudy.api import attribution
from mechstudy.api.graphs import PromptGraph
from mechstudy.behaviours.contrast import Contrast
from mechstudy.circuits.attribution import attribute as attribute_tokens
from mechstudy.circuits.live import live_effects
from mechstudy.circuits.targets import AnswerContrast
from mechstudy.core.notices import MechstudyWarning
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.fitted import require_by_layer
from mechstudy.models.context import ContextLength
from tests.support.api_world import PROMPT, error_of


@pytest.fixture(scope="module")
def graph(world):
    config = ms.AttributionConfig(node_threshold=1.0, edge_threshold=1.0)
    return ms.attribute(world.model, world.dicts, PROMPT, answer="x", wrong_answer="y", config=config)


def test_the_ledger_is_the_models_logit_difference(world, graph):
    tokens = world.model.encode(PROMPT)
    logits = world.model.forward(torch.tensor([tokens])).logits[0]
    [x], [y] = world.model.encode("x"), world.model.encode("y")
    assert graph.ledger["target"] == pytest.approx(float(logits[x] - logits[y]), rel=1e-4)
    assert graph.ledger["total"] == pytest.approx(graph.ledger["target"], rel=1e-4)


def test_the_graph_is_the_one_that_a_study_makes(world, graph):
    [x], [y] = world.model.encode("x"), world.model.encode("y")
    tokens = torch.tensor(world.model.encode(PROMPT))
    theirs = attribute_tokens(world.model, world.dicts, tokens, ms.AttributionConfig(), answer=x, wrong_answer=y)
    live = live_effects(world.model, world.dicts, theirs, AnswerContrast(Contrast((x,), (y,))))
    features = graph.nodes.filter(kind="feature")
    expected = {
        (f"{layer}/{feature}", position): float(effect)
        for layer, feature, position, effect in zip(
            theirs.feature_layer_S.tolist(), theirs.feature_id_S.tolist(), theirs.feature_position_S.tolist(), live,
            strict=True,
        )
    }  # fmt: skip
    assert len(features)
    for row in features.iter_rows(named=True):
        assert row["live_effect"] == pytest.approx(expected[row["feature"], row["position"]])


def test_edges_join_the_nodes(graph):
    nodes = set(graph.nodes["node"])
    assert len(graph.edges)
    assert set(graph.edges["source"]) | set(graph.edges["target"]) <= nodes


def test_top_is_ranked_by_live_effect_or_as_asked(graph):
    assert graph.top(5)["live_effect"].is_sorted(descending=True)
    assert graph.top(5, by="activation")["activation"].is_sorted(descending=True)
    assert len(graph.top(3)) == 3
    assert "columns:" in error_of(lambda: graph.top(3, by="beauty"))


def test_without_answers_the_top_outputs_are_explained(world):
    graph = ms.attribute(world.model, world.dicts, PROMPT, config=ms.AttributionConfig(max_logits=3))
    assert len(graph.nodes.filter(kind="output")) == 3
    assert "influence" in graph.top(2).columns
    assert "live_effect" not in graph.top(2).columns


def test_a_prompt_pair_brings_its_answers(world):
    graph = ms.attribute(world.model, world.dicts, world.pairs[0])
    assert graph.prompt == world.pairs[0].clean
    assert len(graph.nodes.filter(kind="output")) == 1


def test_a_saved_graph_loads_again(graph, tmp_path):
    again = ms.load_graph(graph.save(tmp_path / "deep" / "keys.json"))
    assert again.nodes.drop("label").equals(graph.nodes.drop("label"))
    assert again.edges.equals(graph.edges)
    assert again.scores() == graph.scores()
    saved = json.loads((tmp_path / "deep" / "keys.json").read_text())
    assert saved["metadata"]["schema_version"] == 1  # Neuronpedia's
    with pytest.raises(ms.MechstudyError, match=r"\.json or \.html"):
        graph.save(tmp_path / "keys.png")


def test_a_file_without_graph_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    assert "this is not a prompt's graph" in error_of(lambda: ms.load_graph(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("asked", "message", "fix"),
    [
        ({"prompt": ""}, "the prompt is empty", "a text such as"),
        ({"answer": "xx"}, "answer 'xx' is 2 tokens", "its first token: 'x'"),
        ({"answer": "x", "wrong_answer": "x"}, "are the same token", "two different answers"),
        ({"wrong_answer": None}, "wrong_answer is missing", "or neither"),
        ({"answer": ""}, "has no token", "give an answer"),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(world, asked, message, fix):
    question = {"prompt": PROMPT, "answer": "x", "wrong_answer": "y"} | asked
    text = error_of(lambda: ms.attribute(world.model, world.dicts, **question))
    assert message in text
    assert fix in text


def test_an_answer_that_merges_with_the_prompt_is_refused(world, monkeypatch):
    own = world.model.encode
    monkeypatch.setattr(world.model, "encode", lambda text, **_: own(text.replace("sx", "*")))
    text = error_of(lambda: ms.attribute(world.model, world.dicts, PROMPT, answer="x", wrong_answer="y"))
    assert "merges with the end of the prompt" in text
    assert "end the prompt without a space" in text


def test_dictionaries_of_another_model_are_refused(world):
    from tests.support.interventions_world import transcoder

    assert "32 wide" in error_of(lambda: ms.attribute(world.model, {0: transcoder(8, 0)}, PROMPT))
    assert "layers 0-2" in error_of(lambda: ms.attribute(world.model, {9: transcoder(32, 9)}, PROMPT))
    only = ms.AttributionConfig(basis="dictionaries")
    assert "ms.load_dictionaries" in error_of(lambda: ms.attribute(world.model, {}, PROMPT, config=only))


def test_without_dictionaries_neurons_are_the_nodes(world):
    graph = ms.attribute(world.model, None, PROMPT, config=ms.AttributionConfig(max_features=40))
    features = graph.nodes.filter(kind="feature")
    assert set(features["layer"]) == {0, 1, 2} and graph.scores()["conservation_residual_max"] < 1e-4
    assert set(graph.heads.columns) == {"head", "layer", "query", "influence"} and len(graph.heads)
    assert len(graph.qk_edges) and graph.qk_edges["source"].is_in(graph.nodes["node"].implode()).all()


def test_sets_of_answers_are_compared(world):
    graph = ms.attribute(
        world.model, world.dicts, PROMPT, answer=["x", "z"], wrong_answer=["y"], answer_sets="mean",
        config=ms.AttributionConfig(max_features=20),
    )  # fmt: skip
    logits = world.model.forward(torch.tensor([world.model.encode(PROMPT)])).logits[0]
    x, y, z = (float(logits[world.model.encode(text)[-1]]) for text in "xyz")
    assert graph.ledger["target"] == pytest.approx((x + z) / 2 - y, abs=1e-4)


def test_whole_answers_are_compared_token_by_token(world):
    graph = ms.attribute(
        world.model, world.dicts, PROMPT, answer="xz", wrong_answer="yw", answer_tokens="all",
        config=ms.AttributionConfig(max_features=20),
    )  # fmt: skip
    prompt = world.model.encode(PROMPT)
    x, y, z = (world.model.encode(text)[-1] for text in "xyz")
    first = world.model.forward(torch.tensor([prompt])).logits[0]
    then = torch.log_softmax(world.model.forward(torch.tensor([[*prompt, x]])).logits[0], 0)
    assert graph.ledger["target"] == pytest.approx(float(first[x] - first[y] + then[z]), abs=1e-4)
    assert graph.ledger["total"] == pytest.approx(graph.ledger["target"], rel=1e-4)


@pytest.mark.parametrize(
    ("answers", "what"),
    [
        ({"answer": ["x", "y"], "wrong_answer": "y"}, "'y' and 'y' are the same token"),
        ({"answer": [], "wrong_answer": "y"}, "a list of answers is empty"),
        ({"answer": ["x", "z"], "wrong_answer": "y", "answer_tokens": "all"}, "compared one with one"),
        ({"answer": "xy", "wrong_answer": "x", "answer_tokens": "all"}, "begin with those of the other"),
    ],
)
def test_answers_that_cannot_be_compared_are_refused(world, answers, what):
    with pytest.raises(ms.MechstudyError, match=what):
        ms.attribute(world.model, world.dicts, PROMPT, **answers)


@pytest.mark.parametrize("given", ["d/ct", {0: "d/ct"}, 5])
def test_what_is_no_set_of_dictionaries_is_refused_with_the_function_that_loads_one(world, given):
    assert "load_dictionaries" in error_of(lambda: ms.attribute(world.model, given, PROMPT))


def test_an_ablation_refuses_a_path_in_place_of_dictionaries():
    assert "load_dictionaries" in error_of(lambda: require_by_layer("d/ct"))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"prompt": 5}, "the prompt is a int"),
        ({"prompt": PROMPT, "answer": 5, "wrong_answer": "y"}, "answer is a int"),
        ({"prompt": PROMPT, "answer": "x", "wrong_answer": ["y", 5]}, "wrong_answer is a int"),
    ],
)
def test_arguments_that_are_no_text_are_named(world, arguments, what):
    assert what in error_of(lambda: ms.attribute(world.model, world.dicts, **arguments))


def test_a_prompt_beyond_the_models_positions_is_warned_of(world, monkeypatch):
    monkeypatch.setattr(attribution, "context_length", lambda _: ContextLength(2, "max_position_embeddings", False))
    with pytest.warns(MechstudyWarning, match="the model has 2 positions"):
        ms.attribute(world.model, world.dicts, PROMPT)
    monkeypatch.setattr(attribution, "context_length", lambda _: ContextLength(2, "n_positions", True))
    assert "at most 2 tokens" in error_of(lambda: ms.attribute(world.model, world.dicts, PROMPT))


def test_dictionaries_of_another_model_are_warned_of(world):
    dicts = dict(world.dicts)
    layer = next(iter(dicts))
    one = dicts[layer].to(dtype=dicts[layer].W_enc.dtype)
    cfg = replace(one.cfg, metadata=dict(one.cfg.metadata) | {"model_name": "Qwen/Qwen3-4B"})
    monkey = Dictionary(
        cfg, **{n: getattr(one, n) for n in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip")}
    )
    with pytest.warns(MechstudyWarning, match="made for Qwen/Qwen3-4B"):
        ms.attribute(world.model, dicts | {layer: monkey}, PROMPT)


def test_the_repr_of_a_graph_cuts_a_long_prompt(graph):
    long = PromptGraph(graph._json | {"metadata": graph._json["metadata"] | {"prompt": "The keys " * 200}})
    assert len(repr(long)) < 300 and "1 output node;" not in repr(long)


def test_errors_of_an_ablation_name_its_own_arguments(world):
    assert error_of(lambda: ms.ablate(world.model, world.dicts, world.pairs, ["0/1"], n_resamples=50)).startswith(
        "n_resamples: must be"
    )
    layer = next(iter(world.dicts))
    text = error_of(lambda: ms.ablate(world.model, world.dicts, world.pairs, [f"{layer}/99999"]))
    assert text.startswith(f"{layer}/99999: the dictionary of layer {layer} has features")


def test_a_prompt_whose_graph_does_not_fit_is_refused_before_it_is_computed(world, monkeypatch):
    monkeypatch.setattr(attribution, "available_memory_bytes", lambda: 1000)
    message = error_of(lambda: ms.attribute(world.model, None, PROMPT))
    assert "tokens needs more than" in message and "1 kB are free" in message


def test_a_long_prompt_is_said_to_take_long(world, monkeypatch):
    monkeypatch.setattr(attribution, "_LONG", 2)
    with pytest.warns(MechstudyWarning, match="tokens may take minutes, and takes more than"):
        ms.attribute(world.model, world.dicts, PROMPT)
