"""Two runs of a model as a path between them: the derivatives at its points, and what sources differ by.

Nodes, that is features, neurons, errors and tokens, hold the values of the path; between two nodes everything is the
model's own: attention with its patterns, norms with their scales, skip paths, and MLPs that are no nodes. At the two
ends the runs are the model's own two runs. A target is then a function of the nodes below it, and its change from one
run to the other is the sum over sources of (what the source writes in one run - in the other) times the mean gradient
along the path (integrated gradients, Sundararajan et al. 2017). What both runs have in common has no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.circuits.active_nodes import ActiveFeatures
from mechstudy.circuits.config import Elsewhere
from mechstudy.circuits.held_path import HeldPath
from mechstudy.circuits.linear_prompt import FrozenMlp, LinearisedPrompt, LinearLayer, Skip
from mechstudy.circuits.linearised import layer_of_neurons, passes_no_effects, with_nodes_below
from mechstudy.circuits.live_attention import LiveScores
from mechstudy.circuits.node_sets import nodes_of
from mechstudy.circuits.node_values import sites_of, values_at
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.neurons import Basis, Neurons
from mechstudy.models.attention import recorded_patterns
from mechstudy.models.batches import captured
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.linear_mlp import mlp_down, tangent_mlp
from mechstudy.models.query_key import QueryKey, recorded_attention
from mechstudy.models.sites import Site

TOKENS = Site("resid_pre", 0)


@dataclass(frozen=True)
class PromptDifference:
    """Two prompts of T tokens, and the path that leads from the clean one's run (share 0) to the other's (share 1).

    ``first`` is the first position at which they differ: what is before it is the same in both. ``read_TD`` is the
    difference, clean minus corrupted, of what the nodes of a layer read.
    """

    model: LanguageModel
    bases: Mapping[int, Basis]
    tokens_T: Int[Tensor, " t"]
    elsewhere: Elsewhere
    first: int
    path: HeldPath
    tokens_TD: Float[Tensor, "t d"]
    read_TD: Mapping[int, Float[Tensor, "t w"]]

    @torch.no_grad()
    def at(self, shares: Sequence[float]) -> list[LinearisedPrompt]:
        """At points of the path: maps that are derivatives, and sources that are differences."""
        model = self.model
        layers = range(model.n_layers)
        sites = [Site(kind, layer) for layer in layers for kind in ("resid_pre", "attn_out", "mlp_in")]
        normed = [layer for layer in layers if model.blocks[layer].norm_mlp_post is not None]
        sites += [Site("mlp_act", layer) for layer in normed if model.blocks[layer].mlp_down is not None]
        end = Site("resid_post", model.n_layers - 1)
        share_B11 = torch.tensor(shares, device=model.device, dtype=model.dtype)[:, None, None]
        tokens_BT = self.tokens_T[None].expand(len(shares), -1)
        with recorded_attention(model, layers) as recorded:
            out = model.forward(tokens_BT, edits=self.path.edits(share_B11), capture=[*sites, end], logits_at="last")
        assert out.logits is not None
        by_row: list[list[LinearLayer]] = [[] for _ in shares]
        for layer in layers:
            maps = recorded.query_key(layer, out.activations[Site("resid_pre", layer)], live=True)
            for row, qk in enumerate(maps):
                at = {site: x[row] for site, x in out.activations.items() if site.layer == layer}
                by_row[row].append(self._layer(layer, at, qk))
        final_BTD = out.activations[end]
        return [
            LinearisedPrompt(
                self.tokens_T,
                self._with_sources(own),
                self.tokens_TD,
                None,
                model.linear_norm(model.final_norm, final_TD, live=True),
                final_TD,
                logits_V,
            )
            for own, final_TD, logits_V in zip(by_row, final_BTD, out.logits, strict=True)
        ]

    def _layer(self, number: int, at: Mapping[Site, Tensor], qk: QueryKey) -> LinearLayer:
        """A layer's maps at one point, without sources."""
        model, block = self.model, self.model.blocks[number]
        pre, attn_out, mlp_in = (at[Site(kind, number)] for kind in ("resid_pre", "attn_out", "mlp_in"))
        attention, norm_attn_post = block.attention_weights(), None
        if block.norm_attn_post is not None:
            raw = attention.forward(qk.pattern_QTS[None], qk.norm.forward(pre)[None])[0]
            norm_attn_post = model.linear_norm(block.norm_attn_post, raw, live=True)
        return LinearLayer(
            qk.pattern_QTS,
            attention,
            qk.norm,
            norm_attn_post,
            model.linear_norm(block.norm_mlp, pre if block.parallel else pre + attn_out, live=True),
            block.parallel,
            mlp_in,
            None,
            mlp=self._mlp(number, at),
            scores=LiveScores.of(qk, attention, self.first),
        )

    def _mlp(self, number: int, at: Mapping[Site, Tensor]) -> FrozenMlp | None:
        """The MLP's derivative, where effects pass it or its neurons are nodes."""
        block, basis = self.model.blocks[number], self.bases.get(number)
        is_needed = basis is not None and (isinstance(basis, Neurons) or basis.cfg.site_in == basis.sites_out[0])
        if not is_needed and (self.elsewhere == "errors" or block.mlp_down is None):
            return None
        mlp = tangent_mlp(block, at[Site("mlp_in", number)])
        if mlp is None:
            raise passes_no_effects(self.model, number)
        if block.norm_mlp_post is None:
            return FrozenMlp(mlp, None)
        down_EF, bias_E = mlp_down(block)
        raw = at[Site("mlp_act", number)] @ down_EF.T
        raw = raw if bias_E is None else raw + bias_E
        return FrozenMlp(mlp, self.model.linear_norm(block.norm_mlp_post, raw, live=True))

    def _with_sources(self, layers: Sequence[LinearLayer]) -> tuple[LinearLayer, ...]:
        """The layers with what their nodes and errors differ by."""
        result: list[LinearLayer] = []
        for number, layer in enumerate(layers):
            basis, site = self.bases.get(number), Site("mlp_out", number)
            if isinstance(basis, Neurons):
                change_TF = self.path.own.site_TD[number] - self.path.other.site_TD[number]
                chosen = self.path.own.applies_T[number][:, None].expand_as(change_TF)
                result.append(layer_of_neurons(layer, change_TF, chosen))
            elif basis is not None:
                result.append(self._with_features(layer, number, basis, result))
            elif site in self.path.whole:
                clean_TD, corrupted_TD = self.path.whole[site]
                result.append(with_nodes_below(replace(layer, error_TD=clean_TD - corrupted_TD), number, result))
            else:
                result.append(layer)
        return tuple(result)

    def _with_features(
        self, layer: LinearLayer, number: int, basis: Dictionary, lower: Sequence[LinearLayer]
    ) -> LinearLayer:
        nodes, own, other = self.path.nodes[number], self.path.own, self.path.other
        change_TF = own.activation_TF[number] - other.activation_TF[number]
        position_M, feature_M = change_TF.nonzero(as_tuple=True)
        value_M = change_TF[position_M, feature_M]
        written = tuple(value_M[:, None] * rows.to(value_M) for rows in basis.writes(feature_M))
        features = ActiveFeatures(basis, position_M, feature_M, value_M, written)
        error_TD = own.written_TD(number) - other.written_TD(number)
        error_TD = error_TD.index_add(0, position_M, features.written(), alpha=-1)
        skip = None if basis.W_skip is None else Skip(basis.W_skip.to(error_TD), own.applies_T[number])
        own_layer = replace(
            layer,
            writes=nodes.site.kind,
            reads=nodes.reads[0].kind,
            nodes=features,
            read_TD=self.read_TD[number],
            error_TD=error_TD,
            skip=skip,
        )
        return with_nodes_below(own_layer, number, lower)


