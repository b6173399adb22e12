"""Two attribution graphs compared, with a table for notebooks; and graphs by their place."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from mechstudy.api.graphs import BehaviourGraph, PromptGraph, load_graph, page_of, records_of
from mechstudy.api.runs import open_run
from mechstudy.circuits.common_names import PositionNames, position_names_of
from mechstudy.circuits.graph_comparison import GraphComparison
from mechstudy.circuits.graph_frames import BehaviourFrames, GraphFrames, PromptFrames
from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.report.comparison_view import behaviour_columns, comparison_view, prompt_columns
from mechstudy.report.formatting import number, plain
from mechstudy.report.standalone import is_page, write_page
from mechstudy.report.viewer import feature_densities, feature_labels
from mechstudy.study.finished import is_run

_ROWS = 10  # of each table in a notebook
_LEFT = ("node", "source", "target", "change", "label")


class Comparison(GraphComparison):
    """Two graphs compared, which shows itself as a table in a notebook; `circuits.GraphComparison` has its columns.

    comparison.summary(), comparison.top(10), comparison.top(10, "edges", "gained")
    comparison.nodes, comparison.edges, comparison.is_same
    comparison.save("comparison.json"), comparison.save("comparison.html")
    """

    def html(self) -> str:
        """Both graphs drawn as one, as one HTML page that fetches nothing."""
        drawn = [graph for graph in self.graphs if isinstance(graph, PromptGraph | BehaviourGraph)]
        pages = [page for graph in drawn for page in graph.feature_pages]
        view = comparison_view(self, _columns(self), feature_labels(pages), feature_densities(pages))
        return page_of(view, records_of(pages, set(self.nodes["feature"])))

    def save(self, path: str | Path) -> Path:
        """Write all rows as ``.json``, or the drawing as ``.html``.

        Returns:
            The path.
        """
        return write_page(path, self.html()) if is_page(path) else super().save(path)

    def _repr_html_(self) -> str:
        parts = [f"<pre>{escape(plain_lines(repr(self)))}</pre>"]
        for what, columns in (
            ("nodes", ("node", "change", "influence_a", "influence_b", "direct_a", "direct_b", "label")),
            ("edges", ("source", "target", "change", "weight_a", "weight_b")),
        ):
            frame = self.top(_ROWS, "edges" if what == "edges" else "nodes").select(columns)
            if len(frame):
                parts.append(f"<p>The {what} that differ most</p>{_html_table(frame)}")
        return "".join(parts)


def compare(a: GraphFrames, b: GraphFrames, *, positions: PositionNames = "auto", tolerance: float = 0.0) -> Comparison:
    """Compare two attribution graphs: of two prompts, or two behaviours, also of two runs, seeds or models.

        comparison = ms.compare(graph, other)
        comparison.top(10)  # the nodes that differ most
        comparison.summary()["nodes"]["jaccard"]
        ms.compare(ms.open_run("runs/a").graphs["antonym"], ms.open_run("runs/b").graphs["antonym"])

    A node of a behaviour is identified by its kind, layer, feature and named position; one of a prompt by the first
    three and its token.

    Args:
        a: the first graph: what it has alone is lost.
        b: the second graph, of the same kind: what it has alone is gained.
        positions: how tokens of prompts are matched: ``named``, by the positions that prompt pairs name, with other
            tokens counted from the nearest one; ``index``, from the first token; ``end``, from the last; ``auto`` takes
            names where both prompts have the same ones, else the index where they have as many tokens.
        tolerance: numbers that differ by at most this share of the larger one count as the same. By default they have
            to be equal. Runs of one study on two machines differ by rounding: 1e-4 leaves that out.

    Raises:
        MechstudyError: a prompt's graph with a behaviour's; a clean prompt's with a difference's; neurons of a layer
            with features of a dictionary, or two dictionaries, where the graphs know theirs (those of runs do, and
            files do not); models of other depths; prompts of other lengths without names in common; a tolerance
            outside of [0, 1).
    """
    return Comparison(a, b, positions, tolerance)


def _columns(compared: Comparison) -> list[tuple[str, str]]:
    """The positions of both graphs, with their tokens."""
    a, b = compared.graphs
    if isinstance(a, BehaviourFrames) and isinstance(b, BehaviourFrames):
        return behaviour_columns(a.positions, b.positions)
    assert isinstance(a, PromptFrames) and isinstance(b, PromptFrames)
    named = [list(zip(position_names_of(one, compared.positions), one.tokens, strict=True)) for one in (a, b)]
    return prompt_columns(*named)


def graph_at(place: str) -> PromptGraph | BehaviourGraph:
    """The graph of ``RUN:behaviour``, or of a JSON file that a graph's ``save`` wrote.

    Raises:
        MechstudyError: there is no such file, run or behaviour, or the file holds no graph.
    """
    folder, colon, behaviour = place.rpartition(":")
    if colon and is_run(Path(folder).expanduser()):
        return open_run(folder).graphs[behaviour]
    path = Path(place).expanduser()
    if is_run(path):
        names = list(open_run(path).graphs)
        fix = f"{place}:{names[0]}" if names else "mechstudy attribute STUDY makes them"
        raise MechstudyError(
            "this is a run, which has a graph of each behaviour",
            where=place,
            facts={"behaviours": ", ".join(names) or "none with a graph yet"},
            fix=fix,
        )
    if path.is_dir():
        raise MechstudyError(
            "this is a folder, not a graph",
            where=place,
            fix="FILE.json or RUN:behaviour; dictionaries: mechstudy dictionary compare",
        )
    if colon and not path.exists() and path.suffix != ".json":
        raise MechstudyError("there is no such run", where=folder, fix="FILE.json, or RUN:behaviour")
    json = read_json(path)
    return BehaviourGraph(json, {}) if _is_aggregate(json) else load_graph(path)


def plain_lines(text: str) -> str:
    """Text of several lines with what is invisible in each shown."""
    return "\n".join(map(plain, text.split("\n")))


def _is_aggregate(json: Any) -> bool:
    return isinstance(json, dict) and {"behaviour", "nodes", "edges"} <= json.keys()


def _html_table(frame: pl.DataFrame) -> str:
    def cell(name: str, value: Any) -> str:
        text = plain(str(value or "")) if name in _LEFT else "" if value is None else number(value, 3)
        return f'<td style="text-align:{"left" if name in _LEFT else "right"}">{escape(text)}</td>'

    head = "".join(f"<th>{escape(name)}</th>" for name in frame.columns)
    rows = ("".join(cell(name, value) for name, value in row.items()) for row in frame.to_dicts())
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
