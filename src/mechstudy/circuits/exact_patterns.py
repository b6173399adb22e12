"""Attribution patching with exact patterns: what first order misses of the softmax that a changed query or key enters.

A gradient follows a score through the softmax at the clean prompt: where a head attends fully to one key, the slope is
nearly zero, whatever a large change would do. AtP* (Kramar et al. 2403.00745) therefore computes the pattern of each
changed query and key exactly. Here a node's change reaches the queries and keys of every later head along the residual
stream; to its first-order effect comes, for each such head, the exact response of its pattern minus the first-order
one, through the gradient at what the head writes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mechstudy.circuits.components import Component, HeadAt, MlpAt, anywhere
from mechstudy.circuits.recording import Batch
from mechstudy.circuits.site_gradients import contrast_gradients
from mechstudy.circuits.universe import NodeSet
from mechstudy.core.errors import MechstudyError
from mechstudy.models.architectures import AttentionWeights, LinearNorm
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.query_key import QueryKey, queries_and_keys, recorded_attention
from mechstudy.models.sites import Site

_NUMBERS = 1 << 24  # of changed scores that are held together


@torch.no_grad()
def pattern_corrections(
    model: LanguageModel, nodes: NodeSet, x: Batch, checkpointing: str = "auto"
) -> Float64[Tensor, "b n"]:
    """What exact patterns add to each node's first-order effect, for every prompt of a batch.

    Args:
        model: the model, in fp32 or wider.
        nodes: heads and MLPs; others where no later layer reads them.
        x: a batch with all of its tokens.
        checkpointing: of gradients, as in `contrast_gradients`.

    Raises:
        MechstudyError: nodes that are not heads or MLPs, weights below fp32, or queries or keys that are not affine.
    """
    model.require_float32("patterns are computed in fp32")
    layers = list(range(1 + min(node.layer for node in nodes.nodes), model.n_layers))
    sites = [Site("attn_out", layer) for layer in layers]
    total_BN = torch.zeros(len(x.tokens_BT), len(nodes.nodes), dtype=torch.float64)
    if not layers:
        return total_BN
    if not all(isinstance(node, HeadAt | MlpAt) for node in nodes.nodes):
        raise MechstudyError("atp_qk is for heads and MLPs, and there are features or errors", fix='method="eap"')
    gradients = contrast_gradients(model, x.tokens_BT, x.of_row, sites, checkpointing=checkpointing)
    with recorded_attention(model, layers) as recorded:
        out = model.forward(x.tokens_BT, capture=[Site("resid_pre", layer) for layer in layers], logits_at=None)
    place = {node: u for u, node in enumerate(dict.fromkeys(map(anywhere, nodes.nodes)))}
    written_BTUD = torch.stack([written(model, node, x) for node in place], 2)
    for layer, site in zip(layers, sites, strict=True):
        block = model.blocks[layer]
        attention = block.attention_weights()
        for row, one in enumerate(recorded.query_key(layer, out.activations[Site("resid_pre", layer)], live=True)):
            post = None
            if block.norm_attn_post is not None:
                raw = attention.forward(one.pattern_QTS[None], one.norm.forward(one.resid_TD)[None])[0]
                post = model.linear_norm(block.norm_attn_post, raw, True)
            response = PatternResponse(model, layer, one, attention, post, gradients.at[site][row])
            for number, name in enumerate(nodes.positions.names):
                mine = [i for i, node in enumerate(nodes.nodes) if node.position == name and node.layer < layer]
                at_P = (x.donors.position_BT[row].eq(number) & x.donors.has_BT[row]).nonzero()[:, 0]
                if mine and len(at_P):
                    which = [place[anywhere(nodes.nodes[i])] for i in mine]
                    at_P = at_P.to(written_BTUD.device)
                    changes_NPD = written_BTUD[row, at_P][:, which].transpose(0, 1)
                    total_BN[row, mine] += response.beyond_first_order(changes_NPD, at_P).cpu()
    return total_BN


def written(model: LanguageModel, node: Component, x: Batch) -> Float[Tensor, "b t d"]:
    """The change of the residual stream when a head or an MLP is replaced, whatever its position.

    What a head writes passes any post-norm to first order.
    """
    if isinstance(node, MlpAt):
        return x.differences[Site("mlp_out", node.layer)]
    site, block = Site("attn_heads", node.layer), model.blocks[node.layer]
    width = slice(node.head * model.head_dim, (node.head + 1) * model.head_dim)
    weight_DH = block.attention_weights().output_DQH[:, node.head]
    moved: Tensor = x.differences[site][..., width] @ weight_DH.T
    if block.norm_attn_post is None:
        return moved
    out = block.attn_proj(x.clean[site])
    passed: Tensor = torch.func.jvp(block.norm_attn_post, (out,), (moved,))[1]
    return passed


class PatternResponse:
    """What the pattern of one layer does to a target when its queries and keys change.

    ``value_QTS`` is what the target gets from each key per unit of pattern.
    """

    def __init__(
        self,
        model: LanguageModel,
        number: int,
        layer: QueryKey,
        attention: AttentionWeights,
        post: LinearNorm | None,
        g_TD: Float[Tensor, "t d"],
    ) -> None:
        self.model, self.number, self.layer = model, number, layer
        normed_TD = layer.norm.forward(layer.resid_TD)
        self.query_TQH = layer.query.forward(normed_TD)
        self.key_SQH = layer.key.forward(normed_TD).repeat_interleave(layer.group, 1)
        if post is not None:
            g_TD = post.backward(g_TD)
        z_TQH = torch.einsum("td,dqh->tqh", g_TD, attention.output_DQH)
        self.value_QTS = torch.einsum("tqh,sqh->qts", z_TQH, attention.values(normed_TD))

    def beyond_first_order(self, changes_NPD: Float[Tensor, "n p d"], at_P: Int[Tensor, " p"]) -> Float64[Tensor, " n"]:
        """The exact response of the pattern minus the first-order one, for changes of the stream at some tokens."""
        size = max(1, _NUMBERS // self.value_QTS.numel())
        return torch.cat([self._beyond(part, at_P) for part in torch.split(changes_NPD, size)])

    def _beyond(self, changes_NPD: Tensor, at_P: Tensor) -> Tensor:
        after = slice(int(at_P.min()), None)  # no earlier query sees a change
        linear_NQTS = self.linear_scores(changes_NPD, at_P)[:, :, after]
        moved_NQTS = self.changed_scores(changes_NPD, at_P)[:, :, after]
        pattern_QTS, value_QTS = self.layer.pattern_QTS[:, after], self.value_QTS[:, after]
        mean_NQT1 = (pattern_QTS * linear_NQTS).sum(-1, keepdim=True)
        first_NQTS = pattern_QTS * (linear_NQTS - mean_NQT1)
        seen_NQTS = moved_NQTS.masked_fill(pattern_QTS == 0, -torch.inf)
        weight_NQTS = pattern_QTS * (seen_NQTS - seen_NQTS.amax(-1, keepdim=True)).exp()
        new_NQTS = weight_NQTS / weight_NQTS.sum(-1, keepdim=True)
        return (value_QTS * (new_NQTS - pattern_QTS - first_NQTS)).double().sum((1, 2, 3))

    def linear_scores(self, changes_NPD: Float[Tensor, "n p d"], at_P: Int[Tensor, " p"]) -> Float[Tensor, "n q t s"]:
        """The changes of what the softmax reads, to first order."""
        layer = self.layer
        normed_NPD = layer.norm.at(at_P).linear(changes_NPD)
        query_NPQH = layer.query.at(at_P).change(normed_NPD)
        key_NPQH = layer.key.at(at_P).change(normed_NPD).repeat_interleave(layer.group, 2)
        linear_NQTS = self._by_place(query_NPQH, key_NPQH, at_P)
        return linear_NQTS if layer.softcap_slope is None else linear_NQTS * layer.softcap_slope

    def changed_scores(self, changes_NPD: Float[Tensor, "n p d"], at_P: Int[Tensor, " p"]) -> Float[Tensor, "n q t s"]:
        """The changes of what the softmax reads, exactly."""
        layer = self.layer
        resid_NPD = layer.resid_TD[at_P] + changes_NPD
        query_NPQH, key_NPGH = queries_and_keys(self.model, self.number, layer, resid_NPD, at_P)
        query_NPQH = query_NPQH - self.query_TQH[at_P]
        key_NPQH = key_NPGH.repeat_interleave(layer.group, 2) - self.key_SQH[at_P]
        moved_NQTS = self._by_place(query_NPQH, key_NPQH, at_P)
        both_NQPP = torch.einsum("npqh,noqh->nqpo", query_NPQH, key_NPQH)
        moved_NQTS[:, :, at_P[:, None], at_P] += layer.scaling * both_NQPP
        if layer.softcap is None:
            return moved_NQTS
        capped_NQTS = layer.softcap * torch.tanh((layer.score_QTS + moved_NQTS) / layer.softcap)
        return capped_NQTS - layer.softcap * torch.tanh(layer.score_QTS / layer.softcap)

    def _by_place(self, query_NPQH: Tensor, key_NPQH: Tensor, at_P: Tensor) -> Tensor:
        """The changes of scores by changed queries alone and by changed keys alone, added up."""
        length = len(self.layer.resid_TD)
        moved_NQTS = query_NPQH.new_zeros(len(query_NPQH), self.layer.n_heads, length, length)
        moved_NQTS[:, :, at_P] += torch.einsum("npqh,sqh->nqps", query_NPQH, self.key_SQH)
        moved_NQTS[:, :, :, at_P] += torch.einsum("tqh,npqh->nqtp", self.query_TQH, key_NPQH)
        return self.layer.scaling * moved_NQTS
