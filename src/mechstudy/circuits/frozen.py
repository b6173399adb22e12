"""One prompt run forwards through the native modules with its nodes held, to check what graphs predict.

It shares no code with the backward pass of `rows`: attention runs natively with a frozen pattern, norms and what nodes
write are replaced by hooks. Changing what a node writes moves every target by what the node does directly: all other
nodes keep their clean values. With everything else frozen that is the node's edge; patterns, or patterns and all the
rest, may run live instead (path patching, Goldowsky-Dill et al. 2304.05969).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mechstudy.circuits.active_nodes import ActiveNeurons
from mechstudy.circuits.linear_prompt import LinearisedPrompt, LinearLayer
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
    """Runs one linearised prompt with perturbations, one or several per row of the batch.

    Args:
        model: the model.
        prompt: the prompt; what its nodes write is held.
        live: patterns, norms, and MLPs that are no nodes, are the model's own, not what equals them at the prompt.
            Neurons are then held, read and perturbed in ``mlp_act``.
    """

    def __init__(self, model: LanguageModel, prompt: LinearisedPrompt, *, live: bool = False) -> None:
        self.model, self.prompt, self._live = model, prompt, live
        kinds = ("resid_pre", "attn_out", "mlp_in", "mlp_out", "resid_post")
        sites = [Site(kind, layer) for layer in range(model.n_layers) for kind in kinds]
        neurons = [layer for layer, x in enumerate(prompt.layers) if isinstance(x.nodes, ActiveNeurons)]
        sites += [Site("mlp_act", layer) for layer in neurons]
        self._score_norms: dict[nn.Module, LinearNorm] = {}
        with recorded_patterns(model.hf), ExitStack() as stack:  # the attention whose patterns are frozen
            for norm in self._norms_of_scores():
                stack.callback(norm.register_forward_hook(self._keep_score_norm).remove)
            self._clean = model.forward(prompt.tokens_T[None], capture=sites, logits_at=None).activations

    def run(self, deltas: Sequence[Delta]) -> FrozenOutput:
        """One row per delta (one clean row when there is none)."""
        return self.run_rows([[delta] for delta in deltas] or [[]])

    def run_rows(self, rows: Sequence[Sequence[Delta]]) -> FrozenOutput:
        """One row per list of deltas, which act together. Layers below the lowest one are not run."""
        return self._run(rows, self._patterns())

    def run_through_scores(
        self, rows: Sequence[Sequence[Delta]], layers: Collection[int]
    ) -> tuple[FrozenOutput, FrozenOutput]:
        """`run_rows`, and the same with patterns of some layers that follow what reaches their queries and keys.

        What reaches them is that of the first run: in the second, patterns change along paths with one score each, as
        QK edges do, but for the curvature of the softmax. Scales of the norms of queries and keys are frozen.
        """
        assert not self._live, "live patterns follow all that reaches them"
        own: dict[int, Tensor] = {}
        frozen = self._run(rows, self._patterns(), own)
        moved = {layer: own.get(layer) if layer in layers else None for layer in range(self.model.n_layers)}
        patterns = {layer: x if moved[layer] is None else moved[layer] for layer, x in self._patterns().items()}
        return frozen, self._run(rows, patterns)

    @torch.no_grad()
    def _run(
        self,
        rows: Sequence[Sequence[Delta]],
        patterns: Mapping[int, Tensor | None],
        own: dict[int, Tensor] | None = None,
    ) -> FrozenOutput:
        model, prompt = self.model, self.prompt
        start = min((layer for row in rows for layer, _, _ in row), default=0)
        held: dict[Site, Tensor] = {}
        with ExitStack() as stack:
            edits: dict[Site, Edit] = {}
            for layer in range(start, model.n_layers):
                if not self._live:
                    self._freeze_norms(stack, layer)
                if self._is_mlp_unused(layer):
                    block = model.blocks[layer]
                    block.mlp.forward = _identity
                    stack.callback(block.mlp.__dict__.pop, "forward")
                edits |= self._edits(held, layer, rows)
            if not self._live:
                self._freeze_norm(stack, model.final_norm, prompt.final_norm)
            stack.enter_context(frozen_patterns(model.hf, patterns, own))
            final: list[Tensor] = []
            stack.callback(model.final_norm.register_forward_hook(lambda _m, _a, out: final.append(out)).remove)
            read_at = {layer: self.site_read(layer) for layer in range(model.n_layers)}
            mid = [site for layer, site in read_at.items() if site.kind == "resid_mid" and layer >= start]
            resid = self._clean[Site("resid_pre", start)].expand(len(rows), -1, -1)
            out = model.forward(
                prompt.tokens_T.expand(len(rows), -1), capture=mid, edits=edits, logits_at=None, start=(start, resid)
            )
        held |= {site: out.activations[site] for site in mid}
        below = {layer: self._unchanged(site).expand(len(rows), -1, -1) for layer, site in read_at.items()}
        return FrozenOutput(
            {layer: held[site] if layer >= start else below[layer] for layer, site in read_at.items()}, final[0]
        )

    def site_read(self, layer: int) -> Site:
        """Where ``read[layer]`` is read."""
        return Site("mlp_act" if self._holds_neurons(layer) else self.prompt.layers[layer].reads, layer)

    def _patterns(self) -> dict[int, Tensor | None]:
        """The frozen pattern of each layer; None lets a layer attend as its queries and keys say."""
        return {layer: None if self._live else x.pattern_QTS[None] for layer, x in enumerate(self.prompt.layers)}

    def _unchanged(self, site: Site) -> Tensor:
        if site.kind == "resid_mid":
            return self._clean[Site("resid_pre", site.layer)] + self._clean[Site("attn_out", site.layer)]
        return self._clean[site]

    def _holds_neurons(self, layer: int) -> bool:
        """Whether neurons are held where they are, and not by what they write."""
        return self._live and isinstance(self.prompt.layers[layer].nodes, ActiveNeurons)

    def _is_mlp_unused(self, layer: int) -> bool:
        """Whether everything that the MLP computes is replaced. Mixtures of experts return more than a tensor."""
        x = self.prompt.layers[layer]
        if self.model.blocks[layer].mlp_down is None:
            return False
        if not self._live:
            return True
        return x.is_replaced and not _reads_its_site(x) and not self._holds_neurons(layer)

    # ------------------------------------------------------------------- norms

    def _norms_of_scores(self) -> list[nn.Module]:
        """The norms of queries and keys, where the family has them and scales are frozen."""
        norms = (getattr(block.attn, name, None) for block in self.model.blocks for name in block.arch.qk_norms)
        return [] if self._live else [norm for norm in norms if norm is not None]

    def _keep_score_norm(self, module: nn.Module, args: tuple[Tensor, ...], _out: Tensor) -> None:
        self._score_norms[module] = self.model.linear_norm(module, args[0])

    def _freeze_norms(self, stack: ExitStack, layer: int) -> None:
        x, block = self.prompt.layers[layer], self.model.blocks[layer]
        self._freeze_norm(stack, block.norm_attn, x.norm_attn)
        if x.norm_attn_post is not None:
            self._freeze_norm(stack, block.norm_attn_post, x.norm_attn_post)
        self._freeze_norm(stack, block.norm_mlp, x.norm_mlp)
        for name in block.arch.qk_norms:
            norm = getattr(block.attn, name, None)
            if norm in self._score_norms:
                self._freeze_norm(stack, norm, self._score_norms[norm])

    def _freeze_norm(self, stack: ExitStack, module: nn.Module | None, norm: LinearNorm) -> None:
        if module is None:
            return
        stack.callback(module.register_forward_hook(lambda _m, args, _out: norm.forward(args[0])).remove)

    # ------------------------------------------------------------------- nodes

    def _edits(self, held: dict[Site, Tensor], layer: int, rows: Sequence[Sequence[Delta]]) -> Mapping[Site, Edit]:
        """The edits of one layer: what it reads is kept, what its nodes write is held."""
        x = self.prompt.layers[layer]
        edits: dict[Site, Edit] = {Site("mlp_in", layer): _kept(held, Site("mlp_in", layer))}
        if self._holds_neurons(layer):
            edits[Site("mlp_act", layer)] = self._nodes(held, Site("mlp_act", layer), rows)
            return edits
        if not self._live or (x.is_replaced and not _reads_its_site(x)):
            edits[Site("mlp_out", layer)] = self._mlp_out(held, layer, rows)
        if _reads_its_site(x) and (self._live or x.writes != "mlp_out"):
            edits[Site(x.writes, layer)] = self._nodes(held, Site(x.writes, layer), rows)
        return edits

    def _mlp_out(self, held: dict[Site, Tensor], layer: int, rows: Sequence[Sequence[Delta]]) -> Edit:
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
            return _plus(out, layer, rows)

        return edit

    def _nodes(self, held: dict[Site, Tensor], site: Site, rows: Sequence[Sequence[Delta]]) -> Edit:
        """What the nodes' site holds: the clean activations and perturbations, whatever reaches it."""

        def edit(computed_BTD: Tensor) -> Tensor:
            held[site] = computed_BTD
            return _plus(self._clean[site].expand_as(computed_BTD).clone(), site.layer, rows)

        return edit


def _reads_its_site(x: LinearLayer) -> bool:
    """Whether the nodes are those of an SAE, whose site keeps what it reads and what it writes."""
    return x.is_replaced and x.reads == x.writes


def _identity(x: Tensor) -> Tensor:
    return x


def _kept(held: dict[Site, Tensor], site: Site) -> Edit:
    def edit(x_BTD: Tensor) -> Tensor:
        held[site] = x_BTD
        return x_BTD

    return edit


def _plus(out_BTD: Tensor, layer: int, rows: Sequence[Sequence[Delta]]) -> Tensor:
    for row, deltas in enumerate(rows):
        for at, position, vectors in deltas:
            if 0 <= layer - at < len(vectors):
                out_BTD[row, position] += vectors[layer - at]
    return out_BTD
