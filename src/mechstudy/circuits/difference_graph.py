"""The graph of a difference: what makes a target's value in the clean prompt differ from that in the corrupted one.

Rows are those of `rows.direct_effects` at points of the path between the two runs (`tangents`), averaged. Each adds up
to its target's difference, but for the error of the rule that takes the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.circuits.active_nodes import ActiveNeurons
from mechstudy.circuits.attribution import GrowingRows
from mechstudy.circuits.bases import has_saes
from mechstudy.circuits.choose_neurons import choose_neurons
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.graph import Difference, Graph, LogitNode
from mechstudy.circuits.held_path import midpoints
from mechstudy.circuits.linear_prompt import LinearisedPrompt
from mechstudy.circuits.rows import SourceIndex, Target, direct_effects
from mechstudy.circuits.tangents import PromptDifference, prompt_difference
from mechstudy.circuits.targets import Explained, output_target, top_logit_targets
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import Progress
from mechstudy.dictionaries.neurons import Basis
from mechstudy.models.language_model import LanguageModel


def attribute_difference(
    model: LanguageModel,
    bases: Mapping[int, Basis],
    clean_T: Int[Tensor, " t"],
    corrupted_T: Int[Tensor, " s"],
    config: AttributionConfig,
    *,
    explained: Explained | None = None,
    batch_rows: int = 256,
    progress: Progress | None = None,
) -> Graph:
    """The graph of the difference between two prompts of equal length.

    Features get rows as in `attribute`. Nodes are those whose values differ.

    Args:
        model: weights in fp32 or wider.
        bases: dictionaries or neurons by layer; ``config.elsewhere`` says what the MLPs of other layers are.
        clean_T, corrupted_T: the prompts.
        config: ``contrast.steps`` is the number of points of the path.
        explained: what is explained, unless ``config.target`` is ``logits``: then the clean prompt's top logits are.

    Raises:
        MechstudyError: prompts of unequal length, a dictionary of another site or layer, weights below fp32, or an
            attention whose queries and keys are not affine in its input.
    """
    model.require_float32("attribution needs fp32 weights")
    if len(clean_T) != len(corrupted_T):
        raise MechstudyError(
            f"a difference is of prompts of equal length, and these have {len(clean_T)} and {len(corrupted_T)} tokens",
            fix="prompts that differ in words of equally many tokens; or explains: clean",
        )
    between = prompt_difference(model, bases, clean_T, corrupted_T, config.elsewhere_of(has_saes(bases)))
    steps = config.contrast.steps
    clean, *points, corrupted = between.at([0.0, *midpoints(steps), 1.0])
    if config.target == "logits":
        targets, nodes, weights = _top_logits(model, config, clean, points, corrupted)
    else:
        assert explained is not None
        targets, nodes, weights = _explained(model, explained, clean, points, corrupted)
    points = choose_neurons(
        points, [[t.at_points[i] for t in targets] for i in range(steps)], weights, config.n_neurons
    )
    rows = GrowingRows(DifferenceRows(points), targets, weights, config.max_features, batch_rows, progress)
    graph = rows.graph(nodes, summed=config.target == "logit_difference" and len(targets) > 1)
    return replace(
        graph, activation_S=_clean_activations(between, graph), difference=Difference(graph.activation_S, steps)
    )


@dataclass(frozen=True)
class PathTarget:
    """A target at every point of a path; ``value`` is the difference between the ends, clean minus corrupted."""

    at_points: tuple[Target, ...]
    value: float

    @property
    def layer(self) -> int:
        """The layer whose nodes' site is read, or the number of layers."""
        return self.at_points[0].layer

    @property
    def position(self) -> int:
        """Where it is read."""
        return self.at_points[0].position


