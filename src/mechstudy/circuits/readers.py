"""Gradients of the answers' contrast with respect to what single heads and MLPs read of the residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.behaviours.contrast import Contrast
from mechstudy.circuits.site_gradients import contrast_gradients
from mechstudy.models.architectures import Block
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.sites import Site

_Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class ReaderGradients:
    """Gradients [B, T, D] with respect to the residual stream as one component reads it, through that one alone."""

    heads: Mapping[int, Sequence[Float[Tensor, "b t d"]]]
    mlps: Mapping[int, Float[Tensor, "b t d"]]
    logits: Float[Tensor, "b t d"]

    def of(self, layer: int, head: int | None) -> Float[Tensor, "b t d"]:
        """That of a head, or of the MLP for None."""
        return self.mlps[layer] if head is None else self.heads[layer][head]


def reader_gradients(
    model: LanguageModel,
    tokens_BT: Int[Tensor, "b t"],
    of_row: Sequence[Contrast],
    edits: Mapping[Site, Edit],
    layers: Mapping[int, tuple[bool, bool]],
) -> ReaderGradients:
    """The gradient where each head and MLP reads, and at the last residual stream.

    The live run's gradient at a component's output is passed back through the component alone, norm included: through
    an MLP and its norm; through a layer's attention, of one head's output at a time.

    Args:
        model: the model.
        tokens_BT: token ids.
        of_row: the contrast of each row's answers.
        edits: of the run, by site.
        layers: by layer, whether the gradients of its heads and of its MLP are asked for.
    """
    end = Site("resid_post", model.n_layers - 1)
    wanted = [Site("attn_heads", layer) for layer, (heads, _) in layers.items() if heads]
    wanted += [Site("mlp_in", layer) for layer, (_, mlp) in layers.items() if mlp]
    at = contrast_gradients(model, tokens_BT, of_row, [*wanted, end], edits=edits).at
    read = {layer: _mlp_reads(model.blocks[layer], layer) for layer in layers}
    sites = {Site("resid_pre", layer) for layer in layers} | set(read.values())
    with _attention_calls(model, layers) as calls:
        x = model.forward(tokens_BT, capture=sorted(sites), edits=edits, logits_at=None).activations
    heads: dict[int, list[Tensor]] = {}
    mlps: dict[int, Tensor] = {}
    for layer, (has_heads, has_mlp) in layers.items():
        block = model.blocks[layer]
        if has_heads:
            z, leaf = _heads_of(block, x[Site("resid_pre", layer)], calls[layer])
            heads[layer] = _by_head(z, leaf, at[Site("attn_heads", layer)], model.n_heads)
        if has_mlp:
            mlps[layer] = _through_norm(block.norm_mlp, x[read[layer]], at[Site("mlp_in", layer)])
    return ReaderGradients(heads, mlps, at[end])


def _mlp_reads(block: Block, layer: int) -> Site:
    return Site("resid_pre" if block.parallel else "resid_mid", layer)


def _through_norm(norm: Any, x: Tensor, gradient: Tensor) -> Tensor:
    if norm is None:
        return gradient
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(norm(leaf), leaf, gradient)[0]


@contextmanager
def _attention_calls(model: LanguageModel, layers: Mapping[int, Any]) -> Iterator[dict[int, _Call]]:
    """Inside the block, forward passes note what each layer's attention is called with."""
    calls: dict[int, _Call] = {}
    with ExitStack() as stack:
        for layer in layers:

            def note(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int = layer) -> None:
                calls[layer] = (args, kwargs)

            stack.callback(model.blocks[layer].attn.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield calls


def _heads_of(block: Block, resid_BTD: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
    """What a layer's heads make of a residual stream, as a function of it."""
    caught: list[Tensor] = []
    args, kwargs = call
    with torch.enable_grad(), ExitStack() as stack:
        leaf = resid_BTD.detach().requires_grad_()
        normed = leaf if block.norm_attn is None else block.norm_attn(leaf)
        stack.callback(block.attn_proj.register_forward_pre_hook(lambda _m, a: caught.append(a[0])).remove)
        if "hidden_states" in kwargs:
            block.attn(*args, **{**kwargs, "hidden_states": normed})
        else:
            block.attn(normed, *args[1:], **kwargs)
    return caught[0], leaf


def _by_head(z: Tensor, leaf: Tensor, gradient: Tensor, n_heads: int) -> list[Tensor]:
    gradients = []
    for head, part in enumerate(torch.chunk(gradient, n_heads, -1)):
        masked = torch.zeros_like(gradient)
        width = part.shape[-1]
        masked[..., head * width : (head + 1) * width] = part
        gradients.append(torch.autograd.grad(z, leaf, masked, retain_graph=True)[0])
    return gradients
