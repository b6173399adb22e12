"""Attention scores split over what wrote the residual stream at query and key, and their first-order effects.

The score of a head at a query and a key is bilinear in the residual stream at the two positions once the scales of
norms are frozen, so with both written as sums of sources it is exactly the sum of one term per pair of sources (QK
attributions, Anthropic 2025). A score acts on a target through the softmax: to first order, its effect is
``dt/ds = P_k (v_k - sum_j P_j v_j)``, with ``P`` the pattern and ``v_k`` what the target gets from key ``k`` per unit
of pattern. A QK edge is ``dt/ds`` times a source's share of the score, the query's side and the key's apart.

Sources are given as tensors [N, D] at one position. Where they add up to the residual stream there, terms add up to
the score; where they are only some of it, terms are those of these sources.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.models.architectures import AttentionWeights, LinearNorm
from mechstudy.models.query_key import HeadMap, QueryKey


def score_terms(
    layer: QueryKey,
    head: int,
    query: int,
    key: int,
    query_sources_ND: Float[Tensor, "n d"],
    key_sources_MD: Float[Tensor, "m d"],
) -> Float[Tensor, "rows columns"]:
    """The score of one head at one query and key, split over pairs of sources: [N + 1, M + 1].

    The last row and column are the constants: what the offset of the norm before attention and the biases of the
    projections contribute. Where sources add up to the residual stream at their position, the sum of all terms is the
    model's own score (before mask and soft cap).

    Args:
        layer: queries and keys of one layer, from `query_keys`.
        head, query, key: the query head, and token positions.
        query_sources_ND, key_sources_MD: summands of ``resid_pre`` of the layer at the two positions.

    Raises:
        MechstudyError: a head or position that the prompt does not have, or a key after its query.
    """
    _require(layer, head, query, key)
    q_NH = _vectors(layer.norm, layer.query, query, query_sources_ND)[:, head]
    k_MH = _vectors(layer.norm, layer.key, key, key_sources_MD)[:, head // layer.group]
    return layer.scaling * q_NH @ k_MH.T


def score_shares(
    layer: QueryKey,
    head: int,
    query: int,
    key: int,
    query_sources_ND: Float[Tensor, "n d"],
    key_sources_MD: Float[Tensor, "m d"],
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " columns"]]:
    """What each source at the query, and each at the key, contributes to one score: [N + 1] and [M + 1].

    Each of the two sums to the score by itself; they are row and column sums of `score_terms` where the other side's
    sources are complete, and take no time for pairs. Arguments and errors are those of `score_terms`.
    """
    _require(layer, head, query, key)
    q_NH = _vectors(layer.norm, layer.query, query, query_sources_ND)[:, head]
    k_MH = _vectors(layer.norm, layer.key, key, key_sources_MD)[:, head // layer.group]
    whole_q_H = _whole(layer, layer.query, query)[head]
    whole_k_H = _whole(layer, layer.key, key)[head // layer.group]
    return layer.scaling * (q_NH @ whole_k_H), layer.scaling * (k_MH @ whole_q_H)


def score_gradient(
    layer: QueryKey,
    attention: AttentionWeights,
    norm_post: LinearNorm | None,
    g_RTD: Float[Tensor, "r t d"],
) -> Float[Tensor, "r q t s"]:
    """First-order effect of every score of a layer on R targets, through the pattern: dt/ds, [R, heads, query, key].

    Memory is R x heads x T^2 numbers: cut many targets of long prompts into batches.

    ``dt/ds_k = P_k (v_k - sum_j P_j v_j)``, times the derivative of Gemma 2's soft cap. Zero where the mask hides the
    key. The scale of a norm after attention is frozen.

    Args:
        layer: queries and keys of the layer.
        attention: its value and output maps (`Block.attention_weights`).
        norm_post: the norm after attention frozen at the prompt, for families that have one.
        g_RTD: each target's gradient at the layer's ``attn_out``.
    """
    if norm_post is not None:
        g_RTD = norm_post.backward(g_RTD)
    v_SQH = attention.values(layer.norm.forward(layer.resid_TD))
    z_RTQH = torch.einsum("rtd,dqh->rtqh", g_RTD, attention.output_DQH)
    value_RQTS = torch.einsum("rtqh,sqh->rqts", z_RTQH, v_SQH)
    pattern = layer.pattern_QTS
    effect = pattern * (value_RQTS - (pattern * value_RQTS).sum(-1, keepdim=True))
    slope_QTS = layer.softcap_slope
    return effect if slope_QTS is None else effect * slope_QTS


def through_scores(
    layer: QueryKey, effect_RQTS: Float[Tensor, "r q t s"]
) -> tuple[Float[Tensor, "r t d"], Float[Tensor, "r t d"]]:
    """Gradients at the layer's ``resid_pre`` that reach R targets through queries and through keys: two [R, T, D].

    The inner product of a source with either at the source's position is its QK edge to the target, summed over the
    scores that ``effect_RQTS`` keeps: set the others to zero for the edges of one head, query or key. Scales of norms
    are frozen. For sources below this layer, both flow down the linear model like any other gradient.

    Args:
        layer: queries and keys of the layer.
        effect_RQTS: effects of scores on targets, from `score_gradient`.
    """
    x_TD = layer.norm.forward(layer.resid_TD)
    q_TQH, k_SGH = layer.query.forward(x_TD), layer.key.forward(x_TD)
    rows, heads, length, _ = effect_RQTS.shape
    effect = layer.scaling * effect_RQTS
    to_query_RTQH = torch.einsum("rqts,sqh->rtqh", effect, k_SGH.repeat_interleave(layer.group, 1))
    to_key = torch.einsum("rqts,tqh->rsqh", effect, q_TQH)
    to_key_RSGH = to_key.reshape(rows, length, heads // layer.group, layer.group, -1).sum(3)
    return (
        layer.norm.backward(layer.query.backward(to_query_RTQH)),
        layer.norm.backward(layer.key.backward(to_key_RSGH)),
    )


def score_edges(
    layer: QueryKey,
    effect_QTS: Float[Tensor, "q t s"],
    sources_ND: Float[Tensor, "n d"],
    positions_N: Int[Tensor, " n"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """QK edges of sources to one target, through queries and through keys: two [N].

    Each is the sum over the layer's scores of ``dt/ds`` times the source's share of the score: first order in the
    score, so the change of the target for small changes of the source.

    Args:
        layer: queries and keys of the layer.
        effect_QTS: the target's row of `score_gradient`, zero for scores to leave out.
        sources_ND: what each source writes into ``resid_pre`` of the layer.
        positions_N: where it writes.
    """
    query_1TD, key_1TD = through_scores(layer, effect_QTS[None])
    return (sources_ND * query_1TD[0, positions_N]).sum(-1), (sources_ND * key_1TD[0, positions_N]).sum(-1)


def _vectors(norm: LinearNorm, side: HeadMap, position: int, sources_ND: Tensor) -> Tensor:
    """Queries or keys of each source at a position, and of the constants, [N + 1, heads, H]."""
    here = torch.tensor([position], device=sources_ND.device)
    one, norm_one = side.at(here), norm.at(here)
    zero = torch.zeros_like(sources_ND[:1])
    offset_1D = norm_one.forward(zero)
    linear_ND = norm_one.forward(sources_ND[:, None])[:, 0] - offset_1D
    constant = one.linear(offset_1D) + one.constant(1)
    return torch.cat([one.linear(linear_ND[:, None])[:, 0], constant])


def _whole(layer: QueryKey, side: HeadMap, position: int) -> Tensor:
    """The query or key of every head at a position, [heads, H]."""
    here = torch.tensor([position], device=layer.resid_TD.device)
    return side.at(here).forward(layer.norm.at(here).forward(layer.resid_TD[position, None]))[0]


def _require(layer: QueryKey, head: int, query: int, key: int) -> None:
    length = layer.resid_TD.shape[0]
    if not 0 <= head < layer.n_heads:
        raise MechstudyError(f"head {head} does not exist", facts={"heads": f"0-{layer.n_heads - 1}"})
    for name, position in (("query", query), ("key", key)):
        if not 0 <= position < length:
            raise MechstudyError(
                f"{name} position {position} does not exist", facts={"the prompt has": f"positions 0-{length - 1}"}
            )
    if key > query:
        raise MechstudyError(f"key {key} comes after query {query}", fix="a key at the query or before it")