@dataclass(frozen=True)
class DifferenceRows:
    """Rows of the difference matrix from the points of a path, all of which have the same sources."""

    points: Sequence[LinearisedPrompt]

    @property
    def prompt(self) -> LinearisedPrompt:
        """One with the sources."""
        return self.points[0]

    def targets(self, layer: int, which_M: Sequence[int]) -> list[PathTarget]:
        """What some nodes of one layer read: pre-activations of features, or what neurons hold."""
        x = self.prompt.layers[layer]
        assert x.nodes is not None and x.read_TD is not None
        which = torch.tensor(list(which_M), device=x.nodes.position_M.device)
        positions = x.nodes.position_M[which].tolist()
        directions_AMD = [self._readers(point, layer, which) for point in self.points]
        if isinstance(x.nodes, ActiveNeurons):
            values = x.nodes.value_M[which]
        else:
            values = (directions_AMD[0] * x.read_TD[x.nodes.position_M[which]]).sum(-1)
        return [
            PathTarget(tuple(Target(layer, p, rows[i], 0.0, value) for rows in directions_AMD), value)
            for i, (p, value) in enumerate(zip(positions, values.tolist(), strict=True))
        ]

    def _readers(self, point: LinearisedPrompt, layer: int, which: Tensor) -> Tensor:
        nodes = point.layers[layer].nodes
        assert nodes is not None
        return nodes.readers(which)[0]

    def effects(self, index: SourceIndex, targets: Sequence[PathTarget]) -> Float[Tensor, "r s"]:
        """Mean direct effects over the path; what is constant has none."""
        total_RS = self.prompt.tokens_TD.new_zeros(len(targets), index.n_sources)
        for number, point in enumerate(self.points):
            total_RS += direct_effects(point, index, [t.at_points[number] for t in targets])
        total_RS /= len(self.points)
        total_RS[:, index.biases :] = 0
        return total_RS


_Targets = tuple[list[PathTarget], tuple[LogitNode, ...], Tensor]


def _explained(
    model: LanguageModel,
    explained: Explained,
    clean: LinearisedPrompt,
    points: Sequence[LinearisedPrompt],
    corrupted: LinearisedPrompt,
) -> _Targets:
    """The forms of what is explained: at each point of the path, their gradients there."""
    at_ends = [explained.forms(model, end) for end in (clean, corrupted)]
    at_points = [[form.target(point) for form in explained.forms(model, point)] for point in points]
    targets: list[PathTarget] = []
    nodes: list[LogitNode] = []
    for number, (form, other) in enumerate(zip(*at_ends, strict=True)):
        value = form.target(clean).value - other.target(corrupted).value
        targets.append(PathTarget(tuple(at[number] for at in at_points), value))
        nodes.append(replace(form.node(value), label=f"{form.label}, clean - corrupted = {value:.3f}"))
    return targets, tuple(nodes), torch.ones(len(targets))


def _top_logits(
    model: LanguageModel,
    config: AttributionConfig,
    clean: LinearisedPrompt,
    points: Sequence[LinearisedPrompt],
    corrupted: LinearisedPrompt,
) -> _Targets:
    """The clean prompt's top logits, each minus the mean logit: linear, so the same direction everywhere."""
    top, nodes, weights = top_logit_targets(model, clean, config.logit_probability, config.max_logits)
    targets = [
        PathTarget(
            tuple(output_target(point, t.position, t.direction_D, t.constant) for point in points),
            t.value - output_target(corrupted, t.position, t.direction_D, t.constant).value,
        )
        for t in top
    ]
    return targets, nodes, weights


def _clean_activations(between: PromptDifference, graph: Graph) -> Tensor:
    """The clean prompt's activation of every feature column."""
    activations = torch.zeros_like(graph.activation_S)
    for layer, columns in enumerate(graph.index.feature_slices):
        if columns.stop > columns.start:
            own_TF = between.path.own.activation_TF[layer].cpu()
            places = graph.feature_position_S[columns], graph.feature_id_S[columns]
            activations[columns] = own_TF[places].to(activations)
    return activations
