"""The linearised model run forwards through the native modules, to check what graphs predict.

It shares no code with the backward pass of `rows`: attention runs natively with a frozen pattern, norms and what nodes
write are replaced by hooks. Removing a node here must move every target by minus its edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mechstudy.circuits.linear_prompt import LinearisedPrompt
from mechstudy.models.architectures import LinearNorm
from mechstudy.models.attention import frozen_patterns, recorded_patterns
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.sites import Site

# (layer, position, vectors [n, D]): added to what the nodes' sites of n layers, from this one up, hold at the position.
Delta = tuple[int, int, Tensor]


@dataclass(frozen=True)
class FrozenOutput:
    """What each layer's nodes ``read`` and ``final_BTD``, the final-normed residual, of the perturbed runs.

    Both [B, T, D]; ``read[layer]`` is ``mlp_in`` where the layer has no nodes.
    """

    read: dict[int, Tensor]
    final_BTD: Tensor


class FrozenForward:
    """Runs one linearised prompt with perturbations, one per row of the batch."""

    def __init__(self, model: LanguageModel, prompt: LinearisedPrompt) -> None:
        self.model, self.prompt = model, prompt
        kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        sites = [Site(kind, layer) for layer in range(model.n_layers) for kind in kinds]
        with recorded_patterns(model.hf):  # the attention whose patterns are frozen
            self._clean = model.forward(prompt.tokens_T[None], capture=sites, logits_at=None).activations

    @torch.no_grad()
    def run(self, deltas: Sequence[Delta]) -> FrozenOutput:
        """One row per delta (one clean row when there is none)."""
        model, prompt = self.model, self.prompt
        rows = max(1, len(deltas))
        held: dict[Site, Tensor] = {}
        with ExitStack() as stack:
            edits: dict[Site, Edit] = {}
            for layer, x in enumerate(prompt.layers):
                block = model.blocks[layer]
                self._freeze_norm(stack, block.norm_attn, x.norm_attn)
                if x.norm_attn_post is not None:
                    self._freeze_norm(stack, block.norm_attn_post, x.norm_attn_post)
                self._freeze_norm(stack, block.norm_mlp, x.norm_mlp)
                edits[Site("mlp_in", layer)] = _kept(held, Site("mlp_in", layer))
                edits[Site("mlp_out", layer)] = self._mlp_out(held, layer, deltas)
                if x.is_replaced and x.writes != "mlp_out":
                    edits[Site(x.writes, layer)] = self._nodes(held, Site(x.writes, layer), deltas)
            self._freeze_norm(stack, model.final_norm, prompt.final_norm)
            stack.enter_context(frozen_patterns(model.hf, self.patterns()))
            final: list[Tensor] = []
            stack.callback(model.final_norm.register_forward_hook(lambda _m, _a, out: final.append(out)).remove)
            mid = [Site("resid_mid", layer) for layer, x in enumerate(prompt.layers) if x.reads == "resid_mid"]
            out = model.forward(prompt.tokens_T.expand(rows, -1), capture=mid, edits=edits, logits_at=None)
        held |= {site: out.activations[site] for site in mid}
        return FrozenOutput({layer: held[Site(x.reads, layer)] for layer, x in enumerate(prompt.layers)}, final[0])

    def patterns(self) -> dict[int, Tensor | None]:
        """The frozen pattern of each layer; None lets a layer attend as its queries and keys say."""
        return {layer: x.pattern_QTS[None] for layer, x in enumerate(self.prompt.layers)}

    def _freeze_norm(self, stack: ExitStack, module: nn.Module | None, norm: LinearNorm) -> None:
        if module is None:
            return
        stack.callback(module.register_forward_hook(lambda _m, args, _out: norm.forward(args[0])).remove)

    def _mlp_out(self, held: dict[Site, Tensor], layer: int, deltas: Sequence[Delta]) -> Edit:
        """The clean MLP output, plus what linear paths add, plus perturbations of nodes that write here."""
        x = self.prompt.layers[layer]
        nodes_here = x.is_replaced and x.writes == "mlp_out"
        path = x.skip if nodes_here else x.mlp

        def edit(computed_BTD: Tensor) -> Tensor:
            mlp_in = held[Site("mlp_in", layer)]
            out = self._clean[Site("mlp_out", layer)].expand_as(computed_BTD).clone()
            if path is not None:
                out += path.forward(mlp_in) - path.forward(x.mlp_in_TD)
            if not nodes_here:
                return out
            if x.reads == "mlp_out":  # what an SAE reads is computed from a linear MLP, as its targets are
                assert x.mlp is not None
                clean = self._clean[Site("mlp_out", layer)]
                held[Site("mlp_out", layer)] = clean + x.mlp.forward(mlp_in) - x.mlp.forward(x.mlp_in_TD)
            return _plus(out, layer, deltas)

        return edit

    def _nodes(self, held: dict[Site, Tensor], site: Site, deltas: Sequence[Delta]) -> Edit:
        """What an SAE's site holds: the clean activations and perturbations, whatever reaches it."""

        def edit(computed_BTD: Tensor) -> Tensor:
            held[site] = computed_BTD
            return _plus(self._clean[site].expand_as(computed_BTD).clone(), site.layer, deltas)

        return edit


def _kept(held: dict[Site, Tensor], site: Site) -> Edit:
    def edit(x_BTD: Tensor) -> Tensor:
        held[site] = x_BTD
        return x_BTD

    return edit


def _plus(out_BTD: Tensor, layer: int, deltas: Sequence[Delta]) -> Tensor:
    for row, (at, position, vectors) in enumerate(deltas):
        if 0 <= layer - at < len(vectors):
            out_BTD[row, position] += vectors[layer - at]
    return out_BTD
