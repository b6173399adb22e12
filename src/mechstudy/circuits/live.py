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
from mechstudy.circuits.site_gradients import site_gradients
from mechstudy.circuits.targets import Explained
from mechstudy.dictionaries.neurons import Basis, Neurons
from mechstudy.models.graph_memory import should_checkpoint
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.sites import Site


@torch.enable_grad()
def output_values(
    model: LanguageModel,
    tokens_BT: Int[Tensor, "b t"],
    explained: Explained,
    edits: Mapping[Site, Edit],
    checkpointing: str = "auto",
) -> Float[Tensor, " b"]:
    """What is explained, of every row of a run with edits, with its gradient for tensors that the edits introduce.

    Rows are computed as one batch. ``checkpointing`` (`models.graph_memory.should_checkpoint`): on, off or auto.
    """
    again = should_checkpoint(checkpointing, model, *tokens_BT.shape)
    n = explained.n_logits
    normed: list[Tensor] = []
    hook = model.final_norm.register_forward_hook(lambda _m, _a, out: normed.append(out))
    try:
        logits = model.forward(
            tokens_BT, edits=edits, grad=True, checkpointing=again, logits_at="last" if n == 1 else n
        ).logits
    finally:
        hook.remove()
    assert logits is not None
    rows = zip(logits[:, None] if n == 1 else logits, normed[0][:, -n:], strict=True)
    return torch.stack([explained.value(logits_PV, normed_PD) for logits_PV, normed_PD in rows])


def explained_gradients(
    model: LanguageModel,
    tokens_T: Int[Tensor, " t"],
    explained: Explained,
    sites: Sequence[Site],
    checkpointing: str = "auto",
) -> dict[Site, Float[Tensor, "t d"]]:
    """Gradient of what is explained with respect to the value of each site, unfrozen: everything above responds.

    ``checkpointing`` (`models.graph_memory.should_checkpoint`): on, off or auto. The gradient is the same.
    """

    def values(edits: Mapping[Site, Edit]) -> Tensor:
        return output_values(model, tokens_T[None], explained, edits, checkpointing)

    gradients = site_gradients(model, (1, len(tokens_T)), sites, values)
    return {site: gradient_1TD[0] for site, gradient_1TD in gradients.at.items()}


@torch.no_grad()
def live_effects(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    graph: Graph,
    explained: Explained,
    checkpointing: str = "auto",
    gradients: Mapping[Site, Tensor] | None = None,
) -> Float[Tensor, " m"]:
    """First-order effect of each feature column on what is explained, live: gradient x what the feature writes.

    It is minus the predicted change of what is explained where the feature is set to zero.

    Args:
        gradients: `explained_gradients` at `sites_written` of the dictionaries, if they are there already.
    """
    effects = torch.zeros(graph.index.n_features, dtype=graph.A_RS.dtype)
    if not dictionaries:
        return effects
    if gradients is None:
        tokens = torch.tensor(graph.tokens, device=model.device)
        gradients = explained_gradients(model, tokens, explained, sites_written(dictionaries), checkpointing)
    for layer, basis in dictionaries.items():
        columns = graph.index.feature_slices[layer]
        features, positions = graph.feature_id_S[columns], graph.feature_position_S[columns]
        if isinstance(basis, Neurons):
            parts = [gradients[Site.parse(basis.sites_out[0])][positions, features].cpu()]
        else:
            parts = []
            for name, rows in zip(basis.sites_out, basis.writes(features), strict=True):
                at = gradients[Site.parse(name)][positions]
                parts.append((rows.to(at) * at).sum(-1).cpu())
        effects[columns] = (reduce(add, parts) * graph.activation_S[columns]).to(effects)
    return effects


def sites_written(dictionaries: Mapping[int, Basis]) -> list[Site]:
    """The sites that features write, in order."""
    return sorted({Site.parse(name) for one in dictionaries.values() for name in one.sites_out})
