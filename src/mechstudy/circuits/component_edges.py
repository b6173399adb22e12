"""Edges between components by attribution patching: what one writes, times the gradient where another reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.components import Component, Components, HeadAt, MlpAt, anywhere
from mechstudy.circuits.donors import Replacement
from mechstudy.circuits.exact_patterns import written
from mechstudy.circuits.held_path import midpoints
from mechstudy.circuits.readers import reader_gradients
from mechstudy.circuits.recording import INPUTS, Recording
from mechstudy.core.errors import MechstudyError
from mechstudy.models.language_model import LanguageModel

METHODS = ("eap", "eap_ig_inputs")
LOGITS = "logits"


@dataclass(frozen=True)
class EdgeEffects:
    """Effects of replacing what one component reads of another, as means over prompts.

    ``effects_NUV`` [positions, sources, targets] is the change of the answers' contrast when the target reads the
    source's replacement at a named position. ``reads_UV`` are the pairs of which the target reads what the source
    writes; others are 0. The last target is the logits. Over targets the effects add up to the source's own effect by
    the same method.
    """

    positions: tuple[str, ...]
    components: tuple[Component, ...]
    reads_UV: Bool[Tensor, "u v"]
    effects_NUV: Float64[Tensor, "n u v"]
    method: str
    replaced_by: Replacement

    @property
    def frame(self) -> pl.DataFrame:
        """A row for each edge: source, target, position (where the target reads), method, effect (mean over prompts).

        Names of components are without their position: ``head.17.4`` -> ``mlp.20``, or -> ``logits``.
        """
        names = [str(node).partition("@")[0] for node in self.components]
        targets = [*names, LOGITS]
        edges = self.reads_UV[None].expand(len(self.positions), -1, -1).nonzero()
        values = self.effects_NUV[tuple(edges.T)]
        position, source, target = edges.T.tolist()
        return pl.DataFrame(
            {
                "source": [names[i] for i in source],
                "target": [targets[i] for i in target],
                "position": [self.positions[i] for i in position],
                "method": [self.method] * len(edges),
                "effect": values.tolist(),
            }
        )

    def top(self, k: int) -> pl.DataFrame:
        """The ``k`` rows of the frame with the largest effects in size."""
        return self.frame.sort(pl.col("effect").abs(), descending=True, maintain_order=True).head(k)


def readable(model: LanguageModel, components: Sequence[Component]) -> Bool[Tensor, "u v"]:
    """Whether each target reads what each source writes [U, U + 1]: the later of two, and the logits of all."""
    after = [isinstance(node, MlpAt) and not model.blocks[node.layer].parallel for node in components]
    place = [2 * node.layer + later for node, later in zip(components, after, strict=True)] + [2 * model.n_layers]
    return torch.tensor(place)[None] > torch.tensor(place[:-1])[:, None]


def edge_effects(
    model: LanguageModel,
    components: Components,
    pairs: Iterable[PromptPair],
    *,
    method: str = "eap",
    replace_by: Replacement = "corrupted",
    discovery: Sequence[PromptPair] = (),
    steps: int = 5,
    seed: int = 0,
    batch_tokens: int = 256,
) -> EdgeEffects:
    """Effects of edges between components: (source's replacement - its output) . gradient where the target reads.

    Both at the same position. The gradient is that through the target alone: a head reads by its queries, keys and
    values together, whatever the positions that attend (`reader_gradients`). ``eap`` takes it at the clean prompt
    (Syed et al. 2310.10348), ``eap_ig_inputs`` as a mean along the path of inputs (Hanna et al. 2403.17806). What a
    head writes passes any post-norm to first order.

    Args:
        model: the model.
        components: sources and targets.
        pairs: the prompts.
        method: ``eap`` or ``eap_ig_inputs``.
        replace_by: what a component is replaced by (`DonorSource`).
        discovery: prompts that give means and resamples; by default the pairs.
        steps: points of the path.
        seed: of resamples.
        batch_tokens: tokens run at a time; memory grows with them, the components and the model's width.

    Raises:
        MechstudyError: another method, or as `predict_effects`.
    """
    if method not in METHODS:
        raise MechstudyError(f"edges have no method {method!r}", facts={"methods": ", ".join(METHODS)})
    names = components.positions
    recording = Recording(
        model, components, pairs, replace_by, discovery=discovery, seed=seed, batch_tokens=batch_tokens
    )
    nodes = list(dict.fromkeys(anywhere(node) for node in components.nodes))
    total_NUV = torch.zeros(len(names.names), len(nodes), len(nodes) + 1, dtype=torch.float64)
    shares = midpoints(steps) if method == "eap_ig_inputs" else [0.0]
    for x in recording.batches():
        written_BTUD = torch.stack([written(model, node, x) for node in nodes], 2)
        for share in shares:
            edits = {INPUTS: x.moved(INPUTS, x.shares([share]))} if share else {}
            readers = reader_gradients(model, x.tokens_BT, x.of_row, edits, _layers(nodes))
            read_BTVD = torch.stack([*(readers.of(node.layer, _head(node)) for node in nodes), readers.logits], 2)
            for n in range(len(names.names)):
                at = (x.donors.position_BT == n) & x.donors.has_BT
                edges_UV = torch.einsum("mud,mvd->uv", written_BTUD[at.to(model.device)].double(),
                                        read_BTVD[at.to(model.device)].double())  # fmt: skip
                total_NUV[n] += edges_UV.cpu() / len(shares)
    reads_UV = readable(model, nodes)
    effects_NUV = torch.where(reads_UV, total_NUV / len(recording.pairs), 0)
    return EdgeEffects(names.names, tuple(nodes), reads_UV, effects_NUV, method, replace_by)


def _head(node: Component) -> int | None:
    return node.head if isinstance(node, HeadAt) else None


def _layers(nodes: Sequence[Component]) -> dict[int, tuple[bool, bool]]:
    """Of each layer, whether its heads and its MLP are among the nodes."""
    kinds = {(node.layer, type(node)) for node in nodes}
    return {layer: ((layer, HeadAt) in kinds, (layer, MlpAt) in kinds) for layer in sorted({k[0] for k in kinds})}
