"""The linearised forward pass of one prompt: attention patterns, norm scales and MLPs' ratios frozen.

With those frozen, everything downstream of a node is affine in the residual stream, so direct effects are exact. The
method is circuit-tracer's (Ameisen et al. 2025), with more kinds of nodes than its transcoders: SAEs on the residual
stream or on what attention or MLPs write, neurons, and MLPs that are no nodes but the linear maps that they are at the
prompt. Bias nodes make contributions add up to the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from mechstudy.circuits.active_nodes import active_features, active_neurons, applies_at
from mechstudy.circuits.bases import check_bases, site_read, site_written
from mechstudy.circuits.config import Elsewhere
from mechstudy.circuits.linear_prompt import FrozenMlp, LinearisedPrompt, LinearLayer, Skip
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.neurons import Basis, Neurons
from mechstudy.models.architectures import Block
from mechstudy.models.attention import recorded_patterns
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.linear_mlp import linear_mlp
from mechstudy.models.sites import Site

_CAPTURED = ("resid_pre", "attn_out", "mlp_in", "mlp_out", "resid_post")


@torch.no_grad()
def linearise(
    model: LanguageModel,
    bases: Mapping[int, Basis],
    tokens_T: Int[Tensor, " t"],
    *,
    elsewhere: Elsewhere = "errors",
    first_is_constant: bool = False,
) -> LinearisedPrompt:
    """Run the prompt once and freeze what attribution freezes.

    Args:
        model: weights in fp32 or wider; bf16 attribution is irreproducible.
        bases: dictionaries or neurons by layer (see `bases.check_bases`).
        tokens_T: one prompt.
        elsewhere: what the MLP of a layer without a basis is: an error node at every position, or the linear map that
            it is at the prompt, through which effects pass. Below SAEs of a residual stream or of attention the MLP of
            their own layer is always linear.
        first_is_constant: what a dictionary leaves unexplained at the first position, and the neurons there, are the
            same in every prompt that begins with the same token; they then count as biases.

    Raises:
        MechstudyError: weights below fp32, or a dictionary of another site, layer or model.
    """
    model.require_float32("attribution needs fp32 weights")
    check_bases(bases, "graphs", model)
    sites = [Site(kind, layer) for layer in range(model.n_layers) for kind in _CAPTURED]
    sites += [site_read(basis, layer) for layer, basis in bases.items() if isinstance(basis, Neurons)]
    with recorded_patterns(model.hf) as patterns:
        out = model.forward(tokens_T[None], capture=sites, logits_at="last")
    activations = {site: value[0] for site, value in out.activations.items()}
    freezer = _Freezer(model, activations, elsewhere, first_is_constant)
    layers: list[LinearLayer] = []
    for layer in range(model.n_layers):
        layers.append(freezer.layer(layer, patterns[layer][0], bases.get(layer), layers))
    final = activations[Site("resid_post", model.n_layers - 1)]
    embedded, positions = activations[Site("resid_pre", 0)], None
    if model.arch.position_embedding:
        table = getattr(model.base, model.arch.position_embedding).weight
        positions = table[: tokens_T.shape[0]].detach()
        embedded = embedded - positions
    assert out.logits is not None
    return LinearisedPrompt(
        tokens_T,
        tuple(layers),
        embedded,
        positions,
        model.linear_norm(model.final_norm, final),
        final,
        out.logits[0],
    )


class _Freezer:
    """Makes the layers of one prompt from its activations."""

    def __init__(
        self, model: LanguageModel, activations: Mapping[Site, Tensor], elsewhere: Elsewhere, first_is_constant: bool
    ) -> None:
        self.model, self.elsewhere, self.first_is_constant = model, elsewhere, first_is_constant
        self._activations = activations

    def layer(self, number: int, pattern_QTS: Tensor, basis: Basis | None, lower: Sequence[LinearLayer]) -> LinearLayer:
        """One layer, given those below it."""
        block = self.model.blocks[number]
        plain = self._plain(number, pattern_QTS, block)
        layer = plain if basis is None else self._with_nodes(plain, number, basis)
        layer = with_nodes_below(layer, number, lower)
        return self._constants_apart(layer) if self.first_is_constant else layer

    def _plain(self, number: int, pattern_QTS: Tensor, block: Block) -> LinearLayer:
        """The layer without nodes: its MLP is an error, or linear."""
        pre, attn_out, mlp_in, mlp_out = (
            self._at(kind, number) for kind in ("resid_pre", "attn_out", "mlp_in", "mlp_out")
        )
        attention = block.attention_weights()
        norm_attn = self.model.linear_norm(block.norm_attn, pre)
        norm_attn_post = None
        if block.norm_attn_post is not None:
            raw = attention.forward(pattern_QTS[None], norm_attn.forward(pre)[None])[0]
            norm_attn_post = self.model.linear_norm(block.norm_attn_post, raw)
        # The constant part of an affine map is its value at zero.
        zero = torch.zeros_like(pre)
        at_zero = attention.forward(pattern_QTS[None], norm_attn.forward(zero)[None])[0]
        norm_mlp = self.model.linear_norm(block.norm_mlp, pre if block.parallel else pre + attn_out)
        layer = LinearLayer(
            pattern_QTS,
            attention,
            norm_attn,
            norm_attn_post,
            norm_mlp,
            block.parallel,
            mlp_in,
            _unless_zero(at_zero if norm_attn_post is None else norm_attn_post.forward(at_zero)),
        )
        if self.elsewhere == "linear" and block.mlp_down is not None:
            return self._with_mlp(layer, number)
        return replace(layer, error_TD=mlp_out)

    def _with_mlp(self, layer: LinearLayer, number: int) -> LinearLayer:
        """The layer with its MLP as a linear map."""
        if layer.mlp is not None:
            return layer
        block = self.model.blocks[number]
        mlp = linear_mlp(block, layer.mlp_in_TD)
        if mlp is None:
            raise passes_no_effects(self.model, number)
        raw = mlp.forward(layer.mlp_in_TD)
        frozen = FrozenMlp(
            mlp, None if block.norm_mlp_post is None else self.model.linear_norm(block.norm_mlp_post, raw)
        )
        constant = frozen.forward(layer.norm_mlp.forward(torch.zeros_like(layer.mlp_in_TD)))
        return replace(layer, mlp=frozen, mlp_bias_TD=_unless_zero(constant))

    def _with_nodes(self, plain: LinearLayer, number: int, basis: Basis) -> LinearLayer:
        if isinstance(basis, Neurons):
            return self._with_neurons(plain, number)
        writes, reads = site_written(basis, number).kind, site_read(basis, number).kind
        if writes == reads:
            plain = self._with_mlp(plain, number)
        layer = replace(plain, writes=writes, reads=reads)
        held, read = self._at(writes, number), self._at(reads, number)
        valid = applies_at(basis, read, torch.arange(len(read), device=read.device), held)
        nodes = active_features(basis, read, valid)
        explained = torch.zeros_like(held).index_add(0, nodes.position_M, nodes.written())
        bias = basis.b_dec.to(held) * valid[:, None]
        explained, skip = explained + bias, None
        if basis.W_skip is not None:
            skip = Skip(basis.W_skip.to(held), valid)
            explained = explained + skip.forward(read)
            bias = bias + skip.forward(layer.norm_mlp.forward(torch.zeros_like(read)))
        return replace(layer, nodes=nodes, read_TD=read, error_TD=held - explained, bias_TD=bias, skip=skip)

    def _with_neurons(self, plain: LinearLayer, number: int) -> LinearLayer:
        """Every neuron of the layer; `choose_neurons` leaves the strongest."""
        layer = self._with_mlp(plain, number)
        assert layer.mlp is not None
        acts = self._at("mlp_act", number)
        chosen = torch.ones_like(acts, dtype=torch.bool)
        chosen[0] = not self.first_is_constant
        return layer_of_neurons(layer, acts, chosen)

    def _constants_apart(self, layer: LinearLayer) -> LinearLayer:
        """The layer with its error at the first position among the biases."""
        if layer.error_TD is None:
            return layer
        error = layer.error_TD.clone()
        error[0] = 0
        bias = torch.zeros_like(error) if layer.bias_TD is None else layer.bias_TD.clone()
        bias[0] += layer.error_TD[0]
        return replace(layer, error_TD=error, bias_TD=bias)

    def _at(self, kind: str, layer: int) -> Tensor:
        if kind == "resid_mid":
            return self._at("resid_pre", layer) + self._at("attn_out", layer)
        return self._activations[Site(kind, layer)]


def with_nodes_below(layer: LinearLayer, number: int, lower: Sequence[LinearLayer]) -> LinearLayer:
    """The layer with the nodes of lower layers that write at it, which its error then leaves out."""
    below = {
        at: x.nodes
        for at, x in enumerate(lower)
        if x.nodes is not None and x.writes == "mlp_out" and number - at < x.nodes.n_written
    }
    if not below:
        return layer
    assert layer.error_TD is not None and layer.writes == "mlp_out", "a CLT meets another site"
    error = layer.error_TD
    for at, nodes in below.items():
        error = error.index_add(0, nodes.position_M, nodes.written(number - at), alpha=-1)
    return replace(layer, error_TD=error, below=below)


def passes_no_effects(model: LanguageModel, layer: int) -> MechstudyError:
    """The error of a layer whose MLP is neither nodes nor a linear map."""
    return MechstudyError(
        f"effects cannot pass the MLP of layer {layer}: it is a mixture of experts",
        facts={"model": model.name},
        fix="transcoders, or SAEs of mlp_out in every layer with experts",
    )


def _unless_zero(constant_TD: Tensor) -> Tensor | None:
    """A constant; None where it is zero, as in families without biases: nothing has to read gradients for it."""
    return constant_TD if constant_TD.any() else None


def layer_of_neurons(layer: LinearLayer, acts_TF: Tensor, chosen_TF: Tensor) -> LinearLayer:
    """The layer with chosen neurons as nodes, the others together as its errors, and the down projection's bias."""
    assert layer.mlp is not None
    mlp, norm_post = layer.mlp.mlp, layer.mlp.norm_post
    nodes = active_neurons(mlp, norm_post, acts_TF, chosen_TF)
    rest = torch.where(chosen_TF, torch.zeros_like(acts_TF), acts_TF) @ mlp.down_EF.T
    bias = torch.zeros_like(rest) if mlp.down_bias_E is None else mlp.down_bias_E.expand_as(rest)
    if norm_post is not None:
        rest, bias = norm_post.linear(rest), norm_post.forward(bias)
    return replace(layer, nodes=nodes, read_TD=layer.mlp_in_TD, error_TD=rest, bias_TD=bias)
