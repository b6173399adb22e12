"""First-order effects of features in the live model, which include what a graph with frozen attention cannot show.

A graph follows values, not queries and keys: a feature that moves the target by changing where a head attends has no
edge for that. The gradient of the unfrozen model has that path too (attribution patching, Nanda 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.circuits.graph import Graph
from mechstudy.circuits.targets import Explained
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.models.graph_memory import should_checkpoint
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


def live_gradients(
    model: LanguageModel,
    tokens_T: Int[Tensor, " t"],
    explained: Explained,
    layers: Sequence[int],
    checkpointing: str = "auto",
) -> dict[int, Float[Tensor, "t d"]]:
    """Gradient of what is explained with respect to each layer's ``mlp_out``, unfrozen.

    ``checkpointing`` (`models.graph_memory.should_checkpoint`): on, off or auto. The gradient is the same.
    """
    shape = (1, len(tokens_T), model.d_model)
    added = {layer: torch.zeros(shape, dtype=model.dtype, device=model.device, requires_grad=True) for layer in layers}
    edits = {Site("mlp_out", layer): (lambda x, zero=zero: x + zero) for layer, zero in added.items()}
    again = should_checkpoint(checkpointing, model, 1, len(tokens_T))
    n = explained.n_logits
    normed: list[Tensor] = []
    hook = model.final_norm.register_forward_hook(lambda _m, _a, out: normed.append(out))
    try:
        logits = model.forward(
            tokens_T[None], edits=edits, grad=True, checkpointing=again, logits_at="last" if n == 1 else n
        ).logits
    finally:
        hook.remove()
    assert logits is not None
    value = explained.value(logits if n == 1 else logits[0], normed[0][0, -n:])
    gradients = torch.autograd.grad(value, list(added.values()))
    return {layer: gradient[0] for layer, gradient in zip(added, gradients, strict=True)}


@torch.no_grad()
def live_effects(
    model: LanguageModel,
    dictionaries: Mapping[int, Dictionary],
    graph: Graph,
    explained: Explained,
    checkpointing: str = "auto",
) -> Float[Tensor, " m"]:
    """First-order effect of each feature column on what is explained, live: gradient x what the feature writes."""
    effects = torch.zeros(graph.index.n_features, dtype=graph.A_RS.dtype)
    if not dictionaries:
        return effects
    tokens = torch.tensor(graph.tokens, device=model.device)
    with torch.enable_grad():
        layers = {layer + ahead for layer, one in dictionaries.items() for ahead in range(len(one.sites_out))}
        gradients = live_gradients(model, tokens, explained, sorted(layers), checkpointing)
    for layer, dictionary in dictionaries.items():
        columns = graph.index.feature_slices[layer]
        parts = []
        for ahead, rows in enumerate(dictionary.writes(graph.feature_id_S[columns])):
            at = gradients[layer + ahead][graph.feature_position_S[columns]]
            parts.append((rows.to(at) * at).sum(-1).cpu())
        effects[columns] = (reduce(add, parts) * graph.activation_S[columns]).to(effects)
    return effects
