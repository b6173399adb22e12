"""Attribution graphs that draw themselves in a notebook or as an HTML page: of a prompt, a behaviour, from a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import polars as pl
from pydantic import BaseModel, Field, ValidationError

from mechstudy.api.grouping import supernodes
from mechstudy.circuits.drawn_influence import drawn_scores
from mechstudy.circuits.graph_frames import BehaviourFrames, GraphFrames, PromptFrames
from mechstudy.circuits.supernodes import Supernodes
from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.core.notices import counted
from mechstudy.report.formatting import plain, visible
from mechstudy.report.standalone import asset, is_page, rendered, standalone, write_page
from mechstudy.report.viewer import (
    aggregate_view,
    automatic_groups,
    feature_densities,
    feature_labels,
    feature_record,
    prompt_view,
)

if TYPE_CHECKING:
    from mechstudy.dictionaries.dictionary import Dictionary

_PARTS = ("layout", "draw", "heads", "detail", "edits")
_SCRIPTS = tuple(f"{name}.js" for name in ("features", *(f"graph-{part}" for part in _PARTS), "graph"))
_KEY = "this"
_CELL_HEIGHT = 820  # CSS pixels
_OWN_STYLE = """
body { display: block; min-height: 0; }
body.wide main { padding: .6rem .8rem 1rem; }
h1 { font-size: 1.05rem; margin: 0 0 .5rem; overflow-wrap: anywhere; } h1 small { font-weight: 400; font-size: .9em; }
.toolbar .grow, #g-detail a[href^="features.html"] { display: none; }
.canvas-box { height: clamp(440px, calc(100vh - 420px), 760px); }
.stage { grid-template-columns: minmax(0, 1fr) minmax(240px, 30%); }
.detail { border-left: 1px solid var(--line); border-top: 0; height: clamp(565px, calc(100vh - 295px), 885px); }
.below { margin-top: 1rem; } .below h2 { font-size: 1.05rem; }
@media (max-width: 700px) { .stage { grid-template-columns: 1fr; } .detail { height: auto; } }
"""


Pages = Sequence[Mapping[str, Any]]  # of features.json


def page_of(view: Mapping[str, Any], features: Mapping[int, Mapping[str, Any]]) -> str:
    """The whole page of one graph; the records of ``features`` by layer, then by feature number as text."""
    title = plain(str(view.get("prompt") or view.get("slug") or "graph"))
    layers = {layer for layer in view["nodes"]["layer"] if layer is not None}
    data = {f"graphs-{_KEY}": {"graphs": [{"data": "graph", "slug": view["slug"], "label": title}]}, "graph": view}
    data |= {f"features-L{layer}": features.get(layer, {}) for layer in sorted(layers)}
    return standalone(
        title,
        _heading(view, title) + rendered("graph_viewer.html.j2", key=_KEY),
        styles=[asset("graph.css"), _OWN_STYLE],
        scripts=[asset(name) for name in _SCRIPTS],
        data=data,
        body_class="wide",
    )


def records_of(pages: Pages, drawn: Collection[str]) -> dict[int, dict[str, Any]]:
    """The records of the features that are drawn (``13/1741``), by layer, then by feature number as text."""
    records: dict[int, dict[str, Any]] = {}
    for feature in pages:
        layer, number = int(feature["layer"]), int(feature["feature"])
        if f"{layer}/{number}" in drawn:
            records.setdefault(layer, {})[str(number)] = feature_record(feature)
    return records


def _heading(view: Mapping[str, Any], title: str) -> str:
    """The prompt, and the answers that are compared or what else is explained."""
    if compared := view.get("compared"):
        return f"<h1>{escape(plain(compared['a']))} <small>compared with</small> {escape(plain(compared['b']))}</h1>"
    answer, wrong = view.get("answer"), view.get("wrong_answer")
    explained = f"{visible(str(answer))} rather than {visible(str(wrong))}" if answer and wrong else view.get("target")
    note = f" <small>{escape(plain(str(explained)))}</small>" if explained else ""
    return f"<h1>{escape(title)}{note}</h1>"


class Edits(BaseModel):
    """Pins, groups and labels of a graph, in Neuronpedia's form."""

    pinnedIds: list[str] = []
    supernodes: list[Annotated[list[str], Field(min_length=1)]] = []  # a name, then nodes
    clerps: list[tuple[str, str]] = []  # node, label

    @property
    def nodes(self) -> list[str]:
        """All nodes that are named."""
        return [
            *self.pinnedIds,
            *(node for _, *nodes in self.supernodes for node in nodes),
            *(n for n, _ in self.clerps),
        ]


