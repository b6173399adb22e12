"""Two attribution graphs as one: what both have, what one has alone, and by how much numbers differ."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from mechstudy.circuits.common_names import NamedGraph, PositionNames, named_alike
from mechstudy.circuits.graph_frames import BehaviourFrames, GraphFrames, PromptFrames
from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import save_json
from mechstudy.core.notices import counted
from mechstudy.statistics import spearman

_NUMBERS = ("influence", "activation", "direct")  # of a node
_FACTS = {
    "kind": pl.String, "feature": pl.String, "layer": pl.Int64, "position": pl.String, "label": pl.String,
}  # fmt: skip
_NODES = {
    "node": pl.String, "change": pl.String, **{f"{name}_{side}": pl.Float64 for name in _NUMBERS for side in "ab"},
    **_FACTS,
}  # fmt: skip
_EDGES = {
    "source": pl.String, "target": pl.String, "change": pl.String, "weight_a": pl.Float64, "weight_b": pl.Float64,
}  # fmt: skip
CHANGES = ("same", "changed", "gained", "lost")

Change = Literal["same", "changed", "gained", "lost"]


class GraphComparison:
    """Two graphs, a and b, node by node and edge by edge.

    ``change`` is ``same``, ``changed`` (both have it, and a number differs by more than the tolerance), ``gained``
    (b has it alone) or ``lost`` (a has it alone); rows stand by the size of their difference.

    Columns of ``nodes``: node (a name that both graphs share: ``f.13.1741@subject``, ``error.13@4``, ``token@last``,
    ``bias.13``, ``logit``), change, influence_a, influence_b, activation_a, activation_b, direct_a, direct_b (the sum
    of a node's edges to the answer, in the unit of what the graph explains: logits), kind, feature, layer, position,
    label. Columns of ``edges``: source, target, change, weight_a, weight_b. What a graph does not have is null.

    ``positions`` says how positions were matched (``named``, ``index`` or ``end``), ``influence`` where influences come
    from: ``recorded`` in both graphs, or ``drawn``, computed from the edges of both.
    """

    nodes: pl.DataFrame
    edges: pl.DataFrame

    def __init__(
        self, a: GraphFrames, b: GraphFrames, positions: PositionNames = "auto", tolerance: float = 0.0
    ) -> None:
        if not 0 <= tolerance < 1:
            raise MechstudyError(f"the tolerance is {tolerance}", fix="a share of the larger number: 0 <= share < 1")
        first, second, self.positions, self.influence = named_alike(a, b, positions)
        self.graphs = (a, b)
        self.a, self.b, self.tolerance = _title(a), _title(b), tolerance
        self.nodes, self.edges = _nodes(first, second, tolerance), _edges(first, second, tolerance)

    def __repr__(self) -> str:
        about = self.summary()
        lines = [f"a: {self.a}", f"b: {self.b}"]
        for what in ("nodes", "edges"):
            part = about[what]
            counts = ", ".join(f"{part[change]:,} {change}" for change in CHANGES)
            lines.append(f"{what}: {counts}; Jaccard {part['jaccard']:.2f}, weighted {part['jaccard_weighted']:.2f}")
        rank = about["rank_correlation"]
        lines.append(f"rank correlation of shared nodes' influence: {'n/a' if rank is None else f'{rank:.2f}'}")
        return "\n".join(lines)

    @property
    def is_same(self) -> bool:
        """Whether no node and no edge differs."""
        return all((frame["change"] == "same").all() for frame in (self.nodes, self.edges))

    def summary(self) -> dict[str, Any]:
        """Counts and measures of agreement.

        Of ``nodes``, ``features`` (the nodes that are features) and ``edges``: same, changed, gained and lost as
        counts; ``jaccard``, the share of all of them that both graphs have; ``jaccard_weighted``, sum of min(x_a, x_b)
        / sum of max(x_a, x_b) over all of them, x the influence of a node (null counts 0) or the weight of an edge,
        positive and negative parts apart (Ruzicka's similarity): 1 for equal graphs, 0 for graphs that share nothing.
        ``rank_correlation``: Spearman's, of the influence of nodes that both graphs have; None for fewer than three.
        """
        features = self.nodes.filter(kind="feature")
        shared = self.nodes.filter(pl.col("influence_a").is_not_null() & pl.col("influence_b").is_not_null())
        return {
            "a": self.a,
            "b": self.b,
            "positions": self.positions,
            "influence": self.influence,
            "tolerance": self.tolerance,
            "nodes": _agreement(self.nodes, "influence"),
            "features": _agreement(features, "influence"),
            "edges": _agreement(self.edges, "weight"),
            "rank_correlation": spearman(shared["influence_a"].to_numpy(), shared["influence_b"].to_numpy()),
        }

    def top(self, n: int = 10, what: Literal["nodes", "edges"] = "nodes", change: Change | None = None) -> pl.DataFrame:
        """The ``n`` nodes or edges that differ most, with the columns of ``nodes`` or ``edges``.

        Args:
            n: number of rows.
            what: ``nodes``, by the size of influence_b - influence_a (null counts 0) and then by that of direct; or
                ``edges``, by weight_b - weight_a.
            change: only ``gained``, ``lost``, ``changed`` or ``same`` ones. The default is all that differ.
        """
        frame = self.edges if what == "edges" else self.nodes
        return frame.filter(pl.col("change") != "same" if change is None else pl.col("change") == change).head(n)

    def as_json(self, n: int | None = None) -> dict[str, Any]:
        """The summary and the rows of both frames; with ``n``, those of the ``n`` nodes and edges that differ most."""
        frames = {"nodes": self.nodes, "edges": self.edges}
        if n is not None:
            frames = {"nodes": self.top(n), "edges": self.top(n, "edges")}
        return {"summary": self.summary()} | {name: frame.to_dicts() for name, frame in frames.items()}

    def save(self, path: str | Path) -> Path:
        """Write the summary and all rows as ``.json``.

        Returns:
            The path.
        """
        return save_json(path, self.as_json(), "comparisons")


def _title(graph: GraphFrames) -> str:
    if isinstance(graph, BehaviourFrames):
        return f"{graph.behaviour} over {counted(graph.n_prompts, 'prompt')}"
    assert isinstance(graph, PromptFrames)
    return repr(graph.prompt)


def _nodes(a: NamedGraph, b: NamedGraph, tolerance: float) -> pl.DataFrame:
    rows = []
    for node in a.nodes.keys() | b.nodes.keys():
        own, other = a.nodes.get(node), b.nodes.get(node)
        pairs = [((own or {}).get(name), (other or {}).get(name)) for name in _NUMBERS]
        change = _change(own is not None, other is not None, pairs, tolerance)
        facts = {**(other or {}), **(own or {})}
        facts["label"] = (own or {}).get("label") or (other or {}).get("label")
        key = (-abs(_difference(*pairs[0])), -abs(_difference(*pairs[2])), node)
        rows.append((key, (node, change, *(x for pair in pairs for x in pair), *(facts[name] for name in _FACTS))))
    return pl.DataFrame([row for _, row in sorted(rows, key=lambda r: r[0])], schema=_NODES, orient="row")


def _edges(a: NamedGraph, b: NamedGraph, tolerance: float) -> pl.DataFrame:
    rows = []
    for edge in a.edges.keys() | b.edges.keys():
        pair = (a.edges.get(edge), b.edges.get(edge))
        change = _change(edge in a.edges, edge in b.edges, [pair], tolerance)
        rows.append(((-abs(_difference(*pair)), *edge), (*edge, change, *pair)))
    return pl.DataFrame([row for _, row in sorted(rows, key=lambda r: r[0])], schema=_EDGES, orient="row")


def _change(in_a: bool, in_b: bool, pairs: Iterable[tuple[float | None, float | None]], tolerance: float) -> Change:
    if not (in_a and in_b):
        return "lost" if in_a else "gained"
    return "same" if all(_equal(x, y, tolerance) for x, y in pairs) else "changed"


def _equal(x: float | None, y: float | None, tolerance: float) -> bool:
    if x is None or y is None:
        return x is y
    return x == y or abs(x - y) <= tolerance * max(abs(x), abs(y))


def _difference(x: float | None, y: float | None) -> float:
    return (y or 0.0) - (x or 0.0)


def _agreement(frame: pl.DataFrame, number: str) -> dict[str, Any]:
    counts = {change: int((frame["change"] == change).sum()) for change in CHANGES}
    both = counts["same"] + counts["changed"]
    x, y = (frame[f"{number}_{side}"].fill_null(0.0).to_numpy() for side in "ab")
    parts = [(x.clip(0), y.clip(0)), ((-x).clip(0), (-y).clip(0))]
    least = sum(float(np.minimum(u, v).sum()) for u, v in parts)
    most = sum(float(np.maximum(u, v).sum()) for u, v in parts)
    return counts | {
        "jaccard": both / len(frame) if len(frame) else 1.0,
        "jaccard_weighted": least / most if most > 0 else 1.0,
    }
