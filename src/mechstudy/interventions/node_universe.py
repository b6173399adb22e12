"""The nodes of a circuit: features and errors of bases, heads, and the MLPs of layers without nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mechstudy.circuits.components import Component, Components, HeadAt, MlpAt
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.circuits.universe import NodeSet, NodeSets
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.feature_nodes import ErrorAt, FeatureNodes
from mechstudy.interventions.features import FeatureAt
from mechstudy.models.language_model import LanguageModel

Node = Component | FeatureAt | ErrorAt


def node_set(
    model: LanguageModel,
    positions: NamedPositions,
    bases: Mapping[int, Basis] | None = None,
    features: Iterable[FeatureAt] | None = None,
    *,
    errors: bool = False,
    heads: bool = True,
    mlps: bool = True,
) -> NodeSet:
    """Features and errors of bases, then heads, then the MLPs of layers in which no feature writes.

    Args:
        model: the model.
        positions: the names of positions.
        bases: of features, by layer.
        features: the nodes; by default every feature at every name.
        errors: whether errors are nodes.
        heads: whether heads are nodes.
        mlps: whether MLPs are nodes.

    Raises:
        MechstudyError: as `FeatureNodes`, or there are no nodes.
    """
    sets: list[NodeSet] = []
    if bases:
        sets.append(FeatureNodes(model, bases, positions, features, errors=errors))
    if heads:
        sets.append(Components(model, positions, mlps=False))
    taken = {site.layer for one in sets for site in one.writes if site.kind in ("mlp_out", "mlp_act")}
    if mlps and (free := [layer for layer in range(model.n_layers) if layer not in taken]):
        sets.append(Components(model, positions, heads=False, layers=free))
    if not sets:
        raise MechstudyError("there are no nodes", fix="dictionaries, heads=True or mlps=True")
    return sets[0] if len(sets) == 1 else NodeSets(sets)


def node_set_of(
    model: LanguageModel, nodes: Sequence[Node], positions: NamedPositions, bases: Mapping[int, Basis] | None = None
) -> NodeSet:
    """The set that some nodes of `node_set` are.

    Args:
        model: the model.
        nodes: in order.
        positions: their positions.
        bases: of the features among them.

    Raises:
        MechstudyError: features without their bases, or not the nodes of such a set.
    """
    features = [node for node in nodes if isinstance(node, FeatureAt)]
    some = [node for node in nodes if isinstance(node, FeatureAt | ErrorAt)]
    if some and not bases:
        raise MechstudyError(
            f"{some[0]} is a node, and no basis is given", fix="dictionaries=..., those of the effects"
        )
    whole = node_set(
        model,
        positions,
        {layer: basis for layer, basis in (bases or {}).items() if layer in {node.layer for node in some}},
        features,
        errors=any(isinstance(node, ErrorAt) for node in nodes),
        heads=any(isinstance(node, HeadAt) for node in nodes),
        mlps=any(isinstance(node, MlpAt) for node in nodes),
    )
    if whole.nodes != tuple(nodes):
        raise MechstudyError(
            f"these {len(nodes)} nodes are not a whole set, which has {len(whole.nodes)}",
            fix="the effects of mechstudy.components, with their dictionaries",
        )
    return whole
