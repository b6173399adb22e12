"""The neurons of an MLP as a basis: an SAE of ``mlp_act`` whose features are the coordinates, without error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.linear_mlp import mlp_down


@dataclass(frozen=True)
class NeuronsMeta:
    """What `DictionaryMeta` says of a dictionary: widths, sites and kind."""

    d_in: int
    d_out: int
    d_sae: int
    site_in: str
    site_out: str
    kind: str = "neurons"
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Neurons:
    """The neurons of a layer's MLP: exact, and there in every model whose MLPs have a down projection.

    Neuron j holds coordinate j of ``mlp_act``, and is set there. What it adds to the residual stream is
    `decoder_rows`; where a family norms the MLP's output, times that norm.

    Raises:
        MechstudyError: the MLP is a mixture of experts.
    """

    def __init__(self, model: LanguageModel, layer: int) -> None:
        block = model.blocks[layer]
        if block.mlp_down is None:
            raise MechstudyError(
                f"layer {layer} of {model.name} has no neurons: its MLP is a mixture of experts",
                fix="a basis of dictionaries for this layer",
            )
        self.down_DF = mlp_down(block)[0]
        n, site = self.down_DF.shape[1], f"mlp_act.{layer}"
        self.cfg = NeuronsMeta(n, n, n, site, site)
        self.b_enc = self.down_DF.new_zeros(n)

    def encode(self, x: Float[Tensor, "*rows f"]) -> Float[Tensor, "*rows f"]:
        """What the neurons hold: the activations themselves."""
        return x

    def is_valid(self, x: Float[Tensor, "*rows f"], y: Float[Tensor, "*rows f"] | None = None) -> Bool[Tensor, "*rows"]:
        """True: neurons have no sinks."""
        return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)

    @property
    def sites_out(self) -> tuple[str, ...]:
        """``mlp_act`` of the layer."""
        return (self.cfg.site_out,)

    @property
    def W_dec_all(self) -> Float[Tensor, "f d"]:
        """What every neuron adds to the residual stream per unit of activation."""
        return self.down_DF.T

    def decoder_rows(self, features: Int[Tensor, " n"] | Sequence[int]) -> Float[Tensor, "n d"]:
        """The same of some neurons."""
        return self.down_DF.T[features]

    def encoder_rows(self, features: Int[Tensor, " n"] | Sequence[int]) -> Float[Tensor, "n f"]:
        """Coordinates of ``mlp_act``, as rows of the identity."""
        which = torch.as_tensor(features, device=self.b_enc.device)
        return torch.nn.functional.one_hot(which, len(self.b_enc)).to(self.b_enc)

    def writes(self, features: Int[Tensor, " n"] | Sequence[int]) -> tuple[Float[Tensor, "n f"], ...]:
        """The same coordinates, for each of `sites_out`."""
        return (self.encoder_rows(features),)


Basis = Dictionary | Neurons


def with_neurons(model: LanguageModel, dictionaries: Mapping[int, Basis], layers: Sequence[int]) -> dict[int, Basis]:
    """The dictionaries, and neurons at those of ``layers`` that have no dictionary and no mixture of experts."""
    free = [layer for layer in layers if layer not in dictionaries and model.blocks[layer].mlp_down is not None]
    return {**dictionaries, **{layer: Neurons(model, layer) for layer in free}}