@torch.no_grad()
def prompt_difference(
    model: LanguageModel,
    bases: Mapping[int, Basis],
    clean_T: Int[Tensor, " t"],
    corrupted_T: Int[Tensor, " t"],
    elsewhere: Elsewhere = "errors",
) -> PromptDifference:
    """Runs two prompts of equal length, which become the ends of a path.

    Args:
        model: weights in fp32 or wider.
        bases: dictionaries or neurons by layer.
        clean_T, corrupted_T: the prompts.
        elsewhere: what the MLP of a layer without a basis is: an error node at every position, or itself, live.

    Raises:
        MechstudyError: a dictionary is of another site or layer.
    """
    nodes = nodes_of(model, bases)
    differs = (clean_T != corrupted_T).nonzero()
    first = int(differs[0]) if len(differs) else len(clean_T)
    errors = [
        layer
        for layer in range(model.n_layers)
        if layer not in bases and (elsewhere == "errors" or model.blocks[layer].mlp_down is None)
    ]
    held = [Site("mlp_out", layer) for layer in errors]
    if TOKENS not in {one.site for one in nodes.values()}:
        held.append(TOKENS)
    sites = sorted({*sites_of(nodes), *held, TOKENS})
    with recorded_patterns(model.hf):  # the attention of the path's runs
        at = captured(model, torch.stack([clean_T, corrupted_T]), sites)
    place_T = torch.arange(len(clean_T), device=model.device)
    # Causal: up to the first token that differs, both runs are the same, whatever rounding says.
    for x_BTD in at.values():
        x_BTD[1, :first] = x_BTD[0, :first]
    clean, corrupted = ({site: x_BTD[row] for site, x_BTD in at.items()} for row in (0, 1))
    own = values_at(nodes, clean, place_T)
    there = values_at(nodes, corrupted, place_T)
    other = own.replaced(there.activation_TF, there.site_TD, there.passing_TD)
    path = HeldPath(nodes, own, other, {site: (clean[site], corrupted[site]) for site in held})
    read: dict[int, Tensor] = {
        layer: clean[one.reads[0]] - corrupted[one.reads[0]] for layer, one in nodes.items() if one.reads
    }
    tokens_TD = clean[TOKENS] - corrupted[TOKENS]
    return PromptDifference(model, bases, clean_T, elsewhere, first, path, tokens_TD, read)
