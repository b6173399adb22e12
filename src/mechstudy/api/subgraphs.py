"""Nodes of a prompt's graph by name, replaced in the running model or kept alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from mechstudy.api.graphs import PromptGraph
from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.bases import chosen_bases
from mechstudy.circuits.config import BasisKind
from mechstudy.circuits.donors import Replacement
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.fitted import all_fitted
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.subgraph import SubgraphEffects
from mechstudy.interventions.subgraph import subgraph_effects as effects_of
from mechstudy.models.language_model import LanguageModel


def subgraph_effects(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis] | None,
    graph: PromptGraph,
    pair: PromptPair,
    nodes: Sequence[str] | pl.DataFrame | None = None,
    *,
    basis: BasisKind | None = None,
    replace_by: Replacement | None = None,
) -> SubgraphEffects:
    """What the answers' contrast of a prompt becomes without some nodes of its graph, and with these alone.

        pair = ms.prompt_pair(
            model, "The keys to the cabinet", "The key to the cabinet", answer=" are", wrong_answer=" is"
        )
        graph = ms.attribute(model, dicts, pair)
        ms.subgraph_effects(model, dicts, graph, pair, graph.top(10))

    Everything runs live: what follows responds, and attention too.

    Args:
        model: the model.
        dictionaries: those of the graph; None where its nodes are neurons.
        graph: of the pair's clean prompt.
        pair: the prompt pair.
        nodes: names of ``graph.nodes`` (``26_172_9``), its rows, or those of ``graph.top``, also of features that
            pruning cut; by default what is pinned (``graph.edits``). Features and errors count; tokens, biases and
            outputs do not.
        basis: that of the graph; by default dictionaries where there are some, else neurons.
        replace_by: ``corrupted`` or ``zero``; by default the corrupted prompt's values where there is one.

    Raises:
        MechstudyError: a node that the graph does not have, no features and no errors, another prompt's graph, or
            ``corrupted`` without a corrupted prompt.
    """
    if graph.tokens != model.token_strings(pair.clean_tokens):
        raise MechstudyError(
            "the graph is of another prompt",
            facts={"graph": repr(graph.prompt), "pair": repr(pair.clean)},
            fix="the pair that the graph explains",
        )
    if nodes is None:
        nodes = [str(node) for node in graph.edits.get("pinnedIds") or ()]
    placed = _placed(graph, nodes)
    bases = chosen_bases(model, all_fitted(model, dictionaries or {}), basis)
    return effects_of(model, bases, pair, placed, replace_by=replace_by)


def _placed(graph: PromptGraph, nodes: Sequence[str] | pl.DataFrame) -> list[tuple[int, int | None, int]]:
    """Layer, feature (None: the layer's error) and token of each feature and error among the nodes."""
    if isinstance(nodes, pl.DataFrame):
        if "node" not in nodes.columns:  # rows of `top`, also of features that are not drawn
            ranked = nodes.select("feature", "position").iter_rows()
            return [(int(name.partition("/")[0]), _number(name), int(at)) for name, at in ranked]
        nodes = nodes["node"].to_list()
    rows = {row["node"]: row for row in graph.nodes.to_dicts()}
    if unknown := [name for name in nodes if name not in rows]:
        example = graph.nodes.filter(kind="feature")["node"].to_list()[:1]
        raise MechstudyError(
            f"the graph has no node {unknown[0]}", fix=" ".join(["names of graph.nodes, such as", *example])
        )
    chosen = [rows[name] for name in nodes if rows[name]["kind"] in ("feature", "error")]
    return [(row["layer"], _number(row["feature"]), row["position"]) for row in chosen]


def _number(feature: str | None) -> int | None:
    """1741 of ``13/1741``; None of an error."""
    return None if feature is None else int(feature.partition("/")[2])
