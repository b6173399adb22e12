"""What the graph page reads of two graphs that are drawn as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mechstudy.circuits.graph_comparison import CHANGES, GraphComparison
from mechstudy.circuits.node_names import ANSWER, OTHER
from mechstudy.report.formatting import significant, visible
from mechstudy.report.viewer import Densities, Labels, aggregate_view

COMPARED = "comparison"  # the name of such a graph on its page
_TYPES = {"output": "logit"}


def comparison_view(
    compared: GraphComparison, columns: Sequence[tuple[str, str]], labels: Labels, densities: Densities
) -> dict[str, Any]:
    """The viewer's data of two graphs as one: every node and edge of either, with what changed.

    A node is as large as its larger influence. An edge that both have is drawn with the mean of its weights, and both
    numbers stand beside it.

    Args:
        compared: the comparison.
        columns: positions by name, from left to right, and the text of their tokens.
        labels: (layer, feature) -> automatic label.
        densities: (layer, feature) -> the share of text on which it fires.
    """
    nodes = [_node(row) for row in compared.nodes.to_dicts()]
    used = {node["position"] for node in nodes} - {None}
    known = [name for name, _ in columns]
    positions = [*(name for name in known if name in used), *sorted(used - set(known) - {ANSWER, OTHER})]
    positions += [name for name in (OTHER, ANSWER) if name in used and name not in positions]
    edges = [
        {"source": source, "target": target, "weight": _mean(a, b), "strength": max(abs(a or 0.0), abs(b or 0.0))}
        for source, target, a, b in compared.edges.select("source", "target", "weight_a", "weight_b").iter_rows()
    ]
    view = aggregate_view({"positions": positions, "nodes": nodes, "edges": edges}, labels, densities=densities)
    texts = dict(columns)
    for column in view["columns"]:
        column["name"], column["label"] = column["label"], texts.get(column["label"]) or column["label"]
        if column["name"] == column["label"] or column["label"] == "constants":
            column["name"] = ""
    _add_changes(view, compared)
    about = compared.summary()
    counts = {f"{what} {name}": about[what][name] for what in ("nodes", "edges") for name in CHANGES}
    agreement = {f"{what}, Jaccard index": about[what]["jaccard"] for what in ("nodes", "features", "edges")}
    rank = {} if about["rank_correlation"] is None else {"rank correlation of influence": about["rank_correlation"]}
    return view | {
        "slug": COMPARED,
        "compared": {"a": compared.a, "b": compared.b, "changes": list(CHANGES)},
        "scores": counts | agreement | rank,
        "target": None,
        "n_prompts": None,
    }


def _node(row: Mapping[str, Any]) -> dict[str, Any]:
    influences = [x for x in (row["influence_a"], row["influence_b"]) if x is not None]
    return {
        "id": row["node"],
        "type": _TYPES.get(row["kind"], row["kind"]),
        "layer": row["layer"],
        "feature": None if row["feature"] is None else int(row["feature"].partition("/")[2]),
        "position": row["position"],
        "influence": max(influences, key=abs, default=None),
        "label": row["label"],
    }


def _mean(a: float | None, b: float | None) -> float:
    """Of what both have; else what one has."""
    held = [x for x in (a, b) if x is not None]
    return sum(held) / len(held) or max(held, key=abs)  # opposite weights do not vanish from the drawing


def _add_changes(view: dict[str, Any], compared: GraphComparison) -> None:
    """What changed of each drawn node and edge, and its number in both graphs."""
    nodes = {row["node"]: row for row in compared.nodes.to_dicts()}
    drawn = [nodes[name] for name in view["nodes"]["id"]]
    view["nodes"]["change"] = [CHANGES.index(row["change"]) for row in drawn]
    edges = compared.edges.select("source", "target", "change", "weight_a", "weight_b")
    by_ends = {(row[0], row[1]): row[2:] for row in edges.iter_rows()}
    names = view["nodes"]["id"]
    ends = zip(view["edges"]["source"], view["edges"]["target"], strict=True)
    of_edges = [by_ends[names[source], names[target]] for source, target in ends]
    view["edges"]["change"] = [CHANGES.index(change) for change, _, _ in of_edges]
    for side, number in (("a", 1), ("b", 2)):
        view["edges"][side] = significant([row[number] for row in of_edges], 3)
        for name in ("influence", "direct", "activation"):
            view["nodes"][f"{name}_{side}"] = significant([row[f"{name}_{side}"] for row in drawn], 4)


def behaviour_columns(a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
    """Named positions of two graphs: those of the first, and each that only the second has before what follows it."""
    names = list(a)
    for i, name in enumerate(b):
        if name not in names:
            following = next((names.index(later) for later in b[i + 1 :] if later in a), len(names))
            names.insert(following, name)
    return [(name, "") for name in names]


def prompt_columns(a: Sequence[tuple[str, str]], b: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Positions of two prompts, each with its token, or with both tokens where they differ.

    Args:
        a: position names and tokens of the first prompt, in order.
        b: those of the second.
    """
    texts: dict[str, list[str]] = {}
    for name, token in (*a, *b):
        shown = visible(token)
        if shown not in texts.setdefault(name, []):
            texts[name].append(shown)
    order = behaviour_columns([name for name, _ in a], [name for name, _ in b])
    return [(name, " | ".join(texts[name])) for name, _ in order]
