"""`view`: a graph that is there already, of a file or a run, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechstudy.api.comparison import graph_at
from mechstudy.api.graphs import PromptGraph
from mechstudy.cli import one_prompt
from mechstudy.core.errors import MechstudyError
from mechstudy.report.formatting import plain


def view(
    graph: Annotated[
        str,
        typer.Argument(
            metavar="GRAPH",
            help="A JSON file of mechstudy, circuit-tracer or Neuronpedia, or RUN:behaviour, such as "
            "runs/demo:subject_verb_agreement.",
        ),
    ],
    edits: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Pins, groups and labels that a graph's page saved."),
    ] = None,
    dictionaries: Annotated[
        str | None,
        typer.Option("--dictionaries", "-d", metavar="RUN", help="A run whose records describe the features."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page: a name that ends in .html.")] = None,
    open_page: one_prompt.Open = False,
) -> None:
    """Open a graph that is there already, also one of another tool, as a page of one file.

    The page is that of [cyan]mechstudy graph[/]: filters, search, pins, groups, labels and scores of what is pinned.

    [dim]mechstudy view keys.json --open[/]
    [dim]mechstudy view runs/demo:subject_verb_agreement --edits mine.edits.json --out mine.html[/]
    """
    path = one_prompt.page_path(out, "view", graph)
    found = graph_at(graph)
    if dictionaries is not None:
        run = one_prompt.run_of(dictionaries)
        if run is None or not isinstance(found, PromptGraph):
            what = f"{dictionaries} is no run" if run is None else "a behaviour's graph has its run's records already"
            raise MechstudyError(what, where="--dictionaries", fix="a run, and the graph of one prompt")
        found = found.described_by(run.feature_pages)
    if edits is not None:
        found = found.edited(edits)
    found.save(path)
    print(plain(repr(found)))
    one_prompt.show_page(path, open_page)
