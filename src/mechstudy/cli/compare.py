"""`compare`: two attribution graphs, and what differs between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from mechstudy import api
from mechstudy.api.comparison import graph_at
from mechstudy.cli import one_prompt
from mechstudy.cli.options import Json
from mechstudy.cli.show import console, print_json, table
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.report.formatting import NOT_AVAILABLE, number, plain

if TYPE_CHECKING:
    from mechstudy.api.comparison import Comparison
    from mechstudy.circuits.common_names import PositionNames

_GRAPH_HELP = "RUN:behaviour, such as runs/demo:subject_verb_agreement, or a file that a graph's `save` wrote."
_POSITIONS: tuple[PositionNames, ...] = ("auto", "named", "index", "end")
_PARTS = ("nodes", "features", "edges")


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=_GRAPH_HELP)],
    b: Annotated[str, typer.Argument(metavar="B", help="The second graph, of the same kind.")],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Nodes and edges in each table, at most.")] = 10,
    positions: Annotated[
        str,
        typer.Option(
            help="How tokens of two prompts are matched: named, index (from the first), end (from the last), or auto: "
            "names where both have the same, else the index where both have as many tokens."
        ),
    ] = "auto",
    tolerance: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Numbers that differ by at most this share of the larger one are the same."),
    ] = 0.0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Both graphs drawn as one: a name that ends in .html.")
    ] = None,
    open_page: one_prompt.Open = False,
    as_json: Json = False,
) -> None:
    """Compare two attribution graphs: what both have, what one has alone, and what differs most.

    Both are graphs of prompts, or both of behaviours. What only A has is lost, what only B has is gained.

    [dim]mechstudy compare keys.json key.json --out keys-key.html[/]
    [dim]mechstudy compare runs/demo:subject_verb_agreement runs/seed-1:subject_verb_agreement[/]
    """
    naming = next((one for one in _POSITIONS if one == positions), None)
    if naming is None:
        raise MechstudyError(
            f"there are no positions {positions!r}",
            facts={"positions": ", ".join(_POSITIONS)},
            fix=f"--positions {nearest(positions, _POSITIONS) or _POSITIONS[0]}",
        )
    path = None if out is None and not open_page else one_prompt.page_path(out, "compare", f"{a} {b}")
    made = api.compare(graph_at(a), graph_at(b), positions=naming, tolerance=tolerance)
    if path is not None:
        made.save(path)
    if as_json:
        print_json(made.as_json(top))
        return
    _show(made, top)
    if path is not None:
        one_prompt.show_page(path, open_page)


def _show(made: Comparison, top: int) -> None:
    about = made.summary()
    out = console()
    out.print(Text(f"a: {plain(made.a)}\nb: {plain(made.b)}"))
    counts = table("", *(f">{name}" for name in ("same", "changed", "gained", "lost", "Jaccard", "weighted")))
    for part in _PARTS:
        counts.add_row(part, *_counts(about[part]))
    out.print(counts)
    rank = about["rank_correlation"]
    shown = NOT_AVAILABLE if rank is None else number(rank)
    print(f"rank correlation of the influence of nodes that both have: {shown}")
    if made.is_same:
        print("nothing differs" + (f" by more than {made.tolerance:g} of itself" if made.tolerance else ""))
        return
    nodes = table("node", "change", ">influence a", ">b", ">direct a", ">b", "~fires on, promotes")
    for row in made.top(top).to_dicts():
        numbers = (_cell(row[f"{name}_{side}"]) for name in ("influence", "direct") for side in "ab")
        nodes.add_row(Text(plain(row["node"])), row["change"], *numbers, Text(plain(row["label"])))
    edges = table("source", "target", "change", ">weight a", ">b")
    for row in made.top(top, "edges").to_dicts():
        ends = (Text(plain(row[end])) for end in ("source", "target"))
        edges.add_row(*ends, row["change"], _cell(row["weight_a"]), _cell(row["weight_b"]))
    for rows in (nodes, edges):
        if rows.row_count:
            out.print(rows)


def _counts(part: Mapping[str, Any]) -> list[str]:
    counts = [f"{part[change]:,}" for change in ("same", "changed", "gained", "lost")]
    return [*counts, number(part["jaccard"]), number(part["jaccard_weighted"])]


def _cell(value: float | None) -> str:
    return "" if value is None else number(value, 3)
