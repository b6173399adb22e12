"""Files of pins, groups and labels that a reader saved on a graph's page, and the graphs of a run that they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from mechstudy.api.graphs import BehaviourGraph, PromptGraph
from mechstudy.api.runs import Run
from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.report.viewer import AGGREGATE


def edits_of(run: Run, edits: str | Path) -> tuple[str, dict[str, Any]]:
    """The graph that a file of edits is of, by name as in `Run.edits`, and its pins, groups and labels.

    Raises:
        MechstudyError: the file holds no edits, or they are of no graph of the run.
    """
    content = read_json(Path(edits).expanduser())
    held = content if isinstance(content, dict) else {}
    slug, behaviour = str(held.get("slug") or ""), held.get("behaviour")
    if not slug:
        raise MechstudyError(
            "the file does not say which graph it is of",
            where=str(edits),
            fix="a file that `Save edits` wrote on a graph's page",
        )
    named: dict[str, BehaviourGraph | PromptGraph] = {}
    for name, graph in run.graphs.items():
        if slug in graph.prompt_ids:
            named[slug] = cast("PromptGraph", graph.prompts[list(graph.prompt_ids).index(slug)])
        elif slug == AGGREGATE and behaviour in (None, name):
            named[name] = graph
    refused: MechstudyError | None = None
    for name, drawn in named.items():  # a file of all prompts' graph that does not say whose fits one alone
        try:
            return name, drawn.edited(edits).edits
        except MechstudyError as error:
            refused = error
    raise refused or MechstudyError(
        f"these are edits of {slug}, which is no graph of this run",
        where=str(edits),
        facts={"graphs": ", ".join([*run.graphs, *(s for g in run.graphs.values() for s in g.prompt_ids)])},
        fix="a file that `Save edits` wrote on a graph's page of this run",
    )
