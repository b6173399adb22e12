"""What replacing a circuit does to other behaviours and to other text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.components import HeadAt, MlpAt
from mechstudy.circuits.donors import DonorSource
from mechstudy.circuits.named_positions import ALL, AlignedPrompt, NamedPositions
from mechstudy.circuits.universe import NodeSet
from mechstudy.core.seeds import numpy_generator
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.feature_nodes import ErrorAt
from mechstudy.interventions.features import FeatureAt
from mechstudy.interventions.keep_only import keep_only_values
from mechstudy.interventions.metric import kl_divergence
from mechstudy.interventions.node_universe import Node, node_set
from mechstudy.models.language_model import LanguageModel
from mechstudy.statistics.bootstrap import Estimate, bootstrap_of_sums


@dataclass(frozen=True)
class Elsewhere:
    """What is lost of each behaviour when the circuit's components are replaced at every token by their means there.

    Attributes:
        lost: by behaviour, the circuit's own first: the share of its clean contrast.
        text_kl: the mean KL divergence of next-token distributions on other text, in nats; None without text.
    """

    lost: Mapping[str, Estimate]
    text_kl: float | None = None

    @property
    def record(self) -> dict[str, Any]:
        """As it is written to ``verdict.json``."""
        rows = {name: {"lost": e.value, "ci": list(e.ci) if e.ci else None, "n": e.n} for name, e in self.lost.items()}
        return {"behaviours": rows, "text_kl": self.text_kl}


def elsewhere(
    model: LanguageModel,
    members: Sequence[Node],
    bases: Mapping[int, Basis],
    behaviours: Mapping[str, Sequence[PromptPair]],
    *,
    texts: Sequence[Sequence[int]] = (),
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    batch_tokens: int = 4096,
) -> Elsewhere:
    """Replace the components of a circuit, at every token, on the prompts of behaviours and on text.

    Positions of one behaviour do not exist in another, so that a feature or head counts as a member wherever it is.
    Each is replaced by its mean over the tokens of the same prompts.

    Args:
        model: the model.
        members: the circuit's nodes.
        bases: of its features.
        behaviours: test prompts by behaviour.
        texts: documents as token ids, of one length.
        n_resamples: of the bootstrap.
        level: of intervals.
        seed: of the bootstrap.
        batch_tokens: tokens run at a time.
    """
    nodes, kept_N = _everywhere(model, members, bases)
    lost: dict[str, Estimate] = {}
    for name, pairs in behaviours.items():
        means = DonorSource(model, [nodes], "mean", nodes.positions, pairs, batch_tokens=batch_tokens)
        keep_CN = torch.stack([torch.ones_like(kept_N), ~kept_N])
        clean, without = keep_only_values(model, pairs, nodes, keep_CN, means, batch_tokens=batch_tokens).numpy()
        lost[name] = bootstrap_of_sums(
            lambda sums: (sums[0] - sums[1]) / sums[0],
            [clean, without],
            [pair.group for pair in pairs],
            numpy_generator(seed, "verdict", f"elsewhere {name}"),
            n_resamples=n_resamples,
            level=level,
        )
    return Elsewhere(lost, _text_kl(model, nodes, kept_N, texts) if len(texts) else None)


def _everywhere(model: LanguageModel, members: Sequence[Node], bases: Mapping[int, Basis]) -> tuple[NodeSet, Tensor]:
    """The members' components at all tokens as nodes, and which nodes of their set they are."""
    wanted: set[Node] = {replace(node, position=ALL) for node in members}
    layers = {node.layer for node in wanted if isinstance(node, FeatureAt | ErrorAt)}
    nodes = node_set(
        model,
        NamedPositions.whole(),
        {layer: bases[layer] for layer in layers},
        [node for node in wanted if isinstance(node, FeatureAt)],
        errors=any(isinstance(node, ErrorAt) for node in wanted),
        heads=any(isinstance(node, HeadAt) for node in wanted),
        mlps=any(isinstance(node, MlpAt) for node in wanted),
    )
    return nodes, torch.tensor([node in wanted for node in nodes.nodes])


@torch.no_grad()
def _text_kl(model: LanguageModel, nodes: NodeSet, kept_N: Tensor, texts: Sequence[Sequence[int]]) -> float:
    prompts = [AlignedPrompt(f"text {i}", tuple(row), (ALL,) * len(row)) for i, row in enumerate(texts)]
    donors = DonorSource(model, [nodes], "mean", nodes.positions, prompts)
    tokens_BT = torch.tensor([list(row) for row in texts])
    edits = nodes.edits(kept_N[None].expand(len(texts), -1), donors.donors(prompts))
    clean = model.forward(tokens_BT, logits_at="all").logits
    edited = model.forward(tokens_BT, edits=edits, logits_at="all").logits
    assert clean is not None and edited is not None
    return float(kl_divergence(clean.flatten(0, 1), edited.flatten(0, 1)).mean())
