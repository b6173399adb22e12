"""The linearised forward pass of one prompt: attention patterns, norm scales, MLP outputs and gates frozen.

With those frozen, everything downstream of a feature, an error or a token is affine in the residual stream, so direct
effects are exact. The method is circuit-tracer's (Ameisen et al. 2025) with three additions: bias nodes, so that
contributions add up to the target; skip paths; layers without a transcoder as errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.hookpoints import refuse_other_tensor
from mechstudy.models.architectures import AttentionWeights, LinearNorm
from mechstudy.models.attention import recorded_patterns
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


@dataclass(frozen=True)
class ActiveFeatures:
    """Features of one layer that are active on the prompt, sorted by position.

    ``position_M``, ``feature_M`` and ``value_M`` describe them. ``written_MD`` is value x decoder row, what each writes
    into the residual stream: at its own layer and, for a cross-layer transcoder, at the next, and so on.
    """

    position_M: Tensor
    feature_M: Tensor
    value_M: Tensor
    written_MD: tuple[Tensor, ...]


@dataclass(frozen=True)
class LinearLayer:
    """The affine maps and the sources of one layer. T positions, D model width.

    ``error_TD`` is what the MLP wrote and the dictionary did not explain: all of it where the layer has no dictionary
    and at positions where it does not apply (`applies_at`). What features of lower layers wrote at ``mlp_out`` is
    explained too. ``bias_TD`` collects the constants written at ``mlp_out``, ``attention_bias_TD`` those written at
    ``attn_out``. ``skip_DD`` maps ``mlp_in`` to ``mlp_out`` at the positions in ``valid_T``. ``mid_TD`` is
    ``resid_mid`` where the features read that instead of ``mlp_in``.
    """

    pattern_QTS: Tensor
    attention: AttentionWeights
    norm_attn: LinearNorm
    norm_attn_post: LinearNorm | None
    norm_mlp: LinearNorm
    parallel: bool
    mlp_in_TD: Tensor
    features: ActiveFeatures | None
    error_TD: Tensor
    bias_TD: Tensor | None
    attention_bias_TD: Tensor
    skip_DD: Tensor | None
    valid_T: Tensor
    mid_TD: Tensor | None

    @property
    def read_TD(self) -> Tensor:
        """What the layer's features read."""
        return self.mlp_in_TD if self.mid_TD is None else self.mid_TD

    def through_attention(self, g_RTD: Tensor) -> Tensor:
        """Gradient at ``attn_out`` -> gradient at the residual stream that attention read."""
        if self.norm_attn_post is not None:
            g_RTD = self.norm_attn_post.backward(g_RTD)
        return self.norm_attn.backward(self.attention.backward(self.pattern_QTS, g_RTD))

    def through_skip(self, g_RTD: Tensor) -> Tensor:
        """Gradient at ``mlp_out`` -> gradient at the residual stream, through the skip path."""
        assert self.skip_DD is not None
        return self.norm_mlp.backward((g_RTD * self.valid_T[:, None]) @ self.skip_DD)


@dataclass(frozen=True)
class LinearisedPrompt:
    """A whole prompt, linearised.

    ``tokens_TD`` is what each token's embedding wrote, ``position_TD`` what position embeddings wrote (GPT-2),
    ``resid_final_TD`` the input of the final norm.
    """

    tokens_T: Tensor
    layers: tuple[LinearLayer, ...]
    tokens_TD: Tensor
    position_TD: Tensor | None
    final_norm: LinearNorm
    resid_final_TD: Tensor
    logits_V: Tensor

    @property
    def n_positions(self) -> int:
        """Number of tokens."""
        return self.tokens_T.shape[0]


@torch.no_grad()
def linearise(
    model: LanguageModel, dictionaries: Mapping[int, Dictionary], tokens_T: Int[Tensor, " t"]
) -> LinearisedPrompt:
    """Run the prompt once and freeze what attribution freezes.

    Args:
        model: weights in fp32 or wider; bf16 attribution is irreproducible.
        dictionaries: transcoders (``mlp_in`` or ``resid_mid`` -> ``mlp_out``) by layer; other layers enter as errors.
        tokens_T: one prompt.

    Raises:
        MechstudyError: weights below fp32, or a dictionary that is no transcoder of its layer.
    """
    if model.dtype not in (torch.float32, torch.float64):
        raise MechstudyError(
            f"attribution needs fp32 weights; the model is loaded as {model.dtype}",
            fix="set model.dtype: float32",
        )
    require_transcoders(dictionaries, "graphs", model)
    kinds = ("resid_pre", "attn_out", "mlp_in", "mlp_out", "resid_post")
    sites_wanted = [Site(kind, layer) for layer in range(model.n_layers) for kind in kinds]
    with recorded_patterns(model.hf) as patterns:
        out = model.forward(tokens_T[None], capture=sites_wanted, logits_at="last")
    activations = {site: value[0] for site, value in out.activations.items()}
    layers: list[LinearLayer] = []
    for layer in range(model.n_layers):
        dictionary = dictionaries.get(layer)
        layers.append(_linear_layer(model, layer, activations, patterns[layer][0], dictionary, layers))
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


def written_at(layers: Sequence[LinearLayer], layer: int) -> Iterator[tuple[int, ActiveFeatures, Tensor]]:
    """Which of the lowest ``layers`` have features that write at a layer's ``mlp_out``, and what each writes."""
    for source, x in enumerate(layers[: layer + 1]):
        if x.features is not None and layer - source < len(x.features.written_MD):
            yield source, x.features, x.features.written_MD[layer - source]


