"""Graphs of circuit-tracer and ours, of the same prompt of the same model with the same dictionaries."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.graph import Graph
from mechstudy.dictionaries.loading import load_dictionaries
from tests.support.tiny import save_tiny

pytestmark = pytest.mark.peers
L, D, F, TOKENS, LOGITS = 3, 32, 64, [0, 80, 102, 41, 97, 120, 66], 5


@pytest.mark.parametrize("kind", ["transcoders", "jumping", "skip", "clt"])
def test_edges_equal_those_of_circuit_tracer(kind, circuit_tracer, tmp_path):
    there, theirs = tmp_path / "dictionaries", tmp_path / "graph.safetensors"
    there.mkdir()
    model = save_tiny(tmp_path / "model", "llama", n_layers=L, d=D)
    if kind == "clt":
        circuit_tracer("make_clt", folder=there, layers=L, d=D, width=F, jumps=True)
    else:
        jumps, skip = kind == "jumping", kind == "skip"
        circuit_tracer("make_set", folder=there, layers=L, d=D, width=F, jumps=jumps, skip=skip)
    asked = {"tokens": TOKENS, "n_features": 10**6, "n_logits": LOGITS}
    circuit_tracer("graph", model=tmp_path / "model", dictionaries=there, out=theirs, **asked)
    config = AttributionConfig(target="logits", max_logits=LOGITS, logit_probability=1.0, max_features=10**6)
    ours = attribute(model, load_dictionaries(there), torch.tensor(TOKENS), config)
    assert_same_graph(ours, load_file(theirs), skip=kind == "skip")


def assert_same_graph(ours: Graph, theirs: dict[str, Tensor], *, skip: bool) -> None:
    """Every edge from a feature, an error or a token is the same to 1e-5 of the largest into its target.

    But that of the first token where there are skip paths: ours do not apply at its position, where no feature does.
    """
    x = ours.index
    active = torch.stack([ours.feature_layer_S, ours.feature_position_S, ours.feature_id_S], 1)
    assert active.tolist() == theirs["active"].tolist()
    assert len(active) > 50
    assert [node.token for node in ours.logits] == theirs["logits"].tolist()
    n, A, T = len(ours.logits), ours.A_RS[:, : x.biases], theirs["adjacency"]
    assert len(A) > n + 50
    B = torch.cat([T[-n:], T[ours.column_R[n:]]])[:, : x.biases]
    error = (A - B).abs() / B.abs().amax(1, keepdim=True)
    if skip:
        assert error[:, x.tokens].max() > 1e-3
        error[:, x.tokens] = 0
    assert float(error.max()) <= 1e-5
