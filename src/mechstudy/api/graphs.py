"""Attribution graphs that draw themselves: of a prompt, of a behaviour, from a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechstudy.api import graph_html
from mechstudy.circuits.graph_frames import BehaviourFrames, GraphFrames, PromptFrames
from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.report.viewer import aggregate_view, feature_labels, feature_record, prompt_view

Pages = Sequence[Mapping[str, Any]]  # of features.json


class _Drawn(GraphFrames, ABC):
    """A graph with its features' pages, which label and describe the nodes of the drawing."""

    _pages: Pages

    def html(self) -> str:
        """The drawing as one HTML page, which fetches nothing."""
        records: dict[int, dict[str, Any]] = {}
        drawn = set(self.nodes["feature"])
        for feature in self._pages:
            layer, number = int(feature["layer"]), int(feature["feature"])
            if f"{layer}/{number}" in drawn:
                records.setdefault(layer, {})[str(number)] = feature_record(feature)
        return graph_html.page(self._view(), records)

    def save(self, path: str | Path) -> Path:
        """Write the graph as ``.json`` (for a prompt the format of Neuronpedia and circuit-tracer) or ``.html``.

        Returns:
            The path.
        """
        path = Path(path).expanduser()
        if path.suffix != ".html":
            return super().save(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8")
        return path

    @abstractmethod
    def _view(self) -> dict[str, Any]:
        """What the report's page of graphs draws."""

    def _repr_html_(self) -> str:
        return graph_html.cell(self.html())


class PromptGraph(_Drawn, PromptFrames):
    """The attribution graph of one prompt, which draws itself in a notebook; `circuits.PromptFrames` has its columns.

    graph.nodes, graph.edges, graph.top(10), graph.scores(), graph.ledger
    graph.save("keys.json"), graph.save("keys.html")
    """

    def __init__(self, json: Mapping[str, Any], pages: Pages = ()) -> None:
        super().__init__(json, feature_labels(pages))
        self._pages = pages

    def _view(self) -> dict[str, Any]:
        return prompt_view(self._json, feature_labels(self._pages))


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
    ) -> None:
        super().__init__(json, scores, prompts, feature_labels(pages))
        self._pages, self._checked = pages, checked

    def _view(self) -> dict[str, Any]:
        return aggregate_view(self._json, feature_labels(self._pages), self._checked, self._scores)


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
