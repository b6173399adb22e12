"""Queries and keys of one attention layer as affine maps of its normed input, frozen at a prompt."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.models.architectures import Block, LinearNorm, linear_norm
from mechstudy.models.attention import RecordedScores, recorded_scores
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site
from mechstudy.models.validate import relative_error

_TOLERANCE = 1e-4  # of queries and keys against the model's own, in fp32; another map misses by far more


class NotAffine(MechstudyError):
    """Queries or keys that are no affine maps of their input."""


@dataclass(frozen=True)
class HeadMap:
    """The queries, or the keys, of every head: a projection, a norm with its scale frozen, a rotary map, a factor.

    ``N`` counts heads (kv heads for keys), ``H`` is the width of a head. ``rotation_THH[t]`` is the rotary map of
    position ``t``, read off the family's own function; None without one. ``norm_whole`` says that the norm spans all
    heads, ``norm_last`` that it follows the rotary map. ``factor_T`` scales each position (Ministral 3's queries).
    """

    weight_NHD: Float[Tensor, "n h d"]
    bias_NH: Float[Tensor, "n h"] | None
    norm: LinearNorm | None
    norm_whole: bool
    norm_last: bool
    rotation_THH: Float[Tensor, "t h h"] | None
    factor_T: Float[Tensor, " t"] | None

    def at(self, positions_P: Int[Tensor, " p"] | slice) -> HeadMap:
        """The map at some of its positions."""
        return replace(
            self,
            norm=None if self.norm is None else self.norm.at(positions_P),
            rotation_THH=None if self.rotation_THH is None else self.rotation_THH[positions_P],
            factor_T=None if self.factor_T is None else self.factor_T[positions_P],
        )

    def forward(self, x_TD: Float[Tensor, "*b #t d"]) -> Float[Tensor, "*b t n h"]:
        """Queries or keys of normed inputs."""
        return self.linear(x_TD) + self.constant(x_TD.shape[-2])

    def linear(self, x_TD: Float[Tensor, "*b #t d"]) -> Float[Tensor, "*b t n h"]:
        """The part that is linear in the normed input: what each of several summands contributes."""
        return self._after_projection(torch.einsum("...td,nhd->...tnh", x_TD, self.weight_NHD))

    def change(self, x_TD: Float[Tensor, "*b #t d"]) -> Float[Tensor, "*b t n h"]:
        """What a change of the normed input changes, to first order: `linear`, and scales respond if norms are live."""
        return self._after_projection(torch.einsum("...td,nhd->...tnh", x_TD, self.weight_NHD), live=True)

    def constant(self, length: int) -> Float[Tensor, "{length} n h"]:
        """What the projection's bias contributes at each of the map's ``length`` positions."""
        if self.bias_NH is None:
            return self.weight_NHD.new_zeros(length, *self.weight_NHD.shape[:2])
        return self._after_projection(self.bias_NH.expand(length, -1, -1))

    def backward(self, g_TNH: Float[Tensor, "*b t n h"]) -> Float[Tensor, "*b t d"]:
        """Gradients with respect to the normed input, from those with respect to queries or keys."""
        g = g_TNH if self.factor_T is None else g_TNH * self.factor_T[:, None, None]
        if self.norm_last:
            g = self._norm_back(g)
        if self.rotation_THH is not None:
            g = torch.einsum("thi,...tnh->...tni", self.rotation_THH, g)
        if not self.norm_last:
            g = self._norm_back(g)
        return torch.einsum("...tnh,nhd->...td", g, self.weight_NHD)

    def _after_projection(self, z: Tensor, live: bool = False) -> Tensor:
        if not self.norm_last:
            z = self._normed(z, live)
        if self.rotation_THH is not None:
            z = torch.einsum("thi,...tni->...tnh", self.rotation_THH, z)
        if self.norm_last:
            z = self._normed(z, live)
        return z if self.factor_T is None else z * self.factor_T[:, None, None]

    def _normed(self, z: Tensor, live: bool) -> Tensor:
        if self.norm is None:
            return z
        norm = self.norm.linear if live else self.norm.forward
        return norm(z.flatten(-2)).reshape(z.shape) if self.norm_whole else norm(z)

    def _norm_back(self, g: Tensor) -> Tensor:
        if self.norm is None:
            return g
        if not self.norm_whole:
            return self.norm.backward(g)
        return self.norm.backward(g.flatten(-2)).reshape(g.shape)


@dataclass(frozen=True)
class QueryKey:
    """Queries, keys and scores of one layer, frozen at a prompt of T tokens.

    ``norm`` is that of attention's input ``resid_TD``. ``score_QTS`` and ``pattern_QTS`` are the model's own; the
    scores are those before mask and soft cap, ``scaling`` times query times key. Query head ``q`` reads kv head
    ``q // (Q / G)``.
    """

    norm: LinearNorm
    query: HeadMap
    key: HeadMap
    resid_TD: Float[Tensor, "t d"]
    score_QTS: Float[Tensor, "q t s"]
    pattern_QTS: Float[Tensor, "q t s"]
    scaling: float
    softcap: float | None

    @property
    def n_heads(self) -> int:
        """Number of query heads."""
        return self.query.weight_NHD.shape[0]

    @property
    def group(self) -> int:
        """Query heads per kv head."""
        return self.n_heads // self.key.weight_NHD.shape[0]

    @property
    def softcap_slope(self) -> Float[Tensor, "q t s"] | None:
        """The derivative of what the softmax reads by each score; None without a soft cap, where it is 1."""
        return None if self.softcap is None else 1 - torch.tanh(self.score_QTS / self.softcap) ** 2


@torch.no_grad()
def query_keys(
    model: LanguageModel, tokens_T: Int[Tensor, " t"], layers: Sequence[int] | None = None
) -> dict[int, QueryKey]:
    """Run one prompt and freeze queries and keys of some layers (all of them by default).

    Args:
        model: weights in fp32 or wider.
        tokens_T: one prompt.

    Raises:
        MechstudyError: weights below fp32, a layer that does not exist, or an attention whose queries or keys are not
            affine in its input (OLMo's ``clip_qkv``).
    """
    wanted = list(range(model.n_layers)) if layers is None else list(layers)
    model.require_float32("scores are decomposed in fp32")
    sites = [Site("resid_pre", layer) for layer in wanted]
    model.check_sites(sites)
    with recorded_attention(model, wanted) as recorded:
        out = model.forward(tokens_T[None], capture=sites, stop_after=max(wanted, default=0), logits_at=None)
    return {layer: recorded.query_key(layer, out.activations[Site("resid_pre", layer)])[0] for layer in wanted}


@dataclass(frozen=True)
class RecordedAttention:
    """What attention of some layers computed in a run: scores, and the rotary maps that it was called with."""

    model: LanguageModel
    scores: Mapping[int, RecordedScores]
    rotary: Mapping[int, Any]

    def query_key(self, layer: int, resid_BTD: Float[Tensor, "b t d"], live: bool = False) -> list[QueryKey]:
        """Queries and keys of a layer in every row of the run, whose attention read ``resid_BTD``.

        ``live``: the norms before attention, and of queries and keys, are so (`architectures.LinearNorm`).

        Raises:
            MechstudyError: queries or keys are not affine in attention's normed input.
        """
        turn = _rotation(self.model.blocks[layer], self.rotary[layer], resid_BTD[0])
        return [
            _query_key(self.model, layer, resid_TD, self.scores[layer], row, turn, live)
            for row, resid_TD in enumerate(resid_BTD)
        ]


def queries_and_keys(
    model: LanguageModel, layer: int, frozen: QueryKey, resid_NPD: Float[Tensor, "n p d"], at_P: Int[Tensor, " p"]
) -> tuple[Float[Tensor, "n p q h"], Float[Tensor, "n p g h"]]:
    """Queries and keys of other residual streams at some positions of a prompt, norms as the model computes them.

    Args:
        model: the model.
        layer: the layer.
        frozen: that layer at the prompt.
        resid_NPD: what attention reads, of N streams.
        at_P: the positions.
    """
    block = model.blocks[layer]
    normed_NPD = model.linear_norm(block.norm_attn, resid_NPD).forward(resid_NPD)
    made = []
    for part, own in (("query", frozen.query.at(at_P)), ("key", frozen.key.at(at_P))):
        maps = replace(_head_map(block, part, normed_NPD, own.rotation_THH, False), factor_T=own.factor_T)
        made.append(maps.forward(normed_NPD))
    return made[0], made[1]


@contextmanager
def recorded_attention(model: LanguageModel, layers: Sequence[int]) -> Iterator[RecordedAttention]:
    """Inside the block, every forward pass records the attention of its layers."""
    rotary: dict[int, Any] = {}
    with ExitStack() as stack:
        for layer in layers:
            keep = _keep_rotary(rotary, layer)
            stack.callback(model.blocks[layer].attn.register_forward_pre_hook(keep, with_kwargs=True).remove)
        yield RecordedAttention(model, stack.enter_context(recorded_scores(model.hf)), rotary)


def _keep_rotary(kept: dict[int, Any], layer: int) -> Any:
    def hook(_module: Any, _args: Any, kwargs: Mapping[str, Any]) -> None:
        kept[layer] = kwargs.get("position_embeddings")

    return hook


def _query_key(
    model: LanguageModel,
    layer: int,
    resid_TD: Tensor,
    recorded: RecordedScores,
    row: int,
    turn: Tensor | None,
    live: bool,
) -> QueryKey:
    block = model.blocks[layer]
    norm = model.linear_norm(block.norm_attn, resid_TD, live)
    normed = norm.forward(resid_TD)
    query = _head_map(block, "query", normed, turn, live)
    query = replace(query, factor_T=_query_factor(block, normed))
    key = _head_map(block, "key", normed, turn, live)
    for name, own, maps in (("queries", recorded.query_BQTH, query), ("keys", recorded.key_BGTH, key)):
        error = relative_error(maps.forward(normed), own[row].transpose(0, 1))
        if error > _TOLERANCE:
            raise NotAffine(
                f"layer {layer} of {model.name}: its {name} are not the affine maps of its family",
                facts={"relative difference": f"{error:.1e}, at most {_TOLERANCE:.0e} is allowed"},
                fix="a model without clip_qkv; anything else that differs is worth a report",
            )
    return QueryKey(
        norm, query, key, resid_TD, recorded.score_BQTS[row], recorded.pattern_BQTS[row], recorded.scaling,
        recorded.softcap,
    )  # fmt: skip


def _head_map(block: Block, part: Any, normed_TD: Tensor, rotation_THH: Tensor | None, live: bool) -> HeadMap:
    weight_NHD, bias_NH = block.head_projection(part)
    own = getattr(block.attn, block.arch.qk_norms[part == "key"], None)
    whole, last = block.arch.qk_norm == "whole", block.arch.qk_norm_last
    bare = HeadMap(weight_NHD, bias_NH, None, whole, last, rotation_THH, None)
    if own is None:
        return bare
    before = bare if last else replace(bare, rotation_THH=None)
    z = before.forward(normed_TD)
    return replace(bare, norm=linear_norm(block.arch, own, z.flatten(-2) if whole else z, live))


def _rotation(block: Block, rotary: tuple[Tensor, Tensor] | None, like_TD: Tensor) -> Tensor | None:
    """The rotary map of every position as a matrix: the family's own function, applied to the unit vectors."""
    if rotary is None or not _has_rotary(block):
        return None
    cos, sin = (x[:1] for x in rotary)
    rotate = sys.modules[type(block.attn).__module__].apply_rotary_pos_emb
    width = block.head_projection("query")[0].shape[1]
    unit = torch.eye(width, dtype=like_TD.dtype, device=like_TD.device)
    unit_1HTH = unit[None, :, None].expand(1, width, like_TD.shape[0], width)
    turned_1HTH: Tensor = rotate(unit_1HTH, unit_1HTH, cos, sin)[0]
    return turned_1HTH[0].permute(1, 2, 0).to(like_TD.dtype)


def _has_rotary(block: Block) -> bool:
    rule, attn = block.arch.rotary, block.attn
    if rule == "use_rope":
        return bool(attn.use_rope)
    if rule == "windowed":  # Cohere has no such attribute, and a rotary map in every layer
        return getattr(attn, "sliding_window", 0) is not None
    if rule == "windowed_or_all":
        return attn.sliding_window is None or bool(attn.is_sliding)
    return True


def _query_factor(block: Block, like_TD: Tensor) -> Tensor | None:
    """Ministral 3 scales queries beyond the context that it was first trained on."""
    rope = getattr(block.config, "rope_parameters", None)
    beta = rope.get("llama_4_scaling_beta") if isinstance(rope, Mapping) else None
    if not beta:
        return None
    assert isinstance(rope, Mapping)
    steps_T = torch.arange(like_TD.shape[0], device=like_TD.device) // rope["original_max_position_embeddings"]
    factor_T: Tensor = 1 + float(beta) * torch.log1p(steps_T.to(like_TD))
    return factor_T
