"""Names under which the nodes of two graphs are the same, and graphs with their nodes so named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mechstudy.circuits.drawn_influence import drawn_influence
from mechstudy.circuits.graph_frames import BehaviourFrames, GraphFrames, PromptFrames
from mechstudy.circuits.node_names import ANSWER, OTHER, aligned_names, node_id
from mechstudy.core.errors import MechstudyError, nearest

PositionNames = Literal["auto", "named", "index", "end"]
POSITIONS: tuple[PositionNames, ...] = ("auto", "named", "index", "end")
_NEURONS = "neurons"
_UNKNOWN = "dictionary"  # one of which no checksum is known


@dataclass(frozen=True)
class NamedGraph:
    """Nodes by name, with kind, feature, layer, position, influence, activation, direct and label; weights of edges."""

    nodes: Mapping[str, Mapping[str, Any]]
    edges: Mapping[tuple[str, str], float]


def named_alike(a: GraphFrames, b: GraphFrames, positions: PositionNames) -> tuple[NamedGraph, NamedGraph, str, str]:
    """Both graphs under common names, how positions are named, and where influence comes from.

    Returns:
        The graphs; ``named``, ``index`` or ``end``; and ``recorded`` or ``drawn`` (`drawn_influence`).

    Raises:
        MechstudyError: the graphs are of two kinds, of other bases or models, or name no position alike.
    """
    if positions not in POSITIONS:
        guess = nearest(str(positions), POSITIONS) or POSITIONS[0]
        raise MechstudyError(
            f"there are no positions {positions!r}", facts={"positions": ", ".join(POSITIONS)}, fix=f"{guess!r}"
        )
    _check_alike(a, b)
    if isinstance(a, BehaviourFrames) and isinstance(b, BehaviourFrames):
        if positions not in ("auto", "named"):
            raise MechstudyError(f"positions of behaviours have names, and no {positions!r}", fix='positions="named"')
        _check_positions(_names_of(a), _names_of(b))
        return _of_behaviour(a), _of_behaviour(b), "named", "recorded"
    assert isinstance(a, PromptFrames) and isinstance(b, PromptFrames)  # _check_alike
    naming = _naming(a, b, positions)
    recorded = all(_records_influence(graph) for graph in (a, b))
    one_output = len(a.answer_weights) == len(b.answer_weights) == 1
    graphs = [_of_prompt(graph, position_names_of(graph, naming), recorded, one_output) for graph in (a, b)]
    return graphs[0], graphs[1], naming, "recorded" if recorded else "drawn"


# --------------------------------------------------------------------------------------------- what is refused


def _check_alike(a: object, b: object) -> None:
    for graph in (a, b):
        if not isinstance(graph, BehaviourFrames | PromptFrames):
            raise MechstudyError(
                f"a graph is a {type(graph).__name__}",
                fix='graphs of ms.attribute, ms.load_graph("keys.json") or run.graphs["subject_verb_agreement"]',
            )
    assert isinstance(a, GraphFrames) and isinstance(b, GraphFrames)
    if isinstance(a, BehaviourFrames) != isinstance(b, BehaviourFrames):
        raise MechstudyError(
            "one graph is a behaviour's and the other a prompt's",
            fix='two of a kind: run.graphs["subject_verb_agreement"].prompts[0] is a prompt\'s',
        )
    _check_explained(a, b)
    depths = [_depth(graph) for graph in (a, b)]
    if None not in depths and depths[0] != depths[1]:
        raise MechstudyError(
            f"the graphs are of models with {depths[0]} and {depths[1]} layers: the same layer and number name other "
            "features",
            fix="graphs of one model, or of two with the same layers and dictionaries",
        )
    _check_bases(a, b)


def _check_explained(a: GraphFrames, b: GraphFrames) -> None:
    kinds = [str(getattr(graph, "explains", "clean")) for graph in (a, b)]
    if kinds[0] != kinds[1]:
        raise MechstudyError(
            f"one graph explains {kinds[0]} and the other {kinds[1]}: their weights are of other quantities",
            fix="graphs with the same `explains`",
        )


def _check_bases(a: GraphFrames, b: GraphFrames) -> None:
    for layer in sorted(a.bases.keys() & b.bases.keys()):
        own, other = a.bases[layer], b.bases[layer]
        if (own == _NEURONS) != (other == _NEURONS):
            kinds = ["neurons" if base == _NEURONS else "features of a dictionary" for base in (own, other)]
            raise MechstudyError(
                f"the nodes of layer {layer} are {kinds[0]} in one graph and {kinds[1]} in the other",
                fix="graphs with the same `basis` and dictionaries",
            )
        if own != other and _UNKNOWN not in (own, other):
            raise MechstudyError(
                f"the graphs have two dictionaries of layer {layer}, in which the same number names other features",
                facts={"checksums": f"{own[:12]} and {other[:12]}"},
                fix="runs that share their dictionaries: dictionaries.from in the second study",
            )


def _depth(graph: GraphFrames) -> int | None:
    """Layers of the model, as far as a graph knows them."""
    if isinstance(graph, BehaviourFrames):
        return graph.n_layers
    assert isinstance(graph, PromptFrames)
    outputs = [int(name.split("_")[0]) for name in graph.answer_weights if name.split("_")[0].isdigit()]
    return max(outputs) - 1 if outputs else None


def _names_of(graph: BehaviourFrames) -> set[str]:
    return set(graph.nodes.filter(kind="feature")["position"].drop_nulls()) - {OTHER, ANSWER}


def _check_positions(a: set[str], b: set[str]) -> None:
    if a and b and not a & b:
        facts = {"first": ", ".join(sorted(a)[:8]), "second": ", ".join(sorted(b)[:8])}
        raise MechstudyError(
            "the graphs have no position name in common", facts=facts, fix="behaviours that name the same positions"
        )


# ------------------------------------------------------------------------------------------- positions of prompts


def _naming(a: PromptFrames, b: PromptFrames, positions: PositionNames) -> str:
    if positions == "named":
        if not a.positions.keys() & b.positions.keys():
            facts = {name: ", ".join(g.positions) or "none" for name, g in (("first", a), ("second", b))}
            raise MechstudyError("the prompts have no position name in common", facts=facts, fix='positions="end"')
        return positions
    if positions != "auto":
        return positions
    if a.positions and a.positions.keys() == b.positions.keys():
        return "named"
    if len(a.tokens) == len(b.tokens):
        return "index"
    raise MechstudyError(
        f"the prompts have {len(a.tokens)} and {len(b.tokens)} tokens, and do not name the same positions",
        facts={name: ", ".join(g.positions) or "no named positions" for name, g in (("first", a), ("second", b))},
        fix='positions="end" counts tokens from the end, "index" from the start; or graphs of prompt pairs with '
        "the same `positions`",
    )


def position_names_of(graph: PromptFrames, naming: str) -> list[str]:
    """The name of each token, as comparisons know it (``named``, ``index`` or ``end``)."""
    n = len(graph.tokens)
    if naming == "named":
        return aligned_names(graph.positions, n)
    return [str(i - n if naming == "end" else i) for i in range(n)]


# ------------------------------------------------------------------------------------------------ graphs by name


def _records_influence(graph: PromptFrames) -> bool:
    features = graph.nodes.filter(kind="feature")
    return features["influence"].null_count() == 0 and len(features) > 0


def _of_behaviour(graph: BehaviourFrames) -> NamedGraph:
    outputs = dict.fromkeys(graph.nodes.filter(kind="output")["node"], 1.0)
    rows = graph.nodes.to_dicts()
    influences = {row["node"]: row["influence"] if row["kind"] != "output" else None for row in rows}
    return _named(graph, {row["node"]: row["node"] for row in rows}, lambda p: p, influences, outputs)


def _of_prompt(graph: PromptFrames, names: list[str], recorded: bool, one_output: bool) -> NamedGraph:
    rows = graph.nodes.to_dicts()
    influences = {row["node"]: row["influence"] for row in rows} if recorded else drawn_influence(graph)
    outputs = graph.answer_weights

    def place(position: int | None) -> str | None:
        return None if position is None else names[position] if position < len(names) else str(position)

    def name(row: Mapping[str, Any]) -> str:
        if row["kind"] == "output":
            return node_id("logit") if one_output else f"logit.{row['node'].split('_')[1]}@{place(row['position'])}"
        number = int(row["feature"].split("/")[1]) if row["feature"] else None
        return node_id(row["kind"], row["layer"], number, place(row["position"]))

    influences |= dict.fromkeys(outputs, None)
    return _named(graph, {row["node"]: name(row) for row in rows}, place, influences, outputs)


def _named(
    graph: GraphFrames,
    names: Mapping[str, str],
    place: Callable[[Any], str | None],
    influences: Mapping[str, float | None],
    outputs: Mapping[str, float],
) -> NamedGraph:
    """The graph under these names; what several nodes of one name have is added up, but for their activations."""
    edges: dict[tuple[str, str], float] = defaultdict(float)
    direct: dict[str, float] = defaultdict(float)
    for source, target, weight in sorted(graph.edges.select("source", "target", "weight").iter_rows()):
        edges[names.get(source, source), names.get(target, target)] += weight
        direct[source] += outputs.get(target, 0.0) * weight
    nodes: dict[str, dict[str, Any]] = {}
    for row in sorted(graph.nodes.to_dicts(), key=lambda row: str(row["node"])):
        own = row["node"]
        found = {
            "kind": row["kind"],
            "feature": row["feature"],
            "layer": row["layer"],
            "position": place(row["position"]) if row["kind"] != "bias" else None,
            "influence": influences[own],
            "activation": row["activation"],
            "direct": None if own in outputs else direct[own],
            "label": row["label"] if own not in outputs else None,
        }
        held = nodes.get(names[own])
        nodes[names[own]] = found if held is None else _added(held, found)
    return NamedGraph(nodes, dict(edges))


def _added(held: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    activations = [one["activation"] for one in (held, found) if one["activation"] is not None]
    sums = {
        name: None if held[name] is None and found[name] is None else (held[name] or 0.0) + (found[name] or 0.0)
        for name in ("influence", "direct")
    }
    return {**held, **sums, "activation": max(activations, default=None)}
