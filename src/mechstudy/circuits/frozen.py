"""The linearised model run forwards through the native modules, to check what graphs predict.

It shares no code with the backward pass of `rows`: attention runs natively with a frozen pattern, norms and MLP
outputs are replaced by hooks. Removing a feature here must move every target by minus its edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mechstudy.circuits.linearised import LinearisedPrompt
from mechstudy.models.architectures import LinearNorm
from mechstudy.models.attention import frozen_patterns
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.sites import Site

# (layer, position, vectors [n, D]): added to what the MLP sites of n layers, from this one up, write at the position.
Delta = tuple[int, int, Tensor]


@dataclass(frozen=True)
class FrozenOutput:
    """What each layer's features ``read`` and ``final_BTD``, the final-normed residual, of the perturbed runs.

    Both [B, T, D]; ``read[layer]`` is ``mlp_in``, or ``resid_mid`` where features read that.
    """

    read: dict[int, Tensor]
    final_BTD: Tensor


class FrozenForward:
    """Runs one linearised prompt with perturbations, one per row of the batch."""

    def __init__(self, model: LanguageModel, prompt: LinearisedPrompt) -> None:
        self.model, self.prompt = model, prompt
        sites = [Site("mlp_out", layer) for layer in range(model.n_layers)]
        activations = model.forward(prompt.tokens_T[None], capture=sites, logits_at=None).activations
        self._clean_mlp_out = [activations[site][0] for site in sites]

    @torch.no_grad()
    def run(self, deltas: Sequence[Delta]) -> FrozenOutput:
        """One row per delta (one clean row when there is none)."""
        model, prompt = self.model, self.prompt
        rows = max(1, len(deltas))
        mlp_in: dict[int, Tensor] = {}
        with ExitStack() as stack:
            edits = {}
            for layer, x in enumerate(prompt.layers):
                block = model.blocks[layer]
                self._freeze_norm(stack, block.norm_attn, x.norm_attn)
                if x.norm_attn_post is not None:
                    self._freeze_norm(stack, block.norm_attn_post, x.norm_attn_post)
                self._freeze_norm(stack, block.norm_mlp, x.norm_mlp)
                edits[Site("mlp_in", layer)] = self._keep(mlp_in, layer)
                edits[Site("mlp_out", layer)] = self._written(mlp_in, layer, deltas)
            self._freeze_norm(stack, model.final_norm, prompt.final_norm)
            patterns = {layer: x.pattern_QTS[None] for layer, x in enumerate(prompt.layers)}
            stack.enter_context(frozen_patterns(model.hf, patterns))
            final: list[Tensor] = []
            stack.callback(model.final_norm.register_forward_hook(lambda _m, _a, out: final.append(out)).remove)
            mid = [Site("resid_mid", layer) for layer, x in enumerate(prompt.layers) if x.mid_TD is not None]
            out = model.forward(prompt.tokens_T.expand(rows, -1), capture=mid, edits=edits, logits_at=None)
        return FrozenOutput(mlp_in | {site.layer: out.activations[site] for site in mid}, final[0])

    def _freeze_norm(self, stack: ExitStack, module: nn.Module | None, norm: LinearNorm) -> None:
        if module is None:
            return
        stack.callback(module.register_forward_hook(lambda _m, args, _out: norm.forward(args[0])).remove)

    def _keep(self, store: dict[int, Tensor], layer: int) -> Edit:
        def edit(x_BTD: Tensor) -> Tensor:
            store[layer] = x_BTD
            return x_BTD

        return edit

    def _written(self, mlp_in: dict[int, Tensor], layer: int, deltas: Sequence[Delta]) -> Edit:
        """The clean MLP output, plus what the skip path adds, plus this layer's perturbations."""
        x = self.prompt.layers[layer]

        def edit(computed_BTD: Tensor) -> Tensor:
            out = self._clean_mlp_out[layer].expand_as(computed_BTD).clone()
            if x.skip_DD is not None:
                out += ((mlp_in[layer] - x.mlp_in_TD) @ x.skip_DD.T) * x.valid_T[:, None]
            for row, (at, position, vectors) in enumerate(deltas):
                if 0 <= layer - at < len(vectors):
                    out[row, position] += vectors[layer - at]
            return out

        return edit