def require_transcoders(dictionaries: Mapping[int, Dictionary], purpose: str, model: LanguageModel) -> None:
    """Refuse dictionaries that are no transcoders of their layer's MLP in this model.

    Raises:
        MechstudyError: the first such dictionary, or a cross-layer transcoder of more layers than the model, and that
            ``purpose`` (a plural) need another.
    """
    for layer, dictionary in dictionaries.items():
        sites = (dictionary.cfg.site_in, dictionary.cfg.site_out)
        residual = sites[0] == f"resid_mid.{layer}"
        if residual and dictionary.W_skip is None and layer < model.n_layers and not model.blocks[layer].parallel:
            sites = (f"mlp_in.{layer}", sites[1])
        if sites != (f"mlp_in.{layer}", f"mlp_out.{layer}"):
            raise MechstudyError(
                f"layer {layer}: {purpose} need a transcoder from mlp_in.{layer} to mlp_out.{layer}; "
                f"this dictionary maps {sites[0]} to {sites[1]}",
                facts={"model": f"attention and MLP of {model.name} run in parallel: there is no {sites[0]}"}
                if residual and layer < model.n_layers and model.blocks[layer].parallel
                else None,
                fix="set dictionaries.architecture.kind: transcoder (or skip_transcoder)",
            )
        if int(dictionary.sites_out[-1].partition(".")[2]) >= model.n_layers:
            raise MechstudyError(
                f"layer {layer}: the cross-layer transcoder writes up to {dictionary.sites_out[-1]}, and the model has "
                f"{model.n_layers} layers",
                facts={"model": model.name},
                fix="one of this model",
            )
        refuse_other_tensor(model, dictionary)


def site_read(dictionary: Dictionary, layer: int) -> Site:
    """The site that the features of a layer's transcoder read: ``mlp_in``, or ``resid_mid``."""
    return Site("resid_mid" if dictionary.cfg.site_in == f"resid_mid.{layer}" else "mlp_in", layer)


def _linear_layer(
    model: LanguageModel,
    layer: int,
    activations: Mapping[Site, Tensor],
    pattern: Tensor,
    dictionary: Dictionary | None,
    lower: Sequence[LinearLayer],
) -> LinearLayer:
    block = model.blocks[layer]
    pre, attn_out, mlp_in, mlp_out = (
        activations[Site(kind, layer)] for kind in ("resid_pre", "attn_out", "mlp_in", "mlp_out")
    )
    attention = block.attention_weights()
    norm_attn = model.linear_norm(block.norm_attn, pre)
    norm_post = None
    if block.norm_attn_post is not None:
        raw = attention.forward(pattern[None], norm_attn.forward(pre)[None])[0]
        norm_post = model.linear_norm(block.norm_attn_post, raw)
    # The constant part of an affine map is its value at zero.
    at_zero = attention.forward(pattern[None], norm_attn.forward(torch.zeros_like(pre))[None])[0]
    attention_bias = at_zero if norm_post is None else norm_post.forward(at_zero)
    norm_mlp = model.linear_norm(block.norm_mlp, pre if block.parallel else pre + attn_out)

    features = bias = skip = mid = None
    valid = torch.zeros(pre.shape[0], dtype=torch.bool, device=pre.device)
    error = mlp_out
    if dictionary is not None:
        mid = pre + attn_out if site_read(dictionary, layer).kind == "resid_mid" else None
        read = mlp_in if mid is None else mid
        valid = applies_at(dictionary, read, torch.arange(pre.shape[0], device=pre.device), mlp_out)
        features = active_features(dictionary, read, valid)
        explained = torch.zeros_like(mlp_out).index_add(0, features.position_M, features.written_MD[0])
        bias = dictionary.b_dec.to(pre) * valid[:, None]
        explained = explained + bias
        if dictionary.W_skip is not None:
            skip = dictionary.W_skip.to(pre)
            explained = explained + (mlp_in @ skip.T) * valid[:, None]
            bias = bias + (norm_mlp.forward(torch.zeros_like(pre)) @ skip.T) * valid[:, None]
        error = mlp_out - explained
    for _, others, vector_MD in written_at(lower, layer):
        error = error.index_add(0, others.position_M, vector_MD, alpha=-1)
    return LinearLayer(
        pattern, attention, norm_attn, norm_post, norm_mlp, block.parallel, mlp_in, features, error, bias,
        attention_bias, skip, valid, mid,
    )  # fmt: skip


def applies_at(
    dictionary: Dictionary,
    x_ND: Float[Tensor, "n d_in"],
    position_N: Int[Tensor, " n"],
    y_ND: Float[Tensor, "n d_out"] | None = None,
) -> Bool[Tensor, " n"]:
    """Positions at which the dictionary applies, [N] bool: not the first of a prompt, and no sinks.

    Training drops both, so what the dictionary says there means nothing.

    Args:
        x_ND, y_ND: the dictionary's inputs and, where sinks are also recognised by their target, its targets.
        position_N: token indices of the rows.
    """
    return (position_N > 0) & dictionary.is_valid(x_ND, y_ND)


def active_features(dictionary: Dictionary, x_TD: Tensor, valid_T: Tensor) -> ActiveFeatures:
    """Features of inputs x that are active at valid positions, with what each writes."""
    acts_TF = dictionary.encode(x_TD.to(dictionary.b_enc)) * valid_T[:, None]
    position, feature = acts_TF.nonzero(as_tuple=True)
    value = acts_TF[position, feature].to(x_TD)
    written = tuple(value[:, None] * rows.to(x_TD) for rows in dictionary.writes(feature))
    return ActiveFeatures(position, feature, value, written)