def _is_pair(row: Any) -> bool:
    """Whether a row of a file, whoever wrote it, is a node and its label."""
    return isinstance(row, list | tuple) and len(row) == 2 and all(isinstance(part, str) for part in row)


class _Drawn(GraphFrames, ABC):
    """A graph with its features' pages, which label and describe the nodes of the drawing."""

    _pages: Pages
    _as_made: pl.DataFrame  # nodes, before a reader's labels

    @property
    def feature_pages(self) -> Pages:
        """Records of features that label and describe the nodes."""
        return self._pages

    def html(self) -> str:
        """The drawing as one HTML page, which fetches nothing."""
        return page_of(self._view(), records_of(self._pages, set(self.nodes["feature"])))

    def save(self, path: str | Path) -> Path:
        """Write the graph as ``.json`` (for a prompt the format of Neuronpedia and circuit-tracer) or ``.html``.

        Returns:
            The path.
        """
        return write_page(path, self.html()) if is_page(path) else super().save(path)

    def supernodes(
        self, dictionaries: Mapping[int, Dictionary] | None = None, *, n_groups: int | None = None
    ) -> Supernodes:
        """Groups of the graph's features, and the graph of the groups (`ms.supernodes`)."""
        return supernodes(self, dictionaries, n_groups=n_groups)

    @property
    def edits(self) -> dict[str, Any]:
        """What a reader made of the graph, as Neuronpedia's ``qParams``: pinnedIds, supernodes, clerps."""
        held = self._json.get("qParams")
        return dict(held) if isinstance(held, Mapping) else {}

    def edited(self, edits: str | Path | Mapping[str, Any]) -> Self:
        """The same graph with pins, groups and labels of a file that its page saved (*Save edits*).

        `save` keeps them, and the page of the result shows them.

        Args:
            edits: the file, or its content: ``qParams``, alone or under that name.

        Raises:
            MechstudyError: not such a file, or nodes that the graph does not draw.
        """
        where = str(edits) if isinstance(edits, str | Path) else None
        content: Any = read_json(Path(edits).expanduser()) if isinstance(edits, str | Path) else edits
        held = content.get("qParams", content) if isinstance(content, Mapping) else None
        try:
            if not isinstance(held, Mapping) or not set(held) & set(Edits.model_fields):
                raise MechstudyError("no pins, groups or labels")
            chosen = Edits.model_validate(held)
        except (ValidationError, MechstudyError) as error:
            what = "; ".join(e["msg"] for e in error.errors()) if isinstance(error, ValidationError) else str(error)
            raise MechstudyError(
                f"not edits of a graph: {what}", where=where, fix="a file that the page's `Save edits` wrote"
            ) from None
        self._check_nodes(chosen.nodes)
        made = copy(self)
        made._json = {**self._json, "qParams": self.edits | chosen.model_dump(mode="json")}
        made._label_nodes()
        return made

    def _label_nodes(self) -> None:
        """Labels that a reader gave replace those that the graph was made with."""
        given = dict(row for row in self.edits.get("clerps") or () if _is_pair(row))
        label = pl.col("node").replace_strict(given, default=pl.col("label")) if given else pl.col("label")
        self.nodes = self._as_made.with_columns(label=label)

    def _check_nodes(self, names: Collection[str]) -> None:
        known = set(self.nodes["node"])
        if unknown := [name for name in names if name not in known]:
            raise MechstudyError(
                f"{counted(len(unknown), 'node')} of {len(names)} not in this graph",
                facts={"unknown": ", ".join(unknown[:5])},
                fix="names of graph.nodes; edits are of the graph on whose page they were made",
            )

    @abstractmethod
    def _view(self) -> dict[str, Any]:
        """What the report's page of graphs draws."""

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{escape(self.html())}" sandbox="allow-scripts" title="Attribution graph" '
            f'style="width:100%;height:{_CELL_HEIGHT}px;border:0"></iframe>'
        )


