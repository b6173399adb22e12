"""Which neurons of a prompt become nodes: those with the largest effects through its whole linear model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.circuits.active_nodes import ActiveNeurons
from mechstudy.circuits.linear_prompt import LinearisedPrompt, LinearLayer
from mechstudy.circuits.rows import Target, placed


def total_gradients(prompt: LinearisedPrompt, targets: Sequence[Target]) -> list[Float[Tensor, "r t d"]]:
    """Gradients of targets at the model's output at every layer's ``mlp_out``, through every path.

    Patterns, norm scales and the ratios of MLPs are frozen; MLPs pass effects on, wherever they are linear maps.
    """
    g_RTD = prompt.final_norm.backward(placed(targets, prompt.tokens_TD))
    gradients: list[Tensor] = []
    for layer in reversed(prompt.layers):
        gradients.append(g_RTD)
        g_mid = g_RTD if layer.mlp is None else g_RTD + layer.through_mlp(g_RTD, whole=True)
        g_RTD = g_mid + layer.through_attention(g_RTD if layer.parallel else g_mid)
    return gradients[::-1]


def choose_neurons(
    prompts: Sequence[LinearisedPrompt],
    targets: Sequence[Sequence[Target]],
    weights_R: Float[Tensor, " r"],
    n_neurons: int,
) -> list[LinearisedPrompt]:
    """The prompts with at most ``n_neurons`` neurons as nodes; the others are the errors of their layers.

    A neuron's total effect on a target is what it holds times what the linear model makes of it along every path
    (RelP, arXiv 2508.21258); its size is weighted over the targets.

    Args:
        prompts: one; or several with the same sources, points of a path over which effects are averaged.
        targets: of each prompt.
    """
    layers = [n for n, layer in enumerate(prompts[0].layers) if isinstance(layer.nodes, ActiveNeurons)]
    if not layers:
        return list(prompts)
    per_unit_RTF: dict[int, Tensor] = {}
    for prompt, own_targets in zip(prompts, targets, strict=True):
        gradients = total_gradients(prompt, own_targets)
        for n in layers:
            here = _per_unit(prompt.layers[n], gradients[n])
            per_unit_RTF[n] = here if n not in per_unit_RTF else per_unit_RTF[n] + here
    sizes = {n: _sizes(prompts[0].layers[n], per_unit_RTF[n], weights_R) for n in layers}
    every = torch.cat(list(sizes.values()))
    if len(every) <= n_neurons:
        return list(prompts)
    smallest = every.topk(n_neurons).values[-1]
    kept = {n: size_M >= smallest for n, size_M in sizes.items()}
    return [
        replace(prompt, layers=tuple(_with_fewer(x, kept[n]) if n in kept else x for n, x in enumerate(prompt.layers)))
        for prompt in prompts
    ]


def only_neurons(prompt: LinearisedPrompt, ends: Collection[tuple[int, int, int]]) -> LinearisedPrompt:
    """The prompt with only some neurons as nodes: (layer, neuron, position). The others are errors."""
    layers = list(prompt.layers)
    for number, layer in enumerate(layers):
        nodes = layer.nodes
        if isinstance(nodes, ActiveNeurons):
            kept_M = torch.zeros_like(nodes.position_M, dtype=torch.bool)
            for _, neuron, position in (end for end in ends if end[0] == number):
                kept_M |= (nodes.feature_M == neuron) & (nodes.position_M == position)
            layers[number] = _with_fewer(layer, kept_M)
    return replace(prompt, layers=tuple(layers))


def _per_unit(layer: LinearLayer, g_RTD: Tensor) -> Tensor:
    """The effect on every target per unit that a neuron holds, [R, T, F]."""
    nodes = layer.nodes
    assert isinstance(nodes, ActiveNeurons)
    g_RTE = g_RTD if nodes.norm_post is None else nodes.norm_post.backward(g_RTD)
    return g_RTE @ nodes.mlp.down_EF


def _sizes(layer: LinearLayer, per_unit_RTF: Tensor, weights_R: Tensor) -> Tensor:
    """The size of every neuron's total effect, [M]."""
    nodes = layer.nodes
    assert isinstance(nodes, ActiveNeurons)
    per_unit_TF = torch.einsum("r,rtf->tf", weights_R.to(per_unit_RTF), per_unit_RTF.abs())
    return per_unit_TF[nodes.position_M, nodes.feature_M] * nodes.value_M.abs()


def _with_fewer(layer: LinearLayer, kept_M: Tensor) -> LinearLayer:
    """The layer with some of its neurons; what the others write together joins its errors."""
    nodes = layer.nodes
    assert isinstance(nodes, ActiveNeurons) and layer.error_TD is not None
    places = nodes.position_M[~kept_M], nodes.feature_M[~kept_M]
    left_TF = torch.zeros_like(nodes.mlp.up_scale_TF).index_put(places, nodes.value_M[~kept_M])
    written_TD = left_TF @ nodes.mlp.down_EF.T
    if nodes.norm_post is not None:
        written_TD = nodes.norm_post.linear(written_TD)
    kept = replace(
        nodes, position_M=nodes.position_M[kept_M], feature_M=nodes.feature_M[kept_M], value_M=nodes.value_M[kept_M]
    )
    return replace(layer, nodes=kept, error_TD=layer.error_TD + written_TD)
