"""What the pages of a served report ask of its model, one request at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from pydantic import Field

from mechstudy import api, behaviours, circuits, interventions
from mechstudy.core.config import Config
from mechstudy.core.errors import MechstudyError

if TYPE_CHECKING:
    from mechstudy.api.graphs import PromptGraph
    from mechstudy.behaviours.schema import PromptPair
    from mechstudy.circuits.config import BasisKind
    from mechstudy.dictionaries.neurons import Basis
    from mechstudy.models.language_model import LanguageModel

C = TypeVar("C", bound=Config)

MAX_GRAPHS = 20  # of other prompts, whose pages are kept
_Text = Field(min_length=1, max_length=20_000)


class SteerRequest(Config):
    """A prompt to continue, with activations added to features (``"13/1741": 8``)."""

    prompt: str = _Text
    steer: dict[str, float] = Field(min_length=1, max_length=50)
    tokens: int = Field(default=40, ge=1, le=400)
    temperature: float = Field(default=0.0, ge=0, le=10)
    seed: int = 0


class GraphRequest(Config):
    """A prompt to explain; answers that are not given are the model's own."""

    prompt: str = _Text
    corrupted: str | None = Field(default=None, max_length=20_000)
    answer: str | None = Field(default=None, max_length=200)
    wrong_answer: str | None = Field(default=None, max_length=200)
    nodes: int = Field(default=256, ge=1, le=4000)


class SubgraphRequest(Config):
    """Nodes of a graph of the report, or of one that was made here, by their names there."""

    graph: str
    nodes: tuple[str, ...] = Field(min_length=1, max_length=20_000)
    replace_by: Literal["corrupted", "zero"] | None = None


class LiveRun:
    """A finished run with its model and dictionaries in memory.

    Args:
        run: the run.
        model: its model.
        dictionaries: by layer; empty where nodes are neurons.
    """

    def __init__(self, run: api.Run, model: LanguageModel, dictionaries: Mapping[int, Basis]) -> None:
        self.run, self.model, self.dictionaries = run, model, dictionaries
        self.basis: BasisKind = _basis(run, dictionaries)
        self._made: OrderedDict[str, tuple[PromptGraph, PromptPair]] = OrderedDict()
        self._number = 0
        self.actions: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "steer": lambda asked: self.steer(_request(SteerRequest, asked)),
            "graph": lambda asked: self.graph(_request(GraphRequest, asked)),
            "subgraph": lambda asked: self.subgraph(_request(SubgraphRequest, asked)),
        }

    def about(self) -> dict[str, Any]:
        """What forms start with: the model's name and a prompt of each behaviour."""
        firsts = [next((pair for pair in prompts), None) for prompts in self.run.prompts.values()]
        examples = [
            {"prompt": p.clean, "corrupted": p.corrupted, "answer": p.answer, "wrong_answer": p.wrong_answer}
            for p in firsts
            if p is not None
        ]
        return {"model": self.model.name, "examples": examples}

    def steer(self, asked: SteerRequest) -> dict[str, Any]:
        """Both continuations of a prompt.

        Raises:
            MechstudyError: as `generate`.
        """
        basis: BasisKind = "mixed" if self.dictionaries else "neurons"
        steered, unsteered = (
            interventions.generate(
                self.model,
                asked.prompt,
                steer=chosen,
                dictionaries=self.dictionaries,
                basis=basis,
                max_new_tokens=asked.tokens,
                temperature=asked.temperature,
                seed=asked.seed,
            )
            for chosen in (cast("Mapping[str | tuple[int, int], float]", asked.steer), None)
        )
        return {"prompt": asked.prompt, "steered": steered, "unsteered": unsteered}

    def graph(self, asked: GraphRequest) -> dict[str, Any]:
        """The graph of a prompt, as the name of its page (`page`).

        Raises:
            MechstudyError: as `attribute`, or ``corrupted`` is the prompt.
        """
        corrupted = asked.corrupted or None
        if corrupted == asked.prompt:
            raise MechstudyError("clean and corrupted are the same text", fix="change one of them")
        answers = behaviours.compared_answers(
            self.model, asked.prompt, asked.answer or None, asked.wrong_answer or None, corrupted=corrupted
        )
        pair = behaviours.prompt_pair(
            self.model, asked.prompt, corrupted, answer=answers.answer, wrong_answer=answers.wrong_answer
        )
        made = api.attribute(
            self.model,
            self.dictionaries or None,
            asked.prompt,
            answer=answers.answer,
            wrong_answer=answers.wrong_answer,
            corrupted=corrupted,
            config=circuits.AttributionConfig(max_features=asked.nodes, basis=self.basis),
        ).described_by(self.run.feature_pages)
        self._number += 1
        name = f"prompt-{self._number}"
        self._made[name] = made, pair
        while len(self._made) > MAX_GRAPHS:
            self._made.popitem(last=False)
        return {
            "page": f"{name}.html",
            "answer": answers.answer,
            "wrong_answer": answers.wrong_answer,
            "logit_difference": answers.logit_difference,
            "remarks": list(answers.remarks),
            "nodes": len(made.nodes),
            "scores": made.scores(),
        }

    def page(self, name: str) -> str | None:
        """The page of a graph that was made here; None where there is none of that name."""
        held = self._made.get(name)
        return None if held is None else held[0].html()

    def subgraph(self, asked: SubgraphRequest) -> dict[str, Any]:
        """What the answers' contrast becomes without some nodes of a graph, and with these alone.

        Raises:
            MechstudyError: no such graph; and as `api.subgraph_effects`.
        """
        graph, pair = self._graph(asked.graph)
        made = api.subgraph_effects(
            self.model, self.dictionaries, graph, pair, asked.nodes, basis=self.basis, replace_by=asked.replace_by
        )
        return asdict(made) | {"necessity": made.necessity, "faithfulness": made.faithfulness}

    def _graph(self, slug: str) -> tuple[PromptGraph, PromptPair]:
        """A graph and its prompt: of one made here by its name, of the run's by its slug."""
        if slug in self._made:
            return self._made[slug]
        for behaviour, graphs in self.run.graphs.items():
            if slug in graphs.prompt_ids:
                pairs = {pair.id: pair for pair in self.run.prompts[behaviour]}
                graph = cast("PromptGraph", graphs.prompts[list(graphs.prompt_ids).index(slug)])
                return graph, pairs[graphs.prompt_ids[slug]]
        raise MechstudyError(
            f"there is no graph of a prompt {slug!r}", fix="a graph of one prompt, not of all prompts together"
        )


def _request(kind: type[C], asked: Mapping[str, Any]) -> C:
    """What a page asks.

    Raises:
        MechstudyError: a field is missing, unknown or of another form; it is named as the page knows it.
    """
    try:
        return kind(**asked)
    except MechstudyError as error:
        what = error.what.removeprefix(f"{kind.__name__}: ")
        raise MechstudyError(what, facts=error.facts, fix=error.fix) from None


def _basis(run: api.Run, dictionaries: Mapping[int, Basis]) -> BasisKind:
    """The nodes of the run's graphs."""
    if not dictionaries:
        return "neurons"
    of_layers = [basis for graph in run.graphs.values() for basis in graph.bases.values()]
    return "mixed" if "neurons" in of_layers else "dictionaries"
