"""Graphs of a direction of the final residual and of functions of the logits (float64, tiny random models)."""

import pytest
import torch

import mechstudy as ms
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.custom_targets import own_target
from mechstudy.circuits.frozen import FrozenForward
from mechstudy.circuits.linearised import linearise
from mechstudy.core.errors import MechstudyError
from tests.support.interventions_world import mlp_gradients, pair, slope, transcoders
from tests.support.tiny import ALL, tiny_model

TOKENS = torch.tensor([5, 17, 200, 33, 9, 120, 64])
CONFIG = AttributionConfig(max_features=10_000)


def entropy(logits):
    log_p = torch.log_softmax(logits, 0)
    return -(log_p.exp() * log_p).sum()


def direction_of(model):
    return torch.linspace(-1, 2, model.d_model, dtype=torch.float64)


def normed(model, edits=None):
    found = []
    hook = model.final_norm.register_forward_hook(lambda _m, _a, out: found.append(out[0]))
    model.forward(TOKENS[None], edits=edits)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("n_logits", [1, 3])
@pytest.mark.parametrize("family", ALL)
def test_the_ledger_of_a_direction_and_of_a_function_close(family, n_logits):
    model = tiny_model(family)
    dicts = transcoders(model, skip=True)
    logits = model.forward(TOKENS[None], logits_at="all").logits[0, -n_logits]
    rounding = 1e-6 if family == "gemma2" else 1e-8  # of its norms, which run in float32
    expected = {
        direction_of: float(normed(model)[-n_logits] @ direction_of(model)),
        entropy: float(entropy(logits)),
    }
    for target, value in expected.items():
        own = own_target(model, target(model) if target is direction_of else target, n_logits)
        ledger = attribute(model, dicts, TOKENS, CONFIG, explained=own).ledger(0)
        assert ledger.target == pytest.approx(value, abs=rounding)
        assert ledger.total == pytest.approx(ledger.target, abs=1e-8)


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "gpt2"])
def test_doubling_a_feature_moves_both_by_their_edges(family):
    model = tiny_model(family)
    dicts = transcoders(model)
    linear = linearise(model, dicts, TOKENS)
    frozen, features = FrozenForward(model, linear), linear.layers[0].nodes
    clean = frozen.run([]).final_BTD[0, -1]
    graphs = [
        attribute(model, dicts, TOKENS, CONFIG, explained=own_target(model, target, 1))
        for target in (direction_of(model), entropy)
    ]
    for column in (0, 4, 9):
        delta = (0, int(features.position_M[column]), features.written_MD[0][column, None])
        moved = frozen.run([delta]).final_BTD[0, -1] - clean
        slope = entropy(model.unembed(clean + 1e-4 * moved)) - entropy(model.unembed(clean - 1e-4 * moved))
        changes = [float(moved @ direction_of(model)), float(slope) / 2e-4]
        edges = [float(graph.A_RS[0, column]) for graph in graphs]
        assert changes[0] == pytest.approx(edges[0], abs=1e-9)
        assert changes[1] == pytest.approx(edges[1], rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("kind", ["direction", "function"])
def test_live_gradients_are_those_of_the_target(kind):
    model = tiny_model("qwen2")
    target = own_target(model, direction_of(model) if kind == "direction" else entropy, 2)
    gradient = mlp_gradients(model, TOKENS, target, [1])[1]
    vector = torch.linspace(-1, 1, model.d_model, dtype=torch.float64)

    def value(edits):
        if kind == "direction":
            return float(normed(model, edits)[-2] @ direction_of(model))
        return float(entropy(model.forward(TOKENS[None], edits=edits, logits_at="all").logits[0, -2]))

    assert float(gradient[4] @ vector) == pytest.approx(slope(value, vector, 1, 4), rel=1e-5, abs=1e-9)


def test_a_logit_as_a_function_is_the_logit_as_a_direction():
    model = tiny_model("llama")
    dicts = transcoders(model)
    row = model.unembedding.weight[7] - model.unembedding.weight[99]
    graphs = [
        attribute(model, dicts, TOKENS, CONFIG, explained=own_target(model, target, 1))
        for target in (row, lambda z: z[7] - z[99])
    ]
    alone = attribute(model, dicts, TOKENS, CONFIG, answer=7, wrong_answer=99)
    for graph in graphs:
        assert torch.allclose(graph.A_RS, alone.A_RS, atol=1e-10)


def test_a_graph_in_python_is_of_the_target_at_its_position():
    model, prompt = tiny_model("llama"), pair(0)
    graph = ms.attribute(model, transcoders(model), prompt, target=entropy, position="subject")
    logits = model.forward(torch.tensor([prompt.clean_tokens]), logits_at="all").logits[0]
    assert graph.ledger["target"] == pytest.approx(float(entropy(logits[2])), abs=1e-8)
    assert graph.ledger["total"] == pytest.approx(graph.ledger["target"], abs=1e-8)
    other = ms.attribute(model, transcoders(model), prompt, target=direction_of(model), position=-1)
    assert other.ledger["residual"] == pytest.approx(0, abs=1e-8) and len(other.nodes)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"target": torch.ones(3)}, r"the direction has shape \(3,\)"),
        ({"target": torch.zeros(32)}, "not finite, or zero"),
        ({"target": torch.full((32,), torch.nan)}, "not finite, or zero"),
        ({"target": "entropy"}, "a str is no target"),
        ({"target": lambda z: z[:2]}, r"returned a tensor of shape \(2,\), not a scalar"),
        ({"target": lambda z: z[0].item()}, "returned float, not a scalar tensor"),
        ({"target": lambda z: z.argmax().double()}, "does not change with the logits"),
        ({"target": lambda z: z[0] * torch.inf}, "the target is -?inf on this prompt"),
        ({"target": entropy, "position": "verb"}, "has no position 'verb'"),
        ({"target": entropy, "position": 9}, "has no position 9"),
        ({"target": entropy, "answer": " a"}, "both answers and a target"),
    ],
)
def test_a_target_that_cannot_be_explained_is_refused(more, what):
    model = tiny_model("llama")
    with pytest.raises(MechstudyError, match=what):
        ms.attribute(model, transcoders(model), pair(0), **more)
