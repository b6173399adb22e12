"""What a behaviour's nodes are replaced by to predict their effects, and whether first order is good enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.config import ContrastConfig
from mechstudy.circuits.contrast import Replaced
from mechstudy.circuits.donors import DonorSource, Replacement
from mechstudy.circuits.named_positions import AlignedPrompt, NamedPositions
from mechstudy.circuits.node_effects import NodeEffects
from mechstudy.circuits.node_names import position_names
from mechstudy.circuits.node_sets import Nodes
from mechstudy.circuits.node_values import NodeRecorder, node_values
from mechstudy.circuits.question import Question
from mechstudy.core.errors import MechstudyError
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


@dataclass(frozen=True)
class Replacements:
    """Predicts effects of replacing the nodes of a behaviour's prompts.

    ``source`` gives the values of a `NodeRecorder`. ``steps``: of integrated gradients; 0 for first order.
    ``layer_gap``: what first order misses of the measured changes of whole layers, as a share of them; ``path_gap``:
    the same of integrated gradients, of the change of replacing everything; None where not measured.
    """

    model: LanguageModel
    nodes: Mapping[int, Nodes]
    source: DonorSource
    steps: int = 0
    layer_gap: float | None = None
    path_gap: float | None = None
    checkpointing: str = "auto"

    @classmethod
    def of_pairs(
        cls, model: LanguageModel, nodes: Mapping[int, Nodes], to: Replacement, steps: int = 0
    ) -> Replacements:
        """By values that need no other prompts: the pair's ``corrupted`` prompt's, or ``zero``."""
        return cls(model, nodes, DonorSource(model, [NodeRecorder(nodes)], to, NamedPositions.whole()), steps)

    def effects(self, question: Question, gradients: Mapping[Site, Tensor] | None = None) -> NodeEffects:
        """Predicted effects on one prompt.

        Args:
            gradients: for first order: `explained_gradients` at `written_sites`, if they are there already.
        """
        replaced = self.replaced(question)
        effects = replaced.integrated(self.steps) if self.steps else replaced.first_order(gradients)
        return replace(effects, other_is_a_run=self.source.to == "corrupted")

    def replaced(self, question: Question) -> Replaced:
        """The prompt with the values that its nodes are replaced by."""
        assert question.explained is not None
        tokens_T = torch.tensor(question.tokens, device=self.model.device)
        own = node_values(self.model, self.nodes, tokens_T)
        names = position_names(question.positions, len(question.tokens), question.n_prompt)
        prompt = AlignedPrompt(
            question.prompt, question.tokens, tuple(names), question.corrupted, question.corrupted_at
        )
        other = own.replaced_by(self.source.donors([prompt])) if self.nodes else own
        return Replaced(self.model, self.nodes, tokens_T, question.explained, own, other, self.checkpointing)

    @property
    def about(self) -> dict[str, Any]:
        """As it stands in aggregate.json."""
        return {
            "replace_by": self.source.to,
            "method": "integrated" if self.steps else "first_order",
            "steps": self.steps or None,
            "layer_gap": self.layer_gap,
            "path_gap": self.path_gap,
        }


def replacements_of(
    model: LanguageModel,
    nodes: Mapping[int, Nodes],
    explained: Sequence[PromptPair],
    train: Sequence[PromptPair],
    config: ContrastConfig,
    *,
    batch_tokens: int = 4096,
    checkpointing: str = "auto",
) -> Replacements:
    """What the nodes of these pairs are replaced by, and whether effects are of first order or integrated.

    Args:
        explained: the pairs whose clean prompts are explained.
        train: the prompts over which means are taken.

    Raises:
        MechstudyError: the corrupted prompt's values are asked for, and a pair has no corrupted prompt.
    """
    lacking = next((pair for pair in explained if not pair.has_corrupted), None)
    replace_by: Replacement = "mean" if lacking else "corrupted"
    if config.replace_by != "auto":
        replace_by = config.replace_by
    if replace_by == "corrupted" and lacking:
        raise MechstudyError(
            f"prompt {lacking.id} has no corrupted prompt to take activations from",
            where="attribution.contrast.replace_by",
            fix="mean or zero (auto takes the mean here); or give corrupted prompts",
        )
    mean = replace_by == "mean"
    positions = NamedPositions.of([*train, *explained]) if mean else NamedPositions.whole()
    source = DonorSource(
        model, [NodeRecorder(nodes)], replace_by, positions, train if mean else (), batch_tokens=batch_tokens
    )
    first = Replacements(model, nodes, source, checkpointing=checkpointing)
    questions = [q for pair in explained if (q := Question.of_pair(pair)).explained is not None]
    checked = [first.replaced(question) for question in questions[: config.check_prompts]]
    layer_gap = _layer_gap(checked)
    too_large = layer_gap is not None and layer_gap > config.tolerance
    if config.method == "first_order" or (config.method == "auto" and not too_large):
        return replace(first, layer_gap=layer_gap)
    path_gap = _share_missed([(one.integrated(config.steps).total, one.change()) for one in checked])
    return replace(first, steps=config.steps, layer_gap=layer_gap, path_gap=path_gap)


def _layer_gap(checked: Sequence[Replaced]) -> float | None:
    """What first order misses of the changes measured where all nodes of one layer are replaced."""
    pairs: list[tuple[float, float]] = []
    for one in checked:
        effects = one.first_order()
        for layer in one.nodes:
            predicted = float(effects.effect_M[effects.layer_M == layer].double().sum())
            pairs.append((predicted + float(effects.error_T[layer].double().sum()), one.of_layer(layer).change()))
    return _share_missed(pairs)


def _share_missed(pairs: Sequence[tuple[float, float]]) -> float | None:
    """The sum of |predicted - measured| over that of |measured|; None where nothing changes."""
    size = sum(abs(measured) for _, measured in pairs)
    return sum(abs(predicted - measured) for predicted, measured in pairs) / size if size else None
