"""Groups of a graph's features that do alike things with alike nodes, and the graph of the groups."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.hierarchy import cut_tree, fcluster, linkage
from scipy.spatial.distance import squareform

from mechstudy.circuits.graph_frames import GraphFrames
from mechstudy.core.errors import MechstudyError
from mechstudy.core.notices import counted

Array = NDArray[np.float64]

_CUTS = [step / 20 for step in range(1, 20)]  # distances
_LISTED = 3  # features that name a group
_GROUPS = {
    "node": pl.String, "group": pl.String, "group_label": pl.String, "feature": pl.String, "layer": pl.Int64,
    "position": pl.String, "similarity": pl.Float64, "label": pl.String,
}  # fmt: skip
_EDGES = {"source": pl.String, "target": pl.String, "weight": pl.Float64, "n": pl.Int64}


class Supernodes:
    """The groups of a graph's features, and the graph whose nodes are the groups and everything that is no feature.

    Columns of ``frame``, a row for each feature: node, group (``g1``, the group of the most features, first),
    group_label (labels of the features with the strongest edges, or their names), feature, layer, position, similarity
    (mean with the others of its group, in [-1, 1]; null for a group of one), label.

    Columns of ``nodes``: node (a group, or a node in none), kind (``group``, or the node's own), n (features in it),
    influence (their sum, null where none is recorded), label.

    Columns of ``edges``: source, target (groups, or nodes in no group), weight (the sum over the edges between them),
    n (their number). An edge from a group to itself stands for those within it, so that all weights add up to those of
    the graph.

    ``silhouette`` is the mean silhouette of the groups, in [-1, 1]: near 0 the features form no groups. None where
    there is one group.
    """

    frame: pl.DataFrame
    nodes: pl.DataFrame
    edges: pl.DataFrame

    def __init__(
        self, graph: GraphFrames, n_groups: int | None = None, decoders: Mapping[str, Array] | None = None
    ) -> None:
        if n_groups is not None and n_groups < 1:
            raise MechstudyError(f"{n_groups} groups", fix="n_groups of at least 1, or None to choose")
        features = graph.nodes.filter(kind="feature").sort("node")
        if len(features) == 0:
            raise MechstudyError("the graph has no features to group", fix="a graph with nodes of kind `feature`")
        names = features["node"].to_list()
        similarity = node_similarity(graph, names, decoders)
        numbers, self.silhouette = clusters(similarity, n_groups)
        self.frame = _frame(features, numbers, similarity, graph)
        self.nodes = grouped_nodes(graph, self.frame)
        self.edges = grouped_edges(graph, dict(self.frame.select("node", "group").iter_rows()))

    def __repr__(self) -> str:
        sizes = self.frame["group"].value_counts()["count"]
        several = int((sizes > 1).sum())
        quality = "" if self.silhouette is None else f"; silhouette {self.silhouette:.2f}"
        return (
            f"{counted(len(self.frame), 'feature')} in {counted(len(sizes), 'group')}, {several} of several features; "
            f"{counted(len(self.edges), 'edge')}{quality}"
        )


def node_similarity(graph: GraphFrames, names: Sequence[str], decoders: Mapping[str, Array] | None = None) -> Array:
    """How alike nodes are in what they are made of, what they act on and what they write, [n, n] in [-1, 1].

    The mean of the cosines of two nodes' incoming edges, of their outgoing edges and, where both have one, of their
    decoder directions. A profile without edges is left out of the mean; two nodes with nothing to compare have 0.

    Args:
        graph: of which ``names`` are nodes.
        names: n of its nodes.
        decoders: directions [d_model] by ``feature`` (``13/1741``).
    """
    index = {name: i for i, name in enumerate(names)}
    every = {name: i for i, name in enumerate(sorted({*graph.nodes["node"], *graph.edges["source"]}))}
    into, out = (np.zeros((len(names), len(every))) for _ in range(2))
    for source, target, weight in graph.edges.select("source", "target", "weight").iter_rows():
        if target in index and source in every:
            into[index[target], every[source]] += weight
        if source in index and target in every:
            out[index[source], every[target]] += weight
    parts = [into, out]
    if decoders:
        feature = dict(graph.nodes.select("node", "feature").iter_rows())
        width = len(next(iter(decoders.values())))
        zero = np.zeros(width)
        parts.append(np.stack([np.asarray(decoders.get(feature[name], zero), dtype=np.float64) for name in names]))
    total, count = (np.zeros((len(names), len(names))) for _ in range(2))
    for rows in parts:
        cosine, known = _cosines(rows)
        total += cosine
        count += known
    similarity: Array = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    np.fill_diagonal(similarity, 1.0)
    return similarity


def clusters(similarity: Array, n_groups: int | None = None) -> tuple[list[int], float | None]:
    """Groups by average linkage (UPGMA, Sokal & Michener 1958) on 1 - similarity.

    The dendrogram is cut at the distance, of .05, .1, ..., .95, at which the mean silhouette is largest, the smallest
    such distance; ``n_groups`` undoes merges from the last one until there are as many groups.

    Returns:
        The number of each node's group [n], 0 for the largest, groups of one size by their first member; and the
        mean silhouette, None where it is not defined.
    """
    n = len(similarity)
    if n == 1:
        return [0], None
    distance = np.clip(1 - (similarity + similarity.T) / 2, 0, None)
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average")
    if n_groups is not None:
        chosen = cut_tree(tree, n_clusters=min(n_groups, n))[:, 0]
    else:
        cuts = [fcluster(tree, cut, "distance") for cut in _CUTS]
        # Scores that differ by rounding alone count as equal, so that machines agree.
        chosen = max(cuts, key=lambda labels: round(silhouette(distance, labels) or -1.0, 9))
    members: dict[int, list[int]] = defaultdict(list)
    for i, label in enumerate(chosen):
        members[int(label)].append(i)
    ordered = sorted(members.values(), key=lambda group: (-len(group), group[0]))
    number = {i: k for k, group in enumerate(ordered) for i in group}
    return [number[i] for i in range(n)], silhouette(distance, chosen)


def silhouette(distance: Array, labels: ArrayLike) -> float | None:
    """The mean silhouette of a partition (Rousseeuw 1987), in [-1, 1]; None for a single group.

    ``(b - a) / max(a, b)``: a the mean distance [n, n] to the others of a point's group, b that to the nearest other
    group. A point alone in its group has 0.
    """
    _, own = np.unique(np.asarray(labels), return_inverse=True)
    n, k = len(distance), int(own.max()) + 1
    if k < 2:
        return None
    members = np.eye(k)[own]
    sums, sizes = distance @ members, members.sum(0)
    within = sums[np.arange(n), own] / np.maximum(sizes[own] - 1, 1)
    means = sums / sizes
    means[np.arange(n), own] = np.inf
    nearest = means.min(1)
    scores = (nearest - within) / np.maximum(np.maximum(nearest, within), np.finfo(np.float64).tiny)
    return float(np.where(sizes[own] == 1, 0.0, scores).mean())


def grouped_nodes(graph: GraphFrames, frame: pl.DataFrame) -> pl.DataFrame:
    """A row for each group, largest first, then for each node in none: node, kind, n, influence, label."""
    influence = pl.when(pl.col("influence").is_not_null().any()).then(pl.col("influence").sum()).alias("influence")
    groups = (
        frame.join(graph.nodes.select("node", "influence"), on="node", how="left", maintain_order="left")
        .group_by("group", maintain_order=True)
        .agg(pl.len().cast(pl.Int64).alias("n"), influence, pl.col("group_label").first().alias("label"))
        .select(pl.col("group").alias("node"), pl.lit("group").alias("kind"), "n", "influence", "label")
    )
    others = graph.nodes.filter(pl.col("kind") != "feature").sort("node")
    none = pl.lit(0, pl.Int64).alias("n")
    return pl.concat([groups, others.select("node", "kind", none, "influence", "label")])


def grouped_edges(graph: GraphFrames, groups: Mapping[str, str]) -> pl.DataFrame:
    """The graph's edges between groups: source, target, weight (exactly rounded sums), n."""
    held: dict[tuple[str, str], list[float]] = defaultdict(list)
    for source, target, weight in graph.edges.select("source", "target", "weight").iter_rows():
        held[groups.get(source, source), groups.get(target, target)].append(weight)
    rows = [(*ends, math.fsum(weights), len(weights)) for ends, weights in held.items()]
    return pl.DataFrame(sorted(rows, key=lambda row: (-abs(row[2]), row[0], row[1])), schema=_EDGES, orient="row")


def _cosines(rows: Array) -> tuple[Array, Array]:
    """Cosines of rows, and where both are not zero."""
    norm = np.linalg.norm(rows, axis=1)
    unit = rows / np.where(norm > 0, norm, 1.0)[:, None]
    known = (norm > 0).astype(np.float64)
    return unit @ unit.T, np.outer(known, known)


def _frame(features: pl.DataFrame, numbers: Sequence[int], similarity: Array, graph: GraphFrames) -> pl.DataFrame:
    strength = _strengths(graph)
    rows = features.to_dicts()
    members: dict[int, list[int]] = defaultdict(list)
    for i, number in enumerate(numbers):
        members[number].append(i)
    result: list[tuple[Any, ...]] = []
    for number in sorted(members):
        group = sorted(members[number], key=lambda i: (-strength.get(rows[i]["node"], 0.0), rows[i]["node"]))
        labels = [rows[i]["label"] or rows[i]["node"] for i in group]
        label = "; ".join(list(dict.fromkeys(labels))[:_LISTED])
        for i in group:
            others = [j for j in group if j != i]
            alike = float(similarity[i, others].mean()) if others else None
            row = rows[i]
            place = None if row["position"] is None else str(row["position"])
            result.append(
                (row["node"], f"g{number + 1}", label, row["feature"], row["layer"], place, alike, row["label"])
            )
    return pl.DataFrame(result, schema=_GROUPS, orient="row")


def _strengths(graph: GraphFrames) -> dict[str, float]:
    """The sum of the sizes of each node's edges."""
    total: dict[str, float] = defaultdict(float)
    for source, target, weight in graph.edges.select("source", "target", "weight").iter_rows():
        total[source] += abs(weight)
        total[target] += abs(weight)
    return total
