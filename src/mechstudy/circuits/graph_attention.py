"""What attention does in a prompt's graph: edges through heads and patterns, and what scores are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.graph import Graph, Pruned
from mechstudy.circuits.head_flow import HeadFlow, head_flow
from mechstudy.circuits.head_pairs import HeadPairs, head_pairs
from mechstudy.circuits.score_edges import ScoreEdge, strongest_score_edges
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.query_key import NotAffine, query_keys


@dataclass(frozen=True)
class Attention:
    """The heads that the graph's edges run through, its edges through patterns, and pairs of its strongest heads."""

    flow: HeadFlow | None = None
    score_edges: Sequence[ScoreEdge] = ()
    pairs: Sequence[HeadPairs] = ()


def attention_of(model: LanguageModel, graph: Graph, pruned: Pruned, config: AttributionConfig) -> Attention:
    """What attention does in a graph.

    Nothing of it is there in the graph of a difference, whose patterns are live: an edge is no sum over heads, and has
    the paths through patterns in it. Scores are not split of an attention whose queries and keys are not affine (OLMo's
    clipped ones), or where no edges through patterns are wanted.
    """
    if graph.difference is not None:
        return Attention()
    assert graph.prompt is not None
    flow = head_flow(graph, pruned)
    if not config.qk_edges:
        return Attention(flow)
    try:
        scores = query_keys(model, graph.prompt.tokens_T)
    except NotAffine:
        return Attention(flow)
    edges = strongest_score_edges(graph, pruned, scores, config.qk_edges)
    return Attention(flow, edges, head_pairs(graph.prompt, graph.index, flow, scores))
