"""Graphs of circuit-tracer and ours, of the same prompt of the same model with the same dictionaries."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.dictionaries.loading import load_dictionaries
from tests.peers.graphs import compared
from tests.support.tiny import save_tiny

pytestmark = pytest.mark.peers
L, D, F, TOKENS, LOGITS, ROWS = 3, 32, 64, [0, 80, 102, 41, 97, 120, 66], 5, 100


@pytest.mark.parametrize("kind", ["transcoders", "jumping", "skip", "clt"])
def test_edges_and_scores_equal_those_of_circuit_tracer(kind, circuit_tracer, tmp_path):
    """Edges to 1e-5 of the largest into their target: all from features with a row, errors and tokens."""
    there, file = tmp_path / "dictionaries", tmp_path / "graph.safetensors"
    there.mkdir()
    model = save_tiny(tmp_path / "model", "llama", n_layers=L, d=D)
    if kind == "clt":
        circuit_tracer("make_clt", folder=there, layers=L, d=D, width=F, jumps=True)
    else:
        jumps, skip = kind == "jumping", kind == "skip"
        circuit_tracer("make_set", folder=there, layers=L, d=D, width=F, jumps=jumps, skip=skip)
    asked = {"tokens": TOKENS, "n_features": ROWS, "n_logits": LOGITS}
    theirs = circuit_tracer("graph", model=tmp_path / "model", dictionaries=there, out=file, **asked)
    config = AttributionConfig(target="logits", max_logits=LOGITS, logit_probability=1.0, max_features=ROWS)
    ours = attribute(model, load_dictionaries(there), torch.tensor(TOKENS), config)
    both = compared(ours, load_file(file))
    assert both.same_active and both.same_logits
    difference, scores = both.difference_RC, ours.scores_among_rows()
    if kind == "skip":  # our skip paths do not apply at the first token, where no feature does either
        assert both.rows[2] > 0.9 * ROWS
        assert difference[:, both.of_token_0].max() > 1e-3
        difference[:, both.of_token_0] = 0
    else:
        assert both.rows == (ROWS, ROWS, ROWS)
        assert scores.replacement == pytest.approx(theirs["replacement"], abs=1e-5)
        assert scores.completeness == pytest.approx(theirs["completeness"], abs=1e-5)
    assert difference.max() <= 1e-5
