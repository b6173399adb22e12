"""Scores of some nodes of a drawn graph: by hand, and against the matrix formula."""

import numpy as np
import pytest

from mechstudy.circuits.drawn_influence import drawn_scores
from mechstudy.circuits.graph_frames import PromptFrames

KINDS = {"f": "cross layer transcoder", "t": "embedding", "e": "mlp reconstruction error", "b": "bias", "o": "logit"}


def frames(edges):
    names = sorted({name for pair in edges for name in pair})
    nodes = [
        {"node_id": name, "feature_type": KINDS[name[0]], "layer": "1", "ctx_idx": 0, "token_prob": 1.0}
        for name in names
    ]
    links = [{"source": s, "target": t, "weight": w} for (s, t), w in edges.items()]
    return PromptFrames({"metadata": {"prompt_tokens": ["a"]}, "nodes": nodes, "links": links})


HAND = {
    ("f_1_0", "o"): 3.0, ("t_0", "o"): -1.0,
    ("t_0", "f_1_0"): 2.0, ("e_0", "f_1_0"): -1.0, ("f_0_0", "f_1_0"): 1.0,
    ("t_0", "f_0_0"): 5.0, ("b_0", "f_0_0"): 100.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kept", "tokens", "errors", "total"),
    [
        # the output's 3/4 is not kept: error
        ((), 1 / 4, 3 / 4, 1),
        # of f_1_0's 3/4: half from the token, a quarter error, a quarter from what is not kept
        (("f_1_0",), 1 / 4 + 3 / 8, 3 / 8, 1 + 3 / 4),
        # f_0_0 has it all from the token; its bias does not count
        (("f_0_0", "f_1_0"), 1 / 4 + 3 / 8 + 3 / 16, 3 / 16, 1 + 3 / 4 + 3 / 16),
        # errors are never kept, and a feature without a kept way to the output adds nothing
        (("e_0", "f_0_0"), 1 / 4, 3 / 4, 1),
    ],
)
def test_scores_by_hand(kept, tokens, errors, total):
    found = drawn_scores(frames(HAND), kept)
    assert found == pytest.approx({"replacement": tokens / (tokens + errors), "completeness": 1 - errors / total})


def test_scores_are_those_of_the_matrix():
    """Rows normalised, the series of kept features summed: another way to the same numbers."""
    rng = np.random.default_rng(0)
    features, tokens, errors = [f"f_{i}" for i in range(12)], ["t_0", "t_1"], ["e_0", "e_1"]
    edges = {}
    for number, target in enumerate([*features, "o"]):
        for source in [*features[:number], *tokens, *errors]:
            if rng.random() < 0.6:
                edges[source, target] = float(rng.normal())
    kept = set(rng.choice(features, 7, replace=False).tolist())
    graph = frames(edges)
    names = [*features, *tokens, *errors, "o"]
    A = np.zeros((len(names), len(names)))
    for (s, t), w in edges.items():
        A[names.index(t), names.index(s)] = abs(w)
    A /= np.maximum(A.sum(1, keepdims=True), 1e-30)
    through = np.array([name in kept for name in names])
    weight = (np.array(names) == "o").astype(float)
    rows = weight @ np.linalg.inv(np.eye(len(names)) - A * through[None, :])  # influence of rows that are kept
    rows = rows * (through | (weight > 0))
    arrived = rows @ A
    from_tokens = arrived[[names.index(t) for t in tokens]].sum()
    lost = arrived[[i for i, n in enumerate(names) if not through[i] and n[0] != "t"]].sum()
    found = drawn_scores(graph, kept)
    assert found["replacement"] == pytest.approx(from_tokens / (from_tokens + lost))
    assert found["completeness"] == pytest.approx(1 - lost / rows.sum())