class PromptGraph(_Drawn, PromptFrames):
    """The attribution graph of one prompt, which draws itself in a notebook; `circuits.PromptFrames` has its columns.

    graph.nodes, graph.edges, graph.top(10), graph.scores(), graph.ledger
    graph.save("keys.json"), graph.save("keys.html")
    """

    def __init__(self, json: Mapping[str, Any], pages: Pages = (), bases: Mapping[int, str] | None = None) -> None:
        super().__init__(json, feature_labels(pages))
        self._pages = pages
        self.bases = {**self.bases, **(bases or {})}
        self._as_made = self.nodes
        self._label_nodes()

    def described_by(self, pages: Pages) -> PromptGraph:
        """The same graph, its features described by these records too, such as a run's (`Run.feature_pages`).

        A record of a feature replaces what the graph has of it, in layers whose features are of the same kind.
        """
        kinds = {page["layer"]: page["kind"] for page in self._pages}
        others = [page for page in pages if kinds.get(page["layer"]) == page.get("kind")]
        replaced = {(page["layer"], page["feature"]) for page in others}
        own = [page for page in self._pages if (page["layer"], page["feature"]) not in replaced]
        return PromptGraph(self._json, [*own, *others], self.bases)

    def kept_scores(self, nodes: Collection[str] | pl.DataFrame) -> dict[str, float]:
        """Replacement and completeness of some features of the drawn graph, everything else counted as error.

        Args:
            nodes: names of ``nodes.node``, or a frame with that column, or with features and positions as `top` has
                them (those that pruning cut are left out); tokens and outputs always count.
        """
        if isinstance(nodes, pl.DataFrame):
            if "node" not in nodes.columns:
                nodes = self.nodes.join(nodes.select("feature", "position"), on=["feature", "position"], how="semi")
            names = nodes["node"].to_list()
        else:
            names = [nodes] if isinstance(nodes, str) else list(nodes)
        self._check_nodes(names)
        return drawn_scores(self, names)

    def _view(self) -> dict[str, Any]:
        return prompt_view(
            self._json, feature_labels(self._pages), feature_densities(self._pages), automatic_groups(self)
        )


class BehaviourGraph(_Drawn, BehaviourFrames):
    """The graph of a behaviour, which draws itself in a notebook; `circuits.BehaviourFrames` has its columns.

    ``prompts`` are the graphs of single prompts.
    """

    def __init__(
        self,
        json: Mapping[str, Any],
        scores: Mapping[str, Any],
        prompts: Sequence[PromptGraph] = (),
        pages: Pages = (),
        checked: Sequence[Mapping[str, Any]] = (),
        bases: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(json, scores, prompts, feature_labels(pages))
        self._pages, self._checked = pages, checked
        self.bases = {**self.bases, **(bases or {})}
        self._as_made = self.nodes
        self._label_nodes()

    def _view(self) -> dict[str, Any]:
        labels, densities = feature_labels(self._pages), feature_densities(self._pages)
        return aggregate_view(self._json, labels, self._checked, self._scores, densities, automatic_groups(self))


def load_graph(path: str | Path) -> PromptGraph:
    """A prompt's graph from a file written by ``graph.save("keys.json")``, circuit-tracer or Neuronpedia.

    Raises:
        MechstudyError: the file is missing, or holds no graph.
    """
    path = Path(path).expanduser()
    json = read_json(path)
    if not isinstance(json, dict) or not {"nodes", "links", "metadata"} <= json.keys():
        raise MechstudyError(
            "this is not a prompt's graph", where=str(path), fix="a JSON file with metadata, nodes and links"
        )
    return PromptGraph(json)
