"""The derivative of one attention layer at a run: through values, and through queries and keys into the patterns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.models.architectures import AttentionWeights
from mechstudy.models.query_key import HeadMap, QueryKey


@dataclass(frozen=True)
class LiveScores:
    """What one layer's patterns do when its input moves: the run's queries, keys and values by head, and their maps.

    ``slope_QTS`` is the derivative of Gemma 2's soft cap, None without one. Gradients are wanted at positions from
    ``first`` on. Query head ``q`` reads kv head ``q // (Q / G)``.
    """

    query: HeadMap
    key: HeadMap
    query_QTH: Float[Tensor, "q t h"]
    key_QSH: Float[Tensor, "q s h"]
    value_QSH: Float[Tensor, "q s h"]
    scaling: float
    slope_QTS: Float[Tensor, "q t s"] | None
    first: int = 0

    @classmethod
    def of(cls, layer: QueryKey, attention: AttentionWeights, first: int = 0) -> LiveScores:
        """Those of a layer whose maps are live, with its value map."""
        x_TD = layer.norm.forward(layer.resid_TD)
        keys_SQH = layer.key.forward(x_TD).repeat_interleave(layer.group, 1)
        by_head = (layer.query.forward(x_TD), keys_SQH, attention.values(x_TD))
        query, key, value = (x.transpose(0, 1).contiguous() for x in by_head)
        return cls(layer.query, layer.key, query, key, value, layer.scaling, layer.softcap_slope, first)

    def until(self, n: int) -> LiveScores:
        """The first ``n`` positions."""
        here = slice(n)
        return replace(
            self,
            query=self.query.at(here),
            key=self.key.at(here),
            query_QTH=self.query_QTH[:, here],
            key_QSH=self.key_QSH[:, here],
            value_QSH=self.value_QSH[:, here],
            slope_QTS=None if self.slope_QTS is None else self.slope_QTS[:, here, here],
        )

    def backward(
        self, attention: AttentionWeights, pattern_QTS: Float[Tensor, "q t s"], g_RTD: Float[Tensor, "r t d"]
    ) -> Float[Tensor, "r t d"]:
        """Gradients at attention's normed input from those at its output, values and patterns live.

        A score acts through the softmax: ``dt/ds_k = P_k (v_k - sum_j P_j v_j)``, with ``v_k`` what the target gets
        from key ``k`` per unit of pattern. Those before ``first`` are left at zero.
        """
        out_RTD = torch.zeros_like(g_RTD)
        here = slice(min(self.first, g_RTD.shape[1]), None)
        heads, width = attention.output_DQH.shape[1:]
        rows, length, _ = g_RTD[:, here].shape
        if not length or not rows:
            return out_RTD
        z = (g_RTD[:, here] @ attention.output_DQH.reshape(-1, heads * width)).view(rows, length, heads, width)
        z_QTRH = z.permute(2, 1, 0, 3).contiguous()
        pattern_QTS = pattern_QTS[:, here]
        got_QTRS = (z_QTRH.flatten(1, 2) @ self.value_QSH.transpose(1, 2)).view(heads, length, rows, -1)
        effect_QTRS = got_QTRS.sub_((pattern_QTS[:, :, None] * got_QTRS).sum(-1, keepdim=True))
        weight_QTS = pattern_QTS * self.scaling
        if self.slope_QTS is not None:
            weight_QTS = weight_QTS * self.slope_QTS[:, here]
        effect_QTRS *= weight_QTS[:, :, None]
        to_query_QTRH = (effect_QTRS.flatten(1, 2) @ self.key_QSH).view(heads, length, rows, width)
        effect_QSRT = effect_QTRS[..., here].permute(0, 3, 2, 1)
        to_key_QSRH = (effect_QSRT.flatten(1, 2) @ self.query_QTH[:, here]).view(heads, length, rows, width)
        mixed_QSRH = (pattern_QTS[:, :, here].transpose(1, 2) @ z_QTRH.flatten(2)).view(heads, length, rows, width)
        groups = attention.value_GHD.shape[0]
        value_RSGH = _by_group(mixed_QSRH, groups)
        out_RTD[:, here] = value_RSGH.flatten(2) @ attention.value_GHD.flatten(0, 1)
        out_RTD[:, here] += self.query.at(here).backward(to_query_QTRH.permute(2, 1, 0, 3))
        out_RTD[:, here] += self.key.at(here).backward(_by_group(to_key_QSRH, groups))
        return out_RTD


def _by_group(x_QTRH: Tensor, groups: int) -> Tensor:
    """Sums over the query heads of each kv head: [R, T, G, H]."""
    return x_QTRH.reshape(groups, -1, *x_QTRH.shape[1:]).sum(1).permute(2, 1, 0, 3)
