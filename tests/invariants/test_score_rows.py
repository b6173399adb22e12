"""Edges through attention patterns against the model with live patterns (float64, tiny random models)."""

from __future__ import annotations

import pytest
import torch

from mechstudy.circuits.frozen import FrozenForward
from mechstudy.circuits.linearised import linearise
from mechstudy.circuits.rows import SourceIndex, direct_effects, feature_targets
from mechstudy.circuits.score_rows import score_effects
from mechstudy.circuits.targets import output_target
from mechstudy.models.query_key import query_keys
from tests.support.bases_world import bases
from tests.support.tiny import tiny_model

TOKENS = torch.tensor([5, 17, 200, 33, 9, 120, 64])
STEP = 1e-4


@pytest.mark.parametrize("kind", ["transcoders", "skip transcoders", "sae resid_post", "sae attn_out", "neurons"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "neox"])
def test_a_node_moves_targets_through_live_patterns_by_its_edges(family, kind):
    """Patterns of one layer at a time are live: the slope is the value edge and the QK edge through that layer."""
    model = tiny_model(family)
    prompt = linearise(model, bases(model, kind), TOKENS, first_is_constant=True)
    index = SourceIndex(prompt)
    direction = torch.randn(model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = [output_target(prompt, 6, direction, 0.0)]
    targets += feature_targets(prompt, 2, range(0, len(prompt.layers[2].nodes.value_M), 9))
    nodes = prompt.layers[0].nodes
    values = direct_effects(prompt, index, targets)
    frozen, moved_at_all = FrozenForward(model, prompt), 0.0
    for layer in (1, 2):
        scores = score_effects(prompt, index, targets, query_keys(model, TOKENS, [layer]))
        for column in (3, len(nodes.value_M) // 2):
            step = STEP * nodes.written()[column, None]
            at = int(nodes.position_M[column])
            up, down = (frozen.run_through_scores([[(0, at, sign * step)]], [layer])[1] for sign in (1, -1))
            slopes = [float((up.final_BTD - down.final_BTD)[0, 6] @ direction) / (2 * STEP)]
            slopes += [
                float((up.read[2] - down.read[2])[0, target.position] @ target.direction_D) / (2 * STEP)
                for target in targets[1:]
            ]
            expected = values[:, column] + scores[:, column]
            assert expected.tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-7)
            moved_at_all = max(moved_at_all, float(scores[:, column].abs().max()))
    assert moved_at_all > 1e-4


def test_layers_add_up():
    model = tiny_model("qwen3")  # with norms of queries and keys, whose scales are frozen
    prompt = linearise(model, bases(model, "skip transcoders"), TOKENS)
    index = SourceIndex(prompt)
    targets = [output_target(prompt, at, torch.ones(model.d_model, dtype=torch.float64), 0.0) for at in (6, 3)]
    together = score_effects(prompt, index, targets, query_keys(model, TOKENS))
    apart = [score_effects(prompt, index, targets, query_keys(model, TOKENS, [layer])) for layer in range(3)]
    assert torch.allclose(together, sum(apart), atol=1e-12) and together.abs().max() > 1e-4
    alone = torch.cat([score_effects(prompt, index, [t], query_keys(model, TOKENS)) for t in targets])
    assert torch.allclose(together, alone, atol=1e-12)
