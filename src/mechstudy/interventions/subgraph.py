"""Nodes of one prompt's graph, replaced in the live model, and kept while everything else is replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.bases import check_bases
from mechstudy.circuits.donors import DonorSource, Replacement
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.feature_nodes import ErrorAt, FeatureNodes, active_at
from mechstudy.interventions.features import FeatureAt
from mechstudy.interventions.keep_only import keep_only_values
from mechstudy.models.language_model import LanguageModel

ON_ONE_PROMPT: tuple[Replacement, ...] = ("corrupted", "zero")  # others need more prompts


@dataclass(frozen=True)
class SubgraphEffects:
    """The answers' contrast (logit difference) of one prompt, with nodes of its graph replaced or kept alone.

    ``clean``: nothing is replaced; ``without``: the nodes are, and what follows responds; ``only``: everything but the
    nodes is; ``none``: everything is. *Everything* are ``n_others`` more features and errors, which ``replaced_by``
    gives another value; attention runs live.
    """

    replaced_by: Replacement
    n_nodes: int
    n_others: int
    clean: float
    without: float
    only: float
    none: float

    @property
    def necessity(self) -> float | None:
        """The share of ``clean - none`` that goes when the nodes are replaced; None where there is no difference."""
        return self._share(self.clean - self.without)

    @property
    def faithfulness(self) -> float | None:
        """The share of ``clean - none`` that the nodes carry alone; None where there is no difference."""
        return self._share(self.only - self.none)

    def _share(self, part: float) -> float | None:
        whole = self.clean - self.none
        return part / whole if abs(whole) > 1e-6 * max(1.0, abs(self.clean)) else None


@torch.no_grad()
def subgraph_effects(
    model: LanguageModel,
    bases: Mapping[int, Basis],
    pair: PromptPair,
    nodes: Iterable[tuple[int, int | None, int]],
    *,
    replace_by: Replacement | None = None,
    batch_tokens: int = 4096,
) -> SubgraphEffects:
    """Replace some nodes of a prompt's graph in the running model, and everything but these.

    Args:
        model: the model.
        bases: of the graph's nodes, by layer.
        pair: the prompt, with the corrupted one if it is the donor.
        nodes: layer, feature (None: the layer's error) and token index of each.
        replace_by: ``corrupted`` or ``zero``; by default the corrupted prompt where there is one.
        batch_tokens: tokens run at a time.

    Raises:
        MechstudyError: no nodes, a node that the bases do not have, another kind of replacement, or ``corrupted``
            without a corrupted prompt.
    """
    to = replace_by or ("corrupted" if pair.has_corrupted else "zero")
    if to not in ON_ONE_PROMPT:
        raise MechstudyError(
            f"nodes of one prompt cannot be replaced by {to!r}", facts={"replace_by": ", ".join(ON_ONE_PROMPT)}
        )
    pair = _every_token_named(pair)
    names = NamedPositions.of([pair])
    chosen = list(dict.fromkeys(_node(names, *node) for node in nodes))
    if not chosen:
        raise MechstudyError("no features and no errors are named", fix="nodes of the graph, such as graph.top(10)")
    check_bases(bases, "subgraphs", model)
    if missing := sorted({node.layer for node in chosen} - set(bases)):
        raise MechstudyError(
            f"layer {missing[0]} has no features", facts={"layers with some": ", ".join(map(str, sorted(bases)))}
        )
    features = [node for node in chosen if isinstance(node, FeatureAt)]
    active = active_at(model, bases, names, [pair], batch_tokens=batch_tokens)
    universe = FeatureNodes(model, bases, names, [*active, *features], errors=True)
    number = {node: i for i, node in enumerate(universe.nodes)}
    keep_CN = torch.zeros(4, len(number), dtype=torch.bool)
    clean, without, only, _ = keep_CN
    clean[:] = without[:] = True
    at = [number[node] for node in chosen]
    without[at], only[at] = False, True
    values = keep_only_values(
        model,
        [pair],
        universe,
        keep_CN,
        DonorSource(model, [universe], to, names, batch_tokens=batch_tokens),
        batch_tokens=batch_tokens,
    )
    return SubgraphEffects(to, len(chosen), len(number) - len(chosen), *values[:, 0].tolist())


def _every_token_named(pair: PromptPair) -> PromptPair:
    """The pair with each token's index as the name of its position."""
    places = {str(i): i for i in range(len(pair.clean_tokens))}
    if pair.corrupted_positions is None:
        return pair.model_copy(update={"positions": places})
    there = {name: at for name, i in places.items() if (at := pair.corrupted_at(i)) is not None}
    return pair.model_copy(update={"positions": places, "corrupted_positions": there})


def _node(names: NamedPositions, layer: int, feature: int | None, position: int) -> FeatureAt | ErrorAt:
    if str(position) not in names.names:
        raise MechstudyError(
            f"there is no token {position}", facts={"tokens": f"0-{len(names.names) - 1}"}, fix="nodes of this prompt"
        )
    return ErrorAt(layer, str(position)) if feature is None else FeatureAt(layer, feature, str(position))
