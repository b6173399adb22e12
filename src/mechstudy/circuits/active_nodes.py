"""The nodes of a layer at one prompt: active features of a dictionary, or neurons of the layer's MLP."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.neurons import Basis
from mechstudy.models.architectures import LinearNorm
from mechstudy.models.linear_mlp import LinearMlp


@dataclass(frozen=True)
class ActiveFeatures:
    """Features of a dictionary that are active on the prompt, sorted by position.

    ``feature_M`` are their numbers, ``value_M`` their activations. ``written_MD`` are value x decoder row at the
    layer's own site and, of a cross-layer transcoder, at the next layer, the one after, and so on.
    """

    dictionary: Dictionary
    position_M: Tensor
    feature_M: Tensor
    value_M: Tensor
    written_MD: tuple[Tensor, ...]

    @property
    def n_written(self) -> int:
        """The number of layers they write to."""
        return len(self.written_MD)

    def written(self, ahead: int = 0, which: slice = slice(None)) -> Float[Tensor, "m d"]:
        """What they write ``ahead`` layers above their own."""
        return self.written_MD[ahead][which]

    def readers(self, which_N: Int[Tensor, " n"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """Encoder rows and biases."""
        features = self.feature_M[which_N]
        return self.dictionary.encoder_rows(features).to(self.value_M), self.dictionary.b_enc[features].to(self.value_M)

    def until(self, n_positions: int) -> ActiveFeatures:
        """Those at the first positions."""
        n = _n_until(self.position_M, n_positions)
        written = tuple(rows[:n] for rows in self.written_MD)
        return replace(
            self,
            position_M=self.position_M[:n],
            feature_M=self.feature_M[:n],
            value_M=self.value_M[:n],
            written_MD=written,
        )


@dataclass(frozen=True)
class ActiveNeurons:
    """Neurons of an MLP, sorted by position. They write through its down projection and the norm after it, if any.

    ``feature_M`` are their numbers, ``value_M`` what they hold.
    """

    mlp: LinearMlp
    norm_post: LinearNorm | None
    position_M: Tensor
    feature_M: Tensor
    value_M: Tensor

    @property
    def n_written(self) -> int:
        """They write to their own layer."""
        return 1

    def written(self, ahead: int = 0, which: slice = slice(None)) -> Float[Tensor, "m d"]:
        """What they write into the residual stream."""
        assert ahead == 0
        rows = self.mlp.down_EF.T[self.feature_M[which]] * self.value_M[which, None]
        if self.norm_post is None:
            return rows
        return self.norm_post.at(self.position_M[which]).linear(rows)

    def readers(self, which_N: Int[Tensor, " n"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """What they read of the MLP's input, by the half rule, and what biases add."""
        return self.mlp.readers(self.position_M[which_N], self.feature_M[which_N])

    def until(self, n_positions: int) -> ActiveNeurons:
        """Those at the first positions."""
        n = _n_until(self.position_M, n_positions)
        return replace(self, position_M=self.position_M[:n], feature_M=self.feature_M[:n], value_M=self.value_M[:n])


ActiveNodes = ActiveFeatures | ActiveNeurons


def active_features(
    dictionary: Dictionary, x_TD: Float[Tensor, "t d_in"], valid_T: Bool[Tensor, " t"]
) -> ActiveFeatures:
    """Features of inputs x that are active at valid positions, with what each writes."""
    acts_TF = dictionary.encode(x_TD.to(dictionary.b_enc)) * valid_T[:, None]
    position, feature = acts_TF.nonzero(as_tuple=True)
    value = acts_TF[position, feature].to(x_TD)
    written = tuple(value[:, None] * rows.to(x_TD) for rows in dictionary.writes(feature))
    return ActiveFeatures(dictionary, position, feature, value, written)


def active_neurons(
    mlp: LinearMlp,
    norm_post: LinearNorm | None,
    acts_TF: Float[Tensor, "t f"],
    chosen_TF: Bool[Tensor, "t f"],
) -> ActiveNeurons:
    """The chosen neurons that are not zero."""
    position, neuron = (chosen_TF & (acts_TF != 0)).nonzero(as_tuple=True)
    return ActiveNeurons(mlp, norm_post, position, neuron, acts_TF[position, neuron])


def applies_at(
    dictionary: Basis,
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


def _n_until(position_M: Tensor, n_positions: int) -> int:
    return int(torch.searchsorted(position_M, torch.tensor(n_positions, device=position_M.device)))
